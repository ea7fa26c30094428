"""Look at encodings and trained models by hand, in Jupyter: `notebooks/explore.ipynb` shows these controls."""

from __future__ import annotations

import json
from typing import Any, get_args

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from pydantic.fields import FieldInfo

from pe_core import records
from pe_core.config import PRESETS
from pe_core.encodings import ENCODINGS
from pe_core.errors import ConfigError, LabError, RecordError, unknown
from pe_core.records import Record
from pe_core.report import figures
from pe_core.site import encoding_page

PICTURES = {
    "scores by query and key": encoding_page.picture,
    "scores by distance": encoding_page.kernel,
    "rotation": encoding_page.rotations,
}


def option(field: FieldInfo, text: str) -> Any:
    """The value that text in a box stands for: a number, a word, a list. Raises ConfigError where it is neither."""
    text = text.strip()
    if text in get_words(field) or text == "None":
        return None if text == "None" else text
    try:
        return json.loads(text)
    except ValueError:
        raise ConfigError(f"'{text}' is neither a number nor one of {', '.join(get_words(field)) or 'no words'}") from None


def get_words(field: FieldInfo) -> list[str]:
    """The words an option may be, where it is one of some words."""
    nested = [field.annotation, *get_args(field.annotation)]
    return [word for kind in nested for word in get_args(kind) if isinstance(word, str)]


def drawn(encoding: str, texts: dict[str, str], picture: str) -> Figure | None:
    """A picture of an encoding with options as typed. Raises LabError."""
    fields = ENCODINGS[encoding].Options.model_fields
    return PICTURES[picture](encoding, {name: option(fields[name], text) for name, text in texts.items()})


def written(name: str, encoding: str) -> str:
    """An option's default as it would be typed."""
    value = ENCODINGS[encoding].Options.model_fields[name].get_default(call_default_factory=True)
    if isinstance(value, tuple):
        return json.dumps([part.model_dump() if hasattr(part, "model_dump") else part for part in value])
    return value if isinstance(value, str) else "None" if value is None else json.dumps(value)


def limits(field: FieldInfo) -> tuple[float, float] | None:
    """The least and the greatest value of an option that is a number within limits near enough for a slider, else `None`."""
    ends = {
        end: float(value)
        for m in field.metadata
        for end in ("ge", "gt", "le", "lt")
        if (value := getattr(m, end, None)) is not None
    }
    low, high = ends.get("ge", ends.get("gt")), ends.get("le", ends.get("lt"))
    if field.annotation not in (int, float) or low is None or high is None or high - low > 5_000:
        return None
    step = 1 if field.annotation is int else (high - low) / 100
    return low + step * ("ge" not in ends), high - step * ("le" not in ends)


def choices(name: str, encoding: str, low: float, high: float) -> list[Any]:
    """Values of an option from `low` to `high`, some hundred or all whole ones, that the encoding takes beside its defaults."""
    field = ENCODINGS[encoding].Options.model_fields[name]
    whole = field.annotation is int
    values = {round(value) if whole else float(f"{value:.6g}") for value in np.linspace(low, high, 101)} | {field.get_default()}
    if not whole and high - low <= 1:  # a share of dimensions has to be a whole number of them
        values |= {n / 32 for n in range(33) if low <= n / 32 <= high}
    if whole and high - low <= 512:
        values |= set(range(int(low), int(high) + 1))
    return [value for value in sorted(values) if encoding_page.takes(encoding, {name: value})]


def control(name: str, encoding: str) -> Any:
    """What sets an option: a slider over values it may have where it is a number within limits, else a box to type in."""
    import ipywidgets as widgets

    field = ENCODINGS[encoding].Options.model_fields[name]
    look: Any = {"description": name, "continuous_update": False, "style": {"description_width": "initial"}}
    if (ends := limits(field)) is None:
        return widgets.Text(written(name, encoding), **look)
    options = [(f"{value:g}", value) for value in choices(name, encoding, *ends)]
    return widgets.SelectionSlider(options=options, value=field.get_default(), **look)


def encodings_panel() -> Any:
    """Choose an encoding, its options and a picture; it is drawn anew at every change."""
    import ipywidgets as widgets  # type: ignore[import-untyped,unused-ignore]

    chosen = widgets.Dropdown(options=[(ENCODINGS[name].title, name) for name in ENCODINGS], description="encoding")
    picture = widgets.Dropdown(options=list(PICTURES), description="picture")
    boxes, shown = widgets.VBox(), widgets.Output()

    def draw(*_: Any) -> None:
        with shown:
            shown.clear_output(wait=True)
            try:
                texts = {box.description: box.value for box in boxes.children}
                texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in texts.items()}
                figure = drawn(chosen.value, texts, picture.value)
                plt.show() if figure else print("Queries and keys are not turned.")
            except LabError as error:
                print(f"{type(error).__name__}: {error}")

    def rebuild(*_: Any) -> None:
        names = ENCODINGS[chosen.value].Options.model_fields
        boxes.children = [control(name, chosen.value) for name in names]
        for box in boxes.children:
            box.observe(draw, "value")
        draw()

    chosen.observe(rebuild, "value")
    picture.observe(draw, "value")
    rebuild()
    return widgets.VBox([widgets.HBox([chosen, picture]), boxes, shown])


def trained(runs_dir: str | None = None) -> dict[str, Record]:
    """Runs whose weights are kept, by what tells them apart. The published records have none: weights are not in git."""
    found = [record for record in records.load_all(runs_dir) if record.has_weights]
    return {f"{record.label}, seed {record.config['seed']} ({record.run})": record for record in found}


class Reader:
    """A trained run, ready to read text.

    Args:
        record: a finished run whose weights are kept.

    Raises:
        RecordError: the weights are gone.
    """

    def __init__(self, record: Record) -> None:
        if not record.has_weights:
            raise RecordError(f"run {record.run}: its weights are not kept, train it again with fresh=True")
        self.tokenizer, self.model = record.tokenizer(), record.model()
        self.model.set_attn_implementation("eager")
        self.longest = int(record.config["seq_len"])

    @torch.no_grad()
    def read(self, text: str) -> tuple[list[str], np.ndarray[Any, Any], pd.DataFrame]:
        """The text's tokens, attention weights (layers, H, T, T), and the ten likeliest next tokens.

        Of a longer text than the model was trained at, the end is read. Raises ConfigError for no text.
        """
        ids = self.tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids[:, -self.longest :]
        if not ids.numel():
            raise ConfigError("text='': at least one token is needed")
        output = self.model(ids, output_attentions=True, use_cache=False)
        top = output.logits[0, -1].float().softmax(-1).topk(10)
        likely = pd.DataFrame(
            {"next": [repr(self.tokenizer.decode([token])) for token in top.indices.tolist()], "%": (100 * top.values).tolist()}
        )
        tokens = [self.tokenizer.decode([token]) for token in ids[0].tolist()]
        return tokens, torch.stack([weights[0] for weights in output.attentions]).float().numpy(), likely


def attention_map(tokens: list[str], weights: np.ndarray[Any, Any], layer: int) -> Figure:
    """Who looks at whom in one layer, one panel a head.

    Raises:
        ConfigError: a layer the model does not have.
    """
    if not 0 <= layer < len(weights):
        raise ConfigError(unknown("layer", layer, map(str, range(len(weights)))))
    heads = weights[layer]
    rows = -(-len(heads) // 2)
    figure, axes = plt.subplots(rows, 2, squeeze=False, figsize=(2 * figures.WIDTH, 4.6 * rows))
    ticks = range(0, len(tokens), -(-len(tokens) // 32))
    for ax in axes.flat[len(heads) :]:
        ax.remove()
    for head, (ax, shown) in enumerate(zip(axes.flat, heads, strict=False)):
        ax.imshow(shown, cmap="Blues", vmin=0, vmax=1)
        ax.set(title=f"layer {layer}, head {head}: rows look at columns")
        ax.set_xticks(ticks, [tokens[n] for n in ticks], rotation=90, fontsize=8)
        ax.set_yticks(ticks, [tokens[n] for n in ticks], fontsize=8)
        ax.grid(visible=False)
    nearest = [float((shown * np.subtract.outer(range(len(tokens)), range(len(tokens)))).sum(1).mean()) for shown in heads]
    said = "; ".join(f"head {head} looks {distance:.1f} tokens back on average" for head, distance in enumerate(nearest))
    return figures.set_alt_text(figure, f"Attention in layer {layer} over {len(tokens)} tokens: {said}.")


def models_panel(runs_dir: str | None = None) -> Any:
    """Choose one or two trained runs and write: what attends to what, what is likely to come next, and how each goes on."""
    import ipywidgets as widgets
    from IPython.display import display

    found = trained(runs_dir)
    if not found:
        return widgets.HTML("No run with weights here yet: <code>make nope SAMPLES=1000</code> makes two in a few minutes.")
    wide: Any = {"layout": {"width": "max-content"}}
    chosen = [widgets.Dropdown(options=list(found), description="run", **wide)]
    chosen.append(widgets.Dropdown(options=["none", *found], value="none", description="beside it", **wide))
    text = widgets.Textarea("Returns a list of the", description="text", continuous_update=False)
    layer = widgets.IntSlider(
        0, 0, max(preset.layers for preset in PRESETS.values()) - 1, description="layer", continuous_update=False
    )
    tokens = widgets.IntSlider(32, 1, 256, description="tokens", continuous_update=False)
    temperature = widgets.FloatSlider(0.8, min=0, max=2, step=0.1, description="temperature", continuous_update=False)
    go_on = widgets.Button(description="Continue the text")
    shown, readers = [widgets.Output(layout={"width": "50%"}) for _ in chosen], dict[str, Reader]()

    def each(see: Any) -> None:
        for run, output in zip(chosen, shown, strict=True):
            with output:
                output.clear_output(wait=True)
                try:
                    if run.value in found:
                        see(run.value)
                except LabError as error:
                    print(f"{type(error).__name__}: {error}")

    def draw(run: str) -> None:
        if run not in readers:
            readers[run] = Reader(found[run])
        reader = readers[run]
        read, weights, likely = reader.read(text.value)
        display(likely.style.hide().format(precision=1, escape="html"))
        attention_map(read, weights, min(layer.value, len(weights) - 1))
        plt.show()

    def generate(run: str) -> None:
        print(found[run].generate(text.value, tokens.value, temperature.value))

    for setting in (*chosen, text, layer):
        setting.observe(lambda _: each(draw), "value")
    go_on.on_click(lambda _: each(generate))
    each(draw)
    return widgets.VBox([widgets.HBox(chosen), text, layer, widgets.HBox([go_on, tokens, temperature]), widgets.HBox(shown)])
