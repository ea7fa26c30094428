"""Looks inside a model: against slow independent computations, and against models whose inside is known."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import ROOT, outputs, publish_records, run_notebook, small
from matplotlib import pyplot as plt
from torch import nn

from pe_core import encodings, records, runner
from pe_core.errors import RecordError
from pe_core.report import figures
from pe_core.schema import Shape
from pe_core.site import index
from pe_core.studies.diagnostics import measure, report
from pe_core.studies.diagnostics.measure import Diagnosis


def windows(M=12, T=20, seed=0):
    """Random tokens of six documents, two windows each."""
    rng = np.random.default_rng(seed)
    return rng.integers(97, size=(M, T + 1)), np.repeat(np.arange(M) // 2, T).reshape(M, T)


@pytest.fixture(scope="module")
def trained(library, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    chosen = [("rope", 1), ("rope", 2), ("none", 1), ("learned", 1)]
    settings = dict(epochs=1, samples=200, precision="fp32")
    return [runner.run(small(library, encoding=name, seed=seed, **settings), folder) for name, seed in chosen]


@pytest.fixture(scope="module")
def found(trained):
    return [measure.diagnose(record, 20) for record in trained]


def test_every_encoding_can_be_looked_into(encoding, tiny):
    found = measure.look(tiny(encoding, attention="eager"), *windows())
    L, H, K, T, D = 2, 4, found.values.shape[-1], 20, 3
    shapes = {"probe_errors": (L + 1, D), "probe_spread": (D,), "distance": (L, H), "entropy": (L, H), "first": (L, H)}
    shapes |= {"uniform": (3,), "profile": (L, H, T), "values": (2, L, H, K), "wavelengths": (L, K), "norms": (L + 1, T)}
    shapes |= {"shuffled": (2, 6), "removed": (2, 6), "tokens": (6,), "kept": (2,)}
    assert {name: array.shape for name, array in found._asdict().items()} == shapes
    for name, array in found._asdict().items():
        assert np.isfinite(array).all() or name == "wavelengths"
    assert (found.wavelengths > 0).all()


@pytest.mark.parametrize("name", ["rope", "alibi", "none"])
@pytest.mark.parametrize("kind", ["mha", "mla"])
def test_attention_against_a_loop(tiny, name, kind):
    ids, documents = windows(M=3)
    model = tiny(name, attention="eager", attention_kind=kind)
    found = measure.look(model, ids, documents)
    with torch.no_grad():
        weights = model(torch.from_numpy(ids[:, :-1]), output_attentions=True, use_cache=False).attentions
    for layer, w_BHTT in enumerate(weights):
        for head in range(4):
            distance, entropy, first, profile, queries = 0.0, 0.0, 0.0, np.zeros(20), 0
            for rows in w_BHTT[:, head].double().numpy():
                for t in range(10, 20):
                    queries += 1
                    row = rows[t, : t + 1]
                    distance += sum(w * (t - s) for s, w in enumerate(row))
                    entropy -= sum(w * math.log(w) for w in row if w > 0)
                    first += row[0]
                    profile[: t + 1] += row[::-1]
            assert found.distance[layer, head] == pytest.approx(distance / queries, rel=1e-4)
            assert found.entropy[layer, head] == pytest.approx(entropy / queries, rel=1e-4)
            assert found.first[layer, head] == pytest.approx(first / queries, rel=1e-3)
            np.testing.assert_allclose(found.profile[layer, head], profile / queries, rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(found.profile.sum(axis=-1), 1, rtol=1e-5)
    assert (found.wavelengths < math.inf).any() == (name == "rope")


def test_attention_spread_evenly_is_the_reference(tiny):
    model = tiny("none", attention="eager")
    with torch.no_grad():
        for layer in model.layers:
            layer.attention.query_key_value.weight.zero_()
            layer.attention.query_key_value.bias.zero_()
    found = measure.look(model, *windows())
    for name, even in zip(("distance", "entropy", "first"), found.uniform, strict=True):
        np.testing.assert_allclose(getattr(found, name), even, rtol=1e-5)


def test_the_probe_is_ridge_regression():
    """Against numpy's least squares on the augmented system."""
    rng = np.random.default_rng(0)
    M, T, D = 8, 10, 6
    documents = np.repeat(np.arange(M), T).reshape(M, T)
    position = np.broadcast_to(np.arange(T), (M, T))
    states = rng.normal(size=(M, T, D)) + 0.3 * position[..., None] * rng.normal(size=D)
    probe = measure._Probe(measure._fitted(documents), T)
    for rows in (np.arange(3), np.arange(3, M)):
        probe.add([torch.from_numpy(states[rows]).float()], rows)
    errors, spread = probe.tested(documents)
    x, y = states[::2].reshape(-1, D), position[::2].ravel()
    penalty = measure._RIDGE * x.var(axis=0).mean() * len(x)
    centred = np.vstack([x - x.mean(0), math.sqrt(penalty) * np.eye(D)])
    slope = np.linalg.lstsq(centred, np.concatenate([y - y.mean(), np.zeros(D)]), rcond=None)[0]
    residual = position[1::2] - (y.mean() + (states[1::2] - x.mean(0)) @ slope)
    np.testing.assert_allclose(errors[0], (residual**2).sum(axis=1), rtol=1e-3)
    np.testing.assert_allclose(spread, ((position[1::2] - y.mean()) ** 2).sum(axis=1), rtol=1e-9)
    assert 0.5 < 1 - errors.sum() / spread.sum() <= 1


def test_position_is_found_where_it_was_put_and_not_where_it_was_not(tiny):
    """Random tokens: the embeddings of NoPE hold no position, those of a learned table do."""
    ids, documents = windows(M=200, T=20)
    r2 = {}
    for name in ("none", "learned"):
        model = tiny(name, attention="eager", max_position_embeddings=20)
        one = measure.look(model, ids, documents)
        r2[name] = 1 - one.probe_errors.sum(axis=1) / one.probe_spread.sum()
    assert abs(r2["none"][0]) < 0.1
    assert r2["learned"][0] > 0.6


def test_documents_fitted_on_are_not_tested_on():
    _, documents = windows()
    fitted = measure._fitted(documents)
    assert not set(documents[fitted]) & set(documents[~fitted])
    alone = measure._fitted(np.zeros((4, 5), int))
    assert alone.any(axis=1).tolist() == [True, False, True, False]


class _Bigrams(nn.Module):
    """Losses that depend on a token and the one before it alone: order further back is worth nothing to it."""

    device = torch.device("cpu")

    def losses(self, ids, targets):
        return ((7 * ids + targets) % 11).float()


class _Sums(nn.Module):
    """Losses that depend on which tokens came before, in whatever order."""

    device = torch.device("cpu")

    def losses(self, ids, targets):
        return ids.cumsum(1).float()


def test_what_order_is_worth_to_models_whose_use_of_it_is_known():
    ids, documents = windows(T=60)
    shuffled, removed, tokens, kept = measure._order(_Bigrams(), ids, documents)
    assert kept.tolist() == [0, 8, 32]
    assert not shuffled.any()
    assert not removed.any()
    assert tokens.tolist() == [16] * 6
    shuffled, removed, _, _ = measure._order(_Sums(), ids, documents)
    assert not shuffled.any()
    for n, left in enumerate((52, 44, 20)):
        gone = -8.0 * ids[:, :left].sum(axis=1)
        np.testing.assert_allclose(removed[n], gone.reshape(6, 2).sum(axis=1))


def test_order_is_measured_on_the_same_targets(tiny):
    ids, documents = windows()
    model = tiny("rope", attention="eager")
    one = measure.look(model, ids, documents)
    assert (one.shuffled != 0).all()
    with torch.no_grad():
        losses = measure._last_losses(model, ids, 8)
        whole = model.losses(torch.from_numpy(ids[:, :-1]), torch.from_numpy(ids[:, 1:]))
        near = model.losses(torch.from_numpy(ids[:, 4:-1]), torch.from_numpy(ids[:, 5:]))
    np.testing.assert_allclose(losses, whole[:, -8:], rtol=1e-4)
    rise = (near - whole[:, 4:])[:, -8:].double().sum(dim=1).numpy().reshape(6, 2).sum(axis=1)
    np.testing.assert_allclose(one.removed[1], rise, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "options", "turning"),
    [("rope", {"rotary_pct": 0.5}, 8), ("p_rope", {"p": 0.5}, 8), ("xpos", {"rotary_pct": 1.0}, 16), ("none", {}, 0)],
)
def test_wavelengths_say_when_a_dimension_is_back(name, options, turning):
    hooks = encodings.build(name, options, Shape(64, 4, 16, 2, 64))
    waves = hooks.wavelengths()
    assert waves.shape == (16,)
    assert int((waves < math.inf).sum()) == turning
    if name == "rope":
        q = torch.randn(1, 4, 1, 16)
        at = torch.tensor([[710]])  # 113 turns of 2π, to five digits
        assert 710 / float(waves[0]) == pytest.approx(113, abs=1e-4)
        turned, _ = hooks.transform_qk(q, q, at, None)
        torch.testing.assert_close(turned[..., [0, 4]], q[..., [0, 4]], atol=0.02, rtol=0)
        assert waves[0] == waves[4]


def test_values_are_those_that_meet(tiny):
    ids, documents = windows(M=2)
    model = tiny("rope", attention="eager")
    found = measure.look(model, ids, documents)
    x = model.layers[0].input_layernorm(model.embed_in(torch.from_numpy(ids[:, :-1])))
    q, k, _ = model.layers[0].attention.query_key_value(x).view(2, 20, 4, 48).chunk(3, dim=-1)
    for i, vectors in enumerate((q, k)):
        root = vectors.detach().pow(2).mean(dim=(0, 1)).sqrt()
        np.testing.assert_allclose(found.values[i, 0, :, 4:], root[:, 4:], rtol=1e-4)  # 4 of 16 dimensions turn
        pairs, expected = (values[:, :2] ** 2 + values[:, 2:4] ** 2 for values in (found.values[i, 0], root.numpy()))
        np.testing.assert_allclose(pairs, expected, rtol=1e-4)
    assert not any("attend" in vars(layer.attention) for layer in model.layers), "nothing is left behind"


def test_measured_once_then_read(trained, found, monkeypatch):
    monkeypatch.setattr(measure, "look", None)
    again = measure.diagnose(trained[0], 20)
    assert all(np.array_equal(a, b) for a, b in zip(again, found[0], strict=True))


def test_a_published_result_needs_no_weights(trained, found, tmp_path):
    """Encodings' pages show where trained heads look, on machines that never trained them."""
    publish_records(trained, tmp_path)
    stale = tmp_path / "book" / "page" / trained[0].run / "diagnosis-0-20.npz"
    stale.write_bytes(b"of other weights")
    publish_records(trained, tmp_path)
    assert not stale.exists()
    for file in tmp_path.rglob("diagnosis-*-20.npz"):
        file.rename(file.with_name(file.name.replace("20", str(measure.WINDOWS))))
    looked = index.looked_into([{record.label: [record] for record in records.load_all(tmp_path / "book")}])
    assert not list(tmp_path.rglob("model"))
    assert {record.label for record in looked} == {record.label for record in trained}
    nope = next(one for record, one in zip(trained, found, strict=True) if record.label == "NoPE")
    assert f"NoPE {nope.distance.mean():.1f} tokens" in index.looking(looked)
    assert "NoPE" in figures.describe(index.heads(looked))
    assert index.looked_into([]) == []
    assert index.looking([]) == ""
    assert index.heads([]) is None


def test_what_cannot_be_looked_into_is_named(trained, tmp_path):
    record = records.load(trained[0].folder)
    record.save(tmp_path)
    with pytest.raises(RecordError, match=r"its weights are not in .*train it again to look inside"):
        measure.diagnose(records.load(tmp_path))
    (tmp_path / "diagnosis-1-20.npz").write_bytes(b"nothing")
    with pytest.raises(RecordError, match=r"'diagnosis-1-20.npz' cannot be read .*delete it to measure again"):
        measure.diagnose(records.load(tmp_path), 20)


def test_frames_figures_and_tables(trained, found):
    probes, order = measure.probes(trained, found), measure.order(trained, found)
    heads, summary = measure.heads(trained, found), measure.summary(trained, found)
    values = measure.values(trained, found)
    assert list(probes[probes.label == "NoPE"].layer) == [0, 1, 2, 3, 4]
    assert probes.set_index(["label", "layer"]).r2["Learned", 0] > probes.set_index(["label", "layer"]).r2["NoPE", 0]
    assert len(heads) == 4 * 4 * 4
    assert summary.label.tolist() == ["RoPE 25 %", "NoPE", "Learned", "spread evenly"]
    assert summary.distance_low.notna().tolist() == [True, False, False, False]
    assert set(values[values.label == "NoPE"].band) == {"still"}
    assert (values.ratio >= 1).all() or (values[values.band == "still"].ratio >= 1).all()
    styles = figures.styles(records.frame(trained))
    for figure in (
        report.probes_figure(probes, styles),
        report.order_figure(order, styles),
        report.heads_figure(heads, styles, summary.iloc[-1]),
        report.profiles_figure(measure.profiles(trained, found), styles),
        report.norms_figure(measure.norms(trained, found), styles),
    ):
        figure.canvas.draw()
        plt.close(figure)
    shown = [
        report.probes_table(probes),
        report.order_table(order),
        report.attention_table(summary),
        report.wavelengths_table(values),
    ]
    html = "".join(table.to_html() for table in shown)
    for part in ("after layer 4", "nearest left in place", "spread evenly", "RoPE 25 %, keys", "still"):
        assert part in html
    assert "nan" not in report.knows_position(probes) + report.uses_order(order)


def test_even_attention_has_an_even_profile(trained, found):
    """At distances that every query of the second half has: the mean of one over the keys each sees."""
    even = np.tril(np.ones((16, 16))) / np.arange(1, 17)[:, None]
    profile = np.stack([np.bincount(t - np.arange(t + 1), even[t, : t + 1], minlength=16) for t in range(8, 16)]).mean(axis=0)
    flat = found[2]._replace(profile=np.broadcast_to(profile, found[2].profile.shape))
    table = measure.profiles(trained[2:3], [flat])
    np.testing.assert_allclose(table.share[:9], flat.uniform[2])
    assert table.share[15] == pytest.approx(1 / 16)


def test_the_answer_follows_the_intervals():
    def probed(label, *layers):
        return [{"label": label, "layer": i, "r2": r2, "low": low, "high": high} for i, (r2, low, high) in enumerate(layers)]

    table = pd.DataFrame(
        [
            *probed("found out", (0.0, -0.02, 0.02), (0.9, 0.85, 0.95)),
            *probed("told", (0.8, 0.7, 0.85), (0.95, 0.9, 0.99)),
            *probed("blind", (0.0, -0.02, 0.02), (0.01, -0.01, 0.03)),
            *probed("unknown", (0.0, math.nan, math.nan), (0.9, math.nan, math.nan)),
        ]
    )
    said = report.knows_position(table).split("\n\n")
    assert said[0] == "**Infer positions, which their embeddings lack**: found out, R² 0.90 (0.85 to 0.95) after layer 1."
    assert said[1] == "Keep the positions that their embeddings hold: told, R² 0.95 (0.90 to 0.99) after layer 1."
    assert said[2] == "No layer encodes position significantly better than the embeddings: blind, R² 0.00 (−0.02 to 0.02)."
    assert said[3].startswith("No interval, so nothing can be concluded: unknown")
    rises = [("a", 0, 0.5, 0.4, 0.6, 0.001), ("a", 8, 0.01, -0.01, 0.03, 0.3), ("b", 0, 0.2, math.nan, math.nan, math.nan)]
    frame = pd.DataFrame(rises, columns=["label", "kept", "rise", "low", "high", "p_holm"])
    said = report.uses_order(frame.assign(change="shuffled", differs=frame.p_holm < 0.05)).split("\n\n")
    assert said[0] == (
        "All earlier tokens shuffled. The loss **rises** for a, +0.500 (0.400 to 0.600). "
        "Nothing can be concluded, without an interval, for b, +0.200."
    )
    assert said[1] == "All but the nearest 8 tokens shuffled. No difference is found for a, +0.010 (−0.010 to 0.030)."


def test_several_are_looked_into_at_once(trained, found, monkeypatch):
    asked = []
    monkeypatch.setattr(measure.processes, "map_processes", lambda function, jobs, workers: asked.extend(jobs))
    again = measure.diagnose_all(trained[:2], 20)
    assert asked == [record.run for record in trained[:2]]
    assert isinstance(again[0], Diagnosis)


@pytest.mark.slow
def test_the_notebook_in_small(library, tmp_path):
    given = {"samples": 300, "seq_len": 32, "seeds": "1", "models": "none,rope", "windows": 20}
    given |= {"torch_compile": "off", "preset": "nano", "corpus": library, "runs_dir": tmp_path / "runs"}
    parameters = [part for name, value in given.items() for part in ("-p", name, str(value))]
    finished = run_notebook(ROOT / "notebooks/diagnostics.ipynb", tmp_path / "out.ipynb", *parameters)
    assert finished.returncode == 0, finished.stderr
    assert "All earlier tokens shuffled" in " ".join(outputs(tmp_path / "out.ipynb", "text/markdown"))
    assert len(outputs(tmp_path / "out.ipynb", "image/svg+xml")) == 5
    run = next((tmp_path / "runs").glob("none-*")).name
    again = run_notebook(ROOT / "notebooks/diagnostics.ipynb", tmp_path / "again.ipynb", *parameters, "-p", "run_ids", run)
    assert again.returncode == 0, again.stderr
    assert "RoPE" not in "".join(outputs(tmp_path / "again.ipynb", "text/html"))
