"""`fedseg study status`: where a study stands, by what the coordinator's folder holds."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from fedseg.runtime.status import Status


def register(app: typer.Typer) -> None:
    """Add the command to a group."""
    app.command(epilog="Example: fedseg study status my-study")(status)


def status(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The study's folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show how far a study is, who has enrolled and taken part, and what it waits for; also while its server runs."""
    from fedseg.runtime.status import status_of
    from fedseg.runtime.study import StudyFolder

    found = status_of(StudyFolder.open(folder))
    if as_json:
        typer.echo(json.dumps(asdict(found), allow_nan=False))
    else:
        _show(folder, found)


def _show(folder: Path, found: Status) -> None:
    from fedseg.cli.event_lines import in_words
    from fedseg.cli.screen import out

    server = "its server runs" if found.server_runs else "its server does not run"
    out.print(f"Study {found.name!r}: {found.closed} of {found.rounds} rounds closed; {server}.", markup=False)
    if found.evaluations:
        out.print(f"Its model was evaluated {_times(found.evaluations)}.", markup=False)
    out.print(_table(found))
    out.print(f"Waits for: {in_words(found.waits_for)}" if found.waits_for else "It is complete.", markup=False)
    if found.last_words:
        out.print(f"Last line of the server's log: {found.last_words}", markup=False)
    if found.waits_for and not found.server_runs:
        out.print(f"Next:\n  fedseg server start {quote(str(folder))}", markup=False)
    elif not found.waits_for:
        out.print(f"Next:\n  fedseg privacy-report {quote(str(folder))}", markup=False)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _table(found: Status) -> Table:
    from rich.table import Table

    table = Table("site", "enrolled", "last in a closed round", "lost last", "has the final model")
    for each in found.sites:
        last = "-" if each.contributed is None else f"{each.contributed} ({each.contributed_at})"
        lost = "-" if each.lost is None else f"round {each.lost}"
        table.add_row(each.site, each.enrolled or each.invite, last, lost, "yes" if each.has_model else "-")
    return table
