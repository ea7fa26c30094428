"""The built site as a reader meets it: every page in headless Chromium, at the width of a phone and of a screen."""

import gzip
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="pip install '.[site]'")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install '.[site]'")

ROOT = Path(__file__).parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
WIDTHS = (390, 1280)

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CHROMIUM, reason="no Chromium here")]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built by the README's command with warnings as errors."""
    folder = tmp_path_factory.mktemp("site")
    builder = str(Path(sys.executable).parent / "jupyter-book")
    command = [builder, "build", "book/", "-W", "-n", "--keep-going", "--path-output", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]
    return folder / "_build" / "html"


@pytest.fixture(scope="module")
def address(site):
    """Where the site is served, on this machine."""

    class Silent(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield launched
        launched.close()


def pages(site):
    return [page for page in sorted(site.rglob("*.html")) if "_static" not in page.parts]


@pytest.fixture(params=WIDTHS)
def window(request, browser, address):
    """A page of one width, and what went wrong in it so far."""
    context = browser.new_context(viewport={"width": request.param, "height": 900})
    page, wrong = context.new_page(), []
    page.on("console", lambda message: message.type in ("error", "warning") and wrong.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    page.on("requestfailed", lambda asked: wrong.append(f"request failed: {asked.url}"))
    page.on("response", lambda answer: answer.status >= 400 and wrong.append(f"{answer.status}: {answer.url}"))
    page.on(
        "request",
        lambda asked: (
            asked.url.startswith("http") and not asked.url.startswith(address) and wrong.append(f"not offline: {asked.url}")
        ),
    )
    yield page, wrong
    context.close()


def test_every_page_reads_well(site, address, window):
    page, wrong = window
    for file in pages(site):
        before = len(wrong)
        page.goto(f"{address}/{file.relative_to(site)}")
        if page.evaluate("document.documentElement.scrollWidth > window.innerWidth"):
            wrong.append("scrolls sideways")
        for image in page.locator(".bd-article img").all():
            if not (image.get_attribute("alt") or "").strip():
                wrong.append(f"no alternative text: {image.get_attribute('src')}")
            if not image.evaluate("image => image.decode().then(() => image.naturalWidth > 0, () => false)"):
                wrong.append(f"does not show: {image.get_attribute('src')}")
        if not page.title() or not page.locator("h1").count():
            wrong.append("no title")
        wrong[before:] = [f"{file.relative_to(site)}: {what}" for what in wrong[before:]]
    assert not wrong, "\n".join(wrong)


def test_internal_links_lead_somewhere(site, address, browser):
    page, broken = browser.new_page(), []
    anchors, links = {}, {}
    for file in pages(site):
        page.goto(f"{address}/{file.relative_to(site)}")
        links[file] = page.eval_on_selector_all("a[href]", "found => found.map(a => a.href)")
        anchors[file] = set(page.eval_on_selector_all("[id]", "found => found.map(e => e.id)"))
    for file, found in links.items():
        for link in found:
            parts = urlsplit(link)
            if link.startswith(address):
                target, anchor = site / unquote(parts.path).lstrip("/"), unquote(parts.fragment)
                if not target.is_file() or (anchor and target in anchors and anchor not in anchors[target]):
                    broken.append(f"{file.relative_to(site)} → {link}")
    page.close()
    assert not broken, "\n".join(sorted(set(broken)))


def test_axe_finds_nothing_serious(site, address, window):
    page, _ = window
    found = []
    for file in pages(site):
        page.goto(f"{address}/{file.relative_to(site)}")
        # What the book writes; the theme's own bars are the theme's.
        part = "article" if page.locator("article").count() else "main"
        result = axe.Axe().run(page, context={"include": [part]}, options={"resultTypes": ["violations"]})
        for violation in result.response["violations"]:
            if violation["impact"] in ("serious", "critical"):
                where = [node["target"] for node in violation["nodes"]][:3]
                found.append(f"{file.relative_to(site)}: {violation['id']}: {violation['help']} {where}")
    assert not found, "\n".join(found)


def test_the_explorer_reacts(site, address, window):
    page, wrong = window
    page.goto(f"{address}/results.html")
    marks = page.locator(".explorer-mark")
    shown = marks.count()
    assert shown >= 3
    marks.first.hover()
    assert "95 % interval" in page.locator(".explorer-value").inner_text()
    page.locator(".explorer-choice").evaluate("box => { box.open = true }")  # folded on a phone
    page.locator(".explorer-models input:checked").first.uncheck()
    page.select_option("#explorer-measure", "perplexity")
    fewer = marks.count()
    assert fewer >= 3
    page.locator(".explorer-models input:not(:checked)").first.check()
    assert marks.count() == fewer + 1
    for view in ("position", "epoch"):
        page.select_option("#explorer-view", view)
        assert page.locator("polyline").count() == fewer + 1
    marks.first.focus()
    first = page.locator(".explorer-value").inner_text()
    page.keyboard.press("ArrowRight")
    assert page.locator(".explorer-value").inner_text() != first
    for measure in ("bits", "percent"):
        page.select_option("#explorer-measure", measure)
        assert marks.count()
        assert "NaN" not in page.locator(".explorer-svg").inner_html()
    assert not wrong


def test_a_model_reads_in_the_page(site, address, window):
    page, wrong = window
    page.goto(f"{address}/reader.html")
    page.wait_for_selector(".reader[data-read='1']", timeout=60_000)
    notes, bars = page.locator(".playground-panel .reader-note"), page.locator(".reader-bars")
    assert bars.count() == notes.count() == 2
    assert bars.first.locator("li").count() == 8
    page.locator(".playground-panel select").nth(1).select_option("none")
    page.wait_for_selector(".reader[data-read='2']", timeout=60_000)
    before = notes.all_inner_texts()
    page.get_by_label("tokens between").fill("6")
    page.wait_for_selector(".reader[data-read='3']", timeout=60_000)
    after = notes.all_inner_texts()
    assert before[0] != after[0], "RoPE meets other angles"
    assert before[1] == after[1], "NoPE sees no positions"
    page.get_by_label("text", exact=True).fill("once upon <img src=x onerror=alert(1)>")
    page.wait_for_selector(".reader[data-read='4']", timeout=60_000)
    assert page.locator(".reader img").count() == 0
    page.get_by_role("button", name="likeliest").click()
    page.wait_for_function(
        "[...document.querySelectorAll('.reader-more')].every(e => e.textContent.length > 20)", timeout=60_000
    )
    page.get_by_label("text", exact=True).fill("")
    page.wait_for_function("document.querySelector('.reader [role=status]').textContent.startsWith('Write something')")
    assert not wrong, "\n".join(wrong)


def test_nothing_is_whitened_on_a_dark_page(site, address, browser):
    """What notebooks made stands on the page's own ground: the theme gives it a light one."""
    context = browser.new_context(color_scheme="dark")
    page, light = context.new_page(), []
    for file in pages(site):
        page.goto(f"{address}/{file.relative_to(site)}")
        grounds = page.eval_on_selector_all(".text_html", "found => found.map(e => getComputedStyle(e).backgroundColor)")
        light += [f"{file.relative_to(site)}: {ground}" for ground in set(grounds) - {"rgba(0, 0, 0, 0)"}]
    context.close()
    assert not light, "\n".join(light)


def test_tables_sort_by_number(site, address, window):
    page, _ = window
    page.goto(f"{address}/results.html")
    table = page.locator("table.results").first
    column = [head.strip() for head in table.locator("thead th").all_inner_texts()].index("perplexity")
    heading = table.locator("thead th").nth(column)

    def values():
        return [float(text) for text in table.locator(f"tbody tr td:nth-child({column + 1})").all_inner_texts()]

    heading.locator("button").click()
    assert values() == sorted(values())
    assert heading.get_attribute("aria-sort") == "ascending"
    heading.locator("button").click()
    assert values() == sorted(values(), reverse=True)


def test_figures_turn_on_a_dark_page(site, address, browser):
    context = browser.new_context(color_scheme="dark")
    page = context.new_page()
    page.goto(f"{address}/index.html")
    look = page.locator(".cell_output img").first.evaluate("image => getComputedStyle(image).filter")
    assert "invert" in look
    context.close()


def test_it_is_light(site, address, browser):
    sizes = {file: file.stat().st_size for file in site.rglob("*") if file.is_file()}
    models = sum(size for file, size in sizes.items() if file.parent.name == "models")
    assert models < 8e6, f"{models / 1e6:.1f} MB of models"
    assert sum(sizes.values()) - models < 25e6, f"{(sum(sizes.values()) - models) / 1e6:.1f} MB"
    assert not any("svg+xml" in file.read_text() for file in site.glob("_sources/encodings/*.ipynb"))
    page, loaded = browser.new_page(), set()
    page.on("requestfinished", lambda asked: loaded.add(urlsplit(asked.url).path))
    page.goto(f"{address}/index.html")
    page.close()
    # As sent: every host compresses text.
    sizes = {path: len(gzip.compress((site / unquote(path).lstrip("/")).read_bytes())) for path in loaded}
    assert "/index.html" in sizes
    assert sum(sizes.values()) < 1e6, sorted(sizes.items(), key=lambda item: -item[1])[:5]


def test_a_link_to_a_page_has_a_preview(site):
    text = (site / "experiments" / "nope.html").read_text()
    for name in ("og:title", "og:description", "og:image", "og:image:alt"):
        assert f'<meta property="{name}" content="' in text
    assert (site / "_static" / "preview.png").stat().st_size < 300_000
