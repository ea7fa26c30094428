"""Corpora: a name to a stream of documents."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from itertools import islice
from typing import Any

from pe_core.config import Experiment
from pe_core.data import facts as fact_sentences
from pe_core.data.hub import HUB, from_hub
from pe_core.data.text import OFFLINE, Corpus, from_files
from pe_core.errors import CorpusError, unknown
from pe_core.paths import expanded

CORPORA: dict[str, Callable[[], Corpus]] = {**OFFLINE, **HUB}


def load(name: str) -> Corpus:
    """The corpus called `name`: a named one, `hf:owner/name[:config[:field]]`, or a path or glob (see
    `from_files`).

    Raises:
        CorpusError: nothing of that name exists, or its files cannot be read.
    """
    if name in CORPORA:
        return CORPORA[name]()
    if name.startswith("hf:"):
        # A name without owner would be one of the clients' own readers, for example `json`, let loose on local files.
        if found := re.fullmatch(r"hf:([\w.-]+/[\w.-]+)(?::([^:]*))?(?::([^:]+))?", name):
            repository, config, field = found.groups()
            return from_hub(name, repository, config or None, field or "text")
        raise CorpusError(f"corpus='{name}': a hub data set is written hf:owner/name[:config[:field]]")
    if is_local(name):
        return from_files(name)
    raise CorpusError(unknown("corpus", name, CORPORA) + "; or a path or glob of text, .jsonl or .parquet files")


def is_local(name: str) -> bool:
    """Whether a corpus of this name is files of this machine: what it is called says nothing of what it holds."""
    if name in CORPORA or name.startswith(("hf:", "task:")):
        return False
    path = name.partition("::")[0]
    return os.sep in path or any(sign in path for sign in "*?[.~") or os.path.exists(path)


def by_content(experiment: Experiment) -> dict[str, Any]:
    """Corpus, tokenizer and facts of an experiment, "files" in place of a path: of files counts what is in them, which is in
    the fingerprint of the windows made of them."""
    local = {
        "corpus": is_local(experiment.corpus),
        "tokenizer": experiment.tokenizer not in ("auto", "train") and _exists(experiment.tokenizer),
        "facts": experiment.facts not in (None, *fact_sentences.NAMED) and _exists(str(experiment.facts)),
    }
    return {name: "files" if files else getattr(experiment, name) for name, files in local.items()}


def _exists(name: str) -> bool:
    return os.path.exists(expanded(name))


def sample(corpus: Corpus, count: int) -> list[str]:
    """The first `count` documents, for a look."""
    return list(islice(corpus.documents(), count))
