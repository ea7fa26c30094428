"""What a run is: one frozen, validated `Experiment`.

Every value is checked before anything expensive starts. Unknown names are refused, never ignored.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal, NamedTuple, Self

import pydantic
from pydantic import Field

from pe_core.errors import ConfigError, unknown
from pe_core.schema import Shape, Strict


class Preset(NamedTuple):
    """A model size: the Pythia architecture's own numbers, and the learning rate that suits them."""

    hidden: int
    layers: int
    heads: int
    vocab: int
    lr: float


PRESETS: dict[str, Preset] = {
    "nano": Preset(128, 4, 4, 4_096, 1e-3),  # 1.8 M parameters: a quick answer on two CPU cores
    "micro": Preset(256, 6, 8, 8_192, 6e-4),
    # The Pythia family's own shapes (Biderman et al. 2023, arXiv 2304.01373); lr 1e-4 is the results note's.
    "pythia-14m": Preset(128, 6, 4, 50_304, 1e-4),
    "pythia-31m": Preset(256, 6, 8, 50_304, 1e-4),
    "pythia-70m": Preset(512, 6, 8, 50_304, 1e-4),
    "pythia-160m": Preset(768, 12, 12, 50_304, 1e-4),
}


class Experiment(Strict):
    """One training run. Two equal experiments on the same data are the same run and share an id.

    The defaults are those of the results note (`samples` windows of `seq_len` tokens, AdamW at a constant rate, gradient
    norm clipped at 1, stop at the first epoch that does not improve), but for what is decayed and what is held out: training
    stops by validation documents, and results are measured on all windows of test documents (see `sides.split`).

    Raises:
        ConfigError: any value of the wrong type or range, or an unknown name.
    """

    model_config = pydantic.ConfigDict(use_attribute_docstrings=True)  # they are the command line's help, too

    encoding: str = "rope"
    """Name of a file in `pe_core/encodings`."""
    options: dict[str, Any] = {}
    """That encoding's own settings, by name."""
    attention: Literal["mha", "mla"] = "mha"
    """`mha` (multi-head) or `mla` (multi-head latent, see `attention.LatentAttention`)."""
    kv_dim: int | None = Field(None, ge=1, le=2**16)
    """Dimension of the latent of `mla`; `None` is a quarter of the hidden size (the note: 128 of 512)."""
    rope_dim: int | None = Field(None, ge=2, le=2**16)
    """Dimensions of a rotary encoding's own keys in `mla`; `None` is half the head dimension."""
    corpus: str = Field("prose-docs-code", min_length=1)
    """`prose-docs-code` (`sotu`, `aws-docs` and `python-stdlib` together) or one of these three, a path or glob of
    text/JSONL/parquet files, or a hub data set; or `task:copy` and other tasks (see `tasks`), generated, whose windows each
    hold one question with its answer."""
    tokenizer: str = Field("auto", min_length=1)
    """`auto` (the corpus's own), `train` (a byte-level BPE of the preset's size), or a hub name or folder."""
    facts: str | None = Field(None, min_length=1)
    """Fact sentences added to the training text (see `facts.load`): `fictional`, `note`, or a path of JSONL files."""
    facts_rate: float | None = Field(None, gt=0, le=0.9)
    """The share of training windows that hold facts; they are added, `samples` counts the others. `None` is a fifth, at
    which `nano` learns most fictional facts in four epochs of the default corpus."""
    start: str | None = Field(None, pattern=r"^\w+-[\w-]+-[0-9a-f]{10}$")
    """Id of a finished run whose best weights training starts from, in place of new ones (see `recipes.dropped`)."""
    samples: int = Field(10_000, ge=10, le=10**9)
    """Number of training windows."""
    seq_len: int = Field(128, ge=2, le=1_048_576)
    """Context length in tokens; each window predicts `seq_len` tokens."""
    draw_len: int | None = Field(None, ge=2, le=1_048_576)
    """Length of the windows that are drawn from the corpus and then cut into windows of `seq_len`, of which it is a
    multiple; runs of several `seq_len` that share it train on the same text, batch by batch. `None` is `seq_len`."""
    vocab_size: int | None = Field(None, ge=257, le=2**20)
    """Number of tokens of the vocabulary; `None` is the preset's."""
    epochs: int = Field(30, ge=1, le=10**6)
    """At most so many passes over the training windows."""
    batch_size: int = Field(8, ge=1)
    """Windows a step."""
    lr: float | None = Field(None, gt=0, le=1e9)
    """Peak learning rate; `None` takes the preset's."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """The learning rate after warm-up: `constant`; or `linear` or `cosine`, to zero at the last step of the last epoch,
    which then is always trained and whose weights are the result."""
    warmup: float = Field(0.0, ge=0, lt=1)
    """Share of all steps over which the rate rises from zero."""
    weight_decay: float = Field(0.01, ge=0)
    """AdamW's weight decay."""
    decay: Literal["matrices", "all"] = "matrices"
    """What weight decay acts on: `matrices` (of embeddings, attention, MLP and output; neither biases, LayerNorm, nor the
    encoding's parameters), or `all`."""
    clip: float = Field(1.0, gt=0)
    """The gradient norm above which gradients are scaled down to it."""
    patience: int = Field(1, ge=1)
    """Epochs without improvement of the validation loss before training at a constant rate stops."""
    document_mask: bool = False
    """Whether tokens of a window see nothing of another document in it, and positions count from each one's start;
    otherwise, as is usual in training, a window is read whole."""
    seed: int = Field(42, ge=0, lt=2**63)
    """Initial weights and the order of batches. Documents are split the same way for every seed."""
    preset: str = "auto"
    """The model's size, see `PRESETS`; `auto` is `nano` on a CPU and `pythia-70m` on a GPU."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`, `mps`; `auto` is the fastest there is."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`fp32`, or `bf16` under autocast; `auto` is bf16 where the hardware multiplies it faster."""
    compile: Literal["auto", "on", "off"] = "auto"
    """`on` or `off`; `auto` is on where there is a C++ compiler."""

    def resolved(self) -> Self:
        """This experiment with every `auto` and `None` replaced by what will be used; the preset's `vocab_size` is `None`."""
        # Here and below, not above: they load torch, which a list of settings does without.
        from pe_core import encodings, hardware

        device = hardware.device(self.device)
        preset = ("nano" if device == "cpu" else "pythia-70m") if self.preset == "auto" else self.preset
        if preset not in PRESETS:
            raise ConfigError(unknown("preset", preset, [*PRESETS, "auto"]))
        options = encodings.options(self.encoding, self.options).model_dump()
        for name in ("kv_dim", "rope_dim"):
            if self.attention != "mla" and getattr(self, name) is not None:
                raise ConfigError(f"{name}={getattr(self, name)}: only attention='mla' has it")
        if self.draw_len is not None and self.draw_len % self.seq_len:
            raise ConfigError(f"draw_len={self.draw_len}: a multiple of seq_len={self.seq_len} is needed")
        if self.facts is None and self.facts_rate is not None:
            raise ConfigError(f"facts_rate={self.facts_rate:g}: there are no facts to mix in; name them with facts='fictional'")
        resolved = self.model_copy(
            update={
                "options": options,
                "preset": preset,
                **self._latent(PRESETS[preset]),
                "vocab_size": None if self.vocab_size == PRESETS[preset].vocab else self.vocab_size,
                "lr": PRESETS[preset].lr if self.lr is None else self.lr,
                "facts_rate": (self.facts_rate or 0.2) if self.facts else None,
                "device": device,
                "precision": hardware.precision(self.precision, device),
                "compile": hardware.compilation(self.compile),
            }
        )
        if self.samples < self.batch_size:
            raise ConfigError(f"samples={self.samples}: fewer windows than one batch of batch_size={self.batch_size}")
        encodings.build(self.encoding, options, resolved.shape)  # its own limits, before any data is read
        return resolved

    def _latent(self, preset: Preset) -> dict[str, int]:
        from pe_core import encodings

        if self.attention != "mla":
            return {}
        kv_dim, rope_dim = latent_dims(preset.hidden, preset.heads, self.kv_dim, self.rope_dim)
        if encodings.transforms_qk(self.encoding):
            return {"kv_dim": kv_dim, "rope_dim": rope_dim}
        if self.rope_dim is not None:
            raise ConfigError(f"rope_dim={self.rope_dim}: encoding '{self.encoding}' rotates nothing")
        return {"kv_dim": kv_dim}

    @property
    def label(self) -> str:
        """A short name for tables and figures: the encoding with its options, the one before it where training started from
        another run's weights, and the attention where it is unusual."""
        from pe_core import encodings

        name = encodings.label(self.encoding, self.options)
        if self.start is not None:
            before = self.start.partition("-")[0]
            name += f" after {encodings.ENCODINGS[before].title if before in encodings.ENCODINGS else before}"
        return name if self.attention == "mha" else f"MLA {self.kv_dim or ''}".rstrip() + f" + {name}"

    @property
    def task(self) -> str | None:
        """The name of the task that is trained on in place of text; `None` for text."""
        return self.corpus.removeprefix("task:") if self.corpus.startswith("task:") else None

    @property
    def heldout_windows(self) -> int:
        """Windows of each held-out side where text or questions are made or streamed as needed; of others all are measured."""
        return max(1, round(self.samples / 10))

    @property
    def vocabulary(self) -> int:
        return self.vocab_size or PRESETS[self.preset].vocab

    @property
    def shape(self) -> Shape:
        """The model dimensions an encoding may depend on."""
        preset = PRESETS[self.preset]
        head_dim = self.rope_dim or preset.hidden // preset.heads
        return Shape(preset.hidden, preset.heads, head_dim, preset.layers, self.seq_len)

    def digest(self, data_fingerprint: str) -> str:
        """Ten hex digits that name this run: the resolved settings that differ from the defaults, and the data.

        Defaults are left out so that a setting added later does not rename the runs made before it.
        """
        settings = {name: value for name, value in self.model_dump().items() if value != _UNNAMED.get(name, _UNSET)}
        text = json.dumps([settings, data_fingerprint], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]


def latent_dims(hidden: int, heads: int, kv_dim: int | None, rope_dim: int | None) -> tuple[int, int]:
    """Dimensions of latent attention's latent and of its rotary keys: where not given, a quarter of the hidden size (as
    the results note's 128 of 512) and half the head dimension (as in DeepSeek-V2)."""
    return kv_dim or hidden // 4, rope_dim or hidden // heads // 2


# What ids do not mention: each setting's default, or what it was for all runs before there was a choice or another default.
_UNSET = object()
_UNNAMED: dict[str, Any] = {name: field.default for name, field in Experiment.model_fields.items()} | {
    "corpus": "aws-docs",
    "decay": "all",
}
