"""Trackers: off by default, told of every epoch when asked for, and no part of what a run is."""

import json
import warnings

import pytest

from pe_core import Experiment, runner
from pe_core.errors import ConfigError


@pytest.fixture
def tiny(tmp_path):
    texts = [" ".join(f"word{(i * j) % 97}" for j in range(1, 40)) for i in range(1, 80)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return Experiment(
        corpus=str(tmp_path / "corpus.jsonl"), samples=40, seq_len=8, epochs=2, preset="nano", compile="off", device="cpu"
    )


def test_tensorboard_gets_every_epoch_and_the_run_stays_the_same(tiny, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    plain = runner.run(tiny, tmp_path / "plain")
    assert not list((tmp_path / "plain").rglob("*tfevents*"))
    monkeypatch.setenv("PE_TRACKER", "tensorboard")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tensorboard's own
        watched = runner.run(tiny, tmp_path / "watched")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(watched.folder / "position-encoding-lab")).Reload()
    assert watched.same_result(plain)
    for name in ("train_loss", "val_loss"):
        logged = [(event.step, pytest.approx(event.value, rel=1e-6)) for event in events.Scalars(name)]
        assert [(row["epoch"], row[name]) for row in watched.history] == logged


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tensorbord", r"PE_TRACKER: unknown tracker 'tensorbord'; did you mean 'tensorboard'\?"),
        ("comet_ml", "PE_TRACKER=comet_ml: its package is not installed"),
    ],
)
def test_what_cannot_track_is_one_line(tiny, tmp_path, monkeypatch, name, said):
    monkeypatch.setenv("PE_TRACKER", name)
    with pytest.raises(ConfigError, match=said):
        runner.run(tiny, tmp_path)
