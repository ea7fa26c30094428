"""The Atom feed (RFC 4287) of what LOG.md says was found: one entry a finding, newest first."""

from __future__ import annotations

import re
import uuid
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt

from pe_core import paths

LOG = paths.ROOT / "LOG.md"
FILE = "feed.xml"  # of the built site
PAGE = "log.html"  # the page that shows the log
_TITLE = 120  # characters, at most about
_MARKDOWN = MarkdownIt("commonmark", {"html": False})


class Finding(NamedTuple):
    """One point of the log.

    Attributes:
        date: of its section, as 2026-11-27.
        machine: what else the section's heading says.
        text: the whole point, Markdown in one line.
    """

    date: str
    machine: str
    text: str

    @property
    def title(self) -> str:
        """What it says in bold to begin with where that is more than a word or two, else its first sentence; plain text."""
        lead = re.match(r"\*\*(\S+ \S+ .+?)\*\*", self.text)
        said = _plain(lead[1] if lead else re.split(r"(?<=[.!?]) (?=[A-Z`])", self.text)[0])
        return said.rstrip(".:,") if len(said) <= _TITLE else said[:_TITLE].rsplit(" ", 1)[0] + " …"

    @property
    def id(self) -> str:
        """The same as long as date and title are."""
        return uuid.uuid5(uuid.NAMESPACE_URL, f"position-encoding-lab/log/{self.date}/{self.title}").urn


def findings(log: str) -> list[Finding]:
    """The points of every dated section, in the order of the log."""
    found = []
    for section in re.split(r"^## ", log, flags=re.MULTILINE)[1:]:
        heading, _, body = section.partition("\n")
        date, _, machine = heading.partition(" · ")
        if re.fullmatch(r"\d{4}-\d\d-\d\d", date):
            points = re.split(r"^- ", body, flags=re.MULTILINE)[1:]
            found += [Finding(date, machine.strip(), " ".join(point.split())) for point in points]
    return found


def atom(log: str, title: str, base: str = "") -> str:
    """The feed of a log.

    Args:
        title: the site's.
        base: the address the site is served under; where it is not known, links are relative to the feed.
    """
    found = findings(log)
    base = base.rstrip("/") + "/" if base else ""
    feed = ET.Element("feed", xmlns="http://www.w3.org/2005/Atom")
    _add(feed, "title", f"{title}: findings")
    _add(feed, "id", uuid.uuid5(uuid.NAMESPACE_URL, "position-encoding-lab/log").urn)
    _add(feed, "updated", _moment(max((one.date for one in found), default="1970-01-01")))
    _add(_add(feed, "author"), "name", title)
    _add(feed, "link", rel="self", type="application/atom+xml", href=base + FILE)
    _add(feed, "link", rel="alternate", type="text/html", href=base + PAGE)
    for one in found:
        entry = _add(feed, "entry")
        _add(entry, "title", one.title)
        _add(entry, "id", one.id)
        _add(entry, "updated", _moment(one.date))
        _add(entry, "link", rel="alternate", type="text/html", href=base + PAGE)
        _add(entry, "content", f"<p>{_html(one.text)}</p><p>Measured on: {_html(one.machine)}.</p>", type="html")
    ET.indent(feed, " ")
    return ET.tostring(feed, encoding="unicode", xml_declaration=True) + "\n"


def write(target: Path, title: str, base: str = "") -> None:
    """The feed of LOG.md, as a file."""
    target.write_text(atom(LOG.read_text(), title, base))


def _add(parent: ET.Element, name: str, text: str | None = None, **attributes: str) -> ET.Element:
    made = ET.SubElement(parent, name, attributes)
    made.text = text
    return made


def _moment(date: str) -> str:
    return f"{date}T00:00:00Z"


def _plain(text: str) -> str:
    return _unlinked(text).replace("**", "").replace("`", "").replace("*", "")


def _html(text: str) -> str:
    return str(_MARKDOWN.renderInline(_unlinked(text)))


def _unlinked(text: str) -> str:
    """Of links the words: their addresses are those of the repository."""
    return re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", text)
