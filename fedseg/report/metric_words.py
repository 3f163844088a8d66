"""What an evaluation's metrics are called, how they are printed, and what they mean."""

from __future__ import annotations

from dataclasses import dataclass

from fedseg.metrics.surface import NSD_TOLERANCE_MM
from fedseg.report.numbers import NOTHING


@dataclass(frozen=True)
class Metric:
    """One metric in words.

    Args:
        title: Its heading, unit included.
        short: The same in a narrow table.
        decimals: As printed.
        best: What a perfect prediction has.
        meaning: What it measures, and after whom.
        one_empty: Its value where one of the two masks is empty.
        both_empty: Its value where both are.
        averaged: Whether its mean over tissues says anything.
    """

    title: str
    short: str
    decimals: int
    best: str
    meaning: str
    one_empty: str
    both_empty: str
    averaged: bool = True


METRICS = {
    "dice": Metric(
        "Dice", "Dice", 3, "1", "Overlap: twice the common voxels over the sum of both (Dice 1945).", "0", "1"
    ),
    "hd95_mm": Metric(
        "HD95, mm",
        "HD95 mm",
        2,
        "0",
        "Distance to the other surface that 95% of either one's area stays below (as surface-distance and FeTA).",
        "no value",
        "0",
    ),
    "volume_similarity": Metric(
        "Volume similarity",
        "VS",
        3,
        "1",
        "1 minus the difference of the volumes over their sum, wherever they lie (Taha and Hanbury 2015).",
        "0",
        "1",
    ),
    "euler_difference": Metric(
        "Euler difference",
        "Euler",
        1,
        "0",
        "Difference of the Euler characteristics (parts minus tunnels plus cavities), as FeTA: holes and loose bits.",
        "the other's own",
        "0",
    ),
    "asd_mm": Metric(
        "Average surface distance, mm",
        "ASD mm",
        2,
        "0",
        "Mean distance of both surfaces to each other, by area (Heimann et al. 2009).",
        "no value",
        "0",
    ),
    "nsd": Metric(
        f"Surface Dice at {NSD_TOLERANCE_MM:g} mm",
        "NSD",
        3,
        "1",
        f"Share of both surfaces that lies within {NSD_TOLERANCE_MM:g} mm of the other (Nikolov et al. 2018).",
        "0",
        "1",
    ),
    "volume_ml": Metric(
        "Predicted volume, mL",
        "mL",
        1,
        "the reference's",
        "Voxels times the volume of one.",
        "0, or what was predicted",
        "0",
        averaged=False,
    ),
}
"""By name in `fedseg.metrics.scores.METRICS`, in its order."""


def printed(value: float | None, decimals: int) -> str:
    """A value as text; a dash where there is none. `-0.000` is printed without its sign."""
    if value is None:
        return NOTHING
    text = f"{value:.{decimals}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def signed(value: float | None, decimals: int) -> str:
    """A difference as text, with its sign unless it is printed as 0."""
    text = printed(value, decimals)
    return f"+{text}" if value is not None and float(text) > 0 else text.replace("-", "\N{MINUS SIGN}")
