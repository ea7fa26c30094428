"""Corpora: a name to a stream of documents."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from itertools import islice

from pe_core.data.hub import HUB, from_hub
from pe_core.data.text import OFFLINE, Corpus, from_files
from pe_core.errors import CorpusError, unknown

CORPORA: dict[str, Callable[[], Corpus]] = {**OFFLINE, **HUB}


def load(name: str) -> Corpus:
    """The corpus called `name`: a named one, `hf:owner/name[:config[:field]]`, or a path or glob.

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
    looks_like_a_path = os.sep in name or any(sign in name for sign in "*?[.~") or os.path.exists(name)
    if looks_like_a_path:
        return from_files(name)
    raise CorpusError(unknown("corpus", name, CORPORA) + "; or a path or glob of text, .jsonl or .parquet files")


def sample(corpus: Corpus, count: int) -> list[str]:
    """The first `count` documents, for a look."""
    return list(islice(corpus.documents(), count))
