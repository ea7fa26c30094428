"""Training: one plain loop. AdamW, clipped gradients; at a constant rate early stopping and the best weights at the end, or
a schedule that decays over a fixed number of steps.

Loshchilov & Hutter 2019 (arXiv 1711.05101) for AdamW. The order of batches depends on (seed, epoch) and nothing else
is random, so a run that was killed and resumed ends with the same bits as one that was not.
"""

from __future__ import annotations

import math
import os
import time
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pe_core import distributed, files, progress
from pe_core.config import Experiment
from pe_core.data.dataset import Data, loss_mask
from pe_core.errors import TrainingError, out_of_memory
from pe_core.loss import LossFunction, tensors
from pe_core.metrics import mean_loss
from pe_core.model import LabForCausalLM
from pe_core.records import CHECKPOINT
from pe_core.tracking import Log

# Within a long epoch a checkpoint is written about this often (seconds), so that a kill costs minutes, not hours.
CHECKPOINT_EVERY = 300.0
_ABSURD_LOSS = 100.0  # nats a token; guessing blindly costs 8 to 11
UNREADABLE = CHECKPOINT + ".unreadable"
CHECKED = 256  # validation windows that are measured again from the restored weights


@dataclass
class TrainState:
    """How far a run has come: all that a checkpoint holds besides the weights and the optimizer's state."""

    epoch: int = 1  # the one being trained, from 1
    step: int = 0  # batches of it that are done
    loss_sum: float = 0.0  # over the targets of those batches
    targets: int = 0  # their number
    best_epoch: int = 0
    best_loss: float = math.inf  # of the validation windows
    best_check: float = math.inf  # of the first of them: what the weights of the best epoch give again
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0  # spent training, over all sessions, without each session's first step
    startup_seconds: float = 0.0  # those first steps: mostly compilation
    eval_seconds: float = 0.0
    tokens: int = 0  # trained on in `seconds`
    threads: int = field(default_factory=torch.get_num_threads)  # a resumed run keeps to them: sums depend on it
    finished: bool = False

    def add_step(self, loss: float, targets: int, tokens: int, seconds: float, warm: bool) -> None:
        """Count a step of this epoch. A session's first one compiles, and is no measure of speed."""
        self.step, self.loss_sum, self.targets = self.step + 1, self.loss_sum + loss * targets, self.targets + targets
        if warm:
            self.seconds, self.tokens = self.seconds + seconds, self.tokens + tokens
        else:
            self.startup_seconds += seconds

    def end_epoch(self, val_loss: float, improved: bool, experiment: Experiment) -> dict[str, Any]:
        """Close the epoch and begin the next; returns the closed one's row of the history."""
        train_loss = self.loss_sum / self.targets
        row = {"epoch": self.epoch, "train_loss": train_loss, "val_loss": val_loss, "improved": improved}
        self.history.append(row)
        stopped = experiment.schedule == "constant" and self.epoch - self.best_epoch >= experiment.patience
        self.finished = stopped or self.epoch == experiment.epochs
        self.epoch, self.step, self.loss_sum, self.targets = self.epoch + 1, 0, 0.0, 0
        return row


def train(
    model: LabForCausalLM, data: Data, experiment: Experiment, folder: Path, log: Log | None = None
) -> tuple[TrainState, LossFunction]:
    """Train until the validation loss has not improved for `patience` epochs, and restore the best epoch's weights; under a
    schedule that decays, train all epochs and keep the last one's.

    Resumes from the checkpoint in `folder` where there is one. Prints one line per epoch, as the results note does, and
    gives its losses to `log`. Of several processes each trains its part of every batch, and all end with the same weights.

    Returns:
        how it went, and the (compiled) losses of the model, which now holds the weights to be measured.

    Raises:
        TrainingError: loss or gradient norm is not finite, or the validation loss is absurd (names epoch, step and run).
    """
    device = torch.device(experiment.device)
    model.to(device).train()
    train_step = TrainStep(model, experiment)
    compute, optimizer = train_step.compute, train_step.optimizer
    state, best = _load(folder, model, optimizer, device)
    torch.set_num_threads(state.threads)
    for row in state.history:
        progress.say(progress.epoch_line(row))
    steps = len(data.train) // experiment.batch_size
    rate = learning_rate(experiment, steps * experiment.epochs)
    constant = experiment.schedule == "constant"
    warm = False  # the first step of each session compiles
    saved = time.perf_counter()
    epochs = progress.bar(total=experiment.epochs, initial=len(state.history), label="Epochs", unit=" epochs")
    while not state.finished:
        bar = progress.bar(total=steps, initial=state.step, label=f"Epoch {state.epoch}", unit=" steps")
        for step, batch in enumerate(data.batches(experiment.batch_size, experiment.seed, state.epoch)):
            if step < state.step:  # done before the run was interrupted
                continue
            began = time.perf_counter()
            inputs, targets = tensors(batch, device)
            loss, norm = train_step(inputs, targets, rate((state.epoch - 1) * steps + step))
            if not math.isfinite(loss + norm):
                raise _not_finite(folder, state.epoch, f"step {step + 1} of {steps}", loss, norm, experiment)
            count = targets.numel() if experiment.task is None else int((targets >= 0).sum())
            now = time.perf_counter()
            state.add_step(loss, count, targets.numel(), now - began, warm)
            warm = True
            bar.update()
            if now - saved > CHECKPOINT_EVERY:
                _save(folder, model, optimizer, state, best)
                saved = time.perf_counter()
        bar.close()

        began = time.perf_counter()
        losses_MT, mask_MT = compute.evaluate(data.validation), loss_mask(data.validation)
        val_loss = mean_loss(losses_MT, mask_MT)  # over all targets, not over windows: tasks have few in each
        state.eval_seconds += time.perf_counter() - began
        if not val_loss < _ABSURD_LOSS:
            raise _diverged(folder, state.epoch, val_loss, experiment)
        # Under a schedule only the last weights have seen the whole decay, whatever came before was lower or not.
        improved = val_loss < state.best_loss if constant else state.epoch == experiment.epochs
        if improved:
            state.best_epoch, state.best_loss, best = state.epoch, val_loss, _copy(model)
            state.best_check = check_loss(losses_MT, mask_MT)
        row = state.end_epoch(val_loss, improved, experiment)
        progress.say(progress.epoch_line(row))
        if log:
            log({name: row[name] for name in ("train_loss", "val_loss")}, row["epoch"])
        _save(folder, model, optimizer, state, best)
        saved = time.perf_counter()
        epochs.update()
    epochs.close()
    progress.say(progress.ending_line(state.history, experiment.epochs))
    model.load_state_dict(best)
    return state, compute


def _not_finite(folder: Path, epoch: int, step: str, loss: float, norm: float, experiment: Experiment) -> TrainingError:
    return TrainingError(
        f"run {folder.name}: not finite at epoch {epoch}, {step} (loss {loss:g}, gradient norm {norm:g}); "
        f"try a lower lr than {experiment.lr:g}, precision='fp32' or compile='off'"
    )


def _diverged(folder: Path, epoch: int, val_loss: float, experiment: Experiment) -> TrainingError:
    return TrainingError(
        f"run {folder.name}: diverged, validation loss {val_loss:g} after epoch {epoch}; try a lower lr than {experiment.lr:g}"
    )


def learning_rate(experiment: Experiment, steps: int) -> Callable[[int], float]:
    """The learning rate of each step from 0 to `steps` - 1: a linear rise over the warm-up, then the schedule."""
    assert experiment.lr is not None, "a resolved experiment has a learning rate"
    peak, kind, warm = experiment.lr, experiment.schedule, round(experiment.warmup * steps)

    def rate(step: int) -> float:
        if step < warm:
            return peak * (step + 1) / warm
        left = (steps - step) / (steps - warm)  # 1 after the warm-up, 0 after the last step
        return peak * {"constant": 1.0, "linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2}[kind]

    return rate


def check_loss(losses_MT: NDArray[np.floating], mask_MT: NDArray[np.bool_] | None) -> float:
    """Mean loss of the first validation windows: cheap to compute again from restored weights."""
    return mean_loss(losses_MT[:CHECKED], None if mask_MT is None else mask_MT[:CHECKED])


class TrainStep:
    """One training step: loss, gradients, clipping, AdamW. Of several processes each takes its rows of the batch."""

    def __init__(self, model: LabForCausalLM, experiment: Experiment) -> None:
        assert experiment.lr is not None, "a resolved experiment has a learning rate"
        self.parameters, self.clip = list(model.parameters()), experiment.clip
        self.compute, self.rows = LossFunction(model, experiment), distributed.local_rows(experiment.batch_size)
        fused = not experiment.device.startswith("mps")
        self.optimizer = torch.optim.AdamW(decay_groups(model, experiment), lr=experiment.lr, fused=fused)
        # AdamW would allocate its moments at the end of the first step, in the holes that activations have just left, which
        # then need room of their own: 170 MB more at pythia-70m.
        for parameter in self.parameters:
            self.optimizer.state[parameter] = {
                "step": torch.zeros((), device=parameter.device if fused else "cpu"),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    def __call__(self, inputs_BT: Tensor, targets_BT: Tensor, rate: float | None = None) -> tuple[float, float]:
        """Train on one batch, at the run's learning rate or another one; returns its mean loss and the gradient norm before
        clipping.

        Where either is not finite the weights are left as they were.
        """
        loss = self._loss(inputs_BT, targets_BT)
        loss.backward()  # type: ignore[no-untyped-call]
        distributed.all_reduce_sum([loss, *(p.grad for p in self.parameters if p.grad is not None)])
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        loss_value, norm_value = loss.item(), norm.item()
        if math.isfinite(loss_value + norm_value):
            for group in self.optimizer.param_groups if rate is not None else ():
                group["lr"] = rate
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss_value, norm_value

    def _loss(self, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """The batch's mean loss; in one of several processes its rows' part of that mean, and all parts add up to it."""
        if distributed.processes() == 1:
            return self.compute(inputs_BT, targets_BT)
        ours_BT = targets_BT[self.rows]
        # By targets and not by rows: of a task's windows, some score more targets than others.
        return self.compute(inputs_BT[self.rows], ours_BT) * ((ours_BT >= 0).sum() / (targets_BT >= 0).sum())


def decay_groups(model: LabForCausalLM, experiment: Experiment) -> list[dict[str, Any]]:
    """Parameters for AdamW, by whether weight decay acts on them: see `Experiment.decay`.

    An encoding's slopes, gates, tables and phases mean something at their own scale, to which zero is not neutral.
    """
    groups: dict[bool, list[Tensor]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        matrix = parameter.ndim > 1 and not name.startswith("encoding.")
        groups[matrix or experiment.decay == "all"].append(parameter)
    return [{"params": group, "weight_decay": experiment.weight_decay * decayed} for decayed, group in groups.items() if group]


def _copy(model: LabForCausalLM) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def _save(
    folder: Path, model: LabForCausalLM, optimizer: torch.optim.Optimizer, state: TrainState, best: dict[str, Tensor]
) -> None:
    """The checkpoint on disk is always a whole one. Of several processes the first one writes."""
    if distributed.rank() > 0:
        return
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "state": asdict(state), "best": best}
    files.write(folder / CHECKPOINT, lambda file: torch.save(content, file))


def _load(
    folder: Path, model: LabForCausalLM, optimizer: torch.optim.Optimizer, device: torch.device
) -> tuple[TrainState, dict[str, Tensor]]:
    path = folder / CHECKPOINT
    if not path.exists():
        return TrainState(), {}
    first = _copy(model)
    try:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():  # torch reads a file with flipped bits without a word
                raise zipfile.BadZipFile(damaged)
        content = torch.load(path, map_location=device, weights_only=True)
        state = TrainState(**content["state"])
        model.load_state_dict(content["model"])
        optimizer.load_state_dict(content["optimizer"])
    except Exception as error:  # zip, pickle and torch each have kinds of their own
        if out_of_memory(error):
            raise  # nothing is wrong with the checkpoint
        aside = path.with_name(UNREADABLE)
        os.replace(path, aside)
        progress.say(
            f"The checkpoint of {folder.name} cannot be read ({type(error).__name__}); starting again. "
            f"It is kept as {aside.name}."
        )
        model.load_state_dict(first)
        return TrainState(), {}
    if not state.finished:
        progress.say(f"Resuming {folder.name} at epoch {state.epoch}, step {state.step + 1}.")
    return state, content["best"]
