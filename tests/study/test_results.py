"""Tables and figures of a study, from made-up summaries."""

import csv

import numpy as np
import pytest
from PIL import Image

from common.dataset.slices import Slice, SliceSet
from common.errors import UserError
from common.evaluation.embedding import Embedding
from common.evaluation.error_types import KINDS
from common.evaluation.figures import save_picture
from common.evaluation.metrics import overlap_scores
from common.evaluation.surface_distances import SURFACE_SCORES
from common.files import write_json
from common.study import charts, results
from common.study.results import add_up
from common.study.tables import markdown, write_study


def summary(parameters, *dice):
    """Patients with 100 true and 100 predicted pixels: Dice is the overlap in percent."""
    cases = {}
    for i, d in enumerate(dice):
        counts = round(100 * d), 100, 100
        names = ("overlap_pixels", "predicted_pixels", "true_pixels")
        found = overlap_scores(*counts)
        own = dict(zip(names, counts, strict=True)) | found
        cases[f"p{i}"] = {**found, "per_class": {"spleen": own}}
    about = {"subset": "test", "weights": "best", "parameters": parameters}
    about |= {"per_patient": {}, "per_class": {"spleen": {}}, "classes": ["spleen"]}
    return {**about, "cases": cases}


RESULTS = {
    "T1": {(None, 0): summary(1000, 0.9, 0.8, 0.7)},
    "S1": {(None, 0): summary(50, 0.5, 0.6, 0.7), (None, 1): summary(50, 0.6, 0.6, 0.6)},
    "KD(T1,S1)": {(None, 0): summary(50, 0.6, 0.7, 0.8), (None, 1): summary(50, 0.7, 0.7, 0.7)},
}


def test_markdown_is_aligned():
    text = markdown([{"a": "x", "bb": "1"}, {"a": "long", "bb": ""}])
    assert text.splitlines() == ["| a    | bb |", "| ---- | -- |", "| x    | 1  |", "| long |    |"]


def test_the_table_is_what_the_summaries_say(tmp_path):
    gains = write_study(tmp_path, RESULTS, {"KD(T1,S1)": "S1"})
    assert list(gains) == ["KD(T1,S1)"]
    assert gains["KD(T1,S1)"]["mean"] == pytest.approx(10)
    text = (tmp_path / "table.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| KD(T1,S1)"))
    assert "0.700 +- 0.050" in row and "+10.0 over S1" in row and "3 of 3" in row
    pooled = [line for line in text.splitlines() if line.startswith("| S1")][1]
    assert "0.600" in pooled and "0.715" in pooled  # measured, and the thesis's
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert [r["model"] for r in rows] == list(RESULTS)
    assert float(rows[2]["dice_mean"]) == pytest.approx(0.7) and rows[2]["runs"] == "2"
    assert "3 test patients (one split; seeds 0, 1; best epoch)" in text
    assert float(rows[2]["gain_seed_std"]) == pytest.approx(0, abs=1e-6)
    assert float(rows[2]["gain_mean"]) == pytest.approx(10) and rows[0]["gain_mean"] == ""


def test_chances_are_corrected_for_the_models_of_the_table(tmp_path):
    rng = np.random.default_rng(0)
    dice = rng.uniform(0.4, 0.6, 8)
    found = {"S1": {(None, 0): summary(50, *dice)}}
    for k, gain in enumerate((0.02, 0.05, 0.1)):
        found[f"KD {k}"] = {(None, 0): summary(50, *(dice + gain + rng.normal(0, 0.03, 8)))}
    gains = write_study(tmp_path, found, {f"KD {k}": "S1" for k in range(3)})
    p = sorted(row["p"] for row in gains.values())
    steps = np.maximum.accumulate([3 * p[0], 2 * p[1], p[2]])
    assert sorted(row["holm"] for row in gains.values()) == pytest.approx(steps.clip(max=1))
    text = (tmp_path / "table.md").read_text()
    assert "| p (Holm)" in text and "| Wilcoxon p" in text and "One training of each model" in text
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert float(rows[1]["gain_holm"]) == pytest.approx(gains["KD 0"]["holm"])
    assert float(rows[1]["gain_wilcoxon"]) == pytest.approx(gains["KD 0"]["wilcoxon"])


SIX = (0.5, 0.6, 0.7, 0.4, 0.55, 0.65)


def test_few_trainings_in_one_split_are_pointed_out(tmp_path):
    for seeds, words in ((1, "One training of each"), (2, "Two trainings of each"), (3, "")):
        runs = {(None, seed): summary(50, *SIX) for seed in range(seeds)}
        write_study(tmp_path, {"S1": runs, "KD": runs}, {"KD": "S1"})
        text = (tmp_path / "table.md").read_text()
        assert (words in text) if words else "trainings of each" not in text
    folds = {(fold, seed): summary(50, *SIX) for fold in (0, 1) for seed in (0, 1)}
    few = {(None, seed): summary(50, *SIX[:5]) for seed in (0, 1)}  # too few for an interval
    for runs in (folds, few):
        write_study(tmp_path, {"S1": runs, "KD": runs}, {"KD": "S1"})
        assert "trainings of each" not in (tmp_path / "table.md").read_text()


def test_without_the_thesis_s_models_there_is_no_column_for_them(tmp_path):
    write_study(tmp_path, {"none": RESULTS["S1"], "dense": RESULTS["KD(T1,S1)"]}, {})
    text = (tmp_path / "table.md").read_text()
    assert "thesis)" not in text and "spread over seeds" not in text


def test_volumes_have_a_table_of_distances(tmp_path):
    flat = {"S1": {(None, 0): summary(50, 0.5, 0.6)}, "T1": {(None, 0): summary(50, 0.7, 0.8)}}
    for result, hd95 in ((flat["S1"][None, 0], (4.0, 8.0)), (flat["T1"][None, 0], (2.0, None))):
        for row, value in zip(result["cases"].values(), hd95, strict=True):
            row |= dict.fromkeys(SURFACE_SCORES, 0.5) | {"hd95_mm": value}
        result["per_patient"] = dict.fromkeys(SURFACE_SCORES)
    write_study(tmp_path, flat, {})
    text = (tmp_path / "table.md").read_text()
    assert "HD95 mm" in text and "6.000 +- 2.828" in text and "2.000 " in text
    flat["S1"][None, 0]["per_patient"] = {}  # one patient was no whole volume
    write_study(tmp_path, flat, {})
    assert "HD95" not in (tmp_path / "table.md").read_text()


def test_models_with_different_patients_are_not_compared(tmp_path):
    other = {(None, 0): summary(50, 0.5)}
    with pytest.raises(UserError, match="different patients"):
        write_study(tmp_path, {"S1": other, "KD(T1,S1)": RESULTS["KD(T1,S1)"]}, {"KD(T1,S1)": "S1"})


def test_a_run_that_was_scored_otherwise_is_named(tmp_path):
    run = tmp_path / "student_s1" / "runs" / "n-s0"
    for other in ({"subset": "val"}, {"weights": "last"}):
        write_json(run / "summary.json", {**summary(50, 0.5), **other})
        with pytest.raises(UserError, match="student_s1/runs/n-s0 was last scored on .*remove its"):
            add_up(tmp_path, {"S1": {(None, 0): run}}, {}, None)


def test_labels_are_drawn_from_the_patients_means(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(charts, "labels", lambda _, curves: drawn.update(curves))
    points = {"S1": ("S1", 50), "KD(T1,S1)": ("KD", 50), "T1": ("T1", 100)}
    results._draw_labels(tmp_path / "labels.png", RESULTS, points)
    assert drawn["S1"][50] == (pytest.approx(0.6), None, None)  # three patients: no interval
    assert drawn["KD"].keys() == {50} and drawn["T1"].keys() == {100}


def test_errors_are_counted_over_all_runs_and_repairs_by_pairs_of_runs(tmp_path, monkeypatch):
    data = SliceSet(
        tmp_path, {"classes": ["class"], "size": 8}, [Slice("a", 0, 4), Slice("b", 0, 4)]
    )
    truth, island = np.zeros((2, 8, 8), dtype=np.uint8)
    truth[1:3, 1:3] = 255
    island[6:8, 6:8] = 255
    masks = {"S1": truth | island, "KD": truth}
    runs = {model: {(None, s): tmp_path / model / str(s) for s in (0, 1)} for model in masks}
    for name in ("a_000", "b_000"):
        save_picture(tmp_path / "masks" / f"{name}.png", truth)
        for model, found in runs.items():
            for run in found.values():
                save_picture(run / "predictions" / f"{name}.png", masks[model])
                write_json(run / "inference.json", {"cases": ["a", "b"]})
    seen = {}
    monkeypatch.setattr(charts, "errors", lambda _, found: seen.update(errors=found))
    monkeypatch.setattr(charts, "repairs", lambda _, found: seen.update(repairs=found))
    results._draw_errors(tmp_path, runs, {"KD": "S1"}, data)
    assert seen["errors"]["S1"]["false island"] == 100 and not any(seen["errors"]["KD"].values())
    base, repaired, broken = seen["repairs"]["KD"]
    assert base == "S1" and repaired["false island"] == 100 and not any(broken.values())


def test_panels_without_a_model_are_not_shown(tmp_path, monkeypatch):
    kinds, cases = np.tile([0, 1, 2], 20), np.repeat(["a", "b"], 30)
    drawn = Embedding(np.random.default_rng(0).normal(size=(60, 4)), kinds, cases)
    shown = []
    monkeypatch.setattr(
        charts, "save_figure", lambda _, f: shown.append(sum(a.get_visible() for a in f.axes))
    )
    for count in (1, 3, 5, 8):
        charts.embeddings(None, dict.fromkeys("abcdefgh"[:count], drawn))
    assert shown == [1, 3, 5, 8]


def test_figures_are_written(tmp_path):
    gain = {"mean": 3.0, "low": -1.0, "high": 7.0}
    alone = {"mean": -3.0, "low": None, "high": None}
    charts.gains(tmp_path / "gains.png", {"KD(T1,S1)": ("S1", gain), "x": ("S1", alone)})
    pair = ({"a": 0.5, "b": None, "c": 0.7}, {"a": 0.6, "b": 0.3, "c": 0.4})
    charts.patients(tmp_path / "patients.png", {("S1", "KD(T1,S1)"): pair, ("S2", "x"): pair})
    row = {"dice": 0.7, "parameters": 57297, "latency_ms": 1.5}
    charts.cost(tmp_path / "cost.png", {"S1": row, "T1": {**row, "parameters": 4e7}})
    log = [{"epoch": str(e), "segmentation": "0.5", "val_dice": "0.4"} for e in (1, 2, 3)]
    charts.curves(tmp_path / "curves.png", {"S1": [log, log[:2]], "a variant": [log]})
    charts.terms(tmp_path / "terms.png", {"KD(T1,S1)": [log, log[:2]]})
    shares = dict(zip(KINDS, (30.0, 10.0, 12.0, 5.0), strict=True))
    charts.errors(tmp_path / "errors.png", {"S1": shares, "KD(T1,S1)": shares})
    rng = np.random.default_rng(0)
    kinds, cases = np.tile([0, 1, 2], 20), np.repeat(["a", "b"], 30)
    drawn = Embedding(rng.normal(size=(60, 4)), kinds, cases)
    charts.repairs(tmp_path / "repairs.png", {"KD(T1,S1)": ("S1", shares, shares)})
    charts.embeddings(tmp_path / "embedding.png", dict.fromkeys("abcde", drawn))
    points = {100: (0.8, None, None), 5: (0.4, 0.3, 0.5)}
    charts.labels(tmp_path / "labels.png", {"S1": points})
    names = ("terms", "errors", "repairs", "embedding", "labels")
    for name in ("gains", "patients", "cost", "curves", *names):
        pixels = np.asarray(Image.open(tmp_path / f"{name}.png").convert("L"))
        assert pixels.shape[1] > 400 and pixels.std() > 5
