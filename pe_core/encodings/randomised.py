from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from pe_core.encodings.base import Encoding
from pe_core.encodings.learned import Learned
from pe_core.encodings.sinusoidal import Sinusoidal
from pe_core.errors import ConfigError
from pe_core.schema import Shape, Strict

_BITS = 2**31 - 1  # 31 bits, so that products of two numbers fit 63: no overflow, on any device, compiled or not


class Randomised(Encoding):
    """Absolute positions drawn at random from a longer range while training. Ruoss et al. 2023 (arXiv 2305.16843).

    Training: T tokens take the positions i_1 < … < i_T, a uniformly random subset of 0 … L - 1, drawn anew at each step
    and once per batch, as in the paper. Token t gets x_t + PE(i_t). (The paper also draws the length T; here windows have
    one length.) The model thus learns positions up to L, and the order of any of them, from short windows.

    Evaluation: the paper draws again, as many positions as there are tokens. Results would then depend on chance, and a
    cached key on the length that the text turns out to have. Here token p, from 0, always takes the same one:

        i_p = round((p + 1)(L + 1) / (M + 1)) - 1,

    the expected position of the p-th in a random subset of M. Where M is the training length, as by default, spacing is
    training's mean spacing, (L + 1) / (T + 1), and the text ends where the range does. For longer texts set
    `eval_length` in the configuration of the trained model: its M tokens then stand closer, as in the paper.

    Draws come from a count of training steps, kept with the weights, and integer arithmetic alone: a run that resumes
    goes on as if it had not stopped, and the draws are the same for every seed.

    Published:
        Test accuracy on 15 algorithmic tasks, at lengths not seen in training, rises by 12.0 % on average.

    Options:
        kind: `sinusoidal` (the default: every position has its vector from the start), or `learned`, whose L rows are
            each trained in T of L steps only and need longer training; random positions of a learned table are Li and
            McClelland's, 2022. Both are the encodings of those names, with their defaults. The paper has both.
        max_length: the L above; `None` is 16 times the context length trained at, at 128 tokens the paper's 2,048.
        eval_length: the M above, the longest text to be evaluated; `None` takes the context length trained at.

    Raises:
        ConfigError: unless context length ≤ eval_length ≤ max_length; at a position from `eval_length` on in evaluation
            mode, from `max_length` on in training mode.
    """

    class Options(Strict):
        kind: Literal["sinusoidal", "learned"] = "sinusoidal"
        max_length: int | None = Field(None, ge=1, le=2**24)
        eval_length: int | None = Field(None, ge=1)

    family = "absolute"
    title = "Randomised"
    paper = "arXiv 2305.16843"
    year = 2023
    extrapolates = True  # up to its range
    shift_invariant = False

    steps: Tensor

    def __init__(self, shape: Shape, options: Options) -> None:
        super().__init__(shape, options)
        self.max_length = options.max_length or 16 * shape.seq_len
        self.eval_length = self.longest_text = options.eval_length or shape.seq_len
        if not shape.seq_len <= self.eval_length <= self.max_length:
            raise ConfigError(
                f"encoding 'randomised': eval_length={self.eval_length}: must be at least the context length "
                f"({shape.seq_len}) and at most max_length={self.max_length}"
            )
        self.table: Encoding
        if options.kind == "learned":
            self.table = Learned(shape, Learned.Options(length=self.max_length))
        else:
            self.table = Sinusoidal(shape, Sinusoidal.Options())
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def embed(self, x_BTD: Tensor, positions_BT: Tensor) -> Tensor:
        # While compiling the number of positions is known, their values are not.
        last = positions_BT.shape[1] - 1 if torch.compiler.is_compiling() else int(positions_BT.max())
        if self.training:
            if last >= self.max_length:
                raise ConfigError(f"encoding 'randomised': position {last} is beyond max_length={self.max_length}")
            drawn = self.draw(max(positions_BT.shape[1], last + 1))[positions_BT]
            self.steps.add_(1)
        else:
            if last >= self.eval_length:
                raise ConfigError(
                    f"encoding 'randomised': position {last} is beyond eval_length={self.eval_length} (up to "
                    f"max_length={self.max_length} it can be set in the options of a trained model)"
                )
            M = self.eval_length + 1
            drawn = ((positions_BT + 1) * (self.max_length + 1) + M // 2) // M - 1
        return self.table.embed(x_BTD, drawn)

    def draw(self, length: int) -> Tensor:
        """This step's positions, (length,), ascending: those whose hash, of (steps, position), is among the smallest."""
        candidates = torch.arange(self.max_length, device=self.steps.device)
        seed = _mix(self.steps & _BITS)
        # Distinct positions have distinct hashes, hence there are no ties and the choice is the same on every device.
        hashes = _mix((_mix(candidates ^ seed) + seed) & _BITS)
        return hashes.argsort()[:length].sort().values

    @classmethod
    def label(cls, options: Options) -> str:
        length = "" if options.max_length is None else f", to {options.max_length}"
        return f"{cls.title} {options.kind}{length}"

    @classmethod
    def stands_in_for(cls, name: str, options: dict[str, Any], trained: int, length: int) -> dict[str, dict[str, Any]]:
        if name != "randomised" or length > (options["max_length"] or 16 * trained):
            return {}
        return {"spread": {**options, "eval_length": length}}


def _mix(number: Tensor) -> Tensor:
    """A one-to-one scramble of the numbers of 31 bits: shifts folded in and products with odd constants, alternately."""
    for constant in (0x2C1B3C6D, 0x297A2D39):
        number = ((number ^ (number >> 15)) * constant) & _BITS
    return number ^ (number >> 16)
