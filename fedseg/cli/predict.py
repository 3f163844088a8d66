"""`fedseg predict`: model files at work on new scans."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedseg.errors import EXIT_FAILED

if TYPE_CHECKING:
    from rich.table import Table

    from fedseg.runtime.batch import Batch, Predicted
    from fedseg.runtime.prediction import Segmenter

GIGABYTE = 1e9
WAYS = {
    "patch": "in one patch each",
    "windows": "by overlapping windows",
    "whole": "in one pass each",
}


def register(app: typer.Typer) -> None:
    """Add the command to the main one."""
    app.command(epilog="Example: fedseg predict model.safetensors /data/fetal --out /data/fetal/derivatives/fedseg")(
        predict
    )


def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A study's model.safetensors.")],
    inputs: Annotated[list[Path], typer.Argument(metavar="INPUT...", help="Scans, folders of scans, or BIDS trees.")],
    out: Annotated[Path, typer.Option(help="Where the segmentations go, as a BIDS derivative.")],
    also: Annotated[
        list[Path] | None,
        typer.Option("--and", metavar="MODEL", help="One more model; the mean of all counts. Repeat it for more."),
    ] = None,
    brain_mask: Annotated[bool, typer.Option("--brain-mask", help="Write a mask of all tissues too.")] = False,
    probseg: Annotated[bool, typer.Option("--probseg", help="Write the probability of each class too.")] = False,
    uncertainty: Annotated[
        bool, typer.Option("--uncertainty", help="Write where the model is unsure too: 0 (sure) to 1.")
    ] = False,
    mirror: Annotated[
        bool, typer.Option("--mirror", help="Segment mirrored too and take the mean: better, twice the time.")
    ] = False,
    one_pass: Annotated[
        bool, typer.Option("--one-pass", help="Whole volumes where memory allows: faster, a little worse.")
    ] = False,
    cleanup: Annotated[
        bool, typer.Option("--cleanup/--no-cleanup", help="Remove what lies apart from the brain, and fill holes.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Segment new scans, each on its own grid. For research use only."""
    from fedseg.cli.main import show
    from fedseg.cli.screen import Screen, stopping
    from fedseg.runtime.batch import predict as segment_all
    from fedseg.runtime.derivatives import Outputs
    from fedseg.runtime.prediction import Options, Segmenter
    from fedseg.runtime.scans import find_scans

    scans = find_scans(inputs)
    outputs = Outputs(probseg=probseg, uncertainty=uncertainty, brain_mask=brain_mask)
    with Screen(None) as screen, stopping() as stop:
        segmenter = Segmenter([model, *(also or [])], Options(cleanup=cleanup, mirror=mirror, one_pass=one_pass))
        batch = segment_all(
            segmenter,
            scans,
            out,
            outputs,
            on_case=lambda done, of: screen.bar("segmenting", done, of),
            should_stop=stop.is_set,
        )
    for _, error in batch.failed:
        show(error)
    if as_json:
        typer.echo(json.dumps(_document(segmenter, batch), allow_nan=False))
    else:
        _show(segmenter, batch, out)
    if batch.failed:
        raise typer.Exit(EXIT_FAILED)


def _document(segmenter: Segmenter, batch: Batch) -> dict[str, object]:
    from dataclasses import asdict

    return {
        "models": [{"study": card.study, "model_hash": card.model_hash} for card in segmenter.cards],
        "options": asdict(segmenter.options),
        "segmented": [each.to_json() for each in batch.done],
        "failed": [{"scan": str(scan.image), "error": error.what} for scan, error in batch.failed],
        "use": "for research use only",
    }


def _show(segmenter: Segmenter, batch: Batch, out: Path) -> None:
    from fedseg.cli.screen import out as screen

    total = len(batch.done) + len(batch.failed)
    if batch.done:
        screen.print(_table(segmenter, batch))
        for each in batch.done:
            for flag in each.flags:
                if flag.severity != "note":
                    hint = f" ({flag.hint})" if flag.hint else ""
                    screen.print(f"{flag.severity}: {each.scan.name}: {flag.what}{hint}", markup=False)
        screen.print(_ways(batch), markup=False)
    names = "; dseg.tsv there names the labels" if batch.done and len(segmenter.scheme.tissues) > 1 else ""
    looks = " Look at each before you use it. For research use only." if batch.done else ""
    screen.print(f"{len(batch.done)} of {total} scans are segmented in {out}{names}.{looks}", markup=False)


def _table(segmenter: Segmenter, batch: Batch) -> Table:
    from rich.markup import escape
    from rich.table import Table

    cleaned = ("removed mL", "filled mL") if segmenter.options.cleanup else ()
    table = Table("scan", "brain mL", *cleaned, "uncertainty", "flags", "seconds")
    for each in batch.done:
        changes = (f"{each.cleaned.removed_ml:.2f}", f"{each.cleaned.filled_ml:.2f}") if cleaned else ()
        numbers = (f"{sum(each.volumes_ml.values()):.1f}", *changes, f"{each.uncertainty:.3f}")
        table.add_row(escape(each.scan.name.name), *numbers, _flagged(each), f"{each.seconds:.1f}")
    return table


def _flagged(each: Predicted) -> str:
    """How many of each severity; what they say stands below, and of notes in the JSON."""
    counts = [(word, sum(flag.severity == word for flag in each.flags)) for word in ("error", "warning", "note")]
    return ", ".join(f"{count} {word}{'s' if count > 1 else ''}" for word, count in counts if count) or "none"


def _ways(batch: Batch) -> str:
    """How the volumes went through the network, and the memory that was predicted for it."""
    ways = [way for each in batch.done for way in each.ways]
    said = []
    for passes, words in WAYS.items():
        those = [way for way in ways if way.passes == passes]
        if those:
            most = max(way.needs_bytes for way in those) / GIGABYTE
            free = min(way.free_bytes for way in those) / GIGABYTE
            said.append(f"{len(those)} {words} (at most {most:.1f} GB predicted, {free:.1f} GB free)")
    return f"Volumes through the network: {', '.join(said)}"
