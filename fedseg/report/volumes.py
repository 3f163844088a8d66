"""Brain tissue: the one total that screen, JSON and page show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fedseg.imaging.growth import TISSUES
from fedseg.labels import display_name

BRAIN_TISSUE = f"Brain tissue: {', '.join(map(display_name, TISSUES))}; without ventricles and external CSF"
"""What it is, in words: the parenchyma, as the flag `volume` compares it with the age."""


def brain_tissue_ml(volumes_ml: Mapping[str, float]) -> float | None:
    """The volume of brain tissue in mL, fluid left out; None of a brain mask, which does not tell one from the other.

    Args:
        volumes_ml: Of each tissue of the scheme.
    """
    return sum(volumes_ml[tissue] for tissue in TISSUES) if tells_fluid(volumes_ml) else None


def tells_fluid(tissues: Iterable[str]) -> bool:
    """Whether a scheme tells brain tissue from fluid, by the names of its tissues."""
    return set(TISSUES) <= set(tissues)
