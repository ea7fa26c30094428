"""Files of every wrong kind as text, tokenizer and facts."""

import bz2
import gzip
import io
import json
import os
import random
import zipfile
from pathlib import Path

import pytest
from helpers import pickled_trap

from pe_core import runner
from pe_core.errors import TrainingError

TEXT = "".join(f"In {1900 + i} the council of town {i % 7} built bridge number {i * i % 101}.\n" for i in range(400)).encode()
LINES = b"".join(json.dumps({"text": line.decode()}).encode() + b"\n" for line in TEXT.splitlines())


def zipped(content):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("../../outside.txt", content)
    return file.getvalue()


def contents(trap):
    noise = random.Random(0).randbytes(4_000)
    return {
        "empty": b"",
        "NULs": bytes(5_000),
        "noise": noise,
        "Latin-1": "Über Brücken. ".encode("latin-1") * 900,
        "text": TEXT,
        "UTF-16": TEXT.decode().encode("utf-16"),
        "UTF-32": TEXT.decode().encode("utf-32"),
        "BOM": b"\xef\xbb\xbf" + TEXT,
        "CRLF": TEXT.replace(b"\n", b"\r\n"),
        "blank": b" \n\t" * 4_000,
        "a byte": b"a",
        "a million letters": b"a" * 1_000_000,
        "control characters": bytes(range(1, 32)) * 300,
        "markup": b"<script>alert(1)</script>\n" * 400,
        "end": b"<|endoftext|>" * 900,
        "lines": LINES,
        "lines, cut": LINES[:-20],
        "lines, one of them text": LINES[:4_000] + b"\n{not json}\n" + LINES[4_000:],
        "lines without text": b'{"a": 1}\n' * 300,
        "text is null": b'{"text": null}\n' * 300,
        "text is 1": b'{"text": 1}\n' * 300,
        "text is a list": b'{"text": ["a"]}\n' * 300,
        "text is empty": b'{"text": ""}\n' * 300,
        "lines of numbers": b"1\n" * 300,
        "lone surrogates": b'{"text": "\\ud800 and so on and on"}\n' * 300,
        "a number too large": b'{"text": 1e999}\n' * 300,
        "deep list": b"[" * 200_000,
        "deep lines": b'{"text":' * 100_000,
        "an object": b'{"a": {"b": 1}}',
        "an array": b"[1, 2]",
        "array of documents": b"[" + b",".join(LINES.splitlines()) + b"]",
        "key twice": b'{"text": "a", "text": "b"}\n' * 300,
        "gzip": gzip.compress(TEXT),
        "gzip of lines": gzip.compress(LINES),
        "gzip, cut": gzip.compress(TEXT)[:-30],
        "bzip2": bz2.compress(TEXT),
        "zip": zipped(TEXT),
        "pickle": pickled_trap(trap),
        "Parquet, cut": b"PAR1" + noise + b"PAR1",
        "program": b"\x7fELF" + noise,
        "image": b"\x89PNG\r\n\x1a\n" + noise,
        "table": b"text,n\n" + b'"a bridge, or two",1\n' * 300,
        "tokenizer of nothing": b'{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}',
        "tokenizer with holes": b'{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0, "b": 900}, "merges": []}}',
        "tokenizer of another kind": b'{"version": "1.0", "model": {"type": "Magic"}}',
    }


NAMES = ["a.txt", "a.jsonl", "a.json", "a.md", "a.parquet", "a.gz", "a.txt.gz", "a.jsonl.gz", "a.zst", "a.csv", "a", "A.JSONL",
         "tokenizer.json", "é\u0301.txt", " .txt", "a\nb.txt", os.fsdecode(b"\xff.txt")]  # fmt: skip
USES = {
    "text": lambda file: ["--corpus", str(file)],
    "folder": lambda file: ["--corpus", str(file.parent)],
    "field": lambda file: ["--corpus", f"{file}::b"],
    "tokenizer": lambda file: ["--tokenizer", str(file)],
    "tokenizer folder": lambda file: ["--tokenizer", str(file.parent)],
    "facts": lambda file: ["--facts", str(file)],
}
SMALL = ["--samples=20", "--seq-len=16", "--preset=nano", "--vocab-size=300", "--epochs=1", "--compile=off"]


@pytest.fixture
def untrained(monkeypatch, tmp_path):
    def train(*_, **__):
        raise TrainingError("reached")

    monkeypatch.setattr(runner, "_train_and_measure", train)
    return tmp_path / "trap"


def test_files_of_every_kind(campaign, command, untrained, tmp_path, library):
    kinds = contents(untrained)
    cases = [(kind, name, use) for kind in kinds for name in NAMES for use in USES]
    for number, (kind, name, use) in enumerate(campaign.cases(cases, 90)):
        folder = tmp_path / f"case {number}"
        folder.mkdir()
        (folder / name).write_bytes(kinds[kind])
        given = USES[use](folder / name)
        text = [] if "--corpus" in given else ["--corpus", str(library)]
        fault = command("run", *SMALL, *given, *text, "--runs", str(tmp_path / "runs"))
        campaign.check((kind, name, use), fault or ("its code was executed" if untrained.exists() else None))


def test_what_is_no_file(campaign, command, untrained, tmp_path, library):
    """Loops, closed folders, pipes, devices."""
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "broken.txt").symlink_to(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    (tmp_path / "around").mkdir()
    (tmp_path / "around" / "again").symlink_to(tmp_path / "around")
    (tmp_path / "closed.txt").write_bytes(TEXT)
    (tmp_path / "closed.txt").chmod(0)
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "folder.txt").mkdir()
    names = [
        "loop",
        "broken.txt",
        "empty",
        "around",
        "closed.txt",
        "pipe.txt",
        "folder.txt",
        "gone.txt",
        "loop/a.txt",
        "a/../b",
    ]
    cases = [(str(tmp_path / name), use) for name in names for use in USES]
    cases += [
        (name, use)
        for name in ("/dev/zero", "/dev/null", "/proc/self/mem", "/", ".", "..", "~")
        for use in ("tokenizer", "facts")
    ]
    for name, use in campaign.cases(cases, len(cases)):
        given = USES[use](Path(name))
        text = [] if "--corpus" in given else ["--corpus", str(library)]
        campaign.check((name, use), command("run", *SMALL, *given, *text, "--runs", str(tmp_path / "runs")))
