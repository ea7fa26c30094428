from __future__ import annotations

import copy
import re
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
        layers: those it acts in, from 0: a list, or slices ("3::4" is every fourth, "0::4,1::4" two of four); `None` is all.
        heads: its heads [first, last), from 0; `None` is all.
    """

    encoding: str
    options: dict[str, Any] = {}
    layers: tuple[int, ...] | str | None = None
    heads: tuple[int, int] | None = None

    @field_validator("layers")
    @classmethod
    def _slices(cls, layers: Any) -> Any:
        if isinstance(layers, str) and not re.fullmatch(r"\d*:\d*(:[1-9]\d*)?(,\d*:\d*(:[1-9]\d*)?)*", layers):
            raise ValueError("a list of layers, or slices as in '3::4' or '0::4,1::4', is needed")
        return layers

    def acting(self, layers: int) -> set[int]:
        """Those of so many layers that it acts in, and any it names that there are not."""
        if not isinstance(self.layers, str):
            return set(range(layers) if self.layers is None else self.layers)
        ends = [[int(end) if end else None for end in one.split(":")] for one in self.layers.split(",")]
        return {layer for one in ends for layer in range(layers)[slice(*one)]}

    @property
    def label(self) -> str:
        where = [] if self.heads is None else [f"heads {self.heads[0]}–{self.heads[1] - 1}"]
        layers = self.layers if isinstance(self.layers, str) else ", ".join(map(str, self.layers or ()))
        where += [] if self.layers is None else [f"layers {layers}"]
        return encodings.label(self.encoding, self.options) + (f" ({'; '.join(where)})" if where else "")


class Mix(Encoding):
    """Several encodings at once, each in its own layers and heads, in one model.

    score(i, j) = temperature · transformed q_i · k_j / sqrt(K) + Σ biases, over the members that act in the layer and head. A
    layer or head without a member has no encoding. RoPE in three layers of four and none in the fourth is SmolLM3's and
    Llama 4's arrangement, studied by Yang et al. 2025 (arXiv 2501.18795); windows, temperatures and sinks are members too.

    What members keep of each token is kept side by side. A member that makes the scores itself does so from what the others
    made of queries and keys, for all heads of its layers; one that replaces the softmax does so in its own heads.

    Options:
        parts: list of {encoding, options, layers, heads}; `layers` lists layers from 0 or is slices, `heads` is [first, last).
        name: what tables and figures call it; by default its members' labels.

    Raises:
        ConfigError: a layer or head the model does not have; two members that replace the scores of one layer or the softmax of
            one head; one that replaces the scores in some heads alone, or beside one that lengthens queries and keys.
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
        self.longest_text = min((member.longest_text for member in members if member.longest_text is not None), default=None)
        for layer in range(shape.layers):
            self.for_layer(layer)._refuse_two()

    def _member(self, part: Part) -> Encoding:
        first, last = part.heads or (0, self.shape.heads)
        if not 0 <= first < last <= self.shape.heads:
            raise ConfigError(f"encoding 'mix': heads={[first, last]}: [first, last) within 0 to {self.shape.heads} is needed")
        for layer in part.acting(self.shape.layers):
            if not 0 <= layer < self.shape.layers:
                raise ConfigError(f"encoding 'mix': layers: {layer} is not one of 0 to {self.shape.layers - 1}")
        member = encodings.build(part.encoding, part.options, self.shape._replace(heads=last - first))
        if type(member).embed is not Encoding.embed and (part.layers, part.heads) != (None, None):
            raise ConfigError(f"encoding 'mix': '{part.encoding}' is added to the embeddings, for all layers and heads alike")
        if (member.replaces_scores or member.tied_heads > 1) and last - first < self.shape.heads:
            does = "makes the scores itself" if member.replaces_scores else "ties heads"
            raise ConfigError(f"encoding 'mix': '{part.encoding}' {does} and has to act in all heads")
        return member

    def _refuse_two(self) -> None:
        for what in ("replaces_scores", "replaces_softmax"):
            heads = [h for member, first, last in self._parts() if getattr(member, what) for h in range(first, last)]
            if len(heads) > len(set(heads)):
                names = " and ".join(
                    f"'{self.options.parts[i].encoding}'" for i in self.acting if getattr(self.members[i], what)
                )
                raise ConfigError(
                    f"encoding 'mix': {names}: one alone can replace the {what.removeprefix('replaces_')} of a head"
                )

    def for_layer(self, layer: int) -> Mix:
        # A view with this layer's members alone; they stay the model's one set of parameters.
        here = copy.copy(self)
        parts = self.options.parts
        here.acting = [i for i in self.acting if layer in parts[i].acting(self.shape.layers)]
        here._modules = {"members": nn.ModuleList(member.for_layer(layer) for member in self.members)}  # type: ignore[union-attr,operator]
        acting = [member for member, _, _ in here._parts()]
        turning = [(m, first, last) for m, first, last in here._parts() if type(m).transform_qk is not Encoding.transform_qk]
        here.turns_by_head = any(m.turns_by_head or last - first < self.shape.heads for m, first, last in turning)
        here.state_size = sum(member.state_size for member in acting)
        here.tied_heads = max((member.tied_heads for member in acting), default=1)
        written_out = here.replaces_scores or here.replaces_softmax
        here.bias_by_distance = not written_out and all(m.bias_by_distance or type(m).bias is Encoding.bias for m in acting)
        return here

    def _parts(self) -> list[tuple[Encoding, int, int]]:
        heads = [self.options.parts[i].heads or (0, self.shape.heads) for i in self.acting]
        return [(self.members[i], *ends) for i, ends in zip(self.acting, heads, strict=True)]  # type: ignore[misc]

    def _in_all_heads(self, part_BhTS: Tensor, first: int, last: int, value: float) -> Tensor:
        """What a member gives for its heads, with `value` for the others."""
        if last - first == self.shape.heads:
            return part_BhTS
        return F.pad(part_BhTS.expand(-1, last - first, -1, -1), (0, 0, 0, 0, first, self.shape.heads - last), value=value)

    @property
    def replaces_scores(self) -> bool:
        return any(member.replaces_scores for member, _, _ in self._parts())

    @property
    def replaces_softmax(self) -> bool:
        return any(member.replaces_softmax for member, _, _ in self._parts())

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

    def _within(self, whole_BHTK: Tensor, part_BhTK: Tensor, first: int, last: int) -> Tensor:
        grown = part_BhTK.shape[-1] - whole_BHTK.shape[-1]  # zeros in the other heads leave their scores alone
        if grown and self.replaces_scores:
            raise ConfigError("encoding 'mix': a part that makes the scores itself cannot read the longer queries of another")
        whole_BHTK = F.pad(whole_BHTK, (0, grown)) if grown else whole_BHTK
        return torch.cat((whole_BHTK[:, :first], part_BhTK, whole_BHTK[:, last:]), dim=1)

    def temperature(self, query_BT: Tensor) -> Tensor | None:
        total: Tensor | None = None
        for member, first, last in self._parts():
            part = member.temperature(query_BT)
            if part is not None:
                part = self._in_all_heads(part, first, last, 1.0)
                total = part if total is None else total * part
        return total

    def token_state(self, x_BTD: Tensor, positions_BT: Tensor) -> Tensor | None:
        states = []
        for member, first, last in self._parts():
            state = member.token_state(x_BTD, positions_BT)
            states += [] if state is None else [self._in_all_heads(state, first, last, 0.0)]
        return torch.cat(states, dim=-1) if states else None

    def _with_states(self, token_state_BHSE: Tensor | None) -> list[tuple[Encoding, int, int, Tensor | None]]:
        """Members with what each has kept of the tokens."""
        found, begin = [], 0
        for member, first, last in self._parts():
            end = begin + member.state_size
            own = None if token_state_BHSE is None or end == begin else token_state_BHSE[:, first:last, :, begin:end]
            found.append((member, first, last, own))
            begin = end
        return found

    def bias(
        self, q_BHTK: Tensor, k_BHSK: Tensor, query_BT: Tensor, key_BS: Tensor, token_state_BHSE: Tensor | None
    ) -> Tensor | None:
        total: Tensor | None = None
        for member, first, last, state in self._with_states(token_state_BHSE):
            part = member.bias(q_BHTK[:, first:last], k_BHSK[:, first:last], query_BT, key_BS, state)
            if part is not None:
                part = self._in_all_heads(part, first, last, 0.0)
                total = part if total is None else total + part
        return total

    def scores(
        self, q_BHTK: Tensor, k_BHSK: Tensor, query_BT: Tensor, key_BS: Tensor, token_state_BHSE: Tensor | None
    ) -> Tensor | None:
        K = self.shape.head_dim
        for member, _, _, state in self._with_states(token_state_BHSE):
            if member.replaces_scores:
                found = member.scores(q_BHTK[..., -K:], k_BHSK[..., -K:], query_BT, key_BS, state)
                return None if found is None else encodings.with_content(found, q_BHTK, k_BHSK, K)
        return None

    def attention_weights(self, scores_BHTS: Tensor) -> Tensor:
        weights_BHTS = scores_BHTS.softmax(-1)
        for member, first, last in self._parts():
            if member.replaces_softmax:
                part = member.attention_weights(scores_BHTS[:, first:last])
                weights_BHTS = torch.cat((weights_BHTS[:, :first], part, weights_BHTS[:, last:]), dim=1)
        return weights_BHTS

    def init_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        _, index, own = name.split(".", 2)
        self.members[int(index)].init_parameter(own, parameter, generator)  # type: ignore[operator]

    @classmethod
    def label(cls, options: Options) -> str:
        return options.name or " + ".join(part.label for part in options.parts)
