import copy
from typing import Any

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from pe_core import encodings
from pe_core.encodings.base import Encoding
from pe_core.errors import ConfigError
from pe_core.schema import Shape, Strict


class Part(Strict):
    """One member of a mix.

    Attributes:
        encoding: name of another encoding; `options` are its own.
        layers: the layers it acts in, from 0; `None` is all.
        heads: its heads [first, last), from 0; `None` is all.
    """

    encoding: str
    options: dict[str, Any] = {}
    layers: tuple[int, ...] | None = None
    heads: tuple[int, int] | None = None

    @property
    def label(self) -> str:
        where = [] if self.heads is None else [f"heads {self.heads[0]}–{self.heads[1] - 1}"]
        where += [] if self.layers is None else ["layers " + ", ".join(map(str, self.layers))]
        return encodings.label(self.encoding, self.options) + (f" ({'; '.join(where)})" if where else "")


class Mix(Encoding):
    """Several encodings at once, each in its own layers and heads, in one model.

    score(i, j) = rotated q_i · k_j / sqrt(K) + Σ biases, over the members that act in the layer and head. A layer or head
    without a member has no encoding. RoPE in three layers of four and none in the fourth is SmolLM3's and Llama 4's
    arrangement, studied by Yang et al. 2025 (arXiv 2501.18795).

    Options:
        parts: list of {encoding, options, layers, heads}; `layers` lists layers from 0, `heads` is [first, last).
        name: what tables and figures call it; by default its members' labels.

    Raises:
        ConfigError: a layer or head the model does not have; a member that keeps numbers of its own beside keys and
            values, replaces the scores or the softmax: those cannot be confined to some heads.
    """

    class Options(Strict):
        parts: tuple[Part, ...] = (Part(encoding="rope"), Part(encoding="alibi"))
        name: str | None = Field(None, min_length=1, max_length=40)

        @field_validator("parts", mode="before")
        @classmethod
        def _parse(cls, parts: Any) -> Any:
            return [Part(**part) if isinstance(part, dict) else part for part in parts] if isinstance(parts, list) else parts

    family = "hybrid"
    title = "Mix"
    paper = "arXiv 2501.18795"
    year = 2025
    absorbs = False  # a member's bias may look at queries and keys

    def __init__(self, shape: Shape, options: Options) -> None:
        super().__init__(shape, options)
        members = [self._member(part) for part in options.parts]
        self.members = nn.ModuleList(members)
        self.acting = list(range(len(options.parts)))
        self.bias_by_distance = all(m.bias_by_distance or type(m).bias is Encoding.bias for m in members)

    def _member(self, part: Part) -> Encoding:
        first, last = part.heads or (0, self.shape.heads)
        if not 0 <= first < last <= self.shape.heads:
            raise ConfigError(f"encoding 'mix': heads={[first, last]}: [first, last) within 0 to {self.shape.heads} is needed")
        for layer in part.layers or ():
            if not 0 <= layer < self.shape.layers:
                raise ConfigError(f"encoding 'mix': layers: {layer} is not one of 0 to {self.shape.layers - 1}")
        member = encodings.build(part.encoding, part.options, self.shape._replace(heads=last - first))
        for hook in ("token_state", "scores", "attention_weights"):
            if getattr(type(member), hook) is not getattr(Encoding, hook):
                raise ConfigError(f"encoding 'mix': '{part.encoding}' cannot be a part (it has `{hook}` of its own)")
        return member

    def for_layer(self, layer: int) -> Encoding:
        # A view with this layer's members alone; they stay the model's one set of parameters.
        here = copy.copy(self)
        parts = self.options.parts
        here.acting = [i for i in self.acting if parts[i].layers is None or layer in parts[i].layers]
        here._modules = {"members": nn.ModuleList(member.for_layer(layer) for member in self.members)}  # type: ignore[union-attr,operator]
        return here

    def _parts(self) -> list[tuple[Encoding, int, int]]:
        heads = [self.options.parts[i].heads or (0, self.shape.heads) for i in self.acting]
        return [(self.members[i], *ends) for i, ends in zip(self.acting, heads, strict=True)]  # type: ignore[misc]

    def embed(self, x_BTD: Tensor, positions_BT: Tensor) -> Tensor:
        for member, _, _ in self._parts():
            x_BTD = member.embed(x_BTD, positions_BT)
        return x_BTD

    def transform_qk(self, q_BHTK: Tensor, k_BHTK: Tensor, positions_BT: Tensor, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        for member, first, last in self._parts():
            turned = member.transform_qk(q_BHTK[:, first:last], k_BHTK[:, first:last], positions_BT, x_BTD)
            q_BHTK, k_BHTK = (
                self._within(whole, part, first, last) for whole, part in zip((q_BHTK, k_BHTK), turned, strict=True)
            )
        return q_BHTK, k_BHTK

    @staticmethod
    def _within(whole_BHTK: Tensor, part_BhTK: Tensor, first: int, last: int) -> Tensor:
        grown = part_BhTK.shape[-1] - whole_BHTK.shape[-1]  # zeros in the other heads leave their scores alone
        whole_BHTK = F.pad(whole_BHTK, (0, grown)) if grown else whole_BHTK
        return torch.cat((whole_BHTK[:, :first], part_BhTK, whole_BHTK[:, last:]), dim=1)

    def bias(
        self, q_BHTK: Tensor, k_BHSK: Tensor, query_BT: Tensor, key_BS: Tensor, token_state_BHSE: Tensor | None
    ) -> Tensor | None:
        total: Tensor | None = None
        for member, first, last in self._parts():
            part = member.bias(q_BHTK[:, first:last], k_BHSK[:, first:last], query_BT, key_BS, None)
            if part is None:
                continue
            if last - first < self.shape.heads:
                part = part.expand(-1, last - first, -1, -1)
                part = F.pad(part, (0, 0, 0, 0, first, self.shape.heads - last))
            total = part if total is None else total + part
        return total

    def init_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        _, index, own = name.split(".", 2)
        self.members[int(index)].init_parameter(own, parameter, generator)  # type: ignore[operator]

    @classmethod
    def label(cls, options: Options) -> str:
        return options.name or " + ".join(part.label for part in options.parts)
