"""Notebooks: clean, in the book, and run by exactly the commands the README gives."""

import os
import re
import shutil
import subprocess
import sys

import fsspec
import nbformat
import papermill
import pytest
import yaml
from helpers import ROOT, code_cells, made, outputs, printed, run_notebook
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from papermill.iorw import papermill_io

from pe_core import records
from pe_core.errors import ConfigError
from pe_core.report import notebook
from pe_core.site import publish

INTERACTIVE = ROOT / "notebooks/explore.ipynb"  # needs a kernel, so it has no page
NOTEBOOKS = sorted(set((ROOT / "notebooks").glob("*.ipynb")) - {INTERACTIVE})
TEMPLATES = sorted((ROOT / "notebooks/pages").glob("*.ipynb"))
TINY = ["-p", "samples", "60", "-p", "seq_len", "32", "-p", "epochs", "2", "-p", "torch_compile", "off", "-p", "preset", "nano"]


@pytest.mark.parametrize("path", [*NOTEBOOKS, *TEMPLATES, INTERACTIVE], ids=lambda path: path.stem)
def test_a_notebook_is_a_dozen_short_cells_without_outputs(path):
    content = nbformat.read(path, as_version=4)
    nbformat.validate(content)
    tagged = [cell for cell in code_cells(content) if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    for cell in code_cells(content):
        assert not cell.outputs
        assert cell.execution_count is None
        lines = cell.source.splitlines()
        assert len(lines) <= (25 if cell in tagged else 20)
        assert not any(line.lstrip().startswith(("def ", "class ", "for ", "while ")) for line in lines)


def test_every_notebook_is_in_the_book_or_said_not_to_be():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    pages = {chapter["file"] for part in toc["parts"] for chapter in part["chapters"]}
    readme = (ROOT / "README.md").read_text().splitlines()
    for path in NOTEBOOKS:
        (row,) = (line for line in readme if line.startswith(f"| [`{path.stem}`](notebooks/{path.name}) |"))
        assert row.endswith("| yes |" if f"experiments/{path.stem}" in pages else "| not yet |"), path.name
    for name in ("_toc.yml", "_config.yml"):
        assert os.path.samefile(ROOT / "book" / name, ROOT / name)


@pytest.mark.parametrize("path", sorted((ROOT / "book/experiments").glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_published_page_is_its_notebook_executed_without_errors(path):
    source, page = (nbformat.read(p, as_version=4) for p in (ROOT / "notebooks" / path.name, path))
    assert [cell.source for cell in page.cells] == [cell.source for cell in source.cells], "run `make experiments` again"
    assert all(cell.execution_count for cell in code_cells(page))
    kinds = {output.output_type for cell in code_cells(page) for output in cell.outputs}
    assert "error" not in kinds
    assert path.stat().st_size < 1_250_000  # 32 models in four figures: the largest there is


def test_unknown_parameters_and_bad_switches_are_refused():
    known = {"samples": 10_000, "fresh": False, "lr": None}
    notebook.check(known, {"samples": 5, "fresh": True})
    with pytest.raises(ConfigError, match=r"unknown parameter 'sampels'; did you mean 'samples'\?"):
        notebook.check(known, {"sampels": 5})
    with pytest.raises(ConfigError, match="fresh='yes': True or False is needed"):
        notebook.check(known, {"fresh": "yes"})


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("42,43", [42, 43]),
        ("[42, 43]", [42, 43]),
        (42, [42]),
        ([1, 2], [1, 2]),
        ("none, rope", ["none", "rope"]),
        ("0.5", [0.5]),
    ],
)
def test_lists_may_be_given_on_the_command_line(said, meant):
    known = {"values": [type(meant[0])(1)], "samples": 5}
    assert notebook.check(known, {"values": said, "samples": 6}) == {"values": meant, "samples": 6}


@pytest.mark.parametrize(
    ("default", "said", "meant"),
    [
        (10_000, "1e2", 100),
        (10_000, 1e2, 100),
        (0.002, "1e-3", 0.001),
        (0.002, 1, 1),
        (None, "1e-3", 0.001),
        (None, "runs/here", "runs/here"),
        ([0.5, 1, 2], "1e0,2", [1.0, 2]),
        ([128, 256], "1e2, 2e2", [100, 200]),
        (["none"], "none,rope", ["none", "rope"]),
        (["none"], "a/010,b 0.05", ["a/010", "b 0.05"]),
        ([0.5], "0,0.01,0", [0, 0.01, 0]),
        ("auto", "cpu", "cpu"),
    ],
)
def test_numbers_are_what_their_defaults_are(default, said, meant):
    value = notebook.check({"value": default}, {"value": said})["value"]
    assert value == meant
    if isinstance(default, int):
        assert type(value) is int


@pytest.mark.parametrize(
    ("default", "said", "error"),
    [
        (10_000, "many", "value='many': a number is needed"),
        (10_000, 1.5, "value=1.5: a whole number is needed"),
        (10_000, float("nan"), "value=nan: a number is needed"),
        (10_000, True, "value=True: a number is needed"),
        (0.5, "half", "value='half': a number is needed"),
        ([0.5, 1], "1,x", "value='x': a number is needed"),
        ([42], "42,4.5", "value=4.5: a whole number is needed"),
        ([42], {"a": 1}, "value={'a': 1}: a number is needed"),
        ([42], "010", "value='010': '010' is no number; write it without a leading 0 or a colon"),
        ([42], "7,1:30", "value='7,1:30': '1:30' is no number; write it without a leading 0 or a colon"),
        ([42], "[" * 2_000, f"value='{'[' * 296}...: a list is needed, as in 1,2 or [1, 2]"),
    ],
)
def test_what_is_no_number_is_refused_before_anything_trains(default, said, error):
    with pytest.raises(ConfigError, match=f"^{re.escape(error)}$"):
        notebook.check({"value": default}, {"value": said})


@pytest.mark.parametrize(
    ("given", "changed"),
    [
        ({"samples": 300}, {"seeds": [42]}),
        ({"samples": 1_000}, {}),
        ({"samples": 300, "seeds": [1, 2]}, {}),
        ({"models": ["none"]}, {}),
        ({"samples": 0}, {}),
    ],
)
def test_a_quick_look_takes_one_seed(given, changed, capsys):
    known = {"samples": 500, "seeds": [42, 43, 44], "models": []}
    assert notebook.quick(known, given) == changed
    assert ("seed 42 alone" in capsys.readouterr().out) == bool(changed)
    assert notebook.quick({"samples": 500, "seed": 42}, given) == {}


def test_only_the_records_that_pages_show_are_published(tmp_path):
    """One folder a page, with the runs whose ids stand in its outputs (not in its source or its pictures)."""
    runs, pages = tmp_path / "runs", [tmp_path / f"{name}.ipynb" for name in ("first", "second", "third")]
    ids = {name: f"{name}-nano-{n:010x}" for n, name in enumerate(("rope", "none", "alibi", "kerple", "mla-rope"))}
    for run in ids.values():
        made(runs / run)
    (runs / ids["rope"] / "diagnosis-1-20.npz").write_bytes(b"small")
    (runs / "unfinished-nano-0000000009").mkdir()
    table = new_output("display_data", {"text/html": f"<td>{ids['rope']}</td>", "image/png": ids["none"]})
    said = new_output("stream", name="stdout", text=f"NoPE\n{ids['alibi']}: already trained\nunfinished-nano-0000000009\n")
    later = new_output("execute_result", {"text/plain": f"{ids['kerple']} x{ids['mla-rope']}"})
    for page, shown in zip(pages, ([table, said], [], [later]), strict=True):
        source = new_code_cell(f"shown = '{ids['none']}'", outputs=shown)
        nbformat.write(new_notebook(cells=[new_markdown_cell(ids["none"]), source]), page)
    publish.records(runs, tmp_path / "book", pages[:2])
    assert [p.name for p in (tmp_path / "book").iterdir()] == ["first"]
    assert {p.name for p in (tmp_path / "book/first").iterdir()} == {records.RECORDS, records.ALL_LOSSES, ids["rope"]}
    assert {record.run for record in records.load_all(tmp_path / "book")} == {ids["rope"], ids["alibi"]}
    command = [sys.executable, "-m", "pe_core.site.publish", "records", str(runs), str(tmp_path / "book"), *map(str, pages)]
    subprocess.run(command, check=True)
    assert {record.run for record in records.load_all(tmp_path / "book")} == {ids["rope"], ids["alibi"], ids["kerple"]}
    (runs / ids["rope"] / "diagnosis-1-20.npz").unlink()  # trained again elsewhere, with the same result or another one
    publish.records(runs, tmp_path / "book", pages[:1])
    assert (tmp_path / "book/first" / ids["rope"] / "diagnosis-1-20.npz").exists()
    shutil.rmtree(runs / ids["rope"])
    made(runs / ids["rope"], shift=0.1)
    publish.records(runs, tmp_path / "book", pages[:1])
    assert not (tmp_path / "book/first" / ids["rope"]).exists()


@pytest.mark.skipif(not shutil.which("make"), reason="no make here")
def test_make_experiments_gives_parameters_to_the_notebooks_named():
    def would_run(*arguments):
        made = subprocess.run(["make", "-n", "experiments", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
        return made.stdout

    some = would_run("NOTEBOOKS=notebooks/nope.ipynb", "PARAMS=-p seed 7")
    assert "note.ipynb" not in some
    assert "for notebook in notebooks/nope.ipynb;" in some
    assert "-p seed 7" in some
    assert "records runs book/records book/experiments/nope.ipynb\n" in some
    every = would_run("PARAMS=")
    assert all(f"notebooks/{path.name}" in every and f"book/experiments/{path.name}" in every for path in NOTEBOOKS)


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The README's command, in small, from another folder than the project's."""
    folder = tmp_path_factory.mktemp("elsewhere")
    arguments = [*TINY, "-p", "runs_dir", str(folder / "runs")]
    finished = run_notebook(ROOT / "notebooks/nope.ipynb", folder / "out.ipynb", *arguments, cwd=folder)
    assert finished.returncode == 0, finished.stderr
    assert "Epoch  1: train_ppl=" in finished.stderr, "who redirects papermill sees how far it is"
    return folder / "out.ipynb"


@pytest.mark.slow
def test_the_main_job_shows_what_the_note_shows(executed):
    text = printed(executed)
    assert "NoPE\nEpoch  1: train_ppl=" in text
    assert "-> All epochs done (best epoch " in text or "-> Early stop (best epoch " in text
    tables = "".join(outputs(executed, "text/html"))
    for words in ("held-out perplexity", "bits per byte", "best epoch", "parameters", "tokens/s", "NoPE against RoPE 25 %"):
        assert words in tables, words
    for words in ("0–16", "16–32", "ratio forward / backward", "the note (NoPE)", "609.9", "6,226.1"):
        assert words in tables, words
    sentences = " ".join(outputs(executed, "text/markdown"))
    assert "95 % interval" in sentences
    assert "**not** a reversal curse" in sentences
    assert len(outputs(executed, "image/svg+xml")) == 2


@pytest.mark.slow
def test_a_second_run_reads_the_first_ones_records(executed, tmp_path):
    parameters = [*TINY, "-p", "runs_dir", str(executed.parent / "runs"), "-p", "skip_baseline", "True"]
    finished = run_notebook(ROOT / "notebooks/nope.ipynb", tmp_path / "out.ipynb", *parameters)
    assert finished.returncode == 0, finished.stderr
    assert "NoPE: already trained" in printed(tmp_path / "out.ipynb")
    assert "No baseline was trained" in " ".join(outputs(tmp_path / "out.ipynb", "text/markdown"))


@pytest.mark.slow
def test_it_runs_cell_by_cell_from_its_own_folder(library, tmp_path):
    """As in JupyterLab: no injected cell, the notebook's folder as working directory."""
    from nbclient import NotebookClient

    content = nbformat.read(ROOT / "notebooks/nope.ipynb", as_version=4)
    (parameters,) = (cell for cell in content.cells if "parameters" in cell.metadata.get("tags", []))
    small = {"samples": "60", "seq_len": "32", "epochs": "1", "torch_compile": "'off'", "corpus": repr(str(library))}
    for name, value in small.items():
        lines = [line for line in parameters.source.splitlines() if not line.startswith(f"{name} =")]
        parameters.source = "\n".join([*lines, f"{name} = {value}"])
    client = NotebookClient(content, resources={"metadata": {"path": str(ROOT / "notebooks")}}, kernel_name="python3")
    client.execute(env={**os.environ, "PE_RUNS": str(tmp_path)})
    assert len(list(tmp_path.glob("*/record.json"))) == 2
    assert not list((ROOT / "notebooks").glob("runs"))


@pytest.mark.slow
def test_interrupted_a_notebook_says_so_in_one_line(tmp_path):
    """Ctrl-C reaches the kernel wherever it is."""
    cells = ["a = 1", "from pe_core.report import notebook\nnotebook.begin()", "raise KeyboardInterrupt"]
    content = new_notebook(cells=[new_code_cell(cell) for cell in cells])
    content.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(content, tmp_path / "in.ipynb")
    finished = run_notebook(tmp_path / "in.ipynb", tmp_path / "out.ipynb")
    assert finished.returncode != 0
    ended = [o for cell in code_cells(nbformat.read(tmp_path / "out.ipynb", as_version=4)) for o in cell.outputs]
    assert [o.traceback for o in ended if o.output_type == "error"] == [["Interrupted; the same command goes on from here."]]


def test_a_notebook_may_be_written_to_a_url(monkeypatch):
    """As papermill's own handlers write to s3:// and others; here a file system in memory stands for them."""

    class Memory:
        def write(self, text, path):
            with fsspec.open(path, "w") as file:
                file.write(text)

        def pretty_path(self, path):
            return path

    monkeypatch.setattr(papermill_io, "_handlers", [*papermill_io._handlers])
    papermill_io.register("memory://", Memory())
    parameters = {"samples": 60}
    papermill.execute_notebook(ROOT / "notebooks/nope.ipynb", "memory://out.ipynb", parameters, prepare_only=True)
    with fsspec.open("memory://out.ipynb", "r") as file:
        content = nbformat.read(file, as_version=4)
    assert any("samples = 60" in cell.source for cell in code_cells(content))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        (["-p", "samples", "abc"], "ConfigError: samples='abc': a number is needed"),
        (["-p", "sampels", "1000"], "ConfigError: unknown parameter 'sampels'; did you mean 'samples'?"),
        (["-p", "samples", "100000000"], "CorpusError: samples=100000000: corpus 'prose-docs-code' holds only"),
    ],
)
def test_bad_input_ends_papermill_with_one_line(tmp_path, parameters, said):
    finished = run_notebook(ROOT / "notebooks/nope.ipynb", tmp_path / "out.ipynb", "-p", "runs_dir", str(tmp_path), *parameters)
    assert finished.returncode != 0
    lines = [line for line in finished.stderr.splitlines() if said in line]
    assert lines, finished.stderr[-2000:]
    assert not (tmp_path / "checkpoint.pt").exists()
    content = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    (error,) = (o for cell in code_cells(content) for o in cell.outputs if o.output_type == "error")
    assert len(error.traceback) == 1, "the notebook shows the one line, not the frames above it"
