"""Files that are not NIfTI-1: what they are, by first bytes or ending, and how to convert them."""

import gzip
import re
import zlib
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

NIFTI = (".nii", ".nii.gz")
LOOKED_AT = 200  # files of a folder whose first bytes are read to tell what it holds
DICOM = (
    "DICOM is not read: convert the series with dcm2niix (https://github.com/rordenlab/dcm2niix) "
    "and name the .nii.gz."
)
# The reader is named, because ITK cannot infer it from a wrong extension.
ITK = "convert it with SimpleITK.WriteImage(SimpleITK.ReadImage({name!r}, imageIO='%s'), {nifti!r})"
NRRD, META = ITK % "NrrdImageIO", ITK % "MetaImageIO"
NIBABEL = "convert it with nibabel.save(nibabel.load({name!r}), {nifti!r})"
VERSION_1 = "nibabel.save(nibabel.Nifti1Image.from_image(nibabel.load({name!r})), {nifti!r})"
AFFINE = "save it with its affine: nibabel.save(nibabel.Nifti1Image(array, affine), {nifti!r})"
PICTURE = "inference.py takes it with --images, data_prep/import_pairs.py with its mask"
# First bytes -> what the file is, and how it becomes a NIfTI file.
SIGNATURES = (
    (rb"NRRD", "NRRD", NRRD),
    (rb"\s*(ObjectType|NDims|Comment)\s*=", "MetaImage", META),
    (rb"CDF[\x01\x02]", "MINC", NIBABEL),
    (rb"\x93NUMPY", "a NumPy array", AFFINE),
    (rb"MATLAB", "a MATLAB file", AFFINE),
    (rb"\x89HDF", "HDF5 (MINC 2 or MATLAB 7.3)", "for MINC " + NIBABEL + "; else " + AFFINE),
    (rb"PK[\x03\x05]", "a zip archive", "unpack it"),
    (rb"\x1f\x8b", "packed by gzip twice", "unpack it once"),
    (rb"BZh|\xfd7zXZ|\x28\xb5\x2f\xfd", "packed, and not by gzip", "unpack it, or pack it by gzip"),
    (rb"\x89PNG|\xff\xd8\xff|II\*\0|MM\0\*|GIF8|BM", "a picture", PICTURE),
    (rb"\s*<(!DOCTYPE|html|\?xml)", "a web page or XML", "download it again"),
    (rb"version https://git-lfs", "a Git LFS pointer", "fetch the file itself: git lfs pull"),
)
# Endings of files that cannot be told by their first bytes.
ENDINGS = {
    (".nrrd", ".nhdr"): "NRRD",
    (".mha", ".mhd"): "MetaImage",
    (".mnc",): "MINC",
    (".mgz", ".mgh"): "FreeSurfer's MGH",
    (".hdr", ".img"): "Analyze, or a NIfTI pair",
    (".npy", ".npz"): "a NumPy array",
    (".mat",): "a MATLAB file",
}
HOW = {
    "NRRD": NRRD,
    "MetaImage": META,
    "a NumPy array": AFFINE,
    "a MATLAB file": AFFINE,
}


def is_nifti_name(path: Path) -> bool:
    """Whether a file's name ends in .nii or .nii.gz, in capitals too, as Windows tools write it."""
    return path.name.lower().endswith(NIFTI)


def plain(name: str) -> str:
    """A file's name as tables and new files have it: bytes that are not UTF-8 (é of an old disk)
    become `_xe9`."""
    return re.sub("[\udc80-\udcff]", lambda byte: f"_x{ord(byte[0]) - 0xDC00:02x}", name)


def stem(path: Path) -> str:
    """A file's plain name without .nii or .nii.gz, in capitals too."""
    return re.sub(r"(\.nii)?(\.gz)?$", "", plain(path.name), flags=re.IGNORECASE)


def without_channel(name: str) -> str:
    """A volume's name without nnU-Net's number of the channel, as in ct_0000."""
    return re.sub(r"_00\d\d$", "", name)


def is_nifti(head: bytes) -> bool:
    """Whether a file begins as NIfTI-1 in one file does."""
    return head[344:347] == b"n+1"


def is_dicom(head: bytes, name: str = "") -> bool:
    """Whether a file's first bytes have DICOM's mark after a preamble of 128, or, without one,
    begin with an element of the groups 2 or 8; or whether its name ends as DICOM's do."""
    bare = re.match(rb"[\x02\x08]\0[\0-\x7f]\0([A-Z]{2}|[\0-\x40]\0\0\0)", head, re.DOTALL)
    named = name.lower().endswith((".dcm", ".ima", ".dicom"))
    return head[128:132] == b"DICM" or bool(bare) or named


def foreign(head: bytes, name: str) -> str:
    """What a file is, by its first bytes (unpacked) or, failing that, its name, and how
    it becomes a NIfTI file; empty for NIfTI and for unknown formats."""
    if is_nifti(head):
        return ""
    bare = stem(Path(name))
    bare = f"{bare}_nifti1" if is_nifti_name(Path(name)) else re.sub(r"[.][^.]*$", "", bare)
    nifti = f"{bare or 'volume'}.nii.gz"
    if is_dicom(head, name):
        return f"DICOM. {DICOM}"
    for pattern, kind, how in SIGNATURES:
        if re.match(pattern, head, re.IGNORECASE):
            return f"{kind}, not NIfTI: {how.format(name=name, nifti=nifti)}."
    if head[344:347] == b"ni1":
        kind = "the header of a NIfTI pair (.hdr and .img)"
        return f"{kind}, not one file: {NIBABEL.format(name=name, nifti=nifti)}."
    if head[4:6] == b"n+" and 540 in (int.from_bytes(head[:4], e) for e in ("little", "big")):
        return f"NIfTI-2: save it as NIfTI-1, {VERSION_1.format(name=name, nifti=nifti)}."
    for endings, kind in ENDINGS.items():
        if name.lower().endswith(endings):
            how = HOW.get(kind, NIBABEL)
            return f"{kind}, not NIfTI in one file: {how.format(name=name, nifti=nifti)}."
    return ""


def foreign_files(paths: Iterable[Path]) -> str:
    """What the first file among `paths` that is of another format is, as `foreign` says it."""
    for path in islice((p for p in paths if p.is_file()), LOOKED_AT):
        try:
            with path.open("rb") as file:
                packed = file.read(2) == b"\x1f\x8b"
            with (gzip.open if packed else open)(path, "rb") as file:
                head = file.read(352)
        except (OSError, EOFError, zlib.error):
            continue
        if kind := foreign(head, path.name):
            return f"{path.name} is {kind}"
    return ""
