"""Losses at other context lengths, on the same tokens."""

import math

import numpy as np
import pandas as pd
import pytest
from helpers import publish_records, small
from matplotlib import pyplot as plt

from pe_core import records, runner
from pe_core.errors import ConfigError
from pe_core.studies.extrapolation import lengths, report


@pytest.fixture(scope="module")
def trained(library, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    chosen = [("rope", 1), ("rope", 2), ("none", 1), ("none", 2), ("learned", 1)]
    return [runner.run(small(library, encoding=name, seed=seed), folder) for name, seed in chosen]


def test_every_length_predicts_the_same_tokens(trained):
    short, long = (lengths.heldout(trained[0], length, 64, windows=3) for length in (16, 64))
    assert short.losses.shape[1] == 16
    assert long.losses.shape[1] == 64
    assert np.array_equal(short.tokens.sum(1), long.tokens.sum(1))
    assert np.array_equal(short.bytes.sum(1), long.bytes.sum(1))
    assert short.tokens.sum() == 3 * 64


def test_the_first_positions_do_not_depend_on_the_length(trained):
    """Without position encoding and with it: the first 16 positions of the first of four pieces see the same text."""
    for record in trained[:3]:
        whole, pieces = lengths.heldout(record, 64, 64, windows=1), lengths.heldout(record, 16, 64, windows=1)
        first = whole.losses[:, :16].sum()
        assert first < pieces.losses.sum()
        assert whole.tokens[:, :16].sum() * 4 == pieces.tokens.sum()


def test_computed_once(trained, monkeypatch):
    before = lengths.heldout(trained[1], 32, 64, windows=2)
    monkeypatch.setattr(lengths.data, "prepare", None)
    assert np.array_equal(lengths.heldout(trained[1], 32, 64, windows=2).losses, before.losses)


def test_another_encoding_may_be_put_in_place(trained):
    plain = lengths.heldout(trained[0], 64, 64, windows=2)
    same = lengths.heldout(trained[0], 64, 64, windows=2, encoding="rope", options={"rotary_pct": 0.25})
    stretched = lengths.heldout(trained[0], 64, 64, windows=2, encoding="interpolated", options={"factor": 4})
    assert np.array_equal(plain.losses, same.losses)
    assert not np.array_equal(plain.losses, stretched.losses)


def test_frame_leaves_out_what_has_no_positions(trained, capsys):
    table = lengths.frame(trained, [16, 32], 32, windows=4).set_index(["label", "length"])
    assert len(table) == 6
    assert math.isnan(table.perplexity["Learned", 32])
    assert table.perplexity["Learned", 16] > 1
    assert "Learned, 32: " in capsys.readouterr().out
    mean = np.mean([lengths.heldout(record, 32, 32, windows=4).loss for record in trained[:2]])
    assert table.perplexity["RoPE 25 %", 32] == pytest.approx(math.exp(mean))


def test_differences_are_paired(trained):
    estimate, p, *_ = lengths.difference(trained[2:4], trained[:2], 32)
    losses = [[lengths.heldout(r, 16, 32).loss for r in group] for group in (trained[2:4], trained[:2])]
    assert estimate.value == pytest.approx(np.mean(losses[0]) - np.mean(losses[1]))
    assert 0 < p <= 1


def test_gains_are_of_the_longest_against_the_shortest(trained, monkeypatch):
    longer = [record.model_copy(deep=True) for record in trained[:2]]
    for record in longer:
        record.config["seq_len"] = 32
    asked = []

    def difference(long, short, longest, length, windows):
        asked.append(({r.config["seq_len"] for r in long}, {r.config["seq_len"] for r in short}, longest, length))
        return lengths.stats.Paired(lengths.stats.Estimate(0.01, 0.005, 0.015), 0.01, 0.002, 5.0)

    monkeypatch.setattr(lengths, "difference", difference)
    found = lengths.gains([*trained[:2], *longer], 32, 16)
    (name,) = found
    assert asked == [({32}, {trained[0].config["seq_len"]}, 32, 16)]
    assert report.gains(found, "trained at 16") == (
        f"{name}: **1.0 % higher** perplexity than trained at 16 (interval 0.5 to 1.5 %; p = 0.010, both corrected for all "
        "models).\n\nThe smallest difference that four of five such comparisons would find is 0.7 %."
    )
    assert report.answer(found, "16 tokens", "tiny") == f"**Against 16 tokens, they raise it for {name} (+1.0 %)** (tiny)."


def test_a_length_that_does_not_divide_is_refused(trained):
    with pytest.raises(ConfigError, match=r"^length=24: a divisor of longest=64 is needed$"):
        lengths.heldout(trained[0], 24, 64)


def test_context_use_is_the_cost_of_seeing_less(trained):
    """Against the whole window on the same tokens; where a mixture has sources, each apart."""
    groups = lengths.by_setting(trained[:2])
    (setting,) = groups
    experiment = trained[0].experiment
    assert setting == f"vocabulary {experiment.vocabulary:,}, {experiment.samples * experiment.seq_len / 1e6:.1f} M tokens"
    table = lengths.context_use(groups, [4, 8, 16], windows=5)
    assert table.length.tolist() == [4, 8], "all of it is what the others are compared with"
    whole, less = ([lengths.sliding(r, length, 16, 5).loss for r in trained[:2]] for length in (16, 4))
    assert table.percent[0] == pytest.approx(100 * math.expm1(np.mean(less) - np.mean(whole)))
    assert table.bytes[1] == 2 * table.bytes[0] > 4
    assert set(table.source) == {"all"}
    assert set(table.seeds) == {2}


def test_context_use_is_read_from_what_is_published(trained, tmp_path, monkeypatch):
    before = lengths.context_use(lengths.by_setting(trained[:2]), [4, 8], windows=5)
    publish_records(trained[:2], tmp_path)
    monkeypatch.setattr(lengths, "_losses", None)
    monkeypatch.setattr(lengths.data, "prepare", None)
    published = records.load_study(tmp_path / "book" / "page")
    again = lengths.context_use(lengths.by_setting(published), [4, 8], windows=5)
    pd.testing.assert_frame_equal(again, before, rtol=1e-3)


def test_sources_are_told_apart_by_document(trained, monkeypatch):
    """The rows of a source are those of its documents that the second half of some window touches."""
    record = trained[0].model_copy(deep=True)
    held = lengths.text(record, 16, 5)
    everyone = np.unique(lengths.data.prepare(record.experiment, record.folder.parent / ".cache").test_documents)
    record.data["sources"] = {"one": 2, "other": len(everyone) - 2}
    present = np.unique(held.test_documents[:, 8:])
    (record.folder / "sources-of-16x5.json").unlink(missing_ok=True)  # kept when it had but one
    found = lengths._sources(record, 5)
    assert [present[found[name]].tolist() if name in found else [] for name in ("one", "other")] == [
        [d for d in present if d in everyone[:2]],
        [d for d in present if d in everyone[2:]],
    ]
    for length in (4, 16):
        lengths.sliding(record, length, 16, 5)
    monkeypatch.setattr(lengths.data, "prepare", None)
    assert lengths._sources(record, 5) == found, "kept"
    table = lengths.context_use({"v, t": [record, record]}, [4], windows=5)
    assert table.source.tolist() == ["all", *found]
    (record.folder / "sources-of-16x5.json").unlink()


def made_use(**high):
    """A made-up table: the upper ends of intervals by length."""
    rows = [
        {"setting": setting, "source": "all", "length": n, "bytes": 3.0 * n, "percent": v - 0.1, "low": v - 0.2, "high": v}
        for setting, ends in high.items()
        for n, v in zip((8, 16, 32, 64), ends, strict=True)
    ]
    return pd.DataFrame(rows)


def test_reach_is_the_shortest_context_from_which_on_nothing_is_missed(trained):
    settings = {"vocabulary 4,096, 0.2 M tokens": (9, 0.5, 1.5, 0.3), "vocabulary 4,096, 0.8 M tokens": (9, 0.9, 0.8, -0.1)}
    settings["vocabulary 512, 0.2 M tokens"] = (9, 5, 2, 1.01)
    table = made_use(**settings)
    found = lengths.reach(table)
    assert found.length.tolist()[:2] == [64, 16]
    assert math.isnan(found.length[2])
    assert found.bytes[1] == 48
    said = report.reach(found, trained[:2])
    assert said == (
        "**As good as all 16 tokens of context: with a vocabulary of 4,096, 64 after 0.2 M tokens and 16 after 0.8 M tokens; "
        "with a vocabulary of 512, nothing shorter than 16 after 0.2 M tokens** (RoPE 25 %, nano, 2 seeds)."
    )
    for figure in (report.context_use_figure(table, 16), report.by_source_figure(table.assign(source="prose"), 16)):
        figure.canvas.draw()
        assert len(figure.axes) == 2
        assert [len(ax.get_legend().get_texts()) for ax in figure.axes] in ([2, 1], [1, 1])
        plt.close(figure)
    assert "8.8 [8.8, 9.0]" in report.context_use_table(table).to_html().replace("8.9", "8.8")
