"""`fedseg client`: take part in a study from a hospital."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Callable
from pathlib import Path
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
    from fedseg.runtime.site_folder import SiteFolder

    folder = SiteFolder(state)
    if invite is None:
        folder = SiteFolder.open(state)
        _refuse_first_time_only(policy=policy, ledger=ledger, labels=labels, data=data)
    else:
        first = _first_time(folder, invite, data, labels, policy, ledger)
    try:
        with stopping() as stop, Screen(folder.log) as screen:
            if invite is not None:
                patiently(first, FIRST_CONTACT_S, notify=screen, stop=stop)
            member = folder.membership
            manifest = patiently(lambda: _agree(folder, member), FIRST_CONTACT_S, notify=screen, stop=stop)
            dataset = _check_data(manifest, member)
            if folder.manifest is None:
                screen.pause(lambda: _consent(manifest, member, dataset, yes))
                folder.accept(manifest)
            _take_part(folder, member, manifest, dataset, screen, stop)
    except (BelowQuorum, Interrupted) as error:
        error.hint = f"go on with: fedseg client join --state {state}"
        raise


def _refuse_first_time_only(**given: object) -> None:
    for name, value in given.items():
        if value is not None:
            raise UsageError(f"--{name} is for the first time only", hint="to go on: fedseg client join --state DIR")


def _first_time(
    folder: SiteFolder, text: str, data: Path | None, labels: str | None, policy: Path | None, ledger: Path | None
) -> Callable[[], None]:
    """Check everything that can be checked here; returns the enrolment itself, which uses the invite up."""
    from fedseg.cli.files import load_policy, read_text, require_folder
    from fedseg.cli.screen import err
    from fedseg.rpc.invites import Invite
    from fedseg.runtime.hospital import ledger_folder

    if data is None:
        raise UsageError("--data is missing", hint="name this site's BIDS folder: --data BIDS_DIR")
    invite = Invite.decode(text)
    folder.refuse_other_study(invite)
    require_folder(data, "folder")
    agreed = None if policy is None else read_text(policy, "policy")
    load_policy(agreed, str(policy))
    invite.require_unexpired(time.time())
    place = ledger_folder(data, ledger, Path.home())
    where = data.resolve()

    def enrol() -> None:
        folder.enrol(invite, data=where, labels=labels, ledger=place, policy=agreed, now=time.time())
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

    plan = manifest.plan
    table = Table(show_header=False, box=None, title=f"Study: {plan.name}", title_justify="left")
    secure = plan.aggregation.mode == "secure"
    counts = {split: len(dataset.subjects(split)) for split in ("train", "validation", "test")}
    sent = 4 * (manifest.parameters + 1) / 1e6
    for what, value in {
        "plan hash": manifest.plan_hash,
        "server": member.address,
        "this site": member.site,
        "all sites": ", ".join(plan.site_names),
        "trains on": f"{counts['train']} here; {counts['validation']} validation, {counts['test']} test stay out",
        "work": f"{plan.schedule.rounds} rounds of {plan.training.steps} steps; {manifest.parameters:,} parameters",
        "privacy": privacy_line(manifest),
        "aggregation": "secure: the server sees only sums" if secure else "PLAIN: the server sees this site's updates",
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
        raise UsageError("nobody can be asked: there is no terminal", hint="add --yes if this is agreed")
    try:
        agreed = typer.confirm("Take part?", err=True)
    except typer.Abort:
        raise Interrupted("stopped before anything was computed or sent", hint="run the same command again") from None
    if not agreed:
        raise PolicyError(
            "not agreed: nothing was computed or sent", hint="run the same command again to be asked again"
        )


def _take_part(
    folder: SiteFolder,
    member: Membership,
    manifest: Manifest,
    dataset: Dataset,
    screen: Screen,
    stop: threading.Event,
) -> None:
    from fedseg.cli.files import load_policy
    from fedseg.cli.screen import out
    from fedseg.runtime.charging import StudyCharger
    from fedseg.runtime.hospital import open_ledger
    from fedseg.runtime.model_file import write_model
    from fedseg.runtime.preparation import bytes_needed, layout_of, make_trainer, prepare_training
    from fedseg.runtime.site import SiteRunner
    from fedseg.runtime.study import require_room

    require_room(folder.root, bytes_needed(dataset, manifest))
    prepared = prepare_training(
        dataset, manifest.plan, folder.cache, lambda done, of: screen.bar("preparing scans", done, of)
    )
    charger = None
    if manifest.plan.private:
        charger = StudyCharger(
            open_ledger(Path(member.data), Path(member.ledger)),
            manifest,
            member.site,
            policy=load_policy(member.policy, "this hospital's policy").content,
            subjects=sorted(prepared),
            notify=screen,
        )
    layout = layout_of(manifest)
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
    out.print(f"The study is complete: {len(finished.history)} of {manifest.plan.schedule.rounds} rounds closed.")
    out.print(f"  model    {folder.model}", markup=False)
    out.print("Next:", markup=False)
    out.print(f"  fedseg evaluate {folder.model} --data {member.data} --out DIR", markup=False)
    out.print(f"  fedseg privacy-report {folder.root}", markup=False)
