"""`fedseg data`: make brains up, check a site's scans."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from fedseg.errors import EXIT_FAILED, DataError

if TYPE_CHECKING:
    from fedseg.imaging.dataset import Dataset
    from fedseg.plan.study import StudyPlan

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
    out.print(f"Next: fedseg data check {quote(str(folder))}", markup=False)


@app.command(epilog="Example: fedseg data check /data/fetal --plan sample_configs/atlas.yaml --picture sheet.html")
def check(
    data: Annotated[Path, typer.Argument(metavar="BIDS_DIR", help="BIDS folder, or a CSV of pairs.")],
    plan: Annotated[Path | None, typer.Option(help="The study plan; says task and voxel size.")] = None,
    task: Annotated[str | None, typer.Option(help="Without a plan: feta (tissues) or brain_mask.")] = None,
    labels: Annotated[
        str | None,
        typer.Option(help="Where the data set has no dseg.tsv: feta, fidon, drawem, bounti, or a table file."),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Contact sheet of all scans (.html): patient data.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Would these scans do? Says what is wrong with which: 0 if they would, 1 if training on them would be refused.

    Nothing is changed, and nothing leaves this machine. If a coordinator asks, `counts` in the JSON is what may be
    told: kinds and numbers, no id, file or value.
    """
    from fedseg.cli.checking import checked, print_document, print_findings

    result = checked(data, plan=plan, task=task, labels=labels, picture=picture, as_json=as_json)
    (print_document if as_json else print_findings)(result)
    if result.errors:
        raise typer.Exit(EXIT_FAILED)


def require_usable(dataset: Dataset, plan: StudyPlan) -> None:
    """Show what is odd about a site's scans, and refuse them where something is wrong.

    Raises:
        DataError: naming the first error.
    """
    from fedseg.cli.screen import Screen, err
    from fedseg.imaging.quality.check import check as check_dataset
    from fedseg.labels import scheme

    with Screen(None) as screen:
        findings = check_dataset(
            dataset,
            scheme=scheme(plan.task),
            spacing_mm=plan.image.spacing_mm,
            n4=plan.image.n4,
            on_scan=lambda _scan, _found, done, of: screen.bar("checking scans", done, of),
        )
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        more = f" ({len(errors) - 1} more: fedseg data check)" if len(errors) > 1 else ""
        raise DataError(errors[0].what + more, where=errors[0].file, hint=errors[0].hint or None)
    warnings = Counter(finding.what for finding in findings if finding.severity == "warning")
    for what, count in warnings.items():
        err.print(f"data: {what} ({count} of the scans; more: fedseg data check)", markup=False)
