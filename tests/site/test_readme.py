"""What README says of the code is so, and studies are added and taken away as it says."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from helpers import ROOT

from pe_core.site import readme

LINES = re.compile(r"(?<= )[\d,]+(?=  )|(?<=\()\d+(?=\))")  # of the tree, and of the reading order


def test_the_written_parts_are_current():
    text = readme.README.read_text()
    now = readme.filled(text, readme.parts())
    assert LINES.sub("N", text) == LINES.sub("N", now), "run `python -m pe_core.site.readme`"
    counts = ([int(n.replace(",", "")) for n in LINES.findall(t)] for t in (text, now))
    assert all(abs(a - b) <= 40 + 0.1 * b for a, b in zip(*counts, strict=True)), "run `python -m pe_core.site.readme`"


def test_the_core_is_an_evening_s_reading():
    assert readme.lines(*(ROOT / "pe_core" / f"{name}.py" for name in readme.CORE)) <= 2_500


def test_every_file_and_folder_it_names_is_there():
    text = readme.README.read_text()
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (ROOT / link).exists(), link


@pytest.mark.slow
def test_a_study_is_a_folder_a_notebook_and_a_line(tmp_path):
    """A made-up study comes and goes in a copy of the repository: nothing else is edited, and nothing of it is left."""
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(lambda name: name and not name.startswith("book/"), tracked.split("\0")):
        if (ROOT / name).exists():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
    _python(tmp_path, "-m", "pe_core.site.readme")
    before = _contents(tmp_path)

    study, notebook = tmp_path / "pe_core/studies/madeup", tmp_path / "notebooks/madeup.ipynb"
    study.mkdir()
    (study / "__init__.py").write_text('"""Does a made-up study fit in?"""\n')
    (study / "measure.py").write_text("def number() -> int:\n    return 42\n")
    (study / "report.py").write_text(
        'from pe_core.studies.madeup.measure import number\n\n\ndef answer() -> str:\n    return f"**{number()}.**"\n'
    )
    cells = [
        nbformat.v4.new_markdown_cell("# Does a made-up study fit in?"),
        nbformat.v4.new_code_cell("from pe_core.studies.madeup import report\n\nprint(report.answer())"),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), notebook)
    toc = (tmp_path / "_toc.yml").read_text()
    (tmp_path / "_toc.yml").write_text(re.sub(r"( *)- file: experiments/nope\n", r"\g<0>\1- file: experiments/madeup\n", toc))

    _python(tmp_path, "-m", "pe_core.site.readme")
    written = (tmp_path / "README.md").read_text()
    assert "| Does a made-up study fit in? | yes |" in written
    assert re.search(r"madeup/ +6  Does a made-up study fit in", written)
    assert "**42.**" in _python(tmp_path, "-c", "from pe_core.studies.madeup import report; print(report.answer())")
    _python(tmp_path, str(Path(sys.executable).parent / "lint-imports"), "--no-cache")

    shutil.rmtree(study)
    notebook.unlink()
    (tmp_path / "_toc.yml").write_text(toc)
    _python(tmp_path, "-m", "pe_core.site.readme")
    assert _contents(tmp_path) == before


def _python(folder, *arguments):
    environment = {
        "PYTHONPATH": str(folder),
        "PATH": "/usr/bin:/bin",
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(folder.parent),
    }
    ran = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def _contents(folder):
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and "cache" not in str(file)
    }
