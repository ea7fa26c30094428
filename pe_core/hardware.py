"""Which device, number format and compiler a run uses: the one place that looks at the machine."""

from __future__ import annotations

import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import timeit
from functools import cache
from typing import Any

import torch

from pe_core.errors import ConfigError

_COMPILERS = ("c++", "g++", "clang++")


def device(name: str) -> str:
    """`auto`, `cpu`, `cuda`, `cuda:1`, `mps` … to a device that exists here. Raises ConfigError otherwise."""
    present = ["cpu"]
    if torch.cuda.is_available():
        present = ["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count())), *present]
    if torch.backends.mps.is_available():
        present = ["mps", *present]
    if name == "auto":
        return present[0]
    if name not in present:
        raise ConfigError(f"device='{name}' is not available on this machine (available: {', '.join(present)}, auto)")
    return name


@cache
def _bf16_pays(device: str) -> bool:
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        # Without either kind of instruction bf16 products are emulated, slower than fp32. AVX-512's own are twice as fast as
        # fp32 on some processors and half as fast on others (Sapphire Rapids without AMX), so they are tried.
        capabilities = torch.cpu.get_capabilities()
        if capabilities.get("amx_bf16"):
            return True
        return bool(capabilities.get("avx512_bf16")) and _seconds(torch.bfloat16) < _seconds(torch.float32)
    return False


def _seconds(dtype: torch.dtype) -> float:
    """The shortest of some products as large as nano's."""
    a, b = torch.ones(1024, 128, dtype=dtype), torch.ones(128, 512, dtype=dtype)
    return min(timeit.repeat(lambda: a @ b, number=1, repeat=20))


def precision(name: str, device: str) -> str:
    """`auto` becomes bf16 (autocast; weights stay fp32) where the hardware multiplies bf16 faster, else fp32."""
    if name != "auto":
        return name
    return "bf16" if _bf16_pays(device) else "fp32"


def compilation(name: str) -> str:
    """`auto` becomes `on` where torch.compile has a C++ compiler to call, else `off`."""
    if name != "auto":
        return name
    compiler = os.environ.get("CXX")
    found = shutil.which(compiler) if compiler else any(map(shutil.which, _COMPILERS))
    return "on" if found else "off"


def compiler_options(device: str) -> dict[str, Any]:
    """Options of torch's compiler for this machine."""
    march = architecture() if device == "cpu" else None
    return {"cpp.march": march} if march else {}


@cache
def architecture() -> str | None:
    """The processor to make code for (GCC's `-march`); `None` is this one, as the C++ compiler sees it.

    Where GCC does not know a processor, since it is the younger of the two, it tunes for none in particular, and GCC 12.2 then
    makes wrong code of what torch's compiler writes for AVX-512: transposed blocks of 32 × 32 bf16 numbers come out mixed up
    (seen on Emerald Rapids, where gradients of four encodings were not finite). An older processor with the same instructions
    is named instead.
    """
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return None
    command = [os.environ.get("CXX") or "g++", "-march=native", "-Q", "--help=target"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except OSError:
        return None  # another compiler, or none
    if not re.search(r"-mtune=\s+generic", told):
        return None
    capabilities = torch.cpu.get_capabilities()
    return "sapphirerapids" if capabilities.get("amx_bf16") else "cooperlake" if capabilities.get("avx512_bf16") else None


# From how many keys on a bias by distance is added within FlexAttention's kernel, by kind of device; elsewhere never, since
# torch (2.13) cannot train with it there. Written out, the bias of eight heads takes 32 MB a layer at 1,024 keys, its gradient
# as much; below that there is little to save. No card was at hand to measure on; `make gpu-check` holds it against the other.
_FLEX_FROM = {"cuda": 1_024}


def flex(kind: str, keys: int) -> bool:
    """Whether attention on this kind of device takes FlexAttention's kernel for a bias by distance."""
    return kind in _FLEX_FROM and keys >= _FLEX_FROM[kind]


def describe(device: str) -> dict[str, str | int]:
    """Name of the processor a run used, with the number of threads on a CPU."""
    if device.startswith("cuda"):
        return {"device": torch.cuda.get_device_name(device)}
    return {"device": _cpu_name(), "threads": torch.get_num_threads(), "instructions": instructions()}


def instructions() -> str:
    """The vector instructions of this processor that speed depends on, and results in their last bits."""
    bf16 = [name for name in ("avx512_bf16", "amx_bf16") if torch.cpu.get_capabilities().get(name)]
    return ", ".join([torch.backends.cpu.get_cpu_capability(), *bf16])


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def peak_memory_mb(device: str) -> float:
    """Largest memory held so far, in MB (10^6 bytes): the GPU's allocator, or this process's resident set."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
