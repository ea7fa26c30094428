"""The site's Sphinx extension: formulas as MathML, which needs no script and no network; what a link to a page shows where it
is sent; encodings by family in the sidebar; the library's own pages, read from its docstrings."""

from __future__ import annotations

import html
import importlib
import json
import pkgutil
import re
import textwrap
from functools import cache
from pathlib import Path
from typing import Any

from docutils import nodes
from math_core import LatexToMathML
from sphinx_external_toc.api import Document, FileItem, TocTree

import pe_core
from pe_core.site import downloads, feed, index

PREVIEW = "_static/preview.png"
# What no page asks for: maps for those who debug the theme, and fonts in a format that browsers before 2016 needed.
_UNUSED = ("_static/**/*.map", "_static/vendor/fontawesome/webfonts/*.ttf")
# Text is escaped where pages are made; should a name with markup get through all the same, its handlers do not run. The theme
# has scripts of its own in every page, so those cannot be refused; `'self'` would refuse a site opened from a folder.
POLICY = "script-src-attr 'none'; object-src 'none'; base-uri 'none'; form-action 'self' file:"


def setup(app: Any) -> dict[str, Any]:
    """Called by Sphinx, where `pe_core.site.sphinx` is among the extensions of `_config.yml`."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    app.connect("config-inited", _by_family, priority=950)  # after the table of contents is read, at 900
    app.connect("html-page-context", _preview)
    app.connect("html-page-context", _feed)
    app.connect("html-page-context", _without_thebe, priority=900)
    app.connect("build-finished", _mended)
    app.connect("build-finished", _published)
    app.connect("source-read", _library)
    app.connect("autodoc-skip-member", _skipped)
    app.connect("autodoc-process-docstring", _docstring, priority=400)  # before napoleon reads the sections
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _by_family(app: Any, config: Any) -> None:
    """Each encoding's page below its family's in the sidebar: `_toc.yml` has the pages, the classes know the families. An
    encoding's address stays what it is, and a new one needs no entry."""
    pages = config.external_site_map
    families = [name for name in index.FAMILIES if (index.BOOK / "families" / f"{name}.ipynb").exists()]
    of = {f"families/{name}": [f"encodings/{one}" for one in index.members(name)] for name in families}
    for page, below in of.items():
        pages[page] = Document(page, [TocTree([FileItem(one) for one in below])] if below else [])
        pages.update({one: Document(one) for one in below})
    if of:
        pages["encodings/index"].subtrees = [TocTree([FileItem(page) for page in of])]


@cache
def _converter() -> LatexToMathML:
    return LatexToMathML()


def mathml(latex: str, block: bool = False) -> str:
    """A formula as MathML, which browsers show and screen readers read."""
    return _converter().convert_with_local_state(latex, displaystyle=block)


def _inline(writer: Any, node: nodes.math) -> None:
    writer.body.append(mathml(node.astext()))
    raise nodes.SkipNode


def _block(writer: Any, node: nodes.math_block) -> None:
    writer.body.append(f'<div class="math-block">{mathml(node.astext(), block=True)}</div>')
    raise nodes.SkipNode


def _preview(app: Any, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """Title, first sentence and picture of a page, for those who get its address (Open Graph)."""
    if doctree is None:
        return
    # Addresses of pictures have to be complete; where the site's own is not known, a relative one is the best there is.
    base = (
        app.config.html_baseurl.rstrip("/") + "/" if app.config.html_baseurl else context["pathto"]("", 1).rstrip("#") or "./"
    )
    about = {
        "og:type": "article",
        "og:title": re.sub("<[^>]+>", "", context.get("title") or app.config.html_title),
        "og:site_name": app.config.html_title,
        "og:description": description(doctree),
        "og:image": f"{base.rstrip('/')}/{PREVIEW}",
        "og:image:width": "1200",
        "og:image:height": "630",
        "og:image:alt": "Held-out perplexity of every encoding against RoPE",
    }
    tags = [f'<meta property="{name}" content="{html.escape(value)}" />' for name, value in about.items()]
    tags.append(f'<meta name="description" content="{html.escape(about["og:description"])}" />')
    tags.append('<meta name="twitter:card" content="summary_large_image" />')
    tags.append(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}" />')
    context["metatags"] = context.get("metatags", "") + "\n".join(tags)


def _feed(app: Any, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """What tells feed readers, on every page, where the feed of findings is."""
    address, title = html.escape(context["pathto"](feed.FILE, 1)), html.escape(f"{app.config.html_title}: findings")
    link = f'<link rel="alternate" type="application/atom+xml" title="{title}" href="{address}" />'
    context["metatags"] = context.get("metatags", "") + "\n" + link


def _without_thebe(app: Any, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """jupyter-book loads its live code cells' script on every page, twice, which is an error, and from elsewhere."""
    scripts = context.get("script_files", [])
    context["script_files"] = [script for script in scripts if "thebe" not in f"{script.filename} {script.attributes}"]


# What is changed in every page the theme has made. Its icons come as a script of 1.5 MB, more than all else a page needs;
# `icons.css` has the few that are used. Its buttons call functions from attributes, which the site's policy forbids; `lab.js`
# calls them instead.
_CHANGES = (
    (re.compile(r"<(?:script|link)\b[^>]*fontawesome\.js[^>]*>(?:</script>)?"), ""),
    (re.compile(r' onclick="(window\.print|toggleFullScreen)\(\)"'), r' data-calls="\1"'),
)


def _mended(app: Any, error: Exception | None) -> None:
    if error or app.builder.format != "html":
        return
    out = Path(app.outdir)
    for page in out.rglob("*.html"):
        text = made = page.read_text()
        for pattern, instead in _CHANGES:
            made = pattern.sub(instead, made)
        if made != text:
            page.write_text(made)
    for script in out.glob("_static/scripts/fontawesome.js*"):
        script.unlink()
    for notebook in out.glob("_sources/**/*.ipynb"):
        _without_pictures(notebook)
    for unused in (file for pattern in _UNUSED for file in out.glob(pattern)):
        unused.unlink()


def _published(app: Any, error: Exception | None) -> None:
    """What is made of the repository's own files and is no page: the feed of findings, records for download."""
    if error or app.builder.format != "html":
        return
    feed.write(Path(app.outdir) / feed.FILE, app.config.html_title, app.config.html_baseurl)
    downloads.pack(Path(app.outdir) / downloads.FOLDER)


def _without_pictures(notebook: Path) -> None:
    """A notebook that a page offers for download, without drawings: they stand among the site's images, and running it draws
    them again. Drawings were a fourth of the site."""
    content = json.loads(notebook.read_text())
    for cell in content["cells"]:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("image/svg+xml", None)
    notebook.write_text(json.dumps(content, ensure_ascii=False))


def description(doctree: nodes.document, longest: int = 200) -> str:
    """The first paragraph of a page, cut at the end of a sentence or word."""
    text = next((" ".join(p.astext().split()) for p in doctree.findall(nodes.paragraph)), "")
    if len(text) <= longest:
        return text
    cut = text[:longest]
    sentence = cut.rfind(". ")
    return cut[: sentence + 1] if sentence > longest // 3 else cut.rsplit(" ", 1)[0] + " …"


def _library(app: Any, page: str, source: list[str]) -> None:
    """In place of `% every module`: a section for each of the library's modules, found as the build finds them."""
    source[0] = source[0].replace("% every module", "\n".join(map(_section, modules())))


def modules() -> list[str]:
    """Names of the library's public modules, below `pe_core`. Encodings have pages of their own."""
    found = [module.name.removeprefix("pe_core.") for module in pkgutil.walk_packages(pe_core.__path__, "pe_core.")]
    return sorted(name for name in found if not re.search(r"(^|\.)_|^encodings\.(?!base$)|^harness", name))


def _section(module: str) -> str:
    """A module's first paragraph, and all the rest folded: fifty modules unfolded are three hundred screens of a phone."""
    name = f"pe_core.{module}"
    about = " ".join(literal((importlib.import_module(name).__doc__ or "").split("\n\n")[0].split("\n")))
    members = f".. automodule:: {name}\n   :members:\n   :member-order: bysource\n"
    folded = f".. dropdown:: ``{name}``\n\n{textwrap.indent(members, '   ')}"
    return f"## {module}\n\n```{{eval-rst}}\n{about}\n\n{folded}```\n"


def _skipped(app: Any, kind: str, name: str, thing: Any, skip: bool, options: Any) -> bool | None:
    """Fields of named tuples say nothing beyond their class's docstring."""
    return True if (getattr(thing, "__doc__", None) or "").startswith("Alias for field number") else None


def _docstring(app: Any, kind: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Docstrings here are plain text with `code`: what reStructuredText would take for markup is escaped, and lines set
    in, which are formulas, are kept as they stand."""
    if kind == "module":  # the first paragraph stands above what is folded
        lines[:] = lines[lines.index("") :] if "" in lines else []
    lines[:] = literal(lines)


def literal(lines: list[str]) -> list[str]:
    """A docstring's lines as reStructuredText that shows the same."""
    shown: list[str] = []
    section = False  # within "Args:" and the like, indentation means continuation
    for line in lines:
        if re.fullmatch(r"(Args|Returns|Raises|Attributes|Options|Yields):", line):
            section, line = True, line.replace("Options:", "Keyword Args:")
        elif line and not line.startswith(" "):
            section = False
        if not section and line.startswith("    ") and (not shown or shown[-1] == ""):
            shown += ["::", ""]
        formula = not section and line.startswith("    ")
        shown.append(line if formula else _escaped(line))
    return shown


def _escaped(line: str) -> str:
    parts = re.split(r"(`[^`]+`)", line)
    return "".join(
        f"``{p[1:-1]}``" if p.startswith("`") and len(p) > 2 else re.sub(r"([*|\\]|(?<=\w)_(?!\w))", r"\\\1", p) for p in parts
    )
