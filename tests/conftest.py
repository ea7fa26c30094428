"""What every test may rely on: a runs folder of its own, and small models in which a wrong encoding shows."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tiny_model
from torch import Tensor

from pe_core import ENCODINGS, LabForCausalLM

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


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of 150 documents of words that follow a power law."""
    rng = np.random.default_rng(0)
    file = tmp_path_factory.mktemp("library") / "library.jsonl"
    documents = [" ".join(f"w{n}" for n in rng.zipf(1.5, rng.integers(60, 200)) % 300) for _ in range(150)]
    file.write_text("\n".join(json.dumps({"text": document}) for document in documents))
    return file
