"""`fedseg privacy-report`: what was promised to patients, and whether it was kept."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedseg.errors import EXIT_FAILED, UsageError

if TYPE_CHECKING:
    from datetime import date

    from fedseg.report.facts import PrivacyReport
    from fedseg.report.own_figures import OwnFigures
    from fedseg.report.privacy_parts import Section


def register(app: typer.Typer) -> None:
    """Add the command to the main one."""
    app.command(
        "privacy-report", epilog="Example: fedseg privacy-report ~/fedseg-study --html annex.html --audit audit.json"
    )(privacy_report)


def privacy_report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A site's state folder, or a study's folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the report as one HTML page to this file.")
    ] = None,
    audit: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The audit.json of fedseg privacy-audit, to be shown in it.")
    ] = None,
) -> None:
    """Say what was promised to patients and whether it was kept, recomputed from the ledger."""
    report = gather(folder, audit, datetime.now(UTC).date())
    if html is not None:
        from fedseg.report.html import privacy_page
        from fedseg.store.files import write_atomic

        write_atomic(html, privacy_page(report).encode(), 0o644)
    if as_json:
        typer.echo(json.dumps(report.to_json(), allow_nan=False))
    else:
        show(report, _own(folder))
        if html is not None:
            typer.echo(f"The page is {html}")
    if report.ledger_error is not None:
        raise typer.Exit(EXIT_FAILED)


def gather(folder: Path, audit: Path | None = None, made: date | None = None) -> PrivacyReport:
    """The facts of a site's state or a study, reported on a day (UTC).

    Raises:
        UsageError: if the folder is neither, or the audit is of another mechanism.
        DataError: if the audit is none.
        StorageError: if the audit cannot be read.
    """
    from fedseg.runtime.privacy_facts import site_facts, study_facts
    from fedseg.runtime.site_folder import SiteFolder
    from fedseg.runtime.study import StudyFolder

    if SiteFolder(folder).enrolled:
        return site_facts(SiteFolder.open(folder), audit, made)
    if (folder / "manifest.json").is_file():
        return study_facts(StudyFolder.open(folder), audit, made)
    raise UsageError("this folder is neither a site's state nor a study", where=str(folder), hint="check the path")


def _own(folder: Path) -> OwnFigures | None:
    """What depends on single subjects, where this is the site itself: for its screen, never for a document."""
    from fedseg.runtime.privacy_own import own_figures
    from fedseg.runtime.site_folder import SiteFolder

    return own_figures(SiteFolder.open(folder)) if SiteFolder(folder).enrolled else None


def show(report: PrivacyReport, own: OwnFigures | None = None) -> None:
    """Print the report for a person.

    Args:
        report: What it says.
        own: What the site alone may see.
    """
    from fedseg.cli.screen import out
    from fedseg.report.own_figures import own_section
    from fedseg.report.privacy_sections import headline, sections

    out.print(f"Privacy report of study {report.study!r}: {', '.join(headline(report))}", markup=False)
    for section in (*((own_section(own, report),) if own is not None else ()), *sections(report)):
        _print(section)


def _print(section: Section) -> None:
    from rich.table import Table

    from fedseg.cli.paragraphs import say
    from fedseg.cli.screen import out

    out.print(f"\n{section.title}", style="bold", markup=False)
    for paragraph in section.paragraphs:
        say(paragraph)
    for name, text in section.facts:
        say(f"{name}: {text}", indent=2)
    if section.table is not None:
        table = Table()
        for place, name in enumerate(section.table.head):
            words = place == 0 or place in section.table.words
            table.add_column(name, justify="left" if words else "right", overflow="fold")
        for row in section.table.rows:
            table.add_row(*row)
        out.print(table)
    for point in section.points:
        say(f"- {point}")
