"""What a sweep would cost, from records whose numbers are known."""

import pytest

from pe_core.config import Experiment
from pe_core.errors import RecordError
from pe_core.launch import estimate
from pe_core.records import Record

SETTINGS = {
    "preset": "nano",
    "device": "cpu",
    "precision": "fp32",
    "compile": "off",
    "samples": 1000,
    "seq_len": 128,
    "lr": 1e-3,
}


def record(epochs_trained=4, rate=10_000.0, processes=1, **settings):
    """A run of 1,000 training windows; each epoch's evaluation took a tenth of a second."""
    runtime = {"tokens_per_second": rate, "eval_seconds": 0.1 * (epochs_trained + 1), "startup_seconds": 3.0}
    config = Experiment(**{**SETTINGS, **settings}).model_dump()
    return Record(
        run=f"rope-nano-{epochs_trained}{rate}{settings}", label="", config=config, data={}, parameters=0, best_epoch=1,
        history=[{}] * epochs_trained, metrics={}, versions={}, runtime={**runtime, "processes": processes}, created="",
    )  # fmt: skip


def test_a_trial_like_the_one_that_ran_costs_what_that_did():
    cost = estimate.trial(Experiment(**SETTINGS), [record()])
    assert (cost.epochs, cost.tokens_per_second, cost.known, cost.own) == (4, 10_000, True, True)
    assert cost.seconds == pytest.approx(1_000 * 128 * 4 / 10_000 + 0.1 * 5 + 3)


def test_more_windows_cost_more_and_all_epochs_where_none_tells():
    trial = Experiment(**{**SETTINGS, "samples": 10_000, "epochs": 30})
    cost = estimate.trial(trial, [record(epochs=1)])
    assert (cost.epochs, cost.known) == (30, False)
    assert cost.seconds == pytest.approx(10_000 * 128 * 30 / 10_000 + 0.1 * 31 + 3)
    assert estimate.trial(trial, [record(epochs=1), record(schedule="linear")]).epochs == 30


@pytest.mark.parametrize("changed", [{"samples": 9_000}, {"lr": 5e-4}, {"patience": 3}, {"corpus": "sotu"}])
def test_runs_of_the_nearest_settings_tell_when_training_stops_and_it_is_said(changed):
    far, near = record(epochs_trained=9, samples=77, lr=0.1, corpus="aws-docs"), record(epochs_trained=5)
    cost = estimate.sweep([Experiment(**SETTINGS | changed)], [far, near], 1, 1)
    assert (cost["epochs"], cost["epochs_of_other"]) == (5, list(changed))
    assert f"5.0 epochs (as runs with another {next(iter(changed))} stopped)" in estimate.sentence(cost)


def test_runs_of_the_same_encoding_go_before_others():
    slow, fast = record(rate=1_000.0, encoding="alibi"), record(rate=10_000.0)
    assert estimate.trial(Experiment(**SETTINGS), [slow, fast]).tokens_per_second == 10_000
    assert estimate.trial(Experiment(encoding="alibi", **SETTINGS), [slow, fast]).tokens_per_second == 1_000
    assert estimate.trial(Experiment(encoding="none", **SETTINGS), [slow, fast]).runs == {slow.run, fast.run}


@pytest.mark.parametrize("other", [{"preset": "micro"}, {"seq_len": 64}, {"processes": 2}, {"rate": None}])
def test_runs_of_another_size_tell_nothing(other):
    with pytest.raises(
        RecordError, match=r"^no finished run on text of preset=nano, .*seq_len=128, .* to go by; a short one will do"
    ):
        estimate.trial(Experiment(**SETTINGS), [record(**other)])


def test_a_task_is_no_text():
    with pytest.raises(RecordError, match=r"^no finished run on a task of preset=nano"):
        estimate.trial(Experiment(**SETTINGS, corpus="task:copy"), [record()])
    assert estimate.trial(Experiment(**SETTINGS, corpus="python-stdlib"), [record()]).differing == ("corpus",)
    assert estimate.trial(Experiment(**{**SETTINGS, "lr": 0.5}), [record()]).differing == ("lr",)


def test_a_sweep_is_so_many_trials_shared_by_workers():
    cost = estimate.sweep([Experiment(encoding=name, **SETTINGS) for name in ("rope", "none")], [record()], 1_001, 100)
    assert cost["worker_hours"] == pytest.approx(1_001 * cost["seconds_a_trial"] / 3600)
    assert cost["hours"] == pytest.approx(11 * cost["seconds_a_trial"] / 3600)
    assert cost["runs"] == 1
    said = estimate.sentence(cost)
    assert said.startswith(
        "1,001 trials: 15.2 hours of one worker, 10 minutes with 100 at a time. A trial takes 55 s: 4.0 epochs"
    )
    assert said.endswith("by 1 finished run. No run with none: taken from all encodings.")
    assert "No run" not in estimate.sentence({**cost, "without_runs": []})
    assert estimate.sentence({**cost, "epochs_known": False, "epochs": 30}).count("all 30 epochs, the most there can be") == 1


def test_published_runs_tell_when_training_stops():
    """This machine has a run of other settings to go by, and another machine's runs of these stopped after seven epochs."""
    here, there = record(samples=500), record(epochs_trained=7, rate=99_000.0)
    cost = estimate.trial(Experiment(**SETTINGS), [here], [there])
    assert (cost.epochs, cost.known, cost.tokens_per_second) == (7, True, 10_000)
    assert estimate.trial(Experiment(**SETTINGS), [], [there]).tokens_per_second == 99_000


def test_under_a_decaying_rate_all_epochs_are_trained():
    cost = estimate.trial(Experiment(**SETTINGS, epochs=2, schedule="linear"), [record()])
    assert (cost.epochs, cost.known) == (2, True)
