"""Sentences: a finding is claimed where the interval says so, and nowhere else."""

import math

import numpy as np
import pandas as pd
import pytest
from helpers import made

from pe_core import records
from pe_core.report import claims
from pe_core.studies.note import report as note_report

# As a run has them in memory, and as they come back from its record, where NaN is null.
IN_MEMORY, READ_BACK = lambda record: record, lambda record: records.load(record.folder)


@pytest.fixture(params=[IN_MEMORY, READ_BACK], ids=["in memory", "read back"])
def trained(request, tmp_path):
    """`trained(name, documents=…, ratio=(value, low, high), facts=…)`: a finished run."""

    def train(name, ratio=(1.2, 1.1, 1.3), facts=33, **settings):
        record = made(tmp_path / name, label=name, **settings)
        record.metrics["reversal"] = {"facts": facts, "ratio": dict(zip(("value", "low", "high"), ratio, strict=True))}
        record.save(tmp_path / name)
        return request.param(record)

    return train


NONE = (math.nan, math.nan)


def test_one_document_allows_no_conclusion(trained):
    ours, baseline = trained("ours", documents=1, shift=0.5), trained("baseline", documents=1)
    for sentence in (claims.comparison(ours, baseline), claims.answer(ours, [baseline]), claims.use_of_context(ours)):
        assert "a single held-out document gives no interval, so nothing can be concluded" in sentence
        assert "**" not in sentence
        assert "nan" not in sentence
    alone = claims.answer(ours, [])
    assert "(a single held-out document gives no interval)" in alone
    assert "nan" not in alone


def test_several_documents_without_an_interval_are_not_called_one(trained):
    """Two documents of which one begins late: half the resamples have nothing at the early positions."""
    record = trained("ours", documents=2)
    heldout = record.heldout
    heldout.losses[1, :16] = heldout.tokens[1, :16] = 0
    assert "2 held-out documents give no interval, so nothing can be concluded" in claims.use_of_context(record)


def test_what_the_interval_shows_is_said(trained):
    ours, same, baseline = trained("ours", shift=0.5, encoding="alibi"), trained("same"), trained("baseline", encoding="rope")
    higher = f"**{ours.label} has 64.9 % higher perplexity than {baseline.label}** (95 % interval "
    lower = f"**{baseline.label} has 39.3 % lower perplexity than {ours.label}** ("
    assert len({ours.label, same.label, baseline.label}) == 3
    assert claims.comparison(ours, baseline).startswith(higher)
    assert claims.comparison(baseline, ours).startswith(lower)
    assert claims.comparison(same, baseline).startswith(
        f"**No difference found** between {same.label} and {baseline.label}: +0.0 % perplexity"
    )
    assert "no difference found in perplexity, higher or lower, at positions 16–32 than at positions 0–16" in (
        claims.use_of_context(ours)
    )
    ours.heldout.losses[:, 16:] -= ours.heldout.tokens[:, 16:]
    assert "perplexity is 6" in claims.use_of_context(ours)
    assert "% lower at positions 16–32 than at positions 0–16 (95 % interval of the change −" in claims.use_of_context(ours)
    assert "(95 % interval " in claims.answer(ours, [])


@pytest.mark.parametrize(
    ("facts", "ratio", "said"),
    [
        (33, (1.2, 1.1, 1.3), "the forward sentences are the more surprising ones"),
        (33, (0.8, 0.7, 0.9), "the backward sentences are the more surprising ones"),
        (33, (1.2, 0.9, 1.3), "the interval contains 1"),
        (33, (1.2, 1.0, 1.3), "the interval contains 1"),
        (1, (1.2, *NONE), "the ratio is 1.20; a single fact gives no interval, so nothing can be concluded"),
        (0, (math.nan, *NONE), "no fact fits into a window, so there is no interval and nothing can be concluded"),
    ],
)
def test_the_ratio_needs_an_interval_too(trained, facts, ratio, said):
    sentence = note_report.reversal([trained("ours", facts=facts, ratio=ratio)])
    assert said in sentence
    assert "nan" not in sentence


def test_of_many_models_a_sentence_names_the_largest_differences():
    table = pd.DataFrame(
        {
            "label": list("abcdefgh"),
            "perplexity": np.arange(80.0, 88.0),
            "perplexity_low": math.nan,
            "percent": [-9.0, -8, -7, -6, -5, -4, -3, 2],
            "low": -10.0,
            "high": -1.0,
            "p_holm": 0.01,
            "differs": [True] * 8,
            "leads": [True, *[False] * 7],
            "detectable": 1.5,
            "seeds": 3,
        }
    )
    said = claims.ranking(table, "RoPE").split("\n\n")
    assert said[1] == (
        "Significantly better than RoPE: a −9.0 % [−10.0, −1.0]; b −8.0 % [−10.0, −1.0]; c −7.0 % [−10.0, −1.0]; 4 more."
    )
    assert said[2].startswith("Significantly worse than RoPE: h +2.0 % [")
    said = claims.ranking(table.assign(differs=False), "RoPE").split("\n\n")
    assert said[1] == "**No difference found** from RoPE: a; b; c; d; e; f; g; h."
