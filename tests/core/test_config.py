"""Settings: every bad value is one line that names it and what is allowed."""

import pytest

from pe_core.config import PRESETS, Experiment
from pe_core.errors import ConfigError, LabError


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"samples": "abc"}, "samples='abc': should be a valid integer"),
        ({"samples": 0}, "samples=0: should be greater than or equal to 10"),
        ({"samples": -5}, "samples=-5: should be greater"),
        ({"samples": True}, "samples=True: True and False are not allowed"),
        ({"samples": 99.5}, "samples=99.5: should be a valid integer"),
        ({"seq_len": 1}, "seq_len=1"),
        ({"epochs": 0}, "epochs=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 10_001}, "fewer windows than one batch of batch_size=10001"),
        ({"draw_len": 200}, "draw_len=200: a multiple of seq_len=128"),
        ({"warmup": 1}, "warmup=1"),
        ({"schedule": "step"}, "schedule='step': should be 'constant', 'linear' or 'cosine'"),
        ({"vocab_size": 256}, "vocab_size=256"),
        ({"lr": 0}, "lr=0"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"lr": float("inf")}, "lr=inf"),
        ({"patience": 0}, "patience=0"),
        ({"seed": -1}, "seed=-1"),
        ({"precision": "fp8"}, "precision='fp8': should be 'auto', 'fp32' or 'bf16'"),
        ({"device": "tpu"}, r"device='tpu' is not available on this machine \(available: .*cpu"),
        ({"preset": "nanoo"}, "unknown preset 'nanoo'; did you mean 'nano'?"),
        ({"encoding": "rop"}, "unknown encoding 'rop'; did you mean 'rope'?"),
        ({"options": {"base": 1}}, "encoding 'rope': base=1: should be greater than 1"),
        ({"options": {"slope": 1}}, "encoding 'rope': unknown setting 'slope'"),
        ({"sampels": 100}, "unknown setting 'sampels'; did you mean 'samples'?"),
        ({"encoding": "learned", "options": {"length": 64}}, "seq_len=128 is longer than the learned table"),
    ],
)
def test_a_bad_value_is_one_clear_line(settings, said):
    with pytest.raises(ConfigError, match=said.replace("?", r"\?").replace("(known", r"\(known")) as error:
        Experiment(**settings).resolved()
    assert "\n" not in str(error.value)


def test_errors_show_as_one_line_in_a_notebook():
    assert LabError("what and why")._render_traceback_() == ["LabError: what and why"]


def test_resolved_leaves_nothing_open():
    resolved = Experiment(device="cpu").resolved()
    assert resolved.preset == "nano"
    assert resolved.lr == PRESETS["nano"].lr
    assert resolved.options == {"rotary_pct": 0.25, "base": 10_000.0}
    assert "auto" not in (resolved.device, resolved.precision, resolved.compile)
    assert resolved.resolved() == resolved


def test_experiments_are_frozen():
    with pytest.raises(Exception, match="frozen"):
        Experiment().samples = 5


def test_the_note_is_the_default():
    """Settings of the results note that a newcomer's run should have without being asked."""
    experiment = Experiment()
    assert (experiment.samples, experiment.seq_len, experiment.epochs) == (10_000, 128, 30)
    assert (experiment.batch_size, experiment.patience, experiment.seed) == (8, 1, 42)
    assert (experiment.weight_decay, experiment.clip) == (0.01, 1.0)
    assert PRESETS["pythia-70m"] == (512, 6, 8, 50_304, 1e-4)


def test_a_run_is_named_by_what_makes_it_different():
    one = Experiment(device="cpu").resolved()
    assert one.digest("data") == Experiment(device="cpu", lr=1e-3, preset="nano").resolved().digest("data")
    others = [one.model_copy(update={"seed": 1}).digest("data"), one.digest("other data")]
    assert len({one.digest("data"), *others}) == 3
