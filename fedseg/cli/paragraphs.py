"""Sentences on standard output, so that nobody reads half a word at the edge of a terminal."""

from __future__ import annotations


def say(*lines: str, indent: int = 0) -> None:
    """Print paragraphs: broken between words on a terminal, one line each elsewhere, where others may search them."""
    from rich.padding import Padding
    from rich.text import Text

    from fedseg.cli.screen import out

    for line in lines:
        if out.is_terminal:
            out.print(Padding(Text(line), (0, 0, 0, indent), expand=False), soft_wrap=False)
        else:
            out.print(" " * indent + line, markup=False)
