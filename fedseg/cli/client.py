"""`fedseg client`: take part in a study from a hospital."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from fedseg.errors import BelowQuorum, Interrupted, PlanError, PolicyError, UsageError

if TYPE_CHECKING:
    import threading

    from fedseg.cli.screen import Screen
    from fedseg.imaging.bids import Dataset
    from fedseg.plan import Manifest
    from fedseg.runtime.site_folder import Membership, SiteFolder

FIRST_CONTACT_S = 20.0

app = typer.Typer(help="For a hospital: take part in a study.", no_args_is_help=True)


@app.callback()
def _client() -> None:
    pass


@app.command(
    epilog="Example: fedseg client join fedseg1.AAEC... --data /data/fetal --state ~/fedseg-study. "
    "To go on after an interruption: fedseg client join --state ~/fedseg-study"
)
def join(
    state: Annotated[Path, typer.Option(help="This site's folder for the study: keys, progress, log, final model.")],
    invite: Annotated[
        str | None, typer.Argument(help="The line that the coordinator sent; only the first time.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="BIDS folder with this site's scans, or a CSV of pairs.")] = None,
    labels: Annotated[
        str | None,
        typer.Option(help="Where the data set has no dseg.tsv: feta, fidon, drawem, bounti, or a table file."),
    ] = None,
    policy: Annotated[Path | None, typer.Option(help="What this hospital accepts (YAML); only the first time.")] = None,
    ledger: Annotated[
        Path | None, typer.Option(help="Folder of this hospital's privacy ledger, one for all its studies.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask before training starts.")] = False,
) -> None:
    """Enrol, check the data, show what will happen, train, end with the study."""
    from fedseg.cli.screen import Screen, stopping
    from fedseg.runtime.patience import patiently
    from fedseg.runtime.preparation import bytes_needed
    from fedseg.runtime.site_folder import SiteFolder
    from fedseg.runtime.study import require_room
    from fedseg.store.files import exclusive

    folder = SiteFolder(state)
    first = None
    if invite is not None:
        first = _first_time(folder, invite, data, labels, policy, ledger)
    else:
        folder = SiteFolder.open(state)
        _amend(folder, data, labels, policy, ledger)
        if folder.model.is_file():
            _print_end(folder, "The study is complete.")
            return
    try:
        with stopping() as stop, Screen(folder.log) as screen, exclusive(folder.root):
            if first is not None:
                patiently(first, FIRST_CONTACT_S, notify=screen, stop=stop)
            member = folder.membership
            manifest = patiently(lambda: _agree(folder, member), FIRST_CONTACT_S, notify=screen, stop=stop)
            dataset = _check_data(manifest, member)
            require_room(folder.root, bytes_needed(dataset, manifest))
            if folder.manifest is None:
                screen.pause(lambda: _consent(manifest, member, dataset, yes))
                _accept(folder, member, manifest)
            _take_part(folder, member, manifest, dataset, screen, stop)
    except (BelowQuorum, Interrupted) as error:
        error.hint = f"go on with: fedseg client join --state {quote(str(state))}"
        raise


def _amend(folder: SiteFolder, data: Path | None, labels: str | None, policy: Path | None, ledger: Path | None) -> None:
    """Change what was given at the first `join`, as long as the study has not been agreed to.

    Raises:
        UsageError: if it has been.
    """
    from fedseg.runtime.hospital import Hospital

    given = {"data": data, "labels": labels, "policy": policy, "ledger": ledger}
    changed = [name for name, value in given.items() if value is not None]
    if not changed:
        return
    if folder.manifest is not None:
        hint = f"go on with: fedseg client join --state {folder.root}"
        raise UsageError(f"--{changed[0]} cannot be changed once the study is agreed to", hint=hint)
    member = folder.membership
    scans = Path(member.data) if data is None else data.resolve()
    hospital = Hospital(scans, Path.home())
    folder.remember(
        replace(
            member,
            data=str(scans),
            labels=_labels(labels) or member.labels,
            policy=member.policy if policy is None else _policy_text(policy),
            ledger=str(hospital.ledger_folder(ledger) if ledger else hospital.kept_ledger(Path(member.ledger))),
        )
    )


def _labels(given: str | None) -> str | None:
    """What was given with --labels, checked; a file by its full path."""
    from fedseg.imaging.bids import given_table

    given_table(given)
    return str(Path(given).resolve()) if given is not None and Path(given).is_file() else given


def _policy_text(path: Path) -> str:
    """A policy's text, checked."""
    from fedseg.cli.files import load_policy, read_text

    text = read_text(path, "policy")
    load_policy(text, str(path))
    return text


def _first_time(
    folder: SiteFolder, text: str, data: Path | None, labels: str | None, policy: Path | None, ledger: Path | None
) -> Callable[[], None]:
    """Check everything that can be checked here; returns the enrolment itself, which uses the invite up."""
    from fedseg.cli.files import require_folder
    from fedseg.cli.screen import err
    from fedseg.rpc.invites import Invite
    from fedseg.runtime.hospital import Hospital

    if data is None:
        raise UsageError("--data is missing", hint="name this site's BIDS folder: --data BIDS_DIR")
    invite = Invite.decode(text)
    folder.refuse_other_study(invite)
    require_folder(data, "folder")
    agreed = None if policy is None else _policy_text(policy)
    invite.require_unexpired(time.time())
    place = Hospital(data, Path.home()).ledger_folder(ledger)
    if place.is_relative_to(folder.root.resolve()):
        hint = "one ledger serves all studies: name a folder that outlives this one"
        raise UsageError("the ledger cannot lie in the state folder", where=str(place), hint=hint)
    where, table = data.resolve(), _labels(labels)

    def enrol() -> None:
        folder.enrol(invite, data=where, labels=table, ledger=place, policy=agreed, now=time.time())
        err.print(f"Enrolled as {invite.site}; this site's keys are in {folder.root / 'keys'}", markup=False)

    return enrol


def _agree(folder: SiteFolder, member: Membership) -> Manifest:
    """The server's manifest, accepted by the hospital's policy and equal to what was accepted before."""
    from fedseg.cli.files import load_policy
    from fedseg.plan import Manifest
    from fedseg.policy import accept
    from fedseg.runtime.study import check_manifest

    with folder.connect() as remote:
        manifest = Manifest.from_json(remote.manifest())
    agreed = folder.manifest
    if agreed is not None and agreed.plan_hash != manifest.plan_hash:
        raise PlanError(
            f"the server's plan is {manifest.plan_hash[:16]}, this site agreed to {agreed.plan_hash[:16]}",
            hint="a changed plan is another study: ask the coordinator for a new invite",
        )
    if member.site not in manifest.plan.sites:
        raise PlanError(f"the plan does not name this site, {member.site}", hint="talk to the coordinator")
    check_manifest(manifest)
    accept(load_policy(member.policy, "this hospital's policy"), manifest)
    return manifest


def _check_data(manifest: Manifest, member: Membership) -> Dataset:
    from fedseg.cli.data import require_usable
    from fedseg.runtime.preparation import training_data

    dataset = training_data(Path(member.data), manifest.plan, member.labels)
    require_usable(dataset, manifest.plan)
    return dataset


def _consent(manifest: Manifest, member: Membership, dataset: Dataset, yes: bool) -> None:
    """Show what will happen, and ask."""
    from rich.table import Table

    from fedseg.cli.screen import err
    from fedseg.cli.study import privacy_line
    from fedseg.imaging.bids import SPLITS

    plan = manifest.plan
    table = Table(show_header=False, box=None, title=f"Study: {plan.name}", title_justify="left")
    secure = plan.aggregation.mode == "secure"
    counts = {split: len(dataset.subjects(split)) for split in SPLITS}
    sent = 4 * (manifest.parameters + 1) / 1e6
    for what, value in {
        "plan hash": manifest.plan_hash,
        "server": member.address,
        "this site": member.site,
        "all sites": ", ".join(plan.site_names),
        "trains on": f"{counts['train']} here; {counts['validation']} validation, {counts['test']} test stay out",
        "work": f"{plan.schedule.rounds} rounds of {plan.training.steps} steps; {manifest.parameters:,} parameters",
        "privacy": privacy_line(manifest),
        "aggregation": _aggregation_line(manifest),
        "leaves here": f"one {'masked ' if secure else ''}update of {sent:.1f} MB a round; no scan, label, id or count",
        "ledger": member.ledger if plan.private else "none: privacy is off",
    }.items():
        table.add_row(what, value)
    err.print(table)
    if manifest.quorum == 2 and secure:
        err.print("A round may end with two contributors, who could each read the other's update.")
    if yes:
        return
    if not sys.stdin.isatty():
        hint = "add --yes if this is agreed: fedseg client join --state DIR --yes"
        raise UsageError("nobody can be asked: there is no terminal", hint=hint)
    try:
        agreed = typer.confirm("Take part?", err=True)
    except typer.Abort:
        raise Interrupted("stopped before anything was computed or sent", hint="run the same command again") from None
    if not agreed:
        raise PolicyError(
            "not agreed: nothing was computed or sent", hint="to be asked again: fedseg client join --state DIR"
        )


def _aggregation_line(manifest: Manifest) -> str:
    plan = manifest.plan
    if plan.aggregation.mode != "secure":
        return "PLAIN: the server sees this site's updates"
    weights = {name: site.weight for name, site in plan.sites.items()}
    uneven = f"; weights {weights}" if len(set(weights.values())) > 1 else ""
    return f"secure: the server sees only sums over at least {manifest.quorum} of {len(plan.sites)} sites{uneven}"


def _accept(folder: SiteFolder, member: Membership, manifest: Manifest) -> None:
    """Write down what was agreed; in a private study the ledger is there before that, and never made after it."""
    from fedseg.runtime.hospital import Hospital

    if manifest.plan.private:
        Hospital(Path(member.data), Path.home()).first_ledger(Path(member.ledger))
    folder.accept(manifest)


def _take_part(
    folder: SiteFolder,
    member: Membership,
    manifest: Manifest,
    dataset: Dataset,
    screen: Screen,
    stop: threading.Event,
) -> None:
    from fedseg.cli.files import load_policy
    from fedseg.runtime.charging import StudyCharger
    from fedseg.runtime.hospital import Hospital
    from fedseg.runtime.model_file import write_model
    from fedseg.runtime.preparation import make_trainer, prepare_training, require_network
    from fedseg.runtime.site import SiteRunner

    layout = require_network(manifest)
    prepared = prepare_training(
        dataset, manifest.plan, folder.cache, lambda done, of: screen.bar("preparing scans", done, of)
    )
    charger = None
    if manifest.plan.private:
        ledger = Hospital(Path(member.data), Path.home()).known_ledger(Path(member.ledger))
        folder.remember(replace(member, ledger=str(ledger.folder)))
        charger = StudyCharger(
            ledger,
            manifest,
            member.site,
            policy=load_policy(member.policy, "this hospital's policy").content,
            subjects=sorted(prepared),
            notify=screen,
        )
    with folder.connect(manifest.parameters) as link:
        runner = SiteRunner(
            member.site,
            manifest,
            link,
            make_trainer(manifest, member.site, prepared),
            layout,
            folder,
            charger=charger,
            entropy=secrets.token_bytes,
            notify=screen,
            stop=stop,
        )
        finished = runner.run()
        if runner.weights is not None:
            write_model(folder.model, manifest, layout, runner.weights, finished.history)
        runner.say_goodbye()
    closed, rounds = len(finished.history), manifest.plan.schedule.rounds
    _print_end(folder, f"The study is complete: {closed} of {rounds} rounds closed.")


def _print_end(folder: SiteFolder, what: str) -> None:
    from fedseg.cli.screen import out

    out.print(what)
    out.print(f"  model    {folder.model}", markup=False)
    out.print("Next:", markup=False)
    out.print(
        f"  fedseg evaluate {quote(str(folder.model))} --data {quote(folder.membership.data)} --out DIR", markup=False
    )
    out.print(f"  fedseg privacy-report {quote(str(folder.root))}", markup=False)
