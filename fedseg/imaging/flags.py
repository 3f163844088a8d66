"""Quality flags of one segmentation: what a person should look at before using it.

Everything is computed from the label map on the scan's own grid, its affine, and what is known of the subject and the
model. What could not be checked is said too, as a note: silence would look like a pass. Thresholds lie between what
was measured on atlases of real brains (normal and spina bifida, in any orientation) and on the same label maps broken
on purpose.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from fedseg.errors import DataError
from fedseg.imaging import resampling
from fedseg.imaging.cleanup import Cleaned
from fedseg.imaging.fingerprint import Fingerprint, features
from fedseg.imaging.grid_flags import POSSIBLE_SPACING_MM, Flag, Severity, grid_flags
from fedseg.imaging.growth import TISSUES, reference_for
from fedseg.imaging.nifti import Volume
from fedseg.imaging.symmetry import symmetry
from fedseg.imaging.transforms import prepare
from fedseg.labels import BRAIN_MASK, LabelScheme, display_name

Labels = NDArray[np.uint8]
LEAST_ML, MOST_ML = 15.0, 1000.0
"""Of everything labelled: 23 mL of tissue alone is the mean at 20 weeks, an atlas of 37 weeks has 430 with fluid."""

PIECE_ML = 0.2
"""Of pieces apart and of holes together; a real atlas' label map has up to 0.05."""

FLAT_FACE = 0.25
"""Area of the outermost slice over volume^(2/3), from which on the brain was cut there; real atlases: up to 0.07."""

LEAST_AGREEMENT = 0.88
"""Left with right (`symmetry`): atlases and made-up brains, turned or not, 0.93 to 1.0; halves of them, or brains with
one half back to front, 0.68 to 0.84."""

MOST_LIKENESS = 0.965
"""Above it one side is the other's mirror image: atlases that were not made symmetric have at most 0.93."""

MOST_IMBALANCE = 0.2
"""|left - right| / (left + right) of cortex, white or deep grey matter: intact 0.08, one side's cortex gone 0.85."""

MOST_UNCERTAINTY = 0.15
"""Of a network trained at 1.6 mm: 0.08 to 0.13 on atlases that it segments with a Dice of 0.79 to 0.91, 0.15 to 0.19
on the same blurred, inverted or on one that it segments with 0.73."""

LEAST_SHARES = {
    "cortical_grey_matter": 0.05,
    "white_matter": 0.15,
    "ventricles": 0.008,
    "cerebellum": 0.006,
    "deep_grey_matter": 0.02,
    "brainstem": 0.007,
}
"""Of all brain tissue (fluid left out): a third of the least in real atlases, spina bifida included.

External fluid is not among them: a millilitre of it is real in spina bifida.
"""

_ORDER: tuple[Severity, ...] = ("error", "warning", "note")
_JOINED = ("external_csf", "cortical_grey_matter", "white_matter")
_SIDED = ("cortical_grey_matter", "white_matter", "deep_grey_matter")


def flags_of(
    labels: Labels,
    image: Volume,
    scheme: LabelScheme,
    *,
    gestational_age_weeks: float | None = None,
    uncertainty: float | None = None,
    fingerprint: Fingerprint | None = None,
    cleaned: Cleaned | None = None,
) -> list[Flag]:
    """All flags of a segmentation, errors first.

    Args:
        labels: uint8 [i, j, k], classes of the scheme, on the scan's grid.
        image: The scan.
        scheme: The label scheme.
        gestational_age_weeks: Where it is known.
        uncertainty: Mean normalised entropy (0 to 1) over the predicted brain, where there is one.
        fingerprint: Of the images that the model knows, where its file has one.
        cleaned: What a clean-up took away before, where there was one.
    """
    found = [*grid_flags(image, scheme)]
    if labels.any():
        brain = _Brain.of(labels, image, scheme)
        found += [*_size(brain), *_faces(brain), *_pieces(brain, cleaned), *_tissues(brain), *_sides(brain)]
        found += [*_growth(brain, gestational_age_weeks), *_certainty(uncertainty)]
        found += [*_intensities(brain, image, fingerprint)]
    else:
        found.append(Flag("empty", "error", "no voxel is brain", "is it a fetal brain, and in the field of view?"))
        found.append(_not_checked("empty", "nothing else was checked: there is no brain to check"))
    return sorted(found, key=lambda flag: _ORDER.index(flag.severity))


@dataclass(frozen=True, eq=False)
class _Brain:
    """A label map that is not empty, cut to its bounding box.

    Attributes:
        labels: The box.
        ends: For each axis, whether the box touches the first and the last slice of the scan.
        spacing_mm: Voxel size.
        voxel_ml: Volume of a voxel.
        volumes_ml: Of each class; index 0 is 0.
        scheme: The label scheme.
        whole: The label map on the scan's grid.
    """

    labels: Labels
    ends: tuple[tuple[bool, bool], ...]
    spacing_mm: tuple[float, float, float]
    voxel_ml: float
    volumes_ml: NDArray[np.float64]
    scheme: LabelScheme
    whole: Labels

    @classmethod
    def of(cls, labels: Labels, image: Volume, scheme: LabelScheme) -> _Brain:
        box = resampling.box(labels > 0, (0, 0, 0))
        ends = tuple((part.start == 0, part.stop == size) for part, size in zip(box, labels.shape, strict=True))
        inside = labels[box]
        counts = np.bincount(inside.reshape(-1), minlength=scheme.classes).astype(np.float64)
        counts[0] = 0
        voxel_ml = image.voxel_mm3 / 1000
        return cls(inside, ends, image.spacing_mm, voxel_ml, counts * voxel_ml, scheme, labels)

    @property
    def total_ml(self) -> float:
        return float(self.volumes_ml.sum())

    @property
    def tissue_ml(self) -> float:
        """Of brain tissue, fluid left out."""
        return sum(float(self.volumes_ml[self.scheme.index(tissue)]) for tissue in TISSUES)


def _not_checked(kind: str, why: str) -> Flag:
    return Flag(kind, "note", why)


def _size(brain: _Brain) -> Iterator[Flag]:
    if not LEAST_ML <= brain.total_ml <= MOST_ML:
        what = f"all that is labelled measures {brain.total_ml:.3g} mL, fluid included; no fetus of 18 to 40 weeks is"
        what += f" expected outside {LEAST_ML:g} to {MOST_ML:g} mL"
        yield Flag("partial", "error", what, "part of it is missed, or the voxel size in the header is wrong")


def _faces(brain: _Brain) -> Iterator[Flag]:
    """The brain against the edge of the scan, and flat ends where it was cut before."""
    touching, cut, inside = 0.0, 0.0, 0.0
    for axis in range(3):
        sizes = np.delete(np.array(brain.spacing_mm), axis)
        for end, at_edge in zip((0, -1), brain.ends[axis], strict=True):
            area = float(np.count_nonzero(brain.labels.take(end, axis=axis)) * np.prod(sizes))
            flat = area > _flat_area(brain, axis)
            touching += area * at_edge
            cut += area * (at_edge and flat)
            inside = max(inside, area * (flat and not at_edge))
    if touching:
        what = f"the brain reaches the edge of the field of view, over {touching:.0f} mm2"
        hint = "its volumes are too small: use a reconstruction that holds the whole brain"
        yield Flag("cut", "error" if cut else "warning", what, hint)
    if inside:
        what = f"the brain ends in a flat face of {inside:.0f} mm2 inside the scan"
        yield Flag("partial", "warning", what, "was the scan cut before it was padded, or is part of it black?")


def _flat_area(brain: _Brain, axis: int) -> float:
    """The largest outermost slice that a rounded brain has, in mm2: a thick slice takes a larger cap off a ball."""
    volume = 1000 * brain.total_ml
    radius = float(np.cbrt(3 * volume / (4 * np.pi)))
    return float(FLAT_FACE * volume ** (2 / 3) + 2 * np.pi * radius * brain.spacing_mm[axis])


def _pieces(brain: _Brain, cleaned: Cleaned | None) -> Iterator[Flag]:
    """Pieces that hang together by faces, and holes that no path through faces leads out of."""
    inside = brain.labels > 0
    pieces, count = ndimage.label(inside)
    sizes = np.bincount(pieces.reshape(-1))[1:]
    rest = float(sizes.sum() - sizes.max()) * brain.voxel_ml
    if rest > PIECE_ML:
        what = f"{count - 1} piece{'s' if count > 2 else ''} apart from the brain, {rest:.2g} mL in all"
        yield Flag("components", "warning", what, "look whether they are brain; the clean-up removes them")
    holes = int(np.count_nonzero(ndimage.binary_fill_holes(inside) & ~inside)) * brain.voxel_ml
    if holes > PIECE_ML:
        yield Flag("holes", "warning", f"holes in the brain, {holes:.2g} mL in all", "the clean-up fills them")
    if cleaned is not None and cleaned.removed_ml > PIECE_ML:
        what = f"the clean-up removed {cleaned.removed_ml:.2g} mL apart from the brain"
        yield Flag("components", "warning", what, "look whether that was brain: segment again with no clean-up")
    if cleaned is not None and cleaned.filled_ml > PIECE_ML:
        yield Flag("holes", "warning", f"the clean-up filled holes of {cleaned.filled_ml:.2g} mL", "look at them")


def _tissues(brain: _Brain) -> Iterator[Flag]:
    """Tissues of which there is nothing, or hardly anything."""
    if brain.scheme == BRAIN_MASK:
        yield _not_checked("missing_tissue", "tissues not checked: a brain mask has none")
        return
    volumes = {tissue: float(brain.volumes_ml[brain.scheme.index(tissue)]) for tissue in brain.scheme.tissues}
    for tissue, volume in volumes.items():
        if volume == 0:
            severity: Severity = "error" if tissue in _SIDED else "warning"
            hint = "a millilitre or less of it is real in spina bifida" if tissue == "external_csf" else "look at it"
            yield Flag("missing_tissue", severity, f"no voxel of {display_name(tissue)}", hint)
        elif volume < LEAST_SHARES.get(tissue, 0.0) * brain.tissue_ml:
            what = f"hardly any {display_name(tissue)}: {volume:.2g} mL of {brain.tissue_ml:.0f} mL of brain tissue"
            yield Flag("missing_tissue", "warning", what, "look at it")


def _sides(brain: _Brain) -> Iterator[Flag]:
    """Left against right, about the plane that the label map itself mirrors best about."""
    if brain.scheme == BRAIN_MASK:
        yield _not_checked("asymmetry", "left and right not compared: a brain mask does not tell where its middle is")
        return
    joined = [brain.scheme.index(tissue) for tissue in _JOINED]
    sides = symmetry(brain.labels, brain.spacing_mm, brain.scheme.classes, joined)
    if sides is None:
        yield _not_checked("asymmetry", "left and right not compared: too little brain")
        return
    uneven = {tissue: abs(sides.imbalance[brain.scheme.index(tissue)]) for tissue in _SIDED}
    worst = max(uneven, key=lambda tissue: uneven[tissue])
    if sides.agreement < LEAST_AGREEMENT:
        what = f"no plane parts the brain into two like sides: at best {sides.agreement:.0%} of it mirror"
        yield Flag("asymmetry", "warning", what, "is half of it missing, or one side wrong?")
    elif uneven[worst] > MOST_IMBALANCE:
        what = f"one side holds {(1 + uneven[worst]) / 2:.0%} of the {display_name(worst)}"
        yield Flag("asymmetry", "warning", what, "look at both sides")
    elif sides.likeness > MOST_LIKENESS:
        what = f"left and right are mirror images: {sides.likeness:.0%} of the brain mirror onto their own tissue"
        yield Flag("asymmetry", "note", what, "so in symmetric atlases; in one person's brain, a side was copied")


def _growth(brain: _Brain, weeks: float | None) -> Iterator[Flag]:
    """All brain tissue against a growth curve; single tissues are not compared (see `growth`)."""
    reference = reference_for(brain.scheme)
    if reference is None:
        yield _not_checked("volume", "volume for the age not checked: no reference for brain masks of any protocol")
        return
    if weeks is None:
        yield _not_checked("volume", "volume for the age not checked: no gestational age is known")
        return
    if not reference.weeks[0] <= weeks <= reference.weeks[1]:
        what = f"volume for the age not checked: {weeks:g} weeks, and the reference covers {reference.weeks[0]:g} to"
        yield _not_checked("volume", f"{what} {reference.weeks[1]:g} ({reference.name})")
        return
    like = reference.weeks_of(brain.tissue_ml)
    if abs(like - weeks) > reference.tolerance_weeks:
        at = (
            f"{like:.0f} weeks" if reference.weeks[0] <= like <= reference.weeks[1] else _outside(like, reference.weeks)
        )
        what = (
            f"{brain.tissue_ml:.0f} mL of brain tissue (no fluid) at {weeks:g} weeks is what the reference has at {at}"
        )
        hint = "is the age right, in weeks? is part of the brain missed? else a small or large brain"
        yield Flag("volume", "warning", f"{what} ({reference.name})", hint)
    what = "tissues one by one not compared with the age: the reference draws their borders by another protocol"
    yield _not_checked("volume", f"{what} ({reference.name})")


def _outside(like: float, weeks: tuple[float, float]) -> str:
    return f"less than {weeks[0]:g} weeks" if like < weeks[0] else f"more than {weeks[1]:g} weeks"


def _certainty(uncertainty: float | None) -> Iterator[Flag]:
    if uncertainty is None:
        yield _not_checked("uncertainty", "uncertainty not checked: labels without probabilities")
    elif uncertainty > MOST_UNCERTAINTY:
        what = f"the model is unsure: a mean entropy of {uncertainty:.2f}, where 1 is a blind guess"
        yield Flag("uncertainty", "warning", what, "look at the segmentation all over")


def _intensities(brain: _Brain, image: Volume, fingerprint: Fingerprint | None) -> Iterator[Flag]:
    """The scan against the images that the model knows."""
    if fingerprint is None:
        yield _not_checked("intensities", "intensities not checked: the model file has no fingerprint of what it knows")
        return
    if not POSSIBLE_SPACING_MM[0] <= min(image.spacing_mm) <= max(image.spacing_mm) <= POSSIBLE_SPACING_MM[1]:
        yield _not_checked("intensities", "intensities not checked: the voxel size is impossible")
        return
    truth = replace(image, data=brain.whole.astype(np.int32))
    classes = {index: index for index in range(brain.scheme.classes)}
    try:
        seen = prepare(image, truth, classes, spacing_mm=fingerprint.spacing_mm, scheme=brain.scheme)
    except DataError as error:
        yield _not_checked("intensities", f"intensities not checked: {error.what}")
        return
    if seen.labels is None or not (values := features(seen.image, seen.labels, seen.geometry.target_mm, brain.scheme)):
        yield _not_checked("intensities", "intensities not checked: too little brain")
        return
    if left_out := fingerprint.uncompared(values):
        what = f"not compared with the images that the model knows: {', '.join(left_out)}"
        yield _not_checked("intensities", f"{what} (the labels, the fingerprint or this version do not have them)")
    if unlike := fingerprint.unlike(values):
        what = f"unlike the images that the model's fingerprint was made of ({fingerprint.source}): {', '.join(unlike)}"
        yield Flag("intensities", "warning", what, "is it T2-weighted, and a good reconstruction? look at it all over")
