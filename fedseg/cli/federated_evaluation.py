"""`fedseg evaluate --federated`: what a study's sites say of its model on their own subjects, summed."""

from __future__ import annotations

import json
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from fedseg.plan.manifest import Manifest
    from fedseg.runtime.evaluations import Evaluation
    from fedseg.runtime.study import StudyFolder


def evaluate_federated(folder: Path, *, as_json: bool) -> None:
    """Show the evaluations of a study, the newest as a table.

    Args:
        folder: The study's folder, at the coordinator's.
        as_json: Print one JSON document of all of them instead.

    Raises:
        UsageError: There is none: its hint says how to get one.
        ProtocolError: One was changed after the server signed it.
    """
    from fedseg.runtime.evaluations import evaluations_of, tissues_of
    from fedseg.runtime.study import StudyFolder

    study = StudyFolder.open(folder)
    manifest = study.manifest
    found = evaluations_of(manifest, study.db.rounds(), study.enrolled().server_key)
    if not found:
        raise _none(study, manifest)
    if as_json:
        typer.echo(json.dumps(_document(manifest, found, tissues_of(manifest)), allow_nan=False))
        return
    _print(study, manifest, found)


def _none(study: StudyFolder, manifest: Manifest) -> Exception:
    from fedseg.errors import UsageError
    from fedseg.runtime.evaluations import refuse_demand

    refuse_demand(manifest, study.db.rounds(), str(study.root))
    again = f"fedseg server start {quote(str(study.root))}"
    if not study.model.is_file():
        hint = f"it comes at the end of the study: {again}"
        return UsageError("the study has no evaluation yet: its rounds are not over", where=str(study.root), hint=hint)
    return UsageError(
        "the study is complete without an evaluation of its model",
        where=str(study.root),
        hint=f"have the sites evaluate it: {again} --evaluate; each of them: fedseg client join --state DIR",
    )


def _document(manifest: Manifest, found: list[Evaluation], tissues: tuple[str, ...]) -> dict[str, Any]:
    from fedseg.federation.evaluation import LONGEST_MM

    return {
        "study": manifest.plan.name,
        "study_id": manifest.study,
        "plan_hash": manifest.plan_hash,
        "task": manifest.plan.task,
        "split": "test",
        "sites": list(manifest.plan.site_names),
        "quorum": manifest.quorum,
        "aggregation": manifest.plan.aggregation.mode,
        "longest_hd95_mm": LONGEST_MM,
        "use": "for research use only",
        "evaluations": [each.to_json(tissues) for each in found],
    }


def sentence(found: Evaluation) -> str:
    """An evaluation in words."""
    who = f"{found.aggregate.subjects} kept-back subjects at {len(found.contributors)} sites"
    dice, distance = found.aggregate.dice, found.aggregate.hd95_mm.mean
    if dice.mean is None:
        return f"evaluated at {len(found.contributors)} sites, none of which has kept-back subjects"
    spread = "" if dice.deviation is None else f" (standard deviation {dice.deviation:.3f})"
    return f"mean Dice {dice.mean:.3f}{spread}, mean HD95 {_number(distance)} mm, over {who}"


def _print(study: StudyFolder, manifest: Manifest, found: list[Evaluation]) -> None:
    from fedseg.cli.screen import out
    from fedseg.federation.evaluation import LONGEST_MM
    from fedseg.runtime.evaluations import newest_of

    newest = found[-1]
    out.print(f"Study {manifest.plan.name!r}: what its sites say of its model. For research use only.", markup=False)
    for each in found:
        out.print(f"  after {each.trained} rounds, model {each.model_hash[:16]}: {sentence(each)}", markup=False)
    out.print(_table(newest, manifest))
    absent = sorted(set(manifest.plan.site_names) - set(newest.contributors))
    out.print(f"Contributors: {', '.join(newest.contributors)}", markup=False)
    if absent:
        out.print(f"Not in it: {', '.join(absent)}", markup=False)
    out.print(
        f"Each subject counts the same; an HD95 above {LONGEST_MM:g} mm counts as {LONGEST_MM:g}. Only sums over the "
        "contributors are known, and one that lies could set them to any value.",
        markup=False,
    )
    if newest_of(manifest, study.db.rounds(), study.enrolled().server_key) is None:
        out.print("The study has gone on since: its newest model is not evaluated.", markup=False)
    out.print("Next: see whether the log agrees on it; name the sites' audit.jsonl behind it, once you have them:")
    out.print(f"  fedseg audit verify {quote(str(study.root))}", markup=False)


def _table(newest: Evaluation, manifest: Manifest) -> Table:
    from rich.table import Table

    from fedseg.labels import display_name
    from fedseg.runtime.evaluations import tissues_of

    told = newest.aggregate
    metrics = (told.dice, told.hd95_mm, told.volume_similarity)
    table = Table("tissue", "Dice", "HD95 mm", "volume similarity", "without HD95")
    missing = told.hd95_mm.missing
    table.add_row("mean", *(_number(metric.mean) for metric in metrics), str(missing[0]), style="bold")
    table.add_row("standard deviation", *(_number(metric.deviation) for metric in metrics), "")
    for place, tissue in enumerate(tissues_of(manifest)):
        row = (_number(metric.tissues[place]) for metric in metrics)
        table.add_row(display_name(tissue), *row, str(missing[place + 1]))
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
