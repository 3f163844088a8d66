"""`fedseg audit`: what the parties' signed logs say happened, and whether they contradict each other."""

from __future__ import annotations

import json
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from fedseg.errors import EXIT_FAILED

if TYPE_CHECKING:
    from rich.table import Table

    from fedseg.runtime.audit import Audit, Round

app = typer.Typer(help="Check the signed logs that server and sites keep of a study.", no_args_is_help=True)
HEX = 12


@app.callback()
def _audit() -> None:
    pass


@app.command(epilog="Example: fedseg audit verify ~/fedseg-study site-b/audit.jsonl")
def verify(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A study's folder, a site's state folder, or an audit.jsonl.")
    ],
    others: Annotated[
        list[Path] | None,
        typer.Argument(metavar="OTHER", help="Logs of other parties, to hold against it and each other."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Who contributed to each round, under which roster, model and thresholds; exit code 1 if anything contradicts."""
    from fedseg.runtime.audit import load
    from fedseg.runtime.audit import verify as judge

    paths = [folder, *(others or [])]
    audit = judge([load(path) for path in paths])
    if as_json:
        typer.echo(json.dumps(_document(audit), allow_nan=False))
    else:
        _show(audit, paths)
    if audit.findings:
        raise typer.Exit(EXIT_FAILED)


def _document(audit: Audit) -> dict[str, object]:
    from dataclasses import asdict

    from fedseg.runtime.audit import LIMITS

    return {"consistent": not audit.findings, **asdict(audit), "not_shown": list(LIMITS)}


def _show(audit: Audit, paths: list[Path]) -> None:
    from fedseg.cli.screen import out
    from fedseg.runtime.audit import LIMITS

    out.print(f"Audit of study {audit.study}\n", markup=False)
    out.print(_parties(audit))
    if audit.rounds:
        out.print(_rounds(audit))
        out.print("Witnesses: whose signature over the contributors, or whose own log of the round, is in these logs.")
        if any(each.t == 0 for each in audit.rounds):
            out.print("Plain: nothing is masked, the server saw every update.")
        out.print()
    for note in audit.notes:
        out.print(f"Note: {note}", markup=False)
    for finding in audit.findings:
        out.print(f"FINDING: {f'{finding.party}: ' if finding.party else ''}{finding.what}", markup=False)
        out.print(f"  where:  {finding.where}", markup=False)
        out.print(f"  proves: {finding.proves}", markup=False)
    out.print(_verdict(audit), markup=False)
    out.print(f"What this cannot show: {'; '.join(LIMITS)}.", markup=False)
    if audit.absent:
        asked = ", ".join(name.removeprefix("site ") for name in audit.absent)
        out.print(f"Next: ask {asked} for their audit.jsonl (it holds no patient data), then:", markup=False)
        out.print(f"  fedseg audit verify {' '.join(quote(str(path)) for path in paths)} FILE...", markup=False)


def _verdict(audit: Audit) -> str:
    if audit.findings:
        many = "1 finding" if len(audit.findings) == 1 else f"{len(audit.findings)} findings"
        return f"{many}: show them to all parties; what each one proves, and what it doesn't, stands with it."
    if len(audit.parties) == 1:
        return "Nothing contradicts: this log is whole and signed, and so is what it holds of others."
    return f"Nothing contradicts: these {len(audit.parties)} logs are whole and signed, and agree with each other."


def _parties(audit: Audit) -> Table:
    from rich.markup import escape
    from rich.table import Column, Table

    table = Table("log of", "records", "newest", "state", Column("file", overflow="fold"))
    for party in audit.parties:
        state = "[red]BROKEN[/]" if party.broken else "whole"
        table.add_row(escape(party.name), str(party.records), party.until or "-", state, escape(party.path))
    return table


def _rounds(audit: Audit) -> Table:
    from rich.markup import escape
    from rich.table import Column, Table

    limits = Column("thresholds", no_wrap=True)
    who, models, witnesses = (Column(name, overflow="fold") for name in ("contributors", "model", "witnesses"))
    table = Table("round", who, models, Column("roster", no_wrap=True), limits, witnesses)
    for each in audit.rounds:
        number = str(each.round) if each.attempt in (None, 1) else f"{each.round} (attempt {each.attempt})"
        back = " (back)" if each.rolled_back else ""
        change = f"{each.base_model[:HEX]} to {each.next_model[:HEX]}{back}"
        change = f"{each.base_model[:HEX]} evaluated" if each.evaluation else change
        names = escape(", ".join(each.contributors))
        table.add_row(number, names, change, each.roster[:HEX], _thresholds(each), escape(_witnesses(each)))
    return table


def _thresholds(each: Round) -> str:
    if each.t is None:
        return f"n={each.n}"
    return f"n={each.n} c={each.c} t={each.t} m={each.m}" if each.t else f"n={each.n} m={each.m} (plain)"


def _witnesses(each: Round) -> str:
    names = [witness.party.removeprefix("site ") for witness in each.witnesses]
    return f"{len(names)}: {', '.join(names)}"
