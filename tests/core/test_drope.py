"""A run that goes on from another's weights: DroPE."""

import json

import numpy as np
import pytest
import torch
from helpers import interrupted_at

from pe_core import data, encodings, metrics, recipes, runner, sweeper, trainer
from pe_core.config import Experiment
from pe_core.errors import ConfigError, RecordError
from pe_core.report import tables


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    rng = np.random.default_rng(0)
    file = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    documents = [" ".join(f"w{n}" for n in rng.zipf(1.5, rng.integers(60, 200)) % 300) for _ in range(150)]
    file.write_text("\n".join(json.dumps({"text": document}) for document in documents))
    return file


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def rope(corpus, runs):
    """A finished run with RoPE."""
    settings = {"samples": 100, "seq_len": 16, "epochs": 1, "batch_size": 4, "preset": "nano", "compile": "off"}
    return runner.run(Experiment(corpus=str(corpus), device="cpu", **settings), runs)


def test_dropping_is_a_run_of_its_own(rope, runs):
    wanted = recipes.dropped(rope)
    assert (wanted.encoding, wanted.options, wanted.start, wanted.epochs) == ("none", {}, rope.run, 1)
    assert wanted.lr == rope.config["lr"]
    record = runner.run(wanted, runs)
    assert record.run != rope.run
    assert record.run.startswith("none-nano-")
    assert record.label == "NoPE after RoPE"
    assert record.experiment == wanted.resolved()
    assert record.data["fingerprint"] == rope.data["fingerprint"]
    assert record.metrics["loss"] < runner.run(wanted.model_copy(update={"start": None}), runs).metrics["loss"] - 0.1
    assert f"the best weights of {rope.run}" in tables.settings(record).to_html()
    assert "starts from" not in tables.settings(rope).to_html()


def test_training_starts_from_the_best_weights_without_the_encoding(rope, runs):
    """A rate of almost zero changes nothing, and the loss is that of the same weights read without positions."""
    record = runner.run(recipes.dropped(rope, lr=1e-30, precision="fp32"), runs)
    for name, value in record.model().state_dict().items():
        assert torch.equal(value, rope.model().state_dict()[name]), name
    from pe_core.model import LabForCausalLM

    swapped = LabForCausalLM.from_pretrained(rope.folder / "model", encoding="none", encoding_options={}).eval()
    prepared = data.prepare(rope.experiment, runs / ".cache")
    losses = trainer.LossFunction(swapped, record.experiment).evaluate(prepared.test)
    assert record.metrics["loss"] == pytest.approx(metrics.mean_loss(losses), rel=1e-6)
    assert abs(record.metrics["loss"] - rope.metrics["loss"]) > 1e-5


@pytest.mark.parametrize("damaged", [False, True], ids=["resumed", "damaged checkpoint"])
def test_interrupted_and_resumed_is_bit_identical(rope, runs, monkeypatch, damaged):
    wanted = recipes.dropped(rope, epochs=2, seed=7)
    whole = runner.run(wanted, runs, fresh=True)
    monkeypatch.setattr(trainer, "CHECKPOINT_EVERY", 0.0)
    with interrupted_at(12), pytest.raises(KeyboardInterrupt):
        runner.run(wanted, runs, fresh=True)
    checkpoint = runs / whole.run / "checkpoint.pt"
    assert checkpoint.exists()
    if damaged:
        checkpoint.write_bytes(b"PK damaged")
    assert runner.run(wanted, runs).same_result(whole)


def test_an_encoding_with_weights_of_its_own_starts_with_new_ones(rope, runs):
    fox = runner.run(recipes.dropped(rope, encoding="fox", lr=1e-30), runs)
    hooks = encodings.build("fox", {}, fox.experiment.shape)
    assert fox.label == "FoX after RoPE"
    assert fox.model().encoding.w.shape == hooks.w.shape
    assert 0.015 < fox.model().encoding.w.std() < 0.025
    again = runner.run(recipes.dropped(fox, encoding="fox", lr=1e-30, seed=1), runs)
    assert torch.equal(again.model().encoding.w, fox.model().encoding.w), "of the same encoding, weights are taken over"
    cable = runner.run(recipes.dropped(fox, encoding="cable", lr=1e-30, seed=1), runs)
    assert not torch.equal(cable.model().encoding.w, fox.model().encoding.w)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"start": "rope-nano-0123456789"},
            r"^start='rope-nano-0123456789': no finished run of that id, with its model, in '.*'$",
        ),
        ({"preset": "micro"}, r"^start='rope-nano-\w+': that run has preset='nano', this one 'micro'$"),
        ({"corpus": "python-stdlib"}, r"^start='rope-nano-\w+': that run has corpus='.*', this one 'python-stdlib'$"),
        ({"attention": "mla"}, r"^start='rope-nano-\w+': that run has attention='mha', this one 'mla'$"),
    ],
)
def test_what_cannot_be_gone_on_from(rope, runs, monkeypatch, settings, message):
    prepared = data.prepare(rope.experiment, runs / ".cache")
    monkeypatch.setattr(data, "prepare", lambda *_: prepared)
    for ask in (runner.run, lambda wanted, folder: sweeper.sweep([wanted], folder)):
        with pytest.raises(RecordError, match=message):
            ask(recipes.dropped(rope, **settings), runs)


def test_a_fresh_run_that_cannot_start_leaves_the_finished_one(rope, runs, monkeypatch):
    done = runner.run(recipes.dropped(rope), runs)
    monkeypatch.setattr(runner.records, "MODEL", "gone")
    for ask in (runner.run, lambda wanted, folder, fresh: sweeper.sweep([wanted], folder, fresh)):
        with pytest.raises(RecordError, match=r"^start='rope-nano-\w+': no finished run of that id, with its model, in '.*'$"):
            ask(recipes.dropped(rope), runs, fresh=True)
    monkeypatch.undo()
    assert runner.run(recipes.dropped(rope), runs).created == done.created


def test_another_version_of_the_corpus_is_refused(rope, runs, monkeypatch):
    """Its documents would be split in another way, whatever the tokenizer."""
    prepared = data.prepare(rope.experiment, runs / ".cache")
    monkeypatch.setitem(prepared.about, "corpus_version", "another")
    monkeypatch.setattr(data, "prepare", lambda *_: prepared)
    with pytest.raises(RecordError, match=rf"^start='{rope.run}': the documents of '.*' are no longer that run's$"):
        runner.run(recipes.dropped(rope, seed=3), runs)


def test_another_tokenizer_is_refused(rope, runs, monkeypatch):
    prepared = data.prepare(rope.experiment, runs / ".cache")
    monkeypatch.setattr(prepared.tokenizer, "get_vocab", dict)
    monkeypatch.setattr(data, "prepare", lambda *_: prepared)
    with pytest.raises(RecordError, match=rf"^start='{rope.run}': the tokenizer of '.*' is no longer that run's$"):
        runner.run(recipes.dropped(rope, seed=3), runs)


def test_other_shapes_are_refused(corpus, runs):
    """Latent attention gives a rotary encoding queries and keys of its own; there is no dropping those."""
    settings = {"samples": 20, "seq_len": 16, "epochs": 1, "batch_size": 4, "preset": "nano", "compile": "off"}
    settings |= {"corpus": str(corpus), "device": "cpu", "attention": "mla", "options": {"rotary_pct": 1.0}}
    latent = runner.run(Experiment(**settings), runs)
    with pytest.raises(
        RecordError, match=r"^start='rope-nano-\w+': that run has 'layers\.0\.attention\.query\.weight' of shape "
    ):
        runner.run(recipes.dropped(latent, rope_dim=None), runs)


def test_runs_that_start_anew_keep_their_ids():
    one = Experiment(device="cpu").resolved()
    assert one.start is None
    assert "start" not in one.model_dump(exclude_defaults=True)
    assert one.model_copy(update={"start": "rope-nano-0123456789"}).digest("x") != one.digest("x")
    for bad in ("", "rope", "rope-nano-xyz", "../rope-nano-0123456789", 3):
        with pytest.raises(ConfigError, match=r"^start="):
            Experiment(start=bad)
    assert Experiment(start="gone-nano-0123456789").label == "RoPE 25 % after gone"
