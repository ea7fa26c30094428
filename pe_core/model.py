"""The Pythia decoder (GPT-NeoX architecture, Black et al. 2022, arXiv 2204.06745) with a pluggable position encoding.

An ordinary `transformers` model: `save_pretrained`, `from_pretrained`, `generate` and the Auto classes work once
`pe_core.model` is imported. Shapes: B batch, T tokens, S keys, D hidden, V vocabulary.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from pe_core import encodings
from pe_core.attention import ATTENTIONS, Positions, documents
from pe_core.encodings.base import Encoding
from pe_core.errors import ConfigError, unknown
from pe_core.model_config import LabConfig

# Logits held at once, 128 MB in bf16: a batch of 8 × 128 of any preset, half of pythia-70m's 1 × 2,048. Smaller pieces
# save no memory (there are weights, gradients and the optimizer's state beside them) and cost a pass over W each.
_LOGITS_AT_ONCE = 64 * 2**20


def _cross_entropy(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    return F.cross_entropy(logits_NV.float(), targets_N, reduction="none")


class _ChunkedLoss(torch.autograd.Function):
    """Mean cross-entropy of x Wᵀ, some tokens at a time: logits become gradients at once and are dropped.

    The same products as without chunks, in another order; only the gradients of x (N, D) and W (V, D) are kept.
    """

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, chunk: int) -> Tensor:
        cast = x_ND.dtype if not torch.is_autocast_enabled(x_ND.device.type) else torch.get_autocast_dtype(x_ND.device.type)
        x, weight = x_ND.to(cast), weight_VD.to(cast)
        total = torch.zeros((), device=x.device)
        grad_x, grad_weight = [], []
        for part, targets in zip(x.split(chunk), targets_N.split(chunk), strict=True):
            logits, at = (part @ weight.mT).float(), targets[:, None]
            log_z = logits.logsumexp(-1, keepdim=True)
            total = total + (log_z - logits.gather(1, at)).sum()
            # One number a row is put in place: comparing all places with the target took longer than the exponentials.
            grad = (logits - log_z).exp() / len(x_ND)
            grad = grad.scatter_add(1, at, grad.new_full((1, 1), -1 / len(x_ND)).expand_as(at)).to(cast)
            grad_x.append(grad @ weight)
            grad_weight.append(grad.mT @ part)
        ctx.save_for_backward(torch.cat(grad_x).type_as(x_ND), *grad_weight)
        return total / len(x_ND)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:  # type: ignore[override]
        grad_x, *grad_weight = ctx.saved_tensors
        return grad * grad_x, grad * sum(part.float() for part in grad_weight), None, None


class Layer(nn.Module):
    """Parallel residual: x + attention(norm1(x)) + mlp(norm2(x))."""

    def __init__(self, config: LabConfig, encoding: Encoding, layer: int) -> None:
        super().__init__()
        D = config.hidden_size
        self.input_layernorm = nn.LayerNorm(D, eps=config.layer_norm_eps)
        self.post_attention_layernorm = nn.LayerNorm(D, eps=config.layer_norm_eps)
        self.attention = ATTENTIONS[config.attention_kind](config, encoding, layer)
        self.mlp = nn.Sequential()
        self.mlp.add_module("dense_h_to_4h", nn.Linear(D, config.intermediate_size))
        self.mlp.add_module("gelu", nn.GELU())
        self.mlp.add_module("dense_4h_to_h", nn.Linear(config.intermediate_size, D))

    def forward(self, x_BTD: Tensor, positions: Positions, cache: Cache | None) -> tuple[Tensor, Tensor | None]:
        attended, weights = self.attention(self.input_layernorm(x_BTD), positions, cache)
        return x_BTD + attended + self.mlp(self.post_attention_layernorm(x_BTD)), weights


class LabForCausalLM(PreTrainedModel, GenerationMixin):
    """The decoder with its output projection. Submodules carry GPT-NeoX's names, so its weights load by renaming."""

    config: LabConfig
    config_class = LabConfig
    base_model_prefix = ""
    _input_embed_layer = "embed_in"
    _supports_sdpa = True
    _no_split_modules = ["Layer"]
    supports_gradient_checkpointing = True

    def __init__(self, config: LabConfig) -> None:
        super().__init__(config)
        if config.hidden_size % config.num_attention_heads:
            raise ConfigError(
                f"hidden_size={config.hidden_size} is not a multiple of num_attention_heads={config.num_attention_heads}"
            )
        if config.attention_kind not in ATTENTIONS:
            raise ConfigError(unknown("attention_kind", config.attention_kind, ATTENTIONS))
        self.embed_in = nn.Embedding(config.vocab_size, config.hidden_size)
        self.encoding = encodings.build(config.encoding, config.encoding_options or {}, config.shape)
        self.layers = nn.ModuleList(Layer(config, self.encoding.for_layer(i), i) for i in range(config.num_hidden_layers))
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.embed_out = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.gradient_checkpointing = False  # transformers sets it
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # transformers' hook, for a model built from a config alone or loaded with weights missing.
        super()._init_weights(module)
        if isinstance(module, Encoding):  # a member of a mix may be all that is visited of it
            names = {parameter: name for name, parameter in self.encoding.named_parameters()}
            for parameter in module.parameters():
                if (name := names.get(parameter)) and not getattr(parameter, "_is_hf_initialized", False):
                    generator = torch.Generator(parameter.device).manual_seed(int(torch.randint(2**62, ())))
                    self.encoding.init_parameter(name, parameter, generator)

    def get_output_embeddings(self) -> nn.Linear:
        return self.embed_out

    def set_output_embeddings(self, new: nn.Linear) -> None:
        self.embed_out = new

    @torch.no_grad()
    def initialise(self, seed: int) -> LabForCausalLM:
        """Set every parameter from its own random stream, seeded by (seed, parameter name).

        Matrices are N(0, 0.02), biases 0, LayerNorm weights 1. Two models that share a parameter's name and shape
        start with the same values there, whatever else either of them has.
        """
        for name, parameter in self.named_parameters():
            digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
            if name.startswith("encoding."):
                self.encoding.init_parameter(name.removeprefix("encoding."), parameter, generator)
            elif parameter.ndim > 1:
                parameter.normal_(0, self.config.initializer_range, generator=generator)
            else:
                parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
        return self

    def hidden(
        self, input_ids: Tensor, positions: Positions, cache: Cache | None = None
    ) -> tuple[Tensor, list[Tensor], list[Tensor | None]]:
        """Token ids (B, T) to final hidden states (B, T, D), every layer's input and every layer's attention."""
        x_BTD = self.encoding.embed(self.embed_in(input_ids), positions.query_BT)
        states, attentions = [], []
        for layer in self.layers:
            states.append(x_BTD)
            if self.gradient_checkpointing and self.training:
                x_BTD, weights = self._gradient_checkpointing_func(layer.__call__, x_BTD, positions, None)
            else:
                x_BTD, weights = layer(x_BTD, positions, cache)
            attentions.append(weights)
        return self.final_layer_norm(x_BTD), states, attentions

    def losses(self, input_ids: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy in nats of each target (B, T) given the tokens up to and including its input, as fp32 (B, T).

        For evaluation: whole windows, no cache, no padding. Many tokens' logits are never held at once.
        """
        x_BTD, flat_N = self._windows(input_ids), targets.flatten()
        if not self.in_chunks(targets):
            return _cross_entropy(self.embed_out(x_BTD).flatten(0, 1), flat_N).view_as(targets)
        chunks = zip(x_BTD.flatten(0, 1).split(self._chunk), flat_N.split(self._chunk), strict=True)
        return torch.cat([_cross_entropy(self.embed_out(x), y) for x, y in chunks]).view_as(targets)

    def chunked_loss(self, input_ids: Tensor, targets: Tensor) -> Tensor:
        """The mean of `losses`, for training on text: one pass over the logits, never held for many tokens at once."""
        x_ND = self._windows(input_ids).flatten(0, 1)
        mean: Tensor = _ChunkedLoss.apply(x_ND, self.embed_out.weight, targets.flatten(), self._chunk)  # type: ignore[no-untyped-call]
        return mean

    def masked_loss(self, input_ids: Tensor, at: Tensor, targets: Tensor) -> Tensor:
        """The mean of `losses` over some tokens, whose logits alone are computed.

        Args:
            at: (N,) places of these tokens among all B · T.
            targets: (N,); negative ones cost nothing and do not count.
        """
        x_ND = self._windows(input_ids).flatten(0, 1).index_select(0, at)
        return _cross_entropy(self.embed_out(x_ND), targets).sum() / (targets >= 0).sum()

    def in_chunks(self, targets: Tensor) -> bool:
        """Whether there are too many targets for all their logits at once."""
        return targets.numel() > self._chunk

    def _windows(self, input_ids: Tensor) -> Tensor:
        positions_1T = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        positions = Positions(positions_1T, positions_1T, whole=True)
        if self.config.document_mask:
            begins_BT = F.pad(input_ids[:, :-1].eq(self.config.eos_token_id or 0), (1, 0))
            document_BT = begins_BT.long().cumsum(-1)
            own_BT = positions_1T - (positions_1T * begins_BT).cummax(-1).values
            positions = Positions(own_BT, own_BT, positions.visible[:, 0] & (document_BT[:, :, None] == document_BT[:, None]))
        x_BTD, _, _ = self.hidden(input_ids, positions)
        return x_BTD

    @property
    def _chunk(self) -> int:
        """Tokens whose logits are held at once."""
        return max(1, _LOGITS_AT_ONCE // self.config.vocab_size)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        num_items_in_batch: Tensor | int | None = None,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """The `transformers` interface: logits (B, T, V), with a KV cache and padded batches.

        Args:
            logits_to_keep: the last so many tokens' logits alone (0: all), or those of the places given.
            attention_mask: (B, S), 0 for padding. Positions count the tokens that are not padding. Encodings by content
                (`cope`, say) may count padding between tokens: where a cached text goes on, pad it on the left.
            position_ids: (B, T) positions of `input_ids`, instead of counting. Where they do not rise, another document begins:
                its tokens see none of those before (as transformers' packed batches are meant).
            labels: (B, T) token ids, shifted here; -100 is ignored. The loss is their mean cross-entropy in nats.
            num_items_in_batch: what the sum of cross-entropies is divided by in place of the number of labels here:
                transformers' `Trainer` gives the labels of all batches that one step accumulates.
            output_attentions: weights per layer; needs `attn_implementation="eager"`.

        Raises:
            ConfigError: `output_attentions` under another attention implementation, a cache of fixed size, or a mask of more
                dimensions.
        """
        if attention_mask is not None and attention_mask.ndim != 2:
            raise ConfigError(f"attention_mask of shape {list(attention_mask.shape)}: (rows, tokens), 0 for padding, is needed")
        if output_attentions and self.config._attn_implementation != "eager":
            raise ConfigError('output_attentions needs explicit scores: model.set_attn_implementation("eager")')
        if past_key_values is None and (self.config.use_cache if use_cache is None else use_cache):
            past_key_values = DynamicCache()
        past = 0
        if past_key_values is not None:
            if past_key_values.is_compileable:
                name = type(past_key_values).__name__
                raise ConfigError(
                    f"a {name} holds a fixed number of tokens; use a cache that grows: cache_implementation='dynamic'"
                )
            past = past_key_values.get_seq_length()
        positions = self._positions(input_ids, attention_mask, position_ids, past)
        if position_ids is not None:
            positions = self._apart(positions, past, past_key_values)
        x_BTD, states, attentions = self.hidden(input_ids, positions, past_key_values)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) and logits_to_keep else logits_to_keep
        logits = self.embed_out(x_BTD if isinstance(kept, int) else x_BTD[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.config.vocab_size, num_items_in_batch=num_items_in_batch)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=past_key_values,
            hidden_states=(*states, x_BTD) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )

    @staticmethod
    def _positions(ids_BT: Tensor, mask_BS: Tensor | None, position_ids: Tensor | None, past: int) -> Positions:
        T, S = ids_BT.shape[1], past + ids_BT.shape[1]
        visible_BTS = padding_BT = None
        if mask_BS is None or bool(mask_BS.all()):
            key_BS = torch.arange(S, device=ids_BT.device)[None]
        else:
            key_BS = (mask_BS.long().cumsum(-1) - 1).clamp(min=0)
            causal_TS = torch.ones(T, S, dtype=torch.bool, device=ids_BT.device).tril(past)
            # A padding query sees itself at least: its row of the softmax stays finite, and nobody looks at it.
            own_TS = causal_TS & ~causal_TS.tril(past - 1)
            visible_BTS = (causal_TS & mask_BS.bool()[:, None]) | own_TS
            padding_BT = ~mask_BS.bool()[:, past:]
        if position_ids is None or bool((position_ids == key_BS[:, past:]).all()):
            return Positions(key_BS[:, past:], key_BS, visible_BTS, padding_BT)
        # Positions given for the queries alone: earlier keys keep their distance from the first query.
        earlier = key_BS[:, :past] + (position_ids[:, :1] - key_BS[:, past : past + 1])
        key_BS = torch.cat((earlier, position_ids.expand(len(earlier), -1)), dim=1)
        return Positions(position_ids, key_BS, visible_BTS, padding_BT)

    def _apart(self, positions: Positions, past: int, cache: Cache | None) -> Positions:
        """The same positions, with documents packed into one row kept from each other: one begins where positions do not rise.

        Cached tokens belong to the document that was being read when the cache was left.
        """
        document_BT, key_BS = documents(positions), positions.key_BS
        packed = getattr(cache, "packed", None)  # documents and positions of the cached keys
        if packed is None and not bool(document_BT.any()):
            return positions
        if packed is None:
            packed = document_BT.new_zeros(len(document_BT), past), key_BS[:, :past]
        earlier_BS, earlier_key_BS = (cached[:, :past] for cached in packed)
        if past:
            document_BT = document_BT + earlier_BS[:, -1:]
            key_BS = torch.cat((earlier_key_BS, key_BS[:, past:].expand(len(earlier_key_BS), -1)), dim=1)
        document_BS = torch.cat((earlier_BS, document_BT), dim=1)
        if cache is not None:
            cache.packed = document_BS, key_BS  # type: ignore[attr-defined]
        visible_BTS = positions.visible[:, 0] & (document_BT[:, :, None] == document_BS[:, None])
        return Positions(positions.query_BT, key_BS, visible_BTS, positions.padding_BT)


AutoModelForCausalLM.register(LabConfig, LabForCausalLM)
# Its `Trainer` shifts labels for label smoothing where a model's class is among these names alone.
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[LabConfig.model_type] = LabForCausalLM.__name__
