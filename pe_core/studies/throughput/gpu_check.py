"""`make gpu-check`: whether a GPU computes what the CPU does, and how fast. A few minutes; nothing is kept."""

from __future__ import annotations

import sys
import time
from typing import Any, NamedTuple

import torch

from pe_core import encodings, hardware
from pe_core.config import PRESETS, Experiment
from pe_core.errors import ConfigError, LabError
from pe_core.model import LabForCausalLM
from pe_core.model_config import LabConfig
from pe_core.trainer import TrainStep

# Logits of a model at the start of training are about 0.2 in size; fp32 sums in another order differ by less than this.
TOLERANCE = 1e-4
_BATCH, _TOKENS = 8, 128


class Speed(NamedTuple):
    """Training at one precision: tokens per second, and the most memory held, in MB (10^6 bytes)."""

    tokens_per_second: float
    peak_memory_mb: float


def gpu() -> str:
    """The GPU to check. Raises ConfigError where there is none."""
    name = hardware.device("auto")
    if name == "cpu":
        raise ConfigError("torch sees no GPU here, so there is nothing to check; on a CPU every test of `make test` applies")
    return name


@torch.no_grad()
def differences(device: str, preset: str = "nano") -> dict[str, float]:
    """For every encoding, the largest difference of any logit between this device and the CPU, both in fp32."""
    found = {}
    for name in encodings.ENCODINGS:
        options = encodings.options(name, {}).model_dump()
        config = LabConfig.of(Experiment(encoding=name, options=options, preset=preset))
        model = LabForCausalLM(config).initialise(0).eval()
        ids = torch.randint(config.vocab_size, (2, _TOKENS), generator=torch.Generator().manual_seed(0))
        expected = model(ids).logits
        actual = model.to(device)(ids.to(device)).logits
        found[name] = float((actual.cpu() - expected).abs().max())
    return found


def flex_differences(device: str, tokens: int = 1_024) -> dict[str, float]:
    """For every encoding whose bias may be added within FlexAttention's kernel, the largest difference between that and the
    bias written out: of any loss, and of any gradient as a share of the largest of its tensor. Compiled, in fp32, of windows
    long enough that training would take that kernel."""
    found = {}
    for name in encodings.ENCODINGS:
        options = encodings.options(name, {}).model_dump()
        config = LabConfig.of(Experiment(encoding=name, options=options, preset="nano", seq_len=tokens))
        model = LabForCausalLM(config).initialise(0).to(device)
        if not model.encoding.bias_by_distance:
            continue
        ids = torch.randint(config.vocab_size, (2, tokens + 1), generator=torch.Generator().manual_seed(0)).to(device)

        def outcome(losses: Any, model: LabForCausalLM = model, ids: torch.Tensor = ids) -> list[torch.Tensor]:
            each = losses(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())
            return [each.detach(), *torch.autograd.grad(each.mean(), [p for p in model.parameters() if p.requires_grad])]

        written_out, within = outcome(model.losses), outcome(torch.compile(model.losses, fullgraph=True, dynamic=False))
        found[name] = max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(written_out, within, strict=True))
    return found


def speed(device: str, precision: str, preset: str = "pythia-70m", steps: int = 20) -> Speed:
    """Training steps of 8 windows of 128 tokens, as a run would take them, after some to warm up."""
    experiment = Experiment(encoding="rope", preset=preset, device=device, precision=precision).resolved()
    model = LabForCausalLM(LabConfig.of(experiment)).initialise(0).to(device).train()
    train_step = TrainStep(model, experiment)
    tokens = torch.randint(PRESETS[preset].vocab, (_BATCH, _TOKENS + 1), generator=torch.Generator().manual_seed(0)).to(device)
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    for _ in range(3):
        train_step(inputs, targets)
    began = time.perf_counter()
    for _ in range(steps):
        train_step(inputs, targets)  # returns numbers, so the device has finished
    rate = steps * targets.numel() / (time.perf_counter() - began)
    return Speed(rate, hardware.peak_memory_mb(device))


def main() -> int:
    """Print what was found; the exit code is 1 where the GPU's logits are not the CPU's, 2 where there is no GPU."""
    try:
        device = gpu()
        print(f"{hardware.describe(device)['device']} ({device}), torch {torch.__version__}")
        found = differences(device)
        for name, difference in found.items():
            print(f"  {name:<16} largest difference from the CPU's logits {difference:.1e}{_verdict(difference)}")
        within = flex_differences(device)
        for name, difference in within.items():
            print(f"  {name:<16} largest difference of FlexAttention {difference:.1e}{_verdict(difference)}")
        for precision in ("fp32", "bf16"):
            rate, memory = speed(device, precision)
            print(f"  pythia-70m, {precision}: {rate:,.0f} tokens/s, {memory:,.0f} MB at most")
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return int(any(_verdict(difference) for difference in (*found.values(), *within.values())))


def _verdict(difference: float) -> str:
    return "" if difference < TOLERANCE else f"  MORE THAN {TOLERANCE:g}"  # a NaN is not less than anything


if __name__ == "__main__":
    sys.exit(main())
