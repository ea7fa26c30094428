"""DroPE: a trained model goes on without its position encoding. Gelberg et al. 2025 (arXiv 2512.12167).

An encoding helps a model learn and holds it back on texts longer than those trained on. So it is dropped at the end: train
with it, take it away, and train a little more at the same length until the model has found its way without (recalibration).
Nothing but the encoding changes; its own parameters, where it has some, are gone.
"""

from __future__ import annotations

from typing import Any

from pe_core.config import Experiment
from pe_core.records import Record


def dropped(record: Record, epochs: int = 1, **settings: Any) -> Experiment:
    """The experiment that goes on from a finished run's best weights with NoPE, a run of its own.

    The optimizer starts afresh, at a constant rate as ever. Batches come in the order of the first run's first epochs.
    What dropping alone does, before any recalibration, `lengths.heldout(record, …, encoding="none")` measures.
    It cannot be run where latent attention gave a rotary encoding queries and keys of its own: those are not to be dropped.

    Args:
        epochs: of recalibration. The paper's take a few percent of the training, or less.
        settings: any other setting of `Experiment` that should differ from the first run's, `lr` or `encoding` say.
    """
    changed = {"encoding": "none", "options": {}, "start": record.run, "epochs": epochs, **settings}
    return Experiment(**{**record.config, **changed})
