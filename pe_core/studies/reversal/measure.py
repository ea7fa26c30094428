"""Does a model that learned "A is B" know that B is A? Facts are asked for the way they were stated and the other way round.

Berglund et al. 2023 (arXiv 2309.12288). Shapes: B batch, T tokens, F facts of a block, R resamples.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from transformers import Cache, DynamicCache

from pe_core import files, hardware, progress, records
from pe_core.attention import Positions
from pe_core.data import facts as fact_sentences
from pe_core.data.facts import Question
from pe_core.launch import processes
from pe_core.model import LabForCausalLM
from pe_core.records import Record
from pe_core.stats import Estimate, bootstrap, holm

DISTRACTORS = 31  # other facts' answers each right answer is compared with: with it, 32 to choose from
RESAMPLES = 9_999
_VERSION = 1  # part of the file's name: raise it when the code below measures something else
_BATCH_TOKENS = 4_096
_SEED = 0

Floats = NDArray[np.float64]
METRICS = ("perplexity", "gain", "rank", "first", "exact")


def evaluate(record: Record, facts: str | None = None) -> dict[str, Any]:
    """How well a trained model knows its facts, in each direction. Computed once, then read from the run's folder.

    Questions of one direction, one way of having been stated and one kind of phrasing form a cell. In a cell, facts are divided
    at random into blocks of about 32; in a block every answer is scored after every prompt. Metrics, with 95 % bootstrap
    intervals over facts:

    - `perplexity`: exp(mean loss over the tokens of the right answers given their prompts).
    - `gain`: log p(right answer | prompt) minus the mean log p(answer of another fact of the block | prompt), in nats. What
      makes an answer likely after any prompt cancels in the mean over the block, and is taken out of each fact's gain, too.
    - `rank` of the right answer among those of the block, 1 is best, ties count half; `first`: the share ranked first.
    - `exact`: the share of prompts that greedy decoding continues with the right answer, token by token.
    - `p`: see `permutation_p`, of the mean gain.

    Answers of the block are as familiar to the model as the right one: they come from facts that were stated in the same way,
    equally often. Facts with a sentence longer than the context length are left out.

    Args:
        facts: what to ask for (see `facts.load`); `None` is what the model was trained on, else `fictional`.

    Returns:
        `facts`, the name, and `cells`, each with `direction`, `stated`, `phrasing`, `facts` (their number), `left_out`,
        `chance` (of ranking first by luck), the metrics, `p`, and `each`: the metrics fact by fact.

    Raises:
        RecordError: the run was trained on a task, or an earlier result cannot be read.
    """
    record.need_text()
    trained_on = record.config.get("facts")
    asked = fact_sentences.load(facts or trained_on or "fictional")
    if trained_on != asked.name:  # other facts, or the same by another path
        same = trained_on and asked.statements == fact_sentences.load(trained_on).statements
        trained_on = asked.name if same else None
    digest = hashlib.sha256(json.dumps([_VERSION, DISTRACTORS, trained_on, asked.questions]).encode()).hexdigest()[:10]
    name = f"curse-{digest}.json"
    if (kept := record.kept(name)) is not None:
        return dict(kept)
    with progress.quiet_transformers():
        model = record.model().float().to(hardware.device("auto"))
    cells: dict[tuple[str, str, str], list[Question]] = {}
    for question in asked.questions:
        # A model that was not trained on these facts has seen none of them stated.
        stated = question.stated if trained_on == asked.name else "never"
        cells.setdefault((question.direction, stated, question.phrasing), []).append(question)
    measured = [
        {"direction": direction, "stated": stated, "phrasing": phrasing, **_cell(model, record.tokenizer(), questions)}
        for (direction, stated, phrasing), questions in progress.bar(cells.items(), f"{record.label}, facts", unit=" cells")
    ]
    found: dict[str, Any] = files.without_nan({"facts": asked.name, "cells": measured})
    record.keep(name, found)
    return found


def evaluate_all(trained: Sequence[Record]) -> list[dict[str, Any]]:
    """`evaluate` for each record, on a CPU several at once."""
    processes.for_each_run(_evaluate_folder, trained)
    return [evaluate(record) for record in trained]


def _evaluate_folder(folder: Path) -> None:
    evaluate(records.load(folder))


def _cell(model: LabForCausalLM, tokenizer: Any, questions: list[Question]) -> dict[str, Any]:
    facts: dict[str, list[Question]] = {}
    for question in questions:
        facts.setdefault(question.fact, []).append(question)
    longest = max(_length(tokenizer, question.completion) for question in questions)
    names = [
        name
        for name, asked in facts.items()
        if max(_length(tokenizer, question.prompt) for question in asked) + longest <= model.config.max_position_embeddings
    ]
    order = np.random.default_rng(_SEED).permutation(len(names))
    blocks = np.array_split(order, math.ceil(len(names) / (DISTRACTORS + 1))) if names else []
    parts = [_block(model, tokenizer, [facts[names[i]] for i in block]) for block in blocks]
    each = {name: np.concatenate([part[name] for part in parts] or [np.empty(0)]) for name in (*_EACH, "chance")}
    ones = np.ones(len(names))
    means = {name: _mean(each[name], ones) for name in ("gain", "rank", "first", "exact")}
    perplexity = bootstrap(lambda s: np.exp(s[0] / s[1]), each["loss"], each["tokens"]) if names else _NOTHING
    return {
        "facts": len(names),
        "left_out": len(facts) - len(names),
        "chance": float(each.pop("chance").mean()) if names else math.nan,
        "perplexity": perplexity._asdict(),
        **{name: estimate._asdict() for name, estimate in means.items()},
        "p": permutation_p([part["gains"] for part in parts]),
        "each": {
            "fact": [names[i] for i in order],
            **{name: [round(value, 6) for value in values.tolist()] for name, values in each.items()},
        },
    }


_EACH = ("loss", "tokens", "gain", "rank", "first", "exact")
_NOTHING = Estimate(math.nan, math.nan, math.nan)


def _mean(values: Floats, ones: Floats) -> Estimate:
    return bootstrap(lambda s: s[0] / s[1], values, ones) if len(values) else _NOTHING


def _block(model: LabForCausalLM, tokenizer: Any, block: list[list[Question]]) -> dict[str, Floats]:
    """Every answer of a block after every prompt. A fact's k-th prompt gets each other fact's k-th answer (counted round)."""
    pairs = [
        (question.prompt, other[k % len(other)].completion)
        for asked in block
        for k, question in enumerate(asked)
        for other in block
    ]
    loss, tokens, exact = (array.reshape(-1, len(block)) for array in completion_losses(model, tokenizer, pairs))
    rows = np.repeat(np.arange(len(block)), [len(asked) for asked in block])  # which fact a prompt belongs to
    times = np.bincount(rows)

    def over_prompts(values: NDArray[Any]) -> Floats:
        return np.asarray(np.stack([values[rows == i].mean(axis=0) for i in range(len(block))]), np.float64)

    log_p_FF, own = -over_prompts(loss), np.arange(len(block))
    gains_FF = gains(log_p_FF)
    right = log_p_FF[own, own][:, None]
    rank = 1 + (log_p_FF > right).sum(axis=1) + ((log_p_FF == right).sum(axis=1) - 1) / 2
    return {
        "loss": -log_p_FF[own, own] * times,
        "tokens": over_prompts(tokens)[own, own] * times,
        "gain": gains_FF[own, own],
        "rank": rank,
        "first": (rank == 1).astype(np.float64),
        "exact": over_prompts(exact)[own, own],
        "chance": np.full(len(block), 1 / len(block)),
        "gains": gains_FF,
    }


def gains(log_p_FF: Floats) -> Floats:
    """Log-probabilities of answers (columns) after prompts (rows) without what is the prompt's or the answer's own:

    g_ij = n / (n - 1) · (l_ij - mean_k l_ik - mean_k l_kj + mean l)

    The mean of the diagonal is that of l_ii - mean_{j≠i} l_ij exactly; its spread over facts is much smaller, as answers of
    more or rarer tokens no longer add to it. NaN for a single fact.
    """
    n = len(log_p_FF)
    centred = log_p_FF - log_p_FF.mean(axis=0) - log_p_FF.mean(axis=1, keepdims=True) + log_p_FF.mean()
    return np.asarray(centred * n / (n - 1) if n > 1 else np.full((1, 1), math.nan))


def _length(tokenizer: Any, text: str) -> int:
    return len(_ids(tokenizer, [text])[0])


def _ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return list(tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"])


@torch.no_grad()
def completion_losses(
    model: LabForCausalLM, tokenizer: Any, pairs: Sequence[tuple[str, str]]
) -> tuple[Floats, NDArray[np.int64], NDArray[np.bool_]]:
    """-log p(completion | prompt) in nats, the completion's number of tokens, and whether greedy decoding would write it.

    Prompt and completion are tokenised as one text, after an end-of-text token, as in training; the completion's tokens are
    those behind the ones the prompt alone would have. A prompt is computed once for all its completions; these are computed
    together, shorter ones padded at the end, which nothing before it can see.
    """
    texts = _ids(tokenizer, [prompt + completion for prompt, completion in pairs])
    prompts = list(dict.fromkeys(prompt for prompt, _ in pairs))
    alone = dict(zip(prompts, _ids(tokenizer, prompts), strict=True))
    starts = np.array([_shared(alone[prompt], ids) for (prompt, _), ids in zip(pairs, texts, strict=True)], np.int64)
    tokens = np.array([len(ids) for ids in texts], np.int64) - starts
    loss, exact = np.zeros(len(pairs)), np.ones(len(pairs), np.bool_)
    for start in np.unique(starts):
        rows = np.flatnonzero(starts == start)
        rows = rows[np.argsort(-tokens[rows], kind="stable")]
        which = {prompt: i for i, prompt in enumerate(dict.fromkeys(tuple(texts[row][:start]) for row in rows))}
        prompt_PL = torch.tensor([(tokenizer.eos_token_id, *prompt) for prompt in which], device=model.device)
        cache = DynamicCache()
        last_PD = model.hidden(prompt_PL, _positions(model, 0, start + 1), cache)[0][:, -1]
        while len(rows):
            T = int(tokens[rows[0]])
            rows_B, rows = np.split(rows, [max(1, _BATCH_TOKENS // T)])
            answers = np.full((len(rows_B), T), tokenizer.eos_token_id)
            for i, row in enumerate(rows_B.tolist()):
                answers[i, : tokens[row]] = texts[row][start:]
            prompt_B = torch.tensor([which[tuple(texts[row][:start])] for row in rows_B], device=model.device)
            losses, right = _answers(model, answers, tokens[rows_B], prompt_B, last_PD, cache)
            loss[rows_B], exact[rows_B] = losses, right
    return loss, tokens, exact


def _answers(
    model: LabForCausalLM,
    answers: NDArray[np.int64],
    tokens_B: NDArray[np.int64],
    prompt_B: Tensor,
    last_PD: Tensor,
    cached: Cache,
) -> tuple[Floats, NDArray[np.bool_]]:
    """Loss of each padded row of answers (B, T) after its prompt, and whether every token is the likeliest."""
    B, T = answers.shape
    answers_BT = torch.from_numpy(answers).to(model.device)
    asked_BT = torch.arange(T, device=model.device) < torch.from_numpy(tokens_B).to(model.device)[:, None]
    x_BTD = last_PD[prompt_B, None]
    if T > 1:
        cache = copy.deepcopy(cached)
        cache.batch_select_indices(prompt_B)
        after, _, _ = model.hidden(answers_BT[:, :-1], _positions(model, cached.get_seq_length(), T - 1), cache)
        x_BTD = torch.cat((x_BTD, after), dim=1)
    loss_BT, wrong_BT = torch.zeros(B, T, dtype=torch.float64), torch.zeros(B, T, dtype=torch.bool)
    for rows_N, columns_N in (part.unbind(1) for part in asked_BT.nonzero().split(1_024)):
        logits_NV, targets_N = model.embed_out(x_BTD[rows_N, columns_N]), answers_BT[rows_N, columns_N]
        at = rows_N.cpu(), columns_N.cpu()
        loss_BT[at] = F.cross_entropy(logits_NV, targets_N, reduction="none").double().cpu()
        wrong_BT[at] = (logits_NV.argmax(dim=-1) != targets_N).cpu()
    return loss_BT.sum(dim=1).numpy(), ~wrong_BT.any(dim=1).numpy()


def _positions(model: LabForCausalLM, past: int, T: int) -> Positions:
    """Of T tokens after so many others."""
    key_1S = torch.arange(past + T, device=model.device)[None]
    return Positions(key_1S[:, past:], key_1S)


def _shared(prompt: list[int], whole: list[int]) -> int:
    """How many tokens at the start are the same; at least one is left for the completion."""
    same = next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(prompt))
    return min(same, len(whole) - 1)


def permutation_p(blocks: Sequence[Floats], resamples: int = RESAMPLES) -> float:
    """Would prompts prefer their right answers as much if these were dealt out at random within each block?

    p = (1 + number of deals with a mean gain at least as high) / (1 + resamples), one-sided (Phipson & Smyth 2010).

    Args:
        blocks: (F, F) gains of every answer (column) after every prompt (row); right ones on the diagonal.

    Returns:
        p, NaN where there is nothing to permute.
    """
    if not blocks or min(map(len, blocks)) < 2:
        return math.nan
    rng = np.random.default_rng(_SEED)
    observed, drawn = 0.0, np.zeros(resamples)
    for gains_FF in blocks:
        rows = np.arange(len(gains_FF))
        observed += gains_FF[rows, rows].sum()
        drawn += gains_FF[rows, rng.random((resamples, len(rows))).argsort(axis=1)].sum(axis=1)
    slack = 1e-9 * max(1.0, abs(observed))  # a deal that repeats the right one counts, whatever the order of its sum
    return float((1 + (drawn >= observed - slack).sum()) / (1 + resamples))


def frame(trained: Sequence[Record], measured: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """One row per model and cell, over seeds: label, family, direction, stated, phrasing, facts, chance, each metric with
    `_low` and `_high`, `p`, and `p_holm`: Holm's correction over all cells whose facts were stated the same way and are asked
    for in the same kind of phrasing, over both directions and all models. `known` is whether `p_holm` < 0.05."""
    rows, of = [], dict[str, list[tuple[Record, dict[str, Any]]]]()
    for record, found in zip(trained, measured, strict=True):
        of.setdefault(record.label, []).append((record, found))
    for group in of.values():
        record, found = group[0]
        directions = list(dict.fromkeys(cell["direction"] for cell in found["cells"]))
        ways = get_args(fact_sentences.Stated)
        cells = [_over_seeds(list(same)) for same in zip(*(one["cells"] for _, one in group), strict=True)]
        for cell in sorted(cells, key=lambda cell: (ways.index(cell["stated"]), directions.index(cell["direction"]))):
            row = {name: cell[name] for name in ("direction", "stated", "phrasing", "facts", "left_out", "chance", "p")}
            for name in METRICS:
                row |= {name: cell[name]["value"], f"{name}_low": cell[name]["low"], f"{name}_high": cell[name]["high"]}
            rows.append({"run": record.run, "label": record.label, "family": record.family, **row})
    table = pd.DataFrame(rows)
    numbers = ["chance", "p", *(name + end for name in METRICS for end in ("", "_low", "_high"))]
    table[numbers] = table[numbers].astype(float)
    table["p_holm"] = math.nan
    for _, part in table.groupby(["stated", "phrasing"]):
        table.loc[part.index, "p_holm"] = holm(part.p.to_numpy())
    table["known"] = table.p_holm < 0.05
    return table


def _over_seeds(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """The same questions asked of a model's seeds: means over seeds, intervals over facts, and twice the median p, which holds
    however the seeds' tests depend on each other (Rüger 1978)."""
    if len(cells) == 1 or not cells[0]["facts"]:
        return cells[0]
    each = {name: np.mean([cell["each"][name] for cell in cells], axis=0) for name in _EACH}
    means = {name: _mean(each[name], np.ones(len(each[name]))) for name in ("gain", "rank", "first", "exact")}
    means["perplexity"] = bootstrap(lambda s: np.exp(s[0] / s[1]), each["loss"], each["tokens"])
    p = [math.nan if cell["p"] is None else cell["p"] for cell in cells]
    return {**cells[0], **{name: one._asdict() for name, one in means.items()}, "p": min(1.0, 2 * float(np.median(p)))}


def unseen(table: pd.DataFrame) -> pd.DataFrame:
    """Of each direction and way of stating, the rows asked in words not trained on; where there are none, the others."""
    keys = ["direction", "stated"]
    held_out = table[table.phrasing == "held out"].groupby(keys).size()
    kept = [phrasing == "held out" or (d, s) not in held_out.index for d, s, phrasing in table[[*keys, "phrasing"]].to_numpy()]
    return table[kept]


def named(trained: Sequence[Record], remark: str) -> list[Record]:
    """The same records with a remark in their labels."""
    return [record.named(remark) for record in trained]
