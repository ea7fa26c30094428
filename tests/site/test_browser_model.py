"""Models on a page compute what PyTorch does, with the same rounded weights and the same tokens."""

import json
import shutil
import subprocess

import pytest
import torch
from helpers import ROOT, small, tiny_model

from pe_core import ENCODINGS, records, runner
from pe_core.errors import ConfigError
from pe_core.site import browser_model
from pe_core.site.browser_model import packed, unpacked

NODE = shutil.which("node")
TEXTS = [
    "The President said that the people of this country",
    "naïve café 🙂 don't we'll I'm  two  spaces\n\n\tdef f(x):\n    return x\u00a0y\u2003z 1234 ½ ...",
    "\n", " ", "", "日本語 текст\r\nend  ", "x\x85y \ufeffz\x1cq 'S 'LL",
]  # fmt: skip
POSITIONS = [0, 1, 2, 3, 300, 301, 302, 1000]

_SCRIPT = """
const fs = require("fs"), [folder, asked] = process.argv.slice(2), given = JSON.parse(fs.readFileSync(asked, "utf8"));
(0, eval)(fs.readFileSync(given.reader, "utf8"));
const load = (name) => { (0, eval)(fs.readFileSync(`${folder}/${name}.mjs`, "utf8")); return lab.models.last; };
const tokenizer = load("tokenizer"), found = { ids: given.texts.map((text) => tokenizer.encode(text)), models: {} };
found.back = found.ids.map((ids) => tokenizer.decode(ids));
for (const name of given.names) {
  const read = load(name).read(given.ids, given.positions), last = read[read.length - 1].attention;
  found.models[name] = { logits: read.map((one) => Array.from(one.logits)), attention: last };
}
console.log(JSON.stringify(found));
"""


@pytest.fixture(scope="module")
def exported(library, tmp_path_factory):
    """Three runs, exported, and their records."""
    folder = tmp_path_factory.mktemp("runs")
    chosen = {"rope": {"rotary_pct": 0.5}, "none": {}, "alibi": {}}
    trained = {name: runner.run(small(library, encoding=name, options=options), folder) for name, options in chosen.items()}
    for record in trained.values():
        browser_model.export(record, folder / "models")
    return folder / "models", trained


def rounded(record):
    """The model with the weights that the page has."""
    model = record.model().eval().float()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("encoding."):
                parameter.copy_(unpacked(packed(parameter)))
    return model


@pytest.mark.skipif(not NODE, reason="no Node.js here")
def test_the_page_computes_what_pytorch_does(exported, tmp_path):
    folder, trained = exported
    ids = torch.randint(200, (1, len(POSITIONS)), generator=torch.Generator().manual_seed(0))
    asked = {"reader": str(ROOT / "book/_static/reader.js"), "texts": TEXTS, "names": list(trained)}
    (tmp_path / "asked.json").write_text(json.dumps(asked | {"ids": ids[0].tolist(), "positions": POSITIONS}))
    (tmp_path / "script.js").write_text(_SCRIPT)
    command = [NODE, str(tmp_path / "script.js"), str(folder), str(tmp_path / "asked.json")]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    tokenizer = next(iter(trained.values())).tokenizer().backend_tokenizer
    assert found["ids"] == [tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS]
    assert found["back"] == TEXTS
    for name, record in trained.items():
        with torch.no_grad():
            expected = rounded(record)(ids, position_ids=torch.tensor([POSITIONS]), output_attentions=True, use_cache=False)
        logits = torch.tensor(found["models"][name]["logits"])
        torch.testing.assert_close(logits, expected.logits[0], atol=1e-4, rtol=1e-4)
        last = torch.stack([layer[0, :, -1] for layer in expected.attentions])
        torch.testing.assert_close(torch.tensor(found["models"][name]["attention"]), last, atol=1e-5, rtol=1e-4)


def possible(name):
    try:
        return bool(browser_model.position(tiny_model(name)))
    except ConfigError:
        return False


def test_an_encoding_is_exported_as_it_is_or_refused(encoding):
    """For every encoding: the exported angles and biases give its own scores, or one line says why it has none."""
    model = tiny_model(encoding, attention="eager")
    if not possible(encoding):
        with pytest.raises(ConfigError, match=r"^.* not computed in the browser.*$"):
            browser_model.position(model)
        return
    found = browser_model.position(model)
    H, K, T = 4, 16, len(POSITIONS)
    q, k = torch.randn(2, 1, H, T, K, generator=torch.Generator().manual_seed(1))
    at = torch.tensor([POSITIONS])
    hooks = model.encoding
    turned_q, turned_k = hooks.transform_qk(q, k, at, torch.zeros(1, T, H * K))
    bias = hooks.bias(turned_q, turned_k, at, at, None)
    expected = turned_q @ turned_k.mT / K**0.5 + (0 if bias is None else bias)
    pairs = torch.tensor(found["frequencies"] or [])
    cos, sin = (wave(at[0, :, None] * pairs) for wave in (torch.cos, torch.sin))
    half = len(pairs)

    def turn(x):
        first, second = x[..., :half], x[..., half : 2 * half]
        return torch.cat((first * cos - second * sin, second * cos + first * sin, x[..., 2 * half :]), -1)

    scores = turn(q) @ turn(k).mT / K**0.5
    if found["bias"]:
        by_distance = browser_model._numbers(found["bias"], torch.float32).view(H, found["distances"])
        scores = scores + by_distance[:, (at[0, :, None] - at[0]).clamp(min=0)]
    seen = torch.ones(T, T).tril().bool()
    torch.testing.assert_close(scores[..., seen], expected.expand_as(scores)[..., seen], atol=1e-3, rtol=1e-3)


def test_some_are_exported():
    assert {"none", "rope", "alibi", "t5", "kerple"} <= {name for name in ENCODINGS if possible(name)}


def test_weights_are_rounded_to_a_byte_of_their_row():
    value = torch.randn(7, 33, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 1, 7)[:, None]
    error = (unpacked(packed(value)) - value).abs().amax(1)
    assert (error <= value.abs().amax(1) / 254 + 1e-9).all()
    assert torch.equal(unpacked(packed(value[0])), value[0])


def test_the_published_models_are_published_runs():
    """Every number the page says stands in a published record, and each model is there."""
    known = {record.run: record for record in records.load_study(ROOT / "book/records/ranking")}
    models = browser_model.about()
    for model in models:
        record = known[model["run"]]
        assert model["label"] == record.label
        assert model["perplexity"] == pytest.approx(record.metrics["perplexity"]["value"], rel=2e-3)
        assert model["tokens"] == record.experiment.samples * record.experiment.seq_len
        file = browser_model.FOLDER / f"{model['name']}.mjs"
        assert file.stat().st_size == model["bytes"] < 3_000_000
        assert f'"run":"{model["run"]}"' in file.read_text()[:400]
    assert f"{models[0]['perplexity']:.1f}" in browser_model.scale(models)
    assert browser_model.place(models).count("<script") == 1


def test_it_is_a_command(exported, tmp_path, monkeypatch, capsys):
    folder, trained = exported
    runs = [str(record.folder) for record in trained.values()]
    monkeypatch.setattr("sys.argv", ["browser_model", *runs, "--target", str(tmp_path)])
    browser_model.main()
    assert [model["name"] for model in browser_model.about(tmp_path)] == list(trained)
    assert capsys.readouterr().out.count("MB") == 3
    assert (tmp_path / "rope.mjs").read_bytes() == (folder / "rope.mjs").read_bytes()
