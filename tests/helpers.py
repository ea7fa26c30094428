"""What tests of several rooms use: small models and records, runs that are cut off, executed notebooks."""

import os
import pickle
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
from nbformat.v4 import new_code_cell, new_notebook, new_output
from torch import Tensor

from pe_core import Experiment, LabConfig, LabForCausalLM, loss, records
from pe_core.metrics import HeldOut, summarise
from pe_core.records import Record
from pe_core.site import publish

ROOT = Path(__file__).parent.parent
PAPERMILL = str(Path(sys.executable).parent / "papermill")


@contextmanager
def interrupted_at(step: int) -> Iterator[None]:
    """Ctrl-C at the beginning of a training step, counted from 1 over all epochs."""
    calls, compute = 0, loss.LossFunction.__call__

    def interrupted(self: Any, *tensors: Tensor) -> Tensor:
        nonlocal calls
        calls += torch.is_grad_enabled()
        if calls == step:
            raise KeyboardInterrupt
        return compute(self, *tensors)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss.LossFunction, "__call__", interrupted)
        yield


# Options for encodings whose own leave texts as short as most tests' alone.
AT_A_FEW_TOKENS: dict[str, dict[str, Any]] = {
    "window": {"size": 8},
    "self_extend": {"window": 4},
    "lambda_mask": {"window": 5, "sinks": 2},
    "dual_chunk": {"chunk": 4, "original_length": 6},
}

# Rounding to bf16 moves logits by less than this share of their spread, 5 % where none is given. TAPA multiplies a product of
# queries and keys by 2π and takes the cosine: with weights as large as `tiny_model`'s, rounding turns the phase by a radian.
ROUNDING = {"tapa": 1.0}


def tolerance(encoding: str) -> float:
    """How far logits of `tiny_model` in fp32 may lie apart that are computed in two ways."""
    return 2e-3 * ROUNDING.get(encoding, 0.05)


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
    options = AT_A_FEW_TOKENS.get(encoding) if options is None else options
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


def small(library, **settings):
    defaults = {
        "samples": 100,
        "seq_len": 16,
        "epochs": 2,
        "batch_size": 4,
        "preset": "nano",
        "compile": "off",
        "device": "cpu",
    }
    return Experiment(corpus=str(library), **{**defaults, **settings})


def made(folder, encoding="none", label="NoPE", seed=42, shift=0.0, documents=9, noise=0.0):
    rng = np.random.default_rng(0)
    losses = rng.gamma(4.0, 1.0, (40, 32)) + shift
    losses += noise * np.random.default_rng([*label.encode()]).standard_normal((40, 1))  # this model's own, by text
    document = np.sort(rng.integers(0, documents, 40 * 32)).reshape(40, 32)
    heldout = HeldOut.of(losses, document, np.full((40, 32), 4))
    record = Record(
        run=folder.name,
        label=label,
        config={"encoding": encoding, "options": {}, "seed": seed, "device": "cpu", "epochs": 30},
        data={"fingerprint": "f", "windows": {"train": 360, "heldout": 40}},
        parameters=10,
        best_epoch=1,
        history=[{"epoch": 1, "train_loss": 4.0, "val_loss": 4.0, "improved": True}],
        metrics=summarise(heldout),
        versions={},
        runtime={"train_seconds": 1.0, "tokens_per_second": 2.0, "peak_memory_mb": 3.0},
        created="2026-01-01T00:00:00+00:00",
    )
    folder.mkdir(parents=True)
    heldout.save(folder / records.LOSSES)
    record.save(folder)
    return record


class _Trap:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def pickled_trap(folder):
    """What makes this folder where it is unpickled."""
    return pickle.dumps(_Trap(folder))


def run_notebook(path, output, *parameters, **options):
    command = [PAPERMILL, str(path), str(output), "--log-level", "ERROR", *parameters]
    plain = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}  # ipykernel asks for it
    return subprocess.run(command, capture_output=True, text=True, env=plain, **options)


def code_cells(content):
    return [cell for cell in content.cells if cell.cell_type == "code"]


def outputs(path, kind):
    return [
        output.data[kind]
        for cell in code_cells(nbformat.read(path, as_version=4))
        for output in cell.outputs
        if kind in output.get("data", {})
    ]


def printed(path):
    cells = code_cells(nbformat.read(path, as_version=4))
    return "".join(o.text for cell in cells for o in cell.outputs if o.output_type == "stream" and o.name == "stdout")


def publish_records(trained, folder):
    """The records of these runs under `book` in that folder, as of runs that a page shows."""
    shown = new_output("stream", text=" ".join(record.run for record in trained))
    cell = new_code_cell("from pe_core.studies.extrapolation import measure", outputs=[shown])
    nbformat.write(new_notebook(cells=[cell]), folder / "page.ipynb")
    publish.records(trained[0].folder.parent, folder / "book", [folder / "page.ipynb"])
