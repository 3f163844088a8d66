"""`fedseg client ledger`: what this hospital has charged to its subjects' privacy, and whether the record is whole."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedseg.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from fedseg.privacy.ledger import Ledger
    from fedseg.runtime.ledger_facts import Deltas
    from fedseg.store.privacy_ledger import HospitalLedger

app = typer.Typer(help="This hospital's privacy ledger: show, verify, export.", no_args_is_help=True)
HEX, PLAN = 12, 6
WORDS = (
    "A charge is one attempt at a round, and counts in full from the moment it is written, whether its update was "
    "handed over or not. Days are UTC. sigma: noise multiplier; q: chance of a subject to be drawn for a step.",
    "A subject is a pregnancy, under however many ids. Numbers of subjects and records, and the largest epsilon of any "
    "subject, are for this screen: neither --json nor export has them.",
)

State = Annotated[Path | None, typer.Option(help="A study's state folder; its data folder tells which ledger.")]
Folder = Annotated[Path | None, typer.Option("--ledger", metavar="DIR", help="The ledger's own folder.")]


@app.callback()
def _ledger() -> None:
    pass


@app.command(
    epilog="Example: fedseg client ledger show --state ~/fedseg-study. "
    "As one JSON document: fedseg client ledger show --ledger ~/.fedseg/ledgers/3f09... --json"
)
def show(
    state: State = None,
    ledger: Folder = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Every charge by study and round, and what subjects have spent, recomputed. For this hospital's eyes."""
    from fedseg.runtime.ledger_facts import ledger_facts

    opened, deltas = _open(state, ledger)
    book = opened.ledger
    facts = ledger_facts(book, deltas)
    if as_json:
        typer.echo(json.dumps(facts, allow_nan=False))
    else:
        _show(book, facts, deltas)


@app.command(
    epilog="Example: fedseg client ledger verify --state ~/fedseg-study. "
    "Against a head that somebody else wrote down: fedseg client ledger verify --state ~/fedseg-study --head 3f09..."
)
def verify(
    state: State = None,
    ledger: Folder = None,
    head: Annotated[
        str | None, typer.Option(metavar="HEX", help="A head of this ledger, 64 hex digits, as others remember it.")
    ] = None,
) -> None:
    """Is the ledger whole, with its own key, and with every head that was noted or is told? Exit code 1 if not."""
    from fedseg.cli.screen import out

    if head is not None and not re.fullmatch(r"[0-9a-f]{64}", head):
        raise UsageError("--head is not a ledger's head", hint="64 hexadecimal digits, as `ledger verify` prints them")
    opened, _ = _open(state, ledger)
    opened.verify(head)
    book = opened.ledger
    counts = f"{len(book.records)} records, {len(book.charged)} charges"
    out.print(f"The ledger in {opened.folder} is whole: {counts}.", markup=False)
    _print_heads(book)
    if head is not None:
        out.print(f"It goes on from {head[:HEX]}: nothing that was there then is gone.")
    else:
        out.print("It holds what was noted here after its charges. Against a head that others remember: --head HEX.")


@app.command(epilog="Example: fedseg client ledger export ledger-2026.json --state ~/fedseg-study")
def export(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The JSON file to write; one that is there is replaced.")
    ],
    state: State = None,
    ledger: Folder = None,
) -> None:
    """Write the ledger for auditors: every charge, and nothing that tells whether one subject is in it."""
    from fedseg.cli.paragraphs import say
    from fedseg.cli.screen import out
    from fedseg.runtime.ledger_facts import LEFT_OUT, export_document
    from fedseg.store.files import write_atomic

    opened, deltas = _open(state, ledger)
    document = export_document(opened.ledger, deltas)
    write_atomic(file, json.dumps(document, indent=1, allow_nan=False).encode() + b"\n")
    out.print(f"The export is {file}. Left out:", markup=False)
    say(*(f"- {what}" for what in LEFT_OUT), indent=2)


def _open(state: Path | None, ledger: Path | None) -> tuple[HospitalLedger, Deltas]:
    """The ledger that was named, and the deltas that its studies are measured at.

    Raises:
        UsageError: none or two were named.
        LedgerError: it is missing, broken, or was set back.
    """
    from fedseg.runtime.hospital import Hospital, open_noted
    from fedseg.runtime.ledger_facts import Deltas
    from fedseg.runtime.site_folder import SiteFolder

    if ledger is not None and state is None:
        return open_noted(ledger, Path.home()), Deltas(None)
    if state is None or ledger is not None:
        raise UsageError("name one ledger", hint="--state DIR (a study's state folder) or --ledger DIR (its own)")
    folder = SiteFolder.open(state)
    member = folder.membership
    return Hospital(Path(member.data), Path.home()).open_ledger(Path(member.ledger)), Deltas(folder)


def _show(book: Ledger, facts: dict[str, Any], deltas: Deltas) -> None:
    from fedseg.cli.paragraphs import say
    from fedseg.cli.screen import out

    out.print(f"Ledger {facts['ledger'][:HEX]}, {len(book.records)} records", markup=False)
    _print_heads(book)
    out.print("")
    subjects = {charge.key: len(charge.subjects) for charge in book.charged}
    for study in facts["studies"]:
        plans = ", ".join(plan[:HEX] for plan in study["plans"])
        out.print(f"Study {study['study']}, {'plan' if len(study['plans']) == 1 else 'plans'} {plans}", markup=False)
        out.print(_charges(study, subjects))
        say(
            f"epsilon {_bound(book.epsilon(study['study'], study['delta']))} at delta {study['delta']:g} "
            f"({study['accountant']}), the largest of any subject: "
            f"{study['rounds']} rounds, {len(study['charges'])} charges, {study['steps']} steps",
            indent=2,
        )
        out.print("")
    limit = "the policy sets no lifetime_epsilon" if deltas.limit is None else f"lifetime_epsilon is {deltas.limit:g}"
    say(
        f"Over all studies: epsilon {_bound(book.epsilon(None, deltas.lifetime))} at delta {deltas.lifetime:g}, the "
        f"largest of any subject{f'; {limit}' if deltas.known else ''}."
    )
    say(*(WORDS if facts["studies"] else ()))


def _print_heads(book: Ledger) -> None:
    from fedseg.cli.screen import out
    from fedseg.runtime.ledger_facts import charged_head

    out.print(f"  head, its newest charge, as reports and exports have it:\n    {charged_head(book)}")
    out.print(f"  its last record, which stays here:\n    {book.head}")


def _bound(epsilon: float) -> str:
    from fedseg.report.numbers import printed

    return printed(epsilon) if math.isfinite(epsilon) else "unbounded"


def _charges(study: dict[str, Any], subjects: dict[tuple[str, int, int], int]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    plans = study["plans"] if len(study["plans"]) > 1 else []
    table = Table(
        "round", "attempt", *(["plan"] if plans else []), "charged on", box=SIMPLE_HEAD, collapse_padding=True
    )
    for name in ("steps", "sigma", "q", "handed\nover", "subjects"):
        table.add_column(name, justify="right")
    for charge in study["charges"]:
        table.add_row(
            str(charge["round"]),
            str(charge["attempt"]),
            *([charge["plan_hash"][:PLAN]] if plans else []),
            charge["day"],
            str(charge["steps"]),
            f"{charge['noise_multiplier']:.4g}",
            f"{charge['sampling_rate']:g}",
            "yes" if charge["committed"] else "no",
            str(subjects[charge["study"], charge["round"], charge["attempt"]]),
        )
    return table
