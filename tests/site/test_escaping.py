"""Names are text: a label, corpus or run that holds markup is shown as it is, and nothing of it is obeyed."""

import json
import re

import pandas as pd
import pytest
from helpers import made

from pe_core import comparison, records
from pe_core.config import Experiment
from pe_core.errors import ConfigError
from pe_core.report import claims, notebook, tables
from pe_core.site import explorer, index

HOSTILE = '<img src=x onerror="alert(1)"> <!-- <script>alert(2)</script> & \u2028'


@pytest.fixture
def group(tmp_path):
    """Two runs whose record says hostile things wherever it can."""
    runs = []
    for seed in (42, 43):
        record = made(tmp_path / f"x-{seed}", seed=seed)
        record.label = HOSTILE
        record.config["corpus"] = HOSTILE.replace("\u2028", "")
        record.data |= {"corpus_about": HOSTILE, "licence": HOSTILE, "tokenizer": HOSTILE, "documents": {"test": 9}}
        record.runtime |= {"device": HOSTILE, "compiled": False}
        record.versions["git"] = HOSTILE
        runs.append(record)
    return runs


def markup(html):
    return re.findall(r"<(?:img|script|!--)[^>]*", html)


def test_no_table_obeys_a_name(group):
    frame = pd.DataFrame({HOSTILE: [HOSTILE, "b"], "n": [1, 2]}, index=pd.Index([HOSTILE, "y"], name="z"))
    compared = comparison.frame(comparison.groups(group), HOSTILE)
    shown = [
        *(make(frame) for make in (tables.styled, tables.plain, tables.prose)),
        *(make(group) for make in (tables.summary, tables.runs)),
        tables.comparison(compared, HOSTILE),
    ]
    for table in shown:
        assert not markup(table.to_html())
    assert "&lt;img src=x" in tables.plain(frame).to_html()
    assert records.frame(group).label.unique().tolist() == [HOSTILE], "data stays as it is"


def test_no_sentence_obeys_a_name(group, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    notebook.say(claims.comparison(*group), claims.answer(group[0], []), HOSTILE)
    assert not markup(shown[0].data)
    assert "&lt;img src=x" in shown[0].data


def test_the_explorers_data_cannot_leave_its_script(group, monkeypatch):
    monkeypatch.setattr(index, "baseline", lambda: HOSTILE)
    monkeypatch.setattr(explorer.comparison, "settings", lambda found: [list(found)])
    shown = {"name": HOSTILE, "models": [{"label": one.label} for one in group]}
    monkeypatch.setattr(explorer, "_setting", lambda group, against: shown)
    page = explorer.place(group)
    [data] = re.findall(r'<script type="application/json" id="explorer-data">(.*)</script>$', page, re.DOTALL)
    assert not re.search("[<>&\u2028\u2029]", data)
    assert json.loads(data)["settings"][0]["models"][0]["label"] == HOSTILE


@pytest.mark.parametrize("name", ["a\nb", "a\x00b", "a\x1b[31m", "a\udcff", "a\u202eb", "x" * 5_000])
@pytest.mark.parametrize("setting", ["corpus", "tokenizer", "encoding", "device", "preset", "facts"])
def test_a_name_that_cannot_be_shown_is_refused_in_one_line(setting, name):
    with pytest.raises(ConfigError, match=rf"^{setting}='.*: .*(control characters|at most 4,096 characters)") as error:
        Experiment(**{setting: name})
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 500


def test_no_notebook_shows_markdown_past_the_one_place_that_escapes_it():
    assert not [path.name for path in (index.paths.ROOT / "notebooks").glob("*.ipynb") if "Markdown(" in path.read_text()]
