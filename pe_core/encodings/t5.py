import math

import torch
from pydantic import Field
from torch import Tensor, nn

from pe_core.encodings.base import Encoding
from pe_core.errors import ConfigError
from pe_core.schema import Shape, Strict


class T5(Encoding):
    """T5's bias: one learned number per head and bucket of distances. Raffel et al. 2019 (arXiv 1910.10683).

    score(i, j) = q_i · k_j / sqrt(K) + table[bucket(i - j), h], one table for all layers, as in T5. Of its n buckets the
    first e = n // 2 hold one distance each, 0 … e - 1; the others grow in proportion to the distance d:

        bucket(d) = min(n - 1, e + ⌊(n - e) · ln(d / e) / ln(max_distance / e)⌋).

    T5 does not divide q · k by sqrt(K) (its queries start that much smaller); x-transformers, which does, multiplies the
    table by sqrt(K). Here the content's scores are those of every other encoding; the table is added as it is, or multiplied
    where `scaled` is set. AdamW moves every entry by about the learning rate a step whatever its gradient, so a table that is
    not multiplied needs sqrt(K) times as many steps to reach the same bias.

    How the table starts the paper does not say: N(0, 0.02), as every matrix here, which is almost no bias at all.
    (transformers' T5 takes N(0, 1/D).)

    Published:
        At 247 M parameters (WikiText-103, 1,024 tokens) perplexity 18.80, against 18.66 with ALiBi, 19.33 rotary, 19.34
        sinusoidal (Press et al. 2022).

    Options:
        buckets: the n above.
        max_distance: from here on all distances share the last bucket, so that any length can be read.
        scaled: whether the table is multiplied by sqrt(K).

    Raises:
        ConfigError: unless max_distance is greater than buckets // 2.
    """

    class Options(Strict):
        buckets: int = Field(32, ge=2, le=4_096)
        max_distance: int = Field(128, ge=2, le=2**20)
        scaled: bool = False

    family = "bias"
    title = "T5 bias"
    paper = "arXiv 1910.10683"
    year = 2019
    bias_by_distance = True
    extrapolates = True

    def __init__(self, shape: Shape, options: Options) -> None:
        super().__init__(shape, options)
        if options.max_distance <= options.buckets // 2:
            raise ConfigError(
                f"encoding 't5': max_distance={options.max_distance}: more than buckets // 2 = {options.buckets // 2} is needed"
            )
        self.table = nn.Parameter(torch.empty(options.buckets, shape.heads))
        self.starts = bucket_starts(options.buckets, options.max_distance)

    def bias(
        self, q_BHTK: Tensor, k_BHSK: Tensor, query_BT: Tensor, key_BS: Tensor, token_state_BHSE: Tensor | None
    ) -> Tensor | None:
        distance_BTS = query_BT[:, :, None] - key_BS[:, None, :]
        bucket_BTS = torch.bucketize(distance_BTS, torch.tensor(self.starts, device=distance_BTS.device), right=True)
        scale = math.sqrt(self.shape.head_dim) if self.options.scaled else 1.0
        return scale * self.table.float().mT[:, bucket_BTS].transpose(0, 1)

    @classmethod
    def label(cls, options: Options) -> str:
        plain = (options.buckets, options.max_distance) == (32, 128)
        size = "" if plain else f" {options.buckets} of {options.max_distance}"
        return cls.title + " × √K" * options.scaled + size


def bucket_starts(buckets: int, max_distance: int) -> list[int]:
    """The smallest distance of every bucket but the first. Fixed here, so that no compiler's logarithm moves one."""
    exact = buckets // 2
    distance = torch.arange(max_distance + 1, device="cpu")
    # In fp32, as in other implementations: where a bucket begins at a whole number, rounding decides.
    far = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact) * (buckets - exact)
    bucket = torch.where(distance < exact, distance, (exact + far.long()).clamp(max=buckets - 1))
    starts: list[int] = torch.searchsorted(bucket, torch.arange(1, buckets, device="cpu")).tolist()
    return starts
