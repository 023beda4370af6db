"""The data sets that the scripts write have their masks on their images."""

import nibabel as nib
import numpy as np
from conftest import ROOT, load_script
from PIL import Image
from small_shapes import centroid, disc

from common.evaluation.figures import save_picture


def lies_on_its_image(folder, size) -> float:
    """Mean distance of the mask's centre from its image's, in pixels of the data set."""
    shifts = []
    for path in sorted((folder / "masks").glob("*.png")):
        image, mask = (np.asarray(Image.open(folder / k / path.name)) for k in ("images", "masks"))
        if mask.any():
            shifts.append(centroid(image.astype(float)) - centroid(mask > 0))
    assert len(shifts) >= 8
    return np.abs(np.mean(shifts, axis=0)).max() * size


def test_pictures_are_imported_with_their_masks_in_place(tmp_path):
    rng = np.random.default_rng(0)
    for n in range(12):
        shape = disc(256, rng.uniform(90, 160, 2), rng.uniform(50, 80))
        save_picture(tmp_path / "images" / f"p{n}.png", shape * np.uint8(255))
        save_picture(tmp_path / "masks" / f"p{n}.png", shape * np.uint8(255))
    script, out = load_script(ROOT / "data_prep" / "import_pairs.py"), tmp_path / "set"
    folders = {"images": tmp_path / "images", "masks": tmp_path / "masks"}
    for size in (128, 64, 100):
        script.main(script.Config(**folders, output=out, size=size, overwrite=True))
        assert lies_on_its_image(out, size) < 0.05


def test_volumes_are_sliced_with_their_labels_in_place(tmp_path):
    rng = np.random.default_rng(0)
    views = [disc(256, rng.uniform(90, 160, 2), rng.uniform(50, 80)) for _ in range(12)]
    foreground = np.stack(views, axis=2)
    affine = np.diag([-0.8, -0.8, 5, 1])
    for name, voxels in (("images", foreground * 400 - 160), ("labels", foreground)):
        for case in "abc":
            moved = np.roll(voxels.astype(np.int16), ord(case), axis=2)
            path = tmp_path / name / f"{case}.nii.gz"
            path.parent.mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(moved, affine), path)
    script, out = load_script(ROOT / "data_prep" / "slice_nifti.py"), tmp_path / "set"
    patterns = {"input": tmp_path, "images": "images/*.nii.gz", "masks": "labels/*.nii.gz"}
    for size in (128, 100):
        script.main(script.Config(**patterns, output=out, size=size, overwrite=True, workers=1))
        assert lies_on_its_image(out, size) < 0.05


def test_a_class_that_is_too_small_for_the_size_is_told(tmp_path, capsys):
    """Calcifications of 2 pixels at 256, of which nothing is left at 16."""
    labels = np.zeros((256, 256, 6), np.uint8)
    labels[80:120, 80:120] = 1
    labels[180:182, 200:202, 1:5] = 2
    for kind, voxels in (
        ("images", np.random.default_rng(0).normal(40, 5, labels.shape)),
        ("labels", labels),
    ):
        for number, case in enumerate("abc"):
            path = tmp_path / kind / f"{case}.nii.gz"
            path.parent.mkdir(exist_ok=True)
            nib.save(
                nib.Nifti1Image((voxels + number * (kind == "images")).astype(np.int16), np.eye(4)),
                path,
            )
    script = load_script(ROOT / "data_prep" / "slice_nifti.py")
    flags = {
        "input": tmp_path,
        "images": "images/*.nii.gz",
        "masks": "labels/*.nii.gz",
        "workers": 1,
    }
    for size, told in ((16, True), (128, False)):
        script.main(
            script.Config(
                **flags, classes=("organ=1", "chalk=2"), output=tmp_path / f"{size}", size=size
            )
        )
        said = capsys.readouterr().out
        assert ("warning: chalk is too small to be seen in 12 of the 12 slices" in said) is told
        assert "organ is too small" not in said
    for number in range(6):
        save_picture(
            tmp_path / "2d/images" / f"p{number}.png", np.full((256, 256), 9 + number, np.uint8)
        )
        save_picture(
            tmp_path / "2d/masks" / f"p{number}.png", (labels[..., 2] == 2) * np.uint8(255)
        )
    pairs = load_script(ROOT / "data_prep" / "import_pairs.py")
    folders = {"images": tmp_path / "2d/images", "masks": tmp_path / "2d/masks", "size": 16}
    pairs.main(pairs.Config(**folders, output=tmp_path / "p"))
    assert "the foreground is too small to be seen in 6 of the 6" in capsys.readouterr().out
    for number in range(6):
        save_picture(tmp_path / "2d/masks" / f"p{number}.png", labels[..., 2])
    pairs.main(pairs.Config(**folders, output=tmp_path / "q", classes=("organ", "chalk")))
    said = capsys.readouterr().out
    assert "chalk is too small to be seen in 6 of the 6" in said and "organ is" not in said


def test_slices_of_an_earlier_version_are_made_again(tmp_path, monkeypatch):
    """A set that is there, of the same volumes with the same flags, but with masks of before."""
    foreground = np.stack([disc(64, (30, 30), 12)] * 9, axis=2)
    affine = np.diag([-0.8, -0.8, 5, 1])
    for name, voxels in (("images", foreground * 400 - 160), ("labels", foreground)):
        for n, case in enumerate("abc"):
            moved = np.roll(voxels.astype(np.int16), n, axis=0)
            path = tmp_path / name / f"{case}.nii.gz"
            path.parent.mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(moved, affine), path)
    script, out = load_script(ROOT / "data_prep" / "slice_nifti.py"), tmp_path / "set"
    flags = {"input": tmp_path, "images": "images/*.nii.gz", "masks": "labels/*.nii.gz"}
    config = script.Config(**flags, output=out, size=32, workers=1)
    with monkeypatch.context() as before:
        before.setattr(script, "VERSION", 1)
        script.main(config)
    mask = out / "masks" / "a_004.png"
    right = mask.read_bytes()
    save_picture(mask, np.zeros((32, 32), np.uint8))
    script.main(config)
    assert mask.read_bytes() == right
