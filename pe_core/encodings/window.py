from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from pe_core.encodings.base import Encoding
from pe_core.schema import Shape, Strict


class Window(Encoding):
    """A window of attention: keys further away than it reaches are not seen. Beltagy et al. 2020 (arXiv 2004.05150).

    Key j of query i is seen where

        sliding: i - j < size        chunks: ⌊i / size⌋ = ⌊j / size⌋        or, of either kind, j < sinks.

    No encoding by itself, beyond what a model learns from the edge: a part for `mix`, with any other one. Sliding windows with
    RoPE in most layers and no encoding in the others are SWAN-GPT's arrangement (arXiv 2504.08719), chunks with RoPE in
    three layers of four Llama 4's; with `sinks` the first tokens stay visible, as in StreamingLLM (arXiv 2309.17453), whose
    positions, counted within its cache, are not taken over here.

    Keys beyond the window stay in the cache. Scores are masked, not skipped: no faster than attention to everything.

    Options:
        size: tokens of the window, the query's own included; `None` is half the context length trained at.
        kind: `sliding`, or `chunks` that share no key.
        sinks: tokens at the beginning of a text that every later one sees.
    """

    class Options(Strict):
        size: int | None = Field(None, ge=1, le=2**24)
        kind: Literal["sliding", "chunks"] = "sliding"
        sinks: int = Field(0, ge=0, le=2**24)

    family = "window"
    title = "Window"
    paper = "arXiv 2004.05150"
    year = 2020
    extrapolates = True

    def __init__(self, shape: Shape, options: Options) -> None:
        super().__init__(shape, options)
        self.size = options.size or max(1, shape.seq_len // 2)
        self.bias_by_distance = options.kind == "sliding" and not options.sinks

    def bias(
        self, q_BHTK: Tensor, k_BHSK: Tensor, query_BT: Tensor, key_BS: Tensor, token_state_BHSE: Tensor | None
    ) -> Tensor | None:
        query, key = query_BT[:, None, :, None], key_BS[:, None, None, :]
        sliding, chunks = query - key < self.size, query // self.size == key // self.size
        seen_B1TS = sliding if self.options.kind == "sliding" else chunks
        if self.options.sinks:
            seen_B1TS = seen_B1TS | (key < self.options.sinks)
        return torch.zeros(seen_B1TS.shape, device=q_BHTK.device).masked_fill(~seen_B1TS, -torch.inf)

    @classmethod
    def label(cls, options: Options) -> str:
        kind = "chunks" if options.kind == "chunks" else "window"
        size = "" if options.size is None else f" {options.size}"
        return kind.capitalize() + size + (f", {options.sinks} sinks" if options.sinks else "")
