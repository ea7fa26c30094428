"""From an experiment to the windows it trains and is measured on: of a corpus, or of a generated task."""

from __future__ import annotations

from pathlib import Path

from pe_core.config import Experiment
from pe_core.data import dataset, tasks
from pe_core.data.dataset import Data

# The settings of an experiment that its data follows from. Runs that share them share their data.
SETTINGS = ("corpus", "tokenizer", "vocab_size", "preset", "samples", "seq_len", "draw_len", "facts", "facts_rate")


def prepare(experiment: Experiment, cache: Path | None = None) -> Data:
    """The windows of a resolved experiment: see `dataset.prepare` and `tasks.prepare`.

    Raises:
        LabError: the corpus or task cannot be had, or holds too little.
    """
    return tasks.prepare(experiment) if experiment.task else dataset.prepare(experiment, cache)
