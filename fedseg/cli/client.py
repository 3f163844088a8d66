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
from fedseg.errors import EXIT_INTERRUPTED, EXIT_PAUSED, FedsegError, Interrupted, InviteError, UsageError

if TYPE_CHECKING:
    from fedseg.cli.screen import Screen, Stop
    from fedseg.imaging.dataset import Dataset
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
    policy: Annotated[
        Path | None, typer.Option(help="What this hospital accepts (YAML); each start reads it again.")
    ] = None,
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
    from fedseg.cli.enrolment import amend, first_time
    from fedseg.cli.screen import Screen, stopping
    from fedseg.runtime.patience import patiently
    from fedseg.runtime.site_folder import SiteFolder
    from fedseg.store.files import exclusive

    folder = SiteFolder(state) if invite is not None else SiteFolder.open(state)
    first = None if invite is None else first_time(folder, invite, data, labels, policy, ledger)
    try:
        with stopping() as stop, Screen(folder.log) as screen, exclusive(folder.root):
            if first is None:
                amend(folder, data, labels, policy, ledger)
            else:
                patiently(first, FIRST_CONTACT_S, notify=screen, stop=stop)
            ended = _go_through(folder, yes, screen, stop)
    except FedsegError as error:
        if isinstance(error, InviteError) and not folder.enrolled:
            folder.clear()
        error.hint = _hint(error, folder)
        raise
    _print_end(folder, ended)


def _hint(error: FedsegError, folder: SiteFolder) -> str | None:
    """What to do, with this site's folder in the commands: whoever raised it may not know that."""
    if not folder.enrolled:
        return "run the same command again" if isinstance(error, Interrupted) else error.hint
    if error.exit_code in (EXIT_PAUSED, EXIT_INTERRUPTED):
        return f"go on with: fedseg client join --state {quote(str(folder.root))}"
    return error.hint and error.hint.replace("--state DIR", f"--state {quote(str(folder.root))}")


def _go_through(folder: SiteFolder, yes: bool, screen: Screen, stop: Stop) -> str:
    """From the question whether the study goes on to its end; what is to be said of that."""
    from fedseg.cli.accepting import accept, policy_now
    from fedseg.cli.agreement import agree, goes_on
    from fedseg.runtime.patience import patiently
    from fedseg.runtime.preparation import bytes_needed, require_room

    # Asked while the folder is held: to the server whoever asks is this site, and one that has forgotten its session.
    if folder.model.is_file() and not patiently(lambda: goes_on(folder), FIRST_CONTACT_S, notify=screen, stop=stop):
        return "The study is complete."
    member = policy_now(folder)
    versions = patiently(lambda: agree(folder, member), FIRST_CONTACT_S, notify=screen, stop=stop)
    manifest = versions[-1]
    with stop.at_once():
        dataset = _check_data(manifest, member)
    require_room(folder.root, bytes_needed(dataset, manifest))
    frame = accept(folder, member, versions, dataset, yes, screen, stop)
    identity = _confirm_roster(folder, member, manifest, screen, stop)
    closed = _take_part(folder, identity, manifest, dataset, frame, screen, stop)
    return f"The study is complete: {closed} of {manifest.plan.schedule.rounds} rounds closed."


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
    _refuse_earlier(folder, approved)
    folder.approve(approved)
    out.print(f"Approved for {folder.membership.site}: the roster with these words, and no other", markup=False)
    print_words(out, approved)
    out.print("A `join` that waits goes on by itself; otherwise:", markup=False)
    out.print(f"  fedseg client join --state {quote(str(state))}", markup=False)


def _refuse_earlier(folder: SiteFolder, approved: bytes) -> None:
    """An extended plan gives the roster other words: approving the earlier ones would let nothing go on.

    Raises:
        UsageError: These are the words of the roster that was confirmed before the plan was extended.
    """
    pinned, manifest = folder.roster, folder.manifest
    if pinned is None or manifest is None or pinned.fingerprint != approved:
        return
    due = replace(pinned, plan_hash=bytes.fromhex(manifest.plan_hash))
    if due != pinned:
        raise UsageError(
            "this is the roster that was confirmed here before, under the plan as it was; nothing was approved",
            where="--fingerprint",
            hint="under the extended plan, with the same sites and keys, it is the one with the fingerprint "
            f"{due.fingerprint.hex()}: compare the words that `join` shows with the other hospitals, then approve it",
        )


def _check_data(manifest: Manifest, member: Membership) -> Dataset:
    from fedseg.cli.data import require_usable
    from fedseg.runtime.preparation import training_data

    dataset = training_data(Path(member.data), manifest.plan, member.labels)
    require_usable(dataset, manifest.plan)
    return dataset


def _confirm_roster(folder: SiteFolder, member: Membership, manifest: Manifest, screen: Screen, stop: Stop) -> Identity:
    """Wait until all sites have enrolled and the operator has confirmed who they are; on a terminal, ask."""
    from fedseg.cli.roster import ask
    from fedseg.runtime.events import Note
    from fedseg.runtime.pinning import await_roster
    from fedseg.secagg.roster import Identity, Roster

    earlier = folder.roster

    def asked(offered: Roster) -> bool:
        with stop.at_once():
            return screen.pause(lambda: ask(offered, member.site, folder.root, earlier))

    with folder.connect() as link:
        roster = await_roster(
            folder,
            manifest,
            member.site,
            link.roster,
            ask=asked,
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
    stop: Stop,
) -> int:
    """Train with the others until the study is complete; how many rounds are closed."""
    from fedseg.cli.accepting import frame_of, policy_of
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
    with stop.at_once():
        subjects = prepare_training(dataset, plan, folder.cache, prepared)
        scored = prepare_validation(dataset, plan, folder.cache, prepared)
        # What was prepared was read between the two times it was hashed, days apart where the roster was waited for.
        require_unchanged(frame, frame_of(manifest, dataset, screen), folder.root)
    policy = policy_of(folder.membership)
    charger = _charger(folder, manifest, policy, frame, screen) if plan.private else None
    memory = folder.memory
    memory.clean_up()
    with folder.connect(manifest) as link, folder.open_audit(manifest.study) as evidence:
        append_versions(evidence, folder.versions)
        runner = SiteRunner(
            identity,
            manifest,
            link,
            make_trainer(manifest, identity.site, subjects, scored),
            layout,
            memory,
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
    memory.erase_updates()
    return len(finished.history)


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
    """What the study has left here, and what is next; the bars are off the screen."""
    from fedseg.cli.screen import out

    out.print(what)
    out.print(f"  model    {folder.model}", markup=False)
    if folder.personal.is_file():
        out.print(f"  personal {folder.personal}  (this site's own: it was never sent)", markup=False)
    out.print("Next:", markup=False)
    models = [folder.model, *([folder.personal] if folder.personal.is_file() else [])]
    named, member = " ".join(quote(str(model)) for model in models), folder.membership
    labels = "" if member.labels is None else f" --labels {quote(member.labels)}"
    out.print(f"  fedseg evaluate {named} --data {quote(member.data)}{labels} --out DIR", markup=False)
    out.print(f"  fedseg client baseline --state {quote(str(folder.root))}  # did joining help?", markup=False)
    out.print(f"  fedseg privacy-report {quote(str(folder.root))}", markup=False)
    out.print(f"  fedseg audit verify {quote(str(folder.root))}", markup=False)
