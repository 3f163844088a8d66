"""What images a model knows, as ranges of a few features: so that a scan unlike them is noticed.

A fingerprint is made of made-up images, or of images declared public: never of a site's scans. Features are taken
inside the brain, of a prepared image whose brain is given zero mean and unit variance again, so that neither the
scanner's units nor what lies around the brain count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from scipy import ndimage

from fedseg.imaging import resampling
from fedseg.labels import BRAIN_MASK, LabelScheme
from fedseg.plan.sections import Printable

MARGIN = 0.2
"""How far beyond the range counts, in widths of the range.

With the range of made-up T2-weighted brains, none of 32 atlas volumes is flagged; the same inverted, with noise of a
quarter of the grey range, or with the contrast squeezed are; those blurred by 2 mm too.
"""

_NOISE_OF_LAPLACIAN = 42.0**0.5
"""Standard deviation of the sum of three second differences of white noise of unit variance: 6^2 + 6 neighbours."""

_DIGITS = 4
_FLAT_SHARE = 30.0
_FLAT_MM = 1.5
_SHADING_MM = 12.0
_COARSE_MM = 3.0
_RIM_MM = 2.0
_FEWEST_VOXELS = 200

_Name = Annotated[str, Field(pattern=r"^[a-z_]{1,40}$")]
_Range = tuple[float, float]
Features = Mapping[str, float]


@dataclass(frozen=True)
class _Meaning:
    """What a feature is called, and what one outside its range says.

    Args:
        sign: 1 where too much of it counts, -1 where too little does.
        name: Of the feature.
        words: Of a scan outside the range.
    """

    sign: int
    name: str
    words: str


_MEANINGS = {
    "noise": _Meaning(1, "noise", "noisier"),
    "sharpness": _Meaning(-1, "sharpness", "less sharp"),
    "shading": _Meaning(1, "shading", "more unevenly lit"),
    "skew": _Meaning(-1, "share of bright tissue", "with mostly bright tissue (inverted?)"),
    "fluid": _Meaning(-1, "fluid against white matter", "with darker fluid against white matter"),
    "cortex": _Meaning(-1, "cortex against white matter", "with brighter cortex against white matter"),
}


@dataclass(frozen=True)
class Fingerprint:
    """Features of a set of images.

    Args:
        source: Where the images come from, in words.
        volumes: How many there were.
        spacing_mm: Voxel size at which features are taken.
        ranges: (lowest, highest) of each feature.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    source: Annotated[str, Field(min_length=1, max_length=2000), Printable]
    volumes: Annotated[int, Field(ge=1, le=1_000_000)]
    spacing_mm: Annotated[float, Field(ge=0.2, le=10)]
    ranges: Annotated[dict[_Name, _Range], Field(min_length=1, max_length=32)]

    def __post_init__(self) -> None:
        """Refuse a range that ends before it begins.

        Raises:
            ValueError: saying which.
        """
        for name, (low, high) in self.ranges.items():
            if low > high:
                raise ValueError(f"the range of '{name}' ends before it begins")

    @classmethod
    def of(cls, images: Sequence[Features], source: str, spacing_mm: float) -> Fingerprint:
        """The range of each feature that all images have; ValueError without an image or such a feature."""
        shared = set.intersection(*(set(image) for image in images)) if images else set()
        if not shared:
            raise ValueError("no image, or no feature that all have")
        values = {name: [image[name] for image in images] for name in sorted(shared)}
        ranges = {name: (round(min(each), _DIGITS), round(max(each), _DIGITS)) for name, each in values.items()}
        return cls(source, len(images), spacing_mm, ranges)

    def distance(self, image: Features) -> dict[str, float]:
        """How far each feature lies beyond its range on the side that counts, in widths of the range; 0 within.

        A feature that the image or this version doesn't have is left out (`uncompared` names it).
        """
        known = [name for name in _MEANINGS if name in self.ranges and name in image]
        return {name: self._beyond(name, image[name]) for name in known}

    def unlike(self, image: Features) -> list[str]:
        """In words, what sets an image apart by more than `MARGIN`, the worst first: `noisier`, `less sharp`."""
        far = {name: beyond for name, beyond in self.distance(image).items() if beyond > MARGIN}
        return [_MEANINGS[name].words for name in sorted(far, key=lambda name: -far[name])]

    def uncompared(self, image: Features) -> list[str]:
        """In words, the features that the image, its range or this version lacks."""
        known = [name for name in _MEANINGS if name not in self.ranges or name not in image]
        later = [name.replace("_", " ") for name in sorted(set(self.ranges) - set(_MEANINGS))]
        return [*(_MEANINGS[name].name for name in known), *later]

    def _beyond(self, name: str, value: float) -> float:
        low, high = self.ranges[name]
        over = value - high if _MEANINGS[name].sign > 0 else low - value
        return max(0.0, over) / max(high - low, 1e-6)


def features(
    image: NDArray[np.float32], labels: NDArray[np.uint8], spacing_mm: float, scheme: LabelScheme
) -> dict[str, float]:
    """The features of one prepared image.

    Args:
        image: float32 [X, Y, Z].
        labels: uint8 [X, Y, Z], classes of the scheme: true or predicted.
        spacing_mm: Edge of a voxel.
        scheme: The label scheme; brain masks give no feature that needs tissues.

    Returns:
        `noise` (standard deviation, from second differences where the picture is flat), `sharpness` (90th percentile
        of the gradient, per mm), `shading` (spread of the smoothed picture), `skew` (Bowley's, of the 5th, 50th and
        95th percentile), and for tissues `fluid` and `cortex` (means against white matter). All but skew in standard
        deviations of the brain's intensities. Empty where there is hardly any brain.
    """
    if np.count_nonzero(labels) < _FEWEST_VOXELS:
        return {}
    region = resampling.box(labels > 0, (2, 2, 2))
    inside, tissue = labels[region] > 0, labels[region]
    grey = _standardised(image[region], inside)
    core = ndimage.binary_erosion(inside, iterations=max(1, round(_RIM_MM / spacing_mm)))
    core = core if np.count_nonzero(core) >= _FEWEST_VOXELS else inside
    low, middle, high = np.percentile(grey[inside], (5, 50, 95))
    found = {
        "noise": _noise(grey, core, spacing_mm),
        "sharpness": float(np.percentile(_gradient(grey, spacing_mm)[core], 90)),
        "shading": _shading(grey, core, spacing_mm),
        "skew": float((low + high - 2 * middle) / max(high - low, 1e-6)),
    }
    return found | (_contrasts(grey, tissue, scheme) if scheme != BRAIN_MASK else {})


def _standardised(grey: NDArray[np.float32], inside: NDArray[np.bool_]) -> NDArray[np.float32]:
    values = grey[inside]
    spread = max(float(values.std(dtype=np.float64)), 1e-6)
    return ((grey - np.float32(values.mean(dtype=np.float64))) / np.float32(spread)).astype(np.float32)


def _noise(grey: NDArray[np.float32], core: NDArray[np.bool_], spacing_mm: float) -> float:
    """Robust spread of the Laplacian where the smoothed picture is flattest, as noise of one voxel."""
    slope = ndimage.gaussian_gradient_magnitude(grey, _FLAT_MM / spacing_mm, truncate=3.0)
    flat = core & (slope <= np.percentile(slope[core], _FLAT_SHARE))
    curve = ndimage.laplace(grey)[flat]
    return float(1.4826 * np.median(np.abs(curve - np.median(curve))) / _NOISE_OF_LAPLACIAN)


def _gradient(grey: NDArray[np.float32], spacing_mm: float) -> NDArray[np.float32]:
    steps = [np.gradient(grey, spacing_mm, axis=axis) for axis in range(3)]
    return np.asarray(np.sqrt(steps[0] ** 2 + steps[1] ** 2 + steps[2] ** 2), np.float32)


def _shading(grey: NDArray[np.float32], core: NDArray[np.bool_], spacing_mm: float) -> float:
    """Spread of the mean over some centimetres, the rim left out; on a coarse grid, as it changes slowly."""
    stride = max(1, round(_COARSE_MM / spacing_mm))
    some, part = grey[::stride, ::stride, ::stride], core[::stride, ::stride, ::stride]
    weight, total = (
        ndimage.gaussian_filter(values.astype(np.float32), _SHADING_MM / (stride * spacing_mm), truncate=2.0)
        for values in (part, np.where(part, some, 0))
    )
    return float((total[part] / np.maximum(weight[part], 1e-3)).std()) if part.any() else 0.0


def _contrasts(grey: NDArray[np.float32], tissue: NDArray[np.uint8], scheme: LabelScheme) -> dict[str, float]:
    """How much brighter fluid is than white matter, and white matter than cortex; what has no voxel is left out."""
    groups = {
        "white": ("white_matter",),
        "fluid": ("external_csf", "ventricles"),
        "cortex": ("cortical_grey_matter",),
    }
    means = {}
    for name, tissues in groups.items():
        members = np.isin(tissue, [scheme.index(each) for each in tissues])
        if members.any():
            means[name] = float(grey[members].mean(dtype=np.float64))
    if "white" not in means:
        return {}
    signs = {"fluid": 1.0, "cortex": -1.0}
    return {name: sign * (means[name] - means["white"]) for name, sign in signs.items() if name in means}
