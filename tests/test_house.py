"""The house rules that a machine can check: what may import what, and that tests of one room do not lean on another's."""

import ast
import subprocess
import sys
from pathlib import Path

from helpers import ROOT


def test_imports_go_one_way():
    """The contracts of pyproject.toml: layers, studies that do not know each other, no circles."""
    linted = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"], cwd=ROOT, capture_output=True, text=True
    )
    assert linted.returncode == 0, linted.stdout


def test_no_test_module_imports_another():
    files = sorted((ROOT / "tests").rglob("*.py"))
    names = {file.stem for file in files if file.stem.startswith("test_")}
    assert len(names) > 40
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            found = {node.module} if isinstance(node, ast.ImportFrom) else set()
            found |= {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
            assert not found & names, file
