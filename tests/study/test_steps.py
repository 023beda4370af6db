"""Scripts in order: what is skipped, resumed, refused and rebuilt."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

from common.config import to_json
from common.errors import UserError
from common.files import read_json, write_json
from common.study import steps
from common.study.steps import Step, check_flags, check_outdated, check_settings, key, run_steps


@pytest.fixture
def scripts(tmp_path, monkeypatch):
    """Pretended scripts in folders of their own: they leave their file, or fail before or after
    they have begun to write."""
    calls, refused, broken = [], set(), set()

    def pretend(command, out):
        calls.append(" ".join(command))
        folder = tmp_path / command[0].split("/")[0]
        if command[0] in refused:
            return 1
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text("made")
        if command[0] in broken:
            return 1
        name = "best.pt" if "train" in command[0] else "summary.json"
        (folder / name).write_text("made")
        return 0

    monkeypatch.setattr(steps, "_run", pretend)
    return calls, refused, broken


def step(tmp_path, script, *flags, leaves="best.pt", **changes):
    folder = tmp_path / script.split("/")[0]
    return Step((script, *flags), folder / leaves, tmp_path / f"{folder.name}.json", **changes)


def test_colours_change_no_key_and_all_else_does(tmp_path):
    index = tmp_path / "dataset.json"
    one = Step(("a/train.py",), tmp_path / "l", tmp_path / "r", (index,))
    keys = []
    for time, info in enumerate(({"size": 8}, {"size": 8, "colours": ["#ffffff"]}, {"size": 9})):
        index.write_text(json.dumps(info))  # by hand: not as write_json sets it
        os.utime(index, (time, time))
        keys.append(key(one))
    assert keys[0] == keys[1] != keys[2]


def test_a_change_reaches_what_stands_on_it_and_no_more(tmp_path, scripts):
    calls, refused, broken = scripts
    split = tmp_path / "splits.json"

    def go(epochs=1, overwrite=True):
        calls.clear()
        a = step(tmp_path, "a/train.py", "--epochs", str(epochs), inputs=(split,))
        b = step(tmp_path, "b/train.py")
        c = step(tmp_path, "c/train.py", needs=(a,))
        d = step(tmp_path, "c/metrics.py", leaves="summary.json", needs=(c, b))
        run_steps([a, b, c, d], tmp_path / "log.txt", overwrite)
        return list(calls)

    broken.add("c/train.py")
    with pytest.raises(UserError, match=r"c/train.py failed.*log\.txt"):
        go()
    assert calls == ["a/train.py --epochs 1", "b/train.py", "c/train.py"]
    broken.clear()
    assert go() == ["c/train.py --resume", "c/metrics.py"]
    assert go() == []
    with pytest.raises(UserError, match="made with other flags") as error:
        go(2, overwrite=False)
    assert "/a" in str(error.value) and "/c" in str(error.value) and "/b" not in str(error.value)
    assert (tmp_path / "a" / "best.pt").exists()
    changed = ["a/train.py --epochs 2", "c/train.py", "c/metrics.py"]
    assert go(2) == changed
    split.write_text("{}")
    assert go(2) == changed
    # Refused after a change, before it began: the old run is not resumed as the new one.
    refused.add("b/train.py")
    (tmp_path / "b.json").write_text('{"b/train.py": {"key": "another", "done": true}}')
    with pytest.raises(UserError, match="b/train.py failed"):
        go(2)
    refused.clear()
    assert go(2) == ["b/train.py"]


def test_a_run_made_by_hand_is_not_replaced(tmp_path, scripts):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.json").write_text("by hand")
    with pytest.raises(UserError, match="by hand"):
        check_outdated([step(tmp_path, "a/train.py")], overwrite=False)


def test_a_run_made_by_hand_meanwhile_is_not_replaced_either(tmp_path, monkeypatch):
    def first_then_by_hand(command, out):
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
        (tmp_path / "a" / "best.pt").write_text("made")
        (tmp_path / "b" / "config.json").write_text("by hand")
        return 0

    monkeypatch.setattr(steps, "_run", first_then_by_hand)
    with pytest.raises(UserError, match="by hand"):
        run_steps([step(tmp_path, f"{x}/train.py") for x in "ab"], tmp_path / "log.txt")
    assert (tmp_path / "b" / "config.json").read_text() == "by hand"


def test_a_default_that_has_changed_since_a_run_makes_it_another(tmp_path):
    """The key holds the flags given; what was not given is compared with the run's own record."""
    teacher, student = (
        step(tmp_path, f"{stage}/train.py") for stage in ("teacher_t1_unet", "student_s1")
    )
    distilled = step(tmp_path, "kd_t1_s1/train.py", needs=(teacher,))
    trainings = [teacher, student, distilled]
    settings = {s: to_json(config) for s, config in check_flags(trainings).items()}

    def made(step, **before):
        about = {"config": {**settings[step], **before}}
        write_json(step.leaves.parent / "config.json", about)
        write_json(step.record, {step.script: {"key": key(step), "done": True}})

    for training in trainings:
        made(training)
    check_settings(trainings, overwrite=False)
    made(distilled, prediction=0.25, epochs=3)
    with pytest.raises(UserError, match=r"epochs: 3 -> 100, prediction: 0\.25 -> ") as error:
        check_settings(trainings, overwrite=False)
    assert "student_s1" not in str(error.value) and "teacher_t1_unet" not in str(error.value)
    check_settings(trainings, overwrite=True)
    assert not distilled.known() and student.known() and teacher.known()
    made(distilled)
    made(teacher, lr=0.5)
    check_settings(trainings, overwrite=True)
    assert not distilled.known() and student.known() and not teacher.known()
    made(student, lr=0.5)  # of another key: not for this check to name
    write_json(student.record, {student.script: {"key": "another", "done": True}})
    check_settings([student], overwrite=False)
    with pytest.raises(UserError, match="made with other flags"):
        check_outdated([student], overwrite=False)


def test_a_step_that_leaves_nothing_has_failed(tmp_path, scripts):
    with pytest.raises(UserError, match="it left no"):
        run_steps([step(tmp_path, "a/train.py", leaves="other.pt")], tmp_path / "log.txt")


def test_output_goes_to_the_screen_and_to_one_log(tmp_path, capfd):
    script = tmp_path / "speak.py"
    script.write_text("import sys; print('to out'); print('to err', file=sys.stderr); sys.exit(3)")
    speak = Step((str(script),), tmp_path / "never", tmp_path / "record.json")
    for _ in range(2):
        with pytest.raises(UserError, match=r"exit code 3"):
            run_steps([speak], tmp_path / "log.txt")
    seen, log = capfd.readouterr().out, (tmp_path / "log.txt").read_text()
    for text in ("to out\n", "to err\n"):
        assert seen.count(text) == log.count(text) == 2
    assert not read_json(tmp_path / "record.json")[str(script)]["done"]


def test_a_script_does_not_outlive_the_study(tmp_path):
    """SIGTERM to reproduce.py alone: the running script ends with it."""
    script = tmp_path / "endless.py"
    script.write_text("import os, time; print(os.getpid(), flush=True); time.sleep(60)")
    study = tmp_path / "study.py"
    study.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from pathlib import Path\nfrom common.study.steps import Step, run_steps\n"
        f"here = Path({str(tmp_path)!r})\n"
        f"run_steps([Step(({str(script)!r},), here / 'x', here / 'r.json')], here / 'log.txt')\n"
    )
    process = subprocess.Popen([sys.executable, study], stdout=subprocess.PIPE, text=True)
    child = next(int(line) for line in process.stdout if line.strip().isdigit())
    process.terminate()
    assert process.wait(timeout=30) == 143
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
