"""A server or a site of a toy study, in a process of its own: everything is real but the training.

    python -m tests.system.node server STUDY BIND
    python -m tests.system.node site STATE [--invite LINE] [--target X] [--hold ROUND] [--die-after-charge ROUND]
                                           [--die-in ROUND:STATE:kept|sent]

A server prints `{"state", "hash"}` at its end, a site `{"hash", "rounds"}`. Events go to stderr. A site writes a line
to `STATE.trace` before each training: the round, and whether its ledger holds a charge for it. With `--hold` it then
trains in that round until `STATE.go` is there. With `--die-after-charge` it is gone once that round is charged, with
`--die-in` (SIGKILL) once that state of secure aggregation is on its disk, or has been sent as well. Its operator
confirms whatever roster is shown, and agrees to whatever extends its plan.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedseg.errors import FedsegError, Interrupted
from fedseg.federation.exchange import Instruction
from fedseg.federation.vector import model_hash
from fedseg.plan.manifest import Manifest
from fedseg.policy import SitePolicy
from fedseg.privacy.identity import Subject
from fedseg.rpc.channel import RemoteStudy
from fedseg.rpc.invites import Invite
from fedseg.runtime import events
from fedseg.runtime.charging import StudyCharger
from fedseg.runtime.disk_memory import DiskMemory
from fedseg.runtime.extension import append_versions, following
from fedseg.runtime.hospital import Hospital
from fedseg.runtime.patience import patiently
from fedseg.runtime.pinning import await_roster, roster_in_force
from fedseg.runtime.serve import serve
from fedseg.runtime.site import SiteRunner
from fedseg.runtime.site_folder import SiteFolder
from fedseg.runtime.study import StudyFolder
from fedseg.secagg.roster import Identity, Roster
from fedseg.secagg.state import Ended, load
from fedseg.store.privacy_ledger import HospitalLedger
from tests.runtime.toy import LAYOUT, PullTrainer

FRAME = tuple(Subject((name,)) for name in ("01", "02", "03"))


class HeldTrainer(PullTrainer):
    """A toy trainer that writes down what it does, and can be held in a round."""

    def __init__(self, target: float, state: Path, hold: int | None, charged: Callable[[int], bool]) -> None:
        super().__init__(target)
        self.trace, self.go = Path(f"{state}.trace"), Path(f"{state}.go")
        self.hold, self.charged = hold, charged

    def update(
        self,
        weights: Mapping[str, NDArray[np.float32]],
        round_number: int,
        *,
        entropy: Callable[[int], bytes],
        on_step: Callable[[int, int], None],
        should_stop: Callable[[], bool],
        **more: Any,
    ) -> dict[str, NDArray[np.float32]]:
        with self.trace.open("a") as file:
            file.write(json.dumps([round_number, self.charged(round_number)]) + "\n")
        while round_number == self.hold and not self.go.exists():
            if should_stop():
                raise Interrupted("training was stopped")
            time.sleep(0.02)
        return super().update(weights, round_number, entropy=entropy, on_step=on_step, should_stop=should_stop)


class MortalCharger(StudyCharger):
    """Its process dies between the charge of a round and the first message that follows it."""

    last_round: int | None = None

    def charge(self, round_number: int, attempt: int, model: str) -> bool:
        fresh = super().charge(round_number, attempt, model)
        if round_number == self.last_round:
            os.kill(os.getpid(), signal.SIGKILL)
        return fresh


@dataclass(frozen=True)
class MortalMemory(DiskMemory):
    """The disk of a site whose process dies in one state of one round's session."""

    folder: SiteFolder
    last: tuple[int, str, str] | None

    def save_session(self, data: bytes) -> None:
        super().save_session(data)
        if self.last is not None and self.in_last_state(data):
            if self.last[2] == "kept":
                os.kill(os.getpid(), signal.SIGKILL)
            self.mark.touch()

    def in_last_state(self, data: bytes) -> bool:
        identity = Identity(self.folder.membership.site, self.folder.protocol_key, self.roster_now)
        state = load(data, identity)
        assert self.last is not None
        number = state.round if isinstance(state, Ended) else state.header.round
        return (number, type(state).__name__) == self.last[:2]

    @property
    def roster_now(self) -> Roster:
        roster = self.folder.roster
        assert roster is not None
        return roster

    @property
    def mark(self) -> Path:
        return Path(f"{self.root}.marked")


class MortalLink:
    """A link that kills its process where the site polls after its last message."""

    def __init__(self, link: RemoteStudy, mark: Path) -> None:
        self._link, self._mark = link, mark

    def poll(self, session: bytes | None) -> Instruction:
        if self._mark.exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return self._link.poll(session)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._link, name)


def notify(event: events.Event) -> None:
    print(event, file=sys.stderr, flush=True)  # noqa: T201  # a script


def run_server(words: argparse.Namespace, stop: threading.Event) -> dict[str, object]:
    coordinator = serve(StudyFolder.open(words.study), words.bind, notify=notify, stop=stop)
    return {"state": coordinator.state.value, "hash": model_hash(coordinator.weights)}


def run_site(words: argparse.Namespace, stop: threading.Event) -> dict[str, object]:
    folder = SiteFolder(words.state)
    if not folder.enrolled:
        _enrol(folder, Invite.decode(words.invite), stop)
    member = folder.membership
    with folder.connect() as remote:
        newest, agreed = patiently(remote.manifest, 30, notify=notify, stop=stop), folder.manifest
        manifest = Manifest.from_json(newest)
        if agreed is None:
            folder.accept(manifest)
        elif agreed != manifest:
            folder.extend(following(agreed, newest, remote.manifest))
        roster = await_roster(
            folder, manifest, member.site, remote.roster, ask=lambda _: True, notify=notify, stop=stop
        )
    charger = _charger(manifest, member.site, Path(member.data), Path(member.ledger), words.die_after_charge)

    def charged(round_number: int) -> bool:
        if charger is None:
            return False
        ledger = HospitalLedger.open(Path(member.ledger)).ledger
        return any(charge.round == round_number for charge in ledger.charges(manifest.study))

    memory = MortalMemory(folder.root, folder, words.die_in)
    memory.clean_up()
    with folder.connect(manifest) as remote, folder.open_audit(manifest.study) as log:
        append_versions(log, folder.versions)
        link: Any = MortalLink(remote, memory.mark) if words.die_in else remote
        runner = SiteRunner(
            Identity(member.site, folder.protocol_key, roster), manifest, link,
            HeldTrainer(words.target, words.state, words.hold, charged), LAYOUT, memory, evidence=log,
            confirm=lambda enrolled: roster_in_force(folder, manifest, member.site, enrolled), may_reuse=False,
            charger=charger, entropy=secrets.token_bytes, notify=notify, stop=stop, patience_s=60,
        )  # fmt: skip
        finished = runner.run()
        runner.say_goodbye(finished)
    weights = runner.released
    return {"hash": None if weights is None else model_hash(weights), "rounds": len(finished.history)}


def _enrol(folder: SiteFolder, invite: Invite, stop: threading.Event) -> None:
    data, ledger = Path(f"{folder.root}.data"), Path(f"{folder.root}.ledger")
    data.mkdir(exist_ok=True)

    def enrol() -> None:
        folder.enrol(invite, data=data, labels=None, ledger=ledger, policy=None, now=time.time())

    patiently(enrol, 30, notify=notify, stop=stop)


def _charger(manifest: Manifest, site: str, data: Path, ledger: Path, mortal: int | None) -> StudyCharger | None:
    if not manifest.plan.private:
        return None
    charger = MortalCharger(
        Hospital(data, data.parent).first_ledger(ledger, FRAME),
        manifest,
        site,
        policy=SitePolicy(),
        frame=FRAME,
        notify=notify,
    )
    charger.last_round = mortal
    return charger


def _moment(text: str) -> tuple[int, str, str]:
    number, state, when = text.split(":")
    return int(number), state, when


def main() -> None:
    parser = argparse.ArgumentParser()
    roles = parser.add_subparsers(dest="role", required=True)
    server = roles.add_parser("server")
    server.add_argument("study", type=Path)
    server.add_argument("bind")
    site = roles.add_parser("site")
    site.add_argument("state", type=Path)
    site.add_argument("--invite")
    site.add_argument("--target", type=float)
    site.add_argument("--hold", type=int)
    site.add_argument("--die-after-charge", type=int)
    site.add_argument("--die-in", type=_moment)
    words = parser.parse_args()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: stop.set())
    try:
        answer = run_server(words, stop) if words.role == "server" else run_site(words, stop)
    except FedsegError as error:
        notify(events.Note(f"{type(error).__name__}: {error}"))
        sys.exit(error.exit_code)
    print(json.dumps(answer))  # noqa: T201  # a script


if __name__ == "__main__":
    main()
