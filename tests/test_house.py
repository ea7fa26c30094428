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


def test_functions_are_short():
    """At most 60 lines each, without docstrings and the functions within them."""
    for file in (ROOT / "pe_core").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert _own_lines(node) <= 60, f"{file.relative_to(ROOT)}: {node.name} has {_own_lines(node)} lines"


def _own_lines(function):
    def size(node):
        return node.end_lineno - node.lineno + 1

    within = (node for node in ast.walk(function) if isinstance(node, ast.FunctionDef) and node is not function)
    docstring = size(function.body[0]) if ast.get_docstring(function) else 0
    return size(function) - docstring - sum(map(size, within))


def test_no_test_module_imports_another():
    files = sorted((ROOT / "tests").rglob("*.py"))
    names = {file.stem for file in files if file.stem.startswith("test_")}
    assert len(names) > 40
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            found = {node.module} if isinstance(node, ast.ImportFrom) else set()
            found |= {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
            assert not found & names, file
