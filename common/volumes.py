"""NIfTI volumes: checked reading, canonical orientation, writing in the input's own geometry.

Voxel arrays are `(x, y, z)` in the closest canonical orientation (RAS+: x grows to the patient's
right, y to the front, z to the head).
"""

import gzip
import hashlib
import io
import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from common.files import UserError, shown, write_bytes

# A CT of 1024x1024x1000 voxels has 4 GB as float32; what claims more is damaged, or a bomb.
MAX_BYTES = 4 << 30
HEADER = 352  # bytes before a NIfTI-1 file's voxels, at least
SLACK = 1 << 20  # bytes after them that do no harm
SPACING_MM = (1e-3, 1e3)  # what lies outside is no distance between the voxels of a patient


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


DICOM = (
    "DICOM is not read: convert the series with dcm2niix (https://github.com/rordenlab/dcm2niix) "
    "and name the .nii.gz."
)


def stem(path: Path) -> str:
    """A file's name without .nii or .nii.gz."""
    return path.name.removesuffix(".gz").removesuffix(".nii")


def is_dicom(path: Path) -> bool:
    """Whether a file has DICOM's mark after a preamble of 128 bytes."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def read_bytes(path: Path) -> bytes:
    """The whole content of a NIfTI file, unpacked to its end if it is packed, whatever its name.

    `nib.load` stops reading before gzip's checksum and so returns wrong voxels for a bit-flipped
    file without a word; reading the stream to its end checks every bit. No more is unpacked than
    the header claims. UserError if the file is missing, damaged, no NIfTI-1, or of another length.
    """
    try:
        with path.open("rb") as file:
            opener = gzip.open if file.read(2) == b"\x1f\x8b" else open
        with opener(path, "rb") as file:
            claimed = claimed_bytes(file.read(HEADER), path)
            file.seek(0)
            content = file.read(claimed + SLACK + 1)
    except FileNotFoundError:
        raise UserError(f"{shown(path)} does not exist.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{shown(path)} is damaged or cut short ({error}).") from None
    if not claimed <= len(content) <= claimed + SLACK:
        found = "less" if len(content) < claimed else "much more"
        raise UserError(f"{shown(path)} holds {found} than the {claimed} bytes its header claims.")
    return content


def claimed_bytes(head: bytes, path: Path) -> int:
    """How long the unpacked file should be, from its first bytes. UserError for what is no NIfTI-1,
    has too many voxels, or a spacing that is none."""
    if head[128:132] == b"DICM":
        raise UserError(f"{shown(path)} is DICOM. {DICOM}")
    if 540 in (int.from_bytes(head[:4], order) for order in ("little", "big")):
        raise UserError(f"{shown(path)} is NIfTI-2; save it as NIfTI-1.")
    try:
        # Without what follows the 348 bytes: nibabel would look for extensions there.
        header = nib.Nifti1Header.from_fileobj(io.BytesIO(head[:348]), check=False)
        shape, start = header.get_data_shape(), int(header["vox_offset"]) or HEADER
        spacing = header["pixdim"][1 : 1 + len(shape)][:3]  # nibabel would mend what is 0 or less
        bytes_each = header.get_data_dtype().itemsize
    except Exception as error:  # nibabel raises many types for a broken header
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{shown(path)} is not a sound NIfTI-1 file ({reason}).") from None
    size, voxels = "x".join(map(str, shape)), math.prod(map(int, shape))
    if start < HEADER or min(shape, default=0) < 1:
        raise UserError(
            f"{shown(path)} claims {size} voxels from byte {start} on: a broken header."
        )
    if voxels * max(bytes_each, 4) > MAX_BYTES:  # as float32, once its scaling is applied
        raise UserError(
            f"{shown(path)} claims {size} voxels, more than {MAX_BYTES >> 30} GiB in memory."
        )
    low, high = SPACING_MM
    if not ((spacing > low) & (spacing < high)).all():
        raise UserError(f"{shown(path)} has a spacing (pixdim) of {spacing.tolist()} mm.")
    return start + voxels * bytes_each


def read_volume(path: Path, channel: int | None = None) -> Volume:
    """Read a 3D NIfTI file; voxels keep the stored type where its scaling is 1 and 0, else float32.

    Of a 4D file (several contrasts of one patient) `channel` is read, counted from 0. UserError if
    it is missing, damaged, not NIfTI, not 3D (or 4D without `channel`), holds another number of
    voxels than it claims, or gives two spacings: one in pixdim, one in its affine.
    """
    content = read_bytes(path)
    try:
        image = nib.Nifti1Image.from_bytes(content)
        shape, number = image.shape[:3], _channel(path, image.shape, channel)
        stored = image.dataobj
        scaled = (stored.slope, stored.inter) != (1, 0)
        stored = np.asarray(stored, np.float32) if scaled else stored.get_unscaled()
        ornt = nib.io_orientation(image.affine)
        if stored.size > np.prod(shape):
            stored = stored[..., number].copy(order="K")  # the other channels need no memory
        voxels = nib.apply_orientation(stored.reshape(shape, order="A"), ornt)
    except UserError:
        raise
    except MemoryError:
        raise UserError(f"{shown(path)} needs more memory than there is.") from None
    except Exception as error:  # nibabel raises many types for a broken header
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{shown(path)} is not a sound NIfTI file ({reason}).") from None
    if voxels.dtype.kind not in "iuf":
        raise UserError(f"{shown(path)} has shape {shape}, type {voxels.dtype}; a CT is expected.")
    sizes, claimed = nib.affines.voxel_sizes(image.affine), image.header.get_zooms()[:3]
    if not np.allclose(sizes, claimed, rtol=0.01):
        sizes, claimed = ([round(float(s), 4) for s in values] for values in (sizes, claimed))
        raise UserError(
            f"{shown(path)} gives two spacings: {claimed} in pixdim, {sizes} in affine."
        )
    spacing = np.zeros(3)
    spacing[ornt[:, 0].astype(int)] = sizes
    return Volume(
        voxels=voxels,
        spacing=tuple(spacing.tolist()),
        stored_shape=shape,
        stored_affine=image.affine,
        stored_orientation="".join(nib.aff2axcodes(image.affine)),
        header=image.header.copy(),
        sha256=hashlib.sha256(content).hexdigest(),
    )


def _channel(path: Path, shape: tuple[int, ...], channel: int | None) -> int:
    """Which channel of a file of this shape is to be read. UserError if that is not clear."""
    count = shape[3] if len(shape) == 4 else 1
    if len(shape) not in (3, 4) or count > 1 and channel is None:
        some = f" (data_prep's --channel chooses one of its {count} channels)" if count > 1 else ""
        raise UserError(f"{shown(path)} has shape {shape}; a 3D volume is expected{some}.")
    if len(shape) == 3:
        return 0  # a channel that was taken out of its file before
    if (channel or 0) >= count:
        raise UserError(
            f"{shown(path)} has shape {shape}, and no channel {channel}: they count from 0."
        )
    return channel or 0


def write_volume(path: Path, voxels: np.ndarray, like: Volume) -> None:
    """Write canonical voxels `(x, y, z)` as NIfTI in the geometry of the file `like` was read from:
    its shape, axes, affine and header, with the voxels' own type, without header extensions, which
    describe the CT and may name the patient. The same voxels give the same bytes."""
    canonical = nib.orientations.axcodes2ornt("RAS")
    back = nib.orientations.ornt_transform(canonical, nib.io_orientation(like.stored_affine))
    header = like.header.copy()
    header.set_data_dtype(voxels.dtype)
    header.set_slope_inter(1, 0)
    header.extensions.clear()
    header["cal_min"] = header["cal_max"] = 0  # the CT's display range is not the mask's
    stored = np.ascontiguousarray(nib.apply_orientation(voxels, back))
    content = nib.Nifti1Image(stored, like.stored_affine, header).to_bytes()
    packed = path.suffix == ".gz"
    content = gzip.compress(content, compresslevel=3, mtime=0) if packed else content
    write_bytes(path, content)
