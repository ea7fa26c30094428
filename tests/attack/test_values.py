"""Bad values of every option of the command line and of every encoding; those of notebooks are in `site/test_parameters.py`."""

import pytest

from pe_core import ENCODINGS, Experiment, paths, records, runner, sweeper
from pe_core.errors import TrainingError

BAD = [
    "", " ", "-1", "0", "0.5", "nan", "-inf", "1e309", "1e0", "9" * 400, "true", "none", "null", "[]", "{}", "[1, 2",
    '{"a": 1}', '{"a": {"b": [null]}}', '"', "'", "nonsense", "two\nlines", "\t", "\x1b[31mred", "nul\0", "\udcff",
    "\u202ebackwards", "\u2028", "~nobody/there", "x" * 300, "x" * 5_000, "../" * 50, "/dev/null", "/proc/self/mem",
    "file:///etc/passwd", "a://b", "%s%n%d", "<img src=x onerror=alert(1)>", "<!--", "a,b", "a::b", "::", "--", "-",
    "=", "0x10", "1_000", "\uff11\uff12", "[" * 9_000, "2001-13-45", "$HOME", "`id`", "; id", "*",
]  # fmt: skip
OTHERS = {
    "run": ["--runs"],
    "sweep": ["--runs", "--workers", "--address", "-o"],
    "estimate": ["--runs", "--workers", "--trials", "-o"],
    "list": ["", "--runs"],
    "show": ["", "--runs"],
    "plot": ["", "--runs", "--file"],
    "compare": ["", "--runs", "--against", "--plot"],
    "generate": ["", "--runs", "--tokens", "--temperature", "--seed"],
}


@pytest.fixture(autouse=True)
def untrained(monkeypatch, tmp_path):
    """Training is not reached: what is checked before it is what is tried here."""

    def run(experiment, runs=None, *_, **__):
        experiment.resolved()
        paths.runs(runs)
        raise TrainingError("reached")

    def sweep(experiments, runs=None, *_, **__):
        for experiment in experiments:
            run(experiment, runs)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner, "run", run)
    monkeypatch.setattr(sweeper, "sweep", sweep)
    monkeypatch.setattr(records, "load_all", lambda *_: [])


def test_values_of_settings(campaign, command):
    cases = [(verb, name, value) for verb in ("run", "sweep", "estimate") for name in Experiment.model_fields for value in BAD]
    for verb, name, value in campaign.cases(cases, 300):
        campaign.check((verb, name, value), command(verb, f"--{name.replace('_', '-')}={value}"))


def test_values_of_other_options(campaign, command):
    cases = [(verb, name, value) for verb, names in OTHERS.items() for name in names for value in BAD]
    for verb, name, value in campaign.cases(cases, 120):
        rest = {"generate": ["x", "y"], "plot": ["x"], "show": ["x"]}.get(verb, []) if name else []
        given = [value] if not name else [name, value] if name == "-o" else [f"{name}={value}"]
        campaign.check((verb, name, value), command(verb, *given, *rest))


def test_values_of_encodings_options(campaign, command):
    every = [(name, option) for name, cls in ENCODINGS.items() for option in cls.Options.model_fields]
    cases = [(name, option, value) for name, option in every for value in BAD]
    for name, option, value in campaign.cases(cases, 250):
        campaign.check((name, option, value), command("run", "--encoding", name, "-o", f"{option}={value}"))


def test_unknown_names(campaign, command):
    cases = [(verb, f"--{value}") for verb in OTHERS for value in BAD] + [("", value) for value in BAD]
    for verb, value in campaign.cases(cases, 60):
        campaign.check((verb, value), command(*filter(None, (verb, value))))
