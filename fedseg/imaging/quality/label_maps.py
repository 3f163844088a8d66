"""Label maps: tissues, volumes, pieces, place, and whether they belong to the scan."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from fedseg.imaging.foreground import Foreground
from fedseg.imaging.nifti import Fields, Volume, nib
from fedseg.imaging.quality.finding import Remark
from fedseg.imaging.resampling import box
from fedseg.labels import BRAIN_MASK, LabelScheme, display_name

SHARES: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "external_csf": (0.0, 0.6),
        "cortical_grey_matter": (0.04, 0.6),
        "white_matter": (0.1, 0.85),
        "ventricles": (0.007, 0.6),
        "cerebellum": (0.003, 0.12),
        "deep_grey_matter": (0.012, 0.24),
        "brainstem": (0.004, 0.1),
    }
)
"""Least and largest share of all labelled voxels, about a third of the least and three times the most (twice for the
large tissues) in the label maps of three atlases: normal, 21 to 37 weeks, and spina bifida, 21 to 34 weeks, which has
shares of external CSF down to 0.03 in real brains, so that there is no least for it."""

BRAIN_ML = (15.0, 700.0)
EVERYTHING = 0.9
PIECES_ML = 0.1
ON_BACKGROUND = 0.2
MOST_INDICES = 256
_UPRIGHT_DEGREES = 45.0
_UP = np.array([0.0, 0.57, 0.82])
"""From the cerebellum's centre to the brain's: right, anterior, superior; at most 11 degrees from it in the atlases."""

Classes = NDArray[np.uint8]


def check_stored_labels(labels: Volume, fields: Fields) -> Iterator[Remark]:
    """What can be said before anyone knows what the numbers mean."""
    if fields.slope != 1:
        hint = "label numbers are not what was stored: save the label map again as whole numbers without scaling"
        yield Remark("label-scaling", "warning", "the header scales the label numbers", hint, f"by {fields.slope:.3g}")
    count = int(np.count_nonzero(np.bincount(np.minimum(labels.data.reshape(-1), 2**16).astype(np.int64))))
    if count > MOST_INDICES:
        hint = "is it the scan under the name of the label map?"
        yield Remark("many-labels", "error", f"the label map has more than {MOST_INDICES} numbers", hint, f"{count}")


def check_classes(classes: Classes, labels: Volume, scheme: LabelScheme) -> Iterator[Remark]:
    """What the labels say of the brain.

    Args:
        classes: uint8 [i, j, k], with at least one voxel labelled.
        labels: The label map that they come from.
        scheme: What the classes mean.
    """
    counts = np.bincount(classes.reshape(-1), minlength=scheme.classes)
    labelled = int(counts[1:].sum())
    if labelled > EVERYTHING * classes.size:
        hint = "nothing is outside the brain: find the right mask, or leave the scan out"
        yield Remark(
            "everything", "error", "the labels cover nearly everything", hint, f"{labelled / classes.size:.0%}"
        )
        return
    yield from _size(labelled, labels)
    if scheme != BRAIN_MASK:
        yield from _tissues(counts, scheme)
        yield from _upright(classes, labels, scheme)
    yield from _pieces(classes, labels)
    if _touches_edge(classes):
        hint = "the brain is cut off, or the labels lie on another grid"
        yield Remark("edge", "warning", "labels reach the edge of the field of view", hint)


def check_place(classes: Classes, image: Volume, foreground: Foreground) -> Iterator[Remark]:
    """Labels that lie where the scan shows nothing; at most 1 per cent do so in the atlases."""
    bounds = box(classes > 0, (0, 0, 0))
    here = classes[bounds] > 0
    seen = foreground.mask(np.asarray(image.data[bounds], dtype=np.float32))
    share = 1 - int(np.count_nonzero(here & seen)) / max(1, int(np.count_nonzero(here)))
    if share > ON_BACKGROUND:
        hint = "labels of another scan, or shifted? look at both in a viewer"
        yield Remark("outside", "warning", "labels lie on the background", hint, f"{share:.0%} of them")


def check_sides(labels: Volume, names: Mapping[int, str]) -> Iterator[Remark]:
    """Where a table names sides, left must lie left of right in the scanner's coordinates."""
    centres = {side: _across(labels, [index for index, name in names.items() if _is(side, name)]) for side in _SIDES}
    left, right = centres["left"], centres["right"]
    if left is not None and right is not None and left >= right:
        hint = (
            "the header's left and right are wrong, or the table's: check in a viewer, against the report of the scan"
        )
        yield Remark("sides", "warning", "labels named left lie on the right", hint)


_SIDES = {"left": re.compile(r"(?i)\b(left|l|lh)\b"), "right": re.compile(r"(?i)\b(right|r|rh)\b")}


def _is(side: str, name: str) -> bool:
    return bool(_SIDES[side].search(re.sub(r"[^A-Za-z]+", " ", name)))


def _across(labels: Volume, indices: list[int]) -> float | None:
    """Mean position to the right, in mm, of all voxels with one of these indices."""
    places = [each.mean(axis=0) for index in indices if len(each := np.argwhere(labels.data == np.int32(index)))]
    if not places:
        return None
    centre = np.mean(places, axis=0)
    return float(nib.affines.apply_affine(labels.affine, centre)[0])


def _size(labelled: int, labels: Volume) -> Iterator[Remark]:
    volume = labelled * _voxel_ml(labels)
    if not BRAIN_ML[0] <= volume <= BRAIN_ML[1]:
        hint = f"fetuses of 18 to 40 weeks have some {BRAIN_ML[0]:g} to {BRAIN_ML[1]:g} mL: is the voxel size right?"
        yield Remark("volume", "warning", "the labelled volume is not that of a fetal brain", hint, f"{volume:.3g} mL")


def _tissues(counts: NDArray[np.intp], scheme: LabelScheme) -> Iterator[Remark]:
    missing = [display_name(tissue) for tissue in scheme.tissues if not counts[scheme.index(tissue)]]
    if missing:
        hint = "right for some pathologies; otherwise the table or the labels are wrong"
        yield Remark("missing-tissue", "warning", f"no voxel of {', '.join(missing)}", hint)
    shares = counts / max(1, int(counts[1:].sum()))
    for tissue, (least, most) in SHARES.items():
        share = float(shares[scheme.index(tissue)])
        if share and not least <= share <= most:
            size = "little" if share < least else "much"
            hint = "is the label table right? `dseg.tsv` must name the numbers that this site uses"
            detail = f"{share:.1%} of the labelled volume"
            yield Remark("tissue-share", "warning", f"implausibly {size} {display_name(tissue)}", hint, detail)


def _upright(classes: Classes, labels: Volume, scheme: LabelScheme) -> Iterator[Remark]:
    """The cerebellum lies below and behind the brain's centre."""
    brain, cerebellum = classes > 0, classes == scheme.index("cerebellum")
    if not cerebellum.any():
        return
    ends = [nib.affines.apply_affine(labels.affine, ndimage.center_of_mass(each)) for each in (brain, cerebellum)]
    up = ends[0] - ends[1]
    angle = float(np.degrees(np.arccos(np.clip(up @ _UP / max(np.linalg.norm(up) * np.linalg.norm(_UP), 1e-9), -1, 1))))
    if angle > _UPRIGHT_DEGREES:
        hint = "the header's axes are wrong, or the brain lies at an angle: register it to a standard orientation"
        yield Remark("upright", "warning", "the brain is not upright", hint, f"turned by some {angle:.0f} degrees")


def _pieces(classes: Classes, labels: Volume) -> Iterator[Remark]:
    """Pieces apart from the largest: faces, edges and corners join."""
    bounds = box(classes > 0, (0, 0, 0))
    pieces, count = ndimage.label(classes[bounds] > 0, np.ones((3, 3, 3)))
    sizes = np.bincount(pieces.reshape(-1))[1:]
    apart = float(sizes.sum() - sizes.max()) * _voxel_ml(labels)
    if apart > PIECES_ML:
        main = pieces == 1 + int(sizes.argmax())
        away = ndimage.distance_transform_edt(~main, sampling=labels.spacing_mm)
        detail = f"{count - 1} of them, {apart:.2g} mL, up to {float(away[pieces > 0].max()):.0f} mm away"
        yield Remark("pieces", "warning", "labelled pieces apart from the brain", "remove what is not brain", detail)


def _touches_edge(classes: Classes) -> bool:
    return any(bool(classes.take(end, axis=axis).any()) for axis in range(3) for end in (0, -1))


def _voxel_ml(volume: Volume) -> float:
    return float(np.prod(volume.spacing_mm)) / 1000
