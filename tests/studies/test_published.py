"""What the site shows can be made again from what is published, on a machine that has none of the weights."""

import json

import pytest
from helpers import ROOT

from pe_core import paths, records
from pe_core.studies.diagnostics import measure as diagnostics
from pe_core.studies.extrapolation import lengths
from pe_core.studies.extrapolation import measure as extrapolation
from pe_core.studies.reversal import measure as reversal

MEASURED_AGAIN = {"speed"}
PAGES = sorted({file.stem for file in (ROOT / "book" / "experiments").glob("*.ipynb")} - MEASURED_AGAIN)


@pytest.fixture
def study(monkeypatch):
    """A study's published runs; whoever asks for the weights of one gets an error."""
    monkeypatch.setattr(records.saved_model, "model", None)
    monkeypatch.setattr(lengths, "_losses", None)

    def found(name):
        runs = records.load_study(paths.PUBLISHED / name)
        assert runs
        assert not any(record.has_weights for record in runs)
        return runs

    return found


def given(page):
    """The parameters of a page's notebook."""
    cells = json.loads((ROOT / "notebooks" / f"{page}.ipynb").read_text())["cells"]
    source = next("".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", []))
    values = {}
    exec(source, values)
    return values


@pytest.mark.parametrize("page", PAGES)
def test_every_page_can_be_made_of_published_runs(page):
    assert given(page)["published"] is False
    assert "published=there" in (ROOT / "notebooks" / f"{page}.ipynb").read_text()


@pytest.mark.parametrize("page", ["extrapolation", "length_extension"])
def test_readings_at_other_lengths(page, study):
    runs, asked = study(page), given(page)
    readings = extrapolation.measure(runs, asked["lengths"], asked["windows"], asked.get("stand_ins"))
    known = [reading for reading in readings if reading.slid]
    assert {reading.length for reading in known} == set(asked["lengths"])
    assert all(len(reading.slid) == len(reading.cut) == len(asked["seeds"]) for reading in known)


def test_how_far_back_a_model_reads(study):
    runs, asked = study("context_use"), given("context_use")
    table = lengths.context_use(lengths.by_setting(runs), asked["lengths"], asked["windows"])
    assert set(table.length) == set(asked["lengths"])
    assert set(table.source) == {"all", *runs[0].data["sources"]}
    assert not table.isna().to_numpy().any()


def test_a_run_of_several_studies_is_the_same_in_each():
    found = {}
    for folder in sorted(paths.PUBLISHED.iterdir()):
        for record in records.load_study(folder):
            same = found.setdefault(record.run, record)
            assert (record.metrics, record.history) == (same.metrics, same.history), f"{folder.name}: {record.run}"


def test_what_was_asked_of_models_of_facts(study):
    runs = study("reversal")
    assert all(answers["cells"] for answers in reversal.evaluate_all(runs))


def test_what_was_found_inside_models(study):
    runs = study("diagnostics")
    assert len(diagnostics.diagnose_all(runs, given("diagnostics")["windows"])) == len(runs)
