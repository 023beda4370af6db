"""Affines that are sheared, oblique, in other units or none, and labels beside their image."""

import nibabel as nib
import numpy as np
import pytest
import small_volumes
from small_volumes import SIZE, ct, go

from common.dataset.cases import Case, problems_of, read_case, read_label
from common.dataset.checks import doubts, image_doubts, label_doubts
from common.dataset.geometry import between_planes, displacement, obliquity, tilt, voxel_ml
from common.dataset.nifti import read_volume
from common.errors import UserError
from common.files import read_json

trained = small_volumes.trained  # the fixture
LPS = np.diag([-0.8, -0.8, 2.5, 1])
LPS[:3, 3] = 50, 60, -400


def save(path, voxels, affine=LPS, unit="mm", pixdim=None):
    """A NIfTI file; `pixdim` replaces what its header says of the slices' distance."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units(unit)
    content = bytearray(image.to_bytes())
    if pixdim:
        content[88:92] = np.float32(pixdim).tobytes()
    path.write_bytes(content)
    return path


def sheared(degrees=25):
    affine = LPS.copy()
    affine[1, 2] = 2.5 * np.tan(np.radians(degrees))
    return affine


def turned(degrees, affine=LPS):
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.eye(4)
    turn[1:3, 1:3] = [[cosine, -sine], [sine, cosine]]
    return turn @ affine


def noisy(shape=(16, 16, 6), seed=0):
    """A body of 40 HU in air, both with noise."""
    voxels = np.full(shape, -1000.0)
    voxels[2:-2, 2:-2] = 40
    return (voxels + np.random.default_rng(seed).normal(0, 5, shape)).astype(np.int16)


def test_ml_of_a_sheared_volume_are_the_affine_s_determinant(trained, tmp_path, capsys):
    bright = np.count_nonzero(ct() > 60)
    for pixdim in (None, 2.5):  # the axis's length, or the distance of the slices
        path = save(tmp_path / "tilt.nii", ct(), sheared(), pixdim=pixdim)
        volume = read_volume(path)
        assert volume.voxel_ml == pytest.approx(0.8 * 0.8 * 2.5 / 1000)
        about = read_json(go(trained, path) / "tilt.json")
        assert about["per_class"]["spleen"]["volume_ml"] == pytest.approx(bright * 0.0016)
        assert about["per_class"]["spleen"]["length_mm"] == pytest.approx(9 * 2.5)
        assert "sheared by 25 degrees" in capsys.readouterr().out
    save(tmp_path / "other.nii", ct(), sheared(), pixdim=2.0)
    with pytest.raises(UserError, match="gives two spacings"):
        read_volume(tmp_path / "other.nii")


def test_angles_and_distances_have_their_closed_forms():
    assert tilt(LPS) == pytest.approx(0) and tilt(sheared(12)) == pytest.approx(12)
    assert obliquity(turned(20)) == pytest.approx(20) and tilt(turned(20)) == pytest.approx(0)
    assert obliquity(turned(50)) == pytest.approx(40)  # another axis is closest from 45 on
    assert voxel_ml(turned(33)) == pytest.approx(0.0016)
    assert between_planes(LPS).tolist() == pytest.approx([0.8, 0.8, 2.5])
    moved = LPS.copy()
    moved[:3, 3] += 0.24, 0, 0
    assert displacement(LPS, moved, (9, 9, 9)) == pytest.approx(0.3)
    longer = LPS @ np.diag([1, 1, 1.1, 1])
    assert displacement(LPS, longer, (9, 9, 9)) == pytest.approx(0.8)


@pytest.mark.parametrize(("unit", "factor"), [("micron", 1e3), ("meter", 1e-3), ("unknown", 1)])
def test_other_units_become_mm_and_the_mask_keeps_the_file_s(trained, tmp_path, unit, factor):
    affine = np.diag([factor, factor, factor, 1]) @ LPS
    path = save(tmp_path / "ct.nii", ct(), affine, unit)
    truth = save(tmp_path / "truth.nii", (ct() > 60).astype(np.uint8))  # in mm
    volume, usual = read_volume(path), read_volume(save(tmp_path / "mm.nii", ct()))
    assert volume.spacing == pytest.approx(usual.spacing)
    assert np.allclose(volume.geometry()["affine"], usual.geometry()["affine"], atol=1e-4)
    assert np.allclose(volume.geometry()["spacing"], [0.8, 0.8, 2.5])
    about = read_json(go(trained, path, ground_truth=truth) / "ct.json")
    assert about["spacing_mm"] == pytest.approx([0.8, 0.8, 2.5])
    spleen = about["per_class"]["spleen"]
    assert spleen["volume_ml"] == pytest.approx(702 * 0.0016)
    assert spleen["length_mm"] == pytest.approx(22.5) and spleen["scores"]["hd95_mm"] == 0
    mask, image = nib.load(trained.folder / "volumes/ct.nii.gz"), nib.load(path)
    assert np.array_equal(mask.affine, image.affine)
    assert mask.header["xyzt_units"] == image.header["xyzt_units"]


def test_units_that_cannot_be_meant_are_named(tmp_path):
    metres = save(tmp_path / "m.nii", noisy(), np.diag([5, 5, 8, 1.0]), "meter")
    with pytest.raises(UserError, match=r"m.nii has a spacing .pixdim. of \[5.0, 5.0, 8.0\] metre"):
        read_volume(metres)
    tiny = read_volume(save(tmp_path / "u.nii", noisy(), np.diag([5, 5, 8, 1.0]), "micron"))
    assert "a spacing of 0.005 mm; the header's unit is micron" in image_doubts(tiny)


@pytest.mark.parametrize(
    ("affine", "words"),
    [
        (np.eye(4), "states no geometry"),
        (np.diag([-1, -1, 1, 1]), "states no geometry"),  # of SimpleITK, where nothing is set
        (np.diag([1, 1, 2, 1]), None),
        (turned(20), None),
        (turned(44), "turned by 44 degrees"),
        (turned(50), "turned by 40 degrees"),
        (sheared(0.2), None),
        (sheared(10), "sheared by 10 degrees"),
        (np.diag([1, 1, 999, 1]), "a spacing of 999 mm"),
    ],
)
def test_an_odd_geometry_is_doubted_in_a_line(tmp_path, affine, words):
    found = image_doubts(read_volume(save(tmp_path / "v.nii", noisy(), affine)))
    assert len(found) == bool(words) and (not words or words in found[0])


def test_the_slice_distance_of_a_single_slice_is_no_doubt(tmp_path):
    path = save(tmp_path / "v.nii", noisy()[:, :, 2:3], np.diag([1, 1, 999, 1]))
    assert image_doubts(read_volume(path)) == []


def test_an_affine_without_volume_is_refused(tmp_path):
    content = bytearray(nib.Nifti1Image(noisy(), np.diag([1, 1, 2, 1])).to_bytes())
    content[280:328] = np.float32([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 2, 0]]).tobytes()
    (tmp_path / "flat.nii").write_bytes(content)
    with pytest.raises(UserError, match="flat.nii: its affine gives the voxels no volume"):
        read_volume(tmp_path / "flat.nii")


def padded(value, raw=False, blurred=False):
    voxels = noisy((40, 40, 6)).astype(float)
    voxels = np.clip(voxels + 1024, 0, None) if raw else voxels
    voxels[:5] = voxels[:, :5] = value
    if blurred:
        voxels[5, 5:] = (value - 1000) / 2
    return voxels.astype(np.int16)


@pytest.mark.parametrize("value", [-32768, -3024, -2048, -2000, -1024])
def test_padding_is_neither_a_reason_to_doubt_hu_nor_hides_that_they_are_none(tmp_path, value):
    for voxels in (padded(value), padded(value, blurred=True)):
        assert image_doubts(read_volume(save(tmp_path / "v.nii", voxels))) == []
    if value < -1024:
        found = image_doubts(read_volume(save(tmp_path / "v.nii", padded(value, raw=True))))
        assert len(found) == 1 and f"nothing but padding of {value} is below" in found[0]


def test_values_far_below_air_that_are_no_padding_are_doubted(tmp_path):
    voxels = np.random.default_rng(0).integers(-4000, 4000, (16, 16, 6)).astype(np.int16)
    assert "range of a CT" in image_doubts(read_volume(save(tmp_path / "v.nii", voxels)))[0]


@pytest.mark.parametrize(("shift", "seen"), [(0, True), (-1024, False), (3000, False)])
def test_a_window_through_which_nothing_can_be_seen_is_told(tmp_path, shift, seen):
    """CT with its intercept taken twice: the body is at -1024, below what is shown as black."""
    voxels = np.clip(noisy() + shift, -1024, 4000).astype(np.int16)
    voxels[:2] = -1024
    image = read_volume(save(tmp_path / "v.nii", voxels))
    odd = image_doubts(image)
    assert any("between -160 (black) and 240" in line for line in odd) is not seen
    if seen:
        assert "between 2000 (black) and 3000" in image_doubts(image, window=(2000, 3000))[0]
        assert image_doubts(image, hu=False, window=None) == []


@pytest.mark.parametrize(
    ("shift", "words"),
    [(1e-7, None), (0.004, "0.0087 voxels; it is used"), (0.2, "0.43 voxels; it is used")],
)
def test_a_label_less_than_half_a_voxel_beside_its_image_is_used(tmp_path, shift, words):
    affine = np.diag([0.8, 0.8, 0.8, 1.0])
    image = read_volume(save(tmp_path / "i.nii", noisy(), affine))
    affine[:3, 3] = shift
    label = read_label(save(tmp_path / "l.nii", (noisy() > 0).astype(np.uint8), affine), image)
    assert problems_of(image, label) == []
    found = label_doubts(image, label)
    assert found == doubts(image, label, {"liver": (1,)})
    assert len(found) == bool(words) and (not words or words in found[0])


def test_a_label_half_a_voxel_off_is_refused_with_the_remedy(tmp_path):
    moved = LPS.copy()
    moved[2, 3] += 1.3  # of 2.5 mm
    case = Case("a", save(tmp_path / "i.nii", noisy()), tmp_path / "l.nii")
    save(case.label, (noisy() > 0).astype(np.uint8), moved)
    with pytest.raises(UserError, match=r"0.52 voxels beside.*resample_from_to.*image's affine"):
        read_case(case)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SAR", "PIL"])
@pytest.mark.parametrize("degrees", [0, 45])
def test_a_label_in_other_axes_at_the_same_place_is_used(tmp_path, codes, degrees):
    truth = np.zeros((SIZE, SIZE, 9), np.uint8)
    truth[4:14, 6:20, 2:7] = 1
    image = save(tmp_path / "i.nii", ct(), turned(degrees + 1e-4))
    label = nib.Nifti1Image(truth, turned(degrees - 1e-4 if degrees else 1e-4))
    start, end = nib.io_orientation(label.affine), nib.orientations.axcodes2ornt(codes)
    label = label.as_reoriented(nib.orientations.ornt_transform(start, end))
    nib.save(label, tmp_path / "l.nii.gz")
    image, label = read_case(Case("a", image, tmp_path / "l.nii.gz"))
    assert np.array_equal(label.voxels, image.voxels == 100)
