"""`fedseg evaluate`: how good model files are on scans with labels, and which is better."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedseg.errors import EXIT_FAILED, DataError, UsageError

if TYPE_CHECKING:
    from fedseg.runtime.scoring import Source


class Split(StrEnum):
    """Whom to score."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"
    ALL = "all"


EXAMPLE = "fedseg evaluate model.safetensors --data /data/fetal --out evaluation"


def register(app: typer.Typer) -> None:
    """Add the command to the main one."""
    app.command(
        epilog=f"Example: {EXAMPLE}. Did joining help? fedseg evaluate model.safetensors baseline.safetensors "
        "--data /data/fetal --out compared. Several data sets: --data /data/a --site a --data /data/b --site b. "
        "A study whose scans stay at the sites: fedseg evaluate --federated STUDY"
    )(evaluate)


def evaluate(
    models: Annotated[
        list[Path] | None,
        typer.Argument(metavar="MODEL...", help="Model files of one task; each later one is compared with the first."),
    ] = None,
    data: Annotated[
        list[Path] | None, typer.Option(help="BIDS folder with labels, or a CSV of pairs; again for each data set.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for page, table and JSON.")] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(
            help="Where a data set has no dseg.tsv: feta, fidon, drawem, bounti, or a table file; one for each --data."
        ),
    ] = None,
    split: Annotated[
        Split | None, typer.Option(help="Whom to score; by default the test subjects, or all where there are none.")
    ] = None,
    site: Annotated[
        list[str] | None,
        typer.Option(
            help="The site of subjects whose table names none; one for each --data. Of several data sets it is by "
            "default the folder's name, of one called data that of the folder above."
        ),
    ] = None,
    cleanup: Annotated[
        bool, typer.Option(help="Remove pieces apart from the brain and fill holes, as `predict` does.")
    ] = True,
    mirror: Annotated[
        bool, typer.Option("--mirror", help="Segment with left and right exchanged too, and take the mean.")
    ] = False,
    federated: Annotated[
        Path | None, typer.Option(metavar="STUDY", help="Instead: what a study's sites say of its model, summed.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Say how good models are on scans with labels: by tissue, site, age and pathology, worst named.

    Table, CSV, JSON, and one HTML page that opens offline. Nothing leaves this machine. For research use only.
    """
    from fedseg.cli.main import show
    from fedseg.cli.screen import Screen
    from fedseg.runtime.prediction import Options
    from fedseg.runtime.reporting import write_evaluation

    if federated is not None:
        _evaluate_federated(federated, bool(models or data or out), as_json)
        return
    if not models or not data or out is None:
        raise _missing(models, data, out)
    sources = _sources(data, labels or [], site or [])
    with Screen(None) as screen:
        document = write_evaluation(
            models,
            sources,
            out,
            split=split.value if split else None,
            options=Options(cleanup=cleanup, mirror=mirror),
            on_case=lambda done, of: screen.bar("evaluating", done, of),
        )
    _warn(document)
    if as_json:
        typer.echo(json.dumps(document, allow_nan=False))
    else:
        _print(document, models, out)
    if failed := document.get("models", [document])[0]["failed"]:
        for each in failed:
            show(DataError(each["error"], where=each["scan"], hint=each["hint"]))
        raise typer.Exit(EXIT_FAILED)


def _warn(document: dict[str, Any]) -> None:
    """Of models that must stay, and of names in the report that may be a person's."""
    from fedseg.cli.screen import err
    from fedseg.report.evaluation import never_hand_on, row_name
    from fedseg.runtime.naming import naming_warning

    documents = document.get("models", [document])
    for each in documents:
        if why := never_hand_on(each["model"]):
            err.print(f"Note: {each['model']['file']} must not be handed on: {why}", markup=False)
    rows = documents[0]["subjects"]
    if named := naming_warning((row_name(row), row["subject"]) for row in rows):
        err.print(f"Warning: {named}", markup=False)


def _evaluate_federated(study: Path, more: bool, as_json: bool) -> None:
    from fedseg.cli.federated_evaluation import evaluate_federated

    if more:
        hint = "the sites score the study's own model on their own subjects: leave models, --data and --out out"
        raise UsageError("--federated takes no models, data or folder", where="--federated", hint=hint)
    evaluate_federated(study, as_json=as_json)


def _missing(models: list[Path] | None, data: list[Path] | None, out: Path | None) -> UsageError:
    missing = [name for name, given in (("MODEL", models), ("--data", data), ("--out", out)) if not given]
    return UsageError(f"{' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} missing", hint=f"try: {EXAMPLE}")


def _sources(data: list[Path], labels: list[str], sites: list[str]) -> list[Source]:
    from fedseg.runtime.scoring import Source

    for option, given in (("--labels", labels), ("--site", sites)):
        if given and len(given) != len(data):
            raise UsageError(
                f"{len(data)} data {'set' if len(data) == 1 else 'sets'} and {len(given)} times {option}",
                where=option,
                hint=f"one {option} for each --data, in the same order, or none",
            )
    names: Sequence[str | None] = sites or (_folder_names(data) if len(data) > 1 else [None])
    tables: Sequence[str | None] = labels or [None] * len(data)
    return [Source(*each) for each in zip(data, tables, names, strict=True)]


def _site_name(folder: Path) -> str:
    """What a person would call a data set: SITE of SITE/data as of SITE."""
    return folder.parent.name if folder.name == "data" and folder.parent.name else folder.stem


def _folder_names(data: list[Path]) -> list[str]:
    names = [_site_name(folder.resolve()) for folder in data]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        hint = "name the sites: one --site for each --data; and each data set once"
        raise UsageError(f"two data sets are called {twice}", where="--data", hint=hint)
    return names


def _print(document: dict[str, Any], models: list[Path], out: Path) -> None:
    from fedseg.cli import score_tables
    from fedseg.cli.screen import out as screen
    from fedseg.runtime.reporting import DOCUMENT, PAGE, TABLE

    documents = document.get("models", [document])
    for each in documents:
        if len(documents) > 1:
            screen.print(each["model"]["file"], style="bold", markup=False)
        screen.print(score_tables.tissues(each["summary"]))
    screen.print(score_tables.CAPTION, markup=False)
    for groups in score_tables.groups(documents):
        screen.print(groups)
    for each in documents:
        for line in score_tables.worst(each, named=len(documents) > 1):
            screen.print(line, markup=False)
        screen.print(score_tables.flagged(each, named=len(documents) > 1), markup=False)
    for compared in document.get("comparisons", ()):
        names = [documents[compared[place]]["model"]["file"] for place in ("first", "second")]
        screen.print(score_tables.comparison(compared, *names))
        for line in score_tables.verdict(compared, *names):
            screen.print(line, markup=False)
    screen.print("\n".join(score_tables.scored(documents[0])), markup=False)
    screen.print(f"Page: {out / PAGE}; also {TABLE} and {DOCUMENT} there (patient data: keep them here)", markup=False)
    screen.print("Next: look at the page, worst subject first. To segment new scans:", markup=False)
    screen.print(f"  fedseg predict {quote(str(models[0]))} SCANS --out DIR", markup=False)
