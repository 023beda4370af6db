"""check_volumes.py: what is wrong with volumes, and what may be intended."""

import gzip
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import ROOT, load_script, run
from small_volumes import body, spleen

from common.dataset.cases import problems_of
from common.dataset.checks import doubts
from common.dataset.nifti import read_volume
from common.errors import UserError

script = load_script(ROOT / "data_prep/check_volumes.py")


@pytest.fixture
def folder(tmp_path):
    """Three sound cases in Decathlon layout, and a way to replace or add files."""

    def put(name, image=None, label=None, affine=None):
        affine = np.diag([1, 1, 3, 1.0]) if affine is None else affine
        for kind, voxels in (("images", image), ("labels", label)):
            if voxels is not None:
                path = tmp_path / f"{kind}Tr" / f"{name}.nii.gz"
                path.parent.mkdir(exist_ok=True)
                nib.save(nib.Nifti1Image(voxels, affine), path)
        names = {p.name for p in (tmp_path / "imagesTr").glob("[!.]*.gz")}
        listed = [{"image": f"./imagesTr/{n}", "label": f"./labelsTr/{n}"} for n in sorted(names)]
        (tmp_path / "dataset.json").write_text(json.dumps({"training": listed}))
        return tmp_path / "imagesTr" / f"{name}.nii.gz"

    for seed in range(3):
        put(f"p{seed}", body(seed), spleen())
    return tmp_path, put


def findings(folder, capsys, code=1):
    """What the script prints of errors and warnings: (level, case) -> text."""
    config = script.Config(input=folder, workers=1)
    if code:
        with pytest.raises(UserError, match="cannot be used"):
            script.main(config)
    else:
        script.main(config)
    rows = [line.split(None, 2) for line in capsys.readouterr().out.splitlines()]
    return {(row[0], row[1]): row[2] for row in rows if row[:1] in (["error"], ["warning"])}


def test_sound_cases_pass(folder, capsys):
    assert findings(folder[0], capsys, code=0) == {}


def test_every_error_is_in_the_table_and_slice_nifti_refuses_it(folder, capsys):
    home, put = folder
    put("flat", np.zeros((16, 16), np.int16), spleen())
    put("four", np.zeros((16, 16, 6, 2), np.int16), spleen())
    put("nan", np.where(body() > 0, np.nan, body()).astype(np.float32), spleen())
    put("shape", body(7), spleen((16, 16, 5)))
    put("values", body(8), spleen() * 3)
    put("twin", body(1), spleen())
    moved = put("moved", body(9))
    nib.save(nib.Nifti1Image(spleen(), np.diag([1, 1, 3.5, 1])), home / "labelsTr/moved.nii.gz")
    cut = put("cut", body(10), spleen())
    cut.write_bytes(cut.read_bytes()[:-30])
    flipped = put("flipped", body(11), spleen())
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 4
    flipped.write_bytes(content)
    claim = put("claim", body(12), spleen())
    plain = bytearray(gzip.decompress(claim.read_bytes()))
    plain[46:48] = (600).to_bytes(2, "little")  # dim[3]
    claim.write_bytes(gzip.compress(bytes(plain)))
    both = put("both", body(14), spleen())
    for path in (both, home / "labelsTr/both.nii.gz"):
        path.write_bytes(path.read_bytes()[:60])
    put("lost", body(13), spleen())
    (home / "labelsTr/lost.nii.gz").unlink()
    found = findings(home, capsys)
    words = {
        "flat": "3D volume",
        "four": "3D volume",
        "nan": "NaN",
        "shape": "label's shape",
        "values": "3 beside 0 and 1",
        "p1": "same image as twin",
        "moved": "affine differs",
        "cut": "cut short",
        "flipped": "damaged",
        "claim": "holds less than",
        "lost": "listed and missing",
        "both": "labelsTr/both.nii.gz is damaged",
    }
    assert {name for _, name in found} == {*words}
    for name, text in words.items():
        assert text in found["error", name]
        alone = [{"image": f"imagesTr/{n}.nii.gz", "label": f"labelsTr/{n}.nii.gz"} for n in {name}]
        if name == "p1":
            alone += [{"image": "imagesTr/twin.nii.gz", "label": "labelsTr/twin.nii.gz"}]
        (home / "dataset.json").write_text(json.dumps({"training": alone}))
        slicer = load_script(ROOT / "data_prep/slice_nifti.py")
        with pytest.raises(UserError, match=name if name != "p1" else "two names"):
            slicer.main(slicer.Config(input=home, output=home / "out", size=16, workers=1))
    assert moved.exists()


def test_a_listing_that_cannot_be_meant_is_in_the_table_too(folder, capsys):
    home, put = folder
    listed = json.loads((home / "dataset.json").read_text())
    pair = listed["training"][0]
    odd = ["imagesTr/\0.nii.gz", f"imagesTr/{'x' * 400}.nii.gz", "../p9.nii.gz"]
    listed["training"] += [{**pair, "image": image} for image in odd]
    listed["test"] = ["./imagesTr/p1.nii.gz", {"image": "imagesTs/p7.nii.gz"}]
    (home / "dataset.json").write_text(json.dumps(listed))
    found = findings(home, capsys)
    assert "outside its folder" in found["error", "p9"]
    assert "training and for test" in found["error", "p1"]
    assert "missing" in found["error", "x" * 400] and len(found) == 4


def test_folders_that_are_links_to_another_disk_are_fine(folder, tmp_path_factory, capsys):
    home, _ = folder
    disk = tmp_path_factory.mktemp("disk")
    shutil.move(home / "imagesTr", disk / "imagesTr")
    (home / "imagesTr").symlink_to(disk / "imagesTr")
    assert findings(home, capsys, code=0) == {}


def test_every_doubt_is_a_warning(folder, capsys):
    home, put = folder
    put("empty", body(4), spleen() * 0)
    put("constant", np.full((16, 16, 6), 7, np.int16), spleen())
    put("hot", np.where(body(5) > 0, 9000, body(5)).astype(np.int16), spleen())
    put("thick", body(6), spleen(), np.diag([1, 1, 15, 1.0]))
    put("mirrored", body(7), spleen(left=False))
    put("shifted", body(9) + 1024, spleen())
    turned = nib.Nifti1Image(body(10), np.diag([1, 1, 3, 1.0]))
    put("turned", body(10), spleen())
    turned.set_qform(np.diag([-1, 1, 3, 1.0]), 1)
    nib.save(turned, home / "imagesTr/turned.nii.gz")
    put("lost", body(12), spleen(left=False))
    for kind in ("images", "labels"):
        volume = nib.load(home / f"{kind}Tr/lost.nii.gz")
        volume = nib.Nifti1Image(np.asarray(volume.dataobj), None, volume.header)
        volume.header["qform_code"] = volume.header["sform_code"] = 0
        nib.save(volume, home / f"{kind}Tr/lost.nii.gz")
    shutil.copy(home / "imagesTr/p0.nii.gz", home / "imagesTr/._p0.nii.gz")
    listed = (home / "dataset.json").read_text()
    put("extra", body(8), spleen())
    (home / "dataset.json").write_text(listed)
    found = findings(home, capsys, code=0)
    words = {
        "empty": "label is empty",
        "constant": "constant",
        "hot": "9000 is not a range",
        "thick": "15 mm",
        "mirrored": "patient's right",
        "shifted": "no air, or not in HU",
        "turned": "qform and sform",
        "lost": "states no orientation; taken as L",
        "._p0.nii.gz": "shadow file",
        "extra.nii.gz": "not in dataset.json",
    }
    assert {name for _, name in found} == {*words}
    for name, text in words.items():
        assert text in found["warning", name]


def test_left_and_right_are_the_patient_s_whatever_the_file_s_axes(tmp_path):
    for codes in ("LPS", "RAS", "SAR"):
        for left in (True, False):
            volumes = []
            for kind, voxels in (("i", body()), ("l", spleen(left=left))):
                image = nib.Nifti1Image(voxels, np.diag([1, 1, 3, 1.0]))
                start, end = (nib.orientations.axcodes2ornt(c) for c in ("RAS", codes))
                image = image.as_reoriented(nib.orientations.ornt_transform(start, end))
                nib.save(image, tmp_path / f"{kind}.nii.gz")
                volumes.append(read_volume(tmp_path / f"{kind}.nii.gz"))
            assert problems_of(*volumes) == []
            assert bool(doubts(*volumes, {"Spleen": (1,)})) != left
            assert not doubts(*volumes, {"liver": (1,)})


def test_the_script_says_it_in_one_table(repo, phantom, tmp_path):
    output = run(repo, "data_prep/check_volumes.py", "--input", phantom)
    assert "8 cases are sound" in output
    bad = shutil.copytree(phantom, tmp_path / "bad")
    sorted((bad / "imagesTr").iterdir())[0].write_bytes(b"")
    output = run(repo, "data_prep/check_volumes.py", "--input", bad, code=1)
    assert "1 of 8 cases cannot be used" in output
    assert "does not exist" in run(repo, "data_prep/check_volumes.py", code=1)


def test_check_volumes_names_every_bad_case(repo, phantom, tmp_path):
    folder = Path(shutil.copytree(phantom, tmp_path / "task"))
    assert "8 cases are sound" in run(repo, "data_prep/check_volumes.py", "--input", folder)
    for number, cut in ((1, 500), (4, 900)):
        path = folder / "imagesTr" / f"phantom_{number:03d}.nii.gz"
        path.write_bytes(path.read_bytes()[:cut])
    for script in ("check_volumes.py", "slice_nifti.py"):
        output = () if script == "check_volumes.py" else ("--output", tmp_path / "out")
        text = run(repo, f"data_prep/{script}", "--input", folder, *output, code=1)
        assert "2 of 8" in text and "phantom_001" in text and "phantom_004" in text
    assert not (tmp_path / "out" / "dataset.json").exists()
    for number in (1, 4):
        name = f"imagesTr/phantom_{number:03d}.nii.gz"
        (folder / name).write_bytes((phantom / name).read_bytes())
    for kind in ("imagesTr", "labelsTr"):
        shutil.copy(folder / kind / "phantom_000.nii.gz", folder / kind / "phantom_002.nii.gz")
    text = run(repo, "data_prep/check_volumes.py", "--input", folder, code=1)
    assert "phantom_000 the same image as phantom_002" in text
