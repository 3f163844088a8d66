"""`fedseg predict`: model files at work on new scans."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from fedseg.errors import EXIT_FAILED

if TYPE_CHECKING:
    from rich.table import Table

    from fedseg.errors import DataError
    from fedseg.runtime.batch import Batch, Predicted
    from fedseg.runtime.prediction import Segmenter
    from fedseg.runtime.scans import Scan

GIGABYTE = 1e9
UNFOLDED = 40
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

    faults: list[DataError] = []
    scans = find_scans(inputs, faults.append)
    outputs = Outputs(probseg=probseg, uncertainty=uncertainty, brain_mask=brain_mask)
    with Screen(None) as screen, stopping() as stop:
        models = [model, *(also or [])]
        segmenter = Segmenter(models, Options(cleanup=cleanup, mirror=mirror, one_pass=one_pass))
        _warn(models, segmenter, scans, faults)
        screen.bar("segmenting", 0, len(scans))
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
        "models": [
            {"study": card.study, "model_hash": card.model_hash, "privacy": card.privacy} for card in segmenter.cards
        ],
        "options": asdict(segmenter.options),
        "segmented": [each.to_json() for each in batch.done],
        "failed": [{"scan": str(scan.image), "error": error.what} for scan, error in batch.failed],
        "use": "for research use only",
    }


def _warn(models: Sequence[Path], segmenter: Segmenter, scans: Sequence[Scan], faults: Sequence[DataError]) -> None:
    """What to know before anything is written: models that must stay, names that may be a person's, odd tables."""
    from fedseg.cli.screen import err
    from fedseg.report.evaluation import never_hand_on
    from fedseg.runtime.naming import naming_warning

    for path, card in zip(models, segmenter.cards, strict=True):
        if why := never_hand_on({"privacy": card.privacy}):
            err.print(f"Note: {path} must not be handed on: {why}", markup=False)
    if named := naming_warning((scan.image.name, None) for scan in scans):
        err.print(f"Warning: {named}", markup=False)
    for table in dict.fromkeys(fault.where for fault in faults):
        first, *more = [fault.what for fault in faults if fault.where == table]
        others = f" (and {len(more)} more: `fedseg data check` lists all)" if more else ""
        err.print(f"Warning: {table}: {first}{others}. What is wrong there counts as not known.", markup=False)


def _show(segmenter: Segmenter, batch: Batch, out: Path) -> None:
    from fedseg.cli.screen import out as screen

    if not batch.done:
        screen.print("No scan is segmented.")
        return
    screen.print(_table(segmenter, batch))
    for line in _lines(segmenter, batch):
        screen.print(line, markup=False)
    total = len(batch.done) + len(batch.failed)
    scans = "1 scan is" if total == 1 else f"{len(batch.done)} of {total} scans are"
    names = "; dseg.tsv there names the labels" if len(segmenter.scheme.tissues) > 1 else ""
    screen.print(f"{scans} segmented in {out}{names}. Patient data: readable by you only.", markup=False)
    screen.print("For research use only. Next: look at each over its scan, flagged ones first:", markup=False)
    first = min(batch.done, key=_severity)
    files = quote(str(first.scan.image)), quote(str(first.files["segmentation"]))
    screen.print(f"  itksnap -g {files[0]} -s {files[1]}", markup=False)


def _lines(segmenter: Segmenter, batch: Batch) -> Iterator[str]:
    """What stands below the table."""
    from fedseg.report.volumes import BRAIN_TISSUE

    if len(segmenter.scheme.tissues) > 1:
        yield BRAIN_TISSUE
    if segmenter.options.cleanup:
        yield "Clean-up: what it removed apart from the brain (-), and filled of holes (+)"
    for each in batch.done:
        for flag in each.flags:
            if flag.severity != "note":
                hint = f" ({flag.hint})" if flag.hint else ""
                yield f"{flag.severity}: {each.scan.name}: {flag.what}{hint}"
    unaged = sum(each.scan.gestational_age_weeks is None for each in batch.done)
    if unaged and len(segmenter.scheme.tissues) > 1:
        which = f"{unaged} of {len(batch.done)} scans" if len(batch.done) > 1 else "the scan"
        yield f"Volume for the age: not checked of {which}, as no participants.tsv gives the gestational age."
    yield _ways(batch)


def _severity(each: Predicted) -> int:
    """0 for a scan with an error, 1 for one with a warning."""
    found = {flag.severity for flag in each.flags}
    return 0 if "error" in found else 1 if "warning" in found else 2


def _table(segmenter: Segmenter, batch: Batch) -> Table:
    from rich.markup import escape
    from rich.table import Table

    tissues = len(segmenter.scheme.tissues) > 1
    volumes = ("brain tissue mL", "ventricles mL") if tissues else ("mask mL",)
    cleaned = ("clean-up mL",) if segmenter.options.cleanup else ()
    table = Table("scan", "weeks", *volumes, *cleaned, "uncertainty", "flags", "seconds")
    table.columns[0].overflow = "fold"
    table.columns[0].no_wrap = max(len(each.scan.name.name) for each in batch.done) <= UNFOLDED
    for each in batch.done:
        weeks = each.scan.gestational_age_weeks
        shown = (each.brain_tissue_ml or 0.0, each.volumes_ml["ventricles"]) if tissues else each.volumes_ml.values()
        changes = (f"-{each.cleaned.removed_ml:.2f} +{each.cleaned.filled_ml:.2f}",) if cleaned else ()
        numbers = (*(f"{volume:.1f}" for volume in shown), *changes, f"{each.uncertainty:.3f}")
        age = "-" if weeks is None else f"{weeks:.1f}"
        table.add_row(escape(each.scan.name.name), age, *numbers, _flagged(each), f"{each.seconds:.1f}")
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
