"""One run in several processes (data parallel), as `torchrun` and `accelerate launch` start them.

Each process trains on its part of every batch, and their gradients are added up; the first process alone writes files
and prints.
The launcher's environment says how many there are. Where there is one, nothing here does anything.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from pe_core import progress
from pe_core.errors import ConfigError, LabError

if TYPE_CHECKING:  # the command line asks who it is, and does without torch until it trains
    from torch import Tensor

Result = TypeVar("Result")


def processes() -> int:
    """How many processes share this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process's number among them, from 0."""
    return int(os.environ.get("RANK", "0")) if processes() > 1 else 0


def join(device: str) -> None:
    """Meet the other processes of this run, once in a process's life: over gloo on a CPU, over NCCL on cards, one a process.

    Raises:
        ConfigError: no launcher says where to meet, the device cannot be shared so, or there are fewer cards than processes.
    """
    import torch
    from torch import distributed

    if processes() == 1 or distributed.is_initialized():
        return
    if device not in ("cpu", "cuda"):
        raise ConfigError(f"device='{device}': {processes()} processes train on 'cpu', or on 'cuda' with a card each")
    card = int(os.environ.get("LOCAL_RANK", "0"))
    if device == "cuda":
        if card >= torch.cuda.device_count():
            raise ConfigError(f"this machine has {torch.cuda.device_count()} cards, too few for a process of number {card}")
        torch.cuda.set_device(card)  # from here on, `cuda` is this card
    if "RANK" not in os.environ or "MASTER_ADDR" not in os.environ:
        raise ConfigError(f"WORLD_SIZE={processes()} without RANK and MASTER_ADDR: start with torchrun or accelerate launch")
    # The others may wait for hours while the first one reads a corpus. Where one exits early, the launcher ends them all.
    distributed.init_process_group("nccl" if device == "cuda" else "gloo", timeout=timedelta(days=1))
    atexit.register(distributed.destroy_process_group)
    if rank() > 0:
        progress.to_parent(lambda _: None, "")  # the first one prints the same


def local_rows(batch_size: int) -> slice:
    """The rows of every batch that this process trains on.

    Raises:
        ConfigError: the batch cannot be divided evenly.
    """
    if batch_size % processes():
        raise ConfigError(f"batch_size={batch_size}: cannot be divided among {processes()} processes; take a multiple of that")
    rows = batch_size // processes()
    return slice(rank() * rows, (rank() + 1) * rows)


def all_reduce_sum(tensors: Iterable[Tensor]) -> None:
    """Give each of these its sum over all processes, in place. The sums are the same everywhere, to the bit."""
    import torch
    from torch import distributed

    if processes() == 1:
        return
    tensors = list(tensors)
    flat = torch.cat([tensor.detach().flatten() for tensor in tensors])  # one message, not one for each
    distributed.all_reduce(flat)
    with torch.no_grad():
        for tensor, summed in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(summed.view_as(tensor))


def gather(value: Result) -> list[Result]:
    """Every process's value, in their order."""
    from torch import distributed

    if processes() == 1:
        return [value]
    values: list[Any] = [None] * processes()
    distributed.all_gather_object(values, value)
    return values


def on_rank_zero(function: Callable[[], Result]) -> Result:
    """What `function` returns, or the LabError it raises, when the first process calls it; the others wait for that."""
    from torch import distributed

    if processes() == 1:
        return function()
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome[0] = function()
        except LabError as error:
            outcome[1] = error
    distributed.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    result: Result = outcome[0]
    return result
