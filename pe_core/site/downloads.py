"""Published records for download from the built site, one archive a study."""

from __future__ import annotations

import html
import zipfile
from pathlib import Path

from pe_core import paths

FOLDER = "records"  # of the built site
# Losses by document (`*.npz`) are nine times as large as all these; they stay in the repository.
_PACKED = ("*.jsonl", "*.json", "*/*.json")


def studies(folder: Path = paths.PUBLISHED) -> list[Path]:
    """Folders of published studies, by name."""
    return sorted(study for study in folder.glob("*") if _files(study))


def _files(study: Path) -> list[Path]:
    return sorted({file for pattern in _PACKED for file in study.glob(pattern)})


def pack(target: Path, folder: Path = paths.PUBLISHED) -> None:
    """One zip archive a study, of its records as they are in the repository. The same records are the same bytes."""
    target.mkdir(parents=True, exist_ok=True)
    for study in studies(folder):
        with zipfile.ZipFile(target / f"{study.name}.zip", "w") as archive:
            for file in _files(study):
                entry = zipfile.ZipInfo(f"{study.name}/{file.relative_to(study).as_posix()}", (1980, 1, 1, 0, 0, 0))
                archive.writestr(entry, file.read_bytes(), zipfile.ZIP_DEFLATED, 9)


def table(folder: Path = paths.PUBLISHED) -> str:
    """What `pack` makes, as a table with links."""
    rows = []
    for study in studies(folder):
        name, files = html.escape(study.name), _files(study)
        runs = sum(len(file.read_text().splitlines()) for file in files if file.suffix == ".jsonl") or "–"
        size = sum(file.stat().st_size for file in files) / 1e6
        link = f'<a href="{FOLDER}/{name}.zip" download>{name}.zip</a>'
        rows.append(f"<tr><td>{link}</td><td>{runs}</td><td>{size:.2f} MB</td></tr>")
    head = "<tr><th>study</th><th>runs</th><th>unpacked</th></tr>"
    return f'<table class="dataframe results"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table>'
