"""Choices of what to train: models by short names, every encoding there is, and what goes on from a finished run."""

from __future__ import annotations

from typing import Any

import pandas as pd

from pe_core import encodings
from pe_core.config import PRESETS, Experiment
from pe_core.encodings import ENCODINGS
from pe_core.errors import ConfigError, unknown
from pe_core.records import Record
from pe_core.schema import Shape

# How studies train: one pass over fresh text, while the rate falls to zero (`samples`, `lr` and `seed` are each study's own).
PROTOCOL: dict[str, Any] = {"epochs": 1, "schedule": "linear", "warmup": 0.05, "weight_decay": 0.1}

# Every fourth layer, the last of each four, is apart in Llama 4; the first in SWAN-GPT.
_LAST_OF_FOUR, _OTHERS = "3::4", "0::4,1::4,2::4"
_AFTER = "1::4,2::4,3::4"
_ROPE: dict[str, Any] = {"encoding": "rope", "options": {"rotary_pct": 1.0}}


def _mix(name: str, *parts: dict[str, Any]) -> dict[str, Any]:
    return {"encoding": "mix", "options": {"name": name, "parts": list(parts)}}


# Short names for the models of the results note and of papers that mix encodings, and settings of `Experiment` that make them.
_MODELS: dict[str, dict[str, Any]] = {
    "alibi-one": {"encoding": "alibi", "options": {"slope": 0.0625}},
    "rope-full": {"encoding": "rope", "options": {"rotary_pct": 1.0}},
    "t5-scaled": {"encoding": "t5", "options": {"scaled": True}},
    # Yang et al. 2025 (arXiv 2505.16381).
    "path-fox": _mix("PaTH-FoX", {"encoding": "path"}, {"encoding": "fox"}),
    # Puvvada et al. 2025 (arXiv 2504.08719): how its global layers' scores grow beyond the length trained at is fitted there.
    "swan": _mix("SWAN", {**_ROPE, "layers": _AFTER}, {"encoding": "window", "layers": _AFTER}),
    # Llama 4, which scales queries from 8,192 keys on and has chunks as long; here both follow the length trained at.
    "irope": _mix(
        "iRoPE",
        {**_ROPE, "layers": _OTHERS},
        {"encoding": "window", "options": {"kind": "chunks"}, "layers": _OTHERS},
        {"encoding": "temperature", "options": {"kind": "steps"}, "layers": _LAST_OF_FOUR},
    ),
    "rope-ssmax": _mix("RoPE + SSMax", _ROPE, {"encoding": "temperature"}),
    "rope-sink": _mix("RoPE + sink", _ROPE, {"encoding": "sink"}),
    "rope-shift": _mix("RoPE + key shift", _ROPE, {"encoding": "key_shift"}),
    "mla-alibi": {"encoding": "alibi", "options": {"slope": 0.0625}, "attention": "mla"},
    "mla-none": {"encoding": "none", "attention": "mla"},
    "mla-rope": {"encoding": "rope", "options": {"rotary_pct": 1.0}, "attention": "mla"},
}


def every() -> list[str]:
    """Short names of one model with each encoding, and of the note's variants of them; all with multi-head attention."""
    variants = {name: settings["encoding"] for name, settings in _MODELS.items() if "attention" not in settings}
    return [name for encoding in ENCODINGS for name in (encoding, *(v for v, of in variants.items() if of == encoding))]


def model(name: str) -> dict[str, Any]:
    """Settings of `Experiment` for a model's short name: one of `_MODELS` (`alibi-one`, `path-fox`), or any encoding's name.

    Raises:
        ConfigError: neither.
    """
    if name not in _MODELS and name not in ENCODINGS:
        raise ConfigError(unknown("model", name, [*_MODELS, *ENCODINGS]))
    return _MODELS.get(name, {"encoding": name})


def encodings_frame(preset: str = "nano", seq_len: int = 128) -> pd.DataFrame:
    """What every encoding is, one row each, with its default options; read from the classes, so that a new file has its row.

    Returns:
        columns name, label, family, parameters (its own, in a model of this preset and length), explicit_scores (whether
        attention has to write its scores out, whatever the kernel could do), extrapolates (`None` where not stated), paper,
        year; by family, then year.

    Raises:
        ConfigError: there is no such preset.
    """
    if preset not in PRESETS:
        raise ConfigError(unknown("preset", preset, PRESETS))
    hidden, layers, heads = PRESETS[preset].hidden, PRESETS[preset].layers, PRESETS[preset].heads
    rows = []
    for name, cls in ENCODINGS.items():
        built = encodings.build(name, {}, Shape(hidden, heads, hidden // heads, layers, seq_len))
        rows.append(
            {
                "name": name,
                "label": encodings.label(name, {}),
                "family": cls.family,
                "parameters": sum(parameter.numel() for parameter in built.parameters()),
                "explicit_scores": built.replaces_scores or built.replaces_softmax,
                "extrapolates": cls.extrapolates,
                "paper": cls.paper,
                "year": cls.year,
            }
        )
    return pd.DataFrame(rows).sort_values(["family", "year", "name"], ignore_index=True)


def dropped(record: Record, epochs: int = 1, **settings: Any) -> Experiment:
    """DroPE (Gelberg et al. 2025, arXiv 2512.12167): a trained model goes on without its position encoding.

    An encoding helps a model learn and holds it back on texts longer than those trained on. So it is dropped at the end:
    train with it, take it away, and train a little more at the same length until the model has found its way without
    (recalibration). Nothing but the encoding changes; its own parameters, where it has some, are gone.

    Returns the experiment that goes on from a finished run's best weights with NoPE, a run of its own. The optimizer starts
    afresh. Batches come in the order of the first run's first epochs.
    What dropping alone does, before any recalibration, `lengths.heldout(record, …, encoding="none")` measures.
    It cannot be run where latent attention gave a rotary encoding queries and keys of its own: those are not to be dropped.

    Args:
        epochs: of recalibration. The paper's take a few percent of the training, or less.
        settings: any other setting of `Experiment` that should differ from the first run's, `lr` or `encoding` say.
    """
    changed = {"encoding": "none", "options": {}, "start": record.run, "epochs": epochs, **settings}
    return Experiment(**{**record.config, **changed})
