"""The ranking study, from made-up records whose effects are known."""

import itertools
import re

import numpy as np
import pandas as pd
import pytest

from pe_core import comparison, records
from pe_core.errors import RecordError
from pe_core.metrics import HeldOut, summarise
from pe_core.records import Record
from pe_core.studies.ranking import __main__ as rederive
from pe_core.studies.ranking import measure, report

DOCUMENTS, T = 30, 16
MODELS = {  # loss above RoPE's, in nats, after little and after much text
    "RoPE 100 %": ("rope", {"rotary_pct": 1.0}, 0.0, 0.0),
    "NoPE": ("none", {}, 0.10, 0.20),
    "ALiBi per head": ("alibi", {}, -0.05, 0.05),
    "FoX": ("fox", {}, -0.08, -0.08),
    "CABLE": ("cable", {}, -0.08, -0.08),
}


def make(folder, label, samples, seed, lr=0.002, worse=0.0):
    encoding, options, early, late = MODELS[label]
    shape = DOCUMENTS, T
    of_documents = np.random.default_rng(7).gamma(9, 0.5, (DOCUMENTS, 1))  # the same documents for all
    own = np.random.default_rng([seed, samples, *label.encode()]).normal(0, 0.005, (DOCUMENTS, 1))
    shift = (early if samples < 1_000 else late) + np.random.default_rng([seed, samples]).normal(0, 0.02) + worse
    tokens = np.full(shape, 20)
    heldout = HeldOut(tokens * (of_documents + own + shift), tokens, tokens * 4)
    record = Record(
        run=f"{encoding}-{samples}-{seed}-{lr}",
        label=label,
        config={"encoding": encoding, "options": options, "seed": seed, "samples": samples, "seq_len": T, "lr": lr},
        data={"fingerprint": f"f{samples}", "windows": {"train": samples}, "sources": {"prose": 10, "docs": 10, "code": 10}},
        parameters=1_800_000,
        best_epoch=1,
        history=[{"epoch": 1, "train_loss": 4.0, "val_loss": heldout.loss, "improved": True}],
        metrics=summarise(heldout),
        versions={},
        runtime={"train_seconds": 1.0, "tokens_per_second": 2.0, "peak_memory_mb": 3.0},
        created="2026-01-01T00:00:00+00:00",
    )
    home = folder / record.run
    home.mkdir(parents=True)
    heldout.save(home / records.LOSSES)
    record.save(home)
    return records.load(home)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Each model does best at 0.002 after little text, and at 0.004 after much."""
    folder = tmp_path_factory.mktemp("runs")
    best = {100: 0.002, 1_600: 0.004}
    runs = [make(folder, label, samples, seed, lr) for samples, lr in best.items() for seed in (42, 43, 44) for label in MODELS]
    others = {100: (0.001, 0.004), 1_600: (0.002, 0.008)}
    return runs + [make(folder, label, n, 42, lr, worse=0.3) for n, lrs in others.items() for lr in lrs for label in MODELS]


@pytest.fixture(scope="module")
def budgets(trained):
    return measure.by_budget(trained)


def of(trained, samples, *rates):
    return [r for r in trained if (r.config["samples"], r.config["seed"]) == (samples, 42) and r.config["lr"] in rates]


def test_each_model_takes_the_rate_with_its_lowest_validation_loss_at_each_budget(trained):
    chosen = measure.rates(trained)
    assert set(zip(chosen.samples, chosen.lr, strict=True)) == {(100, 0.002), (1_600, 0.004)}
    assert not chosen.at_end.any()
    assert list(chosen.label) == [*MODELS, *MODELS]


def test_a_best_rate_at_the_end_of_the_grid_asks_for_one_beyond(trained):
    two = of(trained, 100, 0.002, 0.004)
    assert measure.rates(two).at_end.all()
    assert [(e.lr, e.samples, e.seed) for e in measure.beyond(two)] == [(0.001, 100, 42)] * len(MODELS)
    assert {e.lr for e in measure.beyond(of(trained, 1_600, 0.002, 0.004))} == {0.008}
    assert {e.lr for e in measure.beyond(of(trained, 100, 0.002))} == {0.004}, "one rate is both ends"
    assert not measure.beyond(trained)


def test_a_search_goes_on_until_the_best_rate_lies_between_others(trained, monkeypatch):
    there = {(r.label, r.config["samples"], r.config["seed"], r.config["lr"]): r for r in trained}

    def sweep(asked, runs):
        assert runs == "here"
        asked_for.append(sorted({(e.samples, e.lr) for e in asked}))
        return [there[e.label, e.samples, e.seed, e.lr] for e in asked]

    asked_for = []
    monkeypatch.setattr(measure, "sweep", sweep)
    asked = measure.grid(["rope-full", "none"], [100, 1_600], [0.002, 0.004], seed=42, seq_len=T, device="cpu")
    grid = measure.search(asked, runs="here")
    assert asked_for == [[(100, 0.002), (100, 0.004), (1_600, 0.002), (1_600, 0.004)], [(100, 0.001), (1_600, 0.008)]]
    repeated = measure.repeat(grid, [43, 44], runs="here")
    assert asked_for[2:] == [[(100, 0.002), (1_600, 0.004)]]
    assert len(repeated) == 2 * 2 * 3
    assert {len(group) for groups in measure.by_budget(repeated).values() for group in groups.values()} == {3}
    assert measure.repeat(grid, []) == comparison.at_chosen_rates(grid), "one seed needs no sweep"


def test_a_search_ends_where_every_higher_rate_is_better(monkeypatch, tmp_path):
    count = itertools.count()

    def sweep(asked):
        return [make(tmp_path / str(next(count)), "NoPE", 100, 42, e.lr, worse=-e.lr) for e in asked]

    monkeypatch.setattr(measure, "sweep", sweep)
    found = measure.search(measure.grid(["none"], [100], [0.002], seed=42, device="cpu"))
    assert len(found) == 1 + measure.ROUNDS
    assert measure.rates(found).at_end.all()


def test_a_rate_that_one_model_was_tried_at_leaves_gaps_for_the_others(trained):
    chosen = measure.rates([*of(trained, 100, 0.001, 0.002), *(r for r in of(trained, 100, 0.004) if r.label == "NoPE")])
    assert dict(zip(chosen.label, chosen.at_end, strict=True)) == {label: label != "NoPE" for label in MODELS}
    shown = report.rates(chosen).to_html()
    assert shown.count("—") == len(MODELS) - 1
    assert "nan" not in shown


def test_runs_at_other_rates_are_left_out(budgets):
    assert {samples: {len(group) for group in groups.values()} for samples, groups in budgets.items()} == {100: {3}, 1_600: {3}}


def test_differences_have_the_size_that_was_put_in_and_the_verdict_that_follows(budgets):
    table = measure.differences(budgets, "RoPE 100 %").set_index(["samples", "label"])
    assert table.percent[1_600, "NoPE"] == pytest.approx(100 * np.expm1(0.20), abs=0.5)
    assert table.verdict[100, "ALiBi per head"] == "lower"
    assert table.verdict[1_600, "ALiBi per head"] == "higher"
    assert table.change_verdict[1_600, "ALiBi per head"] == "higher"
    assert table.change_verdict[1_600, "FoX"] == comparison.NO_DIFFERENCE
    assert table.tokens[1_600, "FoX"] == 1_600 * T


def test_two_names_of_one_model_tie(budgets):
    led = measure.leaders(budgets)
    assert {led.best[0], *led.tied[0]} == {"FoX", "CABLE"}
    assert "no difference is found between it and" in report.headline(
        led, measure.differences(budgets, "RoPE 100 %"), "RoPE 100 %"
    )


def test_a_changed_ranking_is_said(budgets):
    said = report.moves(measure.differences(budgets, "RoPE 100 %"), "RoPE 100 %")
    assert re.search(r"ALiBi per head's goes from −[45]\.\d % to \+[45]\.\d %", said)
    assert "FoX" not in said


def test_every_source_is_judged_apart(budgets):
    table = measure.by_source(budgets[1_600], "RoPE 100 %")
    assert sorted(set(table.source)) == ["code", "docs", "prose"]
    assert len(table) == 3 * (len(MODELS) - 1)


def test_correlation_of_a_ranking_with_itself_is_one(budgets):
    groups = budgets[1_600]
    assert comparison.rank_correlation(groups, groups).value == 1


def test_change_needs_the_same_test_text(budgets, tmp_path):
    moved = []
    for label in ("NoPE", "RoPE 100 %"):
        record = make(tmp_path, label, 100, 42)
        heldout = record.heldout
        HeldOut(heldout.losses[::-1], heldout.tokens[::-1] + 1, heldout.bytes).save(record.folder / records.LOSSES)
        moved.append(records.load(record.folder))
    with pytest.raises(RecordError, match="different text"):
        comparison.verdicts(budgets[1_600], since=comparison.groups(moved))


def test_published_records_give_the_same_sentences(trained, budgets, tmp_path):
    records.publish(trained, tmp_path / "ranking")
    table, led = measure.differences(budgets, "RoPE 100 %"), measure.leaders(budgets)
    assert rederive.derived(tmp_path) == report.answer(led, table, "RoPE 100 %")


def test_figures_and_tables_say_what_they_show(trained, budgets):
    table = measure.differences(budgets, "RoPE 100 %")
    figure = report.against_training(table, "RoPE 100 %")
    assert {text.get_text() for text in figure.legends[0].get_texts()} == set(table.family) - {"none"}  # NoPE is off the scale
    assert "NoPE +10" in figure.alt_text
    assert "ALiBi" in report.source_map(measure.by_source(budgets[1_600], "RoPE 100 %"), "RoPE 100 %").alt_text
    assert isinstance(measure.context_use(budgets, "RoPE 100 %"), pd.DataFrame)
    assert "▲" in report.table(table, "RoPE 100 %").to_html()
    assert "0.002" in report.rates(measure.rates(trained)).to_html()


@pytest.fixture(scope="module")
def sizes(tmp_path_factory):
    """What is put in as more text for the other tests, as more parameters."""
    runs = []
    for preset, parameters, like in (("micro", 7_000_000, 1_600), ("nano", 1_800_000, 100)):
        for seed, label in itertools.product((42, 43, 44), ("RoPE 100 %", "NoPE", "FoX")):
            record = make(tmp_path_factory.mktemp("sizes"), label, like, seed)
            config, data = {**record.config, "samples": 100, "preset": preset}, {**record.data, "windows": {"train": 100}}
            runs.append(record.model_copy(update={"config": config, "data": data, "parameters": parameters}))
    return measure.by_size(runs)


def test_differences_by_size(sizes):
    assert list(sizes) == ["nano", "micro"], "fewest parameters first"
    table = measure.differences(sizes, "RoPE 100 %").set_index(["parameters", "label"])
    assert table.percent[1_800_000, "NoPE"] == pytest.approx(100 * np.expm1(0.10), abs=0.5)
    assert table.percent[7_000_000, "NoPE"] == pytest.approx(100 * np.expm1(0.20), abs=0.5)
    assert table.change[7_000_000, "NoPE"] == pytest.approx(100 * np.expm1(0.10), abs=0.5)
    assert table.change_verdict[7_000_000, "NoPE"] == "higher"
    assert table.change_verdict[7_000_000, "FoX"] == comparison.NO_DIFFERENCE


def test_what_is_said_and_shown_of_sizes(sizes):
    table = measure.differences(sizes, "RoPE 100 %")
    said = report.with_size(table, "RoPE 100 %")
    lead = r"\*\*NoPE's test perplexity against RoPE 100 %, .*: \+1\d\.\d % at 1\.8 M and \+2\d\.\d % at 7\.0 M\*\* \(.*\)\."
    assert re.match(lead + r" From the smallest to the largest model the gap grows significantly: \+1", said)
    assert re.search(r"\*\*FoX: .*\*\*\. From the smallest to the largest model no significant change", said)
    back = report.with_size(
        table.assign(parameters=8_800_000 - table.parameters, change_verdict="lower", change=1.0), "RoPE 100 %"
    )
    assert "the gap shrinks significantly" in back
    assert "difference changes sign" in report.with_size(
        table.assign(percent=table.percent * (table.parameters - 2e6)), "RoPE 100 %"
    )
    assert "one seed)" in report.with_size(table.assign(seeds=1), "RoPE 100 %")
    assert "single seed" in report.with_size(table.assign(seeds=1), "RoPE 100 %")
    assert "nan" not in report.with_size(table[table.parameters == 1_800_000], "RoPE 100 %")
    figure = report.against_size(table, "RoPE 100 %")
    assert {"RoPE 100 %", "NoPE", "FoX"} <= {text.get_text() for text in figure.axes[0].texts}
    assert "NoPE +10" in figure.alt_text
    shown = report.table(table, "RoPE 100 %", "parameters").to_html()
    assert shown.index("7.0 M parameters") < shown.index("1.8 M parameters")
