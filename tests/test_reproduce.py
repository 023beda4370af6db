"""The study in one command: what it refuses, and the whole of it on a small phantom."""

import csv
import json
from pathlib import Path

import pytest
from conftest import load_script, run
from PIL import Image
from small_studies import plan

import common.study.plan
from common.errors import UserError
from common.files import write_json
from common.study.plan import data_steps
from common.study.steps import check_flags


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"folds": (5,)}, "--folds 5: with --num-folds 5 they run from 0 to 4"),
        ({"seeds": ()}, "at least one"),
        ({"size": 64}, "--size has no effect with --data"),
        ({"pair": "kd_t1_s1"}, "--pair has no effect without --study"),
        ({"pair": "kd_t2_s1"}, "--pair has no effect without --study"),
        ({"labelled": (10,)}, "--labelled has no effect without --study labels"),
        ({"study": "labels", "labelled": (0,)}, "--labelled is"),
        ({"study": "labels", "labelled": ()}, "--labelled needs at least one value"),
        ({"num_folds": 4}, "--num-folds has no effect without --folds"),
        ({"thickness": 5.0, "data": None, "input": Path("v")}, "--thickness has no effect with"),
        ({"distilled": "--control other-image"}, "makes another model of it: see --study"),
        ({"study": "terms", "distilled": "--temperature 1"}, "--temperature is set by the study"),
        ({"study": "scales", "models": ("student_s1",), "data": None}, "--models has no effect"),
        ({"students": "--lr '1"}, "No closing quotation"),
        ({"students": "--seed 5"}, "--seed is set by the study"),
        ({"distilled": "--share student"}, "--share is for both arms: see --students"),
        ({"study": "labels", "students": "--share=train"}, "--share=train is set by the study"),
        ({"t1": "--name=x"}, "--name=x is set by the study"),
        ({"study": "contrast", "distilled": "--contrast image"}, "--contrast is set by the study"),
        ({"study": "multitask", "t1": "--reconstruction-weight 1"}, "--reconstruction-weight is"),
    ],
)
def test_what_cannot_be_meant_is_refused(reproduce, settings, words):
    with pytest.raises(UserError, match=words):
        plan(reproduce, **settings)


@pytest.mark.parametrize(
    ("students", "words"),
    [
        ("--wings 2", "student_s1/train.py: unrecognized arguments: --wings 2"),
        ("--epochs many", "student_s1/train.py: argument --epochs: invalid int value: 'many'"),
        ("--epochs 0", "student_s1/train.py: --epochs is 0"),
    ],
)
@pytest.mark.parametrize("study", ["grid", "labels"])
def test_a_wrong_flag_shows_before_anything_runs(reproduce, study, students, words):
    with pytest.raises(UserError) as error:
        check_flags(plan(reproduce, study=study, students=students))
    assert words in str(error.value)


def test_a_part_of_the_study_has_a_folder_of_its_own(reproduce):
    settings = [{}, {"models": ("student_s1", "kd_t1_s1")}, {"study": "scales"}]
    settings += [{"study": "labels", "labelled": (10, 50), "weights": "last"}]
    parts = [reproduce.Config(**s).part() for s in settings]
    assert parts == ["", "kd_t1_s1-student_s1", "scales_kd_t1_s1", "labels_kd_t1_s1_10-50_last"]


def test_help_among_the_flags_to_pass_on_is_no_crash(reproduce, capsys):
    with pytest.raises(UserError, match="student_s1/train.py: --help asks, and trains nothing"):
        check_flags(plan(reproduce, models=("student_s1",), students="--help"))
    assert not capsys.readouterr().out


def test_slices_whose_volumes_are_gone_are_not_called_outdated(reproduce, tmp_path, monkeypatch):
    monkeypatch.setattr(common.study.plan, "ROOT", tmp_path)
    data = tmp_path / "data" / "slices_n"
    write_json(tmp_path / "data" / "slices_n.json", {})
    for name, settings in (("gone", {"input": tmp_path / "gone"}), ("phantom_n", {"patients": 5})):
        write_json(data / "dataset.json", {"name": name})
        with pytest.raises(UserError, match="is gone, of which .* --data .*slices_n --name n"):
            data_steps(reproduce.Config(name="n", **settings))
    # Slices of other volumes are left to `check_outdated`.
    with pytest.raises(UserError, match="--input .*gone does not exist"):
        data_steps(reproduce.Config(name="n", input=tmp_path / "gone"))
    write_json(data / "dataset.json", {"name": "Task09_Spleen"})
    assert len(data_steps(reproduce.Config(name="n", patients=5))[1]) == 3


# The whole of it


def test_the_study_runs_and_takes_up_where_it_stopped(repo):
    flags = ("--quick", "--patients", 6, "--thickness", 20, "--size", 32, "--name", "tiny")
    short = ("--t2", "--depth 1 --epochs 1")
    command = (*flags, *short, "--students", "--epochs 1", "--models", "kd_t2_s1")
    first = run(repo, "reproduce.py", *command)
    folder = repo / "results" / "tiny" / "kd_t2_s1"
    table = (folder / "table.md").read_text()
    assert table in first
    rows = {row["model"]: row for row in csv.DictReader((folder / "table.csv").open())}
    assert list(rows) == ["T2", "S1", "KD(T2,S1)"]
    gain = float(rows["KD(T2,S1)"]["dice_mean"]) - float(rows["S1"]["dice_mean"])
    assert float(rows["KD(T2,S1)"]["gain_mean"]) == pytest.approx(100 * gain, abs=1e-6)
    pictures = ("curves", "comparison", "gains", "patients", "cost", "errors", "repairs", "terms")
    for picture in pictures:
        assert Image.open(folder / f"{picture}.png").width > 300
    (folder / "table.md").unlink()
    (repo / "kd_t2_s1/runs/tiny-s0/summary.json").unlink()
    again = run(repo, "reproduce.py", *command)
    assert again.count("done before") == 3 + 3 * 3 - 1
    assert (folder / "table.md").read_text() == table
    device = run(repo, "reproduce.py", *command, "--device", "cpu")
    assert device.count("done before") == 3 + 3 * 3  # the same results, wherever they are made
    more = ("--students", "--epochs 2", "--models", "student_s1")
    refused = run(repo, "reproduce.py", *flags, *short, *more, code=1)
    assert "made with other flags" in refused and "student_s1/runs/tiny-s0" in refused
    # The last pair, trained here with the teacher that the study has left.
    last = load_script(repo / "kd_t2_s2/train.py")
    teacher = repo / "teacher_t2_transunet/runs/tiny-s0/best.pt"
    last.main(last.Config(data=repo / "data/slices_tiny", epochs=1, device="cpu", teacher=teacher))
    about = json.loads((repo / "kd_t2_s2/runs/default/config.json").read_text())
    assert about["parameters"] == 227_233 and about["objective_parameters"] > 0
