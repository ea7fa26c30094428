"""One run in several processes: the same losses as in one, whoever fails."""

import json
import os
import subprocess
import sys

import pytest
import torch
from helpers import tiny_model

from pe_core import distributed, runner, sweeper, trainer
from pe_core.config import Experiment
from pe_core.errors import ConfigError, TrainingError

SETTINGS = ["--samples", "60", "--seq-len", "16", "--epochs", "3", "--batch-size", "4", "--preset", "nano"]
SETTINGS += ["--compile", "off", "--device", "cpu", "--precision", "fp32"]


@pytest.fixture
def one_of(monkeypatch):
    """A function that makes this process number `rank` of `processes`, as far as the environment says."""

    def become(rank, processes):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(processes))

    return become


def test_one_process_is_the_first_of_one(monkeypatch):
    monkeypatch.setenv("RANK", "3")  # as another program may have set it
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert (distributed.rank(), distributed.processes()) == (0, 1)
    assert distributed.local_rows(7) == slice(0, 7)
    assert distributed.gather("value") == ["value"]
    assert distributed.on_rank_zero(lambda: "value") == "value"
    distributed.join("cuda:1")


def test_shares_are_the_batch(one_of):
    rows = []
    for rank in range(3):
        one_of(rank, 3)
        rows += range(12)[distributed.local_rows(12)]
    assert rows == list(range(12))


@pytest.mark.parametrize(
    ("processes", "settings", "said"),
    [
        (3, {}, r"^batch_size=8: cannot be divided among 3 processes; take a multiple of that$"),
        (2, {"device": "cuda:1"}, r"^device='cuda:1': 2 processes train on 'cpu', or on 'cuda' with a card each$"),
        (2, {"device": "cpu"}, r"^WORLD_SIZE=2 without RANK and MASTER_ADDR: start with torchrun or accelerate launch$"),
        (2, {"device": "cuda"}, r"^this machine has 0 cards, too few for a process of number 1$"),
    ],
)
def test_what_cannot_be_shared_is_one_line(one_of, monkeypatch, tmp_path, processes, settings, said):
    one_of(1, processes)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(Experiment, "resolved", lambda self: self)  # there is no such device here
    with pytest.raises(ConfigError, match=said):
        runner.run(Experiment(**settings), tmp_path)


def test_a_sweep_is_not_for_several_processes(one_of, tmp_path):
    one_of(0, 2)
    with pytest.raises(ConfigError, match=r"^a sweep starts processes of its own; `torchrun` .* are for one run$"):
        sweeper.sweep([Experiment()], tmp_path)


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("kind", ["text", "long text", "task"])
def test_parts_add_up_to_the_mean_of_the_whole_batch(one_of, monkeypatch, kind, processes):
    """Losses and gradients, also where some rows score more targets than others."""
    if kind == "long text":
        monkeypatch.setattr("pe_core.model._LOGITS_AT_ONCE", 97 * 5)
    model = tiny_model().train()
    corpus = "task:copy" if kind == "task" else "aws-docs"
    settings = Experiment(corpus=corpus, batch_size=8, lr=1e-3, device="cpu", precision="fp32", compile="off")
    tokens = torch.randint(97, (8, 13), generator=torch.Generator().manual_seed(0))
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    if kind == "task":
        targets = targets.where(torch.arange(12) >= torch.arange(8)[:, None] + 4, -100)

    def loss_and_gradients():
        loss = trainer.TrainStep(model, settings)._loss(inputs, targets)
        return [
            loss.detach(),
            *torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad], allow_unused=True),
        ]

    whole = loss_and_gradients()
    parts = []
    for rank in range(processes):
        one_of(rank, processes)
        parts.append(loss_and_gradients())
    for expected, *found in zip(whole, *parts, strict=True):
        assert (expected is None) == (found[0] is None)
        if expected is not None:
            torch.testing.assert_close(sum(found), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("windows", [1, 5, 8])
def test_held_out_windows_are_shared_out_and_come_back_in_order(one_of, monkeypatch, windows):
    model = tiny_model()
    losses = trainer.LossFunction(model, Experiment(device="cpu", precision="fp32", compile="off"))
    tokens = torch.randint(97, (windows, 13), generator=torch.Generator().manual_seed(0)).numpy().astype("uint16")
    whole = losses.evaluate(tokens)
    monkeypatch.setattr(distributed, "gather", lambda value: [value])
    parts = []
    for rank in range(3):
        one_of(rank, 3)
        parts.append(losses.evaluate(tokens))
    one_of(0, 3)
    monkeypatch.setattr(distributed, "gather", lambda _: parts)
    assert len(parts[0]) == -(-windows // 3)
    torch.testing.assert_close(torch.from_numpy(losses.evaluate(tokens)), torch.from_numpy(whole), atol=1e-5, rtol=0)


def launch(code, *arguments, **variables):
    """Two processes under torchrun, on a free port of this machine."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *code, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment)


@pytest.mark.slow
@pytest.mark.parametrize("corpus", ["text", "task:copy"])
def test_two_processes_train_as_one_and_survive_a_kill(tmp_path, corpus):
    if corpus == "text":
        corpus = str(tmp_path / "corpus.jsonl")
        texts = [" ".join(f"word{(i * j) % 97}" for j in range(1, 60)) for i in range(1, 80)]
        (tmp_path / "corpus.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    script = tmp_path / "killed.py"
    script.write_text("""
import os, signal, sys
from pe_core import distributed, progress
from pe_core.__main__ import main
line = progress.epoch_line
def epoch(row):
    if row["epoch"] == 2 and distributed.rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return line(row)
progress.epoch_line = epoch
sys.exit(main(sys.argv[1:]))
""")
    arguments = ["run", *SETTINGS, "--corpus", corpus, "--json", "--runs", str(tmp_path / "two")]
    killed = launch([str(script)], *arguments)
    assert killed.returncode != 0
    assert "Epoch  1" in killed.stderr
    (checkpoint,) = (tmp_path / "two").rglob("checkpoint.pt")
    ended = launch(["-m", "pe_core"], *arguments)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count(f"Resuming {checkpoint.parent.name} at epoch ") == 1, "one process speaks"
    two = json.loads(ended.stdout)
    assert two["runtime"]["processes"] == 2
    assert not checkpoint.exists()

    settings = {"samples": 60, "seq_len": 16, "epochs": 3, "batch_size": 4, "preset": "nano"}
    settings |= {"compile": "off", "device": "cpu", "precision": "fp32", "corpus": corpus}
    one = runner.run(Experiment(**settings), tmp_path / "one")
    assert one.runtime["processes"] == 1
    assert one.run == two["run"]
    assert len(one.history) == len(two["history"]) == 3
    for ours, theirs in zip(one.history, two["history"], strict=True):
        for side in ("train_loss", "val_loss"):
            assert theirs[side] == pytest.approx(ours[side], abs=1e-5)


@pytest.mark.slow
def test_a_tracker_that_does_not_start_ends_every_process_with_the_same_error(tmp_path):
    failed = launch(["-m", "pe_core"], "run", *SETTINGS, "--corpus", "task:copy", "--runs", str(tmp_path), PE_TRACKER="none")
    assert failed.returncode == 1
    assert failed.stderr.count("error: PE_TRACKER: unknown tracker 'none'") >= 1
    assert ConfigError.__name__ not in failed.stderr


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_every_process_with_the_same_error(tmp_path):
    failed = launch(["-m", "pe_core"], "run", *SETTINGS, "--corpus", "task:copy", "--lr", "1e9", "--runs", str(tmp_path))
    assert failed.returncode == 1
    assert failed.stderr.count("error: run rope-nano-") >= 1
    assert TrainingError.__name__ not in failed.stderr
