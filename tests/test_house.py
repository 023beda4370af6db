"""The shape of the repository, as far as a test can enforce it."""

import ast

from conftest import ROOT, STAGES

# Packages of common/ from the bottom up: each imports from those before it and from the ground.
PACKAGES = ("models", "dataset", "losses", "evaluation", "training", "inference", "study")
GROUND = ("errors", "files", "config", "device", "settings")
SCRIPTS = sorted(p for stage in STAGES for p in (ROOT / stage).glob("*.py"))
COMMON = sorted((ROOT / "common").rglob("*.py"))
OTHERS = sorted(p for d in ("data_prep", "benchmarks") for p in (ROOT / d).glob("*.py"))


def imports_of(path) -> set[str]:
    """Where in this repository a file imports from: a stage, data_prep, or a room of common/."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "common":
            rooms |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            rooms.add(node.module.removeprefix("common.").split(".")[0])
        elif isinstance(node, ast.Import):
            rooms |= {a.name.removeprefix("common.").split(".")[0] for a in node.names}
    return rooms & {*PACKAGES, *GROUND, *STAGES, "data_prep", "reproduce"}


def test_common_is_seven_packages_over_a_ground_of_five_modules():
    folder = ROOT / "common"
    assert {p.name for p in folder.iterdir() if (p / "__init__.py").exists()} == {*PACKAGES}
    assert {p.stem for p in folder.glob("*.py")} == {"__init__", *GROUND}
    for package in PACKAGES:  # what it is for, and nothing else
        (docstring,) = ast.parse((folder / package / "__init__.py").read_text()).body
        assert isinstance(docstring.value, ast.Constant)


def test_packages_import_downwards():
    for path in COMMON:
        place = path.relative_to(ROOT / "common").parts
        allowed = {*GROUND}
        if len(place) > 1:
            allowed |= {*PACKAGES[: PACKAGES.index(place[0]) + 1]}
        assert imports_of(path) <= allowed, path


def test_stages_import_from_common_alone():
    for path in SCRIPTS:
        assert imports_of(path) <= {*PACKAGES, *GROUND}, path


def test_files_and_functions_are_short():
    for path in (*COMMON, *SCRIPTS, *OTHERS, ROOT / "reproduce.py"):
        text = path.read_text()
        assert len(text.splitlines()) <= (120 if path in SCRIPTS else 300), path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, (path, node.name)
