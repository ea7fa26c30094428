"""From executed notebooks to the book: `python -m pe_core.site.publish show|clean|picture|records …` (called by make)."""

from __future__ import annotations

import argparse
import base64
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import nbformat

from pe_core import records as run_records
from pe_core.errors import told

# What was found out about a run's weights later, as far as it is small.
FOUND = ("diagnosis-*.npz", "task-*.json", "extrapolation-*.json", "curse-*.json", "note-*.json")
# What only the notebooks of one study read; ten times as large.
READ_BY = {"studies.extrapolation": ("lengths.npz", "sources-of-*.json")}


def show(notebook: Path) -> None:
    """Print what an executed notebook says: its printed lines and its sentences, without tables and figures."""
    for cell in nbformat.read(notebook, as_version=4).cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream" and output.name == "stdout":
                print(output.text.rstrip() + "\n")
            elif "text/markdown" in output.get("data", {}):
                print(output.data["text/markdown"].replace("**", "") + "\n")


def clean(notebook: Path) -> None:
    """Take out of an executed notebook what does not belong on a page: times, paths and memory addresses of the machine,
    warnings and progress on stderr, and the cell papermill injected (its values show in the settings table). What a figure says
    about itself (`figures.describe`) joins the alternative text its cell gives. A cell tagged `becomes-text` becomes the
    Markdown it displayed: only text of the page itself can hold headings, citations and links to other pages."""
    content = nbformat.read(notebook, as_version=4)
    content.metadata.pop("papermill", None)
    content.metadata.pop("widgets", None)
    content.cells = [cell for cell in content.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    for cell in content.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        if "becomes-text" in cell.metadata.get("tags", []) and cell.cell_type == "code":
            cell.source = "\n\n".join(
                output.data["text/markdown"] for output in cell.outputs if "text/markdown" in output.get("data", {})
            )
            cell.cell_type = "markdown"
            del cell["outputs"], cell["execution_count"]
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                output.get("metadata", {}).pop("needs_background", None)
                if len(output.get("data", {})) > 1:  # an object's address in memory, beside what it looks like
                    output.data.pop("text/plain", None)
                if drawing := output.get("data", {}).get("image/svg+xml"):
                    output.data["image/svg+xml"] = compact(drawing)
                if alt := output.get("metadata", {}).pop("image/svg+xml", {}).get("alt"):
                    image = cell.metadata.setdefault("mystnb", {}).setdefault("image", {})
                    image["alt"] = " ".join(filter(None, (image.get("alt"), alt)))
    nbformat.write(content, notebook)


def compact(svg: str) -> str:
    """A drawing without its preamble, and with no more digits than a screen shows."""
    body = svg[max(svg.find("<svg"), 0) :]
    body = re.sub(r"\s*<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    return re.sub(r"-?\d+\.\d{3,}", lambda number: _short(float(number[0])), body)


def _short(number: float) -> str:
    # Numbers below 1 are scales of letters: rounded as coarsely as places, they would space letters unevenly.
    return f"{number:.{2 if abs(number) >= 1 else 5}f}".rstrip("0").rstrip(".")


def picture(notebook: Path, number: int, target: Path) -> None:
    """Save figure `number` (from 0) of an executed notebook as a file of its own, on white: it may stand on any page."""
    images = [image for cell in nbformat.read(notebook, as_version=4).cells for image in _images(cell, target.suffix)]
    if number >= len(images):
        sys.exit(f"{notebook} has {len(images)} figures of type {target.suffix}, so none of number {number}")
    white = b'<rect width="100%" height="100%" fill="#fff"/>'
    target.write_bytes(re.sub(rb"(<svg\b[^>]*>)", rb"\1" + white, images[number], count=1))


def _images(cell: Any, suffix: str) -> list[bytes]:
    kind = {".svg": "image/svg+xml", ".png": "image/png"}[suffix]
    found = [output.data[kind] for output in cell.get("outputs", []) if kind in output.get("data", {})]
    return [text.encode() if suffix == ".svg" else base64.b64decode(text) for text in found]


def records(runs: Path, target: Path, notebooks: list[Path]) -> None:
    """Publish what is small of every finished run whose id a notebook's outputs show, one folder a notebook: all records, all
    held-out losses (`records.publish`), and what weights were found to do (`FOUND`, `READ_BY`) in a folder of the run's name.
    The weights stay. A run that is published there already, and not in `runs`, stays as it is; so does what was found of one
    that was trained again, came out the same and was not looked into again."""
    trained = {file.parent.name: file.parent for file in sorted(runs.glob(f"*/{run_records.RECORD}"))}
    for notebook in notebooks:
        shown = set(re.findall(r"[\w-]+-[0-9a-f]{10}(?![\w-])", _texts(notebook)))
        study = target / notebook.stem
        new = [run_records.load(folder) for run, folder in trained.items() if run in shown]
        published = {record.run: record for record in run_records.load_study(study)}
        old = [record for run, record in published.items() if run in shown - trained.keys()]
        patterns = [*FOUND, *(one for of, some in READ_BY.items() if of in notebook.read_text() for one in some)]
        found = {record.run: [file for one in patterns for file in record.folder.glob(one)] for record in new}
        bare = [record for record in new if record.run in published and not found[record.run]]
        stay = {record.run for record in [*old, *bare] if record.same_result(published[record.run])}
        for folder in study.glob("*-*/"):
            if re.fullmatch(r"[\w-]+-[0-9a-f]{10}", folder.name) and folder.name not in stay:
                shutil.rmtree(folder)
        if chosen := [*old, *new]:
            run_records.publish(chosen, study)
        else:
            shutil.rmtree(study, ignore_errors=True)
        for record in new:
            for file in found[record.run]:
                (study / record.run).mkdir(exist_ok=True)
                shutil.copyfile(file, study / record.run / file.name)


def _texts(notebook: Path) -> str:
    """All that a notebook's outputs say: printed lines, sentences and tables."""
    outputs = [output for cell in nbformat.read(notebook, as_version=4).cells for output in cell.get("outputs", [])]
    shown = [text for output in outputs for kind, text in output.get("data", {}).items() if kind.startswith("text/")]
    return "\n".join([*shown, *(output.text for output in outputs if output.output_type == "stream")])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("show", help="print an executed notebook's sentences").add_argument("notebooks", type=Path, nargs="+")
    commands.add_parser("clean", help="prepare executed notebooks for the book").add_argument("notebooks", type=Path, nargs="+")
    figure = commands.add_parser("picture", help="save one figure of an executed notebook")
    figure.add_argument("notebook", type=Path)
    figure.add_argument("number", type=int)
    figure.add_argument("target", type=Path)
    copied = commands.add_parser("records", help="copy the records of the runs executed notebooks show")
    copied.add_argument("runs", type=Path)
    copied.add_argument("target", type=Path)
    copied.add_argument("notebooks", type=Path, nargs="+")
    arguments = parser.parse_args()
    with told():
        match arguments.command:
            case "picture":
                picture(arguments.notebook, arguments.number, arguments.target)
            case "records":
                records(arguments.runs, arguments.target, arguments.notebooks)
            case command:
                for notebook in arguments.notebooks:
                    {"show": show, "clean": clean}[command](notebook)


if __name__ == "__main__":
    main()
