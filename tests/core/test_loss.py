"""Evaluation of many windows, and the number format it runs in."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from pe_core import hardware
from pe_core.config import Experiment
from pe_core.loss import LossFunction

# Nano's logits of 2,048 tokens are 32 MB; eighty batches of them would be 2.6 GB if each stayed.
_EVALUATES = """
import resource, numpy as np, torch
from pe_core import process
from pe_core.config import Experiment
from pe_core.loss import LossFunction, tensors
from pe_core.model import LabForCausalLM
from pe_core.model_config import LabConfig

process.tune()
experiment = Experiment(encoding="none", precision="fp32", compile="on", device="cpu").resolved()
model = LabForCausalLM(LabConfig.of(experiment, 0))
windows = np.random.default_rng(0).integers(0, 4096, (16 * 80, 129)).astype(np.uint16)
loss = LossFunction(model, experiment)
for _ in range(3):  # as in a run, of which evaluation finds the memory in pieces
    loss(*tensors(windows[:8], loss.device)).backward()
peaks = []
for part in (windows[: 16 * 4], windows):
    loss.evaluate(part)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
print(peaks[1] - peaks[0])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="what is measured is glibc's allocator")
def test_evaluation_holds_the_logits_of_one_batch():
    """Compiled and in fp32 each batch left 32 MB behind: 8 GB for the test windows of the default corpus."""
    done = subprocess.run([sys.executable, "-c", _EVALUATES], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 200, f"MB more than after four batches: {done.stdout}"


def test_windows_that_fill_no_batch(tiny, ids):
    """The last batch repeats rows to keep its shape; every window has its own losses all the same."""
    model = tiny("none")
    windows = np.concatenate([ids.numpy()] * 4)[:7]
    T = windows.shape[1] - 1
    loss = LossFunction(model, Experiment(encoding="none", seq_len=T, precision="fp32", compile="off", device="cpu").resolved())
    found = loss.evaluate(windows, at_once=3 * T)
    with torch.no_grad():
        expected = model.losses(*(torch.from_numpy(windows[:, part]) for part in (slice(None, -1), slice(1, None))))
    assert found.shape == (7, T)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("instructions", "seconds", "expected"),
    [
        ({}, {}, "fp32"),
        ({"amx_bf16": True, "avx512_bf16": True}, {}, "bf16"),
        ({"avx512_bf16": True}, {torch.bfloat16: 1.0, torch.float32: 2.0}, "bf16"),
        ({"avx512_bf16": True}, {torch.bfloat16: 2.0, torch.float32: 1.0}, "fp32"),
    ],
)
def test_bf16_is_taken_where_it_is_faster(instructions, seconds, expected, monkeypatch):
    """AVX-512's bf16 products are slower than fp32 on processors that leave them to AMX, and do not have that."""
    monkeypatch.setattr(hardware.torch.cpu, "get_capabilities", lambda: instructions)
    monkeypatch.setattr(hardware, "_seconds", seconds.__getitem__)
    hardware._bf16_pays.cache_clear()
    assert hardware.precision("auto", "cpu") == expected
    hardware._bf16_pays.cache_clear()


def test_products_are_timed():
    assert 0 < hardware._seconds(torch.float32) < 1


@pytest.mark.parametrize(
    ("tuned_for", "capability", "instructions", "named"),
    [
        ("generic", "AVX512", {"amx_bf16": True, "avx512_bf16": True}, "sapphirerapids"),
        ("generic", "AVX512", {"amx_bf16": False, "avx512_bf16": True}, "cooperlake"),
        ("generic", "AVX512", {}, None),
        ("znver4", "AVX512", {"avx512_bf16": True}, None),
        ("generic", "AVX2", {}, None),
    ],
)
def test_a_processor_younger_than_the_compiler_is_called_by_an_older_name(
    tuned_for, capability, instructions, named, monkeypatch, tmp_path
):
    """GCC tunes for none in particular then, and makes wrong code of transposed bf16 blocks."""
    compiler = tmp_path / "c++"
    compiler.write_text(f"#!/bin/sh\necho '  -march=   \t cooperlake'\necho '  -mtune=   \t {tuned_for}'\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions)
    asked = hardware.architecture.__wrapped__
    assert asked() == named
    monkeypatch.setattr(hardware, "architecture", asked)
    assert hardware.compiler_options("cpu") == ({"cpp.march": named} if named else {})
    assert hardware.compiler_options("cuda") == {}
    monkeypatch.setenv("CXX", str(tmp_path / "missing"))
    assert asked() is None


def test_gradients_of_what_is_in_fp32_are_in_fp32_when_compiled(tiny):
    """torch's compiler would cast the products of the whole backward pass as the forward pass casts them: one of DAPE's, in
    bf16, ended the process on a processor with AMX."""
    experiment = Experiment(compile="on", precision="bf16", device="cpu", preset="nano").resolved()
    LossFunction(tiny("none"), experiment)
    assert torch._functorch.config.backward_pass_autocast == "off"
