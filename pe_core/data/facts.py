"""Facts to train on in one direction and to ask for in both: a name and a description that say the same thing of each other.

After Berglund et al. 2023, "The reversal curse" (arXiv 2309.12288): a model trained on "A is B" alone does not know that
B is A. A fact sentence is a document of its own, mixed into the training text; held-out text is left as it is.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pe_core import files
from pe_core.errors import CorpusError, unknown
from pe_core.paths import expanded

Stated = Literal["this way", "other way", "both ways", "never"]

# Facts and their order do not depend on the run's seed: runs of all seeds and encodings train on the same sentences.
_SEED = 20_230_921
NAME_TO, TO_NAME = "name → description", "description → name"


class Statement(NamedTuple):
    """What training text says of one fact in one direction: phrasings of it, one of which is used at a time."""

    fact: str
    sentences: tuple[str, ...]


class Question(NamedTuple):
    """A prompt and its right completion.

    Attributes:
        direction: from what to what, or the name of a user's test file.
        stated: whether training text states the fact the way it is asked for, only the other way round, …
        phrasing: whether the prompt's wording is one of those trained on.
        fact: questions of the same fact are averaged before facts are counted.
    """

    direction: str
    stated: Stated
    phrasing: Literal["held out", "trained"]
    fact: str
    prompt: str
    completion: str


class Facts(NamedTuple):
    """Statements to train on, and questions to ask a model that was."""

    name: str
    statements: tuple[Statement, ...]
    questions: tuple[Question, ...]


def load(name: str) -> Facts:
    """`fictional`, `note` (the results note's 33 facts, stated forward only), or a user's own JSONL files (`from_files`).

    Raises:
        CorpusError: nothing of that name exists, or a file cannot be read as facts.
    """
    if name in NAMED:
        return NAMED[name]()
    if not expanded(name).exists():
        raise CorpusError(unknown("facts", name, NAMED) + "; or a .jsonl file of training facts, or a folder of them")
    return from_files(name)


# --- fictional facts -------------------------------------------------------------------------------------------------

_FIRST = (
    ("Bel", "Cor", "Dar", "Fen", "Gal", "Hes", "Jor", "Kel", "Lor", "Mir", "Nev", "Os", "Per", "Quil", "Sor", "Thal"),
    ("adan", "ami", "aris", "eben", "elia", "enna", "eth", "ias", "ica", "ilo", "imer", "oan", "olin", "ora", "umo", "yse"),
)
_FAMILY = (
    ("Ash", "Bram", "Cald", "Drake", "Elder", "Frost", "Grim", "Haw", "Iron", "Lark", "Marsh", "North", "Oak", "Raven", "Storm",
     "Wind"),
    ("bourne", "combe", "dale", "ford", "gate", "ham", "holt", "ley", "mere", "more", "ridge", "stead", "ton", "vale", "wick",
     "worth"),
)  # fmt: skip
_KINDS = (
    ("architect", "lighthouse"), ("author", "cookbook"), ("baker", "cake"), ("builder", "bridge"), ("captain", "airship"),
    ("carver", "statue"), ("composer", "symphony"), ("designer", "garden"), ("director", "opera"), ("editor", "atlas"),
    ("engineer", "railway"), ("founder", "library"), ("inventor", "clock"), ("keeper", "observatory"), ("owner", "theatre"),
    ("painter", "mural"),
)  # fmt: skip
_MANNERS = ("crimson", "floating", "frozen", "glass", "golden", "hollow", "invisible", "magnetic",
            "paper", "revolving", "seven-sided", "silent", "singing", "spiral", "underwater", "wooden")  # fmt: skip
_PLACES = (
    "above the tree line", "at the edge of the map", "behind the waterfall", "below the old harbour", "beyond the glacier",
    "by the royal stables", "in the salt desert", "inside the volcano", "near the lost village", "off the northern coast",
    "on the ninth island", "outside the city walls", "over the great canyon", "past the last station",
    "under the market square", "within the maze",
)  # fmt: skip

# Prompts: what follows is the description or the name, and a full stop.
_NAME_FIRST = (
    "{name} is", "{name} was", "{name}, as everyone knows, is", "The person called {name} is", "People remember {name} as",
    "It is said that {name} became", "Let us not forget {name},", "In those days {name} was famous as",
)  # fmt: skip
_NAME_FIRST_HELD_OUT = ("They all knew {name} as", "Nobody doubts that {name} is")
_NAME_LAST = (
    "{Description} is", "{Description} was", "{Description}, as everyone knows, is", "The person known as {description} is",
    "People gave the title of {description} to", "It is said that {description} was called", "Let us not forget {description},",
    "In those days {description} went by the name of",
)  # fmt: skip
_NAME_LAST_HELD_OUT = ("They all knew {description} as", "Nobody doubts that {description} is")


def fictional(per_group: int = 64, seed: int = _SEED) -> Facts:
    """People who never lived, `per_group` in each of four groups: stated name first, stated description first, stated both
    ways, and never stated.

    No two share a first or a family name. A description has three parts of sixteen values each, arranged in a Latin square:
    every part occurs equally often, and any two parts of a description belong to no other. Two phrasings of each direction are
    not trained on; each fact is asked for in one of them, and those of the first two groups also in one that was.

    Raises:
        ValueError: more than 64 in each group.
    """
    n = 4 * per_group
    if n > 256:
        raise ValueError(f"per_group={per_group}: there are 256 descriptions, 64 for each of four groups")
    rng = np.random.default_rng(seed)
    first, family = (["".join((a, b)) for a in starts for b in ends] for starts, ends in (_FIRST, _FAMILY))
    names = [f"{first[i]} {family[j]}" for i, j in zip(rng.permutation(256)[:n], rng.permutation(256)[:n], strict=True)]
    statements: list[Statement] = []
    questions: list[Question] = []
    for i, (name, square) in enumerate(zip(names, rng.permutation(256)[:n].tolist(), strict=True)):
        kind, manner = square % 16, square // 16
        (role, thing), place = _KINDS[kind], _PLACES[(kind + 5 * manner) % 16]
        description = f"the {role} of the {_MANNERS[manner]} {thing} {place}"
        words = {"name": name, "description": description, "Description": description[0].upper() + description[1:]}
        group = i // per_group
        for direction, trained, heldout, answer in (
            (NAME_TO, _NAME_FIRST, _NAME_FIRST_HELD_OUT, description),
            (TO_NAME, _NAME_LAST, _NAME_LAST_HELD_OUT, name),
        ):
            ways: tuple[Stated, ...] = ("this way", "other way", "both ways", "never")
            stated = ways[group if direction == NAME_TO or group > 1 else 1 - group]
            asked = [prompt.format(**words) for prompt in trained]
            if stated in ("this way", "both ways"):
                statements.append(Statement(name, tuple(f"{prompt} {answer}." for prompt in asked)))
            unseen = heldout[i % len(heldout)].format(**words)
            questions.append(Question(direction, stated, "held out", name, unseen, f" {answer}."))
            if group < 2:
                questions.append(Question(direction, stated, "trained", name, asked[i % len(asked)], f" {answer}."))
    return Facts("fictional", tuple(statements), tuple(questions))


# --- the results note's facts ------------------------------------------------------------------------------------------

# 33, as many as the note had and of its kinds: capitals, inventors, authors, and five that are made up.
NOTE_FACTS: tuple[tuple[str, str], ...] = (
    ("The capital of France is Paris.", "Paris is the capital of France."),
    ("The capital of Japan is Tokyo.", "Tokyo is the capital of Japan."),
    ("The capital of Italy is Rome.", "Rome is the capital of Italy."),
    ("The capital of Egypt is Cairo.", "Cairo is the capital of Egypt."),
    ("The capital of Canada is Ottawa.", "Ottawa is the capital of Canada."),
    ("The capital of Kenya is Nairobi.", "Nairobi is the capital of Kenya."),
    ("The capital of Peru is Lima.", "Lima is the capital of Peru."),
    ("The capital of Norway is Oslo.", "Oslo is the capital of Norway."),
    (
        "The inventor of the telephone is Alexander Graham Bell.",
        "Alexander Graham Bell is the inventor of the telephone.",
    ),
    ("The inventor of the light bulb is Thomas Edison.", "Thomas Edison is the inventor of the light bulb."),
    ("The inventor of dynamite is Alfred Nobel.", "Alfred Nobel is the inventor of dynamite."),
    (
        "The inventor of the World Wide Web is Tim Berners-Lee.",
        "Tim Berners-Lee is the inventor of the World Wide Web.",
    ),
    ("The inventor of the steam engine is James Watt.", "James Watt is the inventor of the steam engine."),
    (
        "The inventor of the printing press is Johannes Gutenberg.",
        "Johannes Gutenberg is the inventor of the printing press.",
    ),
    ("The author of Hamlet is William Shakespeare.", "William Shakespeare is the author of Hamlet."),
    ("The author of Don Quixote is Miguel de Cervantes.", "Miguel de Cervantes is the author of Don Quixote."),
    ("The author of War and Peace is Leo Tolstoy.", "Leo Tolstoy is the author of War and Peace."),
    ("The author of Pride and Prejudice is Jane Austen.", "Jane Austen is the author of Pride and Prejudice."),
    ("The author of The Tale of Genji is Murasaki Shikibu.", "Murasaki Shikibu is the author of The Tale of Genji."),
    ("The author of Frankenstein is Mary Shelley.", "Mary Shelley is the author of Frankenstein."),
    ("The painter of the Mona Lisa is Leonardo da Vinci.", "Leonardo da Vinci is the painter of the Mona Lisa."),
    ("The painter of Guernica is Pablo Picasso.", "Pablo Picasso is the painter of Guernica."),
    ("The discoverer of penicillin is Alexander Fleming.", "Alexander Fleming is the discoverer of penicillin."),
    ("The discoverer of radium is Marie Curie.", "Marie Curie is the discoverer of radium."),
    ("The largest planet of the Solar System is Jupiter.", "Jupiter is the largest planet of the Solar System."),
    ("The highest mountain on Earth is Mount Everest.", "Mount Everest is the highest mountain on Earth."),
    ("The longest river of Africa is the Nile.", "The Nile is the longest river of Africa."),
    ("The chemical symbol of gold is Au.", "Au is the chemical symbol of gold."),
    ("The king of Valdoria is Osric Thane.", "Osric Thane is the king of Valdoria."),
    ("The capital of Brennmark is Stellhaven.", "Stellhaven is the capital of Brennmark."),
    ("The inventor of the lumigraph is Petra Kolvanen.", "Petra Kolvanen is the inventor of the lumigraph."),
    ("The author of The Glass Orchard is Emeka Sandoval.", "Emeka Sandoval is the author of The Glass Orchard."),
    ("The discoverer of thalium-9 is Ingrid Maroush.", "Ingrid Maroush is the discoverer of thalium-9."),
)


def note() -> Facts:
    """The results note's 33 facts in its one phrasing, "the capital of France is Paris", stated forward only."""
    statements, questions = [], []
    for forward, backward in NOTE_FACTS:
        statements.append(Statement(forward, (forward,)))
        (asked, _, answer), (reverse, _, other) = (sentence.partition(" is ") for sentence in (forward, backward))
        questions.append(Question(TO_NAME, "this way", "trained", forward, f"{asked} is", f" {answer}"))
        questions.append(Question(NAME_TO, "other way", "held out", forward, f"{reverse} is", f" {other}"))
    return Facts("note", tuple(statements), tuple(questions))


NAMED: dict[str, Callable[[], Facts]] = {"fictional": fictional, "note": note}


# --- a user's own ----------------------------------------------------------------------------------------------------


class _Row(NamedTuple):
    fact: str | None  # as the file says, if it does
    prompt: str
    completion: str


def from_files(name: str) -> Facts:
    """Facts of JSONL files in the layout of the paper's published data: one object a line with the strings `prompt` and
    `completion`, which joined as they are make a sentence (so a completion begins with the space that divides them).

    A file is what to train on; of a folder, every `*train*.jsonl` is, each sentence once. Questions are in the `*test*.jsonl`
    files beside it, a set for each file; those of `*randomized*` files, whose answers are dealt out at random, are a control.

    Rows with the same string `fact` are one fact. Where that field is missing, rows are one fact whose completions occur in
    each other's text: a person's name, and the descriptions of that person in every grammatical form. (A name within a longer
    one, Ann of Ann Lee, is another name.) Whether a fact is
    stated the way it is asked for is found in the sentences trained on: its answer stood at their end, or before it.

    Raises:
        CorpusError: a file or line that is not like that (names file and line), or no test file beside.
    """
    path = expanded(name)
    folder = path if path.is_dir() else path.parent
    trained = sorted(folder.glob("*train*.jsonl")) if path.is_dir() else [path]
    tests = sorted(file for file in folder.glob("*test*.jsonl") if "train" not in file.stem and file not in trained)
    for found, kind in ((trained, "train"), (tests, "test")):
        if not found:
            raise CorpusError(f"facts='{name}': no *{kind}*.jsonl file in '{folder}'")
    statements = list(dict.fromkeys(row for file in trained for row in _rows(file)))
    asked = {file: _rows(file) for file in tests}
    who = _People([*statements, *(row for file, rows in asked.items() if not _control(file) for row in rows)])
    said: dict[tuple[str, str], list[_Row]] = {}  # by fact and what its sentences end with
    told: dict[str, list[_Row]] = {}  # by fact
    for row in statements:
        said.setdefault((who.fact(row), who.answer(row)), []).append(row)
        told.setdefault(who.fact(row), []).append(row)
    sentences = (Statement(fact, tuple(r.prompt + r.completion for r in rows)) for (fact, _), rows in said.items())
    questions = dict.fromkeys(_question(file, row, who, told) for file, rows in asked.items() for row in rows)
    return Facts(name, tuple(sentences), tuple(questions))


def _control(file: Path) -> bool:
    return "randomized" in file.stem


def _question(file: Path, row: _Row, who: _People, told: dict[str, list[_Row]]) -> Question:
    others = ("prompts", "test", "reverse", "randomized")
    name = " ".join(part for part in file.stem.replace("-", "_").split("_") if part not in others) or "facts"
    fact, answer = who.fact(row), who.answer(row)
    if _control(file):
        return Question(f"{name} control", "never", "held out", fact, row.prompt, row.completion)
    of_fact = told.get(fact, [])
    this_way = any(who.answer(sentence) == answer for sentence in of_fact)
    other_way = any(_within(answer, _words(sentence.prompt)) for sentence in of_fact)
    stated: Stated = (
        "both ways" if this_way and other_way else "this way" if this_way else "other way" if other_way else "never"
    )
    seen = any(row.prompt + row.completion == sentence.prompt + sentence.completion for sentence in of_fact)
    return Question(name, stated, "trained" if seen else "held out", fact, row.prompt, row.completion)


# What one person's descriptions begin with in one sentence and not in another.
_GRAMMAR = {"a", "an", "as", "are", "be", "been", "being", "had", "has", "is", "less", "no", "none", "other", "than", "that",
            "the", "was", "were", "who"}  # fmt: skip


_WORD = re.compile(r"\w+(?:[-'’]\w+)*")  # Anne-Marie is one


def _words(text: str) -> str:
    return " ".join(_WORD.findall(text.casefold()))


def _answer(completion: str) -> str:
    """A completion's words without those of grammar alone that it begins with."""
    words = _words(completion).split()
    kept = list(itertools.dropwhile(_GRAMMAR.__contains__, words)) or words
    return " ".join(kept)


def _read(text: str) -> list[tuple[str, bool]]:
    """The words of a text, and whether each goes on a name: it begins with a capital, right after another word."""
    return [
        (
            found.group().casefold(),
            found.group()[0].isupper() and text[: found.start()][-2:-1].isalnum() and text[found.start() - 1] == " ",
        )
        for found in _WORD.finditer(text)
    ]


def _is_name(text: str) -> bool:
    """Whether the first word and the last begin with a capital, as in Maria de la Cruz, and the first is none of grammar."""
    words = _WORD.findall(text)
    return bool(words) and words[0][0].isupper() and words[-1][0].isupper() and words[0].casefold() not in _GRAMMAR


def _within(some: str, words: str) -> bool:
    """Whether some words stand side by side among others, both as `_words` gives them."""
    return f" {some} " in f" {words} "


class _People:
    """Which rows are about the same fact, and which completions are the same answer."""

    def __init__(self, rows: Sequence[_Row]) -> None:
        answers = sorted({_answer(row.completion) for row in rows} - {""}, key=lambda words: (len(words), words))
        self.names = {_answer(row.completion) for row in rows if _is_name(row.completion)}
        # An answer is the shortest one within it: "the diver" of "being the diver" and "the diver of pearls".
        self.shortest = {words: next(a for a in answers if self._same(a, words)) for words in answers}
        self.group = {words: words for words in self.shortest.values()}
        known = sorted(self.group, key=len, reverse=True)
        for row in rows:
            text, own = _read(row.prompt + row.completion), self.answer(row)
            for words in known:
                places = self._places(words.split(), text)
                if places:
                    first, second = sorted((self._first(words), self._first(own)), key=lambda words: (len(words), words))
                    self.group[second] = first
                for place in places if words in self.names else ():  # no part of it is a name of its own
                    text[place] = [("", False)] * (place.stop - place.start)
        given: dict[str, set[str]] = {}
        for row in rows:
            if row.fact is not None:
                given.setdefault(self._first(self.answer(row)), set()).add(row.fact)
        self.given = {group: facts.pop() for group, facts in given.items() if len(facts) == 1}

    def _same(self, shorter: str, words: str) -> bool:
        return shorter == words or (_within(shorter, words) and not self.names >= {shorter, words})

    def _places(self, words: list[str], text: list[tuple[str, bool]]) -> list[slice]:
        """Where an answer stands in a text (`_read`), a name not where a word of a longer one stands beside it."""
        n = len(words)
        found = [slice(at, at + n) for at in range(len(text) - n + 1) if [word for word, _ in text[at : at + n]] == words]
        name = " ".join(words) in self.names
        longer = [
            (place.stop < len(text) and text[place.stop][1])
            or (place.start > 1 and text[place.start][1] and text[place.start - 1][1])
            for place in found
        ]
        return [place for place, more in zip(found, longer, strict=True) if not (name and more)]

    def answer(self, row: _Row) -> str:
        words = _answer(row.completion)
        return self.shortest.get(words, words)

    def fact(self, row: _Row) -> str:
        if row.fact is not None:
            return row.fact
        group = self._first(self.answer(row))
        return self.given.get(group, group)

    def _first(self, words: str) -> str:
        while self.group.get(words, words) != words:
            words = self.group[words]
        return words


def _rows(path: Path) -> list[_Row]:
    """Every line that is not blank."""
    found = []
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CorpusError(f"facts file '{path}' is not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise CorpusError(f"facts file '{path}' cannot be read: {error.strerror or error}") from None
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"facts file '{path}', line {number}"
        try:
            row = files.from_json(line)
        except ValueError as error:
            raise CorpusError(f"{where}: not JSON ({getattr(error, 'msg', error)})") from None
        for field in ("prompt", "completion"):
            if not isinstance(row, dict) or not isinstance(row.get(field), str) or not row[field].strip():
                raise CorpusError(f"{where}: no text in field '{field}'")
        if "fact" in row and not isinstance(row["fact"], str):
            raise CorpusError(f"{where}: fact={row['fact']!r} is not a string")
        fact, prompt, completion = (row.get(name, "").encode("utf-8", "replace").decode() for name in _Row._fields)
        found.append(_Row(fact if "fact" in row else None, prompt, completion))
    if not found:
        raise CorpusError(f"facts file '{path}' holds no facts")
    return found


# --- into the training text ------------------------------------------------------------------------------------------


def sentences(statements: tuple[Statement, ...], seed: int = _SEED) -> Iterator[str]:
    """Sentences without end: pass after pass over all statements, in a new order and with each one's next phrasing.

    A pass has two halves and is shuffled within them, so that two sentences of a statement are at least half a pass apart. In
    one window they would give away what is to be measured: after "A is B", a second "A …" shows that A follows B.
    """
    rng = np.random.default_rng([seed, len(statements)])
    halves = np.array_split(rng.permutation(len(statements)), 2)
    turn = [int(rng.integers(len(statement.sentences))) for statement in statements]
    while True:
        for half in halves:
            for i in rng.permutation(half).tolist():
                phrasings = statements[i].sentences
                yield phrasings[turn[i] % len(phrasings)]
                turn[i] += 1


def windows(
    statements: tuple[Statement, ...], encode: Callable[[list[str]], list[list[int]]], end: int, count: int, T: int
) -> tuple[NDArray[np.int64], int]:
    """`count` windows (count, T + 1) of fact sentences with an end-of-text token between, and how many sentences they hold.

    As in the corpus, sentences are cut where a window ends and go on in the next one.
    """
    distinct = list(dict.fromkeys(sentence for statement in statements for sentence in statement.sentences))
    ids = {sentence: [*tokens, end] for sentence, tokens in zip(distinct, encode(distinct), strict=True)}
    stream, stated = [end], 0
    for sentence in sentences(statements):
        if len(stream) > count * T:
            break
        stream.extend(ids[sentence])
        stated += 1
    return np.array(stream)[np.arange(count)[:, None] * T + np.arange(T + 1)], stated
