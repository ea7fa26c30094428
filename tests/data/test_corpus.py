"""Corpora: what they hold, and one clear line for everything that cannot be read."""

import json
import re

import pandas as pd
import pytest

from pe_core.data import corpora, hub
from pe_core.data import text as text_module
from pe_core.errors import CorpusError


def texts(name):
    return list(corpora.load(str(name)).documents())


def test_aws_docs_is_english_without_markup_or_repeats():
    documents = texts("aws-docs")
    assert len(documents) > 400
    assert sum(map(len, documents)) > 25e6
    paragraphs = [paragraph for document in documents for paragraph in document.splitlines()]
    assert len(paragraphs) == len(set(paragraphs)), "a paragraph twice could stand on both sides of the split"
    assert min(map(len, paragraphs)) >= 40
    # The source escapes a few dozen tags twice; those stay as text.
    assert sum(document.count(tag) for document in documents for tag in ("<p>", "</a>", "<code>", "&amp;")) < 200
    assert documents == texts("aws-docs"), "a second pass gives the same documents in the same order"


def test_python_stdlib_is_fingerprinted_source():
    loaded = corpora.load("python-stdlib")
    documents = list(loaded.documents())
    assert any("class ArgumentParser" in document for document in documents)
    assert not any("site-packages" in document[:100] for document in documents)
    assert len(loaded.version) == 16


def test_files_of_every_kind(tmp_path):
    (tmp_path / "a.txt").write_text("first\n<|endoftext|>\nsecond\n")
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "third"}) + "\n\n" + json.dumps({"text": "fourth"}) + "\n")
    pd.DataFrame({"text": ["fifth", None, "sixth"], "n": [1, 2, 3]}).to_parquet(tmp_path / "c.parquet")
    (tmp_path / ".hidden").write_text("not this")
    assert texts(tmp_path / "a.txt") == ["first", "second"]
    assert texts(tmp_path) == ["first", "second", "third", "fourth", "fifth", "sixth"]
    assert texts(tmp_path / "*.jsonl") == ["third", "fourth"]


def test_a_field_or_a_heading_is_named_after_two_colons(tmp_path):
    (tmp_path / "rows.JSONL").write_text(json.dumps({"text": "not this", "body": "this"}) + "\n")
    pd.DataFrame({"body": ["that"], "n": [1]}).to_parquet(tmp_path / "rows.parquet")
    assert texts(f"{tmp_path}/rows.*::body") == ["this", "that"]
    (tmp_path / "book.txt").write_text("Preface.\nCHAPTER 1\nOne.\nCHAPTER 2\nTwo, after CHAPTER 1.\n")
    assert texts(f"{tmp_path}/book.txt::CHAPTER") == ["Preface.", "CHAPTER 1\nOne.", "CHAPTER 2\nTwo, after CHAPTER 1."]
    assert len(texts(f"{tmp_path}/book.txt::(CHAPTER|Preface)")) == 3
    assert corpora.load(f"{tmp_path}/book.txt::CHAPTER").version != corpora.load(f"{tmp_path}/book.txt").version
    (tmp_path / "dos.txt").write_text("CHAPTER 1\r\nOne.\r\nCHAPTER 2\r\nTwo.", newline="")
    assert texts(f"{tmp_path}/dos.txt::CHAPTER \\d+$") == ["CHAPTER 1\r\nOne.", "CHAPTER 2\r\nTwo."]
    for rule, said in (("PART", "no line begins with 'PART'"), ("(", "not a regular expression")):
        with pytest.raises(CorpusError, match=re.escape(said)):
            texts(f"{tmp_path}/book.txt::{rule}")
    with pytest.raises(CorpusError, match=r"column 'n' holds int64, not strings$"):
        texts(f"{tmp_path}/rows.parquet::n")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match="the folder holds no files"):
        texts(tmp_path / "empty")


def test_tables_give_a_document_per_row(tmp_path):
    rows = pd.DataFrame({"text": ['one, "quoted"\nand on', "", "NA"], "n": [1, 2, 3]})
    rows.to_csv(tmp_path / "rows.csv", index=False)
    rows.to_csv(tmp_path / "rows.TSV", index=False, sep="\t")
    for name in ("rows.csv", "rows.TSV"):
        assert texts(tmp_path / name) == ['one, "quoted"\nand on', "NA"]
        assert texts(f"{tmp_path}/{name}::n") == ["1", "2", "3"]
        with pytest.raises(CorpusError, match=rf"no column 'body' \(columns: text, n; name one as in '{name}::text'\)$"):
            texts(f"{tmp_path}/{name}::body")
    (tmp_path / "ended.csv").write_text("text,label\n\ndoc 1,lab1,\ndoc 2,lab2,\n")
    assert texts(tmp_path / "ended.csv") == ["doc 1", "doc 2"]
    refused = {
        "uneven.csv": ("text,n\na,1\nb,2,3,4\n", r"line 3: 4 values for 2 columns$"),
        "short.csv": ("n,text\n1,a\n2\n", r"line 3: 1 values for 2 columns$"),
        "empty.csv": ("\n", r"no column 'text' \(columns: \)$"),
        "quoted.tsv": ('text\tid\n"Hello\t1\nsecond\t2\n"third" is\t3\n', r"line 4: '.*' expected after .*$"),
        "open.csv": ('text\n"never closed\n', r"line 2: unexpected end of data$"),
    }
    for name, (content, said) in refused.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(CorpusError, match=said):
            texts(tmp_path / name)
    (tmp_path / "latin.csv").write_bytes("text\ncaf\xe9\n".encode("latin-1"))
    with pytest.raises(CorpusError, match="not UTF-8"):
        texts(tmp_path / "latin.csv")


@pytest.mark.parametrize("passage", [50, 300])
def test_a_text_too_large_to_be_read_at_once_is_the_same_text(tmp_path, monkeypatch, passage):
    """Read in passages: the same documents where none is longer than one, and every character where one is."""
    lines = [f"Line {n} of it, naïve." for n in range(60)]
    for n in (9, 30, 31):
        lines[n] = text_module.DOCUMENT_END
    lines[45] = f"not {text_module.DOCUMENT_END} alone"
    lines[50] = "CHAPTER 2\r"
    (tmp_path / "book.txt").write_text("\n".join(lines), newline="")
    whole = {rule: texts(f"{tmp_path}/book.txt{rule}") for rule in ("", "::CHAPTER", "::Line [34]0")}
    monkeypatch.setattr(text_module, "ENOUGH", 10)
    monkeypatch.setattr(text_module, "_PASSAGE", 2_000)
    assert {rule: texts(f"{tmp_path}/book.txt{rule}") for rule in whole} == whole
    monkeypatch.setattr(text_module, "_PASSAGE", passage)
    for rule, expected in whole.items():
        found = texts(f"{tmp_path}/book.txt{rule}")
        assert "".join("".join(found).split()) == "".join("".join(expected).split())
        assert max(map(len, found)) <= max(passage, 30)
    with pytest.raises(CorpusError, match="no line begins with 'PART'"):
        texts(f"{tmp_path}/book.txt::PART")


def test_byte_order_marks_and_broken_characters_are_no_trouble(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfmarked")
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "half \\ud800 pair"}\n')
    assert texts(tmp_path) == ["marked", "half ? pair"]


def test_a_changed_file_changes_the_version(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("one")
    before = corpora.load(str(file)).version
    file.write_text("two")
    assert corpora.load(str(file)).version != before


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("missing.txt", None, "no such file"),
        ("empty.txt", b"", "empty"),
        ("noise.txt", bytes(range(256)), "binary"),
        ("zeros.txt", b"abc\0def", "binary"),
        ("bad.jsonl", b'{"text": "fine"}\n{"text": \n', "line 2: not JSON"),
        ("field.jsonl", b'{"body": "x"}\n', "line 1: no string field 'text'"),
        (
            "field.jsonl",
            b'{"body": "x", "n": 1}\n',
            "no string field 'text' (fields: body, n; name one as in 'field.jsonl::body')",
        ),
        ("deep.jsonl", b"[" * 100_000 + b"\n", "line 1: not JSON"),
        ("bad.parquet", b"not parquet at all", "not a readable parquet"),
        ("rows.json", b"[]", ".json is not read; a .jsonl file with one object a line is needed"),
        ("text.txt.GZ", b"\x1f\x8b", ".gz is not read; decompress it first"),
    ],
)
def test_what_cannot_be_read_is_one_line_that_names_it(tmp_path, name, content, said):
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(CorpusError) as error:
        texts(file)
    assert said in str(error.value)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_parquet_without_text_lists_its_columns(tmp_path):
    pd.DataFrame({"body": ["x"], "n": [1]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(CorpusError, match="columns: body, n"):
        texts(tmp_path / "a.parquet")


def test_unknown_names_list_the_known_ones():
    known = "aws-docs, fineweb-edu, pile, prose-docs-code, python-stdlib, sotu, tiny"
    with pytest.raises(CorpusError, match=rf"did you mean 'aws-docs'\? \(known: {known}"):
        corpora.load("aws-doc")
    with pytest.raises(CorpusError, match="hf:owner/name"):
        corpora.load("hf:")


# --- streams, without a hub: tests/test_hub.py has the real clients ---------------------------------------------------

ROWS = [row for i in range(6) for row in (f" = Title {i} = \n", *(f" line {i}.{j} \n" for j in range(3)), None, "")]


class Rows:
    """What `datasets` streams, as far as it is used here; it breaks off before the rows named, as often as they are named."""

    def __init__(self, broken, error):
        self.broken, self.error, self.at = broken, error, 0

    def load_state_dict(self, state):
        self.at = state["row"]

    def state_dict(self):
        return {"row": self.at}

    def __iter__(self):
        while self.at < len(ROWS):
            if self.broken[:1] == [self.at]:
                self.broken.pop(0)
                raise self.error
            self.at += 1
            yield {"text": ROWS[self.at - 1]}


def stream(monkeypatch, heading=None, broken=(), error=None):
    import datasets

    left, waited = list(broken), []
    monkeypatch.setattr(hub, "no_answer", lambda: None)
    monkeypatch.setattr(hub.time, "sleep", waited.append)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: Rows(left, error))
    return hub.from_hub("name", "owner/name", heading=heading), waited


@pytest.mark.parametrize("heading", [None, r"\s*= [^=]+ =\s*$"], ids=["rows", "articles"])
def test_a_stream_goes_on_after_every_document_and_every_failure(monkeypatch, heading):
    whole = list(stream(monkeypatch, heading)[0].documents())
    if heading:
        assert whole == [f"= Title {i} = \n line {i}.0 \n line {i}.1 \n line {i}.2" for i in range(6)]
    else:
        assert whole == [row for row in ROWS if row]
    places = [place() for _, place in stream(monkeypatch, heading)[0].after(None)]
    for i, place in enumerate(places):
        rest = stream(monkeypatch, heading)[0].after(json.loads(json.dumps(place)))
        assert [document for document, _ in rest] == whole[i + 1 :]
    broken, waited = stream(monkeypatch, heading, [0, 8, 8, 20], ConnectionError("reset by peer"))
    assert list(broken.documents()) == whole
    assert waited == [1, 1, 4, 1], "longer after each failure in a row"


def test_a_failure_that_does_not_pass_is_said_at_once(monkeypatch):
    broken, waited = stream(monkeypatch, None, [3], ValueError("no such column"))
    with pytest.raises(CorpusError, match="no such column"):
        list(broken.documents())
    assert waited == []
    broken, waited = stream(monkeypatch, None, [3] * 9, ConnectionError("reset by peer"))
    with pytest.raises(CorpusError, match="reset by peer"):
        list(broken.documents())
    assert waited == list(hub.RETRY_AFTER)
