from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from pe_core.encodings.rope import RoPE
from pe_core.encodings.self_extend import Region, SelfExtend
from pe_core.encodings.window import Window
from pe_core.schema import Shape


class LambdaMask(SelfExtend):
    """The Λ-shaped mask: RoPE within a window, and the first tokens at a fixed distance. Han et al. 2023 (arXiv 2308.16137).

    Key j of query i is seen where i - j < window, turned as in `rope`, or where j < sinks, as if it stood `window` tokens
    back, one further than the window reaches; all other keys are masked. Attention thus meets no distance and, but for the
    sinks, no number of keys that training did not, while the first tokens, on which trained models put much of their weight,
    stay. (LM-Infinite; StreamingLLM, of the same time, arXiv 2309.17453, counts positions within its cache instead, so that
    the sinks stand next to the window.)

    It has no parameters and is meant for reading, without further training, longer texts than a model trained with `rope` has
    seen: nothing beyond the window is used. Keys beyond it stay in the cache.

    Options:
        window: tokens of the window, the query's own included; `None` is the context length trained at, as in the paper.
        sinks: tokens at the beginning of a text that every later one sees (the paper: 10 to 100; StreamingLLM: 4).
        rotary_pct: fraction of the head dimension that rotates; 0 is NoPE. As in `rope`.
        base: wavelengths run from 2π to 2π · base. As in `rope`.

    Raises:
        ConfigError: if R = rotary_pct · K is not an even number.
    """

    class Options(RoPE.Options):
        window: int | None = Field(None, ge=1, le=2**24)
        sinks: int = Field(10, ge=0, le=2**24)

    family = "rotary"
    title = "Λ-mask"
    paper = "arXiv 2308.16137"
    year = 2023
    extrapolates = True

    def __init__(self, shape: Shape, options: Options) -> None:
        super().__init__(shape, options)
        self.window = options.window or shape.seq_len
        self.mask = Window(shape, Window.Options(size=self.window, sinks=options.sinks))

    def regions(self, query_BT: Tensor, key_BS: Tensor) -> list[Region]:
        near_BTS = query_BT[:, :, None] - key_BS[:, None, :] < self.window
        return [(torch.full_like(query_BT, self.window), torch.zeros_like(key_BS), ~near_BTS), (query_BT, key_BS, near_BTS)]

    def bias(
        self, q_BHTK: Tensor, k_BHSK: Tensor, query_BT: Tensor, key_BS: Tensor, token_state_BHSE: Tensor | None
    ) -> Tensor | None:
        return self.mask.bias(q_BHTK, k_BHSK, query_BT, key_BS, token_state_BHSE)

    @classmethod
    def label(cls, options: Options) -> str:  # type: ignore[override]
        return f"{super(SelfExtend, cls).label(options)}, {options.sinks} sinks"

    @classmethod
    def stands_in_for(cls, name: str, options: dict[str, Any], trained: int, length: int) -> dict[str, dict[str, Any]]:
        return {"Λ-mask": options} if name == "rope" else {}
