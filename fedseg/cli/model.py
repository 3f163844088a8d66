"""`fedseg predict` and `fedseg evaluate`: a model file at work."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedseg.errors import EXIT_FAILED

if TYPE_CHECKING:
    from rich.table import Table


class Split(StrEnum):
    """Whom to score."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"
    ALL = "all"


Model = Annotated[Path, typer.Argument(metavar="MODEL", help="A study's model.safetensors.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the main one."""
    app.command(epilog="Example: fedseg predict model.safetensors /data/fetal --out segmentations")(predict)
    app.command(epilog="Example: fedseg evaluate model.safetensors --data /data/fetal --out evaluation")(evaluate)


def predict(
    model: Model,
    inputs: Annotated[list[Path], typer.Argument(metavar="INPUT...", help="Scans, folders of scans, or BIDS trees.")],
    out: Annotated[Path, typer.Option(help="Where the segmentations go, as a BIDS derivative.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Segment new scans, each on its own grid. For research use only."""
    from fedseg.cli.main import show
    from fedseg.cli.screen import Screen
    from fedseg.runtime.segmentation import Segmenter, find_scans
    from fedseg.runtime.segmentation import predict as segment_all

    scans = find_scans(inputs)
    with Screen(None) as screen:
        segmenter = Segmenter(model)
        failed = segment_all(segmenter, scans, out, lambda done, of: screen.bar("segmenting", done, of))
    for _, error in failed:
        show(error)
    if as_json:
        wrong = {scan: error.what for scan, error in failed}
        done = [
            {"scan": str(scan.image), "segmentation": str(out / scan.target)} for scan in scans if scan not in wrong
        ]
        undone = [{"scan": str(scan.image), "error": what} for scan, what in wrong.items()]
        typer.echo(json.dumps({"segmented": done, "failed": undone}))
    else:
        done_count = len(scans) - len(failed)
        names = "; dseg.tsv there names the labels" if done_count else ""
        typer.echo(f"{done_count} of {len(scans)} scans are segmented in {out}{names}")
    if failed:
        raise typer.Exit(EXIT_FAILED)


def evaluate(
    model: Model,
    data: Annotated[Path, typer.Option(help="BIDS folder with labels, or a CSV of pairs.")],
    out: Annotated[Path, typer.Option(help="Where the report goes.")],
    labels: Annotated[
        str | None,
        typer.Option(help="Where the data set has no dseg.tsv: feta, fidon, drawem, bounti, or a table file."),
    ] = None,
    split: Annotated[
        Split | None, typer.Option(help="Whom to score; by default the test subjects, or all where there are none.")
    ] = None,
    site: Annotated[str | None, typer.Option(help="The site of subjects whose table names none.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Say how good a model is on scans with labels: table, CSV, JSON, and one HTML page. For research use only."""
    from fedseg.cli.screen import Screen
    from fedseg.cli.screen import out as screen_out
    from fedseg.runtime.reporting import write_evaluation

    with Screen(None) as screen:
        document = write_evaluation(
            model,
            data,
            out,
            labels=labels,
            split=split.value if split else None,
            site=site,
            on_case=lambda done, of: screen.bar("evaluating", done, of),
        )
    if as_json:
        typer.echo(json.dumps(document, allow_nan=False))
        return
    screen_out.print(_table(document))
    scored = {"all": "all subjects"}.get(document["split"], f"the subjects of the split {document['split']}")
    screen_out.print(
        f"Scored: {scored}. Page: {out / 'report.html'}; also scores.csv and scores.json there", markup=False
    )


def _table(document: dict[str, Any]) -> Table:
    from rich.table import Table

    from fedseg.labels import display_name

    summary = document["summary"]
    table = Table("tissue", "Dice", "HD95 mm", "volume similarity", "missing HD95")
    for tissue in summary["dice"]:
        name = "mean" if tissue == "mean" else display_name(tissue)
        missing = summary["missing"]["hd95_mm"].get(tissue, "")
        values = [_number(summary[metric][tissue]) for metric in ("dice", "hd95_mm", "volume_similarity")]
        table.add_row(name, *values, str(missing), style="bold" if tissue == "mean" else None)
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
