"""The tables of an evaluation: means, groups, one scan's scores, and the difference of two models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedseg.labels import abbreviation, color, display_name
from fedseg.report.metric_words import METRICS, printed, signed


@dataclass(frozen=True)
class Cell:
    """One number of a table: as text, and what stands below it, each on a line of its own."""

    text: str
    below: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """One table; the first column of `rows` is their heading.

    Args:
        caption: What it shows.
        head: (text, colour of a swatch or "", what hovering says) of each column.
        rows: As many cells as `head`.
    """

    caption: str
    head: tuple[tuple[str, str, str], ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Group:
    """The means of one way to group the scans: over tissues, and Dice of each tissue."""

    name: str
    means: Table
    tissues: Table


def mean_scores(summary: Mapping[str, Any], tissues: Sequence[str]) -> Table:
    """Means by metric and tissue, each above its interval."""
    columns = ("mean", *tissues)
    rows = []
    for name, metric in METRICS.items():
        cells = [
            Cell("") if column == "mean" and not metric.averaged else _mean(summary, name, column) for column in columns
        ]
        rows.append((Cell(metric.title), *cells))
    return Table("Means over subjects, 95% intervals below", _head("", columns), tuple(rows))


def grouped(title: str, groups: Mapping[str, Any], tissues: Sequence[str]) -> Group:
    """The means of each group."""
    averaged = {name: metric for name, metric in METRICS.items() if metric.averaged}
    means = tuple(
        (
            Cell(group),
            Cell(str(found["subjects"])),
            *(Cell(printed(found[name]["mean"], metric.decimals)) for name, metric in averaged.items()),
        )
        for group, found in groups.items()
    )
    dice = tuple(
        (Cell(group), *(Cell(printed(found["dice"].get(column), 3)) for column in ("mean", *tissues)))
        for group, found in groups.items()
    )
    heads = ((title, "", ""), ("subjects", "", ""), *((each.short, "", each.title) for each in averaged.values()))
    return Group(
        title,
        Table(f"By {title}: means over tissues and subjects", heads, means),
        Table(f"By {title}: Dice of each tissue", _head(title, ("mean", *tissues)), dice),
    )


def own_scores(scan: str, row: Mapping[str, Any], tissues: Sequence[str]) -> Table:
    """One scan's metrics by tissue, and the reference's volumes."""
    heads = [(each.short, "", each.title) for each in METRICS.values()]
    lines = tuple(
        (
            Cell(display_name(tissue)),
            *(Cell(_own(row[name][tissue], name)) for name in METRICS),
            Cell(printed(row["reference_volume_ml"][tissue], METRICS["volume_ml"].decimals)),
        )
        for tissue in tissues
    )
    head = (("tissue", "", ""), *heads, ("ref. mL", "", "Volume in the reference, mL"))
    return Table(f"Scores of {scan} by tissue", head, lines)


def differences(comparison: Mapping[str, Any]) -> Table:
    """Second model minus first: metrics by tissue, each above its interval and p values."""
    metrics = comparison["metrics"]
    columns = list(next(iter(metrics.values()), {}))
    rows = []
    for name, found in metrics.items():
        metric = METRICS[name]
        cells = [
            Cell("") if column == "mean" and not metric.averaged else _difference(found[column], name)
            for column in columns
        ]
        rows.append((Cell(metric.title), *cells))
    caption = "Difference; below it its 95% interval, its p value, and that corrected over the tissues (Holm)"
    return Table(caption, _head("", columns), tuple(rows))


def interval(found: Sequence[float] | None, decimals: int, how: Callable[[float, int], str] = printed) -> str:
    """An interval in words; empty where there is none."""
    return f"{how(found[0], decimals)} to {how(found[1], decimals)}" if found else ""


def _mean(summary: Mapping[str, Any], name: str, column: str) -> Cell:
    decimals = METRICS[name].decimals
    below = interval(summary["intervals"][name].get(column), decimals)
    return Cell(printed(summary[name].get(column), decimals), (below,) if below else ())


def _difference(found: Mapping[str, Any], name: str) -> Cell:
    decimals = METRICS[name].decimals
    below = (
        interval(found["interval"], decimals, signed),
        _probability("p", found["p"]),
        _probability("Holm", found["p_holm"]),
    )
    return Cell(signed(found["difference"], decimals), tuple(filter(None, below)))


def _probability(name: str, p: float | None) -> str:
    if p is None:
        return ""
    return f"{name} < 0.001" if p < 0.001 else f"{name} = {p:.3f}"


def _head(first: str, columns: Sequence[str]) -> tuple[tuple[str, str, str], ...]:
    names = [
        ("mean", "", "mean over the tissues")
        if column == "mean"
        else (abbreviation(column), color(column), display_name(column))
        for column in columns
    ]
    return ((first, "", ""), *names)


def _own(value: float | None, name: str) -> str:
    """One scan's value; its Euler difference is a whole number."""
    return printed(value, 0 if name == "euler_difference" else METRICS[name].decimals)
