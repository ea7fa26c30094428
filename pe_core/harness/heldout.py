"""What `lab_heldout.yaml` evaluates on."""

from typing import Any

from datasets import Dataset

from pe_core.data import corpora, sides

CHARACTERS = 2_000  # of each document: enough for several windows, soon done


def documents(corpus: str = "aws-docs", **_: Any) -> dict[str, Dataset]:
    """The held-out side of a finite corpus, split as every run splits it."""
    texts = list(dict.fromkeys(corpora.load(corpus).documents()))
    heldout = sides.split(texts, corpus)[2]
    return {"test": Dataset.from_dict({"text": [text[:CHARACTERS] for text in heldout]})}
