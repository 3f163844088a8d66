"""What shows only when the scans of a site are held against each other."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedseg.imaging import resampling
from fedseg.imaging.content import hash_of
from fedseg.imaging.dataset import Case
from fedseg.imaging.foreground import Foreground
from fedseg.imaging.grids import nearest_axes
from fedseg.imaging.nifti import Volume
from fedseg.imaging.quality.finding import Finding, Remark, Severity, finding
from fedseg.imaging.quality.scan import Scan

ALIKE = 0.999
"""Correlation of two thumbnails above which they are held for one scan. Measured on 32 atlas volumes, which are more
alike than people: a scan cut or scaled anew has 0.99999 with itself, two scans have at most 0.997. One that was
resampled or denoised may have less than that, and is missed."""

SCALE = 20.0
_THUMBNAIL = 24
_TOP_SHARE = 0.999


@dataclass(frozen=True, eq=False)
class Summary:
    """What is kept of a scan for the comparison with the others: a few kilobytes.

    Args:
        case: Whose it is.
        axes: As `RAS`.
        content: `voxel_hash` of its grey values.
        labels: Hash of its classes, or None.
        brightness: 99.9th percentile of the grey values above the background.
        thumbnail: Grey values of the foreground on 24^3 voxels, mean 0 and norm 1, or None.
    """

    case: Case
    axes: str
    content: bytes
    labels: bytes | None
    brightness: float
    thumbnail: NDArray[np.float32] | None


def summary(scan: Scan) -> Summary | None:
    """What is kept of a scan; None where it can't be read."""
    if scan.image is None or scan.values is None or scan.foreground is None:
        return None
    bright = float(scan.values[int(0.999 * (scan.values.size - 1))]) - scan.foreground.background
    classes = None if scan.classes is None else _class_hash(scan.classes)
    thumbnail = _thumbnail(scan.image, scan.values, scan.foreground)
    return Summary(scan.case, scan.image.axes, hash_of(scan.values), classes, bright, thumbnail)


def compare(scans: Sequence[Summary], root: str) -> Iterator[Finding]:
    """All findings about several scans of one site.

    Args:
        scans: Of every scan that could be read.
        root: The data set's folder.
    """
    axes = Counter(scan.axes for scan in scans)
    if len(axes) > 1:
        mixed = ", ".join(f"{name} ({count})" for name, count in axes.most_common())
        remark = Remark("axes", "note", "scans have different axes", "all are turned to RAS", mixed)
        yield finding(remark, file=root)
    yield from _copies(scans)
    yield from _near_copies(scans)
    yield from _shared_labels(scans)
    yield from _scales(scans)


def _copies(scans: Sequence[Summary]) -> Iterator[Finding]:
    """Scans with the same voxels, whatever their files are called and however they are stored."""
    first: dict[bytes, Summary] = {}
    for scan in scans:
        twin = first.setdefault(scan.content, scan)
        if twin is not scan:
            yield _about(scan, _copy(scan.case, twin.case, "the same scan"))


def _near_copies(scans: Sequence[Summary]) -> Iterator[Finding]:
    """Scans that look the same: scaled, or cut to another field of view."""
    seen = [scan for scan in scans if scan.thumbnail is not None]
    if len(seen) < 2:
        return
    thumbnails = np.array([scan.thumbnail for scan in seen])
    alike = thumbnails @ thumbnails.T
    for later in range(1, len(seen)):
        earlier = int(alike[later, :later].argmax())
        one, other = seen[later], seen[earlier]
        if alike[later, earlier] > ALIKE and one.content != other.content:
            yield _about(one, _copy(one.case, other.case, "nearly the same scan"))


def _copy(case: Case, twin: Case, what: str) -> Remark:
    """What it means that two cases show one scan."""
    kind = "copy" if what == "the same scan" else "near-copy"
    severity: Severity = "warning"
    detail = f"as {twin.name}"
    if case.unit == twin.unit:
        return Remark(kind, severity, f"{what} twice in one subject", "it counts twice in training: remove one", detail)
    if case.split != twin.split:
        severity = "error" if kind == "copy" else "warning"
        hint = "training and test would share it, so scores would be too good: remove one, or give both one subject_key"
        return Remark(kind, severity, f"{what} under two ids in two splits", hint, detail)
    hint = "one patient under two ids counts twice in privacy: remove one, or give both one subject_key"
    return Remark(kind, severity, f"{what} under two ids", hint, detail)


def _shared_labels(scans: Sequence[Summary]) -> Iterator[Finding]:
    """One label map on different scans."""
    first: dict[bytes, Summary] = {}
    for scan in scans:
        if scan.labels is None:
            continue
        twin = first.setdefault(scan.labels, scan)
        if twin is not scan and twin.content != scan.content:
            hint = "one of the two was labelled by a copy: look at both in a viewer"
            remark = Remark("label-copy", "warning", "the same label map on two scans", hint, f"as {twin.case.name}")
            yield _about(scan, remark)


def _scales(scans: Sequence[Summary]) -> Iterator[Finding]:
    """Grey values on another scale than those of the site's other scans."""
    bright = {scan: scan.brightness for scan in scans if scan.brightness > 0}
    if len(bright) < 3:
        return
    usual = float(np.median(list(bright.values())))
    for scan, value in bright.items():
        if not 1 / SCALE <= value / usual <= SCALE:
            detail = f"{value / usual:.3g} times the others"
            hint = "harmless, as each scan is normalised by itself; but was it exported in another way?"
            yield _about(scan, Remark("scale", "note", "grey values on another scale", hint, detail))


def _about(scan: Summary, remark: Remark) -> Finding:
    return finding(remark, file=str(scan.case.image), subject=scan.case.subject, scan=scan.case.name)


def _class_hash(classes: NDArray[np.uint8]) -> bytes:
    """The same for one label map with more or less background around it."""
    inside = np.ascontiguousarray(classes[resampling.box(classes > 0, (0, 0, 0))])
    return hashlib.sha256(repr(inside.shape).encode() + inside.tobytes()).digest()


def _thumbnail(image: Volume, values: NDArray[np.float32], foreground: Foreground) -> NDArray[np.float32] | None:
    """The box around the foreground on the scan's own grid, so that a wider field of view changes nothing."""
    axes, flips = nearest_axes(image.affine)
    turned = image.data.transpose(axes)[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]
    grey = np.asarray(turned, dtype=np.float32)
    top = values[int(_TOP_SHARE * (values.size - 1))]
    inside = np.clip(grey[resampling.box(foreground.mask(grey), (0, 0, 0))], foreground.background, top)
    first, second, third = (
        resampling.weights(resampling.centres(_THUMBNAIL, size / _THUMBNAIL, size), size / _THUMBNAIL, size)
        for size in inside.shape
    )
    small = resampling.apply((first, second, third), inside).reshape(-1)
    small = small - small.mean()
    norm = float(np.linalg.norm(small))
    return np.asarray(small / norm, dtype=np.float32) if norm > 0 else None
