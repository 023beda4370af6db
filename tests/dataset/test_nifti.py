"""NIfTI volumes in any orientation, damaged, huge or not volumes at all."""

import gzip
import itertools
import json
import tracemalloc

import nibabel as nib
import numpy as np
import pytest
from conftest import refused_or_right

from common.dataset.cases import Case, read_case
from common.dataset.layouts import VolumesConfig, list_all
from common.dataset.nifti import read_volume, write_volume
from common.dataset.preprocessing import axial_view, to_square, window
from common.dataset.slices import read_image, read_mask, read_set
from common.errors import UserError


def save(path, voxels, affine=None, orientation="RAS"):
    image = nib.Nifti1Image(voxels, np.diag([1, 2, 3, 1.0]) if affine is None else affine)
    start, end = nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(orientation)
    nib.save(image.as_reoriented(nib.orientations.ornt_transform(start, end)), path)
    return path


def test_window_is_the_closed_form():
    hu = np.array([-2000, -160, -159, 40, 239, 240, 3000])
    assert window(hu).tolist() == [0, 0, 1, 128, 254, 255, 255]


def test_every_stored_orientation_gives_the_same_radiological_view(tmp_path):
    voxels = np.zeros((6, 5, 4), np.int16)
    voxels[5, :, 1] = 100  # the patient's right
    voxels[:, 4, 1] = 200  # the front
    for axes in itertools.permutations(("RL", "AP", "SI")):
        for code in map("".join, itertools.product(*axes)):
            volume = read_volume(save(tmp_path / "v.nii.gz", voxels, orientation=code))
            view = axial_view(volume.voxels, 1)
            assert volume.stored_orientation == code and volume.spacing == (1, 2, 3)
            assert (view[0] == 200).all()  # the front is the top row
            assert (view[1:, 0] == 100).all()  # the right side is the left column


def test_stored_scaling_is_applied(tmp_path):
    image = nib.Nifti1Image(np.arange(8, dtype=np.int16).reshape(2, 2, 2), np.eye(4))
    image.header.set_slope_inter(2, -1000)
    nib.save(image, tmp_path / "v.nii")
    assert read_volume(tmp_path / "v.nii").voxels.max() == 2 * 7 - 1000


def test_flipped_bits_and_truncations_are_refused(tmp_path):
    rng = np.random.default_rng(0)
    path = save(tmp_path / "v.nii.gz", rng.integers(-900, 900, (16, 16, 8), dtype=np.int16))
    expected = read_volume(path).voxels
    # A flip in gzip's own header (its time stamp, say) changes no voxel.
    assert refused_or_right(path, lambda p: read_volume(p).voxels, expected) > 390


def test_a_gzip_bomb_is_stopped_by_what_its_header_claims(tmp_path, monkeypatch):
    path = save(tmp_path / "b.nii", np.zeros((4, 4, 4), np.int16))
    small = path.read_bytes()
    bomb = tmp_path / "b.nii.gz"
    bomb.write_bytes(gzip.compress(small + bytes(64 << 20)))
    tracemalloc.start()
    with pytest.raises(UserError, match="much more than the 480 bytes its header claims"):
        read_volume(bomb)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()
    header = nib.load(path).header
    header.set_data_shape((30000, 30000, 30000))
    (tmp_path / "claim.nii").write_bytes(header.binaryblock + small[348:])
    with pytest.raises(UserError, match="claims 30000x30000x30000 voxels, more than 4 GiB"):
        read_volume(tmp_path / "claim.nii")
    header.set_data_shape((900, 900, 100))
    (tmp_path / "claim.nii").write_bytes(header.binaryblock + small[348:])
    with pytest.raises(UserError, match="holds less than"):
        read_volume(tmp_path / "claim.nii")
    (tmp_path / "zeros.nii.gz").write_bytes(gzip.compress(bytes(4 << 20)))
    with pytest.raises(UserError, match="zeros.nii.gz"):
        read_volume(tmp_path / "zeros.nii.gz")


def test_extensions_and_packing_do_not_hide_a_volume(tmp_path):
    voxels = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    image = nib.Nifti1Image(voxels, np.diag([1, 2, 3, 1.0]))
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"A. Patient"))
    nib.save(image, tmp_path / "e.nii.gz")
    (tmp_path / "packed.nii").write_bytes((tmp_path / "e.nii.gz").read_bytes())
    (tmp_path / "plain.nii.gz").write_bytes(gzip.decompress((tmp_path / "e.nii.gz").read_bytes()))
    for name in ("e.nii.gz", "packed.nii", "plain.nii.gz"):
        volume = read_volume(tmp_path / name)
        assert np.array_equal(volume.voxels, voxels)
        write_volume(tmp_path / "m.nii.gz", (voxels > 9).astype(np.uint8), volume)
        assert b"Patient" not in gzip.decompress((tmp_path / "m.nii.gz").read_bytes())
        assert np.array_equal(read_volume(tmp_path / "m.nii.gz").voxels, voxels > 9)


def test_two_spacings_in_one_header_are_refused(tmp_path):
    image = nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.diag([1, 1, 5, 1.0]))
    content = bytearray(image.to_bytes())
    content[88:92] = np.float32(2.5).tobytes()  # pixdim[3]
    (tmp_path / "two.nii").write_bytes(content)
    with pytest.raises(UserError, match=r"two spacings: \[1.0, 1.0, 2.5\] in pixdim, .*5.0"):
        read_volume(tmp_path / "two.nii")


def test_a_mask_forgets_the_scaling_of_its_ct(tmp_path):
    image = nib.Nifti1Image(np.arange(8, dtype=np.int16).reshape(2, 2, 2), np.eye(4))
    image.header.set_slope_inter(2, -1000)
    image.header["cal_max"] = 400
    nib.save(image, tmp_path / "v.nii")
    volume = read_volume(tmp_path / "v.nii")
    assert volume.voxels.dtype == np.float32
    write_volume(tmp_path / "m.nii", np.ones((2, 2, 2), np.uint8), volume)
    mask = nib.load(tmp_path / "m.nii")
    assert (mask.get_fdata() == 1).all() and mask.header["cal_max"] == 0


def test_what_is_no_volume_is_refused(tmp_path):
    (tmp_path / "text.nii.gz").write_bytes(gzip.compress(b"not an image" * 99))
    (tmp_path / "plain.nii.gz").write_text("hello")
    save4 = nib.Nifti1Image(np.zeros((4, 4, 4, 2), np.int16), np.eye(4))
    nib.save(save4, tmp_path / "four.nii.gz")
    nib.save(nib.Nifti2Image(np.zeros((4, 4, 4), np.int16), np.eye(4)), tmp_path / "two.nii.gz")
    for name in ("text.nii.gz", "plain.nii.gz", "four.nii.gz", "absent.nii.gz", "two.nii.gz"):
        with pytest.raises(UserError, match=name):
            read_volume(tmp_path / name)
    header = nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4)).header
    for spacing in (0, -1, np.nan, np.inf, 1e30, 1e-30):
        header["pixdim"][1] = spacing
        (tmp_path / "thin.nii").write_bytes(header.binaryblock + bytes(4 + 128))
        with pytest.raises(UserError, match="thin.nii has a spacing .pixdim. of"):
            read_volume(tmp_path / "thin.nii")


def test_image_and_label_must_belong_together(tmp_path):
    image = save(tmp_path / "i.nii.gz", np.zeros((4, 4, 4), np.int16))
    label = tmp_path / "l.nii.gz"
    case = Case("i", image, label)
    save(label, np.zeros((4, 4, 5), np.uint8))
    with pytest.raises(UserError, match="shape"):
        read_case(case)
    for apart in (np.diag([1, 2, 3.6, 1]), np.diag([2.1, 2, 3, 1])):
        save(label, np.zeros((4, 4, 4), np.uint8), apart)
        with pytest.raises(UserError, match="affine"):
            read_case(case)
    for near in (3.0005, 3.1, 3.49):  # voxel 3 lies up to 0.49 voxels beside its image's
        save(label, np.zeros((4, 4, 4), np.uint8), np.diag([1, 2, near, 1]))
        read_case(case)
    save(label, np.full((4, 4, 4), 3, np.uint8))
    with pytest.raises(UserError, match="values 3"):
        read_case(case)
    save(label, np.ones((4, 4, 4), np.uint8))
    save(image, np.full((4, 4, 4), np.nan, np.float32))
    with pytest.raises(UserError, match="NaN"):
        read_case(case)


def test_listing_names_every_missing_file_and_refuses_to_leave_the_folder(tmp_path):
    with pytest.raises(UserError, match="dataset.json"):
        list_all(VolumesConfig(input=tmp_path))
    entry = {"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}
    (tmp_path / "dataset.json").write_text(json.dumps({"training": [entry]}))
    with pytest.raises(UserError, match="(?s)imagesTr/a.nii.gz is listed and missing.*labelsTr"):
        list_all(VolumesConfig(input=tmp_path))
    (tmp_path / "dataset.json").write_text(json.dumps({"training": []}))
    with pytest.raises(UserError, match="no training volumes"):
        list_all(VolumesConfig(input=tmp_path))
    entry["image"] = "../../etc/passwd"
    (tmp_path / "dataset.json").write_text(json.dumps({"training": [entry]}))
    with pytest.raises(UserError, match="outside"):
        list_all(VolumesConfig(input=tmp_path))


def test_squares_keep_the_aspect_in_mm_and_masks_stay_binary():
    mask = np.zeros((40, 20), np.uint8)
    mask[10:30, 5:15] = 255
    square = to_square(mask, (1.0, 2.0), 80, mask=True)  # 40 mm x 40 mm: fills it
    assert set(np.unique(square)) == {0, 255}
    assert square.mean() == pytest.approx(mask.mean(), rel=0.02)
    narrow = to_square(mask, (1.0, 1.0), 80, mask=True)  # 40 mm x 20 mm: padded left and right
    assert not narrow[:, :20].any() and not narrow[:, 60:].any()
    assert np.array_equal(to_square(mask[:20], (1, 1), 20, mask=True), mask[:20])


def test_slices_at_native_size_restack_to_the_volume(repo, phantom, tmp_path):
    from conftest import run

    flags = ("--input", phantom, "--output", tmp_path / "native", "--size", 64)
    run(repo, "data_prep/slice_nifti.py", *flags)
    data = read_set(tmp_path / "native")
    for case in list_all(VolumesConfig(input=phantom))[:3]:
        image, label = read_case(case)
        names = [f"{s.name}.png" for s in data.of([case.name])]
        stack = np.stack([read_image(data.folder / "images" / n) for n in names], axis=-1)
        masks = np.stack([read_mask(data.folder / "masks" / n, 1) for n in names], axis=-1)
        assert np.array_equal(stack.transpose(1, 0, 2)[::-1, ::-1], window(image.voxels))
        assert np.array_equal(masks.transpose(1, 0, 2)[::-1, ::-1], label.voxels)
        geometry = data.info["cases"][case.name]
        assert geometry["shape"] == list(nib.load(case.image).shape)
        assert np.allclose(geometry["affine"], nib.load(case.image).affine, atol=1e-5)


def test_the_phantom_s_spleen_lies_on_the_left_and_overlaps_liver_in_hu(phantom):
    for case in list_all(VolumesConfig(input=phantom)):
        image, label = read_case(case)
        x, y, z = (axis.mean() for axis in np.nonzero(label.voxels))
        assert x < label.voxels.shape[0] * 0.4  # canonical x grows to the right
        assert y < label.voxels.shape[1] * 0.6  # and y to the front
        present = label.voxels.any((0, 1))
        assert present.any() and not present[0] and not present[-1]
        spleen = np.median(image.voxels[label.voxels > 0])
        mirrored = image.voxels[::-1][label.voxels > 0]  # liver, mostly
        assert abs(np.median(mirrored) - spleen) < 80


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SAR"])
def test_a_channel_of_a_4d_file_is_the_3d_file_of_it(tmp_path, codes):
    voxels = np.arange(3 * 4 * 5 * 2, dtype=np.int16).reshape(3, 4, 5, 2)
    start, end = (nib.orientations.axcodes2ornt(c) for c in ("RAS", codes))
    turn = nib.orientations.ornt_transform(start, end)
    for scale in (1, 0.5):
        found = []
        for name, part in (("four", voxels), ("three", voxels[..., 1])):
            image = nib.Nifti1Image(part, np.diag([1, 2, 3, 1.0])).as_reoriented(turn)
            image.header.set_slope_inter(scale, 0)
            nib.save(image, tmp_path / f"{name}.nii.gz")
            channel = 1 if name == "four" else None
            found.append(read_volume(tmp_path / f"{name}.nii.gz", channel))
        four, three = found
        assert np.array_equal(four.voxels, three.voxels) and four.voxels.dtype == three.voxels.dtype
        assert np.array_equal(four.voxels, voxels[..., 1] * scale)
        assert four.spacing == three.spacing == (1, 2, 3)
        assert four.geometry() | {"sha256": 0} == three.geometry() | {"sha256": 0}
        write_volume(tmp_path / "mask.nii.gz", (four.voxels > 9).astype(np.uint8), four)
        assert nib.load(tmp_path / "mask.nii.gz").shape == three.stored_shape
