"""The site's own pages: what they say about encodings is true, comes from the files and records, and is current."""

import inspect
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
from helpers import made
from matplotlib.figure import Figure
from nbformat.v4 import new_code_cell, new_notebook, new_output
from pybtex import PybtexEngine
from pybtex.database import parse_file
from sphinx_external_toc.parsing import parse_toc_yaml

from pe_core import ENCODINGS, comparison, paths, records
from pe_core.encodings.base import Encoding
from pe_core.report import figures
from pe_core.site import docstrings, encoding_page, explorer, index, pages, publish, sphinx

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_figures_left():
    yield
    plt.close("all")


def svg(figure):
    """The figure as a page has it."""
    text = io.StringIO()
    with plt.rc_context({"svg.hashsalt": "lab"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return publish.compact(text.getvalue())


@pytest.fixture
def found(tmp_path):
    """Three models of three seeds, and one of them again with other windows."""
    runs = [
        made(tmp_path / f"{name}-{seed}", name, label, seed, shift + luck * seed)
        for name, label, shift, luck in (
            ("rope", "RoPE 100 %", 0.0, 0.01),
            ("none", "NoPE", 0.3, 0.02),
            ("alibi", "ALiBi per head", 0.02, 0.0),
        )
        for seed in (1, 2, 3)
    ]
    other = made(tmp_path / "longer", "rope", "RoPE 100 %", 1)
    other.config["seq_len"] = 256
    return [*runs, other]


# Encodings: pictures


def test_alibi_is_shown_as_its_formula_says():
    scores = encoding_page.scores("alibi", tokens=16)
    distance = np.subtract.outer(np.arange(16), np.arange(16))
    for head, slope in enumerate((2**-2, 2**-4, 2**-6, 2**-8)):
        expected = np.where(distance >= 0, -slope * distance, np.nan)
        np.testing.assert_allclose(scores[head], expected, atol=1e-4)


def test_rope_is_shown_as_its_formula_says():
    K, R = 32, 8
    frequencies = 10_000.0 ** (-2 * np.arange(R // 2) / R)
    distance = np.arange(16)
    kernel = 2 * (np.cos(np.outer(distance, frequencies)) - 1).sum(axis=1) / np.sqrt(K)
    for head in encoding_page.scores("rope", tokens=16):
        np.testing.assert_allclose(head[-1, ::-1], kernel, atol=1e-4)
    turned = encoding_page.rotation("rope", tokens=16)
    np.testing.assert_allclose(turned[: R // 2], np.cos(np.outer(frequencies, distance)), atol=1e-5)
    np.testing.assert_allclose(turned[R:], 1, atol=1e-6)


def test_nothing_is_shown_as_nothing():
    weights = encoding_page.attention("none", tokens=16)
    np.testing.assert_allclose(weights[:, -1], 1 / 16, atol=1e-6)
    assert encoding_page.rotation("none") is None
    assert "same score at every distance" in figures.describe(encoding_page.picture("none"))


def test_every_encoding_has_pictures_in_words(encoding):
    for figure in (encoding_page.picture(encoding), encoding_page.kernel(encoding), encoding_page.rotations(encoding)):
        if figure is not None:
            words = figures.describe(figure)
            assert len(words) > 40
            assert "nan" not in words.lower()
            assert len(svg(figure)) < 200_000
    assert (encoding_page.rotation(encoding) is None) == (ENCODINGS[encoding].transform_qk is Encoding.transform_qk)


# Encodings: words


def test_every_docstring_becomes_markdown(encoding):
    said = encoding_page.words(encoding)
    assert said["sentence"].endswith(".")
    for option in ENCODINGS[encoding].Options.model_fields:
        assert f"- `{option}`:" in said["Options"], f"option '{option}' is not in the docstring"
    for block in re.findall(r"```{math}\n(.*?)\n```", said["formula"] + said["notes"], re.DOTALL):
        shown = sphinx.mathml(block, block=True)
        assert "merror" not in shown
        assert not re.search(r"[ΣΠ`\\]|[^m]sqrt", shown), shown
    assert encoding_page.heading(encoding).startswith(f"# {ENCODINGS[encoding].title}\n\n{said['sentence']}")
    assert encoding_page.source(encoding) in encoding_page.code(encoding)


def test_nothing_of_a_docstring_is_lost(encoding):
    text = (
        f"{encoding_page.heading(encoding)} {encoding_page.notes(encoding)} {' '.join(encoding_page.words(encoding).values())}"
    )
    shown = set(re.findall(r"[a-z]{4,}", text))
    doc = re.sub(r"`[^`]*`", "", inspect.getdoc(ENCODINGS[encoding]))
    assert set(re.findall(r"(?<![_^.])\b[a-z]{4,}\b", doc)) - shown - {"sqrt", "over"} == set()


def test_a_mix_is_not_said_to_be_one_papers():
    assert "{cite" not in encoding_page.heading("mix")
    assert "{cite:t}`su2021`" in encoding_page.heading("rope")


def test_facts_are_those_of_the_class(encoding):
    facts = encoding_page.facts(encoding)
    assert facts["family"] == ENCODINGS[encoding].family
    assert str(ENCODINGS[encoding].year) in facts["paper"]
    assert not re.search(r"\bnan\b", " ".join(facts.values()))


def test_a_docstring_comes_apart():
    said = docstrings.parts(
        "Sums. Chi et al. 2022 (arXiv 2205.09921).\n\n"
        "score(i, j) = a[b(i, j), h] + c_h,  c_h = 8h/H, one for\nall. More * text, as\n\n    x_m = 1,\n\n"
        "so that it ends.\n\nA note.\n\nPublished:\n    Better\n    than `b`.\n\nOptions:\n"
        "    n: the `n` above,\n        going on.\n"
    )
    assert said["sentence"] == "Sums."
    assert said["source"] == "Chi et al. 2022 ([arXiv 2205.09921](https://arxiv.org/abs/2205.09921))."
    first, text, second, end = said["formula"].split("\n\n")
    assert first.split("\n")[2:4] == [r"\text{score}(i, j) = a[b(i, j), h] + c_{h} \\", "c_{h} = 8h/H"]
    assert (text, end) == ("one for all. More \\* text, as", "so that it ends.")
    assert "x_{m} = 1\n" in second
    assert (said["notes"], said["Published"]) == ("A note.", "Better than `b`.")
    assert (said["Options"], said["Raises"]) == ("- `n`: the `n` above, going on.", "")


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        ("q_i · k_j / sqrt(K(i))", r"q_{i} \cdot k_{j} / \sqrt{K(i)}"),
        ("Σ log f_t over t = j + 1 … i", r"\sum_{t = j + 1}^{i} \log f_{t} "),
        ("base^(-2m/R)", r"\text{base}^{-2m/R}"),
        ("i mod s", r"i \text{ mod } s"),
        ("min(max_distance, d^r2)", r"\min (\text{max\_distance}, d^{r_2})"),
    ],
)
def test_formulas_become_latex(text, latex):
    assert docstrings.latex(text) == latex


def test_papers_are_in_the_bibliography(encoding):
    found = parse_file(ROOT / "book/references.bib").entries
    number = ENCODINGS[encoding].paper.removeprefix("arXiv ")
    (key, entry), *others = [(key, entry) for key, entry in found.items() if entry.fields.get("eprint") == number]
    assert not others
    assert f"{{cite:t}}`{key}`" in encoding_page.paper(encoding)
    # A venue's year may be later than that of the number, in which the paper first appeared.
    assert 2000 + int(number[:2]) <= int(entry.fields["year"]) <= 2000 + int(number[:2]) + 2
    surname = str(entry.persons["author"][0]).split(",")[0].strip("{}")
    assert re.search(rf"\b{surname}\b", ENCODINGS[encoding].__doc__), surname


def test_the_bibliography_shows_every_entry_once():
    text = (ROOT / "book/references.bib").read_text()
    found = parse_file(ROOT / "book/references.bib").entries
    assert len(found) == text.count("\n@") + 1
    numbers = [entry.fields["eprint"] for entry in found.values() if "eprint" in entry.fields]
    assert len(set(numbers)) == len(numbers)
    shown = PybtexEngine().format_from_string(text, style="unsrt", output_backend="plaintext")
    assert all(entry.fields["year"] in shown for entry in found.values())
    assert ":all:" in (ROOT / "book/cite.md").read_text()


# Records


def test_settings_are_kept_apart(found):
    apart = comparison.settings(found)
    assert [len(group) for group in apart] == [9, 1]
    assert "of 256 tokens" in index.named(apart[1])


def test_the_front_page_claims_nothing_without_a_ranking():
    assert "No ranking is published yet" in index.findings({})
    assert index.caveats({}) == index.details({}) == ""
    assert "No run with `rope` is in [the ranking]" in index.verdict("rope", index.judged({}))
    nothing = pd.DataFrame()
    assert set(index.glance("tapa", {}, index.judged({}), nothing, nothing)) <= {"speed"}


def test_an_experiments_first_claim_is_a_sentence_and_no_source_code():
    """Also where no sentence has anything in bold, but the code has (`**common`)."""

    def executed(*texts):
        outputs = [new_output("display_data", {"text/markdown": text}) for text in texts]
        return new_notebook(cells=[new_code_cell("say()", outputs=outputs)])

    code = "<details><summary>Parameters</summary>\n\nf(**common)\n\n</details>"
    assert index.first_claim(executed("No difference\nfound. Then more.", code)) == "No difference found."
    assert index.first_claim(executed("Of two. **A** leads. More.", code)) == "**A** leads."
    assert index.first_claim(executed(code)) == ""
    for page in index.pages():
        if page.parent.name == "experiments":
            claim = index.first_claim(nbformat.read(page, as_version=4))
            assert claim.endswith((".", ")")), page.name
            assert "<details>" not in claim


def test_the_front_page_says_what_the_ranking_says(found):
    budgets = {360: comparison.groups(found[:9])}
    for group in budgets[360].values():
        for record in group:
            record.config.update(samples=360, seq_len=32, corpus="prose")
    said = index.findings(budgets)
    assert said.startswith(
        "**After 0.0 M training tokens (3 models of 0.0 M parameters, 3 seeds), RoPE 100 % has the lowest test"
    )
    assert said.count("**") == 2, "the answer stands in the first screen, the rest below the figure"
    more = index.details(budgets)
    assert "Higher: NoPE +37.7 %" in more
    assert "No difference found: ALiBi per head" in more
    assert "nan" not in said + more
    judged = index.judged(budgets)
    assert "**higher**, +37.7 %" in index.verdict("none", judged)
    assert "is what the other encodings are compared with" in index.verdict("rope", judged)
    longer = pd.DataFrame([{"model": "NoPE", "seeds": "3", "at 32": "2.1 [2.0, 2.2]", "at 64": "–"}])
    seen = index.glance("none", budgets, judged, longer, pd.DataFrame())
    assert seen["rank"].startswith("NoPE: 3 of 3, higher, +37.7 %")
    assert seen["longer text"] == "NoPE: 2.1 bits per byte at 32 tokens, no positions beyond"
    assert "tasks" not in seen
    assert index.glance("rope", budgets, judged, longer.head(0), pd.DataFrame())["rank"].startswith("RoPE 100 %: ")
    assert index.claimed("none", seen).index("**Published**") < index.claimed("none", seen).index("NoPE: 3 of 3")
    assert index.claimed("none", {}) == index.claimed("mix", seen) == ""
    assert "3 seeds" in index.caveats(budgets)


def test_an_encodings_results_are_all_its_runs(found):
    together = [comparison.groups(group) for group in comparison.settings(found)]
    table = index.results("rope", together)
    assert list(table.seeds) == [3, 1]
    assert list(index.results("alibi", together).model) == ["ALiBi per head"]
    assert index.results("t5", together).empty
    assert not set("▼▲") & set("".join(index.results("alibi", together)["% against RoPE 100 %"]))
    assert index.results("none", together)["% against RoPE 100 %"][0].endswith("▲")


def test_the_explorer_holds_every_model(found):
    text = explorer.place(found)
    assert "NaN" not in text
    for record in found:
        assert f'"label":"{record.label}"' in text


# Pages


def test_the_pages_are_current():
    """The front page says what the records say now; each encoding's page, what its file says now."""
    said = index.findings(index.ranked())
    front = nbformat.read(ROOT / "book/index.ipynb", as_version=4)
    shown = [cell.source for cell in front.cells]
    assert said in shown, "run `make pages` again"
    assert "\n\n".join([index.details(index.ranked()), index.caveats(index.ranked())]) in shown, "run `make pages` again"
    every = (ROOT / "book/results.ipynb").read_text()
    assert all(record.run in every for record in index.published()), "run `make pages` again"
    pages = {path.stem for path in (ROOT / "book/encodings").glob("*.ipynb")}
    assert pages == {*ENCODINGS, "index"}, "run `make pages` again"
    families = {path.stem for path in (ROOT / "book/families").glob("*.ipynb")}
    assert families == {index.family(name) for name in ENCODINGS}, "run `make pages` again"
    for name in families:
        page = nbformat.read(ROOT / "book/families" / f"{name}.ipynb", as_version=4)
        assert index.family_page(name) in [cell.source for cell in page.cells], f"{name}: run `make pages` again"
    for name in ENCODINGS:
        page = nbformat.read(ROOT / "book/encodings" / f"{name}.ipynb", as_version=4)
        shown = [cell.source for cell in page.cells]
        assert encoding_page.heading(name) == shown[2], f"{name}: run `make pages` again"
        assert [encoding_page.code(name), encoding_page.notes(name)] == shown[-2:], f"{name}: run `make pages` again"


def test_what_a_page_is_given_no_other_page_takes():
    """Page notebooks run in one kernel: a value given to one must not be taken for another's."""
    names = []
    for path in (ROOT / "notebooks/pages").glob("*.ipynb"):
        cells = nbformat.read(path, as_version=4).cells
        (given,) = (cell.source for cell in cells if "parameters" in cell.metadata.get("tags", []))
        names += [line.split(" = ")[0] for line in given.splitlines()]
    assert (names.count("encoding"), names.count("kind")) == (1, 1), names


def test_the_sidebar_has_each_encoding_once_below_its_family():
    pages = parse_toc_yaml(ROOT / "_toc.yml")
    sphinx._by_family(None, SimpleNamespace(external_site_map=pages))
    families = pages["encodings/index"].child_files()
    assert families == [f"families/{name}" for name in index.FAMILIES]
    assert pages["encodings/index"].child_globs() == []
    shown = [(page, family) for family in families for page in pages[family].child_files()]
    assert sorted(shown) == sorted((f"encodings/{name}", f"families/{index.family(name)}") for name in ENCODINGS)


def test_every_encodings_page_has_one_order():
    order = ["What it does to attention", "At a glance", "Results", "Published against measured here", "Code", "Details"]
    for page in (ROOT / "book/encodings").glob("*.ipynb"):
        cells = [cell.source for cell in nbformat.read(page, as_version=4).cells if cell.cell_type == "markdown"]
        shown = [line[3:] for source in cells for line in source.split("\n") if line[3:] in order and line.startswith("## ")]
        assert page.stem == "index" or shown == [one for one in order if one in shown], page
        assert page.stem == "index" or {order[0], *order[-2:]} <= set(shown), page


@pytest.mark.parametrize("name", ENCODINGS)
def test_an_encodings_page_has_one_verdict_in_text_and_table(name):
    page = nbformat.read(ROOT / "book/encodings" / f"{name}.ipynb", as_version=4)
    text = next(cell.source for cell in page.cells if cell.source.startswith("## Results"))
    said = [found.replace(" %", "") for found in re.findall(r"[+−]?[\d.]+ % \[[^]]+\]", text)]
    tables = "".join(
        str(output.get("data", {}).get("text/html", "")) for cell in page.cells for output in cell.get("outputs", [])
    )
    assert said or name in ("rope", "mix") or "No run with" in text
    assert all(f">{found}" in tables for found in said), said


def test_of_a_run_in_several_studies_the_one_with_most_findings_is_shown(tmp_path, monkeypatch):
    run = next(record for record in records.load_study(paths.PUBLISHED / "extrapolation") if record.folder.is_dir())
    for study in ("a", "z"):
        (tmp_path / study).mkdir()
        (tmp_path / study / records.RECORDS).write_text(run.model_dump_json() + "\n")
    for study in ("m", "a"):
        shutil.copytree(run.folder, tmp_path / study / run.run)
    monkeypatch.setattr(paths, "PUBLISHED", tmp_path)
    assert [record.folder for record in index.published()] == [tmp_path / "a" / run.run]


def test_pages_show_no_error_and_are_small():
    for page in [*(ROOT / "book").glob("*.ipynb"), *(ROOT / "book/encodings").glob("*.ipynb")]:
        content = nbformat.read(page, as_version=4)
        nbformat.validate(content)
        assert page.stat().st_size < 600_000, page
        for cell in content.cells:
            assert all(output.output_type != "error" for output in cell.get("outputs", []))
            assert "becomes-text" not in cell.metadata.get("tags", []) or cell.cell_type == "markdown"


def test_pages_can_show_a_users_own_runs(tmp_path, monkeypatch):
    """`make pages RUNS=folder`: beside the published ones, each once; without it those alone."""
    published = index.published()
    made(tmp_path / "sink-nano-1234", "sink", "Sink")
    assert [record.run for record in index.published()] == [record.run for record in published]
    monkeypatch.setenv(index.OWN_RUNS, str(tmp_path))
    shown = index.published()
    assert {record.run for record in shown} - {record.run for record in published} == {"sink-nano-1234"}
    assert index.of_encoding("sink", shown)
    monkeypatch.setenv(index.OWN_RUNS, str(paths.PUBLISHED))
    assert [record.run for record in index.published()] == [record.run for record in published]


def test_pages_of_a_folder_that_is_not_there(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pages", "--runs", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit, match="1"):
        pages.main()
    said = capsys.readouterr().err
    assert "nowhere" in said
    assert said.count("\n") == 1


@pytest.mark.slow
def test_a_new_file_has_its_page(tmp_path):
    """As the README says: one file and `make pages`, and nothing else is edited."""
    for folder in ("pe_core", "notebooks/pages", "book/records", "book/experiments"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "_toc.yml", "book/references.bib", "book/_static/models/index.json"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    (tmp_path / "pe_core/encodings/mine.py").write_text(
        "from pe_core.encodings.base import Encoding\n\n\nclass Mine(Encoding):\n"
        '    """Scores fall by the square of the distance. Nobody 2026."""\n\n'
        '    family, title, paper, year = "bias", "Mine", "unpublished", 2026\n\n'
        "    def bias(self, q, k, query_BT, key_BS, token_state):\n"
        "        return -0.01 * (query_BT[:, None, :, None] - key_BS[:, None, None, :]).float() ** 2\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "pe_core.site.pages", "mine"]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    page = nbformat.read(tmp_path / "book/encodings/mine.ipynb", as_version=4)
    text = "\n".join(cell.source for cell in page.cells)
    assert "# Mine\n\nScores fall by the square of the distance." in text
    assert "[Mine](../encodings/mine.ipynb) (2026)." in (tmp_path / "book/families/bias.ipynb").read_text()
    assert "Paper: unpublished." in text
    assert "No run with `mine` is in [the ranking]" in text
    assert "class Mine(Encoding):" in text
    assert "[Mine](../encodings/mine.ipynb)" in (tmp_path / "book/encodings/index.ipynb").read_text()


def test_heads_that_are_alike_are_found_by_value():
    heads = np.array([[[0.0, np.nan]], [[1.0, np.nan]], [[-0.0, np.nan]], [[1.0, np.nan]], [[2.0, 0.0]]])
    assert encoding_page.different(heads) == [0, 1, 4]


# From notebook to page


def test_what_a_figure_says_becomes_its_alternative_text(tmp_path):
    data = {"image/svg+xml": "<svg/>"}
    data["text/plain"] = "<Figure at 0x7f>"
    drawn = new_output("display_data", data, metadata={"image/svg+xml": {"alt": "RoPE from 5 to 3."}})
    cells = [
        new_code_cell("a", outputs=[drawn], metadata={"mystnb": {"image": {"alt": "Perplexity."}}}),
        new_code_cell(
            "b", outputs=[new_output("display_data", {"text/markdown": "# Title"})], metadata={"tags": ["becomes-text"]}
        ),
    ]
    nbformat.write(new_notebook(cells=cells), tmp_path / "page.ipynb")
    for _ in range(2):  # cleaning twice changes nothing
        publish.clean(tmp_path / "page.ipynb")
        figure, text = nbformat.read(tmp_path / "page.ipynb", as_version=4).cells
        assert figure.metadata.mystnb.image.alt == "Perplexity. RoPE from 5 to 3."
        assert list(figure.outputs[0].data) == ["image/svg+xml"]
        assert (text.cell_type, text.source) == ("markdown", "# Title")


def test_a_figure_is_described_by_its_own_data(found):
    groups = comparison.groups(found[:9])
    curves, styles = comparison.curves(groups), index.styles(groups)
    words = figures.describe(figures.position_curves(curves, styles))
    assert words.startswith("Perplexity by position by tokens the model has seen: RoPE 100 % from ")
    assert "NoPE from " in words
    assert figures.describe(Figure()) == ""
    forest = figures.describe(figures.forest(comparison.frame(groups, "RoPE 100 %"), "RoPE 100 %"))
    assert "NoPE +37.7 % (" in forest
    assert ", no difference found)" in forest


def test_the_same_figure_is_the_same_bytes(found):
    styles, history = index.styles(comparison.groups(found[:9])), records.history(found[:9])
    first, second = (svg(figures.learning_curves(history, styles)) for _ in range(2))
    assert first == second
    assert first.startswith("<svg")
    assert first.rstrip().endswith("</svg>")


def test_many_members_of_a_family_stay_apart():
    frame = pd.DataFrame({"label": [f"R{n}" for n in range(12)], "family": "rotary"})
    styles = figures.styles(frame)
    assert len({(look["color"], look["linestyle"]) for look in styles.values()}) == 12


# The Sphinx extension


def test_formulas_are_mathml():
    assert sphinx.mathml(r"\sqrt{K}") == "<math><msqrt><mi>K</mi></msqrt></math>"
    assert 'display="block"' in sphinx.mathml(r"\begin{aligned} a &= b \\ c &= d \end{aligned}", block=True)


def test_docstrings_keep_their_signs():
    lines = [
        "y = a * |b_| for `n` tokens,",
        "",
        "    x_m = 1",
        "",
        "where",
        "",
        "Args:",
        "    n: a `name`, 2 * 3.",
        "        More.",
    ]
    assert sphinx.literal(lines) == [
        "y = a \\* \\|b\\_\\| for ``n`` tokens,", "", "::", "", "    x_m = 1", "", "where", "", "Args:",
        "    n: a ``name``, 2 \\* 3.", "        More.",
    ]  # fmt: skip


def test_every_module_is_in_the_reference():
    modules = sphinx.modules()
    assert {"attention", "encodings.base", "metrics", "site.sphinx", "studies.reversal.measure", "trainer"} <= set(modules)
    assert not {"encodings.rope", "launch._server", "__main__"} & set(modules)
    source = ["before\n% every module\nafter"]
    sphinx._library(None, "api", source)
    assert all(f".. automodule:: pe_core.{name}\n" in source[0] for name in modules)
