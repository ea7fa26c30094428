"""Groups of runs that differ in the seed, and what is said about their differences."""

import itertools
import math
import re

import numpy as np
import pandas as pd
import pytest
from helpers import made

from pe_core import Experiment, comparison, encodings, metrics, recipes, records
from pe_core.encodings import ENCODINGS
from pe_core.errors import ConfigError, RecordError
from pe_core.report import claims, figures, tables


@pytest.fixture
def trained(tmp_path):
    """Three seeds each of a baseline, a clearly worse model, and one that differs from it by noise alone."""
    runs = []
    for seed in (1, 2, 3):
        luck = 0.01 * seed
        for label, encoding, shift in (("RoPE", "rope", luck), ("NoPE", "none", 0.3 + luck), ("ALiBi", "alibi", 0.02 - luck)):
            runs.append(made(tmp_path / f"{encoding}-{seed}", encoding, label, seed, shift))
    return runs


def test_groups_are_the_seeds_of_one_model(trained):
    found = comparison.groups(trained[::-1])
    assert list(found) == ["ALiBi", "NoPE", "RoPE"]
    assert [record.config["seed"] for record in found["RoPE"]] == [1, 2, 3]


def test_groups_refuse_what_is_not_a_repetition(trained, tmp_path):
    with pytest.raises(RecordError, match=r"^two runs of 'RoPE' have the same seed: rope-1, again$"):
        comparison.groups([*trained, made(tmp_path / "again", "rope", "RoPE", 1)])
    other = made(tmp_path / "other", "rope", "RoPE", 4)
    other.config["epochs"] = 2
    with pytest.raises(RecordError, match=r"^runs rope-1 and other of 'RoPE' differ in epochs$"):
        comparison.groups([*trained, other])
    other.config["epochs"], other.data["fingerprint"] = 30, "g"
    with pytest.raises(RecordError, match="were measured on different text"):
        comparison.groups([*trained, other])


def test_what_seeds_start_from_may_differ_in_the_seed_alone(tmp_path):
    """DroPE: every seed goes on from its own."""
    group = []
    for seed in (1, 2, 3):
        before = made(tmp_path / f"rope-nano-000000000{seed}", "rope", "RoPE", seed)
        group.append(made(tmp_path / f"dropped-{seed}", "none", "NoPE after RoPE", seed))
        group[-1].config["start"] = before.run
    assert comparison.groups(group) == {"NoPE after RoPE": group}
    before.config["options"] = {"rotary_pct": 1.0}
    before.save(before.folder)
    with pytest.raises(RecordError, match=r"^runs dropped-1 and dropped-3 of 'NoPE after RoPE' differ in start$"):
        comparison.groups(group)
    (before.folder / records.RECORD).unlink()  # where it cannot be looked up, its id counts
    with pytest.raises(RecordError, match=r"differ in start$"):
        comparison.groups(group)


def test_difference_is_the_mean_over_seeds_of_the_paired_difference(trained):
    found = comparison.groups(trained)
    estimate, p, *_ = comparison.difference(found["NoPE"], found["RoPE"])
    assert estimate.value == pytest.approx(100 * math.expm1(0.3))
    assert estimate.low <= estimate.value <= estimate.high
    assert p < 1e-6 or math.isnan(p)  # the same shift on every token: hardly any variance at all
    estimate, *_ = comparison.difference(found["ALiBi"], found["RoPE"])
    assert estimate.value == pytest.approx(100 * math.expm1(np.mean([0.02 - 2 * 0.01 * s for s in (1, 2, 3)])))
    assert estimate.low < 0 < estimate.high


def test_only_common_seeds_are_paired(trained, tmp_path):
    found = comparison.groups(trained)
    late = [made(tmp_path / f"late-{seed}", "none", "late", seed, 0.5) for seed in (3, 4)]
    estimate, *_ = comparison.difference(late, found["RoPE"])
    assert estimate.value == pytest.approx(100 * math.expm1(0.5 - 0.03))
    with pytest.raises(RecordError, match="no seed in common"):
        comparison.difference(late[1:], found["RoPE"])


def test_frame_sentences_tables_and_figures(trained):
    found = comparison.groups(trained)
    table = comparison.frame(found, "RoPE").set_index("label", drop=False)
    assert math.isnan(table.percent["RoPE"])
    assert table.differs.to_dict() == {"RoPE": False, "NoPE": True, "ALiBi": False}
    assert table.perplexity["NoPE"] == pytest.approx(np.mean([r.metrics["perplexity"]["value"] for r in found["NoPE"]]))
    said = claims.ranking(table, "RoPE")
    assert "Significantly worse than RoPE: NoPE +35.0 %" in said
    assert "**No difference found** from RoPE: ALiBi " in said
    assert "no difference is found between it and RoPE" in said
    assert "Holm's correction for every pair" in said
    assert re.search(r"would find is \d+\.\d %", said)
    assert "single seed" not in said
    said = claims.cost_of_no_position(found)
    assert re.search(
        r"^Without position .* \d+ % above the best, ALiBi \(interval \d+\.\d to \d+\.\d %, corrected for all pairs\)\.$", said
    )
    assert claims.cost_of_no_position({"NoPE": found["NoPE"]}) == "No encoding did better than NoPE."
    assert claims.cost_of_no_position({"RoPE": found["RoPE"]}).startswith("No model without position encoding")
    shown = tables.comparison(table, "RoPE").to_html()
    assert shown.index("ALiBi") < shown.index("NoPE")
    assert "rope-1" in tables.runs(trained).to_html()
    styles = figures.styles(records.frame(trained))
    for figure in (figures.forest(table, "RoPE"), figures.learning_curves(records.history(trained), styles),
                   figures.position_curves(comparison.curves(found), styles)):  # fmt: skip
        assert figure.axes
        figures.plt.close(figure)


def test_positions_against_a_baseline(trained):
    """At every range the ratio of the two perplexities, over the seeds that both have; the figure shows it in percent."""
    found = comparison.groups(trained)
    ratios, curves = comparison.curves(found, "RoPE"), comparison.curves(found)
    assert list(ratios) == [label for label in found if label != "RoPE"]
    for label, ratio in ratios.items():
        np.testing.assert_allclose(ratio.perplexity, curves[label].perplexity / curves["RoPE"].perplexity, rtol=1e-9)
        assert (ratio.low <= ratio.perplexity + 1e-9).all()
        assert (ratio.perplexity <= ratio.high + 1e-9).all()
    styles = figures.styles(records.frame(trained))
    figure = figures.position_differences(ratios, "RoPE", styles)
    lines = {line.get_label(): line.get_ydata() for line in figure.axes[0].lines}
    for label, ratio in ratios.items():
        np.testing.assert_allclose(lines[label], 100 * (ratio.perplexity - 1))
    figures.plt.close(figure)
    said = claims.first_and_last(ratios, "RoPE")
    assert said.startswith("Against RoPE, after 1 token and after 29 to 32: NoPE +35.0 % [+35.0, +35.0], then +35.0 % [")
    with pytest.raises(KeyError, match="typo"):
        comparison.curves(found, "typo")
    alone = comparison.curves({"RoPE": found["RoPE"]}, "RoPE")
    assert claims.first_and_last(alone, "RoPE") == ""
    empty = figures.position_differences(alone, "RoPE", styles)
    assert figures.describe(empty).startswith("Perplexity by position against RoPE")
    figures.plt.close()
    fewer = {**found, "NoPE": found["NoPE"][:2]}
    one = comparison.curves({label: group[:2] for label, group in found.items()}, "RoPE")["NoPE"]
    pd.testing.assert_frame_equal(comparison.curves(fewer, "RoPE")["NoPE"], one)


def test_many_lines_have_a_legend_that_leaves_the_figure_its_height():
    seen = pd.DataFrame({"start": [0, 1, 3], "end": [1, 3, 7], "perplexity": [1.0, 1.1, 1.2]})
    curves = {f"model {n}": seen.assign(low=seen.perplexity - 0.01, high=seen.perplexity + 0.01) + n / 50 for n in range(34)}
    styles = figures.styles(pd.DataFrame({"label": list(curves), "family": "rotary"}))
    figure = figures.position_differences(curves, "RoPE", styles)
    figure.canvas.draw()
    assert len(figure.legends[0].get_texts()) == 34
    assert figure.axes[0].get_window_extent().height > 200
    figures.plt.close(figure)
    curves["model 3"] = curves["model 3"] * 10
    assert figures.position_differences(curves, "RoPE", styles).axes[0].get_yscale() == "symlog"
    figures.plt.close()


def test_names_at_the_ends_keep_apart_on_a_logarithmic_scale_too():
    ends = {"a": 1.01, "b": 1.02, "c": 1.03, "far": 30.0, "farther": 32.0}
    curves = {
        label: pd.DataFrame({"start": [0, 1], "end": [1, 2], "perplexity": [1.0, end], "low": [1.0, end], "high": [1.0, end]})
        for label, end in ends.items()
    }
    figure = figures.position_differences(
        curves, "RoPE", figures.styles(pd.DataFrame({"label": list(ends), "family": "rotary"}))
    )
    figure.canvas.draw()
    names = [text.get_window_extent() for text in sorted(figure.axes[0].texts, key=lambda text: text.xy[1])]
    assert len(names) == len(ends)
    assert all(below.y1 <= above.y0 + 1 for below, above in itertools.pairwise(names))
    figures.plt.close(figure)


def test_one_seed_is_said(tmp_path):
    trained = [made(tmp_path / name, name, label, noise=0.01) for name, label in (("rope", "RoPE"), ("none", "NoPE"))]
    said = claims.ranking(comparison.frame(comparison.groups(trained), "RoPE"), "RoPE")
    assert "single seed" in said
    assert "(one seed)" in said


def test_runs_at_other_than_the_chosen_rate_are_left_out(tmp_path):
    """The rate with the lowest validation loss with the seed for which most were tried; chosen for each number of windows."""
    tried = ((1, 1, 360, 4.0), (2, 1, 360, 3.0), (4, 1, 360, 5.0), (2, 2, 360, 3.0), (4, 2, 360, 2.0), (4, 1, 720, 2.0))
    runs = []
    for rate, seed, samples, loss in tried:
        record = made(tmp_path / f"{rate}-{seed}-{samples}", seed=seed)
        record.config.update(lr=rate / 1000, samples=samples)
        record.history[0]["val_loss"] = loss
        runs.append(record)
    assert comparison.at_chosen_rates(runs) == [runs[1], runs[3], runs[5]]
    assert comparison.at_chosen_rates(runs[4:5]) == [runs[4]]
    assert comparison.at_chosen_rates([]) == []


def test_pooled_losses_are_the_mean_over_seeds(trained):
    group = comparison.groups(trained)["RoPE"]
    pooled = comparison.pooled(group)
    assert pooled.loss == pytest.approx(np.mean([record.heldout.loss for record in group]))
    assert metrics.by_position(pooled) == pytest.approx(np.mean([metrics.by_position(r.heldout) for r in group], axis=0))


def test_an_unknown_baseline_or_model_is_named(trained):
    with pytest.raises(RecordError, match=r"unknown baseline 'ROPE'.*NoPE"):
        comparison.frame(comparison.groups(trained), "ROPE")
    with pytest.raises(ConfigError, match=r"unknown model 'mla-alib'; did you mean 'mla-alibi'\?"):
        recipes.model("mla-alib")


def test_model_names(encoding):
    assert Experiment(**recipes.model(encoding)).encoding == encoding
    assert Experiment(**recipes.model("mla-alibi"), preset="nano").resolved().label == "MLA 32 + ALiBi slope 0.0625"


def test_every_encoding_is_a_choice(encoding):
    every = recipes.every()
    assert encoding in every
    assert len(set(every)) == len(every)
    labels = [Experiment(**recipes.model(name)).label for name in every]
    assert len(set(labels)) == len(labels)
    assert {"rope-full", "alibi-one"} < set(every)
    assert not any(name.startswith("mla") for name in every)


@pytest.mark.parametrize("noise", [0.01, 0.1, 0.4])
def test_an_interval_leaves_out_zero_where_a_difference_is_found(tmp_path, noise):
    shifts = np.array([0, 0.004, 0.02, 0.1, 0.3, 1.0]) * noise
    apart = [made(tmp_path / f"{i}", "none", f"model {i}", shift=shift, noise=noise) for i, shift in enumerate(shifts)]
    judged = comparison.verdicts(comparison.groups(apart))
    assert len(judged) == 30
    found = judged.verdict != comparison.NO_DIFFERENCE
    assert found.equals((judged.low > 0) | (judged.high < 0))
    assert found.equals(judged.p_holm < 0.05)
    assert found.any()
    assert not found.all()


def test_one_against_another_and_the_order_elsewhere(trained, tmp_path):
    found = comparison.groups(trained)
    first, second = list(found)[:2]
    said = claims.versus(found, [(second, first)])
    row = comparison.verdicts(found).query("a == @second and b == @first").iloc[0]
    assert said.startswith(f"{second}: **{row.percent:.1f} % higher** perplexity than {first} ({row.low:.1f} to ")
    said = claims.lowest(comparison.frame(found, first), "models", trained)
    assert re.match(r"Of 3 models \*\*\w+ has the lowest test perplexity, \d+\.\d\*\*; no difference is found between it", said)
    assert said.endswith("training windows of 128 tokens, 3 seeds).")
    models = (("rope", "RoPE", 0.0), ("none", "NoPE", 0.3))
    apart = [made(tmp_path / f"apart-{name}", name, label, shift=shift, noise=0.01) for name, label, shift in models]
    said = claims.lowest(comparison.frame(comparison.groups(apart), "RoPE"), "models", apart)
    assert "**RoPE has the lowest" in said
    assert "**; all others are significantly higher (" in said


def test_named_by_a_setting_and_compared_in_pairs(tmp_path):
    models = (("rope", "RoPE", 0.0), ("none", "NoPE", 0.3))
    chosen = [made(tmp_path / name, name, label, shift=shift, noise=0.01) for name, label, shift in models]
    chosen[0].config["precision"], chosen[1].config["precision"] = "fp32", "bf16"
    named = comparison.named_by(chosen, "precision")
    assert [record.label for record in named] == ["RoPE, fp32", "NoPE, bf16"]
    assert named[0].folder == chosen[0].folder
    assert claims.pairs(comparison.groups(named)).startswith("NoPE, bf16: **34.6 % higher** perplexity than RoPE, fp32")


def test_renaming_a_title_changes_no_result(tmp_path, monkeypatch):
    """Runs of before and after belong together, and every number, verdict and sentence is the same but for the name."""
    for seed in (1, 2):
        for name, shift in (("none", 0.3), ("rope", 0.0), ("alibi", 0.02)):
            made(tmp_path / f"{name}-{seed}", name, encodings.label(name, {}), seed, shift + 0.01 * seed, noise=0.01)

    def results():
        found = comparison.groups(records.load_all(tmp_path))
        rope = encodings.label("rope", {})
        table = comparison.frame(found, rope)
        said = claims.cost_of_no_position(found) + claims.ranking(table, rope)
        return [table.drop(columns="label"), comparison.verdicts(found).drop(columns=["a", "b"])], said

    before, said = results()
    for name in ("none", "rope"):
        monkeypatch.setattr(ENCODINGS[name], "label", classmethod(lambda cls, options, name=name: f"{name} by another name"))
    after, renamed = results()
    for a, b in zip(before, after, strict=True):
        pd.testing.assert_frame_equal(a, b)
    assert "NoPE" in said
    assert "NoPE" not in renamed
    assert renamed.replace("none by another name", "NoPE").replace("rope by another name", "RoPE 25 %") == said


def test_one_label_for_two_models_is_refused(tmp_path):
    two = [made(tmp_path / name, name, "one name") for name in ("rope", "none")]
    with pytest.raises(RecordError, match="are both 'one name' and differ"):
        comparison.rank_correlation(*({"one name": [record]} for record in two))
