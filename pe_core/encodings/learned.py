import torch
from pydantic import Field
from torch import Tensor, nn

from pe_core.encodings.base import Encoding
from pe_core.errors import ConfigError
from pe_core.schema import Shape, Strict


class Learned(Encoding):
    """Learned absolute positions, one vector per position. Gehring et al. 2017 (arXiv 1705.03122).

    x_p + e_p, with e_p the vector of position p.

    Published:
        1.3 B parameters, the Pile, 1,024 tokens: perplexity 13.05, against 13.10 without positions, 12.93 sinusoidal and
        12.51 with ALiBi (Haviv et al. 2022).

    Options:
        length: rows of the table, that is the longest context; `None` takes the context length trained at.

    Raises:
        ConfigError: if the context length is longer than the table, at training or later.
    """

    class Options(Strict):
        length: int | None = Field(None, ge=1, le=2**20)

    family = "absolute"
    title = "Learned"
    paper = "arXiv 1705.03122"
    year = 2017
    extrapolates = False
    shift_invariant = False

    def __init__(self, shape: Shape, options: Options) -> None:
        super().__init__(shape, options)
        length = options.length or shape.seq_len
        if shape.seq_len > length:
            raise ConfigError(f"seq_len={shape.seq_len} is longer than the learned table (length={length})")
        self.longest_text = length
        self.table = nn.Parameter(torch.empty(length, shape.hidden))

    def embed(self, x_BTD: Tensor, positions_BT: Tensor) -> Tensor:
        # Sequence length is a plain integer, known while compiling; positions are data and are not inspected there.
        if not torch.compiler.is_compiling() and int(positions_BT.max()) >= len(self.table):
            raise ConfigError(f"position {int(positions_BT.max())} is beyond the learned table (length={len(self.table)})")
        return x_BTD + self.table[positions_BT]
