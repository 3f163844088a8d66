"""Progress without a terminal, and names that look like markup."""

from __future__ import annotations

import pytest

from fedseg.cli.screen import Screen, out


def _lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_a_pipe_gets_a_line_now_and_then_and_rarer_and_rarer(capsys: pytest.CaptureFixture[str]) -> None:
    at = 0.0
    with Screen(None, clock=lambda: at) as screen:
        for done in range(91):
            screen.bar("segmenting", done, 90)
            at += 1
    assert _lines(capsys) == [f"segmenting: {done} of 90" for done in (10, 20, 40, 80, 90)]


def test_a_short_part_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    at = 0.0
    with Screen(None, clock=lambda: at) as screen:
        for _ in range(2):
            for done in range(5):
                screen.bar("segmenting", done, 4)
                at += 2
    assert _lines(capsys) == []


def test_many_steps_are_told_in_per_cent(capsys: pytest.CaptureFixture[str]) -> None:
    at = 0.0
    with Screen(None, clock=lambda: at) as screen:
        screen.bar("training", 0, 1000)
        at = 11
        screen.bar("training", 347, 1000)
    assert _lines(capsys) == ["training: 35%"]


def test_no_name_becomes_an_emoji() -> None:
    from rich.table import Table

    table = Table("site")
    table.add_row(":brain:")
    with out.capture() as page:
        out.print(":brain:", markup=False)
        out.print(table)
    assert page.get().count(":brain:") == 2
