"""Files of other formats are named; shapes, endings and values that are nearly right are used."""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import small_volumes
from small_volumes import ct, go, save

from common.dataset.cases import Case, problems_of, read_case, read_label
from common.dataset.formats import foreign_files, is_nifti_name, plain, stem, without_channel
from common.dataset.layouts import VolumesConfig, list_all
from common.dataset.nifti import read_volume
from common.errors import UserError
from common.files import read_csv
from common.inference.volume_files import channels_in, truth_of, volume_files

trained = small_volumes.trained  # the fixture
ITK = "SimpleITK.WriteImage(SimpleITK.ReadImage('{}', imageIO='{}ImageIO'), 'a.nii.gz')"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.nrrd", b"NRRD0004\ntype: int16\n", ("NRRD", ITK.format("a.nrrd", "Nrrd"))),
        ("a.mha", b"ObjectType = Image\nNDims = 3\n", ("MetaImage", ITK.format("a.mha", "Meta"))),
        ("a.mhd", b"NDims = 3\n", ("MetaImage", "'a.nii.gz'")),
        ("a.img", bytes(400), ("Analyze, or a NIfTI pair", "nibabel.load('a.img')")),
        ("a.hdr", (348).to_bytes(4, "little") + bytes(344), ("Analyze",)),
        ("a.mnc", b"CDF\x01" + bytes(400), ("MINC", "nibabel.load('a.mnc')")),
        ("a.mgz", gzip.compress(bytes(400)), ("FreeSurfer",)),
        ("a.npy", b"\x93NUMPY" + bytes(90), ("NumPy", "Nifti1Image(array, affine)")),
        ("a.mat", b"MATLAB 5.0 MAT-file", ("MATLAB",)),
        ("IM0001", bytes(128) + b"DICM" + bytes(90), ("DICOM", "dcm2niix")),
        ("IM0002", b"\x08\0\x05\0CS\x0a\0ISO_IR 100" + bytes(90), ("DICOM", "dcm2niix")),
        ("a.dcm", bytes(500), ("DICOM", "dcm2niix")),
        ("a.nii.gz", b"<!DOCTYPE html><html>" + bytes(500), ("web page", "download it again")),
        ("b.nii.gz", b"version https://git-lfs.github.com/spec/v1\n", ("git lfs pull",)),
        ("c.nii.gz", gzip.compress(gzip.compress(bytes(900))), ("packed by gzip twice",)),
        ("d.nii.gz", b"not gz", ("not a NIfTI file, packed or not: it begins with 'not gz'",)),
        ("e.nii", b"", ("it is empty",)),
        ("f.nii.gz", gzip.compress(b"NRRD0004\n" + bytes(900)), ("NRRD",)),
    ],
    # Without these, pytest makes ids of the bytes, and gzip writes the time into its header:
    # two processes that collect in different seconds would disagree.
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_formats_are_named_with_the_way_to_nifti(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        read_volume(tmp_path / name)
    for word in (name, *words):
        assert word in str(error.value)
    if not is_nifti_name(tmp_path / name):  # given by itself, or in a folder
        for path in (tmp_path / name, tmp_path):
            with pytest.raises(UserError) as error:
                volume_files(path)
            assert words[0] in str(error.value) and name in str(error.value)


def test_a_folder_of_other_files_without_an_index_is_told_how_to_convert_them(tmp_path):
    (tmp_path / "a.nrrd").write_bytes(b"NRRD0004\ntype: int16\n")
    with pytest.raises(UserError, match="holds no dataset.json. a.nrrd is NRRD, not NIfTI: conv"):
        list_all(VolumesConfig(input=tmp_path))
    save(tmp_path / "img/img1.nii.gz", ct())  # among volumes it is not the point
    with pytest.raises(UserError, match='name the files: --images "img/img'):
        list_all(VolumesConfig(input=tmp_path))


def test_a_broken_offset_is_a_broken_header(tmp_path):
    path = save(tmp_path / "v.nii", ct())
    content = bytearray(path.read_bytes())
    for offset in (1e30, -1e30, np.inf, np.nan):
        content[108:112] = np.float32(offset).tobytes()
        path.write_bytes(content)
        with pytest.raises(UserError, match="v.nii (claims .* a broken header|is not a sound)"):
            read_volume(path)


def test_pairs_and_nifti_2_are_named(tmp_path):
    voxels = np.zeros((4, 4, 4), np.int16)
    nib.save(nib.Nifti1Pair(voxels, np.eye(4)), tmp_path / "p.img")
    nib.save(nib.Nifti2Image(voxels, np.eye(4)), tmp_path / "two.nii.gz")
    with pytest.raises(UserError, match="p.hdr is the header of a NIfTI pair.*'p.nii.gz'"):
        read_volume(tmp_path / "p.hdr")
    with pytest.raises(UserError, match="two.nii.gz is NIfTI-2.*from_image.*'two_nifti1.nii.gz'"):
        read_volume(tmp_path / "two.nii.gz")


def test_a_folder_of_dicom_without_dataset_json_is_named(tmp_path):
    home = tmp_path / "set/series"
    home.mkdir(parents=True)
    (home / "IM0001").write_bytes(bytes(128) + b"DICM" + bytes(90))
    with pytest.raises(UserError, match="holds no dataset.json. IM0001 is DICOM.*dcm2niix"):
        list_all(VolumesConfig(input=tmp_path / "set"))
    (tmp_path / "set/dataset.json").write_text(
        '{"training": [{"image": "series", "label": "series"}]}'
    )
    with pytest.raises(UserError, match="series is a folder; a .nii.*IM0001 is DICOM"):
        list_all(VolumesConfig(input=tmp_path / "set"))
    assert foreign_files([]) == ""


@pytest.mark.parametrize("more", [(), (1,), (1, 1)])
def test_trailing_axes_of_length_1_are_dropped_and_the_mask_is_3d(trained, tmp_path, more):
    path = save(tmp_path / "ct.nii.gz", ct().reshape(*ct().shape, *more))
    label = save(tmp_path / "l.nii.gz", (ct() > 60).astype(np.uint8).reshape(*ct().shape, *more))
    image, truth = read_case(Case("a", path, label))
    assert image.voxels.shape == truth.voxels.shape == ct().shape
    go(trained, path, ground_truth=label)
    mask = nib.load(trained.folder / "volumes/ct.nii.gz")
    assert mask.shape == ct().shape and np.array_equal(mask.affine, nib.load(path).affine)


def test_a_2d_image_is_a_volume_of_one_slice(trained, tmp_path):
    flat = ct()[:, :, 4]
    for name, voxels in (
        ("flat", flat),
        ("slice", flat[..., None]),
        ("four", flat[..., None, None]),
    ):
        nib.save(nib.Nifti1Image(voxels, np.diag([0.8, 0.8, 2.5, 1])), tmp_path / f"{name}.nii")
        volume = read_volume(tmp_path / f"{name}.nii")
        assert np.array_equal(volume.voxels, flat[..., None])
        go(trained, tmp_path / f"{name}.nii")
        mask = nib.load(trained.folder / f"volumes/{name}.nii.gz")
        assert mask.shape == (flat.shape if name == "flat" else (*flat.shape, 1))
        assert np.array_equal(np.asarray(mask.dataobj).reshape(flat.shape), flat > 60)


def test_a_channel_for_each_class_is_refused_with_its_own_reason(tmp_path):
    image = save(tmp_path / "i.nii.gz", ct())
    label = (ct() > 60).astype(np.uint8)
    for shape in (np.stack([1 - label, label], -1), np.stack([1 - label, label], -1)[..., None, :]):
        case = Case("a", image, save(tmp_path / "l.nii.gz", shape))
        with pytest.raises(UserError, match="a channel for each class.*argmax") as error:
            read_case(case, channel=0)
        assert "--channel" not in str(error.value)


def test_labels_are_rounded_where_rounding_made_them_and_else_refused(tmp_path):
    image = read_volume(save(tmp_path / "i.nii.gz", ct()))
    truth = (ct() > 60).astype(np.float32)
    path = tmp_path / "l.nii.gz"
    scaled = nib.Nifti1Image(truth.astype(float) * 2.00007 / 2, np.diag([0.8, 0.8, 2.5, 1]))
    scaled.set_data_dtype(np.int16)
    for factor in (0.99998, 0.99999994, 1.0009, None):
        if factor:
            save(path, (truth * factor).astype(np.float32))
        else:
            nib.save(scaled, path)
        label = read_label(path, image)
        assert problems_of(image, label) == [] and np.array_equal(label.voxels, truth)
    save(path, truth * np.float32(0.9985))
    (found,) = problems_of(image, read_label(path, image))
    assert "values 0.998499990 beside" in found.replace("0.99849999 ", "0.998499990 ")
    assert "np.rint" in found and "interpolation" in found


def test_endings_in_capitals_are_endings(trained, tmp_path):
    for n in range(2):
        image = save(tmp_path / f"i/CT{n}.nii.gz", ct() + n)
        label = save(tmp_path / f"l/CT{n}.nii.gz", (ct() > 60).astype(np.uint8))
        for path in (image, label):
            path.rename(path.with_name(f"CT{n}.NII.GZ"))
    for ending in ("nii.gz", "NII.GZ"):
        config = VolumesConfig(input=tmp_path, images=f"i/*.{ending}", masks=f"l/*.{ending}")
        assert [case.name for case in list_all(config)] == ["CT0", "CT1"]
    folder = go(trained, tmp_path / "i", ground_truth=tmp_path / "l")
    assert {p.name for p in folder.glob("*.nii.gz")} == {"CT0.nii.gz", "CT1.nii.gz"}
    assert [row["dice"] for row in read_csv(folder / "volumes.csv")] == ["1.0", "1.0"]
    go(trained, tmp_path / "i/CT0.NII.GZ", output=tmp_path / "SEG.NII.GZ")
    assert (tmp_path / "SEG.NII.GZ").read_bytes()[:2] == b"\x1f\x8b"
    assert (tmp_path / "SEG.json").exists()


def test_a_truth_is_found_by_its_name_packed_or_not_and_without_a_channel(tmp_path):
    for name in ("a.nii", "b.NII.GZ", "c.nii.gz"):
        (tmp_path / name).write_bytes(b"")
    for volume, truth in (
        ("a.nii.gz", "a.nii"),
        ("b.nii", "b.NII.GZ"),
        ("c_0000.nii.gz", "c.nii.gz"),
    ):
        assert truth_of(tmp_path / "in" / volume, tmp_path).name == truth
    assert truth_of(tmp_path / "d.nii.gz", tmp_path) == tmp_path / "d.nii.gz"
    assert truth_of(tmp_path / "in/d.nii.gz", tmp_path / "a.nii") == tmp_path / "a.nii"


def test_names_lose_their_ending_and_what_no_table_can_hold():
    for name, bare in (("a.b.nii.gz", "a.b"), ("A.NII", "A"), ("x.nii.nii.gz", "x.nii")):
        assert stem(Path(name)) == bare
    assert plain(b"caf\xe9.nii".decode("utf-8", "surrogateescape")) == "caf_xe9.nii"
    assert plain("Müller 患者") == "Müller 患者"
    assert without_channel("ct_0003") == "ct" and without_channel("amos_0123") == "amos_0123"


def test_several_channels_of_each_volume_are_pointed_out(trained, tmp_path, capsys):
    for name in ("a_0000", "a_0001", "b_0000", "b_0001"):
        save(tmp_path / f"in/{name}.nii.gz", ct())
    go(trained, tmp_path / "in")
    assert "2 channels of each volume (nnU-Net)" in capsys.readouterr().out
    assert channels_in([Path(f"amos_{n:04d}.nii.gz") for n in range(9)]) == 0
    assert channels_in([Path("a_0000.nii.gz"), Path("b_0000.nii.gz")]) == 1
    assert channels_in([Path("a_0000.nii.gz"), Path("b_0000.nii.gz"), Path("c_0001.nii")]) == 0
