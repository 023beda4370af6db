"""NIfTI volumes: checked reading, canonical orientation, writing in the input's own geometry.

Voxel arrays are `(x, y, z)` in the closest canonical orientation (RAS+: x grows to the patient's
right, y to the front, z to the head). Lengths are in mm, whatever unit the header states.
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

from common.dataset import geometry
from common.dataset.formats import foreign
from common.errors import UserError
from common.files import shown, write_bytes

# A CT of 1024x1024x1000 voxels has 4 GB as float32; anything that claims more is damaged or a bomb.
MAX_BYTES = 4 << 30
HEADER = 352  # bytes before a file's voxels, at least
SLACK = 1 << 20  # extra bytes at the end that do no harm
SPACING_MM = (1e-3, 1e3)  # anything outside is not a distance between voxels of a patient


@dataclass
class Volume:
    """A 3D image in canonical orientation: voxels `(x, y, z)`, spacing in mm, its stored form.

    `affine` is that of the canonical voxels, in mm; `stored_affine` is the file's own, in its own
    unit, `stored_shape` its shape without axes of length 1 after the third.
    """

    voxels: np.ndarray
    spacing: tuple[float, float, float]
    affine: np.ndarray
    stored_shape: tuple[int, ...]
    stored_affine: np.ndarray
    stored_orientation: str
    header: nib.Nifti1Header
    sha256: str

    @property
    def voxel_ml(self) -> float:
        """The volume of a voxel in ml, also where the axes are not at right angles."""
        return geometry.voxel_ml(self.affine)

    def geometry(self) -> dict:
        """What dataset.json keeps to bring a mask back into the stored file's frame and axes."""
        affine = in_mm(self.stored_affine, self.header)
        return {
            "shape": list(self.stored_shape),
            "affine": [[round(float(v), 6) for v in row] for row in affine],
            "spacing": [round(float(s), 6) for s in nib.affines.voxel_sizes(affine)],
            "orientation": self.stored_orientation,
            "sha256": self.sha256,
        }


def in_mm(affine: np.ndarray, header: nib.Nifti1Header) -> np.ndarray:
    """A file's affine in mm."""
    return np.diag([*[geometry.unit_of(header)[1]] * 3, 1]) @ affine


def read_bytes(path: Path) -> bytes:
    """The whole content of a NIfTI file, unpacked to its end if it is packed, whatever its name.

    `nib.load` stops reading before gzip's checksum and so returns wrong voxels for a bit-flipped
    file silently; reading the stream to its end checks every bit. No more is unpacked than
    the header claims. UserError if the file is missing, damaged, not NIfTI, or of another length.
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
        length = "less" if len(content) < claimed else "much more"
        raise UserError(f"{shown(path)} holds {length} than the {claimed} bytes its header claims.")
    return content


def claimed_bytes(head: bytes, path: Path) -> int:
    """How long the unpacked file should be, from its first bytes. UserError for what is not NIfTI,
    has too many voxels, or an impossible spacing."""
    if kind := foreign(head, path.name):
        raise UserError(f"{shown(path)} is {kind}")
    if 348 not in (int.from_bytes(head[:4], order) for order in ("little", "big")):
        begins = f"it begins with {ascii(head[:12].decode('latin-1'))}" if head else "it is empty"
        raise UserError(f"{shown(path)} is not a NIfTI file, packed or not: {begins}.")
    try:
        # Without what follows the 348 bytes: nibabel would look for extensions there.
        header = nib.Nifti1Header.from_fileobj(io.BytesIO(head[:348]), check=False)
        shape, start = header.get_data_shape(), int(header["vox_offset"]) or HEADER
        # From the header itself: nibabel would replace what is 0 or less.
        spacing = header["pixdim"][1 : 1 + len(shape)][:3]
        bytes_each = header.get_data_dtype().itemsize
    except Exception as error:  # nibabel raises many types for a broken header
        raise UserError(f"{shown(path)} is not a sound NIfTI file ({reason(error)}).") from None
    size, voxels = "x".join(map(str, shape)), math.prod(map(int, shape))
    if not HEADER <= start <= MAX_BYTES or min(shape, default=0) < 1:
        raise UserError(
            f"{shown(path)} claims {size} voxels from byte {start} on: a broken header."
        )
    if voxels * max(bytes_each, 4) > MAX_BYTES:  # as float32, once its scaling is applied
        raise UserError(
            f"{shown(path)} claims {size} voxels, more than {MAX_BYTES >> 30} GiB in memory."
        )
    (low, high), (unit, mm) = SPACING_MM, geometry.unit_of(header)
    if not ((spacing * mm > low) & (spacing * mm < high)).all():
        raise UserError(
            f"{shown(path)} has a spacing (pixdim) of {spacing.tolist()} {unit}; {low:g} to "
            f"{high:g} mm are expected."
        )
    return start + voxels * bytes_each


def reason(error: Exception) -> str:
    """Another library's error in short: its message, or its type."""
    return " ".join(str(error).split())[:160] or type(error).__name__


def read_volume(path: Path, channel: int | None = None, label: bool = False) -> Volume:
    """Read a 3D NIfTI file; voxels keep the stored type if its scaling is 1 and 0, else float32.

    For a 4D file (several contrasts of one patient) `channel` is read, counted from 0; a `label`
    has none. Axes of length 1 after the third are dropped, a 2D image is a volume of one slice.
    UserError if the file is missing, damaged, not NIfTI, not 3D (or 4D without `channel`), holds
    another number of voxels than it claims, or gives two spacings: in pixdim and in its affine.
    """
    content = read_bytes(path)
    try:
        image = nib.Nifti1Image.from_bytes(content)
        shape, count = _three_axes(image.shape)
        number = _channel(path, image.shape, count, channel, label)
        stored = image.dataobj
        scaled = (stored.slope, stored.inter) != (1, 0)
        stored = np.asarray(stored, np.float32) if scaled else stored.get_unscaled()
        if stored.size > math.prod(shape):  # the other channels should not occupy memory
            stored = stored.reshape(*shape, count, order="F")[..., number].copy(order="K")
        affine, sizes = in_mm(image.affine, image.header), _sizes(path, image)
        ornt = nib.io_orientation(affine)
        voxels = nib.apply_orientation(stored.reshape(shape, order="A"), ornt)
    except UserError:
        raise
    except MemoryError:
        raise UserError(f"{shown(path)} needs more memory than is available.") from None
    except Exception as error:  # nibabel raises many types for a broken header
        raise UserError(f"{shown(path)} is not a sound NIfTI file ({reason(error)}).") from None
    if voxels.dtype.kind not in "iuf":
        raise UserError(f"{shown(path)} has shape {shape}, type {voxels.dtype}; a CT is expected.")
    spacing = np.zeros(3)
    spacing[ornt[:, 0].astype(int)] = sizes
    return Volume(
        voxels=voxels,
        spacing=tuple(spacing.tolist()),
        affine=geometry.canonical(affine, shape),
        stored_shape=shape,
        stored_affine=image.affine,
        stored_orientation="".join(nib.aff2axcodes(affine)),
        header=image.header.copy(),
        sha256=hashlib.sha256(content).hexdigest(),
    )


def _sizes(path: Path, image: nib.Nifti1Image) -> np.ndarray:
    """The lengths in mm of the voxels' edges along the stored axes. UserError if the affine gives
    the voxels no volume, or pixdim gives them other lengths."""
    mm = geometry.unit_of(image.header)[1]
    claimed = np.array(image.header.get_zooms()[:3]) * mm
    affine = in_mm(image.affine, image.header)
    sizes = nib.affines.voxel_sizes(affine)
    if geometry.is_flat(affine):
        raise UserError(f"{shown(path)}: its affine gives the voxels no volume.")
    # Where the gantry was tilted pixdim may hold the distance of the slices.
    each = (sizes, geometry.between_planes(affine))
    same = [np.isclose(lengths[: len(claimed)], claimed, rtol=0.01) for lengths in each]
    if np.logical_or(*same).all():
        return sizes
    claimed, sizes = ([round(float(s), 4) for s in values] for values in (claimed, sizes))
    raise UserError(f"{shown(path)} gives two spacings: {claimed} in pixdim, {sizes} in affine.")


def _three_axes(shape: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    """A stored shape's first three axes, of length 1 where there are fewer, and how many volumes
    of these the file holds."""
    return (*shape, 1, 1)[:3], math.prod(shape[3:])


def _channel(
    path: Path, shape: tuple[int, ...], count: int, channel: int | None, label: bool
) -> int:
    """Which of a file's `count` channels is to be read. UserError if that is not clear."""
    if label and count > 1:
        raise UserError(
            f"{shown(path)} has shape {shape}: a label is 3D. If it holds a channel for each "
            "class, save the classes' numbers in one volume (argmax over the channels)."
        )
    several = count > 1 and (channel is None or sum(n > 1 for n in shape[3:]) > 1)
    if len(shape) < 2 or several:
        some = (
            f": one of its {count} channels. slice_nifti.py and check_volumes.py choose one with "
            "--channel; to segment it save that channel alone"
        ) * (count > 1)
        raise UserError(f"{shown(path)} has shape {shape}; a 3D volume is expected{some}.")
    if len(shape) <= 3 or label:
        return 0  # a channel that was extracted before
    if (channel or 0) >= count:
        raise UserError(
            f"{shown(path)} has shape {shape}, and no channel {channel}: they count from 0."
        )
    return channel or 0


def write_volume(path: Path, voxels: np.ndarray, like: Volume) -> None:
    """Write canonical voxels `(x, y, z)` as NIfTI in the geometry of the file `like` was read from:
    its shape (without axes of length 1 after the third), axes, affine, unit and header, with the
    voxels' own type, without header extensions, which describe the CT and may name the patient.
    The same voxels give the same bytes."""
    canonical = nib.orientations.axcodes2ornt("RAS")
    back = nib.orientations.ornt_transform(
        canonical, nib.io_orientation(in_mm(like.stored_affine, like.header))
    )
    header = like.header.copy()
    header.set_data_dtype(voxels.dtype)
    header.set_slope_inter(1, 0)
    header.extensions.clear()
    header["cal_min"] = header["cal_max"] = 0  # the CT's display range is not the mask's
    stored = np.ascontiguousarray(nib.apply_orientation(voxels, back))
    stored = stored.reshape(stored.shape[: len(like.header.get_data_shape())])  # 2D stays 2D
    content = nib.Nifti1Image(stored, like.stored_affine, header).to_bytes()
    packed = path.suffix.lower() == ".gz"
    content = gzip.compress(content, compresslevel=3, mtime=0) if packed else content
    write_bytes(path, content)
