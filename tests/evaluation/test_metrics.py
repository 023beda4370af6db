"""Dice and the like against closed forms and references."""

import numpy as np
import pytest
import torch
from monai.metrics import DiceMetric, MeanIoU
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from common.dataset.slices import read_set
from common.errors import UserError
from common.evaluation.comparison import by_patient, gain, pooled
from common.evaluation.figures import save_picture
from common.evaluation.metrics import (
    count,
    mean_and_spread,
    overlap_scores,
    per_case,
    summary,
)
from common.evaluation.score_run import flat, score_run, table
from common.files import read_csv, read_json, write_csv, write_json
from common.inference.reconstruction import mse, psnr, ssim
from common.models.unet import predicted


def test_counts_give_the_scores_of_monai():
    torch.manual_seed(0)
    prediction, truth = (torch.rand(6, 20, 20) > 0.6).long(), (torch.rand(6, 20, 20) > 0.5).long()
    counts = count(prediction, truth)[:, 0].tolist()
    ours = [overlap_scores(*c) for c in counts]
    pair = prediction[:, None].float(), truth[:, None].float()
    dice, iou = DiceMetric(reduction="none")(*pair), MeanIoU(reduction="none")(*pair)
    assert np.allclose([s["dice"] for s in ours], dice[:, 0])
    assert np.allclose([s["iou"] for s in ours], iou[:, 0])


def test_closed_form_and_the_identity_of_dice_and_iou():
    scores = overlap_scores(overlap=30, predicted=40, true=60)
    assert scores == {"dice": 0.6, "iou": 30 / 70, "recall": 0.5, "precision": 0.75}
    assert scores["dice"] == pytest.approx(2 * scores["iou"] / (1 + scores["iou"]))


def test_a_missed_class_is_zero_and_nothing_against_nothing_is_undefined():
    assert set(overlap_scores(0, 0, 50).values()) == {0}
    assert overlap_scores(0, 50, 0) == {"dice": 0, "iou": 0, "recall": None, "precision": 0}
    assert set(overlap_scores(0, 0, 0).values()) == {None}
    assert mean_and_spread([0.5, None, 1.0]) == {
        "mean": 0.75,
        "std": pytest.approx(np.std([0.5, 1.0], ddof=1)),
        "n": 2,
        "undefined": 1,
    }


def test_patients_first_then_pooled():
    cases = ["b", "a", "b", "c"]
    counts = np.array([[10, 10, 10], [1, 2, 2], [0, 10, 30], [0, 0, 0]])
    counts = counts[:, None]  # one class
    each = per_case(cases, counts, ["spleen"])
    assert {c: r["dice"] for c, r in each.items()} == {"a": 0.5, "b": 20 / 60, "c": None}
    both = summary(cases, counts, ["spleen"])
    assert both["per_patient"]["dice"]["mean"] == pytest.approx((0.5 + 20 / 60) / 2)
    assert both["per_patient"]["dice"]["undefined"] == 1
    assert both["pooled"]["dice"] == pytest.approx(22 / 64)


def test_prediction_is_probability_above_one_half():
    logits = torch.tensor([[-0.1, 0.1, 0.4, 0.6]]).view(1, 1, 1, 4)
    assert predicted(logits).flatten().tolist() == [0, 1, 1, 1]
    assert predicted(torch.cat([torch.zeros_like(logits), logits], 1)).sum() == 3


def test_counts_of_several_classes_do_not_mix():
    prediction, truth = torch.tensor([[[1, 2, 2, 0]]]), torch.tensor([[[1, 1, 2, 2]]])
    assert count(prediction, truth, classes=2).tolist() == [[[1, 1, 2], [1, 2, 2]]]


def test_several_classes_are_scored_each_and_as_their_mean():
    cases, classes = ["a", "a", "b"], ["liver", "spleen"]
    counts = np.array(
        [[[3, 4, 4], [0, 0, 0]], [[1, 2, 2], [1, 2, 2]], [[0, 0, 0], [0, 5, 0]]]  # slice, class
    )
    rows = per_case(cases, counts, classes)
    assert rows["a"]["per_class"]["liver"]["dice"] == 8 / 12
    assert rows["a"]["per_class"]["spleen"]["dice"] == 0.5
    assert rows["a"]["dice"] == pytest.approx((8 / 12 + 0.5) / 2)
    assert rows["b"]["per_class"]["liver"]["dice"] is None  # neither there nor predicted
    assert rows["b"]["dice"] == 0  # the spleen that is not there
    assert flat(rows["a"])["dice spleen"] == 0.5 and "per_class" not in flat(rows["a"])
    whole = summary(cases, counts, classes)
    assert whole["per_patient"]["dice"]["mean"] == pytest.approx((8 / 12 + 0.5) / 4)
    assert whole["per_class"]["liver"]["per_patient"]["dice"]["n"] == 1
    assert whole["per_class"]["spleen"]["pooled"]["dice"] == 2 / 9
    assert whole["pooled"]["dice"] == pytest.approx((8 / 12 + 2 / 9) / 2)
    study = [{"cases": rows, "classes": classes}]
    assert pooled(study)["dice"] == pytest.approx(whole["pooled"]["dice"])
    assert by_patient(study, class_name="spleen") == {"a": 0.5, "b": 0.0}
    better = per_case(cases, np.where(counts == 5, 0, counts), classes)  # without that spleen
    won = gain(
        {RUN: {**KIND, "cases": better}}, {RUN: {**KIND, "cases": rows}}, class_name="spleen"
    )
    assert won["n"] == 1 and won["mean"] == 0  # b has no score to compare any more


RUN = (None, 0)  # fold and seed
KIND = {"subset": "test", "weights": "best", "classes": ["liver", "spleen"]}


def test_reconstruction_scores_equal_scikit_image():
    rng = np.random.default_rng(0)
    a = rng.random((40, 37)).astype(np.float32)
    b = np.clip(a + rng.normal(0, 0.1, a.shape), 0, 1).astype(np.float32)
    x, y = torch.from_numpy(a)[None, None], torch.from_numpy(b)[None, None]
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    expected = structural_similarity(a, b, data_range=1.0, **settings)
    assert ssim(x, y).item() == pytest.approx(expected, abs=1e-4)
    assert psnr(x, y).item() == pytest.approx(peak_signal_noise_ratio(a, b, data_range=1), abs=1e-3)
    assert mse(x, y).item() == pytest.approx(((a - b) ** 2).mean(), abs=1e-6)
    assert ssim(x, x).item() == pytest.approx(1, abs=1e-4)


@pytest.fixture
def small_run(tmp_path):
    """A data set of patient `p` with slices 9, 10 and 100, and a run that predicted them."""
    data, run = tmp_path / "data", tmp_path / "stage" / "runs" / "a"
    rows = []
    for k, index in enumerate((9, 10, 100)):
        mask = np.zeros((8, 8), np.uint8)
        mask[k : k + 2] = 255
        save_picture(data / "images" / f"p_{index:03d}.png", mask)
        save_picture(data / "masks" / f"p_{index:03d}.png", mask)
        save_picture(run / "predictions" / f"p_{index:03d}.png", mask)
        rows.append({"case": "p", "slice": index, "foreground": 16, "source": ""})
    write_csv(data / "manifest.csv", rows)
    write_json(data / "dataset.json", {"size": 8, "classes": ["spleen"]})
    about = {"subset": "test", "weights": "best", "cases": ["p"], "parameters": 5, "epoch": 1}
    about |= {"latency_ms": 2.0, "classes": ["spleen"]}
    write_json(run / "inference.json", about)
    return run, data


def test_a_run_is_scored_by_name(small_run):
    run, data = small_run
    result = score_run(run, read_set(data))
    assert result["pooled"]["dice"] == 1 and result["latency_ms"] == 2
    row = result["cases"]["p"]
    own = row["per_class"]["spleen"]
    assert row["slices"] == 3 and own["overlap_pixels"] == own["true_pixels"] > 0
    (line,) = read_csv(run / "metrics_per_case.csv", ("case", "dice", "true_pixels"))
    assert float(line["dice"]) == row["dice"] == own["dice"] and "dice spleen" not in line
    assert "1.000" in table(result) and "no test" not in table(result)
    assert table({**result, "subset": "all"}).endswith("trained on: not a test")
    assert (run / "metrics_per_case.csv").exists() and (run / "summary.json").exists()


def test_patients_whose_slices_take_turns_are_not_mixed_up(small_run):
    run, data = small_run
    rows = []
    for index, case in enumerate(("p", "q", "p", "q")):
        mask = np.zeros((8, 8), np.uint8)
        mask[: 2 + 2 * (case == "q")] = 255
        for folder in (data / "images", data / "masks", run / "predictions"):
            found = mask * 0 if (folder.name, case) == ("predictions", "q") else mask
            save_picture(folder / f"{case}_{index:03d}.png", found)
        rows.append({"case": case, "slice": index, "foreground": 16, "source": ""})
    for name in ("p_009", "p_010", "p_100"):
        (run / "predictions" / f"{name}.png").unlink()
    write_csv(data / "manifest.csv", rows)
    write_json(run / "inference.json", read_json(run / "inference.json") | {"cases": ["p", "q"]})
    cases = score_run(run, read_set(data))["cases"]
    assert (cases["p"]["dice"], cases["q"]["dice"]) == (1, 0)
    assert [cases[c]["per_class"]["spleen"]["true_pixels"] for c in "pq"] == [32, 64]


def test_missing_and_superfluous_partners_are_named(small_run):
    run, data = small_run
    (run / "predictions" / "p_010.png").rename(run / "predictions" / "p_011.png")
    with pytest.raises(UserError) as error:
        score_run(run, read_set(data))
    assert "p_010: in the data set, not predicted" in str(error.value)
    assert "p_011: predicted, not in the data set" in str(error.value)


def test_an_unfinished_inference_is_not_scored(small_run):
    run, data = small_run
    write_json(run / "inference.json", {"cases": ["p"]})
    with pytest.raises(UserError, match="incomplete. Run inference.py again"):
        score_run(run, read_set(data))
    (run / "inference.json").unlink()
    with pytest.raises(UserError, match="Run inference.py first"):
        score_run(run, read_set(data))
