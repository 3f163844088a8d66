"""`fedseg privacy-report`: what was promised to patients, and whether it was kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedseg.errors import EXIT_FAILED, UsageError

if TYPE_CHECKING:
    from rich.table import Table


def register(app: typer.Typer) -> None:
    """Add the command to the main one."""
    app.command("privacy-report", epilog="Example: fedseg privacy-report ~/fedseg-study --json")(privacy_report)


def privacy_report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A site's state folder, or a study's folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    html: Annotated[Path | None, typer.Option(help="Also write the report as one HTML page to this file.")] = None,
) -> None:
    """Say what was promised to patients and whether it was kept, recomputed from the ledger."""
    facts = gather(folder)
    if html is not None:
        from fedseg.report.html import privacy_page
        from fedseg.store.files import write_atomic

        write_atomic(html, privacy_page(facts).encode(), 0o644)
    if as_json:
        typer.echo(json.dumps(facts, allow_nan=False))
    else:
        show(facts)
        if html is not None:
            typer.echo(f"The page is {html}")
    if any(row["ledger_intact"] is False for row in facts["sites"]):
        raise typer.Exit(EXIT_FAILED)


def gather(folder: Path) -> dict[str, Any]:
    """The facts of a site's state or a study.

    Raises:
        UsageError: if the folder is neither.
    """
    from fedseg.runtime.privacy_facts import site_facts, study_facts
    from fedseg.runtime.site_folder import SiteFolder
    from fedseg.runtime.study import StudyFolder

    if SiteFolder(folder).enrolled:
        return site_facts(SiteFolder.open(folder))
    if (folder / "manifest.json").is_file():
        return study_facts(StudyFolder.open(folder))
    raise UsageError("this folder is neither a site's state nor a study", where=str(folder))


def show(facts: dict[str, Any]) -> None:
    """Print the facts for a person."""
    from fedseg.cli.screen import out

    out.print(f"Privacy report of study {facts['study']!r}, plan {facts['plan_hash'][:16]}\n", markup=False)
    out.print(facts["statement"] + "\n", markup=False)
    if facts["privacy"] != "off":
        out.print(_table(facts))
        row = facts["sites"][0]
        out.print(
            f"Mechanism: DP-SGD with Gaussian noise, multiplier {row['noise_multiplier']:g}, gradients clipped to "
            f"{row['max_grad_norm']:g}, sampling rate {row['sampling_rate']:g}; accountant {row['accountant']}.",
            markup=False,
        )
        out.print("Unit: one subject with all its scans. Adjacency: " + facts["adjacency"] + ".", markup=False)
    out.print(facts["aggregation"]["statement"], markup=False)
    if facts["aggregation"]["two_contributors"]:
        out.print(facts["aggregation"]["two_contributors"], markup=False)
        out.print(f"The plan accepts it because: {facts['aggregation']['accepted_because']}", markup=False)
    if facts["ledger_error"]:
        out.print(f"LEDGER: {facts['ledger_error']}", markup=False)
    for row in facts["rounds"]:
        attempt = f", attempt {row['attempt']}" if "attempt" in row else ""
        for site, why in row["lost"].items():
            who = "all sites" if site == "*" else site
            out.print(f"Round {row['round']}{attempt} ({row['state']}): lost {who}: {why}", markup=False)
    out.print("Not covered: " + "; ".join(facts["not_covered"]) + ".", markup=False)


def _table(facts: dict[str, Any]) -> Table:
    from rich.table import Table

    from fedseg.runtime.privacy_facts import printed

    table = Table("site", "epsilon", "budget", "delta", "rounds", "steps", "ledger")
    intact = {True: "intact", False: "BROKEN", None: "at the site"}
    for row in facts["sites"]:
        spent = printed(row["epsilon"])
        counts = ("-" if row[name] is None else str(row[name]) for name in ("rounds", "steps"))
        ledger = intact[row["ledger_intact"]]
        table.add_row(row["site"], spent, f"{row['budget_epsilon']:g}", f"{row['delta']:g}", *counts, ledger)
    return table
