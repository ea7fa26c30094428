"""The built site as a reader meets it: every page in headless Chromium, at the width of a phone and of a screen."""

import csv
import gzip
import io
import json
import os
import shutil
import subprocess
import sys
import threading
import xml.etree.ElementTree as ET
import zipfile
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
    """The site, built by the README's command with warnings as errors; or as it stands in the folder `PE_SITE`."""
    if built := os.environ.get("PE_SITE"):
        return ROOT / built
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
        if page.locator(".reader").count():  # who leaves while its models load breaks a request off
            page.wait_for_selector(".reader[data-read]", timeout=60_000)
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
    found, files = [], pages(site)
    if page.viewport_size["width"] == WIDTHS[0]:  # one notebook made the encodings' pages: two of them are enough
        alike = [file for file in files if file.parent.name == "encodings"]
        files = [file for file in files if file not in alike[2:]]
    for file in files:
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
    marks, said = page.locator(".explorer-mark"), page.locator(".explorer-value")
    assert marks.count() == 5
    marks.first.hover()
    assert "95 % interval" in said.inner_text()
    page.locator(".explorer-choice summary").click()
    page.locator(".explorer-models input:checked").last.uncheck()
    assert marks.count() == 4
    page.locator(".explorer-models input:not(:checked)").first.check()
    assert marks.count() == 5
    for measure in ("percent", "perplexity", "bits"):
        page.select_option("#explorer-measure", measure)
        for view in ("overall", "position", "training"):
            page.select_option("#explorer-view", view)
            drawn = page.locator(".explorer-svg").inner_html()
            assert marks.count()
            assert "NaN" not in drawn
            assert "undefined" not in drawn
    marks.first.focus()
    first = said.inner_text()
    page.keyboard.press("ArrowRight")
    assert said.inner_text() != first
    page.get_by_role("button", name="none").click()
    assert "choose a model" in page.locator(".explorer-chart").inner_text()
    assert not wrong


def test_every_view_of_the_explorer_has_intervals(site, address, window):
    page, _ = window
    data = page_data(page, address)
    settings = {one["id"]: one for one in data["settings"]}
    several = next(one["id"] for one in data["settings"] if any(len(model["epochs"]) > 1 for model in one["models"]))
    for view in ("overall", "position", "training"):
        page.goto(f"{address}/results.html#view={view}&measure=percent")
        page.reload()
        texts = page.eval_on_selector_all(".explorer-mark", "found => found.map(e => e.getAttribute('aria-label'))")
        assert all("95 % interval" in text or "the baseline" in text for text in texts)
        bars = page.locator(".explorer-svg line[stroke]").count() + page.locator(".explorer-band").count()
        assert bars >= 4
    page.goto(f"{address}/results.html#view=epoch&measure=perplexity&setting={several}")
    page.reload()
    texts = page.eval_on_selector_all(".explorer-mark", "found => found.map(e => e.getAttribute('aria-label'))")
    alone = all(model["seeds"] == 1 for model in settings[several]["models"])
    assert texts
    assert all(("no interval, one seed" if alone else "95 % interval") in text for text in texts)


def page_data(page, address):
    page.goto(f"{address}/results.html")
    return json.loads(page.locator("#explorer-data").text_content())


def test_the_chart_is_in_the_first_screen(site, address, browser):
    for width, height in ((390, 844), (1280, 800)):
        page = browser.new_page(viewport={"width": width, "height": height})
        for view in ("overall", "position", "training"):
            page.goto(f"{address}/results.html#view={view}")
            page.reload()
            box = page.locator(".explorer-svg").bounding_box()
            assert box["y"] >= 0
            assert box["y"] + box["height"] <= height, f"{view} at {width}: {box}"
            assert page.locator(".explorer-choice").get_attribute("open") is None, "the list is folded"
        page.close()


def test_an_address_of_the_explorer_shows_the_same_to_others(site, address, window, browser):
    page, wrong = window
    data = page_data(page, address)
    setting = data["settings"][1]
    page.select_option("#explorer-setting", setting["id"])
    page.select_option("#explorer-measure", "bits")
    page.select_option("#explorer-view", "position")
    page.locator(".explorer-choice summary").click()
    page.locator(".explorer-models input:checked").first.uncheck()
    names = page.locator(".explorer-legend").inner_text()
    other = browser.new_page()
    other.goto(page.url)
    assert other.locator("#explorer-setting").input_value() == setting["id"]
    assert other.locator("#explorer-measure").input_value() == "bits"
    assert other.locator("#explorer-view").input_value() == "position"
    assert other.locator(".explorer-legend").inner_text() == names
    other.goto(f"{address}/results.html#models=all")  # typed into the same page
    other.wait_for_function(f"document.querySelectorAll('.explorer-mark').length === {len(data['settings'][0]['models'])}")
    other.goto(f"{address}/results.html#model=%3Cimg+src%3Dx+onerror%3Dalert(1)%3E")
    other.wait_for_function("document.querySelector('.explorer-value').textContent.startsWith('Not on record any more: <img')")
    assert other.locator("#explorer img").count() == 0
    other.close()
    assert not wrong


def test_what_the_explorer_shows_can_be_downloaded(site, address, window):
    page, wrong = window
    page.goto(f"{address}/results.html#measure=perplexity&view=position")
    with page.expect_download() as saved:
        page.get_by_role("button", name="CSV").click()
    assert saved.value.suggested_filename == "explorer.csv"
    table = list(csv.DictReader(io.StringIO(Path(saved.value.path()).read_text())))
    assert len(table) == page.locator(".explorer-mark").count()
    assert all(float(row["low"]) <= float(row["value"]) <= float(row["high"]) for row in table)
    with page.expect_download() as saved:
        page.get_by_role("button", name="JSON").click()
    assert [row["model"] for row in json.loads(Path(saved.value.path()).read_text())["rows"]] == [row["model"] for row in table]
    assert not wrong


def test_records_can_be_downloaded_from_the_site(site, address, browser):
    page = browser.new_page(accept_downloads=True)
    page.goto(f"{address}/results.html")
    links = page.locator('a[href^="records/"]')
    assert links.count() >= 10
    with page.expect_download() as saved:
        links.filter(has_text="ranking").click()
    with zipfile.ZipFile(saved.value.path()) as archive:
        [line, *_] = archive.read("ranking/records.jsonl").decode().splitlines()
    assert json.loads(line)["metrics"]["perplexity"]["value"] > 1
    page.close()


def test_every_page_tells_feed_readers_of_the_findings(site, address, browser):
    page = browser.new_page()
    for file in pages(site):
        page.goto(f"{address}/{file.relative_to(site)}")
        [link] = page.eval_on_selector_all("link[type='application/atom+xml']", "found => found.map(e => e.href)")
        assert link == f"{address}/feed.xml", file
    page.goto(f"{address}/log.html")
    assert page.locator(".bd-article a[href='feed.xml']").count() == 1
    page.close()
    assert ET.parse(site / "feed.xml").getroot().tag == "{http://www.w3.org/2005/Atom}feed"


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


def test_no_table_scrolls_sideways_until_its_columns_are_unfolded(site, address, window):
    page, _ = window
    wide = "boxes => boxes.filter(box => box.scrollWidth > box.clientWidth + 1).length"
    scrolling, unfolds = [], page.locator("button.unfolds")
    for file in pages(site):
        page.goto(f"{address}/{file.relative_to(site)}")
        scrolling += [str(file.relative_to(site))] * page.eval_on_selector_all(".table-scroll:not(:has(.genindextable))", wide)
    assert not scrolling
    page.goto(f"{address}/experiments/ranking.html")
    if page.viewport_size["width"] == max(WIDTHS):
        assert not unfolds.count()
        return
    commit = page.locator("th", has_text="commit")
    assert not commit.is_visible()
    before = unfolds.count()
    unfolds.filter(has_text="commit").click()
    assert commit.is_visible()
    assert unfolds.count() == before - 1


def test_tables_sort_by_number(site, address, window):
    page, _ = window
    page.goto(f"{address}/results.html")
    table = page.locator("table.results").last  # of runs
    column = [head.strip() for head in table.locator("thead th").all_inner_texts()].index("perplexity")
    heading = table.locator("thead th").nth(column)

    def values():
        return [float(text) for text in table.locator(f"tbody tr td:nth-child({column + 1})").all_inner_texts()]

    heading.locator("button").click()
    assert values() == sorted(values())
    assert heading.get_attribute("aria-sort") == "ascending"
    heading.locator("button").click()
    assert values() == sorted(values(), reverse=True)


@pytest.mark.parametrize(
    ("page_name", "column"),
    [("ranking", "3.3 M tokens"), ("mla", "% against ALiBi slope 0.0625"), ("extrapolation", "% against the best"),
     ("reversal", "ranked first, %")],
)  # fmt: skip
def test_the_column_that_answers_is_seen(address, window, page_name, column):
    page, _ = window
    page.goto(f"{address}/experiments/{page_name}.html")
    heading = page.locator(".table-scroll th", has_text=column).first
    box, head = heading.locator("xpath=ancestor::div[@class][1]").bounding_box(), heading.bounding_box()
    assert head["x"] + head["width"] <= min(box["x"] + box["width"], page.viewport_size["width"]) + 1
    assert head["x"] >= box["x"]


def test_a_table_that_scrolls_fades_at_its_edge(address, browser):
    page = browser.new_page(viewport={"width": WIDTHS[0], "height": 900})
    page.goto(f"{address}/experiments/ranking.html")
    page.locator("button.unfolds", has_text="commit").click()
    box = page.locator(".table-scroll", has=page.locator("th", has_text="commit")).first
    fades = "box => box.matches('.more') && getComputedStyle(box).maskImage.includes('gradient')"
    assert box.evaluate(fades)
    box.evaluate("box => { box.scrollLeft = box.scrollWidth; }")
    page.wait_for_function("box => !box.matches('.more')", arg=box.element_handle())
    page.close()


def test_figures_turn_on_a_dark_page(site, address, browser):
    context = browser.new_context(color_scheme="dark")
    page = context.new_page()
    page.goto(f"{address}/index.html")
    look = page.locator(".cell_output img").first.evaluate("image => getComputedStyle(image).filter")
    assert "invert" in look
    context.close()


def test_the_site_is_small(site):
    sizes = {file: file.stat().st_size for file in site.rglob("*") if file.is_file()}
    models = sum(size for file, size in sizes.items() if file.parent.name == "models")
    assert models < 8e6, f"{models / 1e6:.1f} MB of models"
    assert sum(sizes.values()) - models < 20e6, f"{(sum(sizes.values()) - models) / 1e6:.1f} MB"
    assert not any("svg+xml" in file.read_text() for file in site.glob("_sources/**/*.ipynb"))
    assert not [file for file in sizes if file.suffix in (".map", ".ttf")]


def test_the_first_page_is_light_and_soon_there(site, address, window):
    page, _ = window
    loaded = set()
    page.on("requestfinished", lambda asked: loaded.add(urlsplit(asked.url).path))
    page.goto(f"{address}/index.html", wait_until="networkidle")
    # As sent: every host compresses text.
    sizes = {path: len(gzip.compress((site / unquote(path).lstrip("/")).read_bytes())) for path in loaded}
    assert "/index.html" in sizes
    assert sum(sizes.values()) < 600e3, sorted(sizes.items(), key=lambda item: -item[1])[:5]
    painted = page.evaluate(LARGEST_PAINT)
    assert 0 < painted < 2_500, f"largest contentful paint after {painted:.0f} ms, from this machine"


LARGEST_PAINT = """new Promise((done) => new PerformanceObserver((list) => done(list.getEntries().at(-1).startTime))
  .observe({ type: "largest-contentful-paint", buffered: true }))"""


def test_a_link_to_a_page_has_a_preview(site):
    text = (site / "experiments" / "nope.html").read_text()
    for name in ("og:title", "og:description", "og:image", "og:image:alt"):
        assert f'<meta property="{name}" content="' in text
    assert (site / "_static" / "preview.png").stat().st_size < 300_000
