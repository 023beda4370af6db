"""A finished run on its slices."""

import pytest
import small_trainings
import torch
from small_trainings import masks_of

from common.errors import UserError
from common.files import read_json, write_json
from common.inference.reconstruction import hidden_input
from common.inference.trained_run import open_run, ready
from common.models.unet import student_s1
from common.settings import InferenceConfig

finished = small_trainings.finished  # the fixture


def test_folding_batch_size_and_layout_do_not_change_the_masks(finished):
    stage, slices = finished
    first = masks_of(stage, data=slices)
    assert first and any(mask.any() for mask in first.values())
    for other in ({"fuse": False}, {"batch_size": 3}, {"channels_last": False}):
        again = masks_of(stage, data=slices, **other)
        assert first.keys() == again.keys()
        wrong = sum(int((first[name] != again[name]).sum()) for name in first)
        assert wrong <= 3, other  # pixels whose probability is 0.5 to the last digit


def test_the_last_epoch_s_weights_are_the_trained_ones_and_not_those_of_the_best(finished):
    stage, slices = finished
    folder = stage.parent / "runs" / "default"
    states = [
        ready(student_s1(), open_run(config, str(stage)), config).state_dict()
        for config in (
            InferenceConfig(data=slices, device="cpu", fuse=False, weights=weights)
            for weights in ("best", "last")
        )
    ]
    best, last = (torch.load(folder / f"{name}.pt", weights_only=True) for name in ("best", "last"))
    for name, value in states[0].items():
        assert torch.equal(value, best["model"][name])
        assert torch.equal(states[1][name], last["objective"][f"model.{name}"])
    assert last["epoch"] == 2
    assert masks_of(stage, data=slices, weights="last")
    assert read_json(folder / "inference.json")["epoch"] == 2


def test_a_subset_replaces_another(finished):
    stage, slices = finished
    splits = read_json(slices / "splits.json")
    for subset in ("test", "val", "all"):
        names = masks_of(stage, data=slices, subset=subset, overlays=2)
        cases = {name.rpartition("_")[0] for name in names}
        everyone = {*splits["train"], *splits["val"], *splits["test"]}
        assert cases == (everyone if subset == "all" else set(splits[subset]))
        overlays = stage.parent / "runs" / "default" / "overlays"
        assert len(list(overlays.iterdir())) == 2
    assert 0 < read_json(overlays.parent / "inference.json")["latency_ms"] < 1000


def test_new_masks_have_no_old_scores_beside_them(finished):
    stage, slices = finished
    folder = stage.parent / "runs" / "default"
    scores = [folder / name for name in ("summary.json", "metrics_per_case.csv", "report.html")]
    for path in scores:
        path.write_text("of the masks before")
    masks_of(stage, data=slices, weights="last")
    assert (folder / "inference.json").exists() and not any(path.exists() for path in scores)


def test_slices_of_another_plane_are_refused_and_those_of_another_window_noted(
    finished, own_slices, capsys
):
    stage, _ = finished
    config = InferenceConfig(data=own_slices, device="cpu")
    info = read_json(own_slices / "dataset.json")
    open_run(config, str(stage))
    assert "note" not in capsys.readouterr().out
    write_json(own_slices / "dataset.json", {**info, "window": [-1000, 1000]})
    open_run(config, str(stage))
    assert "best.pt was trained on slices of another window" in capsys.readouterr().out
    write_json(own_slices / "dataset.json", {**info, "axis": "coronal"})
    with pytest.raises(UserError, match="was trained on axial slices; those of .* are coronal"):
        open_run(config, str(stage))


def test_slices_of_another_size_are_refused(finished, own_slices):
    stage, _ = finished
    text = (own_slices / "dataset.json").read_text()
    (own_slices / "dataset.json").write_text(text.replace('"size": 32', '"size": 64'))
    with pytest.raises(UserError, match="32-pixel slices"):
        open_run(InferenceConfig(data=own_slices, device="cpu"), str(stage))


def test_data_that_is_no_data_set_is_answered_with_the_flag_for_it(finished, tmp_path):
    stage, _ = finished
    for name, said in (
        ("pictures/sub/a.JPG", "predicted with --images instead of --data.*import_pairs.py"),
        ("cts/a.nii.gz", "segmented with --volume instead of --data"),
        ("other/a.txt", "Name it with --data"),
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x")
        for given in (path, tmp_path / name.split("/")[0]):
            with pytest.raises(UserError, match=f"No data set in .*{said}"):
                open_run(InferenceConfig(data=given, device="cpu"), str(stage))


def test_hidden_patches_depend_on_the_slice_s_name_alone():
    images = torch.rand(3, 1, 32, 32)
    together = hidden_input(images, ["a", "b", "c"], 0.25)
    alone = hidden_input(images[1:2], ["b"], 0.25)
    assert torch.equal(together[1:2], alone)
    assert not torch.equal(hidden_input(images[1:2], ["c"], 0.25), alone)
    assert (alone == 0).float().mean().item() == pytest.approx(0.25, abs=0.15)
