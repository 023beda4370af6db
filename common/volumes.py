"""NIfTI volumes: checked reading, canonical orientation, writing in the input's own geometry.

Voxel arrays are `(x, y, z)` in the closest canonical orientation (RAS+: x grows to the patient's
right, y to the front, z to the head).
"""

import gzip
import hashlib
import zlib
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from tqdm import tqdm

from common.files import UserError, bullets, read_json, shown, write_bytes

# A CT of 1024x1024x1000 int16 voxels is 2 GB; what unpacks to more is a damaged file or a bomb.
MAX_BYTES = 4 << 30


@dataclass
class Volume:
    """A 3D image in canonical orientation: voxels `(x, y, z)`, spacing in mm, its stored form."""

    voxels: np.ndarray
    spacing: tuple[float, float, float]
    stored_shape: tuple[int, ...]
    stored_affine: np.ndarray
    stored_orientation: str
    header: nib.Nifti1Header
    sha256: str

    def geometry(self) -> dict:
        """What dataset.json keeps to bring a mask back into the stored file's frame and axes."""
        return {
            "shape": list(self.stored_shape),
            "affine": [[round(float(v), 6) for v in row] for row in self.stored_affine],
            "spacing": [round(float(s), 6) for s in nib.affines.voxel_sizes(self.stored_affine)],
            "orientation": self.stored_orientation,
            "sha256": self.sha256,
        }


def stem(path: Path) -> str:
    """A file's name without .nii or .nii.gz."""
    return path.name.removesuffix(".gz").removesuffix(".nii")


def is_dicom(path: Path) -> bool:
    """Whether a file has DICOM's mark after a preamble of 128 bytes."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def read_bytes(path: Path) -> bytes:
    """The whole content of a .nii or .nii.gz file, unpacked to its end.

    `nib.load` stops reading before gzip's checksum and so returns wrong voxels for a bit-flipped
    file without a word; reading the stream to its end checks every bit. UserError otherwise.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise UserError(f"{shown(path)} does not exist.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{shown(path)} is damaged or cut short ({error}).") from None
    if len(content) > MAX_BYTES:
        raise UserError(f"{shown(path)} unpacks to more than {MAX_BYTES >> 30} GiB.")
    return content


def read_volume(path: Path) -> Volume:
    """Read a 3D NIfTI file; voxels keep the stored type where its scaling is 1 and 0.

    UserError if it is missing, damaged, not NIfTI, not 3D, or holds fewer voxels than it claims.
    """
    content = read_bytes(path)
    try:
        image = nib.Nifti1Image.from_bytes(content)
        shape = image.shape
        if len(shape) == 4 and shape[3] == 1:
            image = nib.Nifti1Image(np.asanyarray(image.dataobj)[..., 0], image.affine)
        elif len(shape) != 3:
            raise UserError(f"{shown(path)} has shape {shape}; a 3D volume is expected.")
        canonical = nib.as_closest_canonical(image)
        voxels = np.asanyarray(canonical.dataobj)
    except UserError:
        raise
    except Exception as error:  # nibabel raises many types for a broken header
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{shown(path)} is not a sound NIfTI file ({reason}).") from None
    if 0 in voxels.shape or voxels.dtype.kind not in "iuf":
        raise UserError(f"{shown(path)} has shape {shape}, type {voxels.dtype}; a CT is expected.")
    spacing = tuple(float(s) for s in canonical.header.get_zooms()[:3])
    if not np.isfinite(image.affine).all() or min(spacing) <= 0:
        raise UserError(f"{shown(path)} has a broken affine or spacing {spacing}.")
    return Volume(
        voxels=voxels,
        spacing=spacing,
        stored_shape=image.shape,
        stored_affine=image.affine,
        stored_orientation="".join(nib.aff2axcodes(image.affine)),
        header=image.header.copy(),
        sha256=hashlib.sha256(content).hexdigest(),
    )


def write_volume(path: Path, voxels: np.ndarray, like: Volume) -> None:
    """Write canonical voxels `(x, y, z)` as NIfTI in the geometry of the file `like` was read from:
    its shape, axes, affine and header, with the voxels' own type. The same voxels give the same
    bytes."""
    canonical = nib.orientations.axcodes2ornt("RAS")
    back = nib.orientations.ornt_transform(canonical, nib.io_orientation(like.stored_affine))
    header = like.header.copy()
    header.set_data_dtype(voxels.dtype)
    header.set_slope_inter(1, 0)
    header["cal_min"] = header["cal_max"] = 0  # the CT's display range is not the mask's
    stored = np.ascontiguousarray(nib.apply_orientation(voxels, back))
    content = nib.Nifti1Image(stored, like.stored_affine, header).to_bytes()
    packed = path.suffix == ".gz"
    write_bytes(path, gzip.compress(content, compresslevel=3, mtime=0) if packed else content)


@dataclass(frozen=True)
class Case:
    """One patient of a Decathlon folder: name, image file, label file (None in imagesTs)."""

    name: str
    image: Path
    label: Path | None


def list_cases(folder: Path) -> list[Case]:
    """The training cases of a Decathlon folder: what its dataset.json lists, sorted by name.

    UserError naming every file that is listed and missing.
    """
    listing = read_json(
        folder / "dataset.json",
        "A folder in Decathlon layout holds dataset.json, imagesTr/ and labelsTr/. "
        "Without one, `python data_prep/make_phantom.py` makes a synthetic one.",
    )
    try:
        pairs = [(str(entry["image"]), str(entry["label"])) for entry in listing["training"]]
    except (KeyError, TypeError):
        raise UserError(
            f'{shown(folder / "dataset.json")} has no list "training" of image and label.'
        ) from None
    if not pairs:
        raise UserError(f"{shown(folder / 'dataset.json')} lists no training volumes.")
    cases = []
    for image, label in pairs:
        cases.append(Case(stem(Path(image)), folder / image, folder / label))
    paths = [path for case in cases for path in (case.image, case.label)]
    outside = [p for p in paths if not p.resolve().is_relative_to(folder.resolve())]
    if outside:
        raise UserError(f"dataset.json lists files outside its folder: {outside[0]}")
    lost = [shown(p) for p in paths if not p.is_file()]
    if lost:
        raise UserError(f"{len(lost)} files that dataset.json lists are missing:{bullets(lost)}")
    names = [case.name for case in cases]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"dataset.json lists the same volume twice: {', '.join(twice)}")
    return sorted(cases, key=lambda case: case.name)


def read_case(case: Case) -> tuple[Volume, Volume]:
    """Image and label of one case, checked against each other. UserError names what differs."""
    image, label = read_volume(case.image), read_volume(case.label)
    if image.stored_shape != label.stored_shape:
        raise UserError(
            f"{shown(case.label)} has shape {label.stored_shape}, "
            f"its image {image.stored_shape}; they must be equal."
        )
    shift = np.abs(image.stored_affine - label.stored_affine).max()
    if shift > 1e-3:
        raise UserError(f"{shown(case.label)}: its affine differs from its image's by {shift:g}.")
    if not np.isfinite(image.voxels).all():
        raise UserError(f"{shown(case.image)} holds NaN or infinite voxels.")
    odd = label.voxels[(label.voxels != 0) & (label.voxels != 1)]
    if odd.size:
        listed = ", ".join(f"{v:g}" for v in np.unique(odd)[:8])
        raise UserError(f"{shown(case.label)} holds the values {listed} beside 0 and 1.")
    return image, label


def run_all(work, cases: list[Case], workers: int, title: str) -> list:
    """`work(case)` for every case in `workers` processes, in order; memory: one case a process.

    UserErrors do not stop the others: they are raised as one, naming all bad cases, at the end.
    """
    results, problems = [], []
    with ProcessPoolExecutor(max(1, min(workers, len(cases)))) as pool:
        futures = [pool.submit(work, case) for case in cases]
        for future in tqdm(futures, desc=title, disable=None, leave=False):
            try:
                results.append(future.result())
            except UserError as error:
                problems.append(str(error))
            except BrokenProcessPool:
                raise UserError(
                    "A worker process was ended from outside, most likely for want of memory. "
                    "Try --workers 1; what is finished is kept."
                ) from None
    if problems:
        raise UserError(
            f"{len(problems)} of {len(cases)} cases cannot be used:{bullets(problems, 200)}"
        )
    return results
