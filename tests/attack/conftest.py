"""Campaigns of bad input, faults and kills: a sample of each in CI, all of each by `make attack`."""

import os
import random
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from pe_core.__main__ import main

WHOLE = bool(os.environ.get("PE_ATTACK"))


class Campaign:
    """Counts what was tried, and tells at the end how much of it held."""

    def __init__(self, name: str) -> None:
        self.name, self.tried, self.faults = name, 0, []

    def cases(self, every: Sequence[Any], sampled: int) -> Iterator[Any]:
        """All of them under `make attack`, else so many, the same ones each time."""
        drawn = every if WHOLE else random.Random(0).sample(list(every), min(sampled, len(every)))
        for case in drawn:
            self.tried += 1
            yield case

    def check(self, case: object, fault: str | None) -> None:
        if fault:
            self.faults.append(f"{str(case)[:160]!r}: {fault}")

    def told(self) -> str:
        return f"{self.name}: {self.tried:,} tried, {self.tried - len(self.faults):,} held, {len(self.faults):,} failed"


@pytest.fixture
def campaign(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> Iterator[Campaign]:
    started = Campaign(request.node.name.removeprefix("test_").replace("_", " "))
    yield started
    with capsys.disabled():
        print(f"\n{started.told()}")
    assert started.tried, "nothing was tried"
    assert not started.faults, "\n".join([started.told(), *started.faults])


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., str | None]:
    """`command(*arguments)` gives one command line in this process, and says what is wrong with how it ended: `None` where it
    did what it was told, or said in one line why not."""

    def given(*arguments: str) -> str | None:
        capsys.readouterr()
        try:
            code = main(arguments)
        except SystemExit as ended:  # --help
            code = ended.code
        except Exception as error:
            return f"traceback: {type(error).__name__}: {str(error)[:200]}"
        lines = [line for line in re.split(r"[\r\n]+", capsys.readouterr().err) if line]
        errors = [line for line in lines if line.startswith("error: ")]
        if code == 0:
            return None
        if code not in (1, 2) or len(errors) != 1 or lines[-1] != errors[0]:
            return f"exit code {code}, not one line: {lines}"
        return None if re.fullmatch(r"error: [^\x00-\x1f\x7f-\x9f]+", errors[0]) else f"control characters: {errors[0]!r}"

    return given
