"""The wheel: complete, and of use outside the repository."""

import json
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_supported_versions_of_python_are_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ">=3.11"
    declared = {line.rpartition(" ")[2] for line in project["classifiers"] if line.startswith("Programming Language")}
    assert declared == {"3.11", "3.12", "3.13"}


@pytest.mark.slow
def test_a_wheel_runs_an_experiment_outside_the_repository(tmp_path):
    """Installed in a fresh environment that sees this one's packages, but not this repository."""
    source = tmp_path / "source"
    shutil.copytree(ROOT / "pe_core", source / "pe_core", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(source)]
    subprocess.run(build, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("pe_core/")}
    kept = [path for path in (ROOT / "pe_core").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert packed == {str(path.relative_to(ROOT)) for path in kept}

    venv.create(tmp_path / "env", symlinks=True)
    site = next((tmp_path / "env").glob("lib/python*/site-packages"))
    (site / "parent.pth").write_text(str(Path(pytest.__file__).parent.parent))
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    work = tmp_path / "work"
    work.mkdir()
    texts = [" ".join(f"word{(i * j) % 97}" for j in range(1, 40)) for i in range(1, 80)]
    (work / "corpus.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    tiny = ["--samples", "40", "--seq-len", "8", "--epochs", "1", "--preset", "nano", "--compile", "off", "--device", "cpu"]
    command = [str(tmp_path / "env/bin/python"), "-m", "pe_core", "run", "--corpus", "corpus.jsonl", *tiny, "--json"]
    alone = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    ran = subprocess.run(command, cwd=work, capture_output=True, text=True, env=alone)
    assert ran.returncode == 0, ran.stderr
    assert Path(json.loads(ran.stdout)["folder"]).parent == work / "runs"
    for module in ("site.pages", "site.readme", "site.publish clean gone.ipynb", "studies.ranking"):
        command = [str(tmp_path / "env/bin/python"), "-m", *f"pe_core.{module}".split()]
        ran = subprocess.run(command, cwd=work, capture_output=True, text=True, env=alone)
        assert ran.returncode == 1
        assert ran.stderr.startswith("error: "), ran.stderr
        assert ran.stderr.count("\n") == 1, ran.stderr
