"""What a privacy report is made of, whether on a screen or on a page: sections of text, facts, tables and curves."""

from __future__ import annotations

from dataclasses import dataclass

from fedseg.report.curves import Chart

Fact = tuple[str, str]


@dataclass(frozen=True)
class Table:
    """A table of text.

    Args:
        head: Of each column.
        rows: As many cells in each.
        words: Columns that hold words, from 0; the others hold numbers, but for the first.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Section:
    """One section; what is empty is left out.

    Args:
        title: Its heading.
        paragraphs: Sentences.
        facts: Name and text of each.
        table: Numbers.
        points: A list, after the table.
        chart: A curve, on the page alone: its numbers are in the table.
        warning: Whether the paragraphs are one.
    """

    title: str
    paragraphs: tuple[str, ...] = ()
    facts: tuple[Fact, ...] = ()
    table: Table | None = None
    points: tuple[str, ...] = ()
    chart: Chart | None = None
    warning: bool = False
