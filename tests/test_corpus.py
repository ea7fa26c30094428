"""Corpora: what they hold, and one clear line for everything that cannot be read."""

import json

import pandas as pd
import pytest

from pe_core import corpus
from pe_core.errors import CorpusError


def texts(name):
    return list(corpus.load(str(name)).documents())


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
    loaded = corpus.load("python-stdlib")
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


def test_byte_order_marks_and_broken_characters_are_no_trouble(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfmarked")
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "half \\ud800 pair"}\n')
    assert texts(tmp_path) == ["marked", "half ? pair"]


def test_a_changed_file_changes_the_version(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("one")
    before = corpus.load(str(file)).version
    file.write_text("two")
    assert corpus.load(str(file)).version != before


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("missing.txt", None, "no such file"),
        ("empty.txt", b"", "empty"),
        ("noise.txt", bytes(range(256)), "binary"),
        ("zeros.txt", b"abc\0def", "binary"),
        ("bad.jsonl", b'{"text": "fine"}\n{"text": \n', "line 2: not JSON"),
        ("field.jsonl", b'{"body": "x"}\n', "line 1: no string field 'text'"),
        ("bad.parquet", b"not parquet at all", "not a readable parquet"),
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
    with pytest.raises(
        CorpusError, match=r"did you mean 'aws-docs'\? \(known: aws-docs, fineweb-edu, pile, python-stdlib, tiny"
    ):
        corpus.load("aws-doc")
    with pytest.raises(CorpusError, match="hf:owner/name"):
        corpus.load("hf:")
