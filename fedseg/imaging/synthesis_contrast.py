"""How a scanner shows a made-up head: T2-weighted contrast, blur, coil shading, noise, and a site's habits.

Tissue intensities follow reconstructed fetal T2w atlases, 1 being bright fluid: the means of cortex, deep grey, stem,
cerebellum and white matter lie within a few noise widths of one another, and white matter's own layers (subplate,
intermediate zone, germinal matrix) span them, so that a voxel's value alone doesn't tell its tissue.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.ndimage import gaussian_filter

from fedseg.imaging.synthesis_anatomy import (
    BRAINSTEM,
    CEREBELLUM,
    CORTEX,
    DEEP_GREY,
    EXTERNAL_CSF,
    VENTRICLES,
    WHITE_MATTER,
    Anatomy,
)
from fedseg.imaging.synthesis_fields import Field, smooth_noise

_MEANS = {
    EXTERNAL_CSF: 0.84,
    CORTEX: 0.40,
    WHITE_MATTER: 0.59,
    VENTRICLES: 0.84,
    CEREBELLUM: 0.51,
    DEEP_GREY: 0.48,
    BRAINSTEM: 0.43,
}
_TEXTURE = {
    EXTERNAL_CSF: 0.10,
    CORTEX: 0.03,
    WHITE_MATTER: 0.03,
    VENTRICLES: 0.06,
    CEREBELLUM: 0.05,
    DEEP_GREY: 0.04,
    BRAINSTEM: 0.05,
}


@dataclass(frozen=True)
class SiteStyle:
    """One hospital's scanner, reconstruction and storage habits.

    Attributes:
        axes: Direction of the stored axes, as nibabel's codes.
        scale: Stored value of bright fluid.
        background: Stored value outside the reconstruction: 0, or the tiny number that some pipelines leave.
        dtype: How voxels are stored.
        spacing_mm: Edge of a voxel, unless asked otherwise.
        numbering: Name of the label table, as in `fedseg.labels.TABLES`.
        header: Which header transforms carry a code.
        contrast: Times the distance of each tissue's mean from mid-grey.
        blur_mm: Standard deviation of the reconstruction's blur.
        noise: Standard deviation of the complex noise, bright fluid being 1.
        shading: Standard deviation of the logarithm of the coil shading.
        rim: Whether skull, skin and amniotic fluid are left around the brain.
        tissue_shift: Standard deviation of a site's own shift of each tissue's mean.
        seed: Where the site's own shifts are drawn from.
    """

    axes: str
    scale: float
    background: float
    dtype: Literal["float32", "int16"]
    spacing_mm: float
    numbering: Literal["feta", "fidon"]
    header: Literal["qform", "sform", "both"]
    contrast: float
    blur_mm: float
    noise: float
    shading: float
    rim: bool
    tissue_shift: float
    seed: int


_KNOWN_STYLES = (
    SiteStyle("RAS", 600.0, 0.0, "float32", 0.8, "feta", "sform", 1.0, 0.45, 0.025, 0.08, False, 0.015, 0),
    SiteStyle("LIP", 6000.0, 0.0, "int16", 1.0, "fidon", "qform", 0.85, 0.60, 0.035, 0.14, False, 0.025, 1),
    SiteStyle("LAS", 60.0, 1e-8, "float32", 0.9, "feta", "both", 1.25, 0.50, 0.040, 0.11, True, 0.025, 2),
)


def style_of_site(index: int) -> SiteStyle:
    """The style of a numbered site: three written out, any further one drawn from its number."""
    if index < len(_KNOWN_STYLES):
        return _KNOWN_STYLES[index]
    rng = np.random.default_rng([index])
    return SiteStyle(
        axes=str(rng.choice(["RAS", "LAS", "LIP", "LPS", "RIA", "PSR"])),
        scale=float(10.0 ** rng.uniform(1.7, 3.8)),
        background=0.0,
        dtype="int16" if rng.random() < 0.5 else "float32",
        spacing_mm=float(np.round(rng.uniform(0.8, 1.1), 2)),
        numbering="fidon" if rng.random() < 0.5 else "feta",
        header="both",
        contrast=float(rng.uniform(0.8, 1.3)),
        blur_mm=float(rng.uniform(0.4, 0.7)),
        noise=float(rng.uniform(0.02, 0.045)),
        shading=float(rng.uniform(0.06, 0.16)),
        rim=bool(rng.random() < 0.3),
        tissue_shift=0.025,
        seed=index,
    )


def render(rng: np.random.Generator, anatomy: Anatomy, weeks: float, style: SiteStyle) -> Field:
    """A T2w image of the head, (x, y, z) float32 in the style's own units, RAS order."""
    spacing = anatomy.spacing_mm
    ideal = _ideal_image(rng, anatomy, weeks, style)
    blurred = gaussian_filter(ideal, style.blur_mm / spacing, truncate=3.0)
    shaded = blurred * np.exp(_texture(rng, anatomy, 35.0) * np.float32(style.shading))
    noisy = _rician(rng, shaded, style.noise)
    edge = np.float32(8.0 if style.rim else 0.5 * style.blur_mm)
    outside = anatomy.surfaces[EXTERNAL_CSF] > edge
    image: Field = noisy * np.float32(style.scale * np.exp(rng.normal(0.0, 0.15)))
    image[outside] = style.background
    return np.rint(image) if style.dtype == "int16" else image


def _ideal_image(rng: np.random.Generator, anatomy: Anatomy, weeks: float, style: SiteStyle) -> Field:
    """Tissues laid over one another, each fading over the voxels that its surface passes through."""
    fade = np.float32(3.5 / max(0.8, anatomy.spacing_mm))
    fine_texture, coarse_texture = _texture(rng, anatomy, 2.5), _texture(rng, anatomy, 9.0)
    texture = np.float32(0.7) * (fine_texture + coarse_texture)
    image = _around(anatomy, texture) if style.rim else np.zeros(texture.shape, np.float32)
    for tissue, mean in _drawn_means(rng, weeks, style).items():
        distance = anatomy.surfaces[tissue]
        share = 1 / (1 + np.exp(np.clip(distance * fade, -20, 20)))
        value = np.float32(mean) + np.float32(_TEXTURE[tissue]) * texture
        if tissue == WHITE_MATTER:
            value += _layers(anatomy, weeks)
        image += share * (value - image)
    return np.maximum(image, 0)


def _drawn_means(rng: np.random.Generator, weeks: float, style: SiteStyle) -> dict[int, float]:
    """Mean of each tissue for one subject, in drawing order: age, site and chance all move it."""
    site = np.random.default_rng([style.seed, 7]).normal(0.0, style.tissue_shift, 8)
    own = rng.normal(0.0, 0.015, 8)
    ripening = {WHITE_MATTER: 0.02, BRAINSTEM: -0.04, DEEP_GREY: -0.03, CEREBELLUM: -0.02}
    means = {}
    for tissue in (EXTERNAL_CSF, CORTEX, WHITE_MATTER, DEEP_GREY, CEREBELLUM, BRAINSTEM, VENTRICLES):
        aged = _MEANS[tissue] + ripening.get(tissue, 0.0) * (weeks - 28.0) / 8.0
        means[tissue] = 0.55 + style.contrast * (aged - 0.55) + float(site[tissue] + own[tissue])
    return means


def _layers(anatomy: Anatomy, weeks: float) -> Field:
    """White matter's layers: bright subplate, darker depths, dark germinal matrix, all fading with age."""
    young = np.float32(np.clip((36.0 - weeks) / 14.0, 0.15, 1.0))
    under_cortex = np.maximum(-anatomy.surfaces[WHITE_MATTER], 0)
    from_ventricle = np.maximum(anatomy.surfaces[VENTRICLES], 0)
    subplate = np.float32(0.07) * np.exp(-((under_cortex / 3) ** 2))
    zone = np.float32(-0.06) * np.exp(-(((under_cortex - 6) / 3) ** 2))
    germinal = np.float32(-0.14) * np.exp(-((from_ventricle / 1.8) ** 2))
    layers: Field = young * (subplate + zone + germinal)
    return layers


def _around(anatomy: Anatomy, texture: Field) -> Field:
    """Skull (dark), skin (grey) and amniotic fluid (brighter), all faint beside the brain's own fluid."""
    beyond = anatomy.surfaces[EXTERNAL_CSF]
    value = np.where(beyond < 2.5, 0.08, np.where(beyond < 5.0, 0.28, 0.40)).astype(np.float32)
    return value * (1 + np.float32(0.2) * texture)


def _texture(rng: np.random.Generator, anatomy: Anatomy, scale_mm: float) -> Field:
    """Smooth noise whose knots depend on the head's size and not on the spacing."""
    axes = [np.arange(size, dtype=np.float32) * np.float32(anatomy.spacing_mm) for size in anatomy.labels.shape]
    return smooth_noise(rng, (axes[0], axes[1], axes[2]), scale_mm)


def _rician(rng: np.random.Generator, image: Field, sigma: float) -> Field:
    """Magnitude of the image with complex Gaussian noise (Gudbjartsson and Patz 1995)."""
    real = image + np.float32(sigma) * rng.standard_normal(image.shape, dtype=np.float32)
    imaginary = np.float32(sigma) * rng.standard_normal(image.shape, dtype=np.float32)
    magnitude: Field = np.sqrt(real * real + imaginary * imaginary)
    return magnitude
