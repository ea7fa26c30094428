"""Losses at other context lengths, on the same tokens."""

import math

import numpy as np
import pytest
from helpers import small

from pe_core import runner
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
    estimate, p = lengths.difference(trained[2:4], trained[:2], 32)
    losses = [[lengths.heldout(r, 16, 32).loss for r in group] for group in (trained[2:4], trained[:2])]
    assert estimate.value == pytest.approx(100 * math.expm1(np.mean(losses[0]) - np.mean(losses[1])))
    assert 0 < p <= 1


def test_gains_are_of_the_longest_against_the_shortest(trained, monkeypatch):
    longer = [record.model_copy(deep=True) for record in trained[:2]]
    for record in longer:
        record.config["seq_len"] = 32
    asked = []

    def difference(long, short, longest, length, windows):
        asked.append(({r.config["seq_len"] for r in long}, {r.config["seq_len"] for r in short}, longest, length))
        return lengths.stats.Paired(lengths.stats.Estimate(1.0, 0.5, 1.5), 0.01)

    monkeypatch.setattr(lengths, "difference", difference)
    found = lengths.gains([*trained[:2], *longer], 32, 16)
    (name,) = found
    assert asked == [({32}, {trained[0].config["seq_len"]}, 32, 16)]
    assert report.gains(found, "trained at 16") == (
        f"{name}: **1.0 % higher** perplexity than trained at 16 (95 % interval 0.5 to 1.5 %; p = 0.010 after Holm's "
        "correction)."
    )
    assert report.answer(found, "16 tokens", "tiny") == f"**Against 16 tokens, they raise it for {name} (+1.0 %)** (tiny)."


def test_a_length_that_does_not_divide_is_refused(trained):
    with pytest.raises(ConfigError, match=r"^length=24: a divisor of longest=64 is needed$"):
        lengths.heldout(trained[0], 24, 64)
