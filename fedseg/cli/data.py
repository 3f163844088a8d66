"""`fedseg data`: make brains up, check a site's scans."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedseg.errors import EXIT_FAILED, DataError

if TYPE_CHECKING:
    from fedseg.imaging.bids import Dataset
    from fedseg.plan import StudyPlan

app = typer.Typer(help="Make scans up, or check those of a site.", no_args_is_help=True)


@app.command(epilog="Example: fedseg data synthesize made-up --subjects 10 --seed 1 --site-style 2")
def synthesize(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder for the BIDS data set.")],
    subjects: Annotated[int, typer.Option(help="How many made-up subjects.")],
    seed: Annotated[int, typer.Option(help="The same seed gives the same subjects.")],
    site_style: Annotated[int, typer.Option(help="Contrast, noise, axes and numbering of one made-up scanner.")] = 0,
    spacing_mm: Annotated[float | None, typer.Option(help="Voxel size; by default that of the style.")] = None,
) -> None:
    """Make up fetal brains of 20 to 38 weeks with labels: for trying out, never a patient's."""
    from fedseg.cli.screen import Screen, out
    from fedseg.imaging.synthesis import synthesize as make

    with Screen(None) as screen:
        make(
            folder,
            subjects=subjects,
            seed=seed,
            site_style=site_style,
            spacing_mm=spacing_mm,
            on_subject=lambda done: screen.bar("making subjects up", done, subjects),
        )
    out.print(f"{subjects} made-up subjects are in {folder}", markup=False)
    out.print(f"Next: fedseg data check {quote(str(folder))} --plan PLAN", markup=False)


@app.command(epilog="Example: fedseg data check /data/fetal --plan sample_configs/atlas.yaml")
def check(
    data: Annotated[Path, typer.Argument(metavar="BIDS_DIR", help="BIDS folder, or a CSV of pairs.")],
    plan: Annotated[Path, typer.Option(help="The study plan.")],
    labels: Annotated[
        str | None,
        typer.Option(help="Where the data set has no dseg.tsv: feta, fidon, drawem, bounti, or a table file."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Would these scans do? Says what is wrong with which. Nothing is changed, nothing leaves this machine."""
    from dataclasses import asdict

    from fedseg.cli.files import load_plan
    from fedseg.cli.screen import out
    from fedseg.imaging.bids import SPLITS, load_dataset
    from fedseg.labels import scheme

    content = load_plan(plan).content
    dataset = load_dataset(data, labels=labels, scheme=scheme(content.task), strict=False)
    findings = _findings(dataset, content)
    errors = [finding for finding in findings if finding.severity == "error"]
    counts = {split: len(dataset.subjects(split)) for split in SPLITS}
    if as_json:
        typer.echo(
            json.dumps({"usable": not errors, "subjects": counts, "findings": [asdict(each) for each in findings]})
        )
    else:
        _print(findings, dataset.root)
        numbers = ", ".join(f"{count} {split}" for split, count in counts.items())
        verdict = "These scans would do" if not errors else f"{len(errors)} errors: these scans would be refused"
        out.print(f"{verdict} ({numbers} subjects, {len(findings) - len(errors)} warnings).")
    if errors:
        raise typer.Exit(EXIT_FAILED)


def _findings(dataset: Dataset, plan: StudyPlan) -> list[Any]:
    from fedseg.imaging.quality import check as check_dataset
    from fedseg.labels import scheme

    return check_dataset(dataset, scheme=scheme(plan.task), spacing_mm=plan.image.spacing_mm)


def _print(findings: list[Any], root: Path) -> None:
    from rich.markup import escape
    from rich.table import Column, Table

    from fedseg.cli.screen import out

    if not findings:
        return
    table = Table("subject", "severity", Column("what", overflow="fold"), Column("hint", overflow="fold"))
    for finding in findings:
        colour = "red" if finding.severity == "error" else "yellow"
        parts = (
            finding.subject,
            f"[{colour}]{finding.severity}[/]",
            f"{escape(finding.what)}\n[dim]{escape(finding.file.removeprefix(f'{root}/'))}[/]",
        )
        table.add_row(*parts, escape(finding.hint))
    out.print(table)


def require_usable(dataset: Dataset, plan: StudyPlan) -> None:
    """Show what is odd about a site's scans, and refuse them where something is wrong.

    Raises:
        DataError: naming the first error.
    """
    from fedseg.cli.screen import err

    findings = _findings(dataset, plan)
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        more = f" ({len(errors) - 1} more: fedseg data check)" if len(errors) > 1 else ""
        raise DataError(errors[0].what + more, where=errors[0].file, hint=errors[0].hint or None)
    warnings = Counter(finding.what for finding in findings)
    for what, count in warnings.items():
        err.print(f"data: {what} ({count} of the scans; more: fedseg data check)", markup=False)
