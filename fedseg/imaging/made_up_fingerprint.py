"""The fingerprint of made-up brains as T2-weighted scans show them, which every model file carries.

Studies train on fetal T2-weighted scans, of which no feature may be kept: so it comes from `synthesis` alone. It is a
constant because making it takes a minute and must give every party of a study the same numbers; `make` makes it again.
A fingerprint of the images of `generation`, whose contrast is drawn at random, notices nothing: of 35 broken scans
(inverted, noisy, blurred, unevenly lit, squeezed) it flags none, this one 23, and neither any of 8 that are as they
should be.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fedseg.imaging.fingerprint import Fingerprint, features
from fedseg.imaging.nifti import Volume
from fedseg.imaging.synthesis import NEUROTYPICAL, VENTRICULOMEGALY, make_subject
from fedseg.imaging.synthesis_contrast import style_of_site
from fedseg.imaging.transforms import prepare
from fedseg.labels import FETA

VOLUMES = 32
SPACING_MM = 1.0

_SEED = 77
_GOLDEN = 0.618
_YOUNGEST, _WEEKS = 20.5, 17.0

_SOURCE = "32 made-up brains with T2-weighted contrast, each of another made-up hospital"

T2_MADE_UP = Fingerprint(
    source=_SOURCE,
    volumes=VOLUMES,
    spacing_mm=SPACING_MM,
    ranges={
        "cortex": (0.1665, 0.8639),
        "fluid": (0.5283, 1.4053),
        "noise": (0.0637, 0.2527),
        "sharpness": (0.7737, 1.1794),
        "shading": (0.1567, 0.4816),
        "skew": (0.0147, 0.4049),
    },
)


def make() -> Fingerprint:
    """`T2_MADE_UP` anew."""
    return Fingerprint.of(list(images()), _SOURCE, SPACING_MM)


def images() -> Iterator[dict[str, float]]:
    """The features of each image that `T2_MADE_UP` was made of, in order."""
    for index in range(VOLUMES):
        style = style_of_site(index)
        image, labels, affine = make_subject(
            np.random.default_rng([_SEED, index]),
            weeks=_YOUNGEST + _WEEKS * ((index * _GOLDEN) % 1.0),
            pathology=VENTRICULOMEGALY if index % 4 == 3 else NEUROTYPICAL,
            style=style,
            spacing_mm=style.spacing_mm,
        )
        grid = (affine, (style.spacing_mm,) * 3, "made up", image.shape, 1, 1, "float32")
        scan, truth = Volume(image, *grid), Volume(labels.astype(np.int32), *grid)
        classes = {each: each for each in range(FETA.classes)}
        seen = prepare(scan, truth, classes, spacing_mm=SPACING_MM, scheme=FETA)
        if seen.labels is not None:
            yield features(seen.image, seen.labels, SPACING_MM, FETA)
