"""What one step and one epoch do, beyond what `test_first_steps` compares with plain loops."""

import math

import pytest
import torch
from helpers import tiny_model

from pe_core.config import Experiment
from pe_core.trainer import TrainState, decay_groups


@pytest.mark.parametrize("name", ["alibi_learned", "t5", "learned", "fox", "kerple"])
def test_weight_decay_spares_norms_biases_and_the_encodings_parameters(name):
    """A thousand steps without a gradient: nothing moves but the matrices, which shrink alike."""
    model = tiny_model(name)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(decay_groups(model, Experiment(weight_decay=0.1)), lr=0.01)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for _ in range(1_000):
        optimizer.step()
    for name, parameter in model.named_parameters():
        decays = parameter.ndim > 1 and not name.startswith("encoding.")
        assert torch.allclose(parameter, before[name] * (math.exp(-1) if decays else 1), rtol=2e-3, atol=1e-7), name


def test_an_epochs_loss_is_by_token():
    """Not by batch: of batches of 30 and of 10 predicted tokens the first counts three times as much."""
    state = TrainState(epoch=1)
    state.add_step(4.0, 30, 40, 0.1, warm=True)
    state.add_step(2.0, 10, 40, 0.1, warm=True)
    assert state.end_epoch(3.0, True, Experiment())["train_loss"] == (4.0 * 30 + 2.0 * 10) / 40
