"""The plots of an evaluation: boxes by group, scores and volumes by gestational age, two models side by side."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

import numpy as np

from fedseg.report.canvas import SHAPES, Frame, between, dot, kinds, words
from fedseg.report.curves import Axis, linear

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's, for sites; each site has a shape of its own too."""

_WIDTH, _HEIGHT = 560.0, 250.0
_SMALL = (270.0, 185.0)
_FEWEST_IN_A_BOX = 5
_MOST_POINTS = 60
_MOST_PAIRS = 60
_WHISKER = 1.5  # times the box, as Tukey draws them


@dataclass(frozen=True)
class Group:
    """The values of one box.

    Args:
        name: Below the box.
        colour: Of its points.
        values: (value, what the point is called); missing ones are left out beforehand.
    """

    name: str
    colour: str
    values: tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class Measured:
    """One scan at its gestational age.

    Args:
        weeks: Gestational age.
        value: Across all tissues, or of one.
        title: What the point is called.
        site: Where it comes from.
    """

    weeks: float
    value: float
    title: str
    site: str = ""


def boxes(name: str, title: str, label: str, groups: Sequence[Group], *, decimals: int, highest: float | None) -> str:
    """Box plots: quartiles, Tukey's whiskers, the median labelled; every point while there are few.

    Args:
        name: Unique in the page: letters, digits and `-`.
        title: What it shows.
        label: Of the value axis.
        groups: One box each; one without values says so.
        decimals: Of the medians.
        highest: End of the axis where the scale has one (1 for Dice); then it need not begin at 0.
    """
    found = [value for group in groups for value, _ in group.values]
    if highest is None:
        axis = linear(label, max(found, default=1.0))
    else:
        axis = between(label, min(found, default=0.0), highest)
    frame = Frame(_WIDTH, _HEIGHT, kinds("", [group.name for group in groups]), axis)
    medians = [
        f"{group.name} {np.median([value for value, _ in group.values]):.{decimals}f} ({len(group.values)})"
        if group.values
        else f"{group.name} no value"
        for group in groups
    ]
    marks = [mark for place, group in enumerate(groups) for mark in _box(frame, place + 0.5, group, decimals)]
    return frame.svg(name, title, f"Medians (number of scans): {', '.join(medians)}.", marks)


def by_age(name: str, title: str, label: str, points: Sequence[Measured]) -> str:
    """Scores up to 1 against gestational age; each site has a colour and a shape (`looks`)."""
    sites = looks(points)
    weeks = [each.weeks for each in points]
    frame = Frame(
        _WIDTH,
        _HEIGHT,
        _weeks(weeks, "gestational age, weeks"),
        between(label, min(0.9, *(each.value for each in points)), 1.0),
    )
    marks = [
        dot(frame.across(each.weeks), frame.down(each.value), *_look(sites[each.site], each.title)) for each in points
    ]
    lowest = min(points, key=lambda each: each.value)
    words_ = f"{len(points)} scans of {min(weeks):g} to {max(weeks):g} weeks; lowest: {lowest.title}."
    return frame.svg(name, title, words_, marks)


def growth(name: str, title: str, colour: str, predicted: Sequence[Measured], reference: Sequence[Measured]) -> str:
    """Predicted (dots, solid line) and reference volumes (rings, dashed line) against age; lines join weekly means."""
    width, height = _SMALL
    values = [each.value for each in (*predicted, *reference)]
    weeks = [each.weeks for each in (*predicted, *reference)]
    frame = Frame(width, height, _weeks(weeks, "weeks"), linear("mL", max(values)), left=44)
    marks = [_weekly(frame, reference, "weekly dashed"), _weekly(frame, predicted, "weekly")]
    marks += [dot(frame.across(each.weeks), frame.down(each.value), "", each.title, hollow=True) for each in reference]
    marks += [dot(frame.across(each.weeks), frame.down(each.value), colour, each.title) for each in predicted]
    said = f"Predicted {_range(predicted)}, reference {_range(reference)}."
    return frame.svg(name, title, said, marks)


def pairs(name: str, title: str, label: str, rows: Sequence[tuple[str, float, float]], names: tuple[str, str]) -> str:
    """Two models' values of each subject on one line: ring first, dot second; largest loss on top.

    Args:
        name: Unique in the page.
        title: What it shows.
        label: Of the value axis.
        rows: (subject, first, second), at least one; of more than 60 those that differ most.
        names: Of the two models.
    """
    shown = sorted(rows, key=lambda row: -abs(row[2] - row[1]))[:_MOST_PAIRS]
    shown = sorted(shown, key=lambda row: row[1] - row[2])
    values = [value for _, *pair in shown for value in pair]
    places = tuple((place + 0.5, row[0]) for place, row in enumerate(shown))
    frame = Frame(
        _WIDTH,
        70 + 16.0 * len(shown),
        between(label, min(values), max(values)),
        Axis("", 0.0, float(len(shown)), places),
        left=150,
    )
    marks = []
    for place, (subject, first, second) in enumerate(shown):
        down = frame.down(place + 0.5)
        x1, x2 = frame.across(first), frame.across(second)
        marks.append(f'<line class="pair" x1="{x1:g}" x2="{x2:g}" y1="{down:g}" y2="{down:g}"/>')
        marks.append(dot(x1, down, "", f"{subject}: {names[0]} {first:.3f}", hollow=True))
        marks.append(dot(x2, down, COLOURS[0], f"{subject}: {names[1]} {second:.3f}"))
    better = sum(second > first for _, first, second in rows)
    return frame.svg(name, title, f"{names[1]} is higher in {better} of {len(rows)} subjects.", marks)


def looks(points: Sequence[Measured]) -> dict[str, tuple[str, str]]:
    """Colour and shape of each site."""
    sites = sorted({each.site for each in points})
    return {site: (COLOURS[i % len(COLOURS)], SHAPES[i % len(SHAPES)]) for i, site in enumerate(sites)}


def sample(colour: str, shape: str) -> str:
    """One mark for a legend."""
    return f'<svg class="sample" viewBox="0 0 12 12" width="12" aria-hidden="true">{dot(6, 6, colour, "", shape)}</svg>'


def _look(look: tuple[str, str], title: str) -> tuple[str, str, str]:
    colour, shape = look
    return colour, title, shape


def _box(frame: Frame, middle: float, group: Group, decimals: int) -> list[str]:
    share = frame.across(1) - frame.across(0)
    half = min(15.0, 0.2 * share)
    at = round(frame.across(middle) - min(14.0, 0.2 * share), 1)  # the median's label needs the room on the right
    values = np.array([value for value, _ in group.values])
    if not len(values):
        return [words(at, frame.down(frame.y.low) - 6, "no value")]
    low, median, high = (float(each) for each in np.percentile(values, (25, 50, 75)))
    marks = _quartiles(frame, at, half, values, (low, high)) if len(values) >= _FEWEST_IN_A_BOX else []
    marks += _scatter(frame, at, half, group, (low, high))
    down = frame.down(median)
    marks.append(f'<line class="median" x1="{at - half:g}" x2="{at + half:g}" y1="{down:g}" y2="{down:g}"/>')
    marks.append(words(at + half + 3, down + 4, f"{median:.{decimals}f}", "start", strong=True))
    return marks


def _quartiles(
    frame: Frame, at: float, half: float, values: np.typing.NDArray[np.float64], box: tuple[float, float]
) -> list[str]:
    low, high = box
    room = _WHISKER * (high - low)
    inside = values[(values >= low - room) & (values <= high + room)]
    top, bottom = frame.down(high), frame.down(low)
    ends = ((top, frame.down(float(inside.max()))), (bottom, frame.down(float(inside.min()))))
    whiskers = [
        f'<line class="whisker" x1="{at:g}" x2="{at:g}" y1="{near:g}" y2="{far:g}"/>'
        for near, far in ends
        if near != far
    ]
    size = f'x="{at - half:g}" y="{top:g}" width="{2 * half:g}" height="{max(bottom - top, 1):g}"'
    return [*whiskers, f'<rect class="box" {size}/>']


def _scatter(frame: Frame, at: float, half: float, group: Group, box: tuple[float, float]) -> list[str]:
    """All points, or of many those beyond the whiskers; spread a little so that equal ones are seen."""
    room = _WHISKER * (box[1] - box[0])
    few = len(group.values) <= _MOST_POINTS
    shown = [each for each in group.values if few or not box[0] - room <= each[0] <= box[1] + room]
    return [
        dot(round(at + half * (0.7 * ((place * 0.618) % 1) - 0.35), 1), frame.down(value), group.colour, title)
        for place, (value, title) in enumerate(shown)
    ]


def _weeks(weeks: Sequence[float], label: str) -> Axis:
    """Whole weeks, at most ten marks."""
    first, last = math.floor(min(weeks)), math.ceil(max(weeks))
    last = max(last, first + 1)
    return Axis(
        label,
        first - 0.5,
        last + 0.5,
        tuple((float(week), str(week)) for week in range(first, last + 1, 1 + (last - first) // 9)),
    )


def _weekly(frame: Frame, points: Sequence[Measured], kind: str) -> str:
    """A line through the mean of each week."""
    weeks: dict[int, list[Measured]] = defaultdict(list)
    for each in points:
        weeks[round(each.weeks)].append(each)
    places = [
        f"{frame.across(_mean([each.weeks for each in found])):g} {frame.down(_mean([each.value for each in found])):g}"
        for _, found in sorted(weeks.items())
    ]
    return f'<path class="{escape(kind)}" d="M{" L".join(places)}"/>' if len(places) > 1 else ""


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _range(points: Sequence[Measured]) -> str:
    values = [each.value for each in points]
    return f"{min(values):.1f} to {max(values):.1f} mL" if values else "unknown"
