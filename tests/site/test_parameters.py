"""Everything is checked before anything trains: bad values of every notebook's parameters, fed as papermill feeds them."""

import math
import re
from contextlib import suppress
from functools import cache
from types import SimpleNamespace

import nbformat
import pytest
from helpers import ROOT, code_cells
from IPython.core import getipython
from papermill.translators import PythonTranslator

import pe_core
from pe_core import ENCODINGS, paths
from pe_core.encodings import build
from pe_core.errors import ConfigError, LabError
from pe_core.launch import processes
from pe_core.report import notebook, parameters
from pe_core.schema import Shape
from pe_core.studies.ranking import measure as ranking

NOTEBOOKS = sorted(set((ROOT / "notebooks").glob("*.ipynb")) - {ROOT / "notebooks/explore.ipynb"})
BAD = [
    None, -1, 0, 0.5, math.nan, math.inf, -math.inf, "1e309", 10**30, 10**400, True, "", " ", [], {}, [[1]], [None], [-1], [0],
    ["1e0", 2], [7, 7], ["none", "none"], [True], [math.nan], [{}], [{"a": 1}], {"a": 1}, "nonsense", "two\nlines", "nul\0",
    "\x1b[31m", "[1, 2", "a: b: c", "~nobody/there", "x" * 300, "x" * 5_000, ["two\nlines"], [""], "2001-13-45", [3], [10**30],
]  # fmt: skip


class Reached(Exception):
    """Training would begin."""


@cache
def cells(path):
    return [cell.source for cell in code_cells(nbformat.read(path, as_version=4))]


def defaults(path):
    """The parameters of a notebook as it has them."""
    return notebook._assigned(cells(path)[0])


def train(experiments, runs=None, fresh=False, published=()):
    """What `sweep` checks before it reads any data."""
    seen = set()
    for experiment in experiments:
        if (kind := (experiment.encoding, repr(experiment.options), experiment.attention, experiment.seq_len)) not in seen:
            experiment.resolved()
        seen.add(kind)
    paths.runs(runs)
    raise Reached


TRAINS = re.compile(r"\b(sweep|measure\.search)\(")  # what a cell that trains calls


def start(path, **given):
    """Run the notebook's cells up to the one that trains, the given parameters injected, and say whether training began."""
    first, *others = cells(path)
    injected = f"# Parameters\n{PythonTranslator.codify(given)}"
    namespace = {"In": ["", first, injected]}
    exec(first, namespace)
    exec(injected, namespace)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(getipython, "get_ipython", lambda: SimpleNamespace(user_ns=namespace))
        patch.setattr(pe_core, "sweep", train, raising=False)
        patch.setattr(ranking, "sweep", train)
        patch.setattr(processes, "prepare", lambda: None)
        for source in others:
            exec(source, namespace)
            if not any(map(TRAINS.search, others)):
                return True  # nothing is trained: the first cell checks
            if TRAINS.search(source):
                return namespace.get("run_ids") not in ([], None)
    return False


def outcome(path, name, value):
    """`Reached`, the one line of an error, or a complaint."""
    try:
        return "Reached" if start(path, **{name: value}) else "not reached"
    except Reached:
        return "Reached"
    except LabError as error:
        said = str(error)
        return said if name in said and "\n" not in said and said.isprintable() else f"unclear: {said!r}"
    except Exception as error:
        return f"traceback: {type(error).__name__}: {error}"


# What of `BAD` a parameter may be, by its name; of the others it may be nothing.
_NUMBERS = ("[1, 2", ["1e0", 2], [3])
_NAMES = ("1e309", "nonsense", "[1, 2", "a: b: c", "~nobody/there", "2001-13-45")
GOOD = {
    "base_fraction": (0, 0.5),
    "bases": ([3], 10**30, [10**30]),
    "contexts": ([3],),
    "corpus": (*_NAMES, "x" * 300),  # what is not there is refused when data is prepared, before anything trains
    "facts": (*_NAMES, "x" * 300),
    "factors": (0.5, *_NUMBERS),
    "facts_rate": (0.5,),
    "fractions": (0, 0.5, [0]),
    "followed": ("", " ", []),
    "fresh": (True,),
    "heldout_share": (0.5,),
    "kv_dims": _NUMBERS,
    "lr": (0.5, None),
    "models": ("", " ", []),
    "note_rate": (0.5,),
    "patience": (10**30,),
    "published": (True,),
    "rates": (0.5, *_NUMBERS),
    "record_file": (None,),
    "run_ids": ("", " ", []),
    "runs_dir": (None, *_NAMES),
    "seed": (0,),
    "seeds": (0, [0], *_NUMBERS),
    "shared": ("", " ", []),
    "skip_baseline": (True,),
    "slopes": (0, 0.5, [0], 10**30, [10**30], *_NUMBERS),
    "stand_ins": ("", " ", []),
    "tokenizer": (*_NAMES, "x" * 300),
    "vocabularies": (None, [None], *_NUMBERS),  # None is the preset's own
    "whole": ({}, {"a": 1}),  # `combinations` are made of it before another could be given
}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_as_it_is_a_notebook_reaches_training(path):
    with suppress(Reached):
        assert start(path)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_bad_parameter_is_refused_in_one_line_before_anything_trains(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # folders that `runs_dir` names are made here
    wrong = []
    for name in defaults(path):
        good = [repr(value) for value in GOOD.get(name, ())]
        for value in BAD:
            said = outcome(path, name, value)
            if said.startswith(("unclear:", "traceback:", "not reached")) or (said == "Reached" and repr(value) not in good):
                wrong.append(f"{name}={value!r:.60}: {said}")
    assert not wrong, "\n".join(wrong)


def test_a_list_may_hold_none_beside_numbers():
    path = ROOT / "notebooks/context_use.ipynb"
    for given in ("None,512", "null,5.12e2", [None, "512"], ["None", 512]):
        assert notebook.check(defaults(path), {"vocabularies": given}) == {"vocabularies": [None, 512]}


def test_two_names_of_one_size_are_refused():
    with pytest.raises(ConfigError, match="presets='pythia-31m': with one vocabulary this is the size of 'micro'"):
        parameters.allowed({"presets": ["nano", "micro", "pythia-31m"]})


NUMBERS = [math.nan, math.inf, -math.inf, 1e300, -1e300, 1e-300, 10**400, 10**30, -1, 0, 2**31, 2**64, True, None, "", [], {}]


def test_numbers_that_no_encoding_can_use_are_refused_when_it_is_built(encoding):
    for option in ENCODINGS[encoding].Options.model_fields:
        for value in NUMBERS:
            said = ""
            try:
                build(encoding, {option: value}, Shape(128, 4, 32, 4, 128))
            except LabError as error:
                said = str(error)
            assert "\n" not in said, said
