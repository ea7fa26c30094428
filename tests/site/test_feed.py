"""The feed of findings is Atom, and says what LOG.md says."""

import re
import xml.etree.ElementTree as ET
from datetime import datetime

import pytest

from pe_core.site import feed

ATOM = "{http://www.w3.org/2005/Atom}"
LOG = """# Log

Preamble, - no point.

## 2026-11-27 · two cores, <fast>

- **Seeds move RoPE by 6 %**: more than `a < b` and *all* of [the rest](rest.md).
  A second line.
- **Negative**: nothing came of it. At all.

## Unfinished

- Not dated, so not a finding.

## 2026-11-24 · the same machine

- Shorter. Than that.
"""


def entries(text):
    return ET.fromstring(text).findall(f"{ATOM}entry")


def said(entry, name):
    return entry.find(ATOM + name).text


def test_every_dated_point_is_an_entry_newest_first():
    found = entries(feed.atom(LOG, "Lab"))
    assert [said(one, "title") for one in found] == ["Seeds move RoPE by 6 %", "Negative: nothing came of it", "Shorter"]
    assert [said(one, "updated")[:10] for one in found] == ["2026-11-27", "2026-11-27", "2026-11-24"]


def test_markup_is_html_and_all_else_text():
    first = entries(feed.atom(LOG, "Lab"))[0]
    assert first.find(ATOM + "content").get("type") == "html"
    assert said(first, "content") == (
        "<p><strong>Seeds move RoPE by 6 %</strong>: more than <code>a &lt; b</code> and <em>all</em> of the rest. "
        "A second line.</p><p>Measured on: two cores, &lt;fast&gt;.</p>"
    )


def test_an_entry_stays_the_same_when_others_are_added():
    later = LOG.replace("- **Negative**", "- Another.\n- **Negative**")
    ids = [said(one, "id") for one in entries(feed.atom(later, "Lab"))]
    assert {said(one, "id") for one in entries(feed.atom(LOG, "Lab"))} < set(ids)


def test_where_the_sites_address_is_known_links_are_whole():
    root = ET.fromstring(feed.atom(LOG, "Lab", "https://lab.example/pe"))
    assert {link.get("href") for link in root.iter(f"{ATOM}link")} == {
        "https://lab.example/pe/feed.xml",
        "https://lab.example/pe/log.html",
    }


def test_an_empty_log_is_a_feed():
    assert not entries(feed.atom("# Log\n", "Lab"))


@pytest.fixture(scope="module")
def ours():
    return feed.atom(feed.LOG.read_text(), "Position Encoding Lab")


def test_the_logs_feed_has_what_atom_asks_for(ours):
    root = ET.fromstring(ours)
    for element in (root, *root.findall(f"{ATOM}entry")):
        assert said(element, "title")
        assert said(element, "id").startswith("urn:uuid:")
        datetime.fromisoformat(said(element, "updated"))
    assert root.find(f"{ATOM}author/{ATOM}name").text
    assert {link.get("rel") for link in root.findall(f"{ATOM}link")} == {"self", "alternate"}
    ids = [said(one, "id") for one in root.iter(f"{ATOM}entry")]
    assert len(set(ids)) == len(ids) == len(re.findall("^- ", feed.LOG.read_text(), re.MULTILINE))
    assert max(len(said(one, "title")) for one in root.iter(f"{ATOM}entry")) <= 125


def test_no_finding_is_left_without_its_words(ours):
    for entry, one in zip(entries(ours), feed.findings(feed.LOG.read_text()), strict=True):
        plain = re.sub("<[^>]+>", "", said(entry, "content"))
        for word in re.findall(r"[A-Za-z]{5,}", re.sub(r"\]\([^)]*\)", "", one.text)):
            assert word in plain
