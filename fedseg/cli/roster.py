"""A study's roster on a screen: who has enrolled, the words to compare, and the question whether they match."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

import typer

from fedseg.errors import Interrupted, RosterError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from fedseg.secagg.roster import Roster

QUESTION = (
    "Do the other hospitals see these very words, as they told you by a way that isn't this connection? "
    "Type yes (Enter alone means no)"
)
WHY = (
    "Compare the words in a call, best with every hospital in it: whoever runs the server could put a site of their "
    "own in a hospital's place, and the words would then differ from those that the others see."
)

SAME = (
    "These are the same sites and keys as you have confirmed before, under another plan: the extension that you have "
    "agreed to. The words stand for the plan too, so they are others than before; compare them again."
)


def site_table(sites: Iterable[str], keys: Mapping[str, bytes], mine: str | None = None) -> Table:
    """One row a site: its name, its key in short, which is this site's own."""
    from rich.table import Table

    from fedseg.runtime.roster_words import short_key

    table = Table("site", "key", box=None, title_justify="left", pad_edge=False)
    if mine is not None:
        table.add_column("")
    for site in sites:
        key = short_key(keys[site]) if site in keys else "not enrolled yet"
        table.add_row(site, key, *([] if mine is None else ["this site" if site == mine else ""]))
    return table


def print_words(console: Console, fingerprint: bytes) -> None:
    """The words, six a line, and the fingerprint that they stand for."""
    from fedseg.runtime.roster_words import lines

    console.print("words", markup=False)
    for line in lines(fingerprint):
        console.print(f"  {line}", markup=False)
    console.print(f"fingerprint  {fingerprint.hex()}", markup=False)


def ask(roster: Roster, site: str, state: Path, earlier: Roster | None = None) -> bool:
    """Show the roster and ask whether its words match. Without a terminal: say what to run instead.

    Args:
        roster: What the server offers.
        site: This site.
        state: Its folder.
        earlier: The roster that was confirmed before, where a new version of the plan asks for another confirmation.

    Returns:
        Whether they match; False where nobody could be asked.

    Raises:
        RosterError: if the answer was anything but yes.
        Interrupted: if it was none.
    """
    from fedseg.cli.screen import err

    if earlier is not None:
        err.print(SAME, markup=False)
    err.print("All sites of the study have enrolled:", markup=False)
    err.print(site_table(roster.sites, roster.keys, site))
    print_words(err, roster.fingerprint)
    err.print(WHY, markup=False)
    if not sys.stdin.isatty():
        approve = f"fedseg client approve-roster --state {quote(str(state))} --fingerprint HEX"
        err.print(f"Nobody can be asked here: there is no terminal. Compare them, then run:\n  {approve}", markup=False)
        return False
    again = f"to be asked again: fedseg client join --state {quote(str(state))}"
    try:
        answer = typer.prompt(QUESTION, default="", show_default=False, err=True)
    except typer.Abort:
        err.print()
        raise Interrupted("stopped before the roster was confirmed: nothing was computed or sent", hint=again) from None
    if answer.strip().lower() != "yes":
        raise RosterError(
            "the roster was not confirmed: nothing was computed or sent",
            hint=f"if the words differ, tell the coordinator and the other hospitals before anything else; {again}",
        )
    return True
