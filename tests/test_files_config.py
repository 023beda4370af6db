"""Files and the command line."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ROOT

from common.config import launch, option, parse, to_json
from common.errors import UserError
from common.files import (
    atomic,
    check_run,
    new_run,
    read_csv,
    read_json,
    replace_folder,
    unfinished,
    write_csv,
    write_json,
    write_text,
)
from common.settings import DistillationConfig, MetricsConfig, TrainConfig


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), atomic(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_csv_and_json_come_back(tmp_path):
    write_csv(tmp_path / "t.csv", [{"a": 1, "b": "x,y"}, {"a": 2, "b": ""}])
    assert read_csv(tmp_path / "t.csv", ("a",)) == [{"a": "1", "b": "x,y"}, {"a": "2", "b": ""}]
    write_json(tmp_path / "t.json", {"a": [1, None]})
    assert read_json(tmp_path / "t.json") == {"a": [1, None]}


def test_a_byte_order_mark_does_not_count(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n1,2\n", encoding="utf-8-sig")
    assert read_csv(tmp_path / "t.csv", ("a", "b")) == [{"a": "1", "b": "2"}]
    (tmp_path / "t.json").write_text("[1]", encoding="utf-8-sig")
    assert read_json(tmp_path / "t.json") == [1]


@pytest.mark.parametrize(
    ("content", "word"),
    [("a,b\n1\n", "line 2"), ("a\n1\n", "no column b"), ("a,b\n1,2,3\n", "line 2")],
)
def test_a_torn_csv_is_named(tmp_path, content, word):
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(UserError, match=word):
        read_csv(tmp_path / "t.csv", ("b",))


@pytest.mark.parametrize("content", [None, "{", b"\xff\xfe\x00"])
def test_a_missing_or_broken_json_is_named(tmp_path, content):
    if content is not None:
        write = Path.write_bytes if isinstance(content, bytes) else Path.write_text
        write(tmp_path / "t.json", content)
    with pytest.raises(UserError, match="t.json"):
        read_json(tmp_path / "t.json")


def test_an_existing_run_is_kept_unless_told_otherwise(tmp_path):
    run = tmp_path / "runs" / "a"
    check_run(run, resume=False, overwrite=False)
    write_json(run / "config.json", {})
    with pytest.raises(UserError, match="--resume.*--name.*--overwrite"):
        check_run(run, resume=False, overwrite=False)
    with pytest.raises(UserError, match="exclude each other"):
        check_run(run, resume=True, overwrite=True)
    with pytest.raises(UserError, match="other holds no run to resume; there is a"):
        check_run(tmp_path / "runs" / "other", resume=True, overwrite=False)
    (run / ".last.77.tmp.pt").write_text("half")
    new_run(run, keep=True)
    assert [p.name for p in run.iterdir()] == ["config.json"]
    new_run(run, keep=False)
    assert not list(run.iterdir())


def test_a_folder_is_replaced_whole(tmp_path):
    for name in ("new", "old"):
        write_text(tmp_path / name / "file", name)
    replace_folder(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old" / "file").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["old"]


@dataclass
class Example(TrainConfig):
    scales: tuple[str, ...] = option(("a", "b"), "which", choices=("a", "b", "c"))
    teacher: Path | None = option(None, "where")


def test_the_command_line_is_the_dataclass():
    config = parse(Example, ["--lr", "0.5", "--no-amp", "--scales", "c", "--teacher", "x/y"])
    assert (config.lr, config.amp, config.scales) == (0.5, False, ("c",))
    assert config.teacher == Path.cwd() / "x/y" and config.epochs == TrainConfig.epochs
    assert to_json(config)["teacher"] == str(Path.cwd() / "x/y")
    assert parse(Example, ["--scales"]).scales == ()


def test_a_resumed_run_keeps_the_flags_that_it_was_begun_with(tmp_path):
    flags = ["--name", "a", "--epochs", "7", "--scales", "c", "--no-amp", "--teacher", "x/y"]
    begun = parse(Example, [*flags, "--seed", "3"])
    (tmp_path / "data").mkdir()
    begun.data = tmp_path / "data"
    write_json(tmp_path / "runs" / "a" / "config.json", {"config": to_json(begun) | {"gone": 1}})
    again = parse(Example, ["--name", "a", "--resume"], stage=tmp_path)
    begun.resume = True
    assert again == begun
    longer = parse(Example, ["--name", "a", "--resume", "--epochs", "9"], stage=tmp_path)
    assert (longer.epochs, longer.seed) == (9, 3)
    with pytest.raises(SystemExit):
        parse(Example, ["--name", "a", "--resume", "--scales", "z"], stage=tmp_path)
    # What is no config.json of this script is named.
    for wrong in ({"config": {"epochs": "many"}}, {"config": {"scales": ["z"]}}, {"config": None}):
        write_json(tmp_path / "runs" / "odd" / "config.json", wrong)
        with pytest.raises(UserError, match="odd/config.json"):
            parse(Example, ["--name", "odd", "--resume"], stage=tmp_path)
    # A new run, and one of another name, start from the defaults.
    for words in (["--name", "a"], ["--name", "b", "--resume"]):
        assert parse(Example, words, stage=tmp_path).epochs == TrainConfig.epochs


@pytest.mark.parametrize(
    "wrong", [["--nonsense"], ["--lr", "fast"], ["--scales", "z"], ["--l", "1"]]
)
def test_wrong_flags_exit_with_2(wrong, capsys):
    with pytest.raises(SystemExit) as exit:
        parse(Example, wrong)
    assert exit.value.code == 2


@pytest.mark.parametrize(
    "wrong",
    [["--lr", "-1"], ["--seed", "-1"], ["--cache-mb", "-1"], ["--foreground-fraction", "1.5"]],
)
def test_values_outside_their_limits_are_named(wrong):
    with pytest.raises(UserError, match=f"{wrong[0]} is {wrong[1]}"):
        parse(Example, wrong)


@pytest.mark.parametrize("name", ["", "..", "a/b", "/tmp"])
def test_a_run_name_cannot_leave_the_runs_folder(name):
    with pytest.raises(UserError, match="plain folder name"):
        parse(Example, ["--name", name])


def test_a_user_error_is_one_line_and_exit_1(monkeypatch, capsys):
    def main(config):
        raise UserError("the file is missing")

    monkeypatch.setattr("sys.argv", ["script"])
    with pytest.raises(SystemExit) as exit:
        launch(main, Example)
    assert exit.value.code == "error: the file is missing"  # printed to stderr with exit code 1


def test_a_path_is_whole_and_a_link_keeps_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "here").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "far" / "here")
    there = [parse(Example, ["--data", name]).data for name in ("link", "link/../x", ".", "..")]
    root = tmp_path.resolve()
    assert there == [root / "link", root / "far" / "x", root, root.parent]


def test_a_reader_that_has_gone_is_no_fault(tmp_path):
    script = tmp_path / "long" / "script.py"
    script.parent.mkdir()
    script.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from common.config import launch\nfrom common.settings import TrainConfig\n"
        "def main(config):\n    print('line\\n' * 100_000)\n"
        "launch(main, TrainConfig)\n"
    )
    command = f"{sys.executable} {script} 2>{tmp_path}/errors | head -n 1"
    subprocess.run(command, shell=True, check=True, env={**os.environ, "PYTHONUNBUFFERED": ""})
    assert (tmp_path / "errors").read_text() == ""


def test_a_flag_of_version_1_is_taken_by_its_new_name(capsys):
    config = parse(DistillationConfig, ["--share=train", "--relation", "2"])
    assert config.train_on == "train" and config.affinity == 2
    notes = capsys.readouterr().err
    assert "--share is called --train-on now" in notes and "--affinity" in notes
    with pytest.raises(SystemExit):
        parse(MetricsConfig, ["--share", "train"])


def test_a_run_that_stopped_early_is_told(tmp_path):
    assert unfinished(tmp_path) == ""
    write_json(tmp_path / "config.json", {"config": {"epochs": 3}})
    assert unfinished(tmp_path) == ""  # nothing is known of its epochs
    for done, said in ((2, "2 of 3 epochs"), (3, "")):
        write_csv(tmp_path / "log.csv", [{"epoch": n} for n in range(1, done + 1)])
        assert unfinished(tmp_path) == said
