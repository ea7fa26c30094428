"""Longer contexts than the one trained at: the same tokens at every length, and what is said of them."""

import contextlib
import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import ROOT, outputs, publish_records, run_notebook, small
from matplotlib import pyplot as plt

from pe_core import LabForCausalLM, encodings, metrics, records, runner
from pe_core.errors import ConfigError, RecordError
from pe_core.metrics import HeldOut
from pe_core.report import claims, figures
from pe_core.site import index
from pe_core.studies.extrapolation import lengths, measure, report
from pe_core.studies.extrapolation.measure import Reading

AT = [16, 32, 64]
STRETCHED = ["RoPE 25 %"] + [
    f"RoPE 25 %, {remark}"
    for remark in ("dual chunk", "interpolated", "Λ-mask", "Llama 3", "NTK", "Self-Extend", "ReRoPE", "YaRN")
]


@pytest.fixture(scope="module")
def trained(library, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    chosen = [("rope", 1), ("rope", 2), ("none", 1), ("none", 2), ("learned", 1), ("randomised", 1)]
    return [runner.run(small(library, encoding=name, seed=seed, precision="fp32"), folder) for name, seed in chosen]


@pytest.fixture(scope="module")
def readings(trained):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure.processes, "map_processes", lambda function, jobs, workers: None)  # no processes in a fast test
        return measure.measure(trained, AT)


def losses_by_hand(record, tokens):
    ids = torch.from_numpy(tokens.astype(np.int64))[None]
    with torch.no_grad():
        return record.model().losses(ids[:, :-1], ids[:, 1:])[0].numpy()


@pytest.mark.parametrize("length", AT)
def test_the_window_slides_over_the_same_tokens(trained, length):
    """Against a loop over single tokens: each is predicted from the piece it belongs to."""
    record, N = trained[0], 64
    windows = lengths.text(record, N, 2).test
    slid = lengths.sliding(record, length, N, windows=2)
    assert slid.losses.shape[1] == N // 2
    assert slid.tokens.sum() == N
    by_hand = np.zeros(N // 2)
    for window in windows:
        for t in range(N // 2, N):
            start = (N - length) // 2 + (t - N // 2) // (length // 2) * (length // 2)
            assert length // 2 <= t - start < length, "at least half a context before it"
            by_hand[t - N // 2] += losses_by_hand(record, window[start : start + length + 1])[t - start]
    np.testing.assert_allclose(slid.losses.sum(axis=0), by_hand, rtol=1e-4)


def test_the_whole_window_is_the_same_either_way(trained):
    cut, slid = lengths.heldout(trained[0], 64, 64, windows=3), lengths.sliding(trained[0], 64, 64, windows=3)
    np.testing.assert_allclose(cut.losses[:, 32:].sum(axis=0), slid.losses.sum(axis=0), rtol=1e-5)
    assert np.array_equal(cut.bytes[:, 32:].sum(axis=0), slid.bytes.sum(axis=0))


def test_odd_lengths_are_refused(trained):
    with pytest.raises(ConfigError, match=r"^length=24: an even divisor of longest=64 is needed$"):
        lengths.sliding(trained[0], 24, 64)
    with pytest.raises(ConfigError, match=r"^length=3: an even divisor of longest=9 is needed$"):
        measure.measure(trained, [3, 9])


def test_what_stands_in_has_the_same_parameters(encoding, tiny, ids, tmp_path):
    """For every encoding: each stand-in loads the trained weights, reads the longer context, and is a change there."""
    options = encodings.options(encoding, {}).model_dump()
    model = tiny(encoding)
    model.save_pretrained(tmp_path)
    long = ids.repeat(1, 16)[:1]  # 192 tokens; trained at 64
    for remark, (name, values) in encodings.length_extensions(encoding, options, 64, 192).items():
        assert remark
        stretched = LabForCausalLM.from_pretrained(tmp_path, encoding=name, encoding_options=values).eval()
        assert [n for n, _ in stretched.named_parameters()] == [n for n, _ in model.named_parameters()]
        logits = stretched(long).logits
        assert torch.isfinite(logits).all()
        with contextlib.suppress(ConfigError):  # without it there may be no such positions
            assert not torch.equal(model(long).logits, logits)


def test_rescaled_by_how_much_longer_the_context_is():
    found = encodings.length_extensions("rope", {"rotary_pct": 0.5, "base": 500.0}, 128, 512)
    rescaled = {name: values for name, values in found.values() if "factor" in values}
    assert list(rescaled) == ["interpolated", "llama3", "ntk", "yarn"]
    assert all(values == {"rotary_pct": 0.5, "base": 500.0, "factor": 4.0} for values in rescaled.values())
    others = [name for name, values in found.values() if "factor" not in values]
    assert others == ["dual_chunk", "lambda_mask", "self_extend", "self_extend"]
    assert all({"rotary_pct": 0.5, "base": 500.0}.items() <= values.items() for _, values in found.values())
    assert not encodings.length_extensions("p_rope", {}, 128, 512)
    assert not encodings.length_extensions("randomised", {"max_length": 256}, 128, 512)


def test_every_model_at_every_length(readings, capsys):
    by = {(reading.label, reading.length): reading for reading in readings}
    labels = list(dict.fromkeys(label for label, _ in by))
    assert labels[:9] == STRETCHED
    assert len(by) == len(labels) * len(AT)
    assert len(by["RoPE 25 %", 64].slid) == 2
    assert not by["Learned", 32].slid
    assert by["Learned", 16].slid
    assert not by["Randomised sinusoidal", 64].slid
    assert by["Randomised sinusoidal, spread", 64].slid
    for own, stand_in in (("RoPE 25 %", "RoPE 25 %, YaRN"), ("Randomised sinusoidal", "Randomised sinusoidal, spread")):
        assert np.array_equal(by[own, 16].slid[1].losses, by[stand_in, 16].slid[1].losses), "nothing to stretch"
    assert not np.array_equal(by["RoPE 25 %", 64].slid[1].losses, by["RoPE 25 %, YaRN", 64].slid[1].losses)


def test_as_many_tokens_as_the_models_own_held_out_ones(trained):
    assert measure.windows(trained[0], 32) == 10 * 16 // 32
    assert measure.windows(trained[0], 2_048) == 2


def test_the_last_tokens_are_the_same_at_every_length(readings):
    assert measure.scored(readings) == 8
    counts = [measure.last(reading.slid[1], 8).tokens for reading in readings if reading.slid]
    for tokens in counts:
        assert np.array_equal(tokens, counts[0])
    table = measure.frame(readings)
    assert list(table.measure.unique()) == ["non-overlapping", "sliding window", "last tokens"]
    row = table[(table.label == "NoPE") & (table.length == 64) & (table.measure == "last tokens")].iloc[0]
    parts = next(r for r in readings if (r.label, r.length) == ("NoPE", 64)).slid.values()
    losses, sizes = (
        sum(array[:, -8:].sum() for array in arrays) for arrays in ([p.losses for p in parts], [p.bytes for p in parts])
    )
    assert row.bits == pytest.approx(losses / sizes / math.log(2))
    assert table[(table.label == "Learned") & (table.length == 64)].perplexity.isna().all()


def test_ranking_and_changes(readings):
    ranked, changes = measure.ranking(readings), measure.changes(readings)
    assert ranked.bits.iloc[0] == ranked.bits.min()
    assert math.isnan(ranked.percent.iloc[0])
    assert (ranked.percent.iloc[1:].dropna() >= 0).all()
    assert set(ranked[ranked.bits.isna()].label) == {"Learned", "Randomised sinusoidal"}
    assert "Learned" not in set(changes.label)
    both = {r.length: r.slid for r in readings if r.label == "NoPE"}
    mean = np.mean([measure.last(both[64][seed], 8).loss - measure.last(both[16][seed], 8).loss
                    for seed in (1, 2)])  # fmt: skip
    assert changes.set_index("label").percent["NoPE"] == pytest.approx(100 * math.expm1(mean))
    assert ((changes.low > 0) | (changes.high < 0)).equals(changes.differs)  # one verdict, by p and by interval


def test_paths_end_where_changes_are(readings):
    paths, changes = measure.paths(readings), measure.changes(readings).set_index("label")
    ends = paths[paths.length == 64].set_index("label")
    assert set(ends.index) == set(changes.index)
    pd.testing.assert_frame_equal(ends[["p_holm", "differs"]], changes[["p_holm", "differs"]], check_like=True)
    assert ends.percent.to_dict() == pytest.approx(changes.percent.to_dict())
    assert (paths[paths.length == 16].percent == 0).all()
    assert (paths.length >= 16).all()


def test_an_encodings_page_needs_no_weights(readings, trained, tmp_path):
    """What it shows is in a small file beside each record, and is what the frame says."""
    publish_records(trained, tmp_path)
    published = records.load_all(tmp_path / "book")
    table = index.beyond("rope", published)
    assert list(table) == ["model", "at 16", "at 32", "at 64", "seeds"]
    assert table.model.tolist() == STRETCHED
    assert index.beyond("yarn", published).model.tolist() == [label for label in STRETCHED if label.endswith("YaRN")]
    ends = [measure.last(reading.slid[1], 8) for reading in readings if reading.label == "Learned" and reading.slid]
    shown = index.beyond("learned", published).iloc[0].tolist()
    assert shown == ["Learned", f"{metrics.bits_per_byte(ends[0]).value:.3f}", "–", "–", "1"]
    assert "Read beyond" in index.reading(table)
    assert index.reading(index.beyond("alibi", published)) == ""
    (published[0].folder / "extrapolation-1-16_32_64.json").write_text("[]")
    with pytest.raises(RecordError, match=r"'extrapolation-1-16_32_64.json' is not JSON .*delete it to measure again"):
        measure.recorded(published[0])


def test_what_may_stand_in_can_be_chosen(readings, trained):
    chosen = measure.measure(trained[:1], AT, stand_ins=["yarn", "randomised"])
    assert {reading.remark for reading in chosen} == {"", "YaRN"}
    assert {reading.remark for reading in measure.measure(trained[:1], AT, stand_ins=[])} == {""}


def test_a_page_is_made_again_from_what_is_published(readings, trained, tmp_path, monkeypatch):
    publish_records(trained, tmp_path)
    published = records.load_study(tmp_path / "book" / "page")
    assert not any(record.has_weights for record in published)
    monkeypatch.setattr(measure.lengths, "_losses", None)
    again = measure.measure(sorted(published, key=lambda record: [record.run for record in trained].index(record.run)), AT)
    for made in (measure.frame, measure.ranking, measure.changes, measure.paths):
        pd.testing.assert_frame_equal(made(again), made(readings), rtol=2e-3, atol=1e-4)
    curves, before = measure.curves(again), measure.curves(readings)
    assert list(curves) == list(before)
    for label, curve in curves.items():
        pd.testing.assert_frame_equal(curve, before[label], rtol=1e-4)


def test_what_is_not_published_needs_the_weights(trained, tmp_path):
    publish_records(trained, tmp_path)
    (record, *_) = records.load_study(tmp_path / "book" / "page")
    with pytest.raises(RecordError, match=rf"run {record.run}: no weights in '.*'; train it again to read other lengths"):
        measure.lengths.sliding(record, 16, 128)
    (record.folder / "lengths.npz").write_bytes(b"nothing")
    with pytest.raises(RecordError, match=r"lengths.npz' cannot be read .*; get it from the repository again"):
        measure.lengths.sliding(record, 16, 64)


def test_figures_tables_and_words(readings, trained):
    table, styles = measure.frame(readings), figures.styles(measure.frame(readings))
    curves = measure.curves(readings)
    figure = figures.position_curves(curves, styles, [16])
    figure.canvas.draw()
    names = {text.get_text(): text.get_window_extent() for text in figure.axes[0].texts}
    assert set(names) == set(curves)
    lowest_first = sorted(curves, key=lambda label: curves[label].perplexity.iloc[-1])
    assert sorted(names, key=lambda label: names[label].y0) == lowest_first
    assert all(names[below].y1 <= names[above].y0 + 1 for below, above in itertools.pairwise(lowest_first))
    plt.close(figure)
    of = next(iter(curves))
    ratios = measure.curves(readings, of)
    assert list(ratios) == [label for label in curves if label != of]
    common = set.intersection(*(set(reading.cut) for reading in readings if reading.label in curves and reading.cut))
    same = [one._replace(cut={seed: one.cut[seed] for seed in common} if one.cut else {}) for one in readings]
    curves = measure.curves(same)
    for label, ratio in ratios.items():
        whole = curves[of].set_index("start").perplexity
        np.testing.assert_allclose(ratio.perplexity, curves[label].perplexity / whole[ratio.start].to_numpy(), rtol=1e-9)
    with pytest.raises(RecordError, match=r"baseline.*typo"):
        measure.curves(readings, "typo")
    figure = figures.position_differences(ratios, of, styles, [16])
    assert f"by position against {of}, %" in figures.describe(figure)
    plt.close(figure)
    paths = measure.paths(readings)
    figure = report.length_map(paths, 16)
    rows = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    at_64 = paths[paths.length == 64].set_index("label").percent
    assert rows == list(at_64.sort_values().index)
    cells = [text.get_text() for text in figure.axes[0].texts]
    assert cells[1::2] == [claims.as_number(at_64[label], 0, "+") for label in rows]
    plt.close(figure)
    ranked, changes = measure.ranking(readings), measure.changes(readings)
    html = (
        report.contexts_table(table[table.measure == "last tokens"], bits=True).to_html()
        + report.last_tokens_table(ranked, changes).to_html()
    )
    assert "at 64" in html
    assert "% against the trained length" in html
    said = report.findings(ranked, changes, 64, 16)
    assert "No positions beyond 16 tokens: Learned and Randomised sinusoidal." in said
    assert "nan" not in said


def reading(label, length, loss, documents=12, seeds=3, trained_at=128):
    """A model whose last tokens cost so much, with a little noise that its seeds and documents share with no other's."""
    rng = np.random.default_rng([length, *map(ord, label)])
    tokens = np.full((documents, 512), 5)
    parts = {
        seed: HeldOut(5 * (loss + 0.01 * rng.standard_normal((documents, 512))), tokens, 4 * tokens) for seed in range(seeds)
    }
    return Reading(label, "none", trained_at, length, parts, parts)


def test_the_answer_follows_the_tests():
    losses = {"grows": (3.0, 2.8), "level": (3.0, 3.0), "breaks": (3.0, 4.0), "twin": (3.0, 2.8)}
    found = [reading(label, T, loss) for label, two in losses.items() for T, loss in zip((128, 1_024), two, strict=True)]
    found += [reading("short", 128, 3.0), Reading("short", "none", 128, 1_024, {}, {})]
    ranked, changes = measure.ranking(found), measure.changes(found)
    said = report.findings(ranked, changes, 1_024, 128).split("\n\n")
    assert said[0].startswith(f"**{ranked.label.iloc[0]} predicts best at 1,024 tokens of context: 1.0")
    assert "3 seeds" in said[0]
    assert said[1].startswith(f"**No difference found** from it: {ranked.label.iloc[1]} ")
    assert {ranked.label.iloc[0], ranked.label.iloc[1]} == {"grows", "twin"}
    assert said[2].startswith("2 of 3 others are worse, the nearest level +22")
    ways = {"Use": ["grows", "twin"], "No significant change": ["level"], "Worse": ["breaks"]}
    for sentence, (start, names) in zip(said[3:6], ways.items(), strict=True):
        assert sentence.startswith(f"**{start}")
        assert all(name in sentence for name in names)
    assert said[6] == "No positions beyond 128 tokens: short."


def test_without_intervals_nothing_is_claimed():
    found = [reading(label, T, loss, documents=1, seeds=1) for label, loss in (("a", 2.0), ("b", 3.0)) for T in (128, 1_024)]
    said = report.findings(measure.ranking(found), measure.changes(found), 1_024, 128)
    assert "**" not in said
    assert said.count("nothing can be concluded") == 2
    none = [Reading("a", "none", 128, T, {}, {}) for T in (128, 1_024)]
    assert "No positions beyond" in report.findings(measure.ranking(none), measure.changes(none), 1_024, 128)


@pytest.mark.slow
def test_the_notebook_in_small(library, tmp_path):
    given = {"samples": 300, "seq_len": 32, "windows": 4, "seeds": "1", "models": "none,learned,rope", "lengths": "32,64,128"}
    given |= {"stand_ins": "yarn", "torch_compile": "off", "preset": "nano", "corpus": library, "runs_dir": tmp_path / "runs"}
    parameters = [part for name, value in given.items() for part in ("-p", name, str(value))]
    finished = run_notebook(ROOT / "notebooks/extrapolation.ipynb", tmp_path / "out.ipynb", *parameters)
    assert finished.returncode == 0, finished.stderr
    sentences = " ".join(outputs(tmp_path / "out.ipynb", "text/markdown"))
    assert "No positions beyond 32 tokens: Learned" in sentences
    assert "RoPE 25 %, YaRN" in "".join(outputs(tmp_path / "out.ipynb", "text/html"))
    assert len(outputs(tmp_path / "out.ipynb", "image/svg+xml")) == 2


def test_many_ways_to_read_one_model_are_one_map(readings):
    table = measure.frame(readings)
    paths = measure.paths(readings)
    ax = report.length_map(paths, 16).axes[0]
    ends = paths[paths.length == 64].sort_values("percent")
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ends.label.tolist()
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["32", "64"]
    written = {text.get_position(): text.get_text() for text in ax.texts}
    assert written[1, 0] == f"{ends.percent.iloc[0]:+.0f}".replace("-", "−")
    (empty,) = report.length_map(paths[paths.length == 16], 16).axes
    assert (empty.get_title() or empty.get_title("left")) == "No model has positions beyond 16 tokens"
    plt.close("all")
    ways = report.way_styles(table)
    assert list(ways) == list(dict.fromkeys(table.label))
    assert len({(way["color"], way["linestyle"]) for way in ways.values()}) == len(ways)
