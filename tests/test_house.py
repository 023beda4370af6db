"""The shape of the repository, as far as a test can hold it."""

import ast
import re

import pytest
from conftest import ROOT, STAGES

import common

ORDER = re.findall(r"\w+", common.__doc__.split("\n\n")[1])
MODULES = sorted(p for p in (ROOT / "common").glob("*.py") if p.stem != "__init__")
SCRIPTS = [p for stage in STAGES for p in sorted((ROOT / stage).glob("*.py"))]

DATA = sorted(p for d in ("data_prep", "benchmarks") for p in (ROOT / d).glob("*.py"))


def imported(path) -> set[str]:
    """Names of the modules of this repository that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "common":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.removeprefix("common."))
    return found


def test_the_order_names_every_module():
    assert sorted(ORDER) == [p.stem for p in MODULES]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_common_imports_downwards(path):
    later = set(ORDER[ORDER.index(path.stem) :])
    assert not imported(path) & later
    assert not imported(path) & set(STAGES)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_stages_stand_on_common_alone_and_are_short(path):
    assert not imported(path) & set(STAGES)
    assert len(path.read_text().splitlines()) <= 120


@pytest.mark.parametrize("path", [*MODULES, *SCRIPTS, *DATA, ROOT / "reproduce.py"], ids=str)
def test_modules_and_functions_are_short(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, node.name
