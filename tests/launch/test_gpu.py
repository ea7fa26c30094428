"""Ready for a GPU without one: large shapes without their memory, and the check a user with a card runs."""

import math
from contextlib import nullcontext

import pytest
import torch

from pe_core import ENCODINGS, Experiment, LabConfig, LabForCausalLM, encodings
from pe_core.errors import ConfigError
from pe_core.studies.throughput import gpu_check

PYTHIA_1B = {"hidden_size": 2_048, "num_hidden_layers": 16, "num_attention_heads": 8, "intermediate_size": 8_192,
             "max_position_embeddings": 2_048}  # fmt: skip


@pytest.fixture
def without_memory(monkeypatch):
    """A function that builds a model on the `meta` device and takes logits, losses and gradients, all shapes without content.

    As compiled runs train: an encoding that looks at the largest position, which has no value here, then does not.
    """
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which `meta` does not have

    def forward(config):
        with torch.device("meta"):
            model, ids = LabForCausalLM(config), torch.zeros(2, 64, dtype=torch.long)
            assert model(ids).logits.shape == (2, 64, 50_304)
            losses = model.losses(ids[:, :-1], ids[:, 1:])
            assert losses.shape == (2, 63)
            losses.mean().backward()
        assert all(parameter.grad is not None for name, parameter in model.named_parameters() if "encoding" not in name)
        return sum(parameter.numel() for parameter in model.parameters())

    return forward


@pytest.mark.parametrize("attention", ["mha", "mla"])
def test_pythia_70m_builds_and_trains_without_memory(encoding, attention, without_memory):
    options = {"rotary_pct": 1.0} if encoding == "rope" else {}
    settings = {"encoding": encoding, "options": options, "preset": "pythia-70m", "attention": attention}
    assert without_memory(LabConfig.of(Experiment(**settings))) > 65e6


def test_pythia_1b_builds_and_trains_without_memory(encoding, without_memory):
    config = LabConfig(encoding=encoding, **PYTHIA_1B)
    hooks, D = encodings.build(encoding, {}, config.shape), config.hidden_size
    own = sum(parameter.numel() for parameter in hooks.parameters())
    spared = config.num_hidden_layers * 3 * (D - D // hooks.tied_heads) * (D + 1)  # heads without projections of their own
    assert without_memory(config) - own + spared == 1_011_781_632  # as published


def test_without_a_gpu_the_check_refuses_politely(monkeypatch, capsys):
    monkeypatch.setattr(gpu_check.hardware, "device", lambda _: "cpu")
    with pytest.raises(ConfigError, match=r"^torch sees no GPU here"):
        gpu_check.gpu()
    assert gpu_check.main() == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_check_itself_runs_on_a_cpu(monkeypatch, capsys):
    """With the CPU in the place of the GPU, where every difference is none."""
    assert gpu_check.differences("cpu") == dict.fromkeys(ENCODINGS, 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "compile", lambda function, **_: function)
        within = gpu_check.flex_differences("cpu", tokens=16)
    assert {"alibi", "t5"} <= set(within)
    assert set(within.values()) == {0.0}
    monkeypatch.setattr(gpu_check.hardware, "compilation", lambda _: "off")
    found = gpu_check.speed("cpu", "fp32", "nano", steps=2)
    assert found.tokens_per_second > 0
    assert found.peak_memory_mb > 0
    monkeypatch.setattr(gpu_check, "gpu", lambda: "cpu")
    monkeypatch.setattr(gpu_check, "speed", lambda *_: found)
    monkeypatch.setattr(gpu_check, "flex_differences", lambda _: within)
    for differences, code in (({"rope": 1e-6}, 0), ({"rope": 1e-3}, 1), ({"rope": math.nan}, 1)):
        monkeypatch.setattr(gpu_check, "differences", lambda _, found=differences: found)
        assert gpu_check.main() == code
    assert "bf16: " in capsys.readouterr().out
