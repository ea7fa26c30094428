"""Training: one plain loop. AdamW at a constant rate, clipped gradients, early stopping, best weights at the end.

Loshchilov & Hutter 2019 (arXiv 1711.05101) for AdamW. The order of batches depends on (seed, epoch) and nothing else
is random, so a run that was killed and resumed ends with the same bits as one that was not.
"""

from __future__ import annotations

import math
import os
import time
import zipfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pe_core import distributed, progress, words
from pe_core.config import Experiment
from pe_core.data.dataset import Data
from pe_core.errors import TrainingError
from pe_core.metrics import mean_loss
from pe_core.model import LabForCausalLM
from pe_core.records import CHECKPOINT
from pe_core.tracking import Log

# Within a long epoch a checkpoint is written about this often (seconds), so that a kill costs minutes, not hours.
CHECKPOINT_EVERY = 300.0
_ABSURD_LOSS = 100.0  # nats a token; guessing blindly costs 8 to 11
_IGNORED = -100  # a target of cross-entropy that costs nothing
# Where one symbol in so many is predicted, the others' logits, 40 % of a small model's products, are not computed: with one
# answer in thirty symbols nano trains 1.5 times as fast. Where every second is, gathering them costs more than it saves.
_FEW = 8
EVALUATION_TOKENS = 4_096  # tokens per evaluation batch: enough to fill the cores, small enough for the logits


@dataclass
class Progress:
    """How far a run has come: all that a checkpoint holds besides the weights and the optimizer's state."""

    epoch: int = 1  # the one being trained, from 1
    step: int = 0  # batches of it that are done
    loss_sum: float = 0.0  # of those batches
    best_epoch: int = 0
    best_loss: float = math.inf
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0  # spent training, over all sessions, without each session's first step
    startup_seconds: float = 0.0  # those first steps: mostly compilation
    eval_seconds: float = 0.0
    tokens: int = 0  # trained on in `seconds`
    threads: int = field(default_factory=torch.get_num_threads)  # a resumed run keeps to them: sums depend on it
    finished: bool = False


def train(
    model: LabForCausalLM, data: Data, experiment: Experiment, folder: Path, log: Log | None = None
) -> tuple[Progress, LossFunction]:
    """Train until the held-out loss has not improved for `patience` epochs, and restore the best epoch's weights.

    Resumes from the checkpoint in `folder` where there is one. Prints one line per epoch, as the results note does, and
    gives its losses to `log`. Of several processes each trains its part of every batch, and all end with the same weights.

    Returns:
        how it went, and the (compiled) losses of the model, which now holds the best weights.

    Raises:
        TrainingError: loss or gradient norm is not finite, or the held-out loss is absurd (names epoch, step and run).
    """
    device = torch.device(experiment.device)
    model.to(device).train()
    stepper = Stepper(model, experiment)
    compute, optimizer = stepper.compute, stepper.optimizer
    state, best = _load(folder, model, optimizer, device)
    torch.set_num_threads(state.threads)
    for row in state.history:
        progress.say(words.epoch(row))
    steps = len(data.train) // experiment.batch_size
    warm = False  # the first step of each session compiles
    saved = time.perf_counter()
    epochs = progress.bar(total=experiment.epochs, initial=len(state.history), label="Epochs", unit=" epochs")
    while not state.finished:
        bar = progress.bar(total=steps, initial=state.step, label=f"Epoch {state.epoch}", unit=" steps")
        for step, batch in enumerate(data.batches(experiment.batch_size, experiment.seed, state.epoch)):
            if step < state.step:  # done before the run was interrupted
                continue
            began = time.perf_counter()
            inputs, targets = _tensors(batch, device)
            loss, norm = stepper(inputs, targets)
            if not math.isfinite(loss + norm):
                raise TrainingError(
                    f"run {folder.name}: not finite at epoch {state.epoch}, step {step + 1} of {steps} (loss {loss:g}, "
                    f"gradient norm {norm:g}); try a lower lr than {experiment.lr:g}, or precision='fp32'"
                )
            state.step, state.loss_sum = step + 1, state.loss_sum + loss
            now = time.perf_counter()
            if warm:
                state.seconds, state.tokens = state.seconds + now - began, state.tokens + targets.numel()
            else:
                state.startup_seconds, warm = state.startup_seconds + now - began, True
            bar.update()
            if now - saved > CHECKPOINT_EVERY:
                _save(folder, model, optimizer, state, best)
                saved = time.perf_counter()
        bar.close()

        began = time.perf_counter()
        val_loss = mean_loss(compute.evaluate(data.heldout), data.scored)
        state.eval_seconds += time.perf_counter() - began
        if not val_loss < _ABSURD_LOSS:
            raise TrainingError(
                f"run {folder.name}: diverged, held-out loss {val_loss:g} after epoch {state.epoch}; "
                f"try a lower lr than {experiment.lr:g}"
            )
        improved = val_loss < state.best_loss
        if improved:
            state.best_epoch, state.best_loss, best = state.epoch, val_loss, _copy(model)
        train_loss = state.loss_sum / steps
        state.history.append({"epoch": state.epoch, "train_loss": train_loss, "val_loss": val_loss, "improved": improved})
        progress.say(words.epoch(state.history[-1]))
        if log:
            log({"train_loss": train_loss, "val_loss": val_loss}, state.epoch)
        state.finished = state.epoch - state.best_epoch >= experiment.patience or state.epoch == experiment.epochs
        state.epoch, state.step, state.loss_sum = state.epoch + 1, 0, 0.0
        _save(folder, model, optimizer, state, best)
        saved = time.perf_counter()
        epochs.update()
    epochs.close()
    progress.say(words.ending(state.history, experiment.epochs))
    model.load_state_dict(best)
    return state, compute


class Stepper:
    """One training step: loss, gradients, clipping, AdamW. Of several processes each takes its rows of the batch."""

    def __init__(self, model: LabForCausalLM, experiment: Experiment) -> None:
        assert experiment.lr is not None, "a resolved experiment has a learning rate"
        self.parameters, self.clip = list(model.parameters()), experiment.clip
        self.compute, self.rows = LossFunction(model, experiment), distributed.share(experiment.batch_size)
        fused = not experiment.device.startswith("mps")
        self.optimizer = torch.optim.AdamW(self.parameters, lr=experiment.lr, weight_decay=experiment.weight_decay, fused=fused)
        # AdamW would allocate its moments at the end of the first step, in the holes that activations have just left, which
        # then need room of their own: 170 MB more at pythia-70m.
        for parameter in self.parameters:
            self.optimizer.state[parameter] = {
                "step": torch.zeros((), device=parameter.device if fused else "cpu"),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    def __call__(self, inputs_BT: Tensor, targets_BT: Tensor) -> tuple[float, float]:
        """Train on one batch; returns its mean loss and the gradient norm before clipping.

        Where either is not finite the weights are left as they were.
        """
        loss = self._loss(inputs_BT, targets_BT)
        loss.backward()  # type: ignore[no-untyped-call]
        distributed.add_up([loss, *(p.grad for p in self.parameters if p.grad is not None)])
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        loss_value, norm_value = loss.item(), norm.item()
        if math.isfinite(loss_value + norm_value):
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


class LossFunction:
    """Mean and per-token losses of a model under a run's precision, each compiled into one graph where that pays and works."""

    def __init__(self, model: LabForCausalLM, experiment: Experiment) -> None:
        self.model, self.device = model, torch.device(experiment.device)
        self.bf16 = experiment.precision == "bf16"
        self.all_scored = experiment.task is None
        self.compiled = experiment.compile == "on"
        self._functions = {f.__name__: f for f in (model.losses, model.chunked_loss, model.asked_loss)}
        if self.compiled:
            self._functions = {
                name: torch.compile(function, fullgraph=True, dynamic=False) for name, function in self._functions.items()
            }

    def __call__(self, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Mean loss in nats, for training."""
        if not self.all_scored:
            at_N, targets_N = _asked(targets_BT)
            if _FEW * len(at_N) <= targets_BT.numel() and not self.model.in_chunks(targets_N):
                return self._compute("asked_loss", inputs_BT, at_N, targets_N)
            return self.each(inputs_BT, targets_BT).sum() / (targets_BT >= 0).sum()
        if self.model.in_chunks(targets_BT):
            return self._compute("chunked_loss", inputs_BT, targets_BT)
        return self.each(inputs_BT, targets_BT).mean()

    def each(self, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Losses (B, T) in fp32, 0 where a target is not predicted."""
        return self._compute("losses", inputs_BT, targets_BT)

    def _compute(self, name: str, *tensors: Tensor) -> Tensor:
        # Around the compiled function, not within: inside, torch would not keep the compiled graphs across processes.
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            try:
                return self._functions[name](*tensors)
            except Exception as error:
                # Anything but the compiler's own failures is a real error, and comes up again below.
                if not self.compiled:
                    raise
                self.compiled, self._functions = False, {name: getattr(self.model, name) for name in self._functions}
                result = self._functions[name](*tensors)
                lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
                reason = lines[1] if lines[0].endswith("raised:") and len(lines) > 1 else lines[0]
                progress.say(f"torch.compile does not work here ({reason[:160]}); going on without it, slower.")
                return result

    @torch.no_grad()
    def evaluate(self, windows: np.ndarray[Any, Any], at_once: int = EVALUATION_TOKENS) -> NDArray[np.float32]:
        """Losses (M, T) of all windows (M, T + 1), in fp32 on the CPU, of so many tokens at once, or of one window where it is
        longer. Leaves the model in the mode it was in. Several processes share the windows out, and each returns all losses."""
        M = len(windows)
        share = -(-M // distributed.processes())
        windows = windows[np.minimum(np.arange(share) + share * distributed.rank(), M - 1)] if share < M else windows
        was_training = self.model.training
        self.model.eval()
        B = max(1, at_once // (windows.shape[1] - 1))
        parts = []
        for start in progress.bar(range(0, len(windows), B), label="Held-out", unit=" batches"):
            # One shape for all batches, so that one compiled graph serves; the repeated rows are dropped again.
            rows = np.minimum(np.arange(start, start + B), len(windows) - 1)
            losses = self.each(*_tensors(windows[rows], self.device))
            parts.append(losses[: len(windows) - start].cpu().numpy())
        self.model.train(was_training)
        return np.concatenate(distributed.gather(np.concatenate(parts)))[:M]


def _tensors(windows: np.ndarray[Any, Any], device: torch.device) -> tuple[Tensor, Tensor]:
    tokens = torch.from_numpy(windows.astype(np.int64)).to(device)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    if windows.dtype.kind == "i":  # negative: read, not predicted
        inputs, targets = inputs.where(inputs >= 0, ~inputs), targets.where(targets >= 0, _IGNORED)
    return inputs.contiguous(), targets.contiguous()


def _asked(targets_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Places and values of the targets that are predicted, filled up to a power of two: one compiled graph serves all batches,
    or two do."""
    flat_N = targets_BT.flatten()
    at_N = (flat_N >= 0).nonzero()[:, 0]
    missing = 2 ** math.ceil(math.log2(max(len(at_N), 1))) - len(at_N)
    return (
        torch.cat([at_N, at_N.new_zeros(missing)]),
        torch.cat([flat_N[at_N], flat_N.new_full((missing,), _IGNORED)]),
    )


def _copy(model: LabForCausalLM) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def _save(
    folder: Path, model: LabForCausalLM, optimizer: torch.optim.Optimizer, state: Progress, best: dict[str, Tensor]
) -> None:
    """Write beside, then rename: the checkpoint on disk is always a whole one. Of several processes the first one writes."""
    if distributed.rank() > 0:
        return
    temporary = folder / (CHECKPOINT + ".partial")
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "state": asdict(state), "best": best}
    with temporary.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, folder / CHECKPOINT)


def _load(
    folder: Path, model: LabForCausalLM, optimizer: torch.optim.Optimizer, device: torch.device
) -> tuple[Progress, dict[str, Tensor]]:
    path = folder / CHECKPOINT
    if not path.exists():
        return Progress(), {}
    first = _copy(model)
    try:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():  # torch reads a file with flipped bits without a word
                raise zipfile.BadZipFile(damaged)
        content = torch.load(path, map_location=device, weights_only=True)
        state = Progress(**content["state"])
        model.load_state_dict(content["model"])
        optimizer.load_state_dict(content["optimizer"])
    except (MemoryError, torch.OutOfMemoryError):
        raise  # nothing is wrong with the checkpoint
    except Exception as error:  # zip, pickle and torch each have kinds of their own
        progress.say(f"The checkpoint of {folder.name} cannot be read ({type(error).__name__}); starting again.")
        model.load_state_dict(first)
        return Progress(), {}
    if not state.finished:
        progress.say(f"Resuming {folder.name} at epoch {state.epoch}, step {state.step + 1}.")
    return state, content["best"]
