"""Speed trades nothing away: the trainer's losses are those of a plain fp32 loop, for every encoding."""

import pytest
import torch
from helpers import tiny_config, tiny_model
from torch.nn import functional as F

from pe_core import Experiment, LabForCausalLM, hardware
from pe_core.trainer import TrainStep

STEPS, TOLERANCE = 20, 0.02  # nats; the losses are about 4.6, and bf16 holds three digits


def batches(length=48):
    """Twenty batches of a made-up language in which each token has three likely followers."""
    generator = torch.Generator().manual_seed(0)
    followers = torch.randint(97, (97, 3), generator=generator)
    for _ in range(STEPS):
        columns = [torch.randint(97, (8,), generator=generator)]
        for _ in range(length):
            columns.append(followers[columns[-1], torch.randint(3, (8,), generator=generator)])
        yield torch.stack(columns, 1)


def plain(encoding):
    """fp32, eager, explicit scores, whole logits, unfused AdamW."""
    model = LabForCausalLM(tiny_config(encoding)).initialise(0).train()
    model.set_attn_implementation("eager")
    matrices = {
        f"{module}.weight" for module, m in model.named_modules() if isinstance(m, torch.nn.Linear | torch.nn.Embedding)
    }
    decayed = {name for name in matrices if not name.startswith("encoding.")}
    groups = [
        {"params": [p for name, p in model.named_parameters() if (name in decayed) == decays], "weight_decay": 0.01 * decays}
        for decays in (True, False)
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, fused=False, foreach=False)
    losses = []
    for tokens in batches():
        logits = model(tokens[:, :-1], use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def ours(encoding, **settings):
    model = LabForCausalLM(tiny_config(encoding)).initialise(0).train()
    step = TrainStep(model, Experiment(encoding=encoding, lr=1e-3, device="cpu", **settings))
    losses = [step(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())[0] for tokens in batches()]
    assert step.compute.compiled == (settings["compile"] == "on"), "the compiler gave up"
    return losses


def test_fp32_steps_are_the_plain_ones(encoding):
    expected = plain(encoding)
    assert ours(encoding, precision="fp32", compile="off") == pytest.approx(expected, abs=1e-4)
    assert expected[-1] < expected[0] - 0.3, "nothing was learned, so nothing was tested"


def test_bf16_steps_are_close_to_the_plain_ones(encoding):
    assert ours(encoding, precision="bf16", compile="off") == pytest.approx(plain(encoding), abs=TOLERANCE)


@pytest.mark.slow
def test_compiled_gradients_and_steps_are_the_plain_ones(encoding):
    """In one graph, forward and backward, in the number format that this machine trains in, and of sizes for which the compiler
    takes whole blocks of vectors. Of one layer: a second one doubles what the compiler takes, and is the same code."""
    shape, precision = {"num_hidden_layers": 1, "hidden_size": 128}, hardware.precision("auto", "cpu")
    gradients, told = [], []
    for own in ({"precision": "fp32", "compile": "off"}, {"precision": precision, "compile": "on"}):
        model = tiny_model(encoding, **shape).train()
        step = TrainStep(model, Experiment(encoding=encoding, lr=1e-3, device="cpu", **own))
        tokens = next(batches(64))
        loss = step.compute(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
        loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        step.optimizer.zero_grad()
        told.append([loss.item(), *(step(t[:, :-1].contiguous(), t[:, 1:].contiguous())[0] for t in batches(64))])
    assert step.compute.compiled, "the compiler gave up"
    expected, actual = gradients
    assert expected.keys() == actual.keys()
    of_bf16, of_losses = (0.05, TOLERANCE) if precision == "bf16" else (1e-3, 1e-3)
    for name, gradient in expected.items():
        assert (actual[name] - gradient).norm() <= of_bf16 * gradient.norm() + 1e-6, name
    assert told[1] == pytest.approx(told[0], abs=of_losses)


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["rope", "t5", "path"])
def test_compiled_bf16_steps_repeat_to_the_bit(encoding):
    first = ours(encoding, precision="bf16", compile="on")
    assert first == pytest.approx(plain(encoding), abs=TOLERANCE)
    assert first == ours(encoding, precision="bf16", compile="on")
