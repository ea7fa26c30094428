"""Trained models that a page runs by itself: `python -m pe_core.site.browser_model RUN_FOLDER …`.

Weights become bytes, one scale a row, in scripts under `book/_static/models` that the page loads when it needs them; the
forward pass is in `book/_static/reader.js`. What an encoding does is asked of its hooks and written as numbers: the angle of
each pair of dimensions by position, and a bias by head and distance. One that does more is refused.
"""

from __future__ import annotations

import argparse
import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pe_core import records
from pe_core.encodings.base import Encoding
from pe_core.errors import ConfigError, told
from pe_core.model import LabForCausalLM
from pe_core.records import Record
from pe_core.site import index

# Called .mjs: what is called .js under `_static` jupyter-book loads on every page.
FOLDER = index.BOOK / "_static" / "models"
INDEX = "index.json"
DISTANCES = 2_048  # of a bias; a text on the page is shorter, however far apart its parts are moved
_HOOKS = ("embed", "token_state", "temperature", "scores", "attention_weights")


def export(record: Record, target: Path = FOLDER) -> dict[str, Any]:
    """Write one run's model, and its tokenizer, as scripts; return what the index says of it.

    Raises:
        ConfigError: the model has a part that the page cannot compute.
    """
    model = record.model().eval()
    name = record.config["encoding"]
    about = {
        "name": name,
        "label": record.label,
        "run": record.run,
        "parameters": record.parameters,
        "tokens": record.experiment.samples * record.experiment.seq_len,
        "trained_at": record.experiment.seq_len,
        "perplexity": record.metrics["perplexity"]["value"],
    }
    parts = {key: packed(value) for key, value in model.state_dict().items() if not key.startswith("encoding.")}
    config = model.config
    shape = {
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "hidden": config.hidden_size,
        "eps": config.layer_norm_eps,
        **position(model),
    }
    target.mkdir(parents=True, exist_ok=True)
    (target / f"{name}.mjs").write_text(f"lab.models.loaded({index.script_json({**about, **shape, 'parts': parts})});\n")
    (target / "tokenizer.mjs").write_text(f"lab.models.loaded({index.script_json(tokenizer(record))});\n")
    return {**about, "bytes": (target / f"{name}.mjs").stat().st_size}


def position(model: LabForCausalLM) -> dict[str, Any]:
    """What the encoding does, as numbers: `frequencies` of the pairs (m, m + R/2) of queries and keys, in radians a position,
    and `bias`, (H, DISTANCES), flat; each `None` where there is none.

    Raises:
        ConfigError: it does anything else.
    """
    encoding, config = model.encoding, model.config
    other = [hook for hook in _HOOKS if getattr(type(encoding), hook) is not getattr(Encoding, hook)]
    if config.attention_kind != "mha" or other or encoding.for_layer(1) is not encoding:
        why = ", ".join(other) or ("by layer" if config.attention_kind == "mha" else "latent attention")
        raise ConfigError(f"'{config.encoding}' ({why}) is not computed in the browser: rotations and biases by distance are")
    H, K = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    at = torch.arange(DISTANCES)[None]
    with torch.no_grad():
        bias = encoding.bias(torch.zeros(1, H, 1, K), torch.zeros(1, H, DISTANCES, K), at[:, -1:], at, None)
        frequencies = _frequencies(encoding, H, K)
    if bias is not None and not encoding.bias_by_distance:
        raise ConfigError(
            f"'{config.encoding}' has a bias that distance alone does not decide: it is not computed in the browser"
        )
    by_distance = None if bias is None else _base64(bias.expand(1, H, 1, DISTANCES)[0, :, 0].flip(-1).contiguous())
    return {"frequencies": frequencies, "bias": by_distance, "distances": DISTANCES}


def _frequencies(encoding: Encoding, H: int, K: int) -> list[float] | None:
    """Checked against the encoding's own transform: pairs may stand otherwise, or turn by more than their position."""
    q = torch.randn(1, H, 5, K, generator=torch.Generator().manual_seed(0))
    x, at = torch.zeros(1, 5, H * K), torch.tensor([[0, 1, 7, 90, 1_000]])
    turned = encoding.transform_qk(q, q, at, x)
    if all(torch.equal(one, q) for one in turned):
        return None
    finite = encoding.wavelengths().isfinite()
    R = int(finite.sum())
    frequencies = 2 * torch.pi / encoding.wavelengths()[: R // 2].double()
    angle = at[0, :, None] * frequencies
    first, second, rest = q[..., : R // 2], q[..., R // 2 : R], q[..., R:]
    cos, sin = angle.cos().float(), angle.sin().float()
    expected = torch.cat((first * cos - second * sin, second * cos + first * sin, rest), -1)
    if not all(one.shape == q.shape and torch.allclose(one, expected, atol=1e-3) for one in turned):
        raise ConfigError("an encoding that does more than turn pairs of dimensions is not computed in the browser")
    return frequencies.tolist()  # type: ignore[no-any-return]


def packed(value: Tensor) -> dict[str, Any]:
    """A matrix as bytes from -127 to 127 with a scale a row, a vector as it is; in base64."""
    value = value.float()
    if value.ndim == 1:
        return {"shape": list(value.shape), "values": _base64(value)}
    scale = value.abs().amax(1).clamp(min=1e-12) / 127
    return {
        "shape": list(value.shape),
        "bytes": _base64((value / scale[:, None]).round().to(torch.int8)),
        "scales": _base64(scale),
    }


def unpacked(part: dict[str, Any]) -> Tensor:
    """What the page computes with."""
    if "values" in part:
        return _numbers(part["values"], torch.float32)
    whole = _numbers(part["bytes"], torch.int8).view(part["shape"]).float()
    return whole * _numbers(part["scales"], torch.float32)[:, None]


def tokenizer(record: Record) -> dict[str, Any]:
    """Tokens by id, in the signs that stand for bytes, and the merges in their order.

    Raises:
        ConfigError: it is not a byte-level BPE without further steps.
    """
    made = json.loads(record.tokenizer().backend_tokenizer.to_str())
    if made["model"]["type"] != "BPE" or made["normalizer"] or made["pre_tokenizer"]["type"] != "ByteLevel":
        raise ConfigError("a tokenizer that is not a plain byte-level BPE is not computed in the browser")
    vocab = made["model"]["vocab"]
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in made["model"]["merges"]]
    return {"name": "tokenizer", "tokens": sorted(vocab, key=lambda token: vocab[token]), "merges": merges}


def _base64(values: Tensor) -> str:
    return base64.b64encode(values.contiguous().numpy().tobytes()).decode()


def _numbers(text: str, dtype: torch.dtype) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=dtype)


def about(folder: Path = FOLDER) -> list[dict[str, Any]]:
    """The index: what is known of each model there."""
    found: list[dict[str, Any]] = json.loads((folder / INDEX).read_text())
    return found


def scale(found: Sequence[dict[str, Any]]) -> str:
    """How large the models are, and how well they predict."""
    one = found[0]
    named = ", ".join(f"{model['label']} {model['perplexity']:.1f}" for model in found)
    return (
        f"Each has {one['parameters'] / 1e6:.1f} M parameters and read {one['tokens'] / 1e6:.1f} M tokens in windows of "
        f"{one['trained_at']}; test perplexity: {named}. Weights are rounded to bytes here; a model is "
        f"{max(model['bytes'] for model in found) / 1e6:.1f} MB to load."
    )


def place(found: Sequence[dict[str, Any]]) -> str:
    """HTML where the models run; `reader.js` fills it."""
    text = index.script_json(list(found))
    hint = "<p>Running a model needs JavaScript.</p>"
    return f'<div class="reader"><script type="application/json">{text}</script>{hint}</div>'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs with their weights")
    parser.add_argument("--target", type=Path, default=FOLDER)
    given = parser.parse_args()
    with told():
        found = [export(records.load(folder), given.target) for folder in given.runs]
        (given.target / INDEX).write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        for model in found:
            print(f"{model['label']}: {model['bytes'] / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
