from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from pe_core.encodings.rope import RoPE
from pe_core.encodings.self_extend import Region, SelfExtend
from pe_core.errors import ConfigError
from pe_core.schema import Shape


class DualChunk(SelfExtend):
    """Dual chunk attention: near distances kept, those beyond the last chunk capped. An et al. 2024 (arXiv 2402.17463).

    A text is cut into chunks of s tokens, fewer than the L trained at. Keys stand at p_j = j mod s, and queries at

        p_i = i mod s  for keys of its own chunk,  min(s + i mod s, L - 1)  of the chunk before,  L - 1  of all others,

    each turned as in `rope`: no distance is greater than L - 1, the nearest L - s keys and those of the query's own chunk keep
    theirs, and a text of up to L tokens is read as by `rope`.

    It has no parameters and is meant for reading, without further training, longer texts than a model trained with `rope` has
    seen. Keys are cached as they are; scores are made three times and have to be written out.

    Published:
        Llama 2 70B reads more than 100,000 tokens without further training.

    Options:
        chunk: the s above, from half of L on; `None` is three quarters of L. (The authors' code takes 11/16, and cuts at 3/4 of
            L what the paper cuts at L - 1.)
        original_length: the L above; `None` takes the context length trained at.
        rotary_pct: fraction of the head dimension that rotates; 0 is NoPE. As in `rope`.
        base: wavelengths run from 2π to 2π · base. As in `rope`.

    Raises:
        ConfigError: if the chunk is not from L / 2 to L - 1, or R = rotary_pct · K is not an even number.
    """

    class Options(RoPE.Options):
        chunk: int | None = Field(None, ge=1, le=2**24)
        original_length: int | None = Field(None, ge=1, le=2**24)

    family = "rotary"
    title = "Dual chunk"
    paper = "arXiv 2402.17463"
    year = 2024
    extrapolates = True
    shift_invariant = False

    def __init__(self, shape: Shape, options: Options) -> None:
        super().__init__(shape, options)
        self.longest = options.original_length or shape.seq_len
        self.chunk = options.chunk or max(1, 3 * self.longest // 4)
        if not self.longest / 2 <= self.chunk <= max(1, self.longest - 1):
            raise ConfigError(
                f"encoding 'dual_chunk': chunk={self.chunk}: from half the length trained at, {self.longest}, to one less "
                "is needed"
            )

    def regions(self, query_BT: Tensor, key_BS: Tensor) -> list[Region]:
        chunks_BTS = query_BT[:, :, None] // self.chunk - key_BS[:, None, :] // self.chunk
        within_BT, p_key = query_BT % self.chunk, key_BS % self.chunk
        return [
            (torch.full_like(query_BT, self.longest - 1), p_key, chunks_BTS > 1),
            ((self.chunk + within_BT).clamp(max=self.longest - 1), p_key, chunks_BTS == 1),
            (within_BT, p_key, chunks_BTS < 1),
        ]

    @classmethod
    def label(cls, options: Options) -> str:  # type: ignore[override]
        return super(SelfExtend, cls).label(options) + ("" if options.chunk is None else f", chunks of {options.chunk}")

    @classmethod
    def stands_in_for(cls, name: str, options: dict[str, Any], trained: int, length: int) -> dict[str, dict[str, Any]]:
        return {"dual chunk": options} if name == "rope" else {}
