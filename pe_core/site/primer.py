"""Live examples of the page "Position encoding in ten minutes", computed from the classes and records as the page is made."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from pe_core.encodings import ENCODINGS
from pe_core.report import claims, figures
from pe_core.site import encoding_page
from pe_core.studies.ranking import measure as ranking

SENTENCES = ("the dog bites the man", "the man bites the dog")
# One of each family, with the options it is shown with.
FAMILIES: dict[str, dict[str, object]] = {
    "none": {},
    "sinusoidal": {"scale": 0.08},
    "rope": {"rotary_pct": 1.0},
    "alibi": {},
    "fox": {},
}


@torch.no_grad()
def next_token(name: str, sentences: Sequence[str] = SENTENCES, layers: int = 1) -> list[np.ndarray]:
    """Probabilities of the token after each sentence, of an untrained model; words are tokens, and each sentence ends with the
    same word, so that the query is the same."""
    words = sorted({word for sentence in sentences for word in sentence.split()} | {"."})
    built = encoding_page.model(name, small=layers == 1)
    with torch.random.fork_rng([]):  # larger weights than training starts with, so that a difference can be seen
        torch.manual_seed(0)
        for parameter in built.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.15)
    ids = torch.tensor([[words.index(word) for word in f"{sentence} .".split()] for sentence in sentences])
    return list(built(ids, use_cache=False).logits[:, -1].softmax(-1).double().numpy())


def same_words_in_another_order(names: Sequence[str] = ("none", "learned", "rope", "alibi")) -> pd.DataFrame:
    """How far two orders of the same words differ in what a model says next: half the sum of absolute differences of
    probabilities, in percent, with one layer of attention and with four."""
    rows = {}
    for name in names:
        found = {}
        for layers in (1, 4):
            first, second = next_token(name, layers=layers)
            found["one layer" if layers == 1 else f"{layers} layers"] = f"{50 * np.abs(first - second).sum():.1f} %"
        rows[ENCODINGS[name].title] = found
    return pd.DataFrame.from_dict(rows, orient="index")


def families_figure(tokens: int = 64) -> Figure:
    """Score by distance of one encoding of each family, each on its own scale."""
    figure, axes = plt.subplots(len(FAMILIES), 1, sharex=True, figsize=(figures.WIDTH, 1.5 * len(FAMILIES) + 0.6))
    said = []
    for ax, (name, options) in zip(axes, FAMILIES.items(), strict=True):
        lines = encoding_page.scores(name, dict(options), tokens, small=True)[:, -1, ::-1]
        colour = figures.FAMILY_COLOURS[ENCODINGS[name].family]
        for line, dash in zip(lines, ("-", "--", "-.", ":"), strict=False):
            ax.plot(line, color=colour, ls=dash, lw=1.6)
        low = float(np.nanmin(lines))
        ax.set_title(f"{ENCODINGS[name].title} ({_family(name)})", loc="left", fontsize=11)
        ax.set_ylim(min(1.15 * low, -1), 0.15 * max(-low, 1))
        said.append(f"{ENCODINGS[name].title} from 0 to {low:.1f}")
    axes[-1].set_xlabel("distance from the query, tokens")
    figure.supylabel("score, nats", fontsize=11)
    return figures.set_alt_text(
        figure, f"Score of earlier tokens by distance where all tokens are the same: {'; '.join(said)}."
    )


def _family(name: str) -> str:
    return {"none": "no position encoding", "bias": "a bias on the scores", "content": "a bias that depends on the text"}.get(
        ENCODINGS[name].family, ENCODINGS[name].family
    )


def perplexity(budgets: ranking.Budgets, baseline: str) -> str:
    """What a perplexity and an interval say, with this lab's own numbers; "" where there are none."""
    if not budgets:
        return ""
    samples, groups = list(budgets.items())[-1]
    rows = ranking.differences(budgets, baseline)
    rows = rows[(rows.samples == samples) & (rows.label != baseline)]
    best, tie = rows.loc[rows.percent.idxmin()], rows.loc[rows.percent.abs().idxmin()]
    level = float(np.exp(np.mean([record.metrics["loss"] for record in groups[baseline]])))
    said = (
        f"**Perplexity.** The model with {baseline} has, after {best.tokens / 1e6:.1f} M training tokens, a test perplexity "
        f"of {level:.1f}: on held-out text it is, on average, as uncertain about the next token as if it had to choose among "
        f"{level:.0f} equally likely tokens of a vocabulary of {groups[baseline][0].experiment.vocabulary:,}. Lower is better; "
        "1 % is little, 10 % is a lot.\n\n"
        f"**Interval.** {best.label} has {claims.as_percent(best)} perplexity against it. The number in front is what these "
        "runs gave; the brackets are the range it could have with other documents and other seeds. "
    )
    if tie.low < 0 < tie.high:
        said += (
            f"{tie.label} has {claims.as_percent(tie)}: the brackets contain zero, so these runs do not show which "
            "of the two is better, and this site says *no difference found*."
        )
    return said
