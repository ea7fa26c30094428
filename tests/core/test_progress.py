"""Progress where nobody looks at a terminal: lines in a file, and nothing in a notebook."""

import re

import pytest

from pe_core import progress


@pytest.fixture
def written(monkeypatch, capsys):
    """What bars have written to a file, without waiting."""
    monkeypatch.setattr(progress, "_LINE_EVERY", 0.0)
    return lambda: capsys.readouterr().err


def test_a_file_has_lines(written):
    for _ in progress.bar(range(4), "Epoch 1", unit=" steps"):
        pass
    lines = written().splitlines()
    assert len(lines) == 3, "none at the beginning, none at the end"
    for percent, done, line in zip((25, 50, 75), (1, 2, 3), lines, strict=True):
        assert re.fullmatch(rf"Epoch 1: {percent} %, {done} of 4 steps, .+ steps/s, [\d:]+ left", line)


def test_where_training_goes_on_is_no_progress(written):
    with progress.bar(total=10, initial=5, label="Epoch 2", unit=" steps") as bar:
        assert written() == ""
        bar.update()
    assert written().startswith("Epoch 2: 60 %, 6 of 10 steps")


def test_of_unknown_length(written):
    for _ in progress.bar(iter("abc"), "Reading prose", unit=" documents"):
        pass
    assert re.match(r"Reading prose: 1 documents \[[^\n]+\]\n", written())


def test_half_a_minute_passes_first(capsys):
    for _ in progress.bar(range(50), "Epoch 1"):
        pass
    assert capsys.readouterr().err == ""
