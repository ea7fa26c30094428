"""Tokenizers: trained on a corpus, or loaded; and how many bytes of text each token stands for."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pe_core.data import hub
from pe_core.data.text import DOCUMENT_END
from pe_core.errors import CorpusError


def train_tokenizer(documents: Iterable[str], vocab: int) -> Any:
    """A byte-level BPE (Sennrich et al. 2016, arXiv 1508.07909) of at most `vocab` tokens with an end-of-text token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[DOCUMENT_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=DOCUMENT_END,
        eos_token=DOCUMENT_END,
        pad_token=DOCUMENT_END,
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(name: str) -> Any:
    """A tokenizer from a folder or the hub. Raises CorpusError when it cannot be had or has no end-of-text token."""
    from transformers import AutoTokenizer

    silence = None if Path(name).is_dir() else hub.no_answer()
    try:
        # `trust_remote_code` unset would ask the person, and run the repository's code on a yes.
        tokenizer = AutoTokenizer.from_pretrained(
            name, use_fast=True, trust_remote_code=False, local_files_only=silence is not None
        )
    except Exception as error:  # transformers and huggingface_hub raise kinds of their own
        raise hub.hub_error(f"tokenizer='{name}'", silence or error) from error
    if tokenizer.eos_token_id is None or not tokenizer.is_fast:
        raise CorpusError(f"tokenizer='{name}': a fast tokenizer with an end-of-text token is needed")
    # Bits per byte count the bytes behind each token, which only a byte-level tokenizer that changes no text lets one do.
    # Special tokens stand for no bytes: one that is still found in the text shows, too.
    probe = "Naïve  café\n\tThe 漢字 🙂 end." + "".join(tokenizer.all_special_tokens)
    if token_bytes(tokenizer, len(tokenizer))[token_lists(tokenizer, [probe])[0]].sum() != len(probe.encode()):
        raise CorpusError(f"tokenizer='{name}': a byte-level tokenizer is needed, or bits per byte cannot be counted")
    return tokenizer


def token_lists(tokenizer: Any, documents: list[str]) -> list[list[int]]:
    """Token ids of each document. Text never becomes a special token, not even one that spells `<|endoftext|>`."""
    found = tokenizer(documents, add_special_tokens=False, split_special_tokens=True, verbose=False)
    return list(found["input_ids"])


def token_bytes(tokenizer: Any, vocab: int) -> NDArray[np.int32]:
    """UTF-8 bytes behind each token id, 0 for special tokens and for ids the tokenizer does not use."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    alphabet = set(bytes_to_unicode().values())
    special = set(tokenizer.all_special_ids)
    lengths = np.zeros(vocab, np.int32)
    for token, index in tokenizer.get_vocab().items():
        if index not in special and index < vocab:
            # A byte-level token spells each byte as one character of the alphabet; added tokens are plain text.
            lengths[index] = len(token) if set(token) <= alphabet else len(token.encode())
    return lengths
