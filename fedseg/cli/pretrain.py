"""`fedseg pretrain`: a first model from label maps that are nobody's, or public."""

from __future__ import annotations

import json
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from fedseg.errors import Interrupted, UsageError

if TYPE_CHECKING:
    from fedseg.plan.study import StudyPlan
    from fedseg.runtime.pretraining import Limit, Pretrained, Sources

MINUTES = 5.0
_USUAL_PLAN = "{name: usual, privacy: {mode: 'off'}, schedule: {rounds: 1}, sites: {any: {}}}"


def register(app: typer.Typer) -> None:
    """Add the command to the main one."""
    app.command(epilog="Example: fedseg pretrain --plan sample_configs/atlas-private.yaml --out pretrained")(pretrain)


def pretrain(
    out: Annotated[Path, typer.Option(help="A folder for the model; training goes on where it was left there.")],
    plan: Annotated[
        Path | None, typer.Option(help="The study plan whose network, task, spacing and patch are trained.")
    ] = None,
    labels: Annotated[
        list[Path] | None, typer.Option(help="A BIDS folder of label maps that are public; may be given several times.")
    ] = None,
    public: Annotated[
        str | None, typer.Option(help="The owner's sentence that declares --labels public; kept in the model file.")
    ] = None,
    table: Annotated[
        str | None,
        typer.Option(help="Where --labels have no dseg.tsv: feta, fidon, drawem, bounti, or a table file."),
    ] = None,
    subjects: Annotated[
        int | None, typer.Option(min=0, max=999, help="Made-up brains; 60, or none beside --labels.")
    ] = None,
    minutes: Annotated[float | None, typer.Option(min=0.01, help="Train for so long in all; 5 by default.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Train so many steps in all: the same bits again.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed makes up the same brains and images.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Train a first model on images made up of label maps: no scan is read, and nobody's privacy is at stake."""
    from fedseg.cli.screen import Screen, stopping
    from fedseg.runtime.pretraining import pretrain as train

    content, sources, limit = _plan(plan), _sources(labels, public, table, subjects), _limit(minutes, steps)
    with Screen(None) as screen, stopping() as stop:
        result = train(content, sources, out, seed=seed, limit=limit, on_part=screen.bar, should_stop=stop.is_set)
    if not result.complete:
        raise Interrupted(
            f"stopped after step {result.steps}; the model so far is {result.model}",
            hint="the same command goes on from there",
        )
    if as_json:
        typer.echo(json.dumps(_facts(result)))
    else:
        _show(result, plan)


def _plan(path: Path | None) -> StudyPlan:
    """The plan named, or one that leaves everything about network and image to the defaults."""
    from fedseg.cli.files import load_plan
    from fedseg.plan.study import parse_plan

    return (parse_plan(_USUAL_PLAN, "the usual plan") if path is None else load_plan(path)).content


def _sources(labels: list[Path] | None, public: str | None, table: str | None, subjects: int | None) -> Sources:
    from fedseg.runtime.pretraining import MADE_UP_BRAINS, Sources

    usual = 0 if labels else MADE_UP_BRAINS
    return Sources(usual if subjects is None else subjects, tuple(labels or ()), public, table)


def _limit(minutes: float | None, steps: int | None) -> Limit:
    from fedseg.runtime.pretraining import Limit

    if minutes is not None and steps is not None:
        raise UsageError("both --minutes and --steps are given", hint="give one of the two")
    return Limit(steps=steps) if steps is not None else Limit(minutes=MINUTES if minutes is None else minutes)


def _facts(result: Pretrained) -> dict[str, object]:
    return {
        "model": str(result.model),
        "model_hash": result.card.model_hash,
        "trained_on": result.card.privacy["trained_on"],
        "steps": result.steps,
        "minutes": round(result.seconds / 60, 2),
    }


def duration(seconds: float) -> str:
    """Seconds up to two minutes, then minutes: `0.4 s`, `38 s`, `5.0 minutes`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} minutes"


def _show(result: Pretrained, plan: Path | None) -> None:
    from fedseg.cli.screen import out

    steps = f"{result.steps} step{'s' if result.steps != 1 else ''}"
    out.print(f"Pretrained: {steps}, {duration(result.seconds)}. Model: {result.model}", markup=False)
    out.print(f"  trained on  {result.card.privacy['trained_on']}", markup=False)
    named = "PLAN" if plan is None else quote(str(plan))
    model = quote(str(result.model))
    out.print("Next, see how good it is on your own scans, and start a study from it:")
    out.print(f"  fedseg evaluate {model} --data BIDS_DIR --out evaluation", markup=False)
    out.print(f"  fedseg study create DIR --plan {named} --address HOST:PORT --init {model}", markup=False)
