"""What a worker process needs, loaded once by the server that forks them (see `processes.prepare`). Takes seconds."""

import contextlib

import torch._inductor.compile_fx  # the compiler: its import alone takes longer than a compilation from the cache

from pe_core import runner, trainer

# The compiler tries out the processor's vector instructions in processes of its own, a second for every worker otherwise.
with contextlib.suppress(Exception):  # no C++ compiler, or another version of torch: then workers find out for themselves
    torch._inductor.cpu_vec_isa.pick_vec_isa()

__all__ = ["runner", "torch", "trainer"]
