"""The assembly line: the same bits every time, killed or not, and every metric from the best weights."""

import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from helpers import interrupted_at, publish_records, small

from pe_core import data, files, metrics, paths, records, runner, sweeper, trainer
from pe_core.errors import RecordError, TrainingError
from pe_core.launch import processes
from pe_core.report import tables
from pe_core.studies.note import measure as note
from pe_core.studies.note import report as note_report


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_same_experiment_gives_the_same_record(library, tmp_path, precision):
    one, two = (runner.run(small(library, precision=precision), tmp_path / name) for name in ("one", "two"))
    assert one.same_result(two)
    assert one.run == two.run
    assert not one.same_result(runner.run(small(library, precision=precision, seed=1), tmp_path / "one"))


def test_every_metric_comes_from_the_best_weights(library, tmp_path):
    record = runner.run(small(library, epochs=8, lr=0.02, patience=2), tmp_path)
    best = min(record.history, key=lambda row: row["val_loss"])
    assert record.best_epoch == best["epoch"] < len(record.history), "the last epoch must not be the best for this test"
    weighted = [(row["loss"] * row["tokens"], row["tokens"]) for row in record.metrics["position_bins"]]
    assert sum(w for w, _ in weighted) / sum(n for _, n in weighted) == pytest.approx(record.metrics["loss"], rel=1e-12)
    assert np.mean(record.metrics["position_loss"]) == pytest.approx(record.metrics["loss"], rel=1e-12)
    # The saved model is the measured one, on both held-out sides.
    prepared = data.prepare(record.experiment, tmp_path / ".cache")
    validation, test = (
        metrics.mean_loss(trainer.LossFunction(record.model(), record.experiment).evaluate(windows))
        for windows in (prepared.validation, prepared.test)
    )
    assert validation == best["val_loss"]
    assert record.metrics["loss"] == pytest.approx(test, rel=1e-12)


def test_early_stopping_counts_epochs_without_improvement(library, tmp_path):
    history = runner.run(small(library, epochs=30, lr=0.02, patience=2), tmp_path).history
    assert [row["improved"] for row in history[-3:]] == [True, False, False]
    assert len(history) < 30


def test_a_sweep_takes_published_runs_and_trains_the_others(library, tmp_path, monkeypatch):
    experiments = [small(library, seed=seed) for seed in (1, 2)]
    first = runner.run(experiments[0], tmp_path / "elsewhere")
    publish_records([first], tmp_path)
    study = tmp_path / "book" / "page"
    there = records.load_study(study)
    monkeypatch.setenv("PE_RUNS", str(tmp_path / "runs"))
    taken, trained = sweeper.sweep(experiments, published=there)
    assert taken.folder == study / first.run, "taken from the study, not trained"
    assert trained.folder == tmp_path / "runs" / trained.run
    assert not (tmp_path / "runs" / first.run).exists()
    # A page that shows both: what was published stays, to the bit, though its weights are gone; what is new joins it.
    losses = taken.heldout.losses.copy()
    shutil.rmtree(tmp_path / "elsewhere")
    (study / first.run).mkdir()
    (study / first.run / "diagnosis-1-256.npz").write_bytes(b"measured once")
    publish_records([trained, taken], tmp_path)
    both = {record.run: record for record in records.load_study(study)}
    assert set(both) == {first.run, trained.run}
    assert both[first.run].same_result(first)
    assert np.array_equal(both[first.run].heldout.losses, losses)
    assert (study / first.run / "diagnosis-1-256.npz").exists()
    publish_records([trained], tmp_path)
    assert [record.run for record in records.load_study(study)] == [trained.run]
    assert not (study / first.run).exists()


def test_weights_not_restored_would_be_an_error(library, tmp_path, monkeypatch):
    forget = trainer.train

    def spoil(model, *rest):
        outcome = forget(model, *rest)
        with torch.no_grad():
            model.final_layer_norm.weight.mul_(1.001)
        return outcome

    monkeypatch.setattr(trainer, "train", spoil)
    with pytest.raises(TrainingError, match="the restored weights give a validation loss of"):
        runner.run(small(library), tmp_path)


def test_a_finished_run_is_read_not_repeated(library, tmp_path, monkeypatch, capsys):
    first = runner.run(small(library), tmp_path)
    assert not list(tmp_path.rglob("checkpoint*")), "a finished run keeps no checkpoint"
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "train", None)
        again = runner.run(small(library), tmp_path)
    assert "already trained" in capsys.readouterr().out
    assert again.model_dump() == first.model_dump()
    fresh = runner.run(small(library), tmp_path, fresh=True)
    assert fresh.same_result(first)
    assert fresh.runtime != first.runtime


@pytest.mark.parametrize("mid_epoch", [False, True], ids=["between-epochs", "mid-epoch"])
def test_interrupted_and_resumed_is_bit_identical(library, tmp_path, monkeypatch, mid_epoch):
    whole = runner.run(small(library, epochs=3), tmp_path / "whole")
    if mid_epoch:
        monkeypatch.setattr(trainer, "CHECKPOINT_EVERY", 0.0)
    with interrupted_at(31), pytest.raises(KeyboardInterrupt):  # 25 steps an epoch: the sixth step of the second one
        runner.run(small(library, epochs=3), tmp_path / "cut")
    (checkpoint,) = (tmp_path / "cut").rglob("checkpoint.pt")
    saved = torch.load(checkpoint, weights_only=True)["state"]
    assert (saved["epoch"], saved["step"]) == ((2, 5) if mid_epoch else (2, 0))
    resumed = runner.run(small(library, epochs=3), tmp_path / "cut")
    assert resumed.same_result(whole)


def interrupt(library, folder, monkeypatch, **settings):
    """A run cut off after its first epoch; returns its checkpoint."""
    with monkeypatch.context() as patch:
        patch.setattr(trainer.progress, "epoch_line", lambda row: raise_interrupt() if row["epoch"] == 2 else "")
        with pytest.raises(KeyboardInterrupt):
            runner.run(small(library, epochs=3, **settings), folder)
    (checkpoint,) = folder.rglob("checkpoint.pt")
    return checkpoint


def raise_interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize("damage", ["not a checkpoint", "one flipped bit", "another model's", "another version's"])
def test_a_damaged_checkpoint_means_starting_again(library, tmp_path, monkeypatch, capsys, damage):
    whole = runner.run(small(library, epochs=3), tmp_path / "whole")
    checkpoint = interrupt(library, tmp_path / "cut", monkeypatch)
    content = torch.load(checkpoint, weights_only=True)
    match damage:
        case "not a checkpoint":
            checkpoint.write_bytes(b"PK damaged")
        case "one flipped bit":
            raw = bytearray(checkpoint.read_bytes())
            raw[len(raw) // 2] ^= 16  # within the weights
            checkpoint.write_bytes(raw)
        case "another model's":
            content["model"]["embed_in.weight"] = content["model"]["embed_in.weight"][:5]
            torch.save(content, checkpoint)
        case "another version's":
            content["state"]["no_such_field"] = 1
            torch.save(content, checkpoint)
    assert runner.run(small(library, epochs=3), tmp_path / "cut").same_result(whole)
    assert f"The checkpoint of {whole.run} cannot be read" in capsys.readouterr().out


def test_out_of_memory_does_not_throw_a_checkpoint_away(library, tmp_path, monkeypatch):
    checkpoint = interrupt(library, tmp_path, monkeypatch)
    before = checkpoint.read_bytes()

    def too_large(*_, **__):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", too_large)
        with pytest.raises(TrainingError, match=r"^run rope-nano-\w+: out of memory \(MemoryError\); what is trained is kept"):
            runner.run(small(library, epochs=3), tmp_path)
    assert checkpoint.read_bytes() == before


def test_divergence_is_an_error(library, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "mean_loss", lambda *_: 800.0)
    with pytest.raises(TrainingError, match=r"^run rope-nano-\w+: diverged, validation loss 800 after epoch 1; try a lower lr"):
        runner.run(small(library), tmp_path)


@pytest.mark.parametrize("encoding", ["learned", "rope"])
def test_short_windows_and_a_single_step(library, tmp_path, encoding):
    """The note's facts do not fit, and after the first step there is nothing left to time."""
    record = runner.run(small(library, encoding=encoding, seq_len=2, samples=10, batch_size=9, epochs=1), tmp_path)
    assert note.reversal(record)["facts"] == 0
    assert note.reversal(record)["ratio"]["value"] is None
    assert record.runtime["tokens_per_second"] is None
    assert tables.summary([record]).to_html()
    assert note_report.reversal_table([record]).to_html()
    assert "no interval" in note_report.reversal([record])


@pytest.mark.slow
def test_kill_nine_anywhere_then_the_same_command(library, tmp_path):
    """A real process, really killed, several times, at moments of its own choosing."""
    whole = runner.run(small(library, epochs=6), tmp_path / "whole")
    code = f"""
import torch; torch.set_num_threads({torch.get_num_threads()})
from pe_core import trainer, runner, Experiment
trainer.CHECKPOINT_EVERY = 0.05
runner.run(Experiment(**{small(library, epochs=6).model_dump()!r}), {str(tmp_path / "cut")!r})
"""
    kills = 0
    for wait in (0.3, 0.9, 1.7):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for line in process.stdout:  # imports take seconds: the clock starts when training does
            if "parameters" in line or "Resuming" in line:
                break
        time.sleep(wait)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
        process.stdout.close()
    assert kills, "the run was over before it could be killed"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert records.load(tmp_path / "cut" / whole.run).same_result(whole)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_not_finite_stops_with_epoch_step_and_run(library, tmp_path, monkeypatch, where):
    compute = trainer.LossFunction.__call__
    calls = 0

    def spoilt(self, *tensors):
        nonlocal calls
        calls += 1
        losses = compute(self, *tensors)
        if calls == 5:
            # sqrt(0) is a finite 0 with an infinite slope.
            losses = losses * float("nan") if where == "loss" else losses + (losses * 0).sqrt()
        return losses

    monkeypatch.setattr(trainer.LossFunction, "__call__", spoilt)
    with pytest.raises(TrainingError, match=r"run rope-nano-\w+: not finite at epoch 1, step 5 of 25 .*lower lr"):
        runner.run(small(library), tmp_path)


@pytest.mark.slow
def test_a_sweep_in_processes_equals_runs_one_by_one(library, tmp_path):
    chosen = [small(library, encoding=name) for name in ("none", "rope")]
    together = sweeper.sweep(chosen, tmp_path / "together", workers=2)
    assert [record.config["encoding"] for record in together] == ["none", "rope"]
    threads = torch.get_num_threads()
    torch.set_num_threads(together[0].runtime["threads"])
    try:
        alone = [runner.run(one, tmp_path / "alone") for one in chosen]
    finally:
        torch.set_num_threads(threads)
    assert all(a.same_result(b) for a, b in zip(together, alone, strict=True))
    assert len({record.data["fingerprint"] for record in together}) == 1


@pytest.mark.slow
def test_a_sweep_that_goes_on_keeps_each_runs_threads(library, tmp_path, monkeypatch):
    """Two of three runs are done; the last one gets one core, as it would have had beside another."""
    monkeypatch.setattr(processes, "cores", lambda: 2)
    chosen = [small(library, seed=seed) for seed in range(3)]
    first = sweeper.sweep(chosen, tmp_path)
    shutil.rmtree(first[1].folder)
    again = sweeper.sweep(chosen, tmp_path)
    assert again[1].runtime["threads"] == first[1].runtime["threads"] == 1
    assert again[1].same_result(first[1])


@pytest.mark.slow
def test_a_failing_sweep_says_why_in_the_parent(library, tmp_path):
    with pytest.raises(TrainingError, match="not finite"):
        sweeper.sweep([small(library, lr=1e6, epochs=20), small(library, lr=1e6, epochs=20, seed=1)], tmp_path, workers=2)


def test_two_processes_never_train_the_same_run(library, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "LOCK_SECONDS", 0.1)
    folder = runner.run(small(library), tmp_path).folder
    (folder / records.RECORD).unlink()
    lock = tmp_path / ".locks" / f"{folder.name}.lock"
    with files.Lock(lock), pytest.raises(RecordError, match="is being trained by another process"):
        runner.run(small(library), tmp_path, fresh=True)
    assert folder.exists(), "a fresh run must not delete what another process is writing"


def test_an_unwritable_runs_folder_is_one_line(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(RecordError, match=r"runs folder '.*file/runs' cannot be written to: Not a directory"):
        paths.runs(tmp_path / "file" / "runs")


def test_where_compilation_fails_training_goes_on_and_says_so(library, tmp_path, monkeypatch, capsys):
    def broken(*_, **__):
        def fail(*_):
            raise RuntimeError("no compiler here")

        return fail

    monkeypatch.setattr(torch, "compile", broken)
    record = runner.run(small(library, compile="on"), tmp_path / "on")
    assert "torch.compile does not work here (no compiler here)" in capsys.readouterr().out
    assert record.runtime["compiled"] is False
    assert record.metrics["loss"] == runner.run(small(library), tmp_path / "off").metrics["loss"]


@pytest.mark.slow
def test_compiled_training_equals_eager_training(library, tmp_path):
    eager = runner.run(small(library, precision="fp32"), tmp_path)
    compiled = runner.run(small(library, precision="fp32", compile="on"), tmp_path)
    assert compiled.runtime["compiled"]
    for a, b in zip(eager.history, compiled.history, strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-4)
    again = runner.run(small(library, precision="fp32", compile="on"), tmp_path / "again")
    assert again.same_result(compiled)


def test_records_know_where_they_were_made(library, tmp_path):
    record = runner.run(small(library), tmp_path)
    assert record.versions["torch"] == torch.__version__
    assert record.versions["git"]
    assert record.runtime["tokens_per_second"] > 0
    assert record.runtime["threads"] == torch.get_num_threads()
    assert os.path.samefile(record.folder, tmp_path / record.run)


@pytest.mark.slow
def test_an_interrupt_while_workers_are_prepared_is_no_error_of_theirs():
    """A notebook whose runs are all read from records ends before the server of its workers has loaded everything."""
    code = "import time; from pe_core.launch import processes; processes.prepare(); time.sleep(1); print('ready', flush=True)"
    code += "; time.sleep(60)"
    started = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert started.stdout.readline() == "ready\n"
    os.killpg(started.pid, signal.SIGINT)
    _, said = started.communicate(timeout=120)
    assert said.count("Traceback") == 1, said
