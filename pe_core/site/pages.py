"""The site's own pages, made from the records and encodings there are: `python -m pe_core.site.pages`, or `make pages`.

Each notebook in `notebooks/pages` is a page; `encoding.ipynb` is one for every encoding, `family.ipynb` one for every family.
All run in one kernel, which loads torch once: sixty pages take some minutes, most of it for the pictures of the playground.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from pe_core import paths
from pe_core.encodings import ENCODINGS
from pe_core.errors import ConfigError, told, unknown
from pe_core.report import figures
from pe_core.site import index, publish

TEMPLATES = paths.ROOT / "notebooks" / "pages"
# Where each notebook's page stands in the book. The front page comes last: it lists the others.
_SINGLE = {
    "gallery": "encodings/index",
    "playground": "playground",
    "reader": "reader",
    "ten-minutes": "ten-minutes",
    "results": "results",
    "index": "index",
}


def make(names: Sequence[str] | None = None, book: Path = index.BOOK) -> list[Path]:
    """Execute the page notebooks into the book, and take out the pages of encodings and families that are gone.

    Args:
        names: the encodings whose pages are made; all where none are named. The other pages are always made.

    Raises:
        ConfigError: an unknown encoding.
    """
    for name in names or []:
        if name not in ENCODINGS:
            raise ConfigError(unknown("encoding", name, ENCODINGS))
    jobs = [("encoding", f"encodings/{name}", {"encoding": name}) for name in names or ENCODINGS]
    families = [name for name in index.FAMILIES if any(index.family(one) == name for one in ENCODINGS)]
    jobs += [("family", f"families/{name}", {"kind": name}) for name in families]
    jobs += [(notebook, page, {}) for notebook, page in _SINGLE.items()]
    kernel = AsyncKernelManager(kernel_name="python3")
    made = []
    try:
        for notebook, page, parameters in jobs:
            target = book / f"{page}.ipynb"
            target.parent.mkdir(parents=True, exist_ok=True)
            content = load_notebook_node(str(TEMPLATES / f"{notebook}.ipynb"))
            if parameters:
                content = parameterize_notebook(content, parameters)
            # The kernel is every page's, and a notebook looks among the cells that ran for what it was given.
            NotebookClient(new_notebook(cells=[new_code_cell("In.clear()")]), km=kernel).execute()
            NotebookClient(content, km=kernel, timeout=600).execute()
            _count_again(content)
            nbformat.write(content, target)
            publish.clean(target)
            made.append(target)
    finally:
        if kernel.has_kernel:
            NotebookClient(new_notebook(), km=kernel)._cleanup_kernel()
    for folder, kept in (("encodings", {*ENCODINGS, "index"}), ("families", {*families})):
        for old in (book / folder).glob("*.ipynb"):
            if old.stem not in kept:
                old.unlink()
    return made


def _count_again(content: nbformat.NotebookNode) -> None:
    """Each page's cells count from 1, whatever else its kernel ran."""
    executed = [cell for cell in content.cells if cell.cell_type == "code"]
    for count, cell in enumerate(executed, 1):
        cell.execution_count = count
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("encodings", nargs="*", help="only these encodings' pages, beside the pages of all")
    parser.add_argument("--runs", help="a folder of runs, to be shown on the encodings' pages beside the published ones")
    given = parser.parse_args()
    with told():
        paths.need_checkout()
        if given.runs:
            os.environ[index.OWN_RUNS] = str(paths.runs(given.runs, reading=True))
        made = make(given.encodings or None)
        table, against = index.headline()
        if len(table):
            figures.preview(table, against, index.BOOK / "_static" / "preview.png")
        print(f"{len(made)} pages made.")


if __name__ == "__main__":
    main()
