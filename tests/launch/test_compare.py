"""Finished runs against each other, on the command line and from Python."""

import io
import json

import pandas as pd
import pytest
from helpers import made, small

from pe_core import Experiment, comparison, records, runner
from pe_core.__main__ import main
from pe_core.errors import ConfigError, RecordError
from pe_core.report import compare

MODELS = (("rope", "RoPE 25 %", 0.0), ("none", "NoPE", 0.3), ("alibi", "ALiBi per head", 0.01))


@pytest.fixture
def folder(tmp_path):
    """Three models of three seeds, and one of them once more with longer windows."""
    for name, label, shift in MODELS:
        for seed in (1, 2, 3):
            made(tmp_path / f"{name}-{seed}", name, label, seed, shift + 0.01 * seed, noise=0.02)
    other = made(tmp_path / "rope-long", "rope", "RoPE 25 %", 1)
    other.config["seq_len"] = 256
    other.save(other.folder)
    return tmp_path


def said(capsys, *arguments):
    assert main(list(arguments)) == 0
    return capsys.readouterr().out


def test_compare_says_what_the_verdicts_say(folder, capsys):
    text = said(capsys, "compare", "--runs", str(folder), "--against", "rope")
    found = comparison.groups([record for record in records.load_all(folder) if record.config.get("seq_len") != 256])
    for row in comparison.frame(found, "RoPE 25 %").itertuples():
        (line,) = (line for line in text.splitlines() if line.startswith(f"{row.label}  "))
        assert line.endswith("baseline" if row.label == "RoPE 25 %" else row.verdict)
    assert "Significantly worse than RoPE 25 %: NoPE" in text
    assert "the note" not in text


def test_csv_and_json_hold_the_same_table(folder, capsys):
    table = pd.read_csv(io.StringIO(said(capsys, "compare", "--runs", str(folder), "--csv")))
    rows = json.loads(said(capsys, "compare", "--runs", str(folder), "--json"))
    assert list(table.label) == [row["label"] for row in rows]
    assert table.verdict[table.label == "NoPE"].item() == "higher"
    assert len(pd.read_csv(io.StringIO(said(capsys, "list", "--csv", "--runs", str(folder))))) == 10


@pytest.mark.parametrize("against", ["rope", "RoPE 25 %", "none", "alibi"])
def test_a_baseline_may_be_named_by_encoding_or_label(folder, against):
    [(groups, label)] = compare.comparisons(records.load_all(folder), against)
    assert label in groups
    assert against in (label, groups[label][0].config["encoding"])


def test_runs_may_be_chosen(folder, capsys):
    text = said(capsys, "compare", "rope-1", "none-1", "--runs", str(folder))
    assert "ALiBi" not in text
    assert "one seed" in text or "single seed" in text


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["compare", "--against", "ropes"], "unknown baseline 'ropes'"),
        (["compare", "rope-1"], "two models trained alike"),
        (["compare", "rope-9"], "unknown run 'rope-9'"),
        (["compare", "--plot", "x.docx"], "unknown picture format '.docx'"),
        (["generate", "rope-1", "a", "--tokens", "0"], "tokens=0: should be 1 or more"),
        (["generate", "rope-1", "a", "--temperature", "-1"], "temperature=-1: should be 0, or from 0.01 to 100"),
        (["generate", "rope-1", "a", "--temperature", "1e-40"], "temperature=1e-40: should be 0, or from 0.01 to 100"),
        (["generate", "rope-1", "a", "--temperature", "nan"], "temperature=nan: should be 0, or from 0.01 to 100"),
        (["generate", "rope-1", "a", "--seed", "9" * 20], "should be 0 or more, and below 2^63"),
        (["generate", "rope-1", "a"], "no saved model at"),
        (["compare", "--csv", "--json"], "one of --csv and --json"),
        (["list", "--csv", "--json"], "one of --csv and --json"),
        (["list", "presets", "--csv"], "only runs are printed as CSV"),
    ],
)
def test_what_cannot_be_done_is_one_line(folder, capsys, arguments, error):
    assert main([*arguments, "--runs", str(folder)]) in (1, 2)
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert error in lines[0]


def test_figures_are_files(folder, capsys):
    said(capsys, "compare", "--runs", str(folder), "--plot", str(folder / "differences.svg"))
    said(capsys, "plot", "rope-1", "none-1", "--runs", str(folder), "--file", str(folder / "positions.png"))
    assert "<svg" in (folder / "differences.svg").read_text()
    assert (folder / "positions.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match="unknown picture format 'none'"):
        compare.plot(*compare.comparisons(records.load_all(folder))[0], folder / "none")


def test_the_same_text_by_another_path_is_compared(tmp_path):
    for name, label, corpus in (("rope", "RoPE", "/a/book.txt"), ("none", "NoPE", "../book.txt")):
        for seed in (1, 2):
            record = made(tmp_path / f"{name}-{seed}", name, label, seed, noise=0.02)
            record.config["corpus"] = corpus if seed == 1 else "elsewhere/book.txt"
            record.save(record.folder)
    [(groups, _)] = compare.comparisons(records.load_all(tmp_path))
    assert [len(group) for group in groups.values()] == [2, 2]


def test_models_are_compared_by_the_seeds_that_all_have(tmp_path):
    for name, label, seeds in (("rope", "RoPE", (1, 2)), ("none", "NoPE", (1,))):
        for seed in seeds:
            made(tmp_path / f"{name}-{seed}", name, label, seed, shift=seed, noise=0.02)
    [(groups, against)] = compare.comparisons(records.load_all(tmp_path))
    assert {record.config["seed"] for group in groups.values() for record in group} == {1}
    assert "single seed" in compare.text(groups, against)


def test_of_several_settings_each_is_named(folder, capsys):
    for name, label in (("rope", "RoPE 25 %"), ("none", "NoPE")):
        masked = made(folder / f"{name}-masked", name, label, 1, noise=0.02)
        masked.config["document_mask"] = True
        masked.save(masked.folder)
    text = said(capsys, "compare", "--runs", str(folder))
    assert text.startswith("document_mask=False\n")
    assert "\ndocument_mask=True\n" in text


def test_a_baseline_may_be_named_by_its_title(folder):
    assert compare.comparisons(records.load_all(folder), "alibi per")[0][1] == "ALiBi per head"


def test_positions_of_different_text_are_not_drawn_together(folder):
    other = made(folder / "nope-elsewhere", "none", "NoPE", 9)
    other.data["fingerprint"] = "other"
    with pytest.raises(RecordError, match="measured on different text"):
        compare.plot_positions([records.load(folder / "rope-1"), other], folder / "x.svg")


def test_what_follows_two_dashes_is_text(monkeypatch, folder, capsys):
    monkeypatch.setattr(records.Record, "generate", lambda record, text, *_: text)
    assert said(capsys, "generate", "rope-1", "--runs", str(folder), "--", "--foo_bar=--") == "--foo_bar=--\n"


def test_nothing_to_compare(tmp_path):
    with pytest.raises(RecordError, match=r"^0 finished run\(s\) of 0 model\(s\)"):
        compare.comparisons(records.load_all(tmp_path))


@pytest.mark.parametrize(
    ("encoding", "options", "most"),
    [
        ("learned", {}, 8),
        ("randomised", {"eval_length": 12}, 12),
        ("mix", {"parts": [{"encoding": "rope"}, {"encoding": "learned", "options": {"length": 10}}]}, 10),
    ],
)
def test_generate_stops_where_positions_end(corpus, tmp_path, capsys, encoding, options, most):
    tiny = Experiment(corpus=corpus, samples=40, seq_len=8, epochs=1, preset="nano", compile="off", device="cpu")
    record = runner.run(tiny.model_copy(update={"encoding": encoding, "options": options}), tmp_path)
    capsys.readouterr()
    text = record.generate("word1", tokens=50)
    assert len(record.tokenizer()(text)["input_ids"]) <= most
    assert f"Ends after {most} tokens" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=rf"this model has positions for {most}, its next token's included$"):
        record.generate("word1 " * 12)


def test_generate_continues_a_text(corpus, tmp_path, capsys):
    record = runner.run(small(corpus, samples=40, epochs=1), tmp_path)
    capsys.readouterr()
    text = said(capsys, "generate", record.run, "word1 <|endoftext|>", "--tokens", "5", "--runs", str(tmp_path)).rstrip("\n")
    assert text.startswith("word1 <|endoftext|>")
    assert text == record.generate("word1 <|endoftext|>", 5).rstrip("\n")
    assert record.generate("word1", 5, temperature=0) == record.generate("word1", 5, temperature=0, seed=9)
    assert isinstance(record.generate("", 5), str)
    capsys.readouterr()
    assert len(record.generate("word1", 50)) > 5
    assert capsys.readouterr() == ("", ""), "beyond the length trained at, transformers would remind of it"
