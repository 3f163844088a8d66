"""A frame with axes as inline SVG, and the marks that go into it; ink and paper are the page's own, light or dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from fedseg.report.curves import Axis

SHAPES = ("circle", "square", "diamond", "triangle", "cross", "star")
"""Marks that are told apart without colour."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 12.0, 14.0, 42.0
_MOST_TICKS = 7


@dataclass(frozen=True)
class Frame:
    """Where values lie in pixels.

    Args:
        width: Of the picture, room for the axes included.
        height: The same.
        x: Across.
        y: Up.
        left: Room for the labels of the y axis.
    """

    width: float
    height: float
    x: Axis
    y: Axis
    left: float = _LEFT

    def across(self, value: float) -> float:
        """Pixels from the left."""
        return round(self.left + self.x.share(value) * (self.width - self.left - _RIGHT), 1)

    def down(self, value: float) -> float:
        """Pixels from the top."""
        return round(self.height - _BOTTOM - self.y.share(value) * (self.height - _BOTTOM - _TOP), 1)

    def svg(self, name: str, title: str, description: str, marks: Sequence[str]) -> str:
        """The whole picture.

        Args:
            name: Letters, digits and `-`: makes the ids of title and description, unique in the page.
            title: What it shows.
            description: The same for whoever does not see it, numbers included.
            marks: What lies inside, in order.
        """
        return "\n".join(
            [
                f'<svg viewBox="0 0 {self.width:g} {self.height:g}" width="{self.width:g}" role="img" '
                f'aria-labelledby="{name}-title {name}-text">',
                f'<title id="{name}-title">{escape(title)}</title>',
                f'<desc id="{name}-text">{escape(description)}</desc>',
                *self._axes(),
                *marks,
                "</svg>",
            ]
        )

    def _axes(self) -> list[str]:
        right, bottom = self.width - _RIGHT, self.height - _BOTTOM
        marks = [
            words((self.left + right) / 2, self.height - 6, self.x.label),
            words(11, (_TOP + bottom) / 2, self.y.label, turned=True),
        ]
        for value, text in self.y.ticks:
            at = self.down(value)
            marks.append(f'<line x1="{self.left:g}" x2="{right:g}" y1="{at:g}" y2="{at:g}"/>')
            marks.append(words(self.left - 6, at + 4, text, "end"))
        return marks + [words(self.across(value), bottom + 17, text) for value, text in self.x.ticks]


def between(label: str, low: float, high: float) -> Axis:
    """An axis from below the lowest to above the highest of the values, with up to seven round marks."""
    room = max(high - low, 1e-3 * max(1.0, abs(high)))
    unit = 10.0 ** math.floor(math.log10(room))
    step = next(unit * each for each in (0.1, 0.2, 0.5, 1, 2) if room / (unit * each) <= _MOST_TICKS - 1)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    places = [index * step for index in range(first, last + 1)]
    return Axis(label, places[0], places[-1], tuple((place, f"{place:.6g}") for place in places))


def kinds(label: str, names: Sequence[str]) -> Axis:
    """An axis of names, each in the middle of its own unit from 0."""
    return Axis(label, 0.0, float(max(1, len(names))), tuple((i + 0.5, name) for i, name in enumerate(names)))


def words(x: float, y: float, text: str, anchor: str = "middle", *, turned: bool = False, strong: bool = False) -> str:
    """Text at a place; `turned` runs upwards."""
    turn = f' transform="rotate(-90 {x:g} {y:g})"' if turned else ""
    kind = ' class="strong"' if strong else ""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{turn}{kind}>{escape(text)}</text>'


def dot(x: float, y: float, colour: str, title: str, shape: str = "circle", *, hollow: bool = False) -> str:
    """One point that says what it is; `hollow` is a ring."""
    look = 'fill="none" class="ring"' if hollow else f'fill="{colour}" class="dot"'
    return f'<path d="{_outline(shape, x, y)}" {look}><title>{escape(title)}</title></path>'


def _outline(shape: str, x: float, y: float) -> str:
    at = f"M{x:g} {y:g}"
    return (
        at
        + {
            "circle": "m-3.6 0a3.6 3.6 0 1 0 7.2 0a3.6 3.6 0 1 0 -7.2 0z",
            "square": "m-3.3 -3.3h6.6v6.6h-6.6z",
            "diamond": "m0 -4.6l4.6 4.6l-4.6 4.6l-4.6 -4.6z",
            "triangle": "m0 -4.4l4.4 7.6h-8.8z",
            "cross": "m-1.3 -4.2h2.6v2.9h2.9v2.6h-2.9v2.9h-2.6v-2.9h-2.9v-2.6h2.9z",
            "star": "m0 4.4l4.4 -7.6h-8.8z",
        }[shape]
    )
