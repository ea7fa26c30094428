"""The playground shows what the classes compute, for every encoding, and the primer's examples are what they say."""

import base64
import json
import re

import numpy as np
import pytest

from pe_core.encodings import ENCODINGS
from pe_core.site import encoding_page, playground, primer


def unpacked(text, setting):
    values = np.frombuffer(base64.b64decode(text), np.int8).reshape(setting["heads"], -1)
    return np.where(values == playground._NOTHING, np.nan, values * setting["scale"] / 127)


def test_every_encoding_has_its_playground_unasked(encoding):
    found = playground.data(encoding)
    chosen = [option["values"][option["default"]] for option in found["options"]]
    assert len(chosen) == len(found["options"])
    usual = found["settings"][",".join(str(option["default"]) for option in found["options"])]
    scores = encoding_page.scores(encoding, tokens=playground.DISTANCES, small=True)
    heads = {tuple(np.nan_to_num(head[-1, ::-1], nan=-1e9).round(4)) for head in scores}
    assert usual["heads"] >= len(heads)
    shown = unpacked(usual["curve"], usual)
    for head in scores[:, -1, ::-1]:
        near = np.nanmin(np.nanmax(np.abs(shown - head), axis=1, initial=0))
        assert near <= usual["scale"] / 127, "within the rounding of a byte"
    assert len(json.dumps(found)) < 100_000
    assert 1 <= len(found["settings"]) <= playground.MOST


def test_options_are_chosen_about_their_defaults():
    options = {option["name"]: option["values"] for option in playground.data("rope")["options"]}
    assert options["rotary_pct"] == ["0.125", "0.25", "0.5", "1"]
    assert "10000" in options["base"]
    assert playground.data("alibi")["options"][0]["values"][:2] == ["per-head", "1"]
    assert playground.playable("rope")
    assert not playground.playable("none")
    assert "### Try its options" in playground.heading("rope")
    assert "#" not in playground.heading("none")


def test_a_turn_of_the_slider_is_another_picture():
    settings = playground.data("rope")["settings"]
    assert len({one["curve"] for one in settings.values()}) == len(settings)


def test_where_not_distance_alone_decides_the_triangle_is_there():
    [_, setting], *_ = playground.data("sinusoidal")["settings"].items()
    size = playground.TRIANGLE
    assert unpacked(setting["triangle"], setting).shape == (setting["heads"], size * (size + 1) // 2)
    assert "triangle" not in next(iter(playground.data("alibi")["settings"].values()))


def test_its_data_cannot_leave_its_script():
    page = playground.place(list(ENCODINGS), ["rope", "alibi"])
    [data] = re.findall(r'<script type="application/json">(.*)</script>', page)
    assert "<" not in data
    assert {one["name"] for one in json.loads(data)} == set(ENCODINGS)


def test_one_layer_without_position_encoding_does_not_see_order():
    table = primer.same_words_in_another_order()
    assert table.loc["NoPE", "one layer"] == "0.0 %"
    others = table.drop(index="NoPE")["one layer"].str.rstrip(" %").astype(float)
    assert (others > 0.5).all()
    assert (table["4 layers"].str.rstrip(" %").astype(float) > 1).all(), "the causal mask tells them apart"


@pytest.mark.parametrize("name", list(primer.FAMILIES))
def test_its_families_are_encodings_of_their_own_families(name):
    assert len({ENCODINGS[one].family for one in primer.FAMILIES}) == len(primer.FAMILIES)
    assert ENCODINGS[name].Options(**primer.FAMILIES[name])


def test_without_records_nothing_is_claimed():
    assert primer.perplexity({}, "RoPE 100 %") == ""
