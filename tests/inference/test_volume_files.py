"""What inference.py --volume may replace, and what it must leave alone."""

import numpy as np
import pytest
import small_volumes
from small_volumes import ct, go, save

from common.errors import UserError
from common.files import read_json

trained = small_volumes.trained  # the fixture


def test_nothing_that_was_given_is_replaced(trained, tmp_path):
    path = save(tmp_path / "in/ct.nii.gz", ct())
    whole = path.read_bytes()
    for settings in (
        {"output": path},
        {"output": path.parent},
        {"output": tmp_path / "in/../in", "ground_truth": path},
        {"output": tmp_path / "t.nii.gz", "ground_truth": save(tmp_path / "t.nii.gz", ct())},
    ):
        with pytest.raises(UserError, match="would be replaced"):
            go(trained, path, **settings)
    assert path.read_bytes() == whole


def test_nothing_beside_the_mask_is_replaced_either(trained, tmp_path):
    path = save(tmp_path / "in/seg_probability.nii.gz", ct())
    go(trained, path, output=tmp_path / "in/seg.nii.gz")
    with pytest.raises(UserError, match="seg_probability.nii.gz would be replaced"):
        go(trained, path, output=tmp_path / "in/seg.nii.gz", probabilities=True)
    (tmp_path / "in/dataset.json").write_text("{}")
    with pytest.raises(UserError, match="dataset.json would be replaced"):
        go(trained, path, output=tmp_path / "in/dataset.nii.gz")
    save(tmp_path / "two/a.nii.gz", ct())
    save(tmp_path / "two/a_probability.nii.gz", ct())
    with pytest.raises(UserError, match="a_probability.nii.gz would be replaced"):
        go(trained, tmp_path / "two", probabilities=True)


def test_a_mask_is_replaced_only_if_an_inference_wrote_it(trained, tmp_path):
    path = save(tmp_path / "in/ct.nii.gz", ct())
    expert = save(tmp_path / "labels/ct.nii.gz", (ct() > 60).astype(np.uint8))
    whole = expert.read_bytes()
    with pytest.raises(UserError, match="labels/ct.nii.gz would be replaced"):
        go(trained, path.parent, output=expert.parent)
    assert expert.read_bytes() == whole
    folder = go(trained, path)
    go(trained, path)  # again: it is its own
    save(folder / "ct.nii.gz", (ct() > 0).astype(np.uint8))  # mended by hand
    with pytest.raises(UserError, match="volumes/ct.nii.gz would be replaced"):
        go(trained, path)


def test_what_an_interruption_leaves_does_not_stop_the_next(trained, tmp_path, monkeypatch):
    path, masks = save(tmp_path / "in/ct.nii.gz", ct()), tmp_path / "masks"

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("common.inference.segment_volumes.figures.sheet", stop)
        go(trained, path.parent, output=masks, probabilities=True)
    assert (masks / "ct.nii.gz").exists() and not (masks / "ct.png").exists()
    go(trained, path.parent, output=masks)
    assert {p.name for p in masks.iterdir()} == {"ct.nii.gz", "ct.json", "ct.png", "volumes.csv"}
    assert read_json(masks / "ct.json")["files"].keys() == {"ct.nii.gz", "ct.png"}


def test_a_table_whose_only_volume_fails_half_made_does_not_stop_the_next(
    trained, tmp_path, monkeypatch
):
    path, masks = save(tmp_path / "in/ct.nii.gz", ct()), tmp_path / "masks"
    go(trained, path.parent, output=masks)
    with monkeypatch.context() as patch, pytest.raises(UserError, match="1 of 1 volumes"):
        patch.setattr("common.inference.segment_volumes.figures.sheet", lambda *_: 1 / 0)
        go(trained, path.parent, output=masks)
    assert not (masks / "volumes.csv").exists()
    go(trained, path.parent, output=masks)
    assert (masks / "volumes.csv").exists()


def test_of_the_maps_there_only_its_own_are_removed(trained, tmp_path):
    path, masks = save(tmp_path / "in/ct.nii.gz", ct()), tmp_path / "masks"
    go(trained, path, output=masks, probabilities=True)
    expert = save(masks / "ct_probability_expert.nii.gz", ct())
    go(trained, path, output=masks)
    assert expert.exists() and not (masks / "ct_probability.nii.gz").exists()
    theirs = save(masks / "ct_probability.nii.gz", ct())
    go(trained, path, output=masks)
    assert theirs.exists()
    with pytest.raises(UserError, match="ct_probability.nii.gz would be replaced"):
        go(trained, path, output=masks, probabilities=True)
    beside = save(tmp_path / "in/seg_probability.nii.gz", ct())
    for _ in range(2):  # the second time the mask is its own
        go(trained, beside, output=tmp_path / "in/seg.nii.gz")
    assert beside.exists()
