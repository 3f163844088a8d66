"""NIfTI files in and out, strictly: what cannot be trusted is refused with the file's name and what to do.

Nothing of a header but the geometry is kept or written: descriptions, names and times of the source never travel on.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.nifti1 import Nifti1Pair
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from fedseg.errors import DataError, StorageError

nib: Any = nibabel  # only half of it is typed

SUFFIXES = (".nii", ".nii.gz")

_QUATERNION = ("quatern_b", "quatern_c", "quatern_d")
_ROUNDED = 1.001
_GEOMETRY_FIELDS = (
    *("pixdim", "qform_code", "sform_code", *_QUATERNION),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units"),
)
_DAMAGED = (EOFError, OSError, zlib.error, ValueError, MemoryError, HeaderDataError, ImageFileError)
_MOST_A_SIDE = 1024
_MOST_VOXELS = 2**29
_RIGHTS = "ask its owner for the right to read it"
_MASKED_SHARE = 0.01
_LENGTHS_MM = {1: 1000.0, 2: 1.0, 3: 0.001}
_TEXTS = ("descrip", "aux_file", "intent_name", "db_name", "data_type")
_TO_COPY_AGAIN = "the file is cut short or damaged: copy or export it again"


@dataclass(frozen=True, eq=False)
class Volume:
    """One scan or label map on its own grid.

    Args:
        data: [i, j, k] in the file's own axis order: float32 for images, int32 for labels.
        affine: 4x4, voxel indices to millimetres (right, anterior, superior).
        spacing_mm: Voxel size along i, j, k, from the affine.
        source: The file's path, for messages on this machine only.
        shape: The file's own shape; may end in ones where `data` does not.
        qform_code: NIfTI code of the quaternion form, 0 where unset.
        sform_code: NIfTI code of the affine form, 0 where unset.
        dtype: Data type in the file.
        forms_agree: False where qform and sform are both set and place a voxel further than half a voxel apart.
    """

    data: NDArray[np.generic]
    affine: NDArray[np.float64]
    spacing_mm: tuple[float, float, float]
    source: str
    shape: tuple[int, ...]
    qform_code: int
    sform_code: int
    dtype: str
    forms_agree: bool = True

    @property
    def voxel_mm3(self) -> float:
        """Volume of a voxel: less than the product of its edges where the axes are not at right angles."""
        unit = self.affine[:3, :3] / np.linalg.norm(self.affine[:3, :3], axis=0)
        # Rounded as the spacing is: a volume depends neither on the seventh digit nor on the order of the axes.
        return math.prod(self.spacing_mm) * round(abs(float(np.linalg.det(unit))), 6)

    @property
    def axes(self) -> str:
        """Directions of the axes, as in `RAS` or `LIP`."""
        return "".join(str(code) for code in nib.aff2axcodes(self.affine))


@dataclass(frozen=True)
class Fields:
    """A NIfTI header as stored, for the data check.

    Args:
        pixdim: Voxel size along i, j, k as the header's own field says.
        length_mm: Millimetres in the header's unit of length; None where it names none.
        slope: Factor that stored values are scaled by; 1 where there is none.
        texts: Names of the text fields that are not empty, with their text: patient data, never shown.
        extensions: Codes of the header's extensions (2 is DICOM).
    """

    pixdim: tuple[float, float, float]
    length_mm: float | None
    slope: float
    texts: Mapping[str, str] = field(repr=False)
    extensions: tuple[int, ...] = ()


def read_fields(path: Path) -> Fields:
    """The header's fields that `Volume` does not keep.

    Raises:
        DataError: No such file, or not NIfTI.
    """
    image = _open(path)
    header = image.header
    texts = {name: bytes(header[name]).rstrip(b"\0").decode("latin-1").strip() for name in _TEXTS if name in header}
    pixdim = [float(size) for size in header["pixdim"][1:4]]
    slope = float(image.dataobj.slope)
    return Fields(
        (pixdim[0], pixdim[1], pixdim[2]),
        _LENGTHS_MM.get(int(header["xyzt_units"]) % 8),
        slope,
        {name: text for name, text in texts.items() if text},
        tuple(int(extension.get_code()) for extension in header.extensions),
    )


def read_image(path: Path) -> Volume:
    """Read a scan as float32.

    Raises:
        DataError: No such file, not NIfTI, cut short, not 3D, no orientation, NaN or infinity, no voxels, more than
            1024 a side or 2^29 in all, one value.
    """
    header = read_header(path)
    data = _load(path, np.float32)
    if not np.isfinite(data).all():
        bad = int(data.size - np.isfinite(data).sum())
        hint = "export the scan again"
        if bad > _MASKED_SHARE * data.size:
            hint = f"{hint}, or put a number there (0) if a tool has masked the background with NaN"
        raise DataError(f"{bad} of {data.size} voxels are NaN or infinite", where=str(path), hint=hint)
    if data.min() == data.max():
        raise DataError(f"every voxel has the value {data.flat[0]:g}: there is no picture in it", where=str(path))
    return _with_data(header, data)


def read_labels(path: Path) -> Volume:
    """Read a label map as int32; whole numbers stored as floats will do.

    Raises:
        DataError: As `read_image` (but one value is allowed), and for values that are negative or not whole.
    """
    header = read_header(path)
    stored = np.dtype(header.dtype)
    data = _load(path, np.float64 if stored.kind in "iu" and stored.itemsize > 2 else np.float32)
    rounded = np.rint(data)
    if not np.isfinite(data).all() or np.abs(data - rounded).max() > 1e-3:
        raise DataError("label values must be whole numbers", where=str(path), hint=_whole(data))
    if rounded.min() < 0 or rounded.max() > np.iinfo(np.int32).max:
        raise DataError(f"label values run from {rounded.min():g} to {rounded.max():g}", where=str(path))
    return _with_data(header, rounded.astype(np.int32))


def _whole(data: NDArray[np.floating]) -> str:
    """What to do about label values that aren't whole."""
    if not np.isfinite(data).all():
        return "some are NaN or infinite: write 0 where nothing is labelled"
    if data.min() >= 0 and data.max() <= 1:
        return "they run from 0 to 1 like probabilities: threshold a mask at 0.5, or take each voxel's likeliest label"
    return "probability maps won't do; if labels were resampled, do it again with nearest neighbour"


def read_header(path: Path) -> Volume:
    """Everything but the voxels: `data` is empty. Quick, for surveys of whole data sets.

    Raises:
        DataError: No such file, not NIfTI, not 3D, no orientation, no voxels, more than 1024 a side or 2^29 in all.
    """
    image = _open(path)
    shape = tuple(int(size) for size in image.shape)
    _spatial_shape(shape, path)
    dtype = image.get_data_dtype()
    if dtype.kind not in "iuf":
        raise DataError(f"voxels of type {dtype} are not grey values", where=str(path), hint="export one channel")
    affine, qform_code, sform_code, agree = _affine(image, path)
    # Headers hold float32, and a quaternion rounds otherwise in each axis order: no scan depends on the seventh digit.
    spacing = tuple(round(float(size), 6) for size in nib.affines.voxel_sizes(affine))
    empty = np.empty((0, 0, 0), np.float32)
    spacing_mm = (spacing[0], spacing[1], spacing[2])
    return Volume(empty, affine, spacing_mm, str(path), shape, qform_code, sform_code, dtype.name, agree)


def header_like(source: Path) -> Any:
    """A header (nibabel's `Nifti1Header`) for uint8 voxels on the grid of `source`: its shape and geometry alone.

    Raises:
        DataError: The source cannot be read.
    """
    image = _open(source)
    header = nib.Nifti1Header()
    for name in _GEOMETRY_FIELDS:
        header[name] = image.header[name]
    header.set_data_dtype(np.uint8)
    header.set_data_shape(image.shape)
    return header


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: a temporary name beside it, flushed to disk, then renamed.

    It is patient data: the file is closed to others at every moment, and so is a folder that has to be made.

    Raises:
        StorageError: The folder can't be made or written, or the disk is full.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".tmp-", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(name).unlink()
            raise
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise StorageError(
            f"cannot write: {reason}", where=str(path), hint="check the disk's room and rights"
        ) from error


def stem(path: Path) -> str:
    """A file's name without `.nii` or `.nii.gz`."""
    return re.sub(r"\.nii(\.gz)?$", "", path.name)


def _open(path: Path) -> Any:
    """The file's header, checked to be NIfTI (a nibabel `Nifti1Pair`)."""
    if not path.exists():
        link = "its content was never fetched: try `datalad get`" if path.is_symlink() else "check the path"
        raise DataError("there is no such file", where=str(path), hint=link)
    try:
        image = nib.load(path)
    except PermissionError as error:
        raise DataError("this file may not be read by you", where=str(path), hint=_RIGHTS) from error
    except _DAMAGED as error:
        raise DataError("this is not a readable NIfTI file", where=str(path), hint=_TO_COPY_AGAIN) from error
    if not isinstance(image, Nifti1Pair):
        kind = type(image).__name__
        raise DataError(f"the file is {kind}, not NIfTI", where=str(path), hint="convert it to .nii.gz")
    _shorten_quaternion(image.header)
    return image


def _shorten_quaternion(header: Any) -> None:
    """Bring a quaternion to length 1 that rounding has made longer: nibabel refuses it, and a good sform with it."""
    parts = np.array([float(header[name]) for name in _QUATERNION])
    length = float(np.linalg.norm(parts))
    if 1 + nib.Nifti1Header.quaternion_threshold < length**2 and length <= _ROUNDED:
        for name, part in zip(_QUATERNION, parts / length, strict=True):
            header[name] = part


def _load(path: Path, dtype: type[np.floating]) -> NDArray[np.floating]:
    """The voxels, [i, j, k], scaled as the header says."""
    image = _open(path)
    try:
        with np.errstate(all="ignore"):
            data = np.asarray(image.dataobj, dtype=dtype)
    except MemoryError as error:
        what = f"there is not enough memory for its {' x '.join(map(str, image.shape))} voxels"
        raise DataError(what, where=str(path), hint="close other programs, or cut the scan to the brain") from error
    except _DAMAGED as error:
        raise DataError("the voxels cannot be read to the end", where=str(path), hint=_TO_COPY_AGAIN) from error
    return data.reshape(_spatial_shape(data.shape, path))


def _spatial_shape(shape: tuple[int, ...], path: Path) -> tuple[int, int, int]:
    """Three sizes; trailing ones are dropped. Bounded, as a file of some bytes may claim any number of voxels."""
    kept = list(shape)
    while len(kept) > 3 and kept[-1] == 1:
        kept.pop()
    if len(kept) != 3:
        raise DataError(
            f"the image is {len(kept)}D, {' x '.join(map(str, shape))}: one 3D volume is needed",
            where=str(path),
            hint="split series and channels into files of their own; one probability map a file is not a label map",
        )
    if min(kept) < 1:
        raise DataError(f"the image has no voxels: {' x '.join(map(str, shape))}", where=str(path), hint=_TO_COPY_AGAIN)
    if max(kept) > _MOST_A_SIDE or math.prod(kept) > _MOST_VOXELS:
        raise DataError(
            f"the header says {' x '.join(map(str, shape))} voxels: more than {_MOST_A_SIDE} a side or 2^29 in all",
            where=str(path),
            hint="no fetal scan is that large: the header is damaged, export it again; or cut the scan to the brain",
        )
    return (kept[0], kept[1], kept[2])


def _affine(image: Any, path: Path) -> tuple[NDArray[np.float64], int, int, bool]:
    """The affine (sform, else qform), both codes, and whether the two agree."""
    try:
        sform, sform_code = image.header.get_sform(coded=True)
        qform, qform_code = image.header.get_qform(coded=True)
    except _DAMAGED as error:
        raise DataError("the header's orientation cannot be read", where=str(path), hint=_TO_COPY_AGAIN) from error
    affine = sform if sform is not None else qform
    if affine is None:
        raise DataError(
            "neither qform nor sform is set: nobody can tell left from right",
            where=str(path),
            hint="convert the scan again from DICOM, or set a form code once you know the orientation",
        )
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise DataError("the affine is singular or not finite", where=str(path), hint="convert the scan again")
    agree = sform is None or qform is None or same_grid(sform, qform, image.shape[:3])
    return np.asarray(affine, dtype=np.float64), int(qform_code), int(sform_code), agree


def same_grid(
    first: NDArray[np.float64], second: NDArray[np.float64], shape: tuple[int, ...], tolerance: float = 0.5
) -> bool:
    """Whether two affines place every corner of the grid within `tolerance` voxels (of the first) of one another."""
    corners = np.array(np.meshgrid(*[(0, size - 1) for size in shape[:3]], [1], indexing="ij")).reshape(4, -1)
    shift = np.linalg.norm(((first - second) @ corners)[:3], axis=0).max()
    return bool(shift <= tolerance * nib.affines.voxel_sizes(first).min())


def _with_data(header: Volume, data: NDArray[np.generic]) -> Volume:
    """The same facts, with voxels."""
    facts = {name: getattr(header, name) for name in header.__dataclass_fields__ if name != "data"}
    return Volume(data=data, **facts)
