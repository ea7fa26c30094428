"""The command line: `python -m pe_core run|sweep|compare|plot|generate|…`, for those who want no notebook.

Every setting of `Experiment` is an option here, a new one without an edit, and is checked by `Experiment` itself.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import re
import sys
import types
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Union, get_args, get_origin

from pe_core import distributed, files, process
from pe_core.config import PRESETS, Experiment
from pe_core.errors import ConfigError, CorpusError, LabError, RecordError, shown, unknown

if TYPE_CHECKING:
    from pe_core.records import Record

_EXAMPLES = """examples:
  python -m pe_core run --encoding alibi -o slope=0.0625 --samples 1000
  python -m pe_core sweep --encoding none rope alibi --seed 42 43 44 --samples 1000 --json
  python -m pe_core sweep --encoding rope alibi -o alibi.slope=0.0625 -o alibi.slope=0.25
  python -m pe_core compare --against rope --plot differences.svg
  python -m pe_core generate alibi-nano-0ad537d630 "The state of"
  python -m pe_core estimate --trials 1000 --encoding rope alibi --workers 8
  python -m pe_core list
  python -m pe_core list encodings
  python -m pe_core show alibi-nano-0ad537d630

A killed run goes on with the same command; a finished one is read from its record. Exit codes: 0 done; 1 training failed or
a record cannot be read; 2 a setting or a corpus cannot be used; 130 interrupted. Errors are one line on stderr. With --json,
stdout holds JSON alone and everything else goes to stderr."""

_INTERRUPTED = 130
_Values = list[dict[str, Any]]


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (`{self.prog} --help` lists what there is)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    end = words.index("--") if "--" in words else len(words)  # what follows is text
    given = [re.sub(r"^--[a-z_]+", lambda name: name[0].replace("_", "-"), word) for word in words[:end]] + [*words[end:]]
    try:
        for word in given[:end]:
            if word.startswith("--") and word.endswith("=--"):  # argparse would take the value away
                raise ConfigError(f"{word}: a value is needed")
        parsed, rest = _parser().parse_known_args(given)
        if rest:
            known = parsed.options_known
            raise ConfigError(unknown("option", rest[0], known) if rest[0].startswith("-") else f"unexpected '{rest[0]}'")
        if parsed.json and getattr(parsed, "csv", False):
            raise ConfigError("one of --csv and --json can be printed, not both")
        # A program reads the JSON: lines about the training must not stand before it.
        with contextlib.redirect_stdout(sys.stderr) if parsed.json else contextlib.nullcontext():
            value = parsed.command(parsed)
        with contextlib.suppress(BrokenPipeError):  # a reader such as `head` has seen enough
            if distributed.rank() == 0 or parsed.command is not _run:
                print(json.dumps(value, indent=1, allow_nan=False) if parsed.json else value, flush=True)
        return 0
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError | CorpusError) else 1
    except KeyboardInterrupt:
        print("Interrupted; the same command goes on from here.", file=sys.stderr)
        return _INTERRUPTED


def _parser() -> _Parser:
    parser = _Parser(
        prog="python -m pe_core", description="Train small language models that differ in their position encoding.",
        epilog=_EXAMPLES,
    )  # fmt: skip
    commands = parser.add_subparsers(metavar="run | sweep | compare | plot | generate | estimate | list | show", required=True)
    for command, what in (
        (_run, "train and measure one model"),
        (_sweep, "the same for every combination of the values given"),
        (_estimate, "what that would cost, by the finished runs that are there"),
    ):
        one = commands.add_parser(command.__name__[1:], help=what, description=what.capitalize() + ".", epilog=_EXAMPLES)
        _add_settings(one, several=command is not _run)
        if command is not _estimate:
            one.add_argument("--fresh", action="store_true", help="train again even where there is a finished record")
        if command is _sweep:
            one.add_argument("--workers", type=int, metavar="N", help="runs at a time (default: one a core, or one on a GPU)")
            one.add_argument("--address", help="of a Ray cluster: auto, ray://HOST:10001, or local; --runs may then be a URL")
        if command is _estimate:
            one.add_argument("--workers", type=int, default=1, metavar="N", help="runs at a time (default: 1)")
            one.add_argument("--trials", type=int, metavar="N", help="how many runs in all (default: one a combination)")
        _finish(one, command)
    listed = commands.add_parser("list", help="finished runs, or what can be chosen", epilog=_EXAMPLES)
    listed.add_argument("what", nargs="?", default="runs", help=f"{', '.join(_LISTS)} (default: runs)")
    listed.add_argument("--csv", action="store_true", help="print runs as CSV, with all their settings")
    _finish(listed, _list)
    compared = commands.add_parser("compare", help="finished runs against each other: intervals and verdicts", epilog=_EXAMPLES)
    compared.add_argument("chosen", nargs="*", metavar="RUN", help="ids, or beginnings of ids (default: all runs)")
    compared.add_argument("--against", metavar="MODEL", help="the baseline: a label, an encoding or another short name")
    compared.add_argument("--csv", action="store_true", help="print the table as CSV")
    compared.add_argument("--plot", metavar="FILE", help="draw the differences into a file (.svg, .png, .pdf)")
    _finish(compared, _compare)
    drawn = commands.add_parser("plot", help="perplexity by position of finished runs, into a file", epilog=_EXAMPLES)
    drawn.add_argument("chosen", nargs="+", metavar="RUN", help="ids, or beginnings of ids")
    drawn.add_argument("--file", default="positions.svg", help="where to draw (default: positions.svg)")
    _finish(drawn, _plot)
    generated = commands.add_parser("generate", help="continue a text with a finished run's model", epilog=_EXAMPLES)
    generated.add_argument("run", help="its id, the beginning of its id, or its folder")
    generated.add_argument("text")
    generated.add_argument("--tokens", type=int, default=64, metavar="N", help="how many are added at most (default: 64)")
    generated.add_argument("--temperature", type=float, default=0.8, metavar="X", help="0 takes the likeliest (default: 0.8)")
    generated.add_argument("--seed", type=int, default=0, metavar="N", help="of the sampling (default: 0)")
    _finish(generated, _generate)
    one = commands.add_parser("show", help="one finished run", epilog=_EXAMPLES)
    one.add_argument("run", help="its id, the beginning of its id, or its folder")
    _finish(one, _show)
    return parser


def _finish(parser: _Parser, command: Any) -> None:
    parser.add_argument("--runs", metavar="FOLDER", help="where records are kept (default: $PE_RUNS, or runs/)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(command=command, options_known=list(parser._option_string_actions))


# --- settings as options ---------------------------------------------------------------------------------------------


def _add_settings(parser: _Parser, several: bool) -> None:
    """An option for every field of `Experiment`, with its description; values stay text, for `Experiment` to check."""
    group = parser.add_argument_group("settings" + (", each with one value or several" if several else ""))
    for name, field in Experiment.model_fields.items():
        default = "" if field.default in (None, {}) else f" (default: {field.default})"
        group.add_argument(
            "--" + name.replace("_", "-"),
            nargs="+" if several else None,
            default=argparse.SUPPRESS,
            metavar=_metavar(field.annotation),
            help=((field.description or "").replace("`", "") + default).replace("%", "%%"),
        )
        if name == "options":
            group.add_argument(
                "-o", action="append", default=[], metavar="NAME=VALUE",
                help="one of the encoding's own settings; may be given more than once"
                + (": of the same name for several values, as ENCODING.NAME=VALUE for one encoding alone" if several else ""),
            )  # fmt: skip


def _kinds(annotation: Any) -> list[Any]:
    return list(get_args(annotation)) if get_origin(annotation) in (Union, types.UnionType) else [annotation]


def _metavar(annotation: Any) -> str:
    first = _kinds(annotation)[0]
    if get_origin(first) is Literal:
        return "|".join(get_args(first))
    return {int: "N", float: "X", str: "NAME", bool: "true|false"}.get(first, "JSON")


def _value(name: str, text: str) -> Any:
    """What a setting's text means: JSON where the setting has parts, `none` where it may be `None`, else the text itself."""
    kinds = _kinds(Experiment.model_fields[name].annotation)
    if _metavar(kinds[0]) == "JSON":
        try:
            return files.from_json(text)
        except ValueError as error:
            raise ConfigError(f"{name}={shown(text)}: should be JSON, as '{{\"slope\": 0.0625}}' ({error})") from None
    if kinds[0] is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    return None if text.lower() == "none" and type(None) in kinds else text


def _experiments(parsed: argparse.Namespace) -> list[Experiment]:
    """Every combination of the values given, in their order."""
    given = {name: getattr(parsed, name) for name in Experiment.model_fields if hasattr(parsed, name)}
    lists = {name: [_value(name, text) for text in ([v] if isinstance(v, str) else v)] for name, v in given.items()}
    grid = [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]
    encodings = {one.get("encoding", Experiment().encoding) for one in grid}
    small = [_option(text, encodings) for text in parsed.o]
    return [Experiment(**settings) for one in grid for settings in _with_options(one, small)]


def _option(text: str, encodings: set[str]) -> tuple[str | None, str, Any]:
    """`slope=0.0625` or `alibi.slope=0.0625`: the encoding it is meant for or `None`, its name and its value."""
    name, given, value = text.partition("=")
    owner, dot, name = name.rpartition(".")
    if not given or not name:
        raise ConfigError(f"-o {text}: should be NAME=VALUE, as -o slope=0.0625")
    if dot and owner not in encodings:
        raise ConfigError(f"-o {text}: {unknown('encoding', owner, encodings)}")
    try:
        return owner or None, name, files.from_json(value)
    except ValueError:
        return owner or None, name, value  # a word


def _with_options(settings: dict[str, Any], small: list[tuple[str | None, str, Any]]) -> _Values:
    encoding = settings.get("encoding", Experiment().encoding)
    values: dict[str, list[Any]] = {}
    for owner, name, value in small:
        if owner in (None, encoding):
            values.setdefault(name, []).append(value)
    combinations = itertools.product(*values.values())
    if not values:
        return [settings]
    return [
        {**settings, "options": {**settings.get("options", {}), **dict(zip(values, one, strict=True))}} for one in combinations
    ]


# --- commands: each returns a JSON value or text -----------------------------------------------------------------------


def _run(parsed: argparse.Namespace) -> Any:
    process.tune()  # before torch is loaded
    from pe_core.runner import run

    chosen = _experiments(parsed)
    if len(chosen) > 1:
        raise ConfigError("one of the options has several values; `sweep` runs them all")
    return _one(run(chosen[0], parsed.runs, parsed.fresh), parsed.json)


def _sweep(parsed: argparse.Namespace) -> Any:
    from pe_core.sweeper import sweep

    _at_least_one(workers=parsed.workers)
    trained = sweep(_experiments(parsed), parsed.runs, parsed.fresh, parsed.workers, parsed.address)
    listed = _many(trained, parsed.json)
    if parsed.json:
        return listed
    from pe_core.report import compare

    try:
        answer = compare.texts(compare.comparisons(trained))
    except RecordError as error:  # a single model, say
        answer = f"Nothing is compared: {error}."
    return f"{listed}\n\n\n{answer}"


def _estimate(parsed: argparse.Namespace) -> Any:
    from pe_core import paths, records
    from pe_core.launch import estimate

    _at_least_one(workers=parsed.workers, trials=parsed.trials)
    chosen, book = _experiments(parsed), paths.PUBLISHED
    published = records.load_all(book) if book.exists() else []  # a wheel has no book
    cost = estimate.sweep(chosen, records.load_all(parsed.runs), parsed.trials or len(chosen), parsed.workers, published)
    return cost if parsed.json else estimate.sentence(cost)


def _at_least_one(**values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value < 1:
            raise ConfigError(f"{name}={value}: should be 1 or more")


def _show(parsed: argparse.Namespace) -> Any:
    return _one(_find(parsed.run, parsed.runs), parsed.json)


def _find(name: str, folder: str | None) -> Record:
    """A finished run by its folder, its id, or the beginning of its id."""
    from pe_core import paths, records

    if os.path.exists(name):  # False of what no file can be called
        return records.load(name)
    home = paths.runs(folder, reading=True)
    runs = sorted(path.parent.name for path in home.glob(f"*/{records.RECORD}"))
    found = [run for run in runs if run.startswith(name)]
    if len(found) > 1 and name not in found:
        raise RecordError(f"'{name}' is the beginning of {len(found)} runs: {', '.join(found)}")
    if not found:
        raise RecordError(unknown("run", name, runs) + f" in '{home}'")
    return records.load(home / (name if name in found else found[0]))


def _compare(parsed: argparse.Namespace) -> Any:
    from pe_core import records
    from pe_core.report import compare

    found = [_find(name, parsed.runs) for name in parsed.chosen] or records.load_all(parsed.runs)
    chosen = compare.comparisons(found, parsed.against)
    if parsed.plot:
        file = compare.plot(*chosen[0], parsed.plot)
        print(f"Drawn: {file}" + (f", the first of {len(chosen)} settings" if len(chosen) > 1 else ""), file=sys.stderr)
    if parsed.csv or parsed.json:
        import pandas as pd

        together = [
            compare.table(groups, against).assign(baseline=against, setting=n) for n, (groups, against) in enumerate(chosen)
        ]
        frame = pd.concat(together, ignore_index=True)
        return frame.to_csv(index=False).rstrip() if parsed.csv else json.loads(frame.to_json(orient="records"))
    return compare.texts(chosen)


def _plot(parsed: argparse.Namespace) -> Any:
    from pe_core.report import compare

    file = compare.plot_positions([_find(name, parsed.runs) for name in parsed.chosen], parsed.file)
    return {"file": str(file)} if parsed.json else f"Drawn: {file}"


def _generate(parsed: argparse.Namespace) -> Any:
    _at_least_one(tokens=parsed.tokens)
    if parsed.temperature != 0 and not 0.01 <= parsed.temperature <= 100:  # beyond, numbers run out
        raise ConfigError(f"temperature={parsed.temperature:g}: should be 0, or from 0.01 to 100")
    if not 0 <= parsed.seed < 2**63:
        raise ConfigError(f"seed={parsed.seed}: should be 0 or more, and below 2^63")
    text = _find(parsed.run, parsed.runs).generate(parsed.text, parsed.tokens, parsed.temperature, parsed.seed)
    return {"text": text} if parsed.json else text


def _list(parsed: argparse.Namespace) -> Any:
    if parsed.what not in _LISTS:
        raise ConfigError(unknown("list", parsed.what, _LISTS))
    if parsed.what == "runs":
        from pe_core import records

        found = records.load_all(parsed.runs)
        return records.frame(found).to_csv(index=False).rstrip() if parsed.csv else _many(found, parsed.json)
    if parsed.csv:
        raise ConfigError(f"list {parsed.what} --csv: only runs are printed as CSV")
    rows = _LISTS[parsed.what]()
    if parsed.json:
        return rows
    cells = [[", ".join(f"{k}={v}" for k, v in x.items()) if isinstance(x, dict) else str(x) for x in r.values()] for r in rows]
    return _columns([list(rows[0]), *cells])


def _encodings() -> _Values:
    from pe_core.encodings import ENCODINGS

    rows = []
    for name, cls in ENCODINGS.items():
        options = {key: field.get_default(call_default_factory=True) for key, field in cls.Options.model_fields.items()}
        plain = {key: json.loads(json.dumps(value, default=lambda part: part.model_dump())) for key, value in options.items()}
        rows.append({"name": name, "title": cls.title, "family": cls.family, "paper": cls.paper, "options": plain})
    return rows


def _corpora() -> _Values:
    from pe_core.data.corpora import CORPORA
    from pe_core.data.hub import HUB

    about = {name: " ".join((make.__doc__ or "").split("\n\n")[0].split()) for name, make in CORPORA.items()}
    return [{"name": name, "network": name in HUB, "about": what} for name, what in about.items()]


def _presets() -> _Values:
    return [{"name": name, **preset._asdict()} for name, preset in PRESETS.items()]


_LISTS: dict[str, Any] = {"runs": None, "encodings": _encodings, "corpora": _corpora, "presets": _presets}


def _one(record: Record, as_json: bool) -> Any:
    from pe_core.report import claims, tables

    if as_json:
        return files.without_nan({"folder": str(record.folder), **record.model_dump()})
    parts = [claims.learning_curve(record), *(_table(table) for table in (tables.summary([record]), tables.settings(record)))]
    return "\n\n".join([*parts, f"Folder: {record.folder}"])


def _many(found: list[Record], as_json: bool) -> Any:
    from pe_core import records
    from pe_core.report import tables

    if as_json:
        rows: _Values = json.loads(records.frame(found).to_json(orient="records", double_precision=15))
        return rows
    rows_shown = [["run", "label", "seed", "perplexity", "bits per byte", "best epoch", "windows", "corpus"]]
    for record in found:
        measured = (tables.interval(record.metrics["perplexity"]), tables.interval(record.metrics["bits_per_byte"], 3))
        epochs = f"{record.best_epoch} of {len(record.history)}"
        config = record.config
        rows_shown.append(
            [record.run, record.label, str(config["seed"]), *measured, epochs, f"{config['samples']:,}", config["corpus"]]
        )
    return _columns(rows_shown) if found else "No finished runs."


def _table(styler: Any) -> str:
    return _columns([[str(index), *map(str, row)] for index, *row in styler.data.itertuples()])


def _columns(rows: list[list[str]]) -> str:
    """Rows of text, one under the other; the last column as long as it likes."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(_padded(row, widths) for row in rows)


def _padded(row: Iterable[str], widths: Iterable[int]) -> str:
    cells: Iterator[str] = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
    return "  ".join(cells).rstrip()


if __name__ == "__main__":
    sys.exit(main())
