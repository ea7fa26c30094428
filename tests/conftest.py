"""What every test may rely on: a runs folder of its own, and small models in which a wrong encoding shows."""

import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pe_core import ENCODINGS, LabConfig, LabForCausalLM

torch.set_num_threads(1)  # tensors are small here: a second thread costs more than it brings


@pytest.fixture(scope="session", autouse=True)
def runs_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test reads or writes the user's runs: `PE_RUNS` is a temporary folder, shared by the session."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PE_RUNS", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def fresh_compiler(request: pytest.FixtureRequest) -> None:
    """Compiled functions of earlier tests count towards a limit, after which torch refuses to compile one more."""
    if request.node.get_closest_marker("slow"):
        torch._dynamo.reset()


@pytest.fixture(params=list(ENCODINGS))
def encoding(request: pytest.FixtureRequest) -> str:
    """A test with this argument runs once for every file in `pe_core/encodings`, a new one included."""
    return request.param


@contextmanager
def interrupted_at(step: int) -> Iterator[None]:
    """Ctrl-C at the beginning of a training step, counted from 1 over all epochs."""
    from pe_core import trainer

    calls, compute = 0, trainer.LossFunction.__call__

    def interrupted(self: Any, *tensors: Tensor) -> Tensor:
        nonlocal calls
        calls += torch.is_grad_enabled()
        if calls == step:
            raise KeyboardInterrupt
        return compute(self, *tensors)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.LossFunction, "__call__", interrupted)
        yield


def tiny_config(encoding: str = "rope", options: dict[str, Any] | None = None, **changes: Any) -> LabConfig:
    """Two layers, four heads of 16, 97 tokens, trained (as far as an encoding can tell) at 64 positions."""
    dimensions = {
        "vocab_size": 97,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "max_position_embeddings": 64,
    }
    return LabConfig(encoding=encoding, encoding_options=options, **{**dimensions, **changes})


@torch.no_grad()
def tiny_model(
    encoding: str = "rope", options: dict[str, Any] | None = None, attention: str = "sdpa", **changes: Any
) -> LabForCausalLM:
    """A model of `tiny_config` in evaluation mode, with noise on every parameter.

    At the start of training scores are nearly equal and biases are zero, and many mistakes would be too small to
    see. The noise depends on the parameter's name, so that two encodings share what `initialise` makes them share.
    """
    model = LabForCausalLM(tiny_config(encoding, options, **changes)).initialise(0).eval()
    model.set_attn_implementation(attention)
    for name, parameter in model.named_parameters():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture(scope="session")
def tiny() -> Callable[..., LabForCausalLM]:
    """`tiny(encoding, options, attention, **dimensions)`: see `tiny_model`."""
    return tiny_model


@pytest.fixture
def ids() -> Tensor:
    """Three rows of twelve tokens."""
    return torch.randint(97, (3, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small corpus in one file."""
    file = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    texts = [" ".join(f"word{(i * j) % 97}" for j in range(1, 40)) for i in range(1, 80)]
    file.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return str(file)
