"""`fedseg study`: create a study, invite its sites, compare who has enrolled."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from fedseg.federation.exchange import Enrolled
    from fedseg.plan.manifest import Manifest
    from fedseg.plan.study import StudyPlan
    from fedseg.runtime.resolution import FirstModel
    from fedseg.store.checkpoints import ModelCard

app = typer.Typer(help="For the coordinator: create a study, invite its sites.", no_args_is_help=True)

Study = Annotated[Path, typer.Argument(metavar="DIR", help="The study's folder.")]


@app.command(
    epilog="Example: fedseg study create my-study --plan sample_configs/atlas.yaml --address lab.example.org:8443"
)
def create(
    folder: Study,
    plan: Annotated[Path, typer.Option(help="The study plan (YAML).")],
    address: Annotated[str, typer.Option(help="HOST:PORT under which the sites will reach the server.")],
    init: Annotated[
        Path | None, typer.Option(help="Start from the weights of this model file instead of from the plan's seed.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Make a study: resolve its plan, make its keys and certificates."""
    from fedseg.cli.files import load_plan
    from fedseg.runtime.study import StudyFolder

    document = load_plan(plan)
    first = _initial(document.content, init)
    study = StudyFolder.create(folder, document, first, address=address, now=time.time())
    if as_json:
        facts = {"folder": str(folder), "plan_hash": study.manifest.plan_hash}
        typer.echo(json.dumps(facts | study.manifest.model_dump(mode="json")))
    else:
        _show(folder, study.manifest)


def _show(folder: Path, manifest: Manifest) -> None:
    from fedseg.cli import plan_lines as lines
    from fedseg.cli.screen import out

    plan = manifest.plan
    out.print(f"Study {plan.name!r} is in {folder}", markup=False)
    for what, value in {
        "plan hash": manifest.plan_hash,
        "sites": f"{', '.join(plan.site_names)} (quorum {manifest.quorum})",
        "work": f"{plan.schedule.rounds} rounds of {plan.training.steps} steps",
        "starts from": lines.starting_line(manifest),
        "trains": lines.training_line(manifest),
        "sees": lines.images_line(manifest),
        "strategy": lines.strategy_line(manifest),
        "evaluation": lines.evaluation_line(manifest),
        "privacy": lines.privacy_line(manifest),
    }.items():
        out.print(f"  {what:<15}{value}", markup=False)
    if manifest.plan.aggregation.mode == "plain":
        out.print("  AGGREGATION IS PLAIN: the server will see every site's own update.")
    out.print("Next, for each site, send it the line that this prints:")
    for site in manifest.plan.site_names:
        out.print(f"  fedseg study invite {quote(str(folder))} {site}", markup=False)
    out.print(f"and start the server:\n  fedseg server start {quote(str(folder))}", markup=False)
    out.print(
        "Once all have enrolled, have them compare in one call the words that each sees, and those of:\n"
        f"  fedseg study roster {quote(str(folder))}",
        markup=False,
    )


def _initial(plan: StudyPlan, init: Path | None) -> FirstModel:
    """What round 1 starts from: the plan's seed, or a model file.

    Raises:
        ModelError: The file holds no model of the plan's network and task, or one that must stay at its site.
    """
    from fedseg.errors import ModelError
    from fedseg.federation.vector import Layout
    from fedseg.plan.manifest import Init
    from fedseg.runtime.preparation import first_model
    from fedseg.store.checkpoints import load_model

    first = first_model(plan)
    if init is None:
        return first
    named, card = load_model(init)
    if dict(card.architecture) != first.architecture or card.task != plan.task:
        raise ModelError(
            "this model has another network or task than the plan",
            where=str(init),
            hint=f"the plan asks for network {plan.network.preset}, task {plan.task}",
        )
    if "never_hand_on" in card.privacy:
        raise ModelError(
            "this model must never be handed on: it is one site's own, and every site of the study would get it",
            where=str(init),
            hint="start from a model that may leave: one of fedseg pretrain, or a study's own",
        )
    source = Init(model_hash=card.model_hash, trained_on=trained_on(card), protection=protection(card))
    return replace(first, weights=Layout.of(named).flatten(named), init=source)


def trained_on(card: ModelCard) -> str:
    """What a model file says of the data in it: whether somebody's privacy is at stake."""
    mode = card.privacy.get("mode")
    if mode == "public":
        return f"public data: {card.privacy.get('trained_on')}"
    if mode == "off":
        return f"study {card.study!r}, WITHOUT differential privacy: its subjects are protected by nothing"
    epsilon, delta = card.privacy.get("epsilon"), card.privacy.get("delta")
    started = ", from a model of patients WITHOUT differential privacy" if "unprotected_start" in card.privacy else ""
    return f"study {card.study!r}, under a budget of epsilon {epsilon} at delta {delta} for its subjects{started}"


def protection(card: ModelCard) -> Literal["public", "privacy", "none"]:
    """What protects whom a model was trained on, by its file; what says nothing of it protects nobody."""
    mode = card.privacy.get("mode")
    if mode == "public":
        return "public"
    bounded = mode in ("local", "distributed") and "unprotected_start" not in card.privacy
    return "privacy" if bounded else "none"


@app.command(epilog="Example: fedseg study extend my-study --rounds 5 --epsilon 10")
def extend(
    folder: Study,
    rounds: Annotated[int, typer.Option(min=0, help="How many rounds more; 0 only with --evaluate.")],
    epsilon: Annotated[
        float | None, typer.Option(help="Privacy budget of all rounds together, past ones too; by default as it was.")
    ] = None,
    reserve: Annotated[
        int | None, typer.Option(min=0, help="Reserve rounds of the extended plan; by default as many as it had.")
    ] = None,
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Add federated evaluation to a plan that has none.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Add rounds to a study, complete or not, while its server is stopped. Every site must agree again."""
    from fedseg.cli.consent import changes
    from fedseg.cli.screen import out
    from fedseg.runtime.study import StudyFolder
    from fedseg.store.files import exclusive

    study = StudyFolder.open(folder)
    with exclusive(folder):
        old = study.manifest
        new = study.extend(rounds, epsilon=epsilon, reserve=reserve, evaluate=evaluate)
    if as_json:
        facts = {"folder": str(folder), "plan_hash": new.plan_hash, "extends": old.plan_hash}
        typer.echo(json.dumps(facts | new.model_dump(mode="json")))
        return
    out.print(f"Study {new.plan.name!r} goes on under a new version of its plan:", markup=False)
    for what, before, after in changes(old, new):
        out.print(f"  {what:<17}{before} -> {after}", markup=False)
    kept = len(study.versions) - 1
    for path in (study.root / f"manifest-{kept}.json", study.root / f"model-{kept}.safetensors"):
        if path.is_file():
            out.print(f"The version before is kept: {path}", markup=False)
    out.print(f"Next, start the server:\n  fedseg server start {quote(str(folder))}", markup=False)
    if not study.enrolled().keys:
        out.print(f"Nobody has enrolled yet; send each site its invite: fedseg study invite {quote(str(folder))} SITE")
        return
    out.print("and have each site look at what changes, agree, and compare the roster's words again:", markup=False)
    out.print("  fedseg client join --state DIR", markup=False)


@app.command(epilog="Example: fedseg study invite my-study leuven")
def invite(
    folder: Study,
    site: Annotated[str, typer.Argument(help="The site's name in the plan.")],
    hours: Annotated[int, typer.Option(min=1, max=24 * 30, help="How long the invite may be used.")] = 72,
) -> None:
    """Print one line to send to a hospital: single-use, and it expires."""
    from fedseg.cli.screen import err, out
    from fedseg.runtime.study import StudyFolder

    study = StudyFolder.open(folder)
    made = study.invite(site, now=time.time(), hours=hours)
    if site in study.enrolled().keys:
        err.print(
            f"{site} has enrolled already: with this invite it gets other keys, and a new state folder. Every site "
            "must then compare and approve the changed roster before it goes on.",
            markup=False,
        )
    out.print(made.encode(), markup=False)
    err.print(
        f"Send this line to {site} by a way that only they can read; it is good once, for {_hours(hours)}. There:\n"
        "  fedseg client join INVITE --data BIDS_DIR --state DIR",
        markup=False,
    )


def _hours(count: int) -> str:
    return "1 hour" if count == 1 else f"{count} hours"


@app.command(epilog="Example: fedseg study roster my-study")
def roster(
    folder: Study,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show who has enrolled; once all have, the words that each site compares before it takes part."""
    from fedseg.runtime.study import StudyFolder

    study = StudyFolder.open(folder)
    manifest, enrolled = study.manifest, study.enrolled()
    missing = [site for site in manifest.plan.site_names if site not in enrolled.keys]
    fingerprint = None if missing else study.roster().fingerprint
    if as_json:
        typer.echo(json.dumps(_roster_facts(manifest, enrolled, fingerprint)))
    else:
        _show_roster(folder, manifest, enrolled, fingerprint)


def _roster_facts(manifest: Manifest, enrolled: Enrolled, fingerprint: bytes | None) -> dict[str, Any]:
    from fedseg.runtime.roster_words import words

    keys = {site: enrolled.keys.get(site) for site in manifest.plan.site_names}
    return {
        "study": manifest.study,
        "plan_hash": manifest.plan_hash,
        "server_key": enrolled.server_key.hex(),
        "sites": [{"site": site, "key": None if key is None else key.hex()} for site, key in keys.items()],
        "missing": [site for site, key in keys.items() if key is None],
        "fingerprint": None if fingerprint is None else fingerprint.hex(),
        "words": None if fingerprint is None else words(fingerprint),
    }


def _show_roster(folder: Path, manifest: Manifest, enrolled: Enrolled, fingerprint: bytes | None) -> None:
    from fedseg.cli.roster import print_words, site_table
    from fedseg.cli.screen import out

    out.print(f"Roster of {manifest.plan.name!r}, plan hash {manifest.plan_hash}", markup=False)
    out.print(site_table(manifest.plan.site_names, enrolled.keys))
    if fingerprint is None:
        missing = [site for site in manifest.plan.site_names if site not in enrolled.keys]
        out.print(f"There are no words to compare yet: {', '.join(missing)} yet to enrol, each with", markup=False)
        out.print(f"  fedseg study invite {quote(str(folder))} SITE", markup=False)
        return
    print_words(out, fingerprint)
    out.print(
        "Have the sites read the words to each other, in one call with all of them; not by the mail that carried the "
        "invites. Each site then confirms them where it joined, or where it has no terminal, at the site and with its "
        "own state folder, by:",
        markup=False,
    )
    out.print(f"  fedseg client approve-roster --state DIR --fingerprint {fingerprint.hex()}", markup=False)
