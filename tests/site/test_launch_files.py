"""Container and Binder files name what is there: they cannot be built in the tests, so they are read."""

import json
import re
import tomllib

import pytest
import yaml
from helpers import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
INSTRUCTIONS = {"FROM", "RUN", "WORKDIR", "COPY", "EXPOSE", "CMD", "ENV", "USER"}
BINDER = ROOT / "binder"


def dockerfile():
    """Its instructions, each with its arguments."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if line.strip() and not line.startswith("#")]
    assert not any(line.endswith("\\") for line in lines), "one instruction a line"
    return [tuple(line.split(" ", 1)) for line in lines]


def is_published(version):
    """Whether the project says that it runs on this Python."""
    least = re.fullmatch(r">=(\d+)\.(\d+)", PROJECT["requires-python"])
    assert tuple(map(int, version.split("."))) >= tuple(map(int, least.groups()))
    return f"Programming Language :: Python :: {version}" in PROJECT["classifiers"]


def targets():
    makefile = (ROOT / "Makefile").read_text()
    names = set(re.findall(r"^([\w./-]+):", makefile, re.MULTILINE))
    return names, set(re.findall(r"^(\w+) \??:?=", makefile, re.MULTILINE))


def test_the_dockerfile_uses_known_instructions_and_a_python_of_the_project():
    found = dockerfile()
    assert found[0][0] == "FROM"
    assert {name for name, _ in found} <= INSTRUCTIONS
    [version] = re.findall(r"^python:(\d+\.\d+)-slim$", found[0][1])
    assert is_published(version)


def test_what_the_dockerfile_makes_and_copies_is_there():
    names, variables = targets()
    for name, rest in dockerfile():
        if name == "COPY":
            *sources, _ = rest.split()
            assert all((ROOT / source).exists() for source in sources)
        if name == "RUN" and rest.startswith("make"):
            assert set(rest.split()[1:]) <= names
        if name == "CMD":
            program, target, *settings = json.loads(rest)
            assert program == "make"
            assert target in names
            assert {setting.split("=")[0] for setting in settings} <= variables, "a variable that the Makefile has"


def test_what_makes_the_image_large_stays_outside():
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".venv", "runs", "book/_build"} <= set(ignored)
    assert ".git" not in ignored, "records name the commit of the code"
    for name in ignored:  # what is in git is not left out
        assert name.startswith(("**/", "*.")) or name + "/" in (ROOT / ".gitignore").read_text().split()


def test_binder_has_a_python_of_the_project():
    version = re.fullmatch(r"python-(\d+\.\d+)\n", (BINDER / "runtime.txt").read_text())[1]
    assert is_published(version)
    assert f"python:{version}-slim" in (ROOT / "Dockerfile").read_text(), "one version for both"


def test_binder_installs_the_lab_under_its_constraints():
    lines = [line for line in (BINDER / "requirements.txt").read_text().splitlines() if line and not line.startswith("#")]
    options = dict(line.split(" ", 1) for line in lines)
    assert set(options) == {"--constraint", "--editable"}
    assert (BINDER / options["--constraint"]).resolve() == ROOT / "constraints.txt", "pip reads it relative to the file"
    assert (ROOT / options["--editable"] / "pyproject.toml").exists(), "and this relative to the checkout"


def test_packages_of_the_system_are_names_and_those_of_the_dockerfile():
    packages = (BINDER / "apt.txt").read_text().split()
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9.+-]+", name) for name in packages)
    [installed] = [rest for name, rest in dockerfile() if "apt-get install" in rest]
    assert set(packages) <= set(installed.split())


@pytest.mark.parametrize(
    "file", ["Dockerfile", ".dockerignore", "binder/apt.txt", "binder/requirements.txt", "binder/runtime.txt"]
)
def test_no_file_names_a_host_or_a_place_of_a_machine(file):
    text = (ROOT / file).read_text()
    assert not re.search(r"https?://|index-url|trusted-host|\b\d+\.\d+\.\d+\.\d+\b(?<!0\.0\.0\.0)", text)
    assert {path.split("/")[1] for path in re.findall(r"(?<![\w.*])/\w[\w/]*", text)} <= {"lab", "var"}, "of the image alone"
    assert text.endswith("\n")


def test_the_books_configuration_is_yaml():
    for name in ("_config.yml", "_toc.yml"):
        assert isinstance(yaml.safe_load((ROOT / name).read_text()), dict)
