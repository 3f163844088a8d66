"""The shape of a made-up fetal brain: seven tissues as signed distances, from 20 to 38 weeks.

Every structure is a signed distance in millimetres, negative inside, built of ellipsoids and tubes with smooth joins
(Quilez, "Smooth minimum", 2013). Lengths are in units of half the cerebrum's front-to-back length, which grows with
gestational age; proportions follow the volumes of published fetal atlases. Sulci are the zero sheets of a noise on the
sphere of directions seen from inside each hemisphere, so that they cut straight into the surface; their depth grows
with age, the finer ones from about 32 weeks. Smooth fields are computed on a coarse grid whose size doesn't depend on
the spacing, then interpolated: one seed gives the same head at every spacing.

Axes are RAS throughout: x to the right, y to the front, z upwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedseg.imaging.synthesis_fields import Field, Knot, carve, ellipsoid, interpolate, smooth_noise, tube, union

BACKGROUND, EXTERNAL_CSF, CORTEX, WHITE_MATTER, VENTRICLES, CEREBELLUM, DEEP_GREY, BRAINSTEM = range(8)

_COARSE_STEP = 1 / 24
_LOW_CORNER = (-0.98, -1.17, -0.98)
_HIGH_CORNER = (0.98, 1.17, 0.84)
_MARGIN_MM = 7.0

# The lateral ventricle as a tube: (lateral, front, up, radius) from the frontal horn to the occipital one, then from
# the atrium to the temporal horn.
_VENTRICLE_BODY = (
    (0.08, 0.44, 0.02, 0.055),
    (0.11, 0.20, 0.17, 0.070),
    (0.15, -0.12, 0.22, 0.065),
    (0.27, -0.40, 0.11, 0.100),
    (0.27, -0.72, 0.02, 0.060),
)
_TEMPORAL_HORN = ((0.27, -0.40, 0.11, 0.085), (0.43, -0.20, -0.22, 0.045), (0.45, 0.10, -0.31, 0.035))


@dataclass(frozen=True)
class Growth:
    """What gestational age and pathology set: lengths in mm, ratios in units of `radius_mm`.

    Attributes:
        weeks: Gestational age.
        radius_mm: Half the front-to-back length of the cerebrum.
        csf_mm: Thickness of the fluid between brain and skull.
        cortex_mm: Thickness of the cortical ribbon.
        primary_mm: Depth of the primary sulci.
        secondary_mm: Depth of the finer sulci.
        insula_open: 1 for the wide open Sylvian fossa of 20 weeks, towards 0 as the opercula close.
        ventricle_swell: Added to the ventricles' radius.
        ventricle_scale: Times the ventricles' radius.
        cerebellum_scale: Times the cerebellum's radii.
    """

    weeks: float
    radius_mm: float
    csf_mm: float
    cortex_mm: float
    primary_mm: float
    secondary_mm: float
    insula_open: float
    ventricle_swell: float
    ventricle_scale: float
    cerebellum_scale: float


@dataclass(frozen=True)
class Anatomy:
    """One head on its grid, in RAS order.

    Attributes:
        labels: (x, y, z) uint8, 0 background and 1 to 7 in FeTA's order.
        callosum: (x, y, z) bool, the part of the white matter that is corpus callosum.
        surfaces: Signed distance in mm for each tissue, drawn over one another in this order. The cortex includes
            the white matter under it, and the external fluid includes the whole head.
        spacing_mm: Edge of a voxel.
    """

    labels: NDArray[np.uint8]
    callosum: NDArray[np.bool_]
    surfaces: dict[int, Field]
    spacing_mm: float


@dataclass(frozen=True)
class Lattice:
    """A box sampled finely and coarsely: coordinates of both along each axis, in mm."""

    coarse: tuple[Field, Field, Field]
    fine: tuple[Field, Field, Field]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of fine samples along each axis."""
        return (self.fine[0].size, self.fine[1].size, self.fine[2].size)

    def refine(self, field: Field) -> Field:
        """A coarse field on the fine grid."""
        return interpolate(field, self.coarse, self.fine)


def growth(rng: np.random.Generator, weeks: float, *, ventriculomegaly: bool) -> Growth:
    """Draw one subject's proportions around the mean of its age."""
    young = float(np.clip((34.0 - weeks) / 14.0, 0.0, 1.0))
    return Growth(
        weeks=weeks,
        radius_mm=(29.5 + 1.5 * (weeks - 20.0)) * float(np.exp(rng.normal(0.0, 0.025))),
        csf_mm=float(rng.uniform(2.4, 3.4)),
        cortex_mm=1.65 + 0.035 * (weeks - 20.0) + float(rng.normal(0.0, 0.08)),
        primary_mm=10.5 * _logistic((weeks - 28.0) / 2.4),
        secondary_mm=7.0 * _logistic((weeks - 32.5) / 1.5),
        insula_open=0.2 + 0.8 * young,
        ventricle_swell=float(rng.uniform(0.07, 0.12)) if ventriculomegaly else 0.0,
        ventricle_scale=float(0.92 + 0.45 * young + rng.normal(0.0, 0.06)),
        cerebellum_scale=1.14 - 0.21 * young,
    )


def build_anatomy(rng: np.random.Generator, shape: Growth, spacing_mm: float) -> Anatomy:
    """Build one head; the field of view fits it with some 7 mm to spare. See the module for how."""
    lattice = _lattice(shape.radius_mm, spacing_mm)
    x, y, z = _posed_coordinates(rng, lattice, shape.radius_mm)
    side = np.sqrt(x * x + np.float32(1e-4))
    smooth = _smooth_structures(side, y, z, shape)
    fine = {name: lattice.refine(field * np.float32(shape.radius_mm)) for name, field in smooth.items()}
    lateral = np.abs(lattice.refine(x)) * np.float32(shape.radius_mm)
    pial = _with_sulci(rng, fine, lattice, (x, y, z), shape)
    surfaces = _tissues(fine, pial, lateral, shape)
    labels = paint(surfaces)
    callosum = _callosum(fine, lateral, shape.radius_mm) & (labels == WHITE_MATTER)
    return Anatomy(labels, callosum, surfaces, spacing_mm)


def paint(surfaces: dict[int, Field]) -> NDArray[np.uint8]:
    """Hard labels: the last surface that a voxel's centre lies inside of."""
    labels = np.zeros(next(iter(surfaces.values())).shape, np.uint8)
    for tissue, distance in surfaces.items():
        labels[distance < 0] = tissue
    return labels


def _logistic(value: float) -> float:
    return float(1.0 / (1.0 + np.exp(-value)))


def _lattice(radius_mm: float, spacing_mm: float) -> Lattice:
    step = radius_mm * _COARSE_STEP
    coarse, fine = [], []
    for low, high in zip(_LOW_CORNER, _HIGH_CORNER, strict=True):
        start, stop = low * radius_mm - _MARGIN_MM, high * radius_mm + _MARGIN_MM
        coarse.append(np.arange(start, stop + step, step, dtype=np.float32))
        fine.append(np.arange(start, stop, spacing_mm, dtype=np.float32))
    return Lattice((coarse[0], coarse[1], coarse[2]), (fine[0], fine[1], fine[2]))


def _posed_coordinates(rng: np.random.Generator, lattice: Lattice, radius_mm: float) -> tuple[Field, Field, Field]:
    """Coarse coordinates in the head's own frame: turned a little, stretched, and gently warped."""
    axes = tuple((axis / np.float32(radius_mm)).astype(np.float32) for axis in lattice.coarse)
    grid = np.stack(np.meshgrid(*axes, indexing="ij"))
    turned = np.tensordot(_rotation(rng.normal(0.0, 0.05, 3)), grid, axes=1)
    stretch = np.exp(rng.normal(0.0, 0.025, 3)).astype(np.float32)
    placed = []
    for axis in range(3):
        warp = smooth_noise(rng, (axes[0], axes[1], axes[2]), 0.45) * np.float32(0.015)
        placed.append((turned[axis] * stretch[axis] + warp).astype(np.float32))
    return placed[0], placed[1], placed[2]


def _rotation(angles: NDArray[np.float64]) -> Field:
    """Rotation about x, then y, then z, by angles in radians."""
    result = np.eye(3)
    for axis, angle in enumerate(np.clip(angles, -0.1, 0.1)):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[j, i], turn[i, j] = np.sin(angle), -np.sin(angle)
        result = turn @ result
    return result.astype(np.float32)


def _smooth_structures(side: Field, y: Field, z: Field, shape: Growth) -> dict[str, Field]:
    """Everything without folds or creases, in units of the radius, on the coarse grid."""
    cerebellum = _cerebellum(side, y, z, shape.cerebellum_scale)
    stem = _brainstem(side, y, z)
    hull = _hemispheres(side, y, z)
    insula = ellipsoid(
        side - np.float32(0.90),
        y - np.float32(0.14),
        z + np.float32(0.09) + 0.3 * (y - np.float32(0.1)),
        (0.20 + 0.16 * shape.insula_open, 0.20 + 0.22 * shape.insula_open, 0.035 + 0.12 * shape.insula_open),
    )
    cerebrum = carve(carve(hull, insula, 0.05), cerebellum - np.float32(0.04), 0.05)
    fossa = union(cerebellum - np.float32(0.03), stem, 0.15)
    end = -(z + np.float32(0.90))
    return {
        "head": np.maximum(union(hull, fossa, 0.3), end),
        "cerebrum": cerebrum,
        "core": ellipsoid(np.zeros_like(y), y + np.float32(0.01), z + np.float32(0.06), (1.0, 0.46, 0.33)),
        "arch": -(z + np.float32(0.02)),
        "deep_grey": _deep_grey(side, y, z),
        "ventricles": _lateral_ventricles(side, y, z, shape),
        "third": ellipsoid(np.zeros_like(y), y + np.float32(0.03), z + np.float32(0.07), (1.0, 0.24, 0.14)),
        "fourth": ellipsoid(side, y + np.float32(0.265), z + np.float32(0.56), (0.075, 0.05, 0.09)),
        "stem": np.maximum(carve(stem, -(z + np.float32(0.25)), 0.02), end),
        "cerebellum": cerebellum,
    }


def _hemispheres(side: Field, y: Field, z: Field) -> Field:
    """The cerebrum's outline, folds and fissures filled: wider behind, flat below, with temporal lobes."""
    wide = side * (1 + np.float32(0.07) * y)
    upper = ellipsoid(wide, y, z - np.float32(0.06), (0.79, 1.0, 0.68))
    floor = -(z + np.float32(0.27) + np.float32(0.06) * y)
    upper = -union(-upper, -floor, 0.12)
    lobe = ellipsoid(side - np.float32(0.46), y - np.float32(0.08), z + np.float32(0.27), (0.27, 0.48, 0.24))
    return union(upper, lobe, 0.07)


def _cerebellum(side: Field, y: Field, z: Field, scale: float) -> Field:
    lobe = ellipsoid(
        side - np.float32(0.21 * scale),
        y + np.float32(0.45),
        z + np.float32(0.60),
        (0.235 * scale, 0.19 * scale, 0.165 * scale),
    )
    vermis = ellipsoid(side, y + np.float32(0.44), z + np.float32(0.585), (0.10 * scale, 0.155 * scale, 0.17 * scale))
    return union(lobe, vermis, 0.05)


def _brainstem(side: Field, y: Field, z: Field) -> Field:
    knots = ((0.0, -0.10, -0.20, 0.165), (0.0, -0.14, -0.60, 0.135), (0.0, -0.24, -1.0, 0.10))
    pons = ellipsoid(side, y + np.float32(0.08), z + np.float32(0.50), (0.18, 0.155, 0.16))
    return union(tube(side, y, z, knots), pons, 0.06)


def _deep_grey(side: Field, y: Field, z: Field) -> Field:
    thalamus = ellipsoid(side - np.float32(0.16), y + np.float32(0.08), z + np.float32(0.05), (0.165, 0.27, 0.205))
    lentiform = ellipsoid(side - np.float32(0.31), y - np.float32(0.12), z + np.float32(0.07), (0.145, 0.31, 0.20))
    caudate = ellipsoid(side - np.float32(0.18), y - np.float32(0.24), z - np.float32(0.03), (0.085, 0.23, 0.15))
    return union(union(thalamus, lentiform, 0.06), caudate, 0.05)


def _lateral_ventricles(side: Field, y: Field, z: Field, shape: Growth) -> Field:
    body = tube(side, y, z, _swollen(_VENTRICLE_BODY, shape.ventricle_scale, shape.ventricle_swell))
    horn = tube(side, y, z, _swollen(_TEMPORAL_HORN, shape.ventricle_scale, shape.ventricle_swell / 2))
    cavum = ellipsoid(side, y - np.float32(0.22), z - np.float32(0.10), (0.04, 0.15, 0.07))
    return union(union(body, horn, 0.04), cavum, 0.02)


def _swollen(knots: tuple[Knot, ...], scale: float, swell: float) -> tuple[Knot, ...]:
    return tuple((x, y, z, radius * scale + swell) for x, y, z, radius in knots)


def _with_sulci(
    rng: np.random.Generator,
    fine: dict[str, Field],
    lattice: Lattice,
    coordinates: tuple[Field, Field, Field],
    shape: Growth,
) -> Field:
    """The cerebrum's surface with its sulci cut in; they stop short of the deep grey matter and the ventricles."""
    outline = fine["cerebrum"]
    folded = outline
    guard = np.float32(shape.cortex_mm + 1.5) - np.minimum(fine["deep_grey"], fine["ventricles"])
    shallow = np.clip(1 + (coordinates[2] + np.float32(0.12)) * np.float32(2.5), 0.3, 1)
    for frequency, depth_mm in ((4.6, shape.primary_mm), (8.5, shape.secondary_mm)):
        pattern = _directional_noise(rng, coordinates, frequency)
        pattern += smooth_noise(rng, lattice.coarse, 0.2 * shape.radius_mm) * np.float32(0.25)
        varied = 1 + smooth_noise(rng, lattice.coarse, 0.3 * shape.radius_mm) * np.float32(0.3)
        reach = lattice.refine(shallow * np.clip(varied, 0.3, 1.5)) * np.float32(depth_mm)
        slope = np.sqrt(sum(part**2 for part in np.gradient(pattern, *(float(a[1] - a[0]) for a in lattice.coarse))))
        distance = np.abs(lattice.refine(pattern)) / np.maximum(lattice.refine(slope), np.float32(0.02))
        widening = np.clip(np.float32(3.0) + outline, 0, 4) * np.float32(0.22 * min(1.0, depth_mm / 4))
        sulcus = np.maximum(distance - np.float32(0.40) - widening, -outline - reach)
        folded = np.maximum(folded, -np.maximum(sulcus, guard))
    return folded


def _directional_noise(
    rng: np.random.Generator, coordinates: tuple[Field, Field, Field], frequency: float, waves: int = 24
) -> Field:
    """Unit-variance noise of one wavelength on the directions seen from a line inside each hemisphere."""
    x, y, z = coordinates
    rays = np.stack([x - np.float32(0.30) * np.tanh(x * 12), y * np.float32(0.45), z - np.float32(0.03)])
    rays /= np.sqrt((rays**2).sum(axis=0)) + np.float32(0.02)
    vectors = rng.standard_normal((waves, 3))
    vectors *= frequency / np.linalg.norm(vectors, axis=1, keepdims=True)
    phases = rng.uniform(0, 2 * np.pi, waves)
    total = np.zeros(x.shape, np.float32)
    for vector, phase in zip(vectors.astype(np.float32), phases.astype(np.float32), strict=True):
        total += np.cos(vector[0] * rays[0] + vector[1] * rays[1] + vector[2] * rays[2] + phase)
    return total * np.float32(np.sqrt(2 / waves))


def _tissues(fine: dict[str, Field], pial: Field, lateral: Field, shape: Growth) -> dict[int, Field]:
    """The seven surfaces on the fine grid, in drawing order."""
    radius = shape.radius_mm
    cleft = np.maximum(lateral - np.float32(0.3 + 0.01 * radius), -fine["core"])
    pial = np.maximum(pial, -cleft)
    bridge = np.maximum(fine["core"], lateral - np.float32(0.22 * radius))
    white = np.minimum(pial + np.float32(shape.cortex_mm), np.maximum(bridge, pial))
    third = np.maximum(fine["third"], lateral - np.float32(0.4 + 0.014 * radius))
    ventricles = np.maximum(fine["ventricles"], white + np.float32(1.0))
    return {
        EXTERNAL_CSF: fine["head"] - np.float32(shape.csf_mm),
        CORTEX: pial,
        WHITE_MATTER: white,
        DEEP_GREY: np.maximum(fine["deep_grey"], white),
        CEREBELLUM: fine["cerebellum"],
        BRAINSTEM: fine["stem"],
        VENTRICLES: np.minimum(np.minimum(ventricles, third), fine["fourth"]),
    }


def _callosum(fine: dict[str, Field], lateral: Field, radius_mm: float) -> NDArray[np.bool_]:
    """The arch under the fissure that joins the hemispheres."""
    shell = (fine["core"] > -0.07 * radius_mm) & (fine["core"] < 0.02 * radius_mm)
    arch: NDArray[np.bool_] = shell & (lateral < 0.09 * radius_mm) & (fine["arch"] < 0)
    return arch
