"""The parts of README.md that the code knows better than its author: `python -m pe_core.site.readme` writes them.

Each part stands between `<!-- name -->` and `<!-- /name -->`. A test holds that they are current; line counts may have moved by
a tenth since they were written.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import nbformat

from pe_core import paths
from pe_core.encodings import ENCODINGS
from pe_core.errors import told
from pe_core.site import index

README = paths.ROOT / "README.md"
PACKAGE = "pe_core"
# The core in the order it is read in: from what a run is, through the model and its training, to what is said of it.
CORE = (
    "schema", "config", "encodings/base", "encodings/rope", "attention", "model_config", "model", "loss", "trainer",
    "metrics", "stats", "records", "comparison", "runner", "sweeper",
)  # fmt: skip
_OTHER_ROOMS = {
    "tests": "the same rooms; what several of them use is in `helpers.py`",
    "benchmarks": "speed, beside other trainers: `make bench`",
}
_NO_CODE = {
    "notebooks": "one per experiment, run from top to bottom, without outputs",
    "book": "the site: its pages, the executed notebooks, published records",
    "runs": "your runs (ignored by git)",
}


def lines(*files: Path) -> int:
    """Lines that are not blank."""
    return sum(bool(line.strip()) for file in files for line in file.read_text().splitlines())


def rooms(root: Path = paths.ROOT) -> dict[str, tuple[int, str]]:
    """Every folder of code: its lines, without those of rooms within, and what it is for."""
    package = root / PACKAGE
    found = {f"{PACKAGE}/": (lines(*package.glob("*.py")), "the core, and small modules it stands on")}
    for file in sorted(package.rglob("*/__init__.py")):
        name = f"{file.parent.relative_to(root).as_posix()}/"
        found[name] = (lines(*file.parent.glob("*.py")), about(file))
    return found | {f"{name}/": (lines(*(root / name).rglob("*.py")), what) for name, what in _OTHER_ROOMS.items()}


def about(module: Path) -> str:
    """The first sentence of a module's docstring, or else of its first class's, without its full stop."""
    parsed = ast.parse(module.read_text())
    documented: list[ast.Module | ast.ClassDef] = [parsed, *(node for node in parsed.body if isinstance(node, ast.ClassDef))]
    text = next((said for node in documented if (said := ast.get_docstring(node))), "")
    return " ".join(re.split(r"(?<=[.?])\s+(?=[A-Z])|\n\n", text, maxsplit=1)[0].split()).rstrip(".")


def tree(root: Path = paths.ROOT) -> str:
    """Every room in a line."""
    rows = [(name, f"{count:,}", what) for name, (count, what) in rooms(root).items()]
    rows += [(f"{name}/", "", what) for name, what in _NO_CODE.items()]
    wide = max(len(_indented(name)) for name, *_ in rows)
    return "\n".join(["```", *(f"{_indented(name):<{wide}} {count:>6}  {what}" for name, count, what in rows), "```"])


def _indented(name: str) -> str:
    *above, last = name.rstrip("/").split("/")
    return "  " * len(above) + last + "/"


def reading(root: Path = paths.ROOT) -> str:
    """The core, a module a line, in reading order."""
    files = {name: root / PACKAGE / f"{name}.py" for name in CORE}
    rows = [
        f"{n}. [`{name}`]({PACKAGE}/{name}.py) ({lines(file)}): {about(file)}"
        for n, (name, file) in enumerate(files.items(), 1)
    ]
    return "\n".join(rows)


def others(root: Path = paths.ROOT) -> str:
    """Every other module but encodings and studies, which are found by their names, a line each."""
    rows = []
    for room in ("", "data/", "launch/", "report/", "site/"):
        for file in sorted((root / PACKAGE / room).glob("[a-z]*.py")):
            if (name := f"{room}{file.stem}") not in CORE:
                rows.append(f"- [`{name}`]({PACKAGE}/{name}.py): {about(file)}")
    return "\n".join(rows)


def experiments(root: Path = paths.ROOT) -> str:
    """Every notebook with its question: those of the site in the order of its table of contents, then the others."""
    on_site = re.findall(r"^\s*- file: experiments/(\w+)", (root / "_toc.yml").read_text(), re.MULTILINE)
    others = sorted({file.stem for file in (root / "notebooks").glob("*.ipynb")} - {*on_site, "explore"})
    rows = ["| Notebook | Question | On the site |", "|---|---|---|"]
    for name in [*on_site, *others]:
        question = index.title(nbformat.read(root / "notebooks" / f"{name}.ipynb", as_version=4))
        rows.append(f"| [`{name}`](notebooks/{name}.ipynb) | {question} | {'yes' if name in on_site else 'not yet'} |")
    return "\n".join(rows)


def encodings() -> str:
    """The encodings by family; each is one file of its name."""
    families: dict[str, list[str]] = {}
    for name, cls in ENCODINGS.items():
        families.setdefault(cls.family, []).append(f"[{cls.title}]({PACKAGE}/encodings/{name}.py)")
    return "\n".join(
        ["| Family | Encodings |", "|---|---|", *(f"| {name} | {', '.join(of)} |" for name, of in families.items())]
    )


def headline() -> str:
    """The published ranking study in a sentence or two; nothing where there is none."""
    budgets = index.ranked()
    return index.findings(budgets) if budgets else ""


def filled(text: str, parts: dict[str, str]) -> str:
    """The text with each part between its markers; the markers stay."""
    for name, part in parts.items():
        text, count = re.subn(
            rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)",
            (f"{part}\n" if part else "").replace("\\", r"\\"),
            text,
            flags=re.DOTALL,
        )
        assert count == 1, f"README.md needs `<!-- {name} -->` and `<!-- /{name} -->`, once"
    return text


def parts() -> dict[str, str]:
    """What is written, by marker."""
    return {
        "headline": headline(),
        "experiments": experiments(),
        "encodings": encodings(),
        "tree": tree(),
        "reading": reading(),
        "others": others(),
    }


def main() -> None:
    with told():
        paths.need_checkout()
        README.write_text(filled(README.read_text(), parts()))


if __name__ == "__main__":
    main()
