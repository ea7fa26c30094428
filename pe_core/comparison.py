"""Several models, several seeds: runs that differ in nothing but the seed form a group, groups are compared in pairs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pe_core import metrics, stats
from pe_core.errors import RecordError, unknown
from pe_core.metrics import HeldOut
from pe_core.records import RECORD, Record, load
from pe_core.stats import Estimate, Paired

Groups = dict[str, list[Record]]
Part = slice | tuple[slice, ...]  # of held-out losses by document and position; () is all


def groups(records: Sequence[Record]) -> Groups:
    """Records by label, each group sorted by seed. Within groups a label is as good as an identity: two models that share one
    are refused, and a record's label follows from its settings.

    Raises:
        RecordError: two runs of a group differ in more than the seed, or were measured on different text. Those that
            training started from may differ in the seed as well.
    """
    found: Groups = {}
    for record in sorted(records, key=lambda record: record.config["seed"]):
        found.setdefault(record.label, []).append(record)
    in_order = {record.label: found[record.label] for record in records}
    for label, group in in_order.items():
        for a, b in pairwise(group):
            if a.config["seed"] == b.config["seed"]:
                raise RecordError(f"two runs of '{label}' have the same seed: {a.run}, {b.run}")
        for record in group[1:]:
            first, this = _settings(group[0]), _settings(record)
            if changed := [name for name, value in this.items() if value != first[name]]:
                raise RecordError(f"runs {group[0].run} and {record.run} of '{label}' differ in {', '.join(changed)}")
            if record.data["fingerprint"] != group[0].data["fingerprint"]:
                raise RecordError(f"runs {group[0].run} and {record.run} of '{label}' were measured on different text")
    return in_order


def _settings(record: Record) -> dict[str, Any]:
    """All settings but the seed and `TEXT`. In place of the run that training started from: that run's, where it is there."""
    # Through Experiment: a record made before a setting existed has that setting's default.
    settings = {name: value for name, value in record.experiment if name not in ("seed", *TEXT)}
    if settings["start"] is not None and (file := record.folder.parent / settings["start"] / RECORD).exists():
        settings["start"] = _settings(load(file))
    return settings


def named_by(records: Sequence[Record], setting: str) -> list[Record]:
    """The same records with one setting in their labels, where that is what is compared."""
    return [record.named(str(record.config[setting])) for record in records]


def pooled(group: list[Record]) -> HeldOut:
    """The group's held-out losses added up over seeds: for curves of the mean loss, with intervals over documents."""
    return pool([record.heldout for record in group])


def pool(parts: Sequence[HeldOut]) -> HeldOut:
    """Losses of several models on the same text, added up."""
    return HeldOut(*(np.sum(arrays, axis=0) for arrays in zip(*parts, strict=True)))


def difference(group: list[Record], baseline: list[Record]) -> Paired:
    """By how many percent the group's perplexity is higher than the baseline's, paired by seed and document.

    100 · (exp(mean difference of losses) - 1); see `stats.paired` for the interval.

    Raises:
        RecordError: no common seed, or different held-out text.
    """
    pairs = by_seed(group, baseline)
    if len({record.data["fingerprint"] for pair in pairs for record in pair}) > 1:
        raise RecordError(f"'{group[0].label}' and '{baseline[0].label}' were measured on different text")
    return percent(paired([(a.heldout, b.heldout) for a, b in pairs]))


# The same text may lie at several paths: the fingerprint of its windows says whether it is the same.
TEXT = {"corpus", "tokenizer", "facts"}
# What may differ between two models that are compared with each other.
COMPARED = {"encoding", "options", "attention", "kv_dim", "rope_dim", "seed", "lr"}


def settings(found: Iterable[Record]) -> list[list[Record]]:
    """Records apart by what must be equal for a comparison (size, text, training), the setting with most encodings first; of
    those with as many, the one with most text."""
    apart: dict[str, list[Record]] = {}
    for record in found:
        config = dict(record.experiment)  # through Experiment: settings younger than the record have their defaults
        key = [config[name] for name in sorted(config) if name not in COMPARED | TEXT]
        apart.setdefault(repr([key, record.data["fingerprint"]]), []).append(record)
    return sorted(apart.values(), key=_weight, reverse=True)


def _weight(group: list[Record]) -> tuple[int, int, int]:
    return len({record.config["encoding"] for record in group}), group[0].data["windows"]["train"], len(group)


def rates_tried(trained: Iterable[Record]) -> list[tuple[list[Record], dict[float, float], float]]:
    """Runs that differ in nothing but seed and learning rate, the validation loss at each rate that was tried, with the seed
    for which most were, and the rate with the lowest."""
    alike: dict[str, list[Record]] = {}
    for record in sorted(trained, key=lambda record: record.experiment.seed):
        settings = {name: value for name, value in _settings(record).items() if name != "lr"}
        alike.setdefault(repr((settings, record.data["fingerprint"])), []).append(record)
    found = []
    for runs in alike.values():
        losses: dict[int, dict[float, float]] = {}
        for run in runs:
            losses.setdefault(run.experiment.seed, {})[run.experiment.lr or 0] = min(e["val_loss"] for e in run.history)
        tried = max(losses.values(), key=len)
        found.append((runs, tried, min(tried, key=tried.__getitem__)))
    return found


def at_chosen_rates(trained: Iterable[Record]) -> list[Record]:
    """The runs at the learning rate with the lowest validation loss: for each model and number of training windows its own."""
    return [run for runs, _, best in rates_tried(trained) for run in runs if (run.experiment.lr or 0) == best]


def by_seed(group: Sequence[Record], baseline: Sequence[Record]) -> list[tuple[Record, Record]]:
    """Each record of the group with the baseline's of the same seed. Raises RecordError where no seed is common."""
    theirs = {record.config["seed"]: record for record in baseline}
    pairs = [(record, theirs[record.config["seed"]]) for record in group if record.config["seed"] in theirs]
    if not pairs:
        raise RecordError(f"'{group[0].label}' and '{baseline[0].label}' have no seed in common")
    return pairs


def paired(pairs: Sequence[tuple[HeldOut, HeldOut]]) -> Paired:
    """By how many nats a token the first loss of each pair is higher than the second, on the same documents."""
    differences = np.stack([a.losses.sum(axis=1) - b.losses.sum(axis=1) for a, b in pairs])
    return stats.paired(differences, pairs[0][0].tokens.sum(axis=1))


def percent(nats: Paired) -> Paired:
    """A difference of losses as one of perplexities, in percent; error and degrees of freedom stay those in nats."""
    *ends, detectable = (100 * math.expm1(value) for value in (*nats.estimate, nats.detectable))
    return nats._replace(estimate=Estimate(*ends), detectable=detectable)


def frame(found: Groups, baseline: str) -> pd.DataFrame:
    """One row per group: perplexity over the seeds that all have, its verdict against the baseline (`verdicts`), costs.

    Columns `percent`, `low`, `high`, `p`, `p_holm` and `detectable` are NaN for the baseline; `differs` is whether `p_holm` is
    below 0.05; `leads` whether a model has the lowest loss, or no difference from the one that has was found.

    Raises:
        RecordError: there is no group called `baseline`.
    """
    if baseline not in found:
        raise RecordError(unknown("baseline", baseline, found))
    found = of_common_seeds(found)
    judged = verdicts(found) if len(found) > 1 else pd.DataFrame(columns=["b", *_JUDGED], dtype=object)
    rows = []
    for label, group in found.items():
        perplexity = stats.over_seeds([record.metrics["perplexity"]["value"] for record in group])
        bits = stats.over_seeds([record.metrics["bits_per_byte"]["value"] or math.nan for record in group])
        speed = float(np.mean([record.runtime["tokens_per_second"] or math.nan for record in group]))
        about = {"label": label, "family": group[0].family, "seeds": len(group)}
        for name, (value, low, high) in (("perplexity", perplexity), ("bits_per_byte", bits)):
            about |= {name: value, f"{name}_low": low, f"{name}_high": high}
        seconds, memory = zip(*((run.runtime["train_seconds"], run.runtime["peak_memory_mb"]) for run in group), strict=True)
        about |= {"best_epoch": [record.best_epoch for record in group], "parameters": group[0].parameters}
        rows.append({**about, "train_seconds": sum(seconds), "tokens_per_second": speed, "peak_memory_mb": max(memory)})
    against = judged[judged.b == baseline].set_index("a")[_JUDGED[1:]].reindex([row["label"] for row in rows])
    table = pd.concat([pd.DataFrame(rows), against.reset_index(drop=True)], axis=1)
    return table.assign(differs=table.verdict.isin(["lower", "higher"]), leads=table.label.isin(best(found, judged)))


_JUDGED = ["a", "percent", "low", "high", "p", "p_holm", "detectable", "verdict"]


def verdicts(found: Groups, part: Part = (), since: Groups | None = None) -> pd.DataFrame:
    """Every pair of models, judged together: what any page says of two of them, it reads here.

    Seed variance is pooled over the models and documents are resampled (`stats.contrasts`); p-values are corrected for all
    pairs (Holm) and intervals likewise (`stats.tested_among`), so that the best model may be picked after looking.

    Args:
        part: of the runs' held-out losses, by document and position, those to judge by: a source of a mixture, say (`sources`).
        since: the same models after less training. What is judged then is by how much each difference has changed since.

    Returns:
        columns a, b, percent (by how much a's perplexity is higher than b's), low, high, p, p_holm, detectable (the smallest
        difference that four of five such comparisons would find) and verdict: `lower`, `higher` or `no difference found`;
        one row for each ordered pair.

    Raises:
        RecordError: fewer than two models, no common seed, or different held-out text.
    """
    labels, losses_MSD, tokens_D = _stack(found, part) if since is None else _changes(found, since, part)
    M, told = len(labels), stats.contrasts(losses_MSD, tokens_D)
    above = np.triu_indices(M, 1)
    p_holm, among = np.full((2, M, M), np.nan)
    for matrix, corrected in ((p_holm, stats.holm(told.p[above])), (among, stats.tested_among(told.p[above]))):
        matrix[above] = matrix.T[above] = corrected
    reach = stats.quantile(told.freedom, among) * told.errors
    power = stats.detectable(told.errors, told.freedom, len(above[0]))
    table = []
    for i, j in ((i, j) for i in range(M) for j in range(M) if i != j):
        d, half = told.differences[i, j], reach[i, j]
        verdict = NO_DIFFERENCE if not p_holm[i, j] < 0.05 else "lower" if d < 0 else "higher"
        ends = (100 * math.expm1(value) for value in (d, d - half, d + half))
        row = dict(zip(("percent", "low", "high"), ends, strict=True), p=told.p[i, j], p_holm=p_holm[i, j])
        table.append({"a": labels[i], "b": labels[j], **row, "detectable": 100 * math.expm1(power[i, j]), "verdict": verdict})
    return pd.DataFrame(table)


NO_DIFFERENCE = "no difference found"


def best(found: Groups, judged: pd.DataFrame) -> list[str]:
    """The model with the lowest loss, and after it all those of which `verdicts` found no difference from it, best first."""
    losses = {label: float(np.mean([record.metrics["loss"] for record in group])) for label, group in found.items()}
    first = min(losses, key=lambda label: losses[label])
    return [first, *sorted(judged[(judged.b == first) & (judged.verdict == NO_DIFFERENCE)].a, key=losses.__getitem__)]


def of_common_seeds(found: Groups) -> Groups:
    """The runs of those seeds that all models have; of each model none where there is no such seed."""
    seeds = set.intersection(*({record.config["seed"] for record in group} for group in found.values()))
    return {label: [record for record in group if record.config["seed"] in seeds] for label, group in found.items()}


def _stack(found: Groups, part: Part = ()) -> tuple[list[str], stats.Floats, NDArray[np.int64]]:
    """Labels, summed losses by model, common seed and document, and tokens by document."""
    if len(found) < 2:
        raise RecordError(f"{len(found)} model(s): two are needed for a comparison")
    chosen = list(of_common_seeds(found).values())
    if not all(chosen):
        raise RecordError(f"{', '.join(found)}: no seed in common")
    if len({record.data["fingerprint"] for group in chosen for record in group}) > 1:
        raise RecordError(f"{', '.join(found)}: measured on different text")
    losses = np.array([[record.heldout.losses[part].sum(axis=1) for record in group] for group in chosen])
    return list(found), losses, chosen[0][0].heldout.tokens[part].sum(axis=1)


def _changes(found: Groups, since: Groups, part: Part) -> tuple[list[str], stats.Floats, NDArray[np.int64]]:
    """`_stack` of what the losses of the common models and seeds have risen by since."""
    _need_same_models(found, since)
    seeds = {record.config["seed"] for groups in (found, since) for group in groups.values() for record in group}
    for group in [group for label in found if label in since for group in (found[label], since[label])]:
        seeds &= {record.config["seed"] for record in group}
    now, then = (
        {label: [record for record in groups[label] if record.config["seed"] in seeds] for label in found if label in since}
        for groups in (found, since)
    )
    labels, losses_MSD, tokens_D = _stack(now, part)
    _, before_MSD, before_D = _stack(then, part)
    if not np.array_equal(tokens_D, before_D):
        raise RecordError(f"{', '.join(labels)}: measured on different text than before")
    return labels, losses_MSD - before_MSD, tokens_D


def _need_same_models(a: Groups, b: Groups) -> None:
    """Raises RecordError: one label stands for two models."""
    for label in a:
        if label in b and a[label][0].identity != b[label][0].identity:
            raise RecordError(f"runs {a[label][0].run} and {b[label][0].run} are both '{label}' and differ in their settings")


def of_encoding(found: Groups, name: str) -> str | None:
    """The label of the model with this encoding and multi-head attention; `None` where there is none."""
    settings = {label: group[0].experiment for label, group in found.items()}
    return next((label for label, e in settings.items() if (e.encoding, e.attention) == (name, "mha")), None)


def sources(record: Record) -> dict[str, slice]:
    """Which rows of a run's held-out losses belong to each source of a mixture; none for a corpus of one source."""
    ends = np.cumsum(list(record.data.get("sources", {}).values())).tolist()
    return {name: slice(start, end) for name, start, end in zip(record.data.get("sources", {}), [0, *ends], ends, strict=False)}


def rank_correlation(a: Groups, b: Groups, rows_a: Part = (), rows_b: Part = ()) -> Estimate:
    """Spearman's correlation between two rankings of the same models (two budgets, two kinds of text), with its 95 % interval.

    The interval is over seeds and documents: models' means are drawn anew, from resamples of the documents and normal noise of
    the pooled seed variance. Noise makes two rankings differ more than the true ones do, so the interval lies low.
    """
    _need_same_models(a, b)
    shared = [label for label in a if label in b]
    drawn = [_draw_means({label: found[label] for label in shared}, rows) for found, rows in ((a, rows_a), (b, rows_b))]
    (means_a, draws_a), (means_b, draws_b) = drawn
    low, high = np.quantile(stats.spearman(draws_a, draws_b), [0.025, 0.975])
    return Estimate(float(stats.spearman(means_a, means_b)), float(low), float(high))


def _draw_means(found: Groups, part: Part) -> tuple[stats.Floats, stats.Floats]:
    """Each model's mean loss (M,), and as it might have come out with other seeds and documents (M, RESAMPLES)."""
    _, losses_MSD, tokens_D = _stack(found, part)
    over_documents = stats.resampled_means(losses_MSD.mean(axis=1), tokens_D)
    noise = np.random.default_rng(len(found)).standard_normal(over_documents.shape) * stats.seed_error(losses_MSD, tokens_D)
    return losses_MSD.sum(axis=2).mean(axis=1) / tokens_D.sum(), over_documents + noise


def curves(found: Groups, baseline: str | None = None) -> dict[str, pd.DataFrame]:
    """Perplexity by position for each group: see `metrics.position_curve`. With a baseline, and but for it: their ratio to the
    baseline's, of the same seeds and documents."""
    pools = {label: pooled(group) for label, group in (of_common_seeds(found) if baseline else found).items()}
    of = pools.pop(baseline) if baseline else None
    return {label: metrics.position_curve(heldout, against=of) for label, heldout in pools.items()}
