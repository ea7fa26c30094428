import math
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from pe_core import encodings
from pe_core.encodings.rope import RoPE

# Positions of queries (B, T) and of keys (B, S), and where they hold (B, T, S).
Region = tuple[Tensor, Tensor, Tensor]


class SelfExtend(RoPE):
    """Self-Extend: RoPE at short distances, grouped positions at longer ones. Jin et al. 2024 (arXiv 2401.01325).

    score(i, j) = R(p_i) q_i · R(p_j) k_j / sqrt(K), R the rotation of `rope`, with

        p = the positions themselves  where i - j < window,
        p_i = ⌊i / group⌋ + window - ⌊window / group⌋,  p_j = ⌊j / group⌋  further away,

    so that no distance is greater than about window + (i - window) / group. Without groups (`group` = None) all keys further
    away stand at the distance `window`: that is ReRoPE (Su 2023, kexue.fm/archives/9708).

    It has no parameters and is meant for reading, without further training, longer texts than a model trained with `rope` has
    seen. Keys are cached as they are and turned when they are read, twice; scores have to be written out.

    Published:
        Lets models read longer texts than trained on without fine-tuning.

    Options:
        group: neighbouring positions that share one (the authors' code: 8); `None` is ReRoPE.
        window: distances below it stay as they are; `None` is half the context length trained at.
        rotary_pct: fraction of the head dimension that rotates; 0 is NoPE. As in `rope`.
        base: wavelengths run from 2π to 2π · base. As in `rope`.

    Raises:
        ConfigError: if R = rotary_pct · K is not an even number.
    """

    class Options(RoPE.Options):
        group: int | None = Field(4, ge=1, le=2**20)
        window: int | None = Field(None, ge=1, le=2**24)

    family = "rotary"
    title = "Self-Extend"
    paper = "arXiv 2401.01325"
    year = 2024
    extrapolates = True  # as far as its groups reach
    shift_invariant = False  # where a group begins
    absorbs = False

    def transform_qk(self, q_BHTK: Tensor, k_BHTK: Tensor, positions_BT: Tensor, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        return q_BHTK, k_BHTK  # turned in `scores`; a transform all the same, for which latent attention sets dimensions apart

    def regions(self, query_BT: Tensor, key_BS: Tensor) -> list[Region]:
        """At which positions queries and keys are turned, and for which pairs; a later region goes before an earlier one."""
        window, group = self.options.window or max(1, self.shape.seq_len // 2), self.options.group
        distance_BTS = query_BT[:, :, None] - key_BS[:, None, :]
        if group is None:
            far = torch.full_like(query_BT, window), torch.zeros_like(key_BS)
        else:
            far = query_BT // group + window - window // group, key_BS // group
        return [(*far, distance_BTS >= window), (query_BT, key_BS, distance_BTS < window)]

    def scores(
        self, q_BHTK: Tensor, k_BHSK: Tensor, query_BT: Tensor, key_BS: Tensor, token_state_BHSE: Tensor | None
    ) -> Tensor | None:
        K = self.shape.head_dim
        scores_BHTS = torch.zeros((), device=q_BHTK.device)
        for p_query, p_key, holds_BTS in self.regions(query_BT, key_BS):
            q, _ = super().transform_qk(q_BHTK[..., -K:], q_BHTK[..., -K:], p_query, q_BHTK)
            k, _ = super().transform_qk(k_BHSK[..., -K:], k_BHSK[..., -K:], p_key, k_BHSK)
            scores_BHTS = torch.where(holds_BTS[:, None], (q @ k.mT).float(), scores_BHTS)
        return encodings.with_content(scores_BHTS / math.sqrt(K), q_BHTK, k_BHSK, K)

    @classmethod
    def label(cls, options: Options) -> str:  # type: ignore[override]
        name = "ReRoPE" if options.group is None else cls.title
        group = f", by {options.group}" if options.group else ""
        window = "" if options.window is None else f", window {options.window}"
        return super().label(options).replace(cls.title, name) + group + window

    @classmethod
    def stands_in_for(cls, name: str, options: dict[str, Any], trained: int, length: int) -> dict[str, dict[str, Any]]:
        if name != "rope":
            return {}
        near = max(1, trained // 2)
        # The smallest group that keeps every distance below those trained at.
        group = next(g for g in range(1, length + 1) if (length - 1) // g + near - near // g < trained or g == length)
        return {
            "Self-Extend": {**options, "group": group, "window": near},
            "ReRoPE": {**options, "group": None, "window": near},
        }
