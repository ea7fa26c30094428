"""The results note's reversal numbers: how surprising a fact is, stated one way and the other way round.

Berglund et al. 2023 (arXiv 2309.12288) call it the reversal curse when a model trained on "A is B" does not know
"B is A". The note scored facts its models had never been trained on, so its ratio measures how odd the sentences look,
not a curse. The numbers are kept for comparison with the note.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from pe_core import files, hardware, progress
from pe_core.data.facts import NOTE_FACTS
from pe_core.model import LabForCausalLM
from pe_core.records import Record
from pe_core.stats import Estimate, bootstrap

_FILE = "note-reversal-1.json"  # raise the number when the code below measures something else


@torch.no_grad()
def sentence_losses(model: LabForCausalLM, tokenizer: Any, sentences: list[str]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Mean loss per token of each sentence, in nats. The first token is predicted from the end-of-text token."""
    device = model.device
    was_training = model.training
    model.eval()
    losses = []
    for sentence in sentences:
        ids = [tokenizer.eos_token_id, *tokenizer(sentence, add_special_tokens=False)["input_ids"]]
        tokens = torch.tensor([ids], device=device)
        losses.append(float(model.losses(tokens[:, :-1], tokens[:, 1:]).mean()))
    model.train(was_training)
    return np.array(losses)


def note_numbers(
    model: LabForCausalLM, tokenizer: Any, seq_len: int, facts: tuple[tuple[str, str], ...] = NOTE_FACTS
) -> dict[str, Any]:
    """The note's four numbers with 95 % intervals over the facts that fit a window of `seq_len` tokens.

    forward, backward: exp(mean over sentences of the mean token loss); ratio = forward / backward;
    gap = backward - forward. Where no fact fits, all are NaN.
    """
    lengths = [max(len(tokenizer(side, add_special_tokens=False)["input_ids"]) for side in fact) for fact in facts]
    facts = tuple(fact for fact, length in zip(facts, lengths, strict=True) if length <= seq_len)
    if not facts:
        nothing = Estimate(math.nan, math.nan, math.nan)._asdict()
        return {"facts": 0, "forward": nothing, "backward": nothing, "ratio": nothing, "gap": nothing}
    forward, backward = (sentence_losses(model, tokenizer, list(side)) for side in zip(*facts, strict=True))
    ones = np.ones(len(facts))
    estimates = {
        "forward": bootstrap(lambda s: np.exp(s[0] / s[1]), forward, ones),
        "backward": bootstrap(lambda s: np.exp(s[0] / s[1]), backward, ones),
        "ratio": bootstrap(lambda s: np.exp((s[0] - s[1]) / s[2]), forward, backward, ones),
        "gap": bootstrap(lambda s: np.exp(s[1] / s[2]) - np.exp(s[0] / s[2]), forward, backward, ones),
    }
    return {"facts": len(facts), **{name: estimate._asdict() for name, estimate in estimates.items()}}


def recorded(record: Record) -> dict[str, Any] | None:
    """What `reversal` found, where that is on record, so that no weights are needed."""
    found: dict[str, Any] | None = record.metrics.get("reversal") or record.kept(_FILE)
    return found


def reversal(record: Record) -> dict[str, Any]:
    """`note_numbers` of a finished run, from its saved model. Computed once, then read from its folder; records of runs that
    were made while every run computed them hold them.

    Raises:
        RecordError: trained on a task, in whose tokens no sentence can be written.
    """
    record.need_text()
    found = recorded(record)
    if found is None:
        with progress.quiet_transformers():
            model = record.model().to(hardware.device("auto"))
        found = files.without_nan(note_numbers(model, record.tokenizer(), record.config["seq_len"]))
        record.keep(_FILE, found)
    return found
