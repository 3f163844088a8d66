from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedseg.report.canvas import SHAPES, Frame, between, dot, kinds
from fedseg.report.plots import COLOURS, Group, Measured, boxes, by_age, growth, looks, pairs

NASTY = 'a <b> & "c"'


def drawn(svg: str) -> ET.Element:
    return ET.fromstring(svg)


def dots(found: ET.Element, kind: str = "dot") -> list[ET.Element]:
    return [each for each in found.iter("path") if each.attrib.get("class") == kind]


def height(mark: ET.Element) -> float:
    """The y that a dot's path starts at."""
    return float(mark.attrib["d"].split("m")[0].removeprefix("M").split()[1])


def whiskers(found: ET.Element) -> list[ET.Element]:
    return [each for each in found.iter("line") if each.attrib.get("class") == "whisker"]


def texts(found: ET.Element) -> list[str]:
    return [each.text or "" for each in found.iter("text")]


def group(name: str, *values: float) -> Group:
    return Group(name, COLOURS[0], tuple((value, f"sub-{value:g}") for value in values))


def boxed(*groups: Group, highest: float | None = 1.0) -> ET.Element:
    return drawn(boxes("some", "Dice", "Dice", groups, decimals=2, highest=highest))


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_an_axis_holds_its_values_with_few_marks(low: float, room: float) -> None:
    axis = between("x", low, low + room)
    slack = 1e-6 * max(1.0, abs(low), room)
    assert axis.low <= low + slack
    assert axis.high >= low + room - slack
    assert 2 <= len(axis.ticks) <= 9
    assert all(first[0] < second[0] for first, second in pairwise(axis.ticks))


def test_every_picture_says_what_it_shows() -> None:
    for found in (
        boxed(group("CGM", 0.5, 0.7, 0.6)),
        drawn(by_age("some", "Dice", "mean Dice", [Measured(24, 0.8, "sub-1"), Measured(26, 0.7, "sub-2")])),
        drawn(pairs("some", "Dice", "Dice", [("sub-1", 0.5, 0.6)], ("A", "B"))),
    ):
        ids = [each.attrib["id"] for each in found if "id" in each.attrib]
        assert found.attrib["aria-labelledby"].split() == ids == ["some-title", "some-text"]


def test_few_values_are_points_and_a_labelled_median() -> None:
    found = boxed(group("CGM", 0.5, 0.7, 0.6))
    assert len(dots(found)) == 3
    assert "0.60" in texts(found)
    assert not list(found.iter("rect")), "a box of three says too much"
    assert "CGM 0.60 (3)" in (found.findtext("desc") or "")


def test_more_values_are_a_box_with_whiskers_and_all_points() -> None:
    values = [0.1, 0.5, 0.6, 0.7, 0.8, 0.9]
    found = boxed(group("CGM", *values))
    (rect,) = found.iter("rect")
    top, bottom = float(rect.attrib["y"]), float(rect.attrib["y"]) + float(rect.attrib["height"])
    down = sorted(height(each) for each in dots(found))
    assert len(down) == 6
    assert down[1] < top < down[2] < down[3] < bottom < down[4], "a quarter of six lies between the second and third"
    ends = [float(each.attrib["y2"]) for each in whiskers(found)]
    assert ends == [down[0], down[4]], "the lowest is beyond Tukey's fence"


def test_of_many_values_only_those_beyond_the_whiskers_are_points() -> None:
    values = [0.5 + each / 1000 for each in range(100)] + [0.1]
    assert [each.findtext("title") for each in dots(boxed(group("CGM", *values)))] == ["sub-0.1"]


def test_a_group_without_values_says_so() -> None:
    found = boxed(group("CGM", 0.5), group("WM"))
    assert "no value" in texts(found)
    assert "WM no value" in (found.findtext("desc") or "")
    assert "no value" in texts(boxed(group("WM"))), "even alone"


def test_equal_values_have_a_box_too() -> None:
    found = boxed(group("CGM", *[0.8] * 6), highest=None)
    (rect,) = found.iter("rect")
    assert float(rect.attrib["height"]) == 1
    assert not whiskers(found)


def test_distances_start_at_nought_and_dice_ends_at_one() -> None:
    assert texts(boxed(group("CGM", 6.0, 7.0), highest=None)).count("0") == 1
    assert "1" in texts(boxed(group("CGM", 0.6, 0.7)))


def test_sites_differ_by_shape_and_colour() -> None:
    points = [Measured(20 + each, 0.8, f"sub-{each}", f"site-{each}") for each in range(6)]
    found = looks(points)
    assert len({shape for _, shape in found.values()}) == len({colour for colour, _ in found.values()}) == 6
    drawings = {dot(0, 0, "red", "", shape) for shape in SHAPES}
    assert len(drawings) == 6
    marks = dots(drawn(by_age("some", "Dice", "Dice", points)))
    assert [each.attrib["fill"] for each in marks] == list(COLOURS)


def test_the_older_is_further_right_and_the_better_higher() -> None:
    found = by_age("some", "Dice", "Dice", [Measured(24, 0.8, "sub-1"), Measured(30, 0.95, "sub-2")])
    young, old = (each.attrib["d"].split("m")[0].removeprefix("M").split() for each in dots(drawn(found)))
    assert float(young[0]) < float(old[0])
    assert float(young[1]) > float(old[1])


def test_growth_joins_the_means_of_the_weeks() -> None:
    predicted = [Measured(24.0, 10, "sub-1"), Measured(24.2, 20, "sub-2"), Measured(30, 40, "sub-3")]
    reference = [Measured(each.weeks, 50, each.title) for each in predicted]
    found = drawn(growth("some", "Volume", COLOURS[0], predicted, reference))
    (line,) = dots(found, "weekly")
    (dashed,) = dots(found, "weekly dashed")
    first, second = (tuple(map(float, each.split())) for each in line.attrib["d"].removeprefix("M").split(" L"))
    assert len(dots(found)) == len(dots(found, "ring")) == 3
    assert sorted(height(each) for each in dots(found))[1] < first[1] < sorted(map(height, dots(found)))[2]
    assert second[1] == min(map(height, dots(found)))
    assert len({each.split()[1] for each in dashed.attrib["d"].removeprefix("M").split(" L")}) == 1, "50 mL throughout"
    assert found.findtext("desc") == "Predicted 10.0 to 40.0 mL, reference 50.0 to 50.0 mL."


def test_a_single_week_has_points_and_no_line() -> None:
    point = [Measured(24.0, 10, "sub-1")]
    found = drawn(growth("some", "Volume", COLOURS[0], point, point))
    assert not dots(found, "weekly")
    assert len(dots(found)) == 1


def test_pairs_have_the_largest_loss_on_top() -> None:
    rows = [("gain", 0.5, 0.9), ("loss", 0.9, 0.6), ("same", 0.7, 0.7)]
    found = drawn(pairs("some", "Dice", "Dice", rows, ("A", "B")))
    places = {each.findtext("title"): height(each) for each in dots(found)}
    assert places["loss: B 0.600"] < places["same: B 0.700"] < places["gain: B 0.900"]
    assert found.findtext("desc") == "B is higher in 1 of 3 subjects."


def test_of_many_pairs_those_that_differ_most_are_drawn() -> None:
    rows = [(f"sub-{each}", 0.5, 0.5 + each / 1000) for each in range(100)]
    found = drawn(pairs("some", "Dice", "Dice", rows, ("A", "B")))
    assert len(dots(found)) == 60
    assert "sub-99" in texts(found)
    assert "sub-10" not in texts(found)


def test_names_are_escaped() -> None:
    found = [
        boxes(NASTY[0], NASTY, NASTY, [Group(NASTY, COLOURS[0], ((0.5, NASTY),))], decimals=1, highest=1.0),
        by_age("some", NASTY, NASTY, [Measured(24, 0.5, NASTY, NASTY), Measured(25, 0.5, NASTY, NASTY)]),
        pairs("some", NASTY, NASTY, [(NASTY, 0.5, 0.6)], (NASTY, NASTY)),
    ]
    for each in found:
        assert NASTY in "".join(drawn(each).itertext())


@pytest.mark.parametrize("values", [(0.0, 0.0), (1.0, 1.0), (0.3, 0.3001)])
def test_no_place_is_outside_the_frame(values: tuple[float, float]) -> None:
    frame = Frame(560, 250, kinds("", ["a", "b"]), between("Dice", min(values), max(values)))
    for value in values:
        assert 0 < frame.down(value) < 250
        assert math.isfinite(frame.down(value))
