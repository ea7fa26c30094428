"""The note beside our records: agreement is claimed where the numbers show it."""

import math

import pytest
from helpers import made

from pe_core import comparison, recipes
from pe_core.site import index
from pe_core.stats import Estimate
from pe_core.studies.note import published, report


def trained(folder, name, shift, luck, seeds=(1, 2, 3)):
    """Runs of a model by its short name, with the options a record has."""
    settings = recipes.model(name)
    runs = []
    for seed in seeds:
        record = made(folder / f"{name}-{seed}", settings["encoding"], name, seed, shift + luck * seed)
        record.config |= {key: value for key, value in settings.items() if key != "encoding"}
        record.config["epochs"] = 4
        runs.append(record)
    return runs


@pytest.fixture
def found(tmp_path):
    models = {"rope": (0.0, 0.01), "alibi-one": (0.05, 0.02), "mla-alibi": (0.1, 0.01), "none": (0.3, 0.02)}
    return comparison.groups([run for name, how in models.items() for run in trained(tmp_path, name, *how)])


def test_models_are_found_by_what_they_are(found):
    assert report.group(found, "mla-alibi")[0].config["attention"] == "mla"
    assert report.group(found, "alibi-one")[0].label == "alibi-one"
    assert report.group(found, "alibi") is None  # the paper's slopes, not the note's one
    assert report.group(found, "rope-full") is None


def test_agreement_is_that_of_the_numbers(found):
    table = report.point_by_point(found).set_index("quantity")
    assert table.loc["NoPE against RoPE 25 %, %", "the note"] == "+19.0"
    assert table.loc["NoPE against RoPE 25 %, %", "agreement"].startswith("the same direction")
    assert table.loc["order, lowest perplexity first", "agreement"] == "the same order"
    assert "cannot agree" in table.loc["NoPE, perplexity", "agreement"]
    assert "cannot agree" in report.agreement(table.reset_index())


@pytest.mark.parametrize(
    ("ours", "said"),
    [
        (Estimate(10, 5, 15), "the same direction, another size"),
        (Estimate(18, 5, 25), "the same direction, and its size lies in our interval"),
        (Estimate(-10, -15, -5), "the opposite direction"),
        (Estimate(1, -2, 4), "not settled here: our interval contains 0"),
        (Estimate(1, math.nan, math.nan), "not settled here: our interval contains 0"),
    ],
)
def test_a_direction_needs_an_interval(ours, said):
    assert report._direction(19.0, ours) == said


def test_mistakes_are_computed(found):
    assert report.mixed(found).startswith("The same ALiBi with latent attention: ")
    pairs = report.one_seed(found, "alibi-one")
    assert len(pairs) == 9
    assert pairs["gap, %"].is_monotonic_increasing
    assert pairs["gap, %"].max() == pytest.approx(100 * math.expm1(0.05 + 3 * 0.02 - 0.01))
    assert "between +4.1 and +10.5 %" in report.luck(pairs)


def test_one_quality_has_many_perplexities(found):
    table = report.tokenizers(found, (1.0, 2.0))
    assert table["bits per byte"].nunique() == 1
    one, two = (float(table.perplexity[table["bytes per token"] == f"{n:.2f}"].iloc[0]) for n in (1, 2))
    assert two == pytest.approx(one**2, rel=0.05)
    (own,) = table.perplexity[table["bytes per token"].str.contains("this")]
    assert float(own) == pytest.approx(math.exp(sum(r.metrics["loss"] for r in found["rope"]) / 3), abs=0.06)


def test_nothing_is_said_without_runs():
    assert report.point_by_point({}).empty
    assert "nothing can be compared" in report.agreement(report.point_by_point({}))
    assert "is not known" in report.mixed({})
    assert "Too few seeds" in report.luck(report.one_seed({}))


def test_the_setting_with_the_notes_models_is_compared(found, tmp_path):
    assert published.PERPLEXITY["NoPE"] == 504.6
    runs = [record for group in found.values() for record in group]
    longer = [*trained(tmp_path / "longer", "none", 0.3, 0.01), *trained(tmp_path / "longer", "rope", 0.1, 0.01)]
    for record in longer:
        record.config["samples"] = 20_000
    wanted = ("none", "rope", "mla-alibi")
    assert set(index.holding([*longer, *runs], wanted)) == set(found), "more of the models count for more than more text"
    assert set(index.holding(longer, wanted)) == {"none", "rope"}
    assert index.holding([], wanted) == {}
