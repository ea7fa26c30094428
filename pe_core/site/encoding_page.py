"""What an encoding is and does, for its page: read from its class, its docstring and its hooks. No training.

The pictures come from a model of the smallest size in which every token is the same, so that content says nothing and what is
left is the encoding: queries and keys are all ones (or, where positions are added to embeddings, the normalised embedding
itself). Encodings that learn are shown as they start.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from functools import cache
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pe_core import encodings, paths
from pe_core.config import PRESETS
from pe_core.encodings import ENCODINGS
from pe_core.encodings.base import Encoding
from pe_core.errors import LabError
from pe_core.model import LabForCausalLM
from pe_core.model_config import LabConfig
from pe_core.report import figures
from pe_core.schema import Strict
from pe_core.site import docstrings

Floats = NDArray[np.float64]

PRESET, SEQ_LEN = "nano", 128


def model(name: str, options: dict[str, Any] | None = None, small: bool = False) -> Any:
    """A model of the smallest preset with encoding `name` as training starts; `small` has a layer and a few tokens of it.
    Raises ConfigError."""
    preset = PRESETS[PRESET]
    config = LabConfig(
        vocab_size=8 if small else preset.vocab,
        hidden_size=preset.hidden,
        num_hidden_layers=1 if small else preset.layers,
        num_attention_heads=preset.heads,
        intermediate_size=4 * preset.hidden,
        max_position_embeddings=SEQ_LEN,
        encoding=name,
        encoding_options=options or {},
    )
    built: Any = LabForCausalLM(config).initialise(42).eval()
    built.set_attn_implementation("eager")
    return built


def takes(name: str, options: dict[str, Any]) -> bool:
    """Whether encoding `name` can be built with these options, the others at their defaults."""
    try:
        model(name, options, small=True)
    except LabError:
        return False
    return True


@torch.no_grad()
def attention(name: str, options: dict[str, Any] | None = None, tokens: int = SEQ_LEN, small: bool = False) -> Floats:
    """Attention weights of the first layer, (H, T, T), where every token is the same. Raises LabError."""
    built = model(name, options, small)
    D, K = built.config.hidden_size, built.config.hidden_size // built.config.num_attention_heads
    project = built.layers[0].attention.query_key_value
    project.weight.zero_()
    project.bias.fill_(1.0)
    if type(built.encoding).embed is not Encoding.embed:  # positions reach queries and keys through the embeddings alone
        heads = project.weight.view(-1, 3, K, D)
        heads[:, :2] = torch.eye(D).view(-1, 1, K, D)[: len(heads)]  # tied heads are fewer
        project.bias.zero_()
    weights = built(torch.full((1, tokens), 7), output_attentions=True, use_cache=False).attentions[0][0]
    return np.asarray(weights.double().numpy())


def scores(name: str, options: dict[str, Any] | None = None, tokens: int = SEQ_LEN, small: bool = False) -> Floats:
    """How much more or less than its own score a query gives each earlier key, in nats, (H, T, T); NaN for later keys."""
    weights = attention(name, options, tokens, small)
    with np.errstate(divide="ignore"):
        logs = np.log(weights)
    own = np.diagonal(logs, axis1=1, axis2=2)[:, :, None]
    own = np.where(np.isfinite(own), own, logs.max(axis=2, keepdims=True))  # where a query has no share for itself
    with np.errstate(invalid="ignore"):
        relative = np.where(np.isfinite(logs), logs - own, np.nan)
    relative[:, ~np.tri(tokens, dtype=bool)] = np.nan
    return relative


def different(heads: Floats) -> list[int]:
    """The first index of each value along the first axis, in order.

    `numpy.unique(axis=0)` makes a field of every number of a row, which took three quarters of the playground's time."""
    seen: dict[bytes, int] = {}
    for index, head in enumerate(heads + 0.0):  # -0 and 0 are one number and two strings of bytes
        seen.setdefault(head.tobytes(), index)
    return list(seen.values())


@torch.no_grad()
def rotation(name: str, options: dict[str, Any] | None = None, tokens: int = SEQ_LEN) -> Floats | None:
    """How far each dimension of a query has turned away from itself at each position: the cosine of the angle, (K, T).
    `None` where queries and keys are left as they are."""
    if not encodings.transforms_qk(name):
        return None
    built = model(name, options)
    encoding, shape = built.encoding.for_layer(0), built.config.shape
    K = shape.head_dim
    units = torch.eye(K)[:, None, None].expand(K, shape.heads, tokens, K)  # a batch of unit vectors
    x_BTD = built.layers[0].input_layernorm(built.embed_in(torch.full((K, tokens), 7)))
    positions_BT = torch.arange(tokens)[None].expand(K, tokens)
    turned_BTK = encoding.transform_qk(units, units, positions_BT, x_BTD)[0][:, 0].double()
    kept = torch.stack([turned_BTK[m, :, m % turned_BTK.shape[-1]] for m in range(K)])
    return np.asarray((kept / turned_BTK.norm(dim=-1).clamp(min=1e-9)).numpy())


def picture(name: str, options: dict[str, Any] | None = None, tokens: int = 64) -> Figure:
    """Score by query and key, one panel a head."""
    relative = scores(name, options, tokens)
    if not np.nanmax(np.abs(relative)) > 1e-4:
        return _nothing(name, tokens)
    alike = len(different(np.nan_to_num(relative, posinf=0, neginf=0).round(3))) == 1
    heads = [0] if alike else list(range(len(relative)))[:4]
    rows = -(-len(heads) // 2)
    figure, axes = plt.subplots(
        rows,
        min(len(heads), 2),
        squeeze=False,
        sharex=True,
        sharey=True,
        figsize=(figures.WIDTH, (3.6 if len(heads) == 1 else 0.6) + (0 if len(heads) == 1 else 2.2 * rows)),
    )
    limit = max(0.5, float(np.nanmax(np.abs(relative))))  # what is hardly there should look so
    for ax in axes.flat[len(heads) :]:
        ax.remove()
    for ax, head in zip(axes.flat, heads, strict=False):
        shown = ax.imshow(relative[head], cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
        ax.set(title="every head" if len(heads) == 1 else f"head {head + 1}", xlabel="key", ylabel="query")
        ax.label_outer()
        ax.grid(visible=False)
    figure.colorbar(shown, ax=axes, shrink=0.8, label="score, against the query's own, nats")
    ends = [f"{'every head' if len(heads) == 1 else f'head {head + 1}'} {_nats(relative[head][-1, 0])}" for head in heads]
    said = (
        f"Score of each key for each query where all tokens are the same, {tokens} tokens. The last query gives the first key"
    )
    return figures.set_alt_text(figure, f"{said}, against itself: {', '.join(ends)} nats.")


def _nats(value: float) -> str:
    return f"{value:+.2f}" if np.isfinite(value) else "nothing"


def _nothing(name: str, tokens: int) -> Figure:
    figure, ax = plt.subplots(figsize=(figures.WIDTH, 2.4))
    ax.plot(range(tokens), np.zeros(tokens), color=figures.FAMILY_COLOURS["none"])
    ax.set(title="Score by distance: the same for every key", xlabel="distance, tokens", ylabel="nats", ylim=(-1, 1))
    return figures.set_alt_text(
        figure, f"{ENCODINGS[name].title}, as training starts, gives every key the same score at every distance."
    )


def kernel(name: str, options: dict[str, Any] | None = None) -> Figure:
    """Score by distance from the last query, one line a head, over the length trained at; and the weights they make."""
    colour = figures.FAMILY_COLOURS.get(ENCODINGS[name].family, "#666666")
    weights = attention(name, options)[:, -1, ::-1]
    relative = scores(name, options)[:, -1, ::-1]
    figure, axes = plt.subplots(2, 1, sharex=True, figsize=(figures.WIDTH, 5.4))
    said = []
    alike = len(different(relative.round(4))) == 1
    for head, (of_scores, of_weights) in enumerate(zip(relative, weights, strict=True)):
        if alike and head:
            break
        look: Any = {"color": colour, "lw": 1.6, "alpha": 1 - 0.18 * min(head, 4), "ls": ("-", "--", "-.", ":")[head % 4]}
        axes[0].plot(of_scores, label=f"head {head + 1}", **look)
        axes[1].plot(100 * of_weights, **look)
        near = float((of_weights * np.arange(len(of_weights))).sum())
        said.append(f"{'every head' if alike else f'head {head + 1}'} looks {near:.0f} tokens back on average")
    axes[0].set(title="Score by distance, nats")
    axes[1].set(title="Attention by distance, %", xlabel="distance from the query, tokens", ylim=(0, None))
    low, high = axes[0].get_ylim()
    axes[0].set_ylim(min(low, -0.5), max(high, 0.1))
    if not alike:
        figure.legend(
            *axes[0].get_legend_handles_labels(),
            loc="outside lower left",
            ncols=4,
            fontsize=10,
            columnspacing=1.0,
            handlelength=1.8,
        )
    about = f"Score and attention weight by distance, up to {SEQ_LEN} tokens, where all tokens are the same: "
    return figures.set_alt_text(figure, f"{about}{'; '.join(said)}.")


def rotations(name: str, options: dict[str, Any] | None = None) -> Figure | None:
    """The cosine of each dimension's turn by position; `None` where nothing turns."""
    cosines = rotation(name, options)
    if cosines is None or not (np.abs(cosines - 1) > 1e-6).any():
        return None
    turning = np.flatnonzero(np.abs(cosines - 1).max(axis=1) > 1e-6)
    figure, ax = plt.subplots(figsize=(figures.WIDTH, 3.4))
    shown = ax.imshow(cosines[turning], cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto", interpolation="nearest")
    ax.set(title="Turn of each dimension of a query", xlabel="position", ylabel="dimension of the head")
    every = max(1, -(-len(turning) // 16))
    ax.set_yticks(range(0, len(turning), every), [str(m) for m in turning[::every]])
    ax.grid(visible=False)
    figure.colorbar(shown, ax=ax, label="cosine of the angle")
    said = f"Cosine of the angle by which a query has turned, by dimension and position: {len(turning)} of {len(cosines)} turn."
    return figures.set_alt_text(figure, said)


def turning(name: str) -> str:
    """What the picture of rotations shows, for encodings that have one."""
    if not encodings.transforms_qk(name):
        return ""
    return (
        "Queries and keys are transformed by their own position before they meet. For each dimension of a head (top to bottom) "
        "and each position (left to right), the cosine of the angle by which a query lying along that dimension has turned. "
        "Fast dimensions distinguish nearby positions, slow ones distant positions; dimensions that never turn are left out."
    )


def facts(name: str) -> dict[str, str]:
    """What can be said about an encoding without training it."""
    cls, built = ENCODINGS[name], model(name)
    own = sum(parameter.numel() for parameter in built.encoding.parameters())
    hooks = [hook for hook in _HOOKS if getattr(cls, hook) is not getattr(Encoding, hook)]
    return {
        "family": cls.family,
        "paper": f"{cls.paper} ({cls.year})",
        "options": ", ".join(f"{key} = {value}" for key, value in _options(cls).items()) or "none",
        "what it changes": ", ".join(_HOOKS[hook] for hook in hooks) or "nothing",
        "learned numbers": f"{own:,} of {sum(p.numel() for p in built.parameters()):,} ({PRESET})",
        "shift-invariant": "yes" if cls.shift_invariant else "no: results change where all positions are shifted alike",
        f"{2 * SEQ_LEN} tokens after training at {SEQ_LEN}": _longer(name),
        "with latent attention": "keys need not be computed" if cls.absorbs else "keys have to be computed",
    }


_HOOKS = {
    "embed": "the embeddings",
    "transform_qk": "queries and keys",
    "bias": "the scores, by a bias",
    "token_state": "what is cached beside the keys",
    "scores": "the scores themselves",
    "attention_weights": "the weights",
    "for_layer": "with parts of its own in each layer",
}


def _options(cls: type[Encoding]) -> dict[str, Any]:
    return {key: _given(field.get_default(call_default_factory=True)) for key, field in cls.Options.model_fields.items()}


def _given(value: Any) -> Any:
    """An option as one would write it: parts of a mix as dictionaries of what is not as usual."""
    if isinstance(value, tuple):
        return [_given(part) for part in value]
    return value.model_dump(exclude_defaults=True) if isinstance(value, Strict) else value


def _longer(name: str) -> str:
    try:
        attention(name, tokens=2 * SEQ_LEN)
    except LabError as error:
        return f"refused: {error}"
    return "possible (whether it works is for the experiments to say)"


@cache
def words(name: str) -> dict[str, str]:
    """An encoding's docstring in parts (`docstrings.parts`)."""
    return docstrings.parts(inspect.getdoc(ENCODINGS[name]) or "")


def heading(name: str) -> str:
    """The page's title, what the encoding is in one sentence, its paper where its docstring names one, and the formula."""
    said = words(name)
    whose = f"{paper(name)} " if said["source"] else ""
    return "\n\n".join(
        [f"# {ENCODINGS[name].title}", said["sentence"], said["formula"], f'{whose}In code: `Experiment(encoding="{name}")`.']
    )


def paper(name: str) -> str:
    """The paper, cited where the bibliography has it, and a link where it is an arXiv number."""
    said = ENCODINGS[name].paper
    number = said.removeprefix("arXiv ")
    entries = re.findall(r"@\w+\{(\w+),[^@]*?eprint = \{([\d.]+)\}", (paths.ROOT / "book" / "references.bib").read_text())
    key = next((key for key, eprint in entries if eprint == number), None)
    if key:
        return f"Paper: {{cite:t}}`{key}`."
    return f"Paper: [{said}](https://arxiv.org/abs/{number}), {ENCODINGS[name].year}." if number != said else f"Paper: {said}."


# Methods that say how training starts and what tables call it: they stand in the whole file.
_ASIDE = {"__init__", "init_parameter", "label", "stands_in_for", "wavelengths"}


def code(name: str) -> str:
    """The formula, the methods that compute it, and the encoding's whole file, folded."""
    text = source(name)
    lines, cls = text.splitlines(), next(n for n in ast.parse(text).body if getattr(n, "name", "") == ENCODINGS[name].__name__)
    methods = [node for node in ast.iter_child_nodes(cls) if isinstance(node, ast.FunctionDef) and node.name not in _ASIDE]
    starts = [min([node.lineno, *(one.lineno for one in node.decorator_list)]) - 1 for node in methods]
    shown = "\n\n".join("\n".join(lines[start : node.end_lineno]) for start, node in zip(starts, methods, strict=True))
    said = re.findall(r"```{math}.*?```", words(name)["formula"], re.DOTALL)
    said += [f"```python\n{textwrap.dedent(shown)}\n```"] if shown else []
    return "\n\n".join(["## Code", *said, _folded(f"pe_core/encodings/{name}.py", f"```python\n{text}\n```")])


def source(name: str) -> str:
    """The encoding's file."""
    return inspect.getsource(sys.modules[ENCODINGS[name].__module__]).rstrip()


def notes(name: str) -> str:
    """What else there is to know, folded: notes, options, what it refuses, facts of the class."""
    said = words(name)
    listed = "\n".join(f"- {what}: {docstrings.linked(value)}" for what, value in facts(name).items())
    parts = {
        "Notes on this implementation": said["notes"] and f"{said['notes']}\n\n{said['source']}",
        "Options": said["Options"],
        "What it refuses": said["Raises"],
        "Facts": listed,
    }
    return "\n\n".join(["## Details", *(_folded(title, text) for title, text in parts.items() if text)])


def _folded(title: str, text: str) -> str:
    return f":::{{dropdown}} {title}\n\n{text}\n\n:::"
