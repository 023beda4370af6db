"""Commands of the documents exist, their flags too; links lead somewhere; counts are the code's."""

import ast
import re
import shlex
from pathlib import Path

import torch
from conftest import ROOT, load_script

from common.config import parse
from common.errors import UserError
from common.models.transunet import teacher_t2
from common.models.unet import parameters, student_s1, student_s2, teacher_t1

PAGES = {path: path.read_text() for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))}
README = PAGES[ROOT / "README.md"]
# The log's commands are those of their commits.
TEXTS = [text for path, text in PAGES.items() if path.name != "LOG.md"]
BLOCKS = re.findall(r"```bash\n(.*?)```", "".join(TEXTS), re.S)


def commands() -> list[tuple[str, list[str]]]:
    """(script, arguments) of every python command, scripts found through the `cd` before them."""
    found = []
    for block in BLOCKS:
        folder = Path()
        lines = block.replace("\\\n", " ").splitlines()
        for line in lines:
            for part in re.split(r"&&|;", line.split("#")[0]):
                words = shlex.split(part)
                if words[:1] == ["cd"]:
                    folder = Path() if words[1] == ".." else Path(words[1].removeprefix("../"))
                elif words[:1] == ["python"] or words[:1] == ["torchrun"]:
                    script = next(i for i, w in enumerate(words) if w.endswith(".py"))
                    found.append((str(folder / words[script]), words[script + 1 :]))
    return found


def test_there_are_commands():
    scripts = {script for script, _ in commands()}
    assert {"reproduce.py", "kd_t1_s1/train.py", "data_prep/import_pairs.py"} <= scripts


def manuals() -> list[tuple[Path, list[str]]]:
    """(script, arguments) of every command in the docstrings of the scripts."""
    found = []
    for path in sorted({*ROOT.glob("*/*.py"), *ROOT.glob("*.py")}):
        if path.parent.name == "tests" or not re.search("^if __name__", path.read_text(), re.M):
            continue
        text = re.sub(r"\\\n\s*", "", ast.get_docstring(ast.parse(path.read_text()), clean=False))
        for line in re.findall(r"^    (?:python|torchrun) (.*)$", text, re.M):
            script, rest = re.split(r"(?<=\.py)", line, maxsplit=1)
            assert script.split()[-1].endswith(path.name), line
            # What a line says of its command stands apart from it.
            found.append((path, shlex.split(re.split(r" {3,}", rest)[0])))
    return found


def test_every_command_exists_and_takes_its_flags(monkeypatch, capsys):
    """Those of the documents and of the scripts' manuals, in one loop: all wrong ones are named."""
    wrong = []
    for script, arguments in [*commands(), *manuals()]:
        with monkeypatch.context() as patch:
            patch.syspath_prepend((ROOT / script).parent)  # as where it is run
            module = load_script(ROOT / script)
            cls = getattr(module, "Config", None) or getattr(module, "InferenceConfig", None)
            try:
                parse(cls or module.MetricsConfig, arguments)
            except (SystemExit, UserError) as error:
                wrong.append(f"{script} {shlex.join(arguments)}: {error} {capsys.readouterr().err}")
    assert not wrong


def test_the_classes_of_a_manual_s_commands_can_be_meant():
    script = load_script(ROOT / "data_prep/import_pairs.py")
    named = [words for path, words in manuals() if path.name == "import_pairs.py"]
    named += [words for path, words in commands() if path.endswith("import_pairs.py")]
    assert sum("--classes" in words for words in named) > 3
    for words in named:
        assert script.classes_of(parse(script.Config, words))[0]


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^make (\w+)", "\n".join(BLOCKS), re.M))
    assert {"demo", "test"} <= targets
    assert all(f"\n{target}:" in makefile for target in targets)


def test_files_and_pictures_it_links_exist():
    for path, text in PAGES.items():
        links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
        assert all((path.parent / link).exists() for link in links), path
    assert all(path.name in README for path in PAGES if path != ROOT / "README.md")


def test_modules_and_tests_that_it_names_exist():
    files = {
        path.name for path in (*ROOT.glob("*/*/*.py"), *ROOT.glob("*/*.py"), *ROOT.glob("*.py"))
    }
    named = re.findall(r"`(?:\w+/)*(\w+\.py)`", "".join(TEXTS))
    assert named and {*named} <= files


def test_parameter_counts():
    with torch.device("meta"):
        models = teacher_t1(), teacher_t2(), student_s1(), student_s2()
    assert all(f"{parameters(model):,}" in README for model in models)


def test_the_map_of_the_code_names_every_module_once():
    table = PAGES[ROOT / "docs/CODE.md"].split("| modules of `common/` |")[1].split("\n\n")[0]
    rooms = dict(re.findall(r"^\| `?(\w+)`? \| (.+) \|$", table, re.M))
    for room, text in rooms.items():
        folder = ROOT / "common" / ("" if room == "ground" else room)
        modules = sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")
        assert sorted(re.findall(r"`(\w+)`", text)) == modules
    assert len(rooms) == 8


def rows_of(lines: list[str]) -> list[list[str]]:
    """The cells of a Markdown table, without the line below its header."""
    rows = [[cell.strip() for cell in line.strip()[1:-1].split("|")] for line in lines]
    return rows[:1] + rows[2:]


def test_tables_with_a_source_are_those_of_the_result_file():
    sources = 0
    for text in TEXTS:
        for number, file, columns, table in re.findall(
            r"<!-- table (\d) of (\S+?\.md)(?:: (.+))? -->\n((?:\|.*\n)+)", text
        ):
            tables = re.findall(r"(?:^\|.*\n)+", (ROOT / file).read_text(), re.M)
            published = rows_of(tables[int(number) - 1].splitlines())
            wanted = columns.split(", ") if columns else published[0]
            places = [published[0].index(name) for name in wanted]
            assert rows_of(table.splitlines()) == [[row[i] for i in places] for row in published]
            sources += 1
    assert sources >= 3
