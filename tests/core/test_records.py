"""Records: written whole, read strictly, gathered into a tidy frame."""

import json
import zipfile

import numpy as np
import pandas as pd
import pytest
from helpers import made

from pe_core import Experiment, comparison, metrics, records, run
from pe_core.errors import RecordError
from pe_core.metrics import HeldOut
from pe_core.report import figures


def test_what_is_saved_is_what_is_loaded(tmp_path):
    record = made(tmp_path / "run")
    loaded = records.load(tmp_path / "run")
    assert loaded.model_dump() == record.model_dump()
    assert loaded.heldout.loss == pytest.approx(record.metrics["loss"], rel=1e-15)
    assert not list(tmp_path.rglob("*.partial"))


def test_an_unknown_interval_is_null_not_nan(tmp_path):
    record = made(tmp_path / "run")
    record.metrics["perplexity"]["low"] = float("nan")
    record.save(tmp_path / "run")
    assert records.load(tmp_path / "run").metrics["perplexity"]["low"] is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace('"schema_version": 2', '"schema_version": 99'), "schema version 99.*reads 1 and 2"),
        (lambda text: text.replace('"schema_version": 2', '"other": 1'), "schema version None"),
        (lambda text: text[:50], "is not JSON"),
        (lambda text: "[1, 2]", "schema version None"),
        (lambda text: text.replace('"label": "NoPE"', '"label": 3'), "label: Input should be a valid string"),
        (lambda text: text.replace('"label"', '"labell"'), "label"),
    ],
)
def test_a_record_that_is_not_one_is_one_clear_line(tmp_path, change, said):
    made(tmp_path / "run")
    file = tmp_path / "run" / records.RECORD
    file.write_text(change(file.read_text()))
    with pytest.raises(RecordError, match=said) as error:
        records.load(file)
    assert "\n" not in str(error.value)
    assert "record.json" in str(error.value)


def test_a_missing_record_and_missing_losses_are_named(tmp_path):
    with pytest.raises(RecordError, match=r"no run record at .*nowhere"):
        records.load(tmp_path / "nowhere")
    made(tmp_path / "run")
    (tmp_path / "run" / records.LOSSES).write_bytes(b"damaged")
    with pytest.raises(RecordError, match=r"run run: 'heldout.npz' cannot be read"):
        _ = records.load(tmp_path / "run").heldout


def test_damaged_losses_are_one_clear_line(tmp_path):
    """Cut off or with one byte changed anywhere: zipfile, zlib and numpy raise eight kinds of error between them."""
    made(tmp_path / "run")
    file = tmp_path / "run" / records.LOSSES
    whole = file.read_bytes()
    said = []
    damaged = [whole[:i] + bytes([whole[i] ^ 85]) + whole[i + 1 :] for i in range(0, len(whole), 7)]
    for content in (b"", whole[:3], whole[: len(whole) // 2], *damaged):
        file.write_bytes(content)
        try:
            _ = records.load(tmp_path / "run").heldout
        except RecordError as error:  # and nothing else
            said.append(str(error))
    assert len(said) > 0.9 * len(damaged), "all but bytes without a meaning, such as times"
    assert all(line.startswith("run run: 'heldout.npz' cannot be read (") for line in said)


@pytest.mark.parametrize("kind", [zipfile.BadZipFile, KeyError, EOFError])
def test_any_error_over_the_losses_names_the_run(tmp_path, monkeypatch, kind):
    def load(_):
        raise kind("bad")

    record = made(tmp_path / "run")
    monkeypatch.setattr(HeldOut, "load", load)
    with pytest.raises(RecordError, match=r"run run: 'heldout.npz' cannot be read \(.*bad.*\)"):
        _ = record.heldout


def test_a_record_that_cannot_be_read_is_named_and_left_out(tmp_path, capsys):
    for name in ("a", "cut", "flipped", "old", "short", "z"):
        made(tmp_path / name)
    for name, change in {
        "cut": lambda text: text[:50],
        "old": lambda text: text.replace('"schema_version": 2', '"schema_version": 0'),
        "short": lambda text: text.replace('"perplexity"', '"preplexity"'),
        "flipped": lambda text: text.replace('"improved"', '"amproved"'),
    }.items():
        file = tmp_path / name / records.RECORD
        file.write_text(change(file.read_text()))
    assert [record.run for record in records.load_all(tmp_path)] == ["a", "z"]
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 4
    assert "cut/record.json' is not JSON" in said[0]
    assert "flipped/record.json': history lacks 'improved'" in said[1]
    assert "old/record.json' has schema version 0" in said[2]
    assert "short/record.json': metrics lacks 'perplexity'" in said[3]
    assert list(records.frame(runs=tmp_path).run) == ["a", "z"]


def test_a_run_of_an_encoding_that_is_gone_stays_in_the_frame(tmp_path):
    made(tmp_path / "a")
    made(tmp_path / "b", "no_such_encoding", "Gone")
    table = records.frame(runs=tmp_path)
    assert list(table.family) == ["none", "unknown"]
    assert set(figures.styles(table)) == {"NoPE", "Gone"}


def test_frame_is_tidy(tmp_path):
    made(tmp_path / "a")
    made(tmp_path / "b", "rope", "RoPE 25 %", shift=-0.1)
    (tmp_path / "unfinished").mkdir()
    table = records.frame(runs=tmp_path)
    assert list(table.label) == ["NoPE", "RoPE 25 %"]
    assert list(table.family) == ["none", "rotary"]
    assert table.perplexity.between(table.perplexity_low, table.perplexity_high).all()
    assert not table[["perplexity", "bits_per_byte", "tokens_per_second"]].isna().any().any()
    assert list(records.history(records.load_all(tmp_path)).side.unique()) == ["training", "held-out"]


def test_runs_on_other_text_are_not_paired(tmp_path):
    one, two = made(tmp_path / "a"), made(tmp_path / "b", shift=0.1)
    difference = one.difference_to(two)["percent"]
    assert difference.value == pytest.approx(100 * np.expm1(-0.1))
    two.data["fingerprint"] = "another"
    with pytest.raises(RecordError, match="different text"):
        one.difference_to(two)


def test_different_results_are_not_the_same(tmp_path):
    one, two = made(tmp_path / "a"), made(tmp_path / "b")
    two.run = one.run
    two.runtime["train_seconds"] = 99.0
    assert one.same_result(two)
    two.metrics["loss"] += 1e-12
    assert not one.same_result(two)
    assert json.loads((tmp_path / "a" / records.RECORD).read_text())["schema_version"] == records.SCHEMA


def test_a_published_study_says_what_its_runs_said(tmp_path, corpus):
    """Two small files in place of a folder a run: the same metrics, intervals and verdicts."""
    common = {"corpus": corpus, "samples": 40, "epochs": 1, "seq_len": 32, "compile": "off", "precision": "fp32"}
    trained = [run(Experiment(encoding=name, seed=s, **common), tmp_path / "runs") for name in ("none", "rope") for s in (1, 2)]
    trained.sort(key=lambda record: (record.created, record.run))  # several are made in a second
    records.publish(trained, tmp_path / "book" / "study")
    found = records.load_all(tmp_path / "book")
    assert [record.run for record in found] == [record.run for record in trained]
    for ours, theirs in zip(found, trained, strict=True):
        assert ours.same_result(theirs)
        assert np.array_equal(ours.heldout.tokens, theirs.heldout.tokens)
        assert np.array_equal(ours.heldout.bytes, theirs.heldout.bytes)
        assert ours.heldout.losses.sum(axis=1) == pytest.approx(theirs.heldout.losses.sum(axis=1), rel=1e-6)
        pd.testing.assert_frame_equal(ours.position_curve(), theirs.position_curve(), rtol=1e-5)
        assert [row["loss"] for row in metrics.position_table(ours.heldout)] == pytest.approx(
            [row["loss"] for row in theirs.metrics["position_bins"]], rel=1e-6
        )
    verdicts = [comparison.verdicts(comparison.groups(group)) for group in (found, trained)]
    pd.testing.assert_frame_equal(*verdicts, atol=1e-3)


def test_a_run_that_two_studies_share_belongs_to_both(tmp_path, corpus):
    shared = run(Experiment(corpus=corpus, samples=40, epochs=1, seq_len=32, compile="off"), tmp_path / "runs")
    for study in (tmp_path / "book" / "first", tmp_path / "book" / "second"):
        records.publish([shared], study)
        [found] = records.load_study(study)
        assert found.folder == study / shared.run
    assert len(records.load_all(tmp_path / "book")) == 1
    assert records.load_study(tmp_path / "book" / "none") == []
