"""Losses of a model under a run's precision, compiled where that pays and works: for training and for evaluation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pe_core import distributed, hardware, progress
from pe_core.config import Experiment
from pe_core.model import LabForCausalLM

_IGNORED = -100  # a target of cross-entropy that costs nothing
# Where one symbol in so many is predicted, the others' logits, 40 % of a small model's products, are not computed: with one
# answer in thirty symbols nano trains 1.5 times as fast. Where every second is, gathering them costs more than it saves.
_FEW = 8
EVALUATION_TOKENS = 2_048  # tokens per evaluation batch: enough to fill the cores, small enough for the logits


class LossFunction:
    """Mean and per-token losses of a model under a run's precision, each compiled into one graph where that pays and works."""

    def __init__(self, model: LabForCausalLM, experiment: Experiment) -> None:
        self.model, self.device = model, torch.device(experiment.device)
        self.bf16 = experiment.precision == "bf16"
        self.all_scored = experiment.task is None
        self.compiled = experiment.compile == "on"
        self._functions = {f.__name__: f for f in (model.losses, model.chunked_loss, model.masked_loss)}
        if self.compiled:
            # What an encoding computes in fp32 has its gradients in fp32, as without the compiler, which would have products of
            # the backward pass cast to bf16: less exact, and oneDNN (of torch 2.13) divides by zero at some of DAPE's.
            torch._functorch.config.backward_pass_autocast = "off"  # noqa: S105
            options = hardware.compiler_options(experiment.device)
            self._functions = {
                name: torch.compile(f, fullgraph=True, dynamic=False, options=options) for name, f in self._functions.items()
            }

    def __call__(self, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Mean loss in nats, for training."""
        if not self.all_scored:
            at_N, targets_N = _asked(targets_BT)
            if _FEW * len(at_N) <= targets_BT.numel() and not self.model.in_chunks(targets_N):
                return self._compute("masked_loss", inputs_BT, at_N, targets_N)
            return self.each(inputs_BT, targets_BT).sum() / (targets_BT >= 0).sum()
        return self._compute("chunked_loss", inputs_BT, targets_BT)

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
        # One array: a small tensor kept from each batch stood where its logits had been, and no others fitted there again.
        losses_MT = np.empty((len(windows), windows.shape[1] - 1), np.float32)
        for start in progress.bar(range(0, len(windows), B), label="Held-out", unit=" batches"):
            # One shape for all batches, so that one compiled graph serves; the repeated rows are dropped again.
            rows = np.minimum(np.arange(start, start + B), len(windows) - 1)
            losses_MT[rows] = self.each(*tensors(windows[rows], self.device)).float().cpu().numpy()
        self.model.train(was_training)
        return np.concatenate(distributed.gather(losses_MT))[:M]


def tensors(windows: np.ndarray[Any, Any], device: torch.device) -> tuple[Tensor, Tensor]:
    """Inputs and targets (B, T) of windows (B, T + 1); a target that is not predicted becomes one that costs nothing."""
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
    return torch.cat([at_N, at_N.new_zeros(missing)]), torch.cat([flat_N[at_N], flat_N.new_full((missing,), _IGNORED)])
