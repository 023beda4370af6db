"""What a study plans: its arms, their flags and names, its folds, seeds and shares of labels."""

from pathlib import Path

import pytest
from conftest import PAIRS, ROOT, STAGES, load_script
from small_studies import plan

from common.config import parse
from common.dataset.slices import read_set
from common.dataset.splits import _check_shares, make_splits, write_splits
from common.errors import UserError
from common.files import read_json, write_json
from common.study.arms import SHARES, STUDIES, ablation, grid
from common.study.plan import steps_of, training_of
from common.study.steps import Step, check_flags, key


def test_the_grid_is_all_stages_teachers_first(reproduce):
    arms = grid(STAGES)
    assert [a.stage for a in arms][:2] == ["teacher_t1_unet", "teacher_t2_transunet"]
    assert {a.stage for a in arms} == set(STAGES) and len(arms) == 8
    labels = ["T1", "T2", "S1", "KD(T1,S1)", "KD(T2,S1)", "S2", "KD(T1,S2)", "KD(T2,S2)"]
    assert [a.label for a in arms] == labels


def test_a_pair_brings_its_teacher_and_its_plain_student(reproduce):
    arms = grid(("kd_t2_s1",))
    assert [a.stage for a in arms] == ["teacher_t2_transunet", "student_s1", "kd_t2_s1"]


def test_the_last_epoch_is_scored_with_the_same_trainings_and_in_tables_of_its_own(reproduce):
    config = reproduce.Config(data=Path("d"), models=("kd_t1_s1",), weights="last")
    assert config.part() == "kd_t1_s1_last"
    usual = reproduce.Config(data=Path("d"), models=("kd_t1_s1",))
    for arm in config.arms():
        last, best = (steps_of(training_of(arm, None, 0, c), c, c.data) for c in (config, usual))
        assert last[0].command == best[0].command
        assert last[1].command == (*best[1].command, "--weights", "last")


def test_every_seed_and_fold_has_its_runs_and_teachers_can_be_shared(reproduce):
    trainings = plan(reproduce, models=("kd_t1_s1",), seeds=(3, 4), folds=(0, 2))
    assert len(trainings) == 3 * 4 == len({s.leaves for s in trainings})
    shared = plan(reproduce, models=("kd_t1_s1",), seeds=(3, 4), folds=(0, 2), share_teachers=True)
    assert len(shared) == 2 * (1 + 2 + 2)
    last = shared[-1]
    assert last.leaves.parent.name == "n-f2of5-s4"
    assert last.command[last.command.index("--teacher") + 1].endswith("runs/n-f2of5-s3/best.pt")
    late = plan(reproduce, models=("kd_t1_s1",), teacher_weights="last")
    assert any("teacher_t1_unet/runs/n-s0/last.pt" in " ".join(step.command) for step in late)


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("study", STUDIES)
def test_an_ablation_s_flags_are_the_stage_s_and_its_runs_are_distinct(reproduce, study, pair):
    trainings = plan(reproduce, study=study, pair=pair)
    check_flags(trainings)
    assert len({key(s) for s in trainings}) == len({s.leaves for s in trainings}) == len(trainings)
    arms = ablation(study, pair)
    assert len({a.label for a in arms}) == len(arms)
    for arm in arms:
        assert (arm.teacher is None) == (arm.stage != pair)
        assert arm.base is None or arm.base in {a.label for a in arms}


def test_studies_of_one_name_share_their_runs(reproduce):
    by_name = {s.leaves: key(s) for s in plan(reproduce)}
    for study in STUDIES:
        found = {s.leaves: key(s) for s in plan(reproduce, study=study)}
        same = [name for name in found if name in by_name]
        assert len(same) == 3, study
        assert all(found[n] == by_name[n] for n in same)


def test_a_run_s_name_means_the_same_in_every_study(reproduce):
    found = {}
    for study in STUDIES:
        for step in plan(reproduce, study=study):
            assert found.setdefault(step.leaves, key(step)) == key(step), (study, step.leaves)


def test_the_same_training_has_one_name_in_all_studies(reproduce):
    found = {}
    for study in STUDIES:
        for step in plan(reproduce, study=study):
            name = step.command.index("--name")
            same = (*step.command[:name], *step.command[name + 2 :])
            assert found.setdefault(same, step.leaves) == step.leaves, study


def test_a_share_of_labels_has_its_split_and_as_many_steps(reproduce):
    settings = {"students": "--epochs 20", "t1": "--epochs 6", "folds": (1,)}
    trainings = plan(reproduce, study="labels", **settings)
    text = {s.leaves.parent: " ".join(s.command) for s in trainings}
    for percent, epochs in ((5, 200), (10, 100), (25, 40), (100, 10)):
        command = text[ROOT / f"student_s1/runs/n-f1of5-s0-l{percent}"]
        assert f"splits_fold1of5_labels{percent}.json" in command
        assert command.endswith(f"--epochs {epochs}")
    # Half of the labels is the grid's own runs.
    assert "splits_fold1of5.json" in text[ROOT / "student_s1/runs/n-f1of5-s0"]
    few = text[ROOT / "teacher_t1_unet/runs/n-f1of5-s0-l25"]
    assert "--train-on student" in few and few.endswith("--epochs 24")
    half = text[ROOT / "teacher_t1_unet/runs/n-f1of5-s0-l50"]
    assert "_labels50.json" in half and half.endswith("--epochs 12")  # of all labels: 6
    # Five arms and a small T1 a share; at 100 % nobody is without labels.
    assert len(trainings) == 1 + 4 * (5 + 1) + 3
    arms = ablation("labels", "kd_t1_s1")
    points = [(arm.curve, arm.percent) for arm in arms]
    assert all(arm.curve for arm in arms) and len(set(points)) == len(points)


def test_the_shares_of_labels_can_be_chosen(reproduce):
    few = plan(reproduce, study="labels", labelled=(10, 50))
    names = {s.leaves.parent.name for s in few if s.script.startswith("kd_")}
    ends = ("", "-alone", "-unlabelled", "-unlabelledalone")
    assert names == {f"n-s0{e}" for e in ends} | {f"n-s0-l10{e}" for e in ("", "n", "u", "un")}
    whole = {s.leaves: key(s) for s in plan(reproduce, study="labels")}
    assert all(whole[s.leaves] == key(s) for s in few)
    once, twice = (plan(reproduce, study="labels", labelled=s) for s in ((10,), (10, 10)))
    assert once == twice


def test_a_share_of_less_than_a_patient_is_refused(reproduce, own_slices):
    with pytest.raises(UserError, match="20 of them, or larger --labelled"):
        write_splits(own_slices, (), 5, {*SHARES})


def test_shares_of_labels_that_would_say_the_same_or_something_else_are_refused():
    names = [f"p{k:02}" for k in range(30)]
    patients = dict(zip(names, names, strict=True))
    splits = make_splits(names)  # 21 to train on
    for shares, words in (
        ({5, 6}, "of which 5 and 6 % are as many"),
        ({50, 98}, "of which 98 % are all"),
        ({4}, "4 % of which is less than one: this study needs 25 of them"),
    ):
        with pytest.raises(UserError, match=words):
            _check_shares(shares, splits, patients, Path("set"))
    few = {**splits, "student": splits["student"][:2]}
    with pytest.raises(UserError, match="21 training patients and 2 student patients; half"):
        _check_shares({100}, few, patients, Path("set"))
    _check_shares({5, 10, 25, 50, 100}, splits, patients, Path("set"))


def test_a_share_of_labels_and_every_fold_are_splits_of_the_same_patients(reproduce, own_slices):
    cases = sorted({s.case for s in read_set(own_slices).slices})
    half = cases[: (len(cases) - 1) // 2]
    splits = {"train": cases[:-2], "val": cases[-2:-1], "test": cases[-1:], "student": half}
    write_json(own_slices / "splits.json", splits)
    write_splits(own_slices, (), 5, {100})
    written = read_json(own_slices / "splits_labels100.json")
    assert written == {**splits, "student": splits["train"]}
    (own_slices / "splits.json").write_text('{"test": []}')
    with pytest.raises(UserError, match="lacks one of the lists"):
        write_splits(own_slices, (), 5, {100})
    write_splits(own_slices, (0, 1), 2, set())
    tested = [read_json(own_slices / f"splits_fold{k}of2.json")["test"] for k in (0, 1)]
    assert sorted(tested[0] + tested[1]) == cases


def test_a_study_s_own_terms_are_controlled_with_the_flags_given(reproduce):
    """The controls are of the recipe that is asked for, and weights 0 stays the plain student."""
    found = plan(reproduce, study="controls", distilled="--prediction 2 --recipe thesis")
    text = [" ".join(s.command) for s in found if s.script.startswith("kd_")]
    assert len(text) == 6 and all("--prediction 2 --recipe thesis" in line for line in text)


def test_an_arm_trains_what_its_label_says_whatever_else_is_given(reproduce):
    given = "--border 0.5 --channelwise 1 --affinity 3 --segmentation 0.4"
    terms = ("prediction", "channelwise", "border", "affinity")
    expected = {
        ("controls", "weights 0"): set(),
        ("scales", "encoder"): {"encoder"},
        ("scales", "the three scales"): {"encoder", "bottleneck", "decoder"},
        ("terms", "border"): {"border"},
        ("terms", "prediction map"): {"prediction"},
    }
    config_of = load_script(ROOT / "kd_t1_s1" / "train.py").Config
    for (study, label), on in expected.items():
        arm = next(a for a in ablation(study, "kd_t1_s1") if a.label == label)
        made = parse(config_of, [*given.split(), *arm.flags])
        scales = {s for s in made.scales if getattr(made, s)}
        assert {t for t in terms if getattr(made, t)} | scales == on, label
        assert made.segmentation == 1


def test_what_the_arms_share_is_not_given_to_one_of_them(reproduce):
    for flag in ("--epochs 3", "--lr 1e-3", "--no-augment", "--deep", "--unlabelled"):
        with pytest.raises(UserError, match="is for both arms|makes another model"):
            plan(reproduce, distilled=flag)


def test_a_study_to_choose_by_scores_validation_patients(reproduce):
    config = reproduce.Config(data=Path("d"), name="n", study="terms", subset="val")
    assert config.part() == "terms_kd_t1_s1_val"
    training = training_of(config.arms()[0], None, 0, config)
    predict = steps_of(training, config, Path("d"))[1]
    assert predict.command[-2:] == ("--subset", "val")


def test_more_flags_reach_the_trainings_they_are_for(reproduce):
    given = {"t1": "--width 8", "students": "--epochs 7", "distilled": "--prediction 0.1"}
    text = {s.command[0].split("/")[0]: " ".join(s.command) for s in plan(reproduce, **given)}
    assert [s for s in text if "--width 8" in text[s]] == ["teacher_t1_unet"]
    assert {s for s in text if "--epochs 7" in text[s]} == {"student_s1", "student_s2", *PAIRS}
    assert {s for s in text if "--prediction 0.1" in text[s]} == set(PAIRS)


def test_quick_adds_to_what_is_given(reproduce):
    config = reproduce.Config(quick=True, t1="--width 4", patients=7)
    assert config.t1 == f"{reproduce.QUICK['t1']} --width 4" and config.patients == 7
    assert config.name == "quick" and config.size == reproduce.QUICK["size"]


def test_neither_the_device_nor_the_place_of_the_clone_is_in_a_key(reproduce):
    one, other = (plan(reproduce, device=device) for device in ("cpu", "cuda"))
    assert [key(s) for s in one] == [key(s) for s in other]
    assert "cuda" in other[0].aside
    local = Step(("a/train.py", "--data", f"{ROOT}/data/x"), Path("l"), Path("r"))
    assert key(local) == key(Step(("a/train.py", "--data", "data/x"), Path("l"), Path("r")))
