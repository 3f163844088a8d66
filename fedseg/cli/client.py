"""`fedseg client`: take part in a study from a hospital."""

from __future__ import annotations

import secrets
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from fedseg.cli import baseline
from fedseg.cli import ledger as ledger_commands
from fedseg.errors import BelowQuorum, Interrupted

if TYPE_CHECKING:
    import threading

    from fedseg.cli.screen import Screen
    from fedseg.imaging.bids import Dataset
    from fedseg.plan.manifest import Manifest
    from fedseg.policy import SitePolicy
    from fedseg.privacy.identity import Subject
    from fedseg.runtime.charging import StudyCharger
    from fedseg.runtime.site_folder import Membership, SiteFolder
    from fedseg.secagg.roster import Identity

FIRST_CONTACT_S = 20.0

app = typer.Typer(help="For a hospital: take part in a study.", no_args_is_help=True)
app.add_typer(ledger_commands.app, name="ledger")
baseline.register(app)


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
    yes: Annotated[
        bool, typer.Option("--yes", help="Don't ask whether to take part. It never confirms the roster.")
    ] = False,
) -> None:
    """Enrol, check the data, show what will happen, compare the roster, train, end with the study.

    Run it again to go on, also where the study was complete here and the coordinator has extended or evaluates it.
    """
    from fedseg.cli.agreement import agree, goes_on
    from fedseg.cli.enrolment import amend, first_time
    from fedseg.cli.screen import Screen, stopping
    from fedseg.runtime.patience import patiently
    from fedseg.runtime.preparation import bytes_needed
    from fedseg.runtime.site_folder import SiteFolder
    from fedseg.runtime.study import require_room
    from fedseg.store.files import exclusive

    folder = SiteFolder(state)
    first = None
    if invite is not None:
        first = first_time(folder, invite, data, labels, policy, ledger)
    else:
        folder = SiteFolder.open(state)
        amend(folder, data, labels, policy, ledger)
        if folder.model.is_file() and not goes_on(folder):
            _print_end(folder, "The study is complete.")
            return
    try:
        with stopping() as stop, Screen(folder.log) as screen, exclusive(folder.root):
            if first is not None:
                patiently(first, FIRST_CONTACT_S, notify=screen, stop=stop)
            member = folder.membership
            versions = patiently(lambda: agree(folder, member), FIRST_CONTACT_S, notify=screen, stop=stop)
            manifest = versions[-1]
            dataset = _check_data(manifest, member)
            require_room(folder.root, bytes_needed(dataset, manifest))
            frame = _consent(folder, versions, dataset, yes, screen)
            identity = _confirm_roster(folder, member, manifest, screen, stop)
            _take_part(folder, identity, manifest, dataset, frame, screen, stop)
    except (BelowQuorum, Interrupted) as error:
        error.hint = f"go on with: fedseg client join --state {quote(str(state))}"
        raise


@app.command(
    "approve-roster",
    epilog="Example: fedseg client approve-roster --state ~/fedseg-study --fingerprint 3f09... "
    "(64 hexadecimal digits, as `fedseg study roster` prints them)",
)
def approve_roster(
    state: Annotated[Path, typer.Option(help="This site's folder for the study.")],
    fingerprint: Annotated[str, typer.Option(help="The roster's fingerprint, compared with the other hospitals.")],
) -> None:
    """Confirm a study's roster where `join` cannot ask, or a changed one; before or while `join` waits."""
    from fedseg.cli.roster import print_words
    from fedseg.cli.screen import out
    from fedseg.runtime.roster_words import parse_fingerprint
    from fedseg.runtime.site_folder import SiteFolder

    folder = SiteFolder.open(state)
    approved = parse_fingerprint(fingerprint)
    folder.approve(approved)
    out.print(f"Approved for {folder.membership.site}: the roster with these words, and no other", markup=False)
    print_words(out, approved)
    out.print("A `join` that waits goes on by itself; otherwise:", markup=False)
    out.print(f"  fedseg client join --state {quote(str(state))}", markup=False)


def _check_data(manifest: Manifest, member: Membership) -> Dataset:
    from fedseg.cli.data import require_usable
    from fedseg.runtime.preparation import training_data

    dataset = training_data(Path(member.data), manifest.plan, member.labels)
    require_usable(dataset, manifest.plan)
    return dataset


def _consent(
    folder: SiteFolder, versions: list[Manifest], dataset: Dataset, yes: bool, screen: Screen
) -> tuple[Subject, ...]:
    """Ask where the plan, or this version of it, has not been agreed to; the subjects whose privacy will be charged.

    In a private study the ledger is there before the agreement is written down, and never made after it.
    """
    from fedseg.cli.consent import consent, consent_to_extension
    from fedseg.runtime.hospital import Hospital

    agreed, manifest, member = folder.manifest, versions[-1], folder.membership
    hospital = Hospital(Path(member.data), Path.home())
    if agreed is None and manifest.plan.private:
        hospital.require_findable(Path(member.ledger))
    if agreed is None:
        screen.pause(lambda: consent(manifest, member, dataset, yes))
    elif agreed.plan_hash != manifest.plan_hash:
        screen.pause(lambda: consent_to_extension(agreed, manifest, member, yes))
    frame = _frame(manifest, dataset, screen)
    if agreed is None:
        if manifest.plan.private:
            hospital.first_ledger(Path(member.ledger), frame)
        folder.accept(manifest)
    elif agreed.plan_hash != manifest.plan_hash:
        folder.extend(versions)
    return frame


def _frame(manifest: Manifest, dataset: Dataset, screen: Screen) -> tuple[Subject, ...]:
    """The subjects that a private study charges, as their scans are; none in another one."""
    from fedseg.runtime.charging import sampling_frame

    if not manifest.plan.private:
        return ()
    return sampling_frame(dataset, lambda done, of: screen.bar("reading scans for the ledger", done, of))


def _confirm_roster(
    folder: SiteFolder, member: Membership, manifest: Manifest, screen: Screen, stop: threading.Event
) -> Identity:
    """Wait until all sites have enrolled and the operator has confirmed who they are; on a terminal, ask."""
    from fedseg.cli.roster import ask
    from fedseg.runtime.events import Note
    from fedseg.runtime.pinning import await_roster
    from fedseg.secagg.roster import Identity

    earlier = folder.roster
    with folder.connect() as link:
        roster = await_roster(
            folder,
            manifest,
            member.site,
            link.roster,
            ask=lambda offered: screen.pause(lambda: ask(offered, member.site, folder.root, earlier)),
            notify=screen,
            stop=stop,
        )
    screen(Note(f"this site takes part under roster {roster.fingerprint.hex()}"))
    return Identity(member.site, folder.protocol_key, roster)


def _take_part(
    folder: SiteFolder,
    identity: Identity,
    manifest: Manifest,
    dataset: Dataset,
    frame: tuple[Subject, ...],
    screen: Screen,
    stop: threading.Event,
) -> None:
    from fedseg.cli.files import load_policy
    from fedseg.runtime.charging import require_unchanged
    from fedseg.runtime.extension import append_versions
    from fedseg.runtime.model_file import write_model
    from fedseg.runtime.personal_model import write_personal
    from fedseg.runtime.pinning import roster_in_force
    from fedseg.runtime.preparation import make_trainer, prepare_training, prepare_validation, require_network
    from fedseg.runtime.site import SiteRunner
    from fedseg.runtime.site_scoring import SiteScorer

    def prepared(done: int, of: int) -> None:
        screen.bar("preparing scans", done, of)

    layout, plan = require_network(manifest), manifest.plan
    subjects = prepare_training(dataset, plan, folder.cache, prepared)
    scored = prepare_validation(dataset, plan, folder.cache, prepared)
    # What was prepared was read between the two times that it was hashed, days apart where the roster was waited for.
    require_unchanged(frame, _frame(manifest, dataset, screen), folder.root)
    policy = load_policy(folder.membership.policy, "this hospital's policy").content
    charger = _charger(folder, manifest, policy, frame, screen) if plan.private else None
    folder.clean_up()
    with folder.connect(manifest) as link, folder.open_audit(manifest.study) as evidence:
        append_versions(evidence, folder.versions)
        runner = SiteRunner(
            identity,
            manifest,
            link,
            make_trainer(manifest, identity.site, subjects, scored),
            layout,
            folder,
            evidence=evidence,
            confirm=lambda enrolled: roster_in_force(folder, manifest, identity.site, enrolled),
            may_reuse=policy.allow_reused_models,
            charger=charger,
            scorer=SiteScorer(manifest, layout, dataset, folder.root) if plan.evaluation.federated else None,
            entropy=secrets.token_bytes,
            notify=screen,
            stop=stop,
        )
        finished = runner.run()
        if runner.released is not None:
            write_model(folder.model, manifest, layout, runner.released, finished.history)
        if (own := runner.personal) is not None:
            write_personal(folder.personal, manifest, layout, own, finished.history, identity.site)
        runner.say_goodbye(finished)
    folder.erase_updates()
    closed, rounds = len(finished.history), plan.schedule.rounds
    _print_end(folder, f"The study is complete: {closed} of {rounds} rounds closed.")


def _charger(
    folder: SiteFolder, manifest: Manifest, policy: SitePolicy, frame: tuple[Subject, ...], screen: Screen
) -> StudyCharger:
    """The hospital's ledger, as this study uses it; where it was found is remembered."""
    from fedseg.runtime.charging import StudyCharger
    from fedseg.runtime.hospital import Hospital

    member = folder.membership
    ledger = Hospital(Path(member.data), Path.home()).known_ledger(Path(member.ledger), frame)
    folder.remember(replace(member, ledger=str(ledger.folder)))
    return StudyCharger(ledger, manifest, member.site, policy=policy, frame=frame, notify=screen)


def _print_end(folder: SiteFolder, what: str) -> None:
    from fedseg.cli.screen import out

    out.print(what)
    out.print(f"  model    {folder.model}", markup=False)
    if folder.personal.is_file():
        out.print(f"  personal {folder.personal}  (this site's own: it was never sent)", markup=False)
    out.print("Next:", markup=False)
    out.print(
        f"  fedseg evaluate {quote(str(folder.model))} --data {quote(folder.membership.data)} --out DIR", markup=False
    )
    out.print(f"  fedseg client baseline --state {quote(str(folder.root))}  # did joining help?", markup=False)
    out.print(f"  fedseg privacy-report {quote(str(folder.root))}", markup=False)
    out.print(f"  fedseg audit verify {quote(str(folder.root))}", markup=False)
