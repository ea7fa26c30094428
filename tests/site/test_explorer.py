"""The results explorer: what it holds is what the comparisons say, and addresses and downloads are what is shown."""

import csv
import io
import json
import re
import shutil
import subprocess
import zipfile
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from helpers import ROOT, made

from pe_core import comparison, metrics, paths
from pe_core.report import figures
from pe_core.site import downloads, explorer, index

NODE = shutil.which("node")
RUNS = (("rope", "RoPE 100 %", 0.0), ("none", "NoPE", 0.3), ("alibi", "ALiBi per head", -0.05), ("t5", "T5 bias", 0.1),
        ("fox", "FoX", -0.1), ("cope", "CoPE", -0.02), ("learned", "Learned", 0.2))  # fmt: skip


def trained(folder, windows=360, runs=RUNS, seeds=(1, 2, 3)):
    """Models of several seeds; FoX is best."""
    found = []
    for nth, (name, label, shift) in enumerate(runs):
        for seed in seeds:
            luck = 0.005 * seed * (nth % 3)
            record = made(folder / f"{name}-{windows}-{seed}", name, label, seed, shift + luck, noise=0.1)
            record.history[0]["val_loss"] += shift + luck
            record.config["samples"] = record.data["windows"]["train"] = windows
            found.append(record)
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explorer")
    return [*trained(folder), *trained(folder, 720, RUNS[:4])]


@pytest.fixture(scope="module")
def data(found):
    [text] = re.findall(r'id="explorer-data">(.*)</script>$', explorer.place(found), re.DOTALL)
    return json.loads(text)


# What it holds


def test_it_begins_with_the_baseline_nope_and_the_best_of_other_families(data):
    first = data["settings"][0]["first"]
    assert first[:2] == ["RoPE 100 %", "NoPE"]
    assert first[2:] == ["FoX", "ALiBi per head", "Learned"], "CoPE is content as FoX is, T5 bias as ALiBi is"
    assert data["settings"][1]["first"] == ["RoPE 100 %", "NoPE", "ALiBi per head", "T5 bias"]


def test_where_families_are_few_the_best_of_the_rest_follow(found):
    groups = {label: group for label, group in comparison.groups(found[:21]).items() if label != "Learned"}
    assert explorer.first_models(groups, "RoPE 100 %") == ["RoPE 100 %", "NoPE", "FoX", "ALiBi per head", "CoPE"]


def test_differences_are_those_of_the_comparison(data, found):
    judged = comparison.frame(comparison.groups(found[:21]), "RoPE 100 %").set_index("label")
    for model in data["settings"][0]["models"]:
        row = judged.loc[model["label"]]
        if model["label"] == data["baseline"]:
            assert model["percent"] is None
            continue
        np.testing.assert_allclose(model["percent"], [row.percent, row.low, row.high], rtol=1e-4)
        assert model["differs"] == row.differs


def test_every_place_has_its_interval(data):
    for model in data["settings"][0]["models"]:
        ends = [model["perplexity"], model["bits"], *(row[3:6] for row in model["positions"])]
        if model["label"] != data["baseline"]:
            ends += [model["percent"], *(row[6:9] for row in model["positions"]), *(row[4:7] for row in model["epochs"])]
        ends += [row[1:4] for row in model["epochs"]]
        for value, low, high in ends:
            assert low <= value <= high


def test_one_range_of_all_positions_is_the_whole(found):
    groups = comparison.groups(found[:21])
    T = found[0].heldout.tokens.shape[1]
    rows = explorer.differences_at(groups, "NoPE", 0, T)
    judged = comparison.verdicts(groups)
    judged = judged[judged.b == "NoPE"].set_index("a")
    assert len(rows) == len(groups) - 1
    for label, percent in rows.items():
        row = judged.loc[label]
        np.testing.assert_allclose(percent, [row.percent, row.low, row.high])


def test_one_range_of_some_positions_is_that_part_alone(found):
    a, b = found[3], found[0]  # NoPE and RoPE of one seed
    [(percent, low, high)] = explorer.differences_at({"a": [a], "b": [b]}, "b", 0, 3).values()
    part = (record.heldout.positions(0, 3) for record in (a, b))
    ratio = np.divide(*(metrics.perplexity(one).value for one in part))
    assert percent == pytest.approx(100 * (ratio - 1))
    assert low < percent < high


def test_a_setting_is_found_again_when_others_are_added(data, found):
    alone = json.loads(re.findall(r'id="explorer-data">(.*)</script>$', explorer.place(found[21:]), re.DOTALL)[0])
    assert alone["settings"][0]["id"] == data["settings"][1]["id"]
    assert len({one["id"] for one in data["settings"]}) == 2
    assert len({one["series"] for one in data["settings"]}) == 1, "they differ in the amount of text alone"


def test_settings_on_record_have_ids_of_their_own():
    groups = comparison.settings(index.published())
    ids = [explorer._digest({**explorer._changed(g[0]), "fingerprint": g[0].data["fingerprint"]}) for g in groups]
    assert not [one for one, times in Counter(ids).items() if times > 1]


def test_a_family_is_one_colour_and_its_members_stay_apart(data):
    for model in data["settings"][0]["models"]:
        assert model["colour"] == figures.FAMILY_COLOURS[model["family"]] == data["families"][model["family"]]
    frame = pd.DataFrame({"label": [f"R{n}" for n in range(32)], "family": "rotary"})
    marks, styles = figures.marks(frame), figures.styles(frame)
    assert len({(marks[label], styles[label]["linestyle"]) for label in frame.label}) == 32


# Addresses and downloads, as the page's script makes them

SCRIPT = """
globalThis.document = { readyState: "loading", addEventListener() {} };
const fs = require("fs"), [folder, asked] = process.argv.slice(2), given = JSON.parse(fs.readFileSync(asked, "utf8"));
const scripts = ["lab", "explorer"].map((name) => fs.readFileSync(`${folder}/${name}.js`, "utf8"));
(0, eval)(scripts.concat("globalThis.lab = lab;").join("\\n"));
const { fromAddress, toAddress, rows, csv, json } = lab.explorer;
console.log(JSON.stringify(given.hashes.map((hash) => {
  const { state, missing } = fromAddress(hash, given.data);
  return { ...state, models: [...state.models], missing, address: toAddress(given.data, state), rows: rows(given.data, state),
    csv: csv(rows(given.data, state)), json: json(given.data, state) };
})));
"""


@pytest.fixture(scope="module")
def page(data, tmp_path_factory):
    """What the page's script makes of addresses."""
    if NODE is None:
        pytest.skip("no node here")
    folder = tmp_path_factory.mktemp("node")
    (folder / "script.js").write_text(SCRIPT)

    def open_at(*hashes):
        (folder / "given.json").write_text(json.dumps({"data": data, "hashes": hashes}))
        command = [NODE, folder / "script.js", ROOT / "book/_static", folder / "given.json"]
        return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    return open_at


def test_an_address_brings_back_what_was_shown(page, data):
    other = data["settings"][1]["id"]
    [shown] = page(f"#setting={other}&measure=bits&view=position&model=NoPE&model=RoPE+100+%25")
    assert (shown["setting"], shown["measure"], shown["view"]) == (other, "bits", "position")
    assert set(shown["models"]) == {"NoPE", "RoPE 100 %"}
    [again] = page(shown["address"])
    assert {**again, "models": sorted(again["models"])} == {**shown, "models": sorted(shown["models"])}


def test_all_and_none_are_said_shortly(page):
    every, nothing = page("#models=all&view=overall", "#models=none")
    assert len(every["models"]) == 7
    assert every["address"].endswith("&models=all")
    assert nothing["rows"] == []
    assert nothing["address"].endswith("&models=none")


def test_what_is_not_on_record_is_said_and_left_out(page, data):
    gone, damaged, heading = page("#setting=0000&model=NoPE&model=Nobody", "#measure=__proto__&view=toString&%", "#every-run")
    assert gone["missing"] == ["setting 0000", "Nobody"]
    assert gone["models"] == ["NoPE"]
    for one in (damaged, heading):
        assert (one["measure"], one["view"], one["missing"]) == ("percent", "overall", [])
        assert one["models"] == data["settings"][0]["first"]


def test_downloads_hold_what_is_shown(page, data):
    for measure in ("percent", "perplexity", "bits"):
        for view in ("overall", "position", "training"):
            [shown] = page(f"#measure={measure}&view={view}&models=all")
            table = list(csv.DictReader(io.StringIO(shown["csv"])))
            assert [row["model"] for row in table] == [row["model"] for row in shown["rows"]]
            assert {row["model"] for row in table} == {model["label"] for model in data["settings"][0]["models"]}
            said = json.loads(shown["json"])
            assert said["rows"] == shown["rows"]
            assert said["address"] == shown["address"]
            for row in table:
                if measure != "percent" or row["model"] != data["baseline"]:
                    assert float(row["low"]) <= float(row["value"]) <= float(row["high"])
                else:
                    assert (row["value"], row["low"], row["high"]) == ("0", "", "")


def test_values_are_the_records(page, data):
    [shown] = page("#measure=percent&view=training&model=NoPE")
    assert [row["from"] for row in shown["rows"]] == [one["tokens"] for one in data["settings"]]
    stored = [m["percent"] for one in data["settings"] for m in one["models"] if m["label"] == "NoPE"]
    assert [[row["value"], row["low"], row["high"]] for row in shown["rows"]] == stored
    [shown] = page("#measure=bits&view=position&model=NoPE")
    for row, (start, end, size, p, *_) in zip(shown["rows"], data["settings"][0]["models"][1]["positions"], strict=True):
        assert (row["from"], row["to"]) == (start, end - 1)
        assert row["value"] == pytest.approx(np.log2(p) / size)


# Records for download


def test_records_are_packed_as_they_are(tmp_path):
    downloads.pack(tmp_path / "a")
    downloads.pack(tmp_path / "b")
    names = [study.name for study in downloads.studies()]
    assert {"ranking", "nope", "throughput"} <= set(names)
    table = downloads.table()
    for name in names:
        assert f'href="records/{name}.zip"' in table
        file = tmp_path / "a" / f"{name}.zip"
        assert file.read_bytes() == (tmp_path / "b" / f"{name}.zip").read_bytes()
        with zipfile.ZipFile(file) as archive:
            for entry in archive.namelist():
                assert archive.read(entry) == (paths.PUBLISHED / entry).read_bytes()
    assert sum(file.stat().st_size for file in (tmp_path / "a").iterdir()) < 2e6
