"""Gains paired by patient, fold and seed."""

import numpy as np
import pytest

from common.evaluation.comparison import (
    by_patient,
    compare,
    dice_interval,
    gain,
    in_words,
    pooled,
    reference,
    seed_spread,
)
from common.evaluation.metrics import overlap_scores
from common.files import write_csv, write_json


def result(subset="test", weights="best", **dice):
    """A summary with these Dice scores, of patients with 100 true and 100 predicted pixels."""
    counts = {"predicted_pixels": 100, "true_pixels": 100}
    each = {
        case: {"dice": d, "overlap_pixels": round(100 * (d or 0)), **counts}
        for case, d in dice.items()
    }
    cases = {
        case: {"dice": own["dice"], "per_class": {"spleen": own}} for case, own in each.items()
    }
    about = {"classes": ["spleen"], "per_class": {"spleen": {}}}
    return {"subset": subset, "weights": weights, "cases": cases, **about}


def test_a_patient_is_averaged_over_its_runs_first():
    runs = [result(a=0.5, b=0.9), result(a=0.7, b=None), result(c=None)]
    assert by_patient(runs) == {"a": pytest.approx(0.6), "b": 0.9, "c": None}


def test_pooled_counts_are_summed_over_all_runs():
    runs = [result(a=0.5), result(a=0.7, b=0.9)]
    assert pooled(runs) == overlap_scores(210, 300, 300)


def runs(*found):
    """Results by fold and seed: of one split, seeds 0, 1, ..."""
    return {(None, seed): one for seed, one in enumerate(found)}


def test_a_gain_is_paired_by_patient_and_the_patient_is_the_unit():
    base = [result(a=0.5, b=0.6, c=0.7), result(a=0.5, b=0.6, c=0.7)]
    mine = [result(a=0.6, b=0.6, c=0.9), result(a=0.4, b=0.8, c=0.9)]
    found = gain(runs(*mine), runs(*base))
    assert found["mean"] == pytest.approx(10)  # a 0, b +10, c +20
    assert found["n"] == 3 and found["better"] == 2
    assert found["std"] == pytest.approx(10)
    assert found["low"] is None


def test_the_interval_of_a_gain_lies_in_its_range():
    plain = result(**{f"p{i}": 0.5 for i in range(8)})
    mine = result(**{f"p{i}": 0.5 + 0.01 * i for i in range(8)})
    found = gain(runs(mine), runs(plain))
    assert 0 < found["low"] < 3.5 < found["high"] < 7 and found["mean"] == pytest.approx(3.5)
    assert in_words(found).startswith("+3.5 [+")


def test_the_spread_over_seeds_joins_the_folds_first():
    """Seed 0 gains 10 and 20 points in its folds, seed 1 gains 30 and 20: means 15 and 25."""
    base, mine = {}, {}
    gained = {(0, 0): 0.1, (1, 0): 0.2, (0, 1): 0.3, (1, 1): 0.2}
    for (fold, seed), points in gained.items():
        base[fold, seed] = result(**{f"p{fold}": 0.5})
        mine[fold, seed] = result(**{f"p{fold}": 0.5 + points})
    assert seed_spread(mine, base) == pytest.approx(np.std([15, 25], ddof=1))
    assert seed_spread({(0, 0): mine[0, 0]}, {(0, 0): base[0, 0]}) is None


def test_a_gain_is_paired_by_training():
    """Seeds that move both models alike leave no spread in the gain; those of one alone do not
    count."""
    patients = {f"p{i}": 0.5 + 0.01 * i for i in range(8)}
    plain, mine = ({}, {})
    for seed, shift in enumerate((0.0, 0.1, -0.2)):
        plain[None, seed] = result(**{p: v + shift for p, v in patients.items()})
        mine[None, seed] = result(**{p: v + shift + 0.03 for p, v in patients.items()})
    mine[None, 9] = result(**dict.fromkeys(patients, 0.0))
    found = gain(mine, plain)
    assert [found[name] for name in ("mean", "low", "high")] == pytest.approx([3, 3, 3])
    assert gain(runs(plain[None, 0]), {(1, 0): plain[None, 0]}) is None  # another fold


def test_the_interval_of_a_dice_is_wider_with_the_trainings_spread():
    patients = {f"p{i}": 0.5 + 0.01 * i for i in range(8)}
    same = {(None, s): result(**patients) for s in range(3)}
    apart = {
        (None, s): result(**{p: v + 0.1 * (s - 1) for p, v in patients.items()}) for s in range(3)
    }
    (mean, low, high), (other, lower, higher) = map(dice_interval, (same, apart))
    assert mean == pytest.approx(0.535) and other == pytest.approx(mean)
    assert lower < low - 0.05 < mean < high + 0.05 < higher
    assert dice_interval(runs(result(a=0.5))) == (0.5, None, None)
    assert dice_interval(runs(result(a=None))) is None


def test_an_undefined_score_leaves_its_patient_out_of_the_gain():
    found = gain(runs(result(a=0.8, b=None)), runs(result(a=0.7, b=0.0)))
    assert found["n"] == 1 and found["mean"] == pytest.approx(10) and found["low"] is None
    assert in_words(found) == "+10.0"


def test_other_patients_another_subset_or_another_epoch_give_no_gain():
    assert gain(runs(result(a=0.8)), runs(result(b=0.7))) is None
    assert gain(runs(result("val", a=0.8)), runs(result(a=0.7))) is None
    assert gain(runs(result(weights="last", a=0.8)), runs(result(a=0.7))) is None
    assert gain(runs(result(a=None)), runs(result(a=None))) is None


def test_compare_names_what_is_not_one_recipe(tmp_path):
    for name, changes in (("plain", {}), ("same", {"device": "cuda"}), ("other", {"lr": 0.1})):
        recipe = {"epochs": 60, "lr": 0.01, "device": "cpu", **changes}
        write_json(tmp_path / name / "config.json", {"config": recipe | {"name": name}})
        write_json(tmp_path / name / "summary.json", result(a=0.7, b=0.5))
    plain, mine = tmp_path / "plain" / "summary.json", result(a=0.8, b=0.5)
    assert "RECIPE" not in compare(mine, "gain", plain, "", tmp_path / "same")
    line = compare(mine, "gain", plain, "", tmp_path / "other")
    assert line.endswith("NOT ONE RECIPE: lr 0.01, here 0.1")
    assert "RECIPE" not in compare(mine, "gain", plain, "", tmp_path / "none")
    write_csv(tmp_path / "same" / "log.csv", [{"epoch": 1}, {"epoch": 2}])
    line = compare(mine, "gain", plain, "", tmp_path / "same")
    assert line.endswith("NOT ONE RECIPE: 2 of 60 epochs here")
    few = {"config": {"lr": 0.01}, "patients": {"train": ["a"]}, "size": 64}
    for name, changes in (("plain", {"patients": {"train": ["a", "b"]}, "size": 128}), ("few", {})):
        write_json(tmp_path / name / "config.json", few | changes)
    line = compare(mine, "gain", plain, "", tmp_path / "few")
    assert "slices of 128 pixels, here 64 pixels, 2 training cases, here 1, not the same" in line


def test_what_a_distilled_run_is_compared_with_by_itself(tmp_path):
    """Its own teacher; the plain student of its own name, or else the one called default."""

    def scores(stage, name):
        return tmp_path / stage / "runs" / name / "summary.json"

    folder = tmp_path / "kd_t1_s1" / "runs" / "wide"
    assert reference(folder, "student_s1") == scores("student_s1", "default")
    write_json(scores("student_s1", "wide"), {})
    assert reference(folder, "student_s1") == scores("student_s1", "wide")
    write_json(scores("teacher_t1_unet", "large"), {})
    teacher = scores("teacher_t1_unet", "large").with_name("best.pt")
    write_json(folder / "config.json", {"config": {"teacher": str(teacher)}})
    assert reference(folder, "teacher_t1_unet") == scores("teacher_t1_unet", "large")
    copy = tmp_path / "elsewhere" / "best.pt"
    write_json(folder / "config.json", {"config": {"teacher": str(copy)}})
    assert reference(folder, "teacher_t1_unet") == copy.with_name("summary.json")
    moved = "/elsewhere/teacher_t1_unet/runs/large/best.pt"
    write_json(folder / "config.json", {"config": {"teacher": moved}})
    assert reference(folder, "teacher_t1_unet") == scores("teacher_t1_unet", "large")
    scores("student_s1", "wide").unlink()  # not scored yet: the line will say so
    assert reference(folder, "student_s1") == scores("student_s1", "wide")


def test_compare_says_it_in_one_line(tmp_path):
    write_json(tmp_path / "s.json", result(a=0.7, b=0.5))
    line = compare(result(a=0.8, b=0.5), "gain", tmp_path / "s.json")
    assert line.startswith("gain: +5.0 Dice points") and "1 of 2" in line
    assert "run inference.py" in compare(result(a=1), "gain", tmp_path / "none.json")
    write_json(tmp_path / "t.json", {**result(a=0.7, b=0.5), "stage": "student_s2"})
    line = compare(result(a=0.8, b=0.5), "gain", tmp_path / "t.json", "student_s1")
    assert line.endswith("t.json is of student_s2, not of student_s1")
    write_json(tmp_path / "t.json", {**result(a=0.7, b=0.5), "stage": "kd_t1_s1", "run": "alone"})
    mine = {**result(a=0.8, b=0.5), "stage": "kd_t1_s1"}  # another run of its own stage
    line = compare(mine, "gain over plain S1", tmp_path / "t.json", "student_s1")
    assert line.startswith("gain over kd_t1_s1 (alone): +5.0 Dice points")
    empty = result(a=None, b=None)
    assert "no patient has a score in both" in compare(empty, "gain", tmp_path / "s.json")
    other = compare(result(c=1), "gain", tmp_path / "s.json")
    assert "not compared" in other and "of 2 test patients, best epoch, this run of 1 test" in other
    (tmp_path / "config.json").write_text("{}")
    assert "not a summary.json" in compare(result(a=1), "gain", tmp_path / "config.json")
