"""The site at large: every published record beside every other. The front page, the page of results and the encodings' own
pages read what is here; nothing is typed by hand and nothing has to be registered, records and files are found."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import yaml
from matplotlib.figure import Figure

from pe_core import comparison, encodings, paths, recipes, records, stats
from pe_core.comparison import Groups
from pe_core.config import Experiment
from pe_core.encodings import ENCODINGS
from pe_core.records import Record
from pe_core.report import claims, compare, figures, tables
from pe_core.site import encoding_page
from pe_core.studies.diagnostics import measure as diagnostics
from pe_core.studies.diagnostics import report as diagnostics_report
from pe_core.studies.extrapolation import measure as extrapolation
from pe_core.studies.ranking import measure as ranking
from pe_core.studies.ranking import report as ranking_report
from pe_core.studies.task_accuracy import measure as task_accuracy
from pe_core.studies.throughput import measure as throughput

BOOK = paths.ROOT / "book"
RANKING = "ranking"  # the study of the front page, by the name of its notebook


OWN_RUNS = "PE_PAGES_RUNS"  # the variable that names a folder of runs to show beside the published ones


def _all() -> list[Record]:
    """The published runs, and those of the folder that `python -m pe_core.site.pages --runs` was given."""
    found = records.load_all(paths.PUBLISHED) if paths.PUBLISHED.is_dir() else []
    if own := os.environ.get(OWN_RUNS):
        known = {record.run for record in found}
        found = sorted([*found, *(r for r in records.load_all(own) if r.run not in known)], key=lambda r: (r.created, r.run))
    return found


def published() -> list[Record]:
    """The runs on text that pages of the site show; of models tried at several learning rates, those at the rate chosen."""
    return comparison.at_chosen_rates(record for record in _all() if record.experiment.task is None)


def compared(found: Sequence[Record]) -> list[Groups]:
    """The models that are judged together: those of the ranking at each budget, as every page says of them, then all of each
    setting, among them what the ranking does not hold."""
    return [*ranked().values(), *map(comparison.groups, comparison.settings(found))]


def of_tasks() -> list[Record]:
    """The runs on generated tasks that pages of the site show. Perplexities of these compare with no text's."""
    return [record for record in _all() if record.experiment.task]


def baseline() -> str:
    """Label of the model others are compared with: RoPE on all dimensions. (Pythia rotates a quarter of them.)"""
    return encodings.label("rope", {"rotary_pct": 1.0})


def ranked() -> ranking.Budgets:
    """The runs of the ranking study, by number of training windows; empty where it is not published."""
    return ranking.by_budget(records.load_study(paths.PUBLISHED / RANKING))


def holding(found: Sequence[Record], names: Sequence[str]) -> Groups:
    """The models of the setting in which most of those with these short names were trained; where several have as many, the
    one with most text."""
    wanted = [Experiment(**recipes.model(name)) for name in names]

    def weight(group: list[Record]) -> tuple[int, int]:
        there = {_kind(record.experiment) for record in group}
        return sum(_kind(one) in there for one in wanted), int(group[0].config.get("samples", 0))

    apart = sorted(comparison.settings(found), key=weight, reverse=True)
    return comparison.groups(apart[0]) if apart and weight(apart[0])[0] else {}


def _kind(made: Experiment) -> tuple[str, str, str]:
    options = encodings.options(made.encoding, made.options).model_dump_json()
    return made.encoding, made.attention, options


def named(group: Sequence[Record]) -> str:
    """A setting in a few words: text, windows, size, and whatever else is not as usual."""
    record = group[0]
    config, usual = dict(record.experiment), dict(Experiment())
    said = f"{record.data['windows']['train']:,} windows of {config['seq_len']} tokens, {config['corpus']}, {config['preset']}"
    quiet = comparison.COMPARED | {"samples", "seq_len", "corpus", "preset", "device", "precision", "compile", "lr"}
    changed = [f"{name} {value}" for name, value in config.items() if name not in quiet and value != usual[name]]
    return ", ".join([said, f"{config['device']} {config['precision']}", *changed])


def findings(budgets: ranking.Budgets) -> str:
    """The front page's answer: who leads after most training, and what changed on the way."""
    if not budgets:
        return "No ranking is published yet: `make experiments NOTEBOOKS=notebooks/ranking.ipynb` makes one."
    return ranking_report.headline(ranking.leaders(budgets), ranking.differences(budgets, baseline()), baseline())


def details(budgets: ranking.Budgets) -> str:
    """What else the ranking says, folded: every model's verdict, and how small a difference could be found."""
    if not budgets:
        return ""
    said = ranking_report.details(ranking.leaders(budgets), ranking.differences(budgets, baseline()), baseline())
    return f":::{{dropdown}} Each model against {baseline()}\n\n{said}\n\n:::"


def caveats(budgets: ranking.Budgets) -> str:
    """How large the runs behind the findings were."""
    if not budgets:
        return ""
    last = list(budgets.values())[-1]
    return (
        f"Each model of the last budget: {claims.scale([record for group in last.values() for record in group])} "
        "A model this small has learned little: what helps it need not help a large one."
    )


def headline() -> tuple[pd.DataFrame, str]:
    """The table behind the preview picture, and the label of the baseline in it."""
    budgets = ranked()
    return (comparison.frame(list(budgets.values())[-1], baseline()) if budgets else pd.DataFrame()), baseline()


def styles(found: Groups) -> dict[str, dict[str, Any]]:
    """Colour and dash of each model."""
    return figures.styles(records.frame([record for group in found.values() for record in group]))


def verdict(name: str, table: pd.DataFrame) -> str:
    """The heading of an encoding's results, and a sentence for each of its models in the ranking study (`judged`)."""
    said = ["## Results"]
    labels = list(dict.fromkeys(table[table.encoding == name].label)) if len(table) else []
    if not labels:
        return (
            f"## Results\n\nNo run with `{name}` is in [the ranking](../experiments/ranking) yet. Train one: "
            f"`papermill notebooks/ranking.ipynb out.ipynb -p models none,rope-full,{name}`."
        )
    for label in labels:
        if label == baseline():
            said.append(f"{label} is what the other encodings are compared with.")
        else:
            rows = table[table.label == label].itertuples()
            at = [f"{_verdict(row)} after {row.tokens / 1e6:.1f} M training tokens" for row in rows]
            said.append(f"{label} against {baseline()}, in test perplexity: {'; '.join(at)}.")
    said.append("[How the ranking changes with training](../experiments/ranking) says how a verdict is reached.")
    return "\n\n".join([*said, "Every model on record with it (▼ lower, ▲ higher; no mark: no difference found):"])


def judged(budgets: ranking.Budgets) -> pd.DataFrame:
    """`ranking.differences` with the baseline among the others, and of each model its encoding, its rank among the models of
    its budget and their number; empty where nothing is published."""
    if not budgets:
        return pd.DataFrame()
    table = ranking.differences(budgets, baseline())
    same = [{"label": baseline(), "percent": 0.0, "samples": samples, "tokens": ranking.tokens(groups)}
            for samples, groups in budgets.items() if baseline() in groups]  # fmt: skip
    table = pd.concat([table, pd.DataFrame(same)], ignore_index=True)
    of = {label: group[0].config["encoding"] for groups in budgets.values() for label, group in groups.items()}
    by_budget = table.groupby("samples").percent
    return table.assign(encoding=table.label.map(of), rank=by_budget.rank(method="min"), among=by_budget.transform("size"))


def glance(
    name: str, budgets: ranking.Budgets, table: pd.DataFrame, longer: pd.DataFrame, asked: pd.DataFrame
) -> dict[str, str]:
    """What published records say of an encoding, a line each: its rank with the verdict where most models were trained
    (`judged`), what it was trained on, longer text (`beyond`), tasks (`answers`), speed. What is not on record has no line."""
    said = {}
    widest = ranking.widest(budgets) if budgets else {}
    groups = {label: group for label, group in widest.items() if group[0].config["encoding"] == name}
    if groups:
        rows = table[table.label.isin(list(groups)) & (table.tokens == ranking.tokens(widest))]
        said["rank"] = "; ".join(
            f"{row.label}: {row.rank:.0f} of {row.among}" + (f", {_verdict(row)}" if row.label != baseline() else "")
            for row in rows.sort_values("rank").itertuples()
        )
        after = f"test perplexity after {ranking.tokens(widest) / 1e6:.1f} M training tokens, against {baseline()}"
        said["rank"] = f"{said['rank'].replace('**', '')} ({after})"
        said["trained"] = claims.scale(next(iter(groups.values()))).rstrip(".")
    if len(longer):
        lengths = [column for column in longer if column.startswith("at ")]
        ranked_too = longer[longer.model.isin(list(groups))]
        said["longer text"] = "; ".join(
            f"{row['model']}: {row[lengths[0]].split(' [')[0]} bits per byte {lengths[0]} tokens, "
            + ("no positions beyond" if row[lengths[-1]] == "–" else f"{row[lengths[-1]].split(' [')[0]} {lengths[-1]}")
            for _, row in (ranked_too if len(ranked_too) else longer).iterrows()
        )
    if len(asked):
        shares = asked.groupby("factor").whole.mean()
        said["tasks"] = f"{100 * shares.get(1.0, shares.iloc[0]):.0f} % of answers right at the trained length, "
        said["tasks"] += f"{100 * shares.iloc[-1]:.0f} % at {shares.index[-1]:g} × (mean of {asked.task.nunique()} tasks)"
    bench = [file for file in sorted((paths.PUBLISHED / throughput.FOLDER).glob("*.json"))]
    if speed := throughput.by_encoding([one for file in bench for one in throughput.load(file)]).get(name):
        said["speed"] = f"{speed:.2f} of the training speed without encoding"
    return said


def claimed(name: str, seen: dict[str, str]) -> str:
    """What papers say beside what was measured here (`glance`); "" where its docstring quotes nothing or there is no run."""
    published = encoding_page.words(name)["Published"]
    measured = [seen[what] for what in ("rank", "longer text") if what in seen]
    if not published or not measured:
        return ""
    return f"## Published against measured here\n\n**Published**: {published}\n\n**Measured here**: {'. '.join(measured)}."


def _verdict(row: Any) -> str:
    if row.verdict == comparison.NO_DIFFERENCE:
        return f"no difference found ({claims.as_percent(row)})"
    return f"**{row.verdict}**, {claims.as_percent(row)}"


def pages() -> Iterator[Path]:
    """The site's pages in the order of the table of contents, as files under `book/`."""
    toc = yaml.safe_load((paths.ROOT / "_toc.yml").read_text())
    for part in toc["parts"]:
        yield from _entries(part["chapters"])


def _entries(chapters: list[dict[str, Any]]) -> Iterator[Path]:
    for chapter in chapters:
        names = [chapter["file"]] if "file" in chapter else []
        for pattern in (name + ".*" for name in [*names, *filter(None, [chapter.get("glob")])]):
            yield from (path for path in sorted(BOOK.glob(pattern)) if path.suffix in (".md", ".ipynb"))
        yield from _entries(chapter.get("sections", []))


def experiments() -> str:
    """Every experiment of the table of contents: its question, and the first thing its page claims."""
    listed = []
    for page in pages():
        if page.parent.name == "experiments":
            content = nbformat.read(page, as_version=4)
            finding = first_claim(content)
            listed.append(f"- [{title(content)}]({page.parent.name}/{page.stem})" + (f"\n\n  {finding}" if finding else ""))
    return "\n".join(listed)


def title(content: Any) -> str:
    """A notebook's heading."""
    text = "\n".join(cell.source for cell in content.cells if cell.cell_type == "markdown")
    return next(line[2:].strip() for line in text.splitlines() if line.startswith("# "))


def first_claim(content: Any) -> str:
    """The first sentence with something in bold that an executed notebook computed, or else the first one at all; its folded
    source code says nothing."""
    outputs = [output for cell in content.cells for output in cell.get("outputs", [])]
    texts = ["".join(output.get("data", {}).get("text/markdown", "")) for output in outputs]
    said = [part for text in texts if not text.startswith("<details>") for part in re.split(r"(?<=\.)\s+(?=[A-Z*])", text)]
    found = next((sentence for sentence in said if "**" in sentence), next(filter(None, said), ""))
    return " ".join(found.split())


def gallery(families: Sequence[str] = ()) -> str:
    """Every encoding by family, with its year, what its docstring says first, and its rank where it was ranked.

    Args:
        families: only these; all where none are named.
    """
    note, ranks = ranked_as()
    said = [note]
    for of, (title, about) in FAMILIES.items():
        if (of in families or not families) and members(of):
            said.append(f"## {title}\n\n{about}\n\n{listed(of, ranks)}")
    return "\n\n".join(said)


def family_page(name: str) -> str:
    """A family's page: what it does to attention, and its members."""
    title, about = FAMILIES[name]
    note, ranks = ranked_as()
    explained = [note] if ranks.keys() & {*members(name)} else []
    return "\n\n".join([f"# {title}", about, listed(name, ranks), *explained, "[All encodings](../encodings/index.ipynb)"])


def members(name: str) -> list[str]:
    """The encodings of a family that have a page, oldest first."""
    there = [one for one in ENCODINGS if family(one) == name and (BOOK / "encodings" / f"{one}.ipynb").exists()]
    return sorted(there, key=lambda one: (ENCODINGS[one].year, one))


def listed(name: str, ranks: dict[str, str]) -> str:
    """A family's members, a line each."""
    return "\n".join(
        f"- [{ENCODINGS[one].title}](../encodings/{one}.ipynb) ({ENCODINGS[one].year}). "
        f"{encoding_page.words(one)['sentence']}{ranks.get(one, '')}"
        for one in members(name)
    )


def ranked_as() -> tuple[str, dict[str, str]]:
    """What the ranks are of, and by encoding its models' ranks where most models were trained."""
    budgets = ranked()
    if not budgets:
        return "", {}
    tokens, table = ranking.tokens(ranking.widest(budgets)), judged(budgets)
    table = table[table.tokens == tokens].sort_values("rank")
    note = (
        f"Ranks are by test perplexity after {tokens / 1e6:.1f} M training tokens, 1 being the lowest. A rank does not "
        "say that two neighbours differ: [the ranking](../experiments/ranking) has the differences and their intervals."
    )
    said = {}
    for name, rows in table.groupby("encoding"):
        ranks = [f"{row.rank:.0f}" + (f" ({row.label})" if len(rows) > 1 else "") for row in rows.itertuples()]
        said[str(name)] = f" Rank{'s' * (len(rows) > 1)} {claims.joined(ranks)} of {rows.among.iloc[0]}."
    return note, said


# A title, and what a family does to attention, in the order of the pages.
FAMILIES = {
    "none": ("No encoding", "Nothing tells attention about positions; a model can learn order only from the causal mask."),
    "absolute": (
        "Absolute",
        "A vector for each position is added to the token's embedding before the first layer; attention itself is unchanged.",
    ),
    "rotary": (
        "Rotary",
        "Queries and keys are rotated by angles that grow with position, so that their score depends on relative position.",
    ),
    "bias": (
        "Relative bias",
        "A term that depends on the distance between query and key is added to their score before the softmax.",
    ),
    "content": (
        "Content-dependent",
        "How strongly an earlier token is attended to, or how far away it counts, is computed from the text itself.",
    ),
    "hybrid": ("Hybrid", "Several encodings work in one model, each in its own layers and heads."),
    "window": (
        "Windows, sinks and temperatures",
        "These change which keys are seen or how scores are scaled, and usually join an encoding of another family.",
    ),
}


def family(name: str) -> str:
    """An encoding's family, as far as it is a known one."""
    return known if (known := ENCODINGS[name].family) in FAMILIES else "none"


def of_encoding(name: str, found: Sequence[Record]) -> list[Groups]:
    """By setting: the models on record with this encoding, and those to compare them with (the baseline, NoPE)."""
    apart = []
    for group in comparison.settings(found):
        labels = {record.label for record in group if record.config["encoding"] == name}
        if labels:
            beside = {baseline(), encodings.label("none", {})} | labels
            apart.append(comparison.groups([record for record in group if record.label in beside]))
    return apart


def results(name: str, judged_together: Sequence[Groups]) -> pd.DataFrame:
    """One row for each model on record with this encoding and each setting it was trained in, with the verdict against the
    baseline, or where that was not trained in the same setting another model (a column names it where there are several), as
    it is where it was first judged (`compared`)."""
    rows: list[dict[str, Any]] = []
    for groups in judged_together:
        told = {(row["model"], row["trained on"]) for row in rows}
        ours = [
            label for label, runs in groups.items() if runs[0].config["encoding"] == name and (label, named(runs)) not in told
        ]
        if not ours:
            continue
        reference = compare.baseline(groups)
        judged = comparison.frame(groups, reference).set_index("label") if reference else None
        for label in ours:
            runs = groups[label]
            values = [record.metrics["perplexity"]["value"] for record in runs]
            row = None if judged is None or label == reference else judged.loc[label]
            rows.append(
                {
                    "model": label,
                    "difference, %": "–" if row is None else tables.marked(row),
                    "perplexity": f"{sum(values) / len(values):.1f}",
                    "against": "–" if row is None else reference,
                    "trained on": named(runs),
                    "seeds": len(runs),
                }
            )
    table = pd.DataFrame(rows)
    references = set(table["against"]) - {"–"} if rows else set()
    if len(references) != 1:
        return table
    return table.drop(columns="against").rename(columns={"difference, %": f"% against {references.pop()}"})


_READING = """## Read beyond the trained length

Bits per byte of the same last tokens, by the length of the context they are read in: the mean over seeds, with 95 % intervals
over them; a dash where there are no such positions.
[Which encoding lets a model read longer text than it was trained on?](../experiments/extrapolation) compares all as trained,
[Can a trained RoPE model be made to read longer text?](../experiments/length_extension) what may stand in for RoPE."""
_ANSWERING = """## Questions with exact answers

Percent of answers right, at 0.5 to 4 times the trained length; brackets are 95 % intervals over seeds.
[Which encodings answer longer questions than they were trained on?](../experiments/tasks) compares all."""


def beyond(name: str, found: Sequence[Record]) -> pd.DataFrame:
    """Models with this encoding, or read with it in place of their own, as they read other lengths (`extrapolation.recorded`),
    of the first setting in which they did: one row each, one column a length."""
    groups: dict[tuple[str, str], list[dict[int, float | None]]] = {}
    for group in comparison.settings([record for record in found if record.config["encoding"] == name or _swaps(name, record)]):
        for record in group:
            for remark, bits in extrapolation.recorded(record).items():
                if record.config["encoding"] == name or remark in _swaps(name, record):
                    groups.setdefault((record.label, remark), []).append(bits)
        if groups:
            break
    rows = []
    for (label, remark), parts in groups.items():
        row = {"model": f"{label}, {remark}" if remark else label}
        for length in parts[0]:
            values = [value for bits in parts if (value := bits.get(length)) is not None]
            row[f"at {length:,}"] = tables.interval(stats.over_seeds(values), 3) if values else "–"
        rows.append(row | {"seeds": str(len(parts))})
    return pd.DataFrame(rows)


def _swaps(name: str, record: Record) -> set[str]:
    """The remarks under which an encoding takes the place of a trained model's own."""
    config, trained = record.config, record.config["seq_len"]
    return set(ENCODINGS[name].stands_in_for(config["encoding"], config["options"], trained, 2 * trained))


def answers(name: str, found: Sequence[Record]) -> pd.DataFrame:
    """Models with this encoding as they answer questions (`task_accuracy.frame`), of each task the setting with most text."""
    asked: dict[str, list[Record]] = {}
    for group in comparison.settings(
        [record for record in found if record.config["encoding"] == name and task_accuracy.asked(record)]
    ):
        asked.setdefault(group[0].config["corpus"], group)
    chosen = [record for group in asked.values() for record in group]
    return task_accuracy.frame(chosen, [task_accuracy.evaluate(record) for record in chosen])


def reading(table: pd.DataFrame) -> str:
    """The heading above the table of `beyond`."""
    return "" if table.empty else _READING


def answering(table: pd.DataFrame) -> str:
    """The heading above the table of `answers`."""
    return "" if table.empty else _ANSWERING


def looked_into(apart: Sequence[Groups]) -> list[Record]:
    """Of the first setting in which some models were looked into (`diagnostics`), the records that have that on record."""
    for groups in apart:
        if looked := [record for group in groups.values() for record in group if diagnostics.looked_into(record)]:
            return looked
    return []


def looking(looked: Sequence[Record]) -> str:
    """The heading above the picture of where trained heads look, and a sentence for each model."""
    if not looked:
        return ""
    summary = diagnostics.summary(looked, [diagnostics.diagnose(record) for record in looked])
    *models, even = summary.itertuples()
    seeds = pd.Series([record.label for record in looked]).value_counts()
    said = [f"{row.label} {row.distance:.1f} tokens{_ends(row)}" for row in models]
    return (
        "## Where its trained heads look\n\n"
        f"How far back a query looks, the mean over all heads: {'; '.join(said)}. Attention spread evenly would look "
        f"{even.distance:.1f} tokens back (windows of {looked[0].config['seq_len']} tokens, queries of the second half"
        f"{'; brackets are 95 % intervals over seeds' if seeds.max() > 1 else '; one seed'}). Below, each mark is one head of "
        "one seed, and dashed is attention spread evenly."
    )


def _ends(row: Any) -> str:
    return "" if math.isnan(row.distance_low) else f" [{row.distance_low:.1f}, {row.distance_high:.1f}]".replace("-", "−")


def heads(looked: Sequence[Record]) -> Figure | None:
    """The picture that `looking` announces; `None` where there is nothing to show."""
    if not looked:
        return None
    found = [diagnostics.diagnose(record) for record in looked]
    even = diagnostics.summary(looked, found).iloc[-1]
    return diagnostics_report.heads_figure(diagnostics.heads(looked, found), figures.styles(records.frame(list(looked))), even)


def script_json(data: Any) -> str:
    """JSON that a script element of a page may hold: nothing in it can end the script or begin a comment there."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text
