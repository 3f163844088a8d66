"""A view of a brain as inline SVG: each grey plane is stored once and shown in every row."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from xml.sax.saxutils import escape

from fedseg.report.figures import Panel, View

_WIDTH = 560.0
_GAP = 4.0
_HEAD, _SIDE = 15.0, 14.0
_BAR_MM = 20.0
_DIMMED = (1.0, 0.72, 0.38)
_ROWS = ("scan", "outlines", "differences")


@dataclass(frozen=True)
class _Place:
    """Where one panel lies in the first row, in the picture's units."""

    panel: Panel
    name: str
    x: float
    y: float
    width: float
    height: float


def svg(view: View, name: str, description: str) -> str:
    """Three planes side by side, rows below each other: scan, outlines, and differences where there is a reference.

    Args:
        view: The planes.
        name: Letters, digits and `-`; unique in the page.
        description: What it shows, for whoever does not see it.
    """
    widths = [panel.extent_mm[0] for panel in view.panels]
    unit = (_WIDTH - _SIDE - _GAP * len(widths)) / sum(widths)
    row_height = unit * max(panel.extent_mm[1] for panel in view.panels)
    rows = _ROWS if view.panels[0].errors is not None else _ROWS[:2]
    drop = row_height + _GAP
    height = _HEAD + len(rows) * drop
    places = _places(view, name, unit, row_height)
    return "\n".join(
        [
            f'<svg class="brain" viewBox="0 0 {_WIDTH:g} {height:.1f}" width="{_WIDTH:g}" role="img" '
            f'aria-labelledby="{name}-title {name}-text">',
            f'<title id="{name}-title">{escape(view.name)}</title>',
            f'<desc id="{name}-text">{escape(description)}</desc>',
            f'<rect width="{_WIDTH:g}" height="{height:.1f}"/>',
            *(_turned(10, _HEAD + row * drop + row_height / 2, words) for row, words in enumerate(rows)),
            *(mark for place in places for mark in _scan(place)),
            *(_over(place, place.panel.outlines, 1, drop) for place in places),
            *(_over(place, place.panel.errors, 2, drop) for place in places if place.panel.errors is not None),
            *_bar(unit, _WIDTH - 8, _HEAD + row_height - 6),
            "</svg>",
        ]
    )


def _places(view: View, name: str, unit: float, row_height: float) -> list[_Place]:
    left, places = _SIDE, []
    for number, panel in enumerate(view.panels):
        width, height = unit * panel.extent_mm[0], unit * panel.extent_mm[1]
        places.append(_Place(panel, f"{name}-{number}", left, _HEAD + (row_height - height) / 2, width, height))
        left += width + _GAP
    return places


def _scan(place: _Place) -> list[str]:
    """The grey plane, its name, its sides, and ticks where the view's other planes cut it."""
    right, bottom = place.x + place.width, place.y + place.height
    across, down = place.x + place.panel.cross[0] * place.width, place.y + place.panel.cross[1] * place.height
    ends = (
        f"M{across:.1f} {place.y:.1f}v6M{across:.1f} {bottom:.1f}v-6"
        f"M{place.x:.1f} {down:.1f}h6M{right:.1f} {down:.1f}h-6"
    )
    first, second = place.panel.sides
    return [
        f'<image id="{place.name}" {_at(place, 0)} {_png(place.panel.grey)}/>',
        f'<path d="{ends}"/>',
        _text(place.x + place.width / 2, 11, place.panel.name),
        _text(place.x + 7, place.y + 11, first, strong=True),
        _text(right - 7, place.y + 11, second, strong=True),
    ]


def _over(place: _Place, layer: bytes | None, row: int, drop: float) -> str:
    """The same grey, dimmed, and a layer over it."""
    return (
        f'<use href="#{place.name}" y="{row * drop:.1f}" opacity="{_DIMMED[row]:g}"/>'
        f"<image {_at(place, row * drop)} {_png(layer or b'')}/>"
    )


def _at(place: _Place, drop: float) -> str:
    return f'x="{place.x:.1f}" y="{place.y + drop:.1f}" width="{place.width:.1f}" height="{place.height:.1f}"'


def _png(content: bytes) -> str:
    return f'preserveAspectRatio="none" href="data:image/png;base64,{base64.b64encode(content).decode()}"'


def _bar(unit: float, right: float, bottom: float) -> list[str]:
    """A bar of 20 mm at the lower right."""
    left = right - _BAR_MM * unit
    return [
        f'<path class="bar" d="M{left:.1f} {bottom:.1f}H{right:.1f}"/>',
        _text((left + right) / 2, bottom - 4, f"{_BAR_MM:g} mm"),
    ]


def _text(x: float, y: float, words: str, *, strong: bool = False) -> str:
    kind = ' class="side"' if strong else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle"{kind}>{escape(words)}</text>'


def _turned(x: float, y: float, words: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle" transform="rotate(-90 {x:.1f} {y:.1f})">{words}</text>'
