"""The model's dimensions as a `transformers` config class, apart from the model because it loads so much faster."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from pe_core import encodings
from pe_core.config import PRESETS, Experiment, latent_dims
from pe_core.schema import Shape


class LabConfig(PreTrainedConfig):
    """Dimensions of a model and the encoding it uses; the defaults are `pythia-70m` with NoPE.

    `max_position_embeddings` is the context length trained at, which is a limit only for learned tables. `attention_kind`,
    `kv_dim` and `rope_dim` are those of `Experiment`; `latent_form` chooses how latent attention is computed
    (`expanded`, `absorbed`, or `auto`: absorbed where keys come from a cache). `document_mask` concerns whole windows in
    training and evaluation alone, where documents end with `eos_token_id`; `forward` has `position_ids` for the same.
    """

    model_type = "position-encoding-lab"

    vocab_size: int = 50_304
    hidden_size: int = 512
    num_hidden_layers: int = 6
    num_attention_heads: int = 8
    intermediate_size: int = 2_048
    max_position_embeddings: int = 128
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    encoding: str = "none"
    encoding_options: dict[str, Any] | None = None
    attention_kind: str = "mha"
    kv_dim: int | None = None
    rope_dim: int | None = None
    latent_form: str = "auto"
    document_mask: bool = False
    tie_word_embeddings: bool = False
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None

    @classmethod
    def of(cls, experiment: Experiment, eos_token_id: int | None = None) -> LabConfig:
        """The model configuration of a resolved experiment."""
        preset = PRESETS[experiment.preset]
        return cls(
            vocab_size=experiment.vocabulary,
            hidden_size=preset.hidden,
            num_hidden_layers=preset.layers,
            num_attention_heads=preset.heads,
            intermediate_size=4 * preset.hidden,
            max_position_embeddings=experiment.seq_len,
            encoding=experiment.encoding,
            encoding_options=experiment.options,
            attention_kind=experiment.attention,
            kv_dim=experiment.kv_dim,
            rope_dim=experiment.rope_dim,
            document_mask=experiment.document_mask,
            bos_token_id=eos_token_id,
            eos_token_id=eos_token_id,
            pad_token_id=eos_token_id,
        )

    @property
    def latent_dim(self) -> int:
        return self._latent_dims()[0]

    @property
    def decoupled_dim(self) -> int:
        """Dimensions of an encoding's own queries and keys in latent attention; 0 where there are none."""
        if self.attention_kind != "mla" or not encodings.transforms_qk(self.encoding):
            return 0
        return self._latent_dims()[1]

    def _latent_dims(self) -> tuple[int, int]:
        return latent_dims(self.hidden_size, self.num_attention_heads, self.kv_dim, self.rope_dim)

    @property
    def shape(self) -> Shape:
        """The dimensions an encoding works with."""
        return Shape(
            self.hidden_size,
            self.num_attention_heads,
            self.decoupled_dim or self.hidden_size // self.num_attention_heads,
            self.num_hidden_layers,
            self.max_position_embeddings,
        )


AutoConfig.register(LabConfig.model_type, LabConfig)
