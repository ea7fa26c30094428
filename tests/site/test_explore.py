"""Looking by hand: options as typed, pictures, and a trained run that reads text."""

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import pytest
from helpers import made
from transformers import PreTrainedTokenizerFast

from pe_core import ENCODINGS, records
from pe_core.errors import ConfigError, RecordError
from pe_core.report import figures
from pe_core.site import encoding_page, widgets


@pytest.fixture(autouse=True)
def no_figures_left():
    yield
    plt.close("all")


def test_defaults_as_typed_are_the_defaults(encoding):
    fields = ENCODINGS[encoding].Options.model_fields
    typed = {name: widgets.option(field, widgets.written(name, encoding)) for name, field in fields.items()}
    assert ENCODINGS[encoding].Options(**typed) == ENCODINGS[encoding].Options()


def test_options_are_numbers_or_words():
    slope = ENCODINGS["alibi"].Options.model_fields["slope"]
    assert widgets.option(slope, " 0.5 ") == 0.5
    assert widgets.option(slope, "per-head") == "per-head"
    with pytest.raises(ConfigError, match=r"^'steep' is neither a number nor one of per-head$"):
        widgets.option(slope, "steep")


def test_a_picture_follows_the_options():
    first, second = (figures.describe(widgets.drawn("alibi", {"slope": s}, "scores by query and key")) for s in ("0.5", "1.0"))
    assert "every head -31.50" in first
    assert "every head -63.00" in second
    assert widgets.drawn("alibi", {}, "rotation") is None


def test_the_panel_redraws_and_says_what_is_wrong():
    panel = widgets.encodings_panel()
    (chosen, picture), boxes, shown = panel.children[0].children, panel.children[1], panel.children[2]
    chosen.value = "rope"
    assert [box.description for box in boxes.children] == ["rotary_pct", "base"]
    assert isinstance(boxes.children[0], ipywidgets.SelectionSlider)
    boxes.children[0].value = 0.5
    boxes.children[1].value = "much"
    picture.value = "rotation"
    assert isinstance(shown, ipywidgets.Output)


@pytest.fixture
def run(tmp_path, tiny):
    """A finished run with weights and a tokenizer of single characters."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    record = made(tmp_path / "runs" / "rope-1", "rope", "RoPE")
    record.config["seq_len"] = 16
    record.save(record.folder)
    tiny("rope").save_pretrained(record.folder / records.MODEL)
    characters = Tokenizer(models.BPE({chr(n): n - 32 for n in range(32, 127)}, []))
    characters.pre_tokenizer, characters.decoder = pre_tokenizers.Split("", "isolated"), decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=characters).save_pretrained(record.folder / records.MODEL)
    return records.load(record.folder)


def test_a_trained_run_reads_text(run, tmp_path):
    assert list(widgets.trained(tmp_path / "runs")) == ["RoPE 25 %, seed 42 (rope-1)"]
    reader = widgets.Reader(run)
    tokens, weights, likely = reader.read("hello")
    assert "".join(tokens) == "hello"
    assert weights.shape == (2, 4, 5, 5)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    assert len(likely) == 10
    assert likely["%"].is_monotonic_decreasing
    assert len(reader.read("x" * 40)[0]) == 16
    with pytest.raises(ConfigError, match="at least one token"):
        reader.read("")
    assert "head 3 looks" in figures.describe(widgets.attention_map(tokens, weights, 1))
    with pytest.raises(ConfigError, match="unknown layer '2'"):
        widgets.attention_map(tokens, weights, 2)


def test_two_runs_side_by_side_read_and_go_on(run, tmp_path, monkeypatch):
    heard = []
    monkeypatch.setattr(records.Record, "generate", lambda record, *given: heard.append((record.run, *given)) or "")
    panel = widgets.models_panel(tmp_path / "runs")
    runs, text, layer, going_on, outputs = panel.children
    (first, second), (go_on, tokens, temperature) = runs.children, going_on.children
    assert len(outputs.children) == 2
    assert second.value == "none"
    text.value, tokens.value, temperature.value = "abc", 7, 0.0
    go_on.click()
    assert heard == [("rope-1", "abc", 7, 0.0)]
    second.value = first.value
    layer.value = 1
    go_on.click()
    assert len(heard) == 3


def test_sliders_are_for_numbers_within_limits():
    fields = {name: cls.Options.model_fields for name, cls in ENCODINGS.items()}
    assert widgets.limits(fields["rope"]["rotary_pct"]) == (0, 1)
    assert widgets.limits(fields["rope"]["base"]) is None
    assert widgets.limits(fields["window"]["size"]) is None
    low, high = widgets.limits(fields["tapa"]["amplitude"])
    assert 0 < low < 0.1 < 0.9 < high < 1
    assert isinstance(widgets.control("buckets", "t5"), ipywidgets.SelectionSlider)


def test_every_place_of_a_slider_is_a_value_the_encoding_takes(encoding):
    for name, field in ENCODINGS[encoding].Options.model_fields.items():
        if isinstance(slider := widgets.control(name, encoding), ipywidgets.SelectionSlider):
            assert len(slider.options) > 1, name
            assert slider.value == field.get_default()
            for _, value in [slider.options[0], slider.options[len(slider.options) // 3], slider.options[-1]]:
                encoding_page.model(encoding, {name: value}, small=True)


def test_a_model_is_read_once(run, tmp_path, monkeypatch):
    read = []
    opened = widgets.Reader.__init__
    monkeypatch.setattr(widgets.Reader, "__init__", lambda self, record: (read.append(record.run), opened(self, record))[1])
    layer = widgets.models_panel(tmp_path / "runs").children[2]
    layer.value = 1
    assert read == ["rope-1"]


def test_without_weights_it_says_so(tmp_path):
    record = made(tmp_path / "runs" / "rope-1", "rope", "RoPE")
    assert not widgets.trained(tmp_path / "runs")
    with pytest.raises(RecordError, match="weights are not kept"):
        widgets.Reader(record)
    assert "No run with weights here yet" in widgets.models_panel(tmp_path / "runs").value
