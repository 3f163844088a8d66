"""Which plots an evaluation has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from fedseg.labels import abbreviation, color, display_name
from fedseg.report.evaluation import mean_of, row_name, worst_first
from fedseg.report.metric_words import METRICS
from fedseg.report.plots import COLOURS, Group, Measured, boxes, by_age, growth, looks, pairs, sample
from fedseg.report.volumes import brain_tissue_ml, tells_fluid

_BOXED = {"dice": 1.0, "hd95_mm": None}
"""Metrics that have box plots, and where their scale ends."""

_NO_SITE = "site not named"

_WHOLE = "#888888"

Row = Mapping[str, Any]
Volume = Callable[[Mapping[str, float]], float]


@dataclass(frozen=True)
class Plot:
    """One picture and what stands below it; `legend` has (mark, name) of what its points mean."""

    svg: str
    caption: str
    legend: tuple[tuple[str, str], ...] = ()


def box_plots(rows: Sequence[Row], tissues: Sequence[str], name: str) -> list[Plot]:
    """Dice and HD95 by tissue and, where there are several, by site; `name` makes the ids."""
    if not rows:
        return []
    found = []
    for metric, highest in _BOXED.items():
        words = METRICS[metric]
        for kind, groups in (("tissue", _by_tissue(rows, tissues, metric)), ("site", _by_site(rows, metric))):
            if kind == "site" and len(groups) < 2:
                continue
            title = f"{words.short} by {kind}"
            svg = boxes(
                f"{name}-{metric.replace('_', '-')}-{kind}",
                title,
                words.title,
                groups,
                decimals=words.decimals,
                highest=highest,
            )
            found.append(Plot(svg, f"{words.title} by {kind}: medians are labelled, each point is a scan."))
    return found


def age_plots(rows: Sequence[Row], name: str) -> list[Plot]:
    """Dice by gestational age; none with fewer than two ages."""
    known = _aged(rows)
    if not known:
        return []
    points = [
        Measured(float(row["gestational_age_weeks"]), mean, f"{row_name(row)}, Dice {mean:.3f}", _site(row))
        for row in known
        if (mean := mean_of(row, "dice")) is not None
    ]
    named = any(row["site"] for row in known)
    legend = tuple((sample(*look), site) for site, look in looks(points).items() if named)
    svg = by_age(f"{name}-age", "Mean Dice by gestational age", "mean Dice", points)
    return [Plot(svg, "Mean Dice of each scan by gestational age.", legend)]


def growth_plots(rows: Sequence[Row], tissues: Sequence[str], name: str) -> list[Plot]:
    """Predicted and reference volumes of each tissue by gestational age; none with fewer than two ages.

    Where the scheme tells brain tissue from fluid, all of it together comes first.
    """
    known = _aged(rows)
    if not known:
        return []
    shown: list[tuple[str, str, Volume]] = [("brain tissue", _WHOLE, _brain_tissue)] if tells_fluid(tissues) else []
    shown += [(display_name(tissue), color(tissue), itemgetter(tissue)) for tissue in tissues]
    return [
        Plot(
            growth(
                f"{name}-growth-{place}",
                f"Volume of {called} by gestational age",
                colour,
                _volumes(known, volume, "volume_ml"),
                _volumes(known, volume, "reference_volume_ml"),
            ),
            called,
        )
        for place, (called, colour, volume) in enumerate(shown)
    ]


def paired_plot(first: Mapping[str, Any], second: Mapping[str, Any], names: tuple[str, str], name: str) -> Plot | None:
    """Mean Dice of two models for each scan; None without one in common."""
    theirs = {(row["site"], row_name(row)): mean_of(row, "dice") for row in second["subjects"]}
    rows = [
        (row_name(row), mine, other)
        for row in worst_first(first)
        if (mine := mean_of(row, "dice")) is not None
        and (other := theirs.get((row["site"], row_name(row)))) is not None
    ]
    if not rows:
        return None
    svg = pairs(name, f"Mean Dice of each scan: {names[0]} and {names[1]}", "mean Dice", rows, names)
    shown = "" if svg.count('class="pair"') == len(rows) else " The scans that differ most are shown."
    return Plot(svg, f"Mean Dice of each scan: ring {names[0]}, dot {names[1]}; the largest loss on top.{shown}")


def _by_tissue(rows: Sequence[Row], tissues: Sequence[str], metric: str) -> list[Group]:
    return [
        Group(
            abbreviation(tissue),
            color(tissue),
            tuple((row[metric][tissue], row_name(row)) for row in rows if row[metric][tissue] is not None),
        )
        for tissue in tissues
    ]


def _by_site(rows: Sequence[Row], metric: str) -> list[Group]:
    sites = sorted({_site(row) for row in rows})
    return [
        Group(
            site,
            COLOURS[place % len(COLOURS)],
            tuple(
                (mean, row_name(row))
                for row in rows
                if _site(row) == site and (mean := mean_of(row, metric)) is not None
            ),
        )
        for place, site in enumerate(sites)
    ]


def _aged(rows: Sequence[Row]) -> list[Row]:
    known = [row for row in rows if row["gestational_age_weeks"] is not None]
    return known if len({row["gestational_age_weeks"] for row in known}) > 1 else []


def _volumes(rows: Sequence[Row], volume: Volume, metric: str) -> list[Measured]:
    kind = "reference" if metric.startswith("reference") else "predicted"
    return [
        Measured(
            float(row["gestational_age_weeks"]),
            volume(row[metric]),
            f"{row_name(row)}, {kind} {volume(row[metric]):.1f} mL",
        )
        for row in rows
    ]


def _brain_tissue(volumes_ml: Mapping[str, float]) -> float:
    return brain_tissue_ml(volumes_ml) or 0.0


def _site(row: Row) -> str:
    return str(row["site"] or _NO_SITE)
