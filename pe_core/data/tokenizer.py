"""Tokenizers: trained on a corpus, or loaded; and how many bytes of text each token stands for."""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pe_core.data import hub
from pe_core.data.text import DOCUMENT_END
from pe_core.errors import CorpusError
from pe_core.paths import expanded

Ids = NDArray[np.uint32]


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


# Every byte that UTF-8 uses, and what tokenizers change: capitals, composed letters, ligatures, digits, ends of lines and text.
_PROBE = "".join(
    [
        "  Naïve  Cafe\u0301\r\n\tThe 漢字 🙂 END ﬁ ① ½ 2024.",
        *map(chr, range(0x80)),
        *(chr((first - 0xC0) * 0x40 + 1) for first in range(0xC2, 0xE0)),
        *(chr(first * 0x1000 + 0x0FFF) for first in range(16) if first != 0xD),  # 0xDFFF is half a character
        *map(chr, range(0xD000, 0xD040)),
        *(chr(first * 0x40000 + 0x10000) for first in range(4)),
        "\U00100000 \n ",
    ]
)
# What a tokenizer's end-of-text token is called where its files do not say which it is.
_ENDS = (DOCUMENT_END, "<|end_of_text|>", "</s>", "<eos>")


def load_tokenizer(name: str) -> Any:
    """A tokenizer from a folder, a `tokenizer.json` or the hub.

    Raises:
        CorpusError: it cannot be had, is not byte-level, or has no end-of-text token.
    """
    tokenizer = _load(name)
    if tokenizer.eos_token_id is None:
        tokenizer.eos_token = next((token for token in _ENDS if token in tokenizer.get_vocab()), None)
    if tokenizer.eos_token_id is None:
        raise CorpusError(
            f"tokenizer='{name}': an end-of-text token is needed, named in its files or one of {', '.join(_ENDS)}"
        )
    # Bits per byte count the bytes behind each token, which only a byte-level tokenizer that changes no text lets one do:
    # not even its capitals. GPT-NeoX's composes letters first (Unicode NFC): bytes are then those of the composed text.
    # Special tokens stand for no bytes: one that is still found in the text shows, too.
    probe = "".join(tokenizer.all_special_tokens).join([_PROBE, _PROBE])
    composed = unicodedata.normalize("NFC", probe)
    read = b"".join(_spelled(tokenizer.convert_ids_to_tokens(token_lists(tokenizer, [probe])[0])))
    if read not in (probe.encode(), composed.encode()):
        raise CorpusError(
            f"tokenizer='{name}': a byte-level tokenizer that gives text back as it was is needed, "
            "or bits per byte cannot be counted"
        )
    return tokenizer


def contents(name: str) -> str | None:
    """A digest of a tokenizer's local files, which may change under the same name; `None` for one of the hub."""
    path = _folder(name)
    found = sorted(path.glob("*.json")) if path.is_dir() else [path] if path.is_file() else []
    if not found:
        return None
    digest = hashlib.sha256()
    try:
        for file in found:
            digest.update(file.name.encode(errors="replace") + file.read_bytes())
    except OSError as error:
        raise CorpusError(f"tokenizer='{name}': cannot be read: {error.strerror or error}") from None
    return digest.hexdigest()[:16]


def _folder(name: str) -> Path:
    """Where a tokenizer's files are: of a `tokenizer.json` its folder, where one is that names the end-of-text token."""
    path = expanded(name)
    return path.parent if path.name == "tokenizer.json" and (path.parent / "tokenizer_config.json").is_file() else path


def _load(name: str) -> Any:
    # The class itself: `AutoTokenizer` may run code of the repository.
    from transformers import PreTrainedTokenizerFast

    path = _folder(name)
    if path.is_file():
        try:
            return PreTrainedTokenizerFast(tokenizer_file=str(path))
        except Exception as error:  # the tokenizers library raises bare `Exception`s
            raise CorpusError(f"tokenizer='{name}': the file is not a tokenizer.json ({str(error).splitlines()[0]})") from None
    if path.is_dir():
        if not (path / "tokenizer.json").is_file():
            raise CorpusError(f"tokenizer='{name}': the folder holds no tokenizer.json, as fast tokenizers are saved")
        try:
            return PreTrainedTokenizerFast.from_pretrained(path, local_files_only=True)
        except Exception as error:
            raise CorpusError(f"tokenizer='{name}': not a readable tokenizer ({str(error).splitlines()[0]})") from None
    if name.startswith((os.sep, ".", "~")) or name.endswith(".json") or name.count("/") > 1:  # nothing the hub can hold
        raise CorpusError(f"tokenizer='{name}': no such file or folder")
    silence = hub.no_answer()
    try:
        return PreTrainedTokenizerFast.from_pretrained(name, local_files_only=silence is not None)
    except Exception as error:  # transformers and huggingface_hub raise kinds of their own
        raise hub.hub_error(f"tokenizer='{name}'", silence or error) from error


def _spelled(tokens: Iterable[str]) -> list[bytes]:
    """The text of each token. A byte-level token spells each byte as one character; added tokens are plain text."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    alphabet = set(byte_of)
    return [bytes(map(byte_of.__getitem__, token)) if set(token) <= alphabet else token.encode() for token in tokens]


def token_lists(tokenizer: Any, documents: list[str]) -> list[list[int]]:
    """Token ids of each document. Text never becomes a special token, not even one that spells `<|endoftext|>`."""
    found = tokenizer(documents, add_special_tokens=False, split_special_tokens=True, verbose=False)
    return list(found["input_ids"])


def encoder(tokenizer: Any) -> Callable[[list[str]], list[Ids]]:
    """What makes token ids of many documents: those of `token_lists`, from tiktoken, which is ten times as fast, where it gives
    the same for every text.

    Both merge the pair of least rank first. tiktoken ranks a pair by the token it makes, tokenizers by its place among the
    merges: one order where tokens are numbered as they were merged. tiktoken also merges a pair that was never learned but
    spells a token. Such a pair never stands side by side where each token's own spelling is encoded as that token alone:
    neighbours of an encoding are an encoding of what they spell, so the token would have a second one.
    """

    def own(texts: list[str]) -> list[Ids]:
        return [np.asarray(ids, np.uint32) for ids in token_lists(tokenizer, texts)]

    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    model, split, form = backend["model"], backend["pre_tokenizer"] or {}, (backend["normalizer"] or {}).get("type")
    plain = model["type"] == "BPE" and not any(
        model.get(name) for name in ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")
    )
    byte_level = split.get("type") == "ByteLevel" and not split["add_prefix_space"] and split["use_regex"]
    if not plain or not byte_level or form not in (None, "NFC") or not all(t["special"] for t in backend["added_tokens"]):
        return own
    vocab, merges = model["vocab"], [pair if isinstance(pair, list) else pair.split(" ") for pair in model["merges"]]
    special = {token["content"] for token in backend["added_tokens"]}
    made = [vocab["".join(pair)] for pair in merges]
    tokens = [token for token in vocab if token not in special]
    alone = tokenizer.backend_tokenizer.model.tokenize
    if (
        special & {"".join(pair) for pair in merges}
        or made != sorted(set(made))
        or any([part.id for part in alone(token)] != [vocab[token]] for token in tokens)
    ):
        return own
    import tiktoken

    ranks = dict(zip(_spelled(tokens), map(vocab.__getitem__, tokens), strict=True))
    if len(ranks) < len(tokens) or not all(bytes([byte]) in ranks for byte in range(256)):
        return own
    # A special token that is never asked for: without any, tiktoken looks for the empty text, which is everywhere.
    fast = tiktoken.Encoding("", pat_str=_WORDS, mergeable_ranks=ranks, special_tokens={"\0\0": 1 + max(ranks.values())})
    one = partial(fast.encode_to_numpy, disallowed_special=())

    def ids(texts: list[str]) -> list[Ids]:
        if any(map(_blank, texts)):
            return own(texts)
        normalizer = tokenizer.backend_tokenizer.normalizer  # its own tables of Unicode, not Python's
        composed = [normalizer.normalize_str(text) for text in texts] if normalizer else texts
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(one, composed))

    return partial(_in_pieces, ids)


def _in_pieces(ids: Callable[[list[str]], list[Ids]], documents: list[str]) -> list[Ids]:
    """Token ids of documents of which long ones are cut between words, or those of gigabytes would take tens of gigabytes."""
    pieces = [_pieces(text) for text in documents]
    found = iter(ids([*chain.from_iterable(pieces)]))
    return [next(found) if len(some) == 1 else np.concatenate([*islice(found, len(some))]) for some in pieces]


# How GPT-2 divides text into words (Radford et al. 2019) before pairs are merged, as tokenizers' ByteLevel does.
_WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# So many blanks exhaust the stack of tiktoken's regular expressions, which ends the process.
_BLANKS = 500
_BLANK, _TWO_BLANKS = re.compile(rf"\s{{{_BLANKS}}}"), re.compile(r"\s\s")
# Between words for sure.
_BETWEEN = re.compile(r"(?<=\S)(?= \S)")
_PIECE = 1_000_000  # characters


def _pieces(text: str) -> list[str]:
    """A text, cut between words about every million characters."""
    cuts = [0]
    while len(text) - cuts[-1] > _PIECE and (found := _BETWEEN.search(text, cuts[-1] + _PIECE)):
        cuts.append(found.start())
    return [text[start:end] for start, end in pairwise([*cuts, len(text)])]


def _blank(text: str) -> bool:
    """Whether so many blanks stand in a row: then two of every 250th character do, which are looked at first."""
    return _TWO_BLANKS.search(text[:: _BLANKS // 2]) is not None and _BLANK.search(text) is not None


def vocabulary(tokenizer: Any) -> int:
    """Rows an embedding needs: the highest id and one. A tokenizer may leave ids out."""
    return 1 + int(max(tokenizer.get_vocab().values()))


def token_bytes(tokenizer: Any, vocab: int) -> NDArray[np.int32]:
    """UTF-8 bytes behind each token id, 0 for special tokens and for ids the tokenizer does not use."""
    special = set(tokenizer.all_special_ids)
    lengths = np.zeros(vocab, np.int32)
    known = {index: token for token, index in tokenizer.get_vocab().items() if index not in special and index < vocab}
    lengths[list(known)] = [len(text) for text in _spelled(known.values())]
    return lengths
