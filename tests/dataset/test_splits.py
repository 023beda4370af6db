"""Splits by patient: disjoint, nested, and no model judged on whom it has seen."""

import json
from itertools import combinations, pairwise

import numpy as np
import pytest

from common.dataset.slices import Slice, SliceSet, read_set
from common.dataset.splits import (
    check_patients,
    make_splits,
    read_splits,
    split_patients,
    with_labels,
)
from common.errors import UserError
from common.files import write_json

PARTS = ("train", "val", "test")


@pytest.mark.parametrize("count", [3, 4, 10, 41])
def test_shares_of_labels_are_nested_and_half_is_the_split_s_own(count):
    splits = make_splits([f"p{i}" for i in range(count)], seed=3)
    shares = [set(with_labels(splits, p)["student"]) for p in (5, 10, 25, 50, 75, 100)]
    assert all(shares) and shares[3] == set(splits["student"])
    assert shares[5] == set(splits["train"])
    assert all(few <= many for few, many in zip(shares, shares[1:], strict=False))
    assert with_labels(splits, 5) == with_labels(splits, 5)
    assert {**with_labels(splits, 5), "student": 0} == {**splits, "student": 0}


@pytest.mark.parametrize("count", [3, 4, 10, 41])
def test_splits_are_disjoint_by_patient_and_cover_everybody(count):
    cases = [f"p{i}" for i in range(count)]
    splits = make_splits(cases, seed=3)
    assert sorted(sum((splits[p] for p in PARTS), [])) == sorted(cases)
    assert all(splits[p] for p in PARTS)
    assert set(splits["student"]) <= set(splits["train"])
    assert len(splits["student"]) == -(-len(splits["train"]) // 2)
    assert splits == make_splits(cases[::-1], seed=3)


def test_41_patients_are_split_70_10_20():
    splits = make_splits([f"p{i}" for i in range(41)])
    assert [len(splits[p]) for p in PARTS] == [29, 4, 8]


def test_names_that_differ_in_capitals_alone_are_refused():
    with pytest.raises(UserError, match="only in capitals.*: P1 and p1"):
        make_splits(["p1", "P1", "p2", "p3"])
    with pytest.raises(UserError, match="how accents are stored"):
        make_splits(["p\u00e9", "pe\u0301", "a", "b"])
    assert make_splits(["stra\u00dfe", "strasse", "a", "b"])["train"]
    with pytest.raises(UserError, match="only in capitals.*: A_1 and a_1"):
        split_patients({"A_1": "one", "a_1": "one", "b_1": "two", "c_1": "three"}, 0, 0, 0)


@pytest.mark.parametrize(("count", "folds"), [(30, 5), (41, 5), (7, 7), (9, 2)])
def test_over_all_folds_every_patient_is_tested_once(count, folds):
    cases = [f"p{i}" for i in range(count)]
    made = [make_splits(cases, 1, folds, fold) for fold in range(folds)]
    assert sorted(sum((s["test"] for s in made), [])) == sorted(cases)
    for s in made:
        assert not set(s["test"]) & (set(s["train"]) | set(s["val"]))
        assert s["train"] and s["val"]


def test_folds_overlap_as_random_halves_do():
    """30 patients, five folds: of the 18 that two folds may both train on, each is one of the 11 of
    24 student patients of either with a chance of (11/24)^2, and one of the 3 of 24 in val."""
    names = [f"p{i}" for i in range(30)]
    shared = {"student": [], "val": []}
    for seed in range(20):
        folds = [make_splits(names, seed, 5, fold) for fold in range(5)]
        for part, counts in shared.items():
            counts += [len({*a[part]} & {*b[part]}) for a, b in combinations(folds, 2)]
        assert len({p for s in folds for p in s["student"]}) >= 24
        assert len({p for s in folds for p in s["val"]}) >= 8
    assert np.mean(shared["student"]) == pytest.approx(18 * (11 / 24) ** 2, abs=0.5)
    assert np.mean(shared["val"]) == pytest.approx(18 * (3 / 24) ** 2, abs=0.15)


def test_few_labels_are_drawn_anew_in_each_fold_and_nested_within_it():
    folds = [make_splits([f"p{i}" for i in range(100)], 0, 5, fold) for fold in range(5)]
    few = [[{*with_labels(s, p)["student"]} for p in (5, 10, 25, 50, 100)] for s in folds]
    for shares, splits in zip(few, folds, strict=True):
        assert all(a < b for a, b in pairwise(shares))
        assert shares[3] == {*splits["student"]} and shares[4] == {*splits["train"]}
    # 7 of 70 patients each: two folds share 7 * 7 / 70 * 3 / 4 of them, on average.
    shared = [len(a[1] & b[1]) for a, b in combinations(few, 2)]
    assert np.mean(shared) < 2 and len(set().union(*(shares[1] for shares in few))) > 25


def test_impossible_folds_are_refused():
    for folds, fold in ((1, 0), (5, 5), (9, 0)):
        with pytest.raises(UserError, match="--num-folds"):
            make_splits(["a", "b", "c", "d"], 0, folds, fold)


def test_a_splits_file_that_is_not_there_is_told_from_those_that_are(own_slices):
    with pytest.raises(UserError, match=r"mine.json does not exist. There are splits.json: see"):
        read_splits(read_set(own_slices), "mine.json", ("train",))


def test_a_leak_in_splits_json_is_refused(own_slices):
    data = read_set(own_slices)
    splits = json.loads((own_slices / "splits.json").read_text())
    splits["test"].append(splits["train"][0])
    splits["student"].append("nobody")
    write_json(own_slices / "splits.json", splits)
    with pytest.raises(UserError) as error:
        read_splits(data, "splits.json", ("train",))
    assert f"{splits['train'][0]} is in train and in test" in str(error.value)
    assert "nobody is not in train" in str(error.value)


def test_two_volumes_of_one_patient_on_two_sides_are_a_leak(own_slices):
    splits = json.loads((own_slices / "splits.json").read_text())
    info = json.loads((own_slices / "dataset.json").read_text())
    pair = splits["val"][0], splits["test"][0]
    write_json(own_slices / "dataset.json", {**info, "patients": dict.fromkeys(pair, "p1")})
    with pytest.raises(UserError, match=f"{pair[0]} is in val and {pair[1]}, of the same patient"):
        read_splits(read_set(own_slices), "splits.json", ("train",))


def test_a_model_is_not_judged_on_patients_that_it_has_seen(tmp_path):
    trained = {"patients": {"train": ["a", "b"], "val": ["c"]}}
    splits = {"train": ["a"], "val": ["c"], "test": ["d"]}
    rows = [Slice(case, 0, 1) for case in ("a", "b", "c", "d", "d_2")]
    data = SliceSet(tmp_path, {"patients": {"d_2": "d"}}, rows)
    check_patients(trained, data, splits, ("val", "test"), tmp_path)
    with pytest.raises(UserError, match=r"test patients.*\(c\)"):
        check_patients(trained, data, {**splits, "test": ["c", "d"]}, ("test",), tmp_path)
    with pytest.raises(UserError, match=r"val patients.*\(b\)"):
        check_patients(trained, data, {**splits, "val": ["b"]}, ("val", "test"), tmp_path)
    taught = {"patients": {**trained["patients"], "teacher": ["a", "b", "d"]}}  # d by its teacher
    with pytest.raises(UserError, match=r"test patients.*\(d\)"):
        check_patients(taught, data, splits, ("test",), tmp_path)
    chose = {"patients": {**trained["patients"], "teacher_val": ["d"]}}  # it chose the teacher
    check_patients(chose, data, {**splits, "val": ["d"]}, ("val",), tmp_path)
    with pytest.raises(UserError, match=r"test patients.*\(d\)"):
        check_patients(chose, data, splits, ("test",), tmp_path)
    # Another volume of a patient that it was trained on.
    earlier = {"patients": {"train": ["d_1"], "val": ["c"]}, "patient_of": {"d_1": "d"}}
    with pytest.raises(UserError, match=r"test patients.*\(d_2\)"):
        check_patients(earlier, data, {**splits, "test": ["d_2"]}, ("test",), tmp_path)


def test_a_split_of_something_else_than_names_is_refused(own_slices):
    data = read_set(own_slices)
    for parts in ({"train": [["a"]]}, {"train": "a"}, {"train": [1]}):
        write_json(own_slices / "splits.json", {"val": [], "test": [], "student": [], **parts})
        with pytest.raises(UserError, match="splits.json lacks one of the lists of cases"):
            read_splits(data, "splits.json", ())
