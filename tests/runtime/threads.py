"""Whole studies with one thread a site, in which sites can be made to fail."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from fedseg.errors import FedsegError, StaleSession
from fedseg.federation.exchange import Enrolled, Finished, Instruction, Progress, RingVector
from fedseg.federation.strategy import Strategy
from fedseg.federation.vector import Weights
from fedseg.plan.manifest import Manifest
from fedseg.runtime import events
from fedseg.runtime.archive import MemoryArchive
from fedseg.runtime.audit import load, verify
from fedseg.runtime.coordinator import Coordinator
from fedseg.runtime.evidence import MemoryEvidence
from fedseg.runtime.ports import Charger, Evidence, Scorer
from fedseg.runtime.simulation import LocalLink, SiteMemory
from fedseg.runtime.site import SiteRunner
from fedseg.secagg.messages import Advertisement, Consistency, Envelopes, MaskedInput, Shares
from fedseg.secagg.roster import Roster
from fedseg.store.audit_log import AuditLog
from tests.runtime import toy
from tests.runtime.toy import INITIAL, LAYOUT, PullTrainer
from tests.secagg.helpers import entropy, key

Failure = tuple[str, str, int, int]
"""(site, step, round, attempt) at which a site leaves instead of answering."""
LIMIT_S = 30
HOLD_S = 0.2
"""How long a poll is held."""


@dataclass(frozen=True)
class FailingLink(LocalLink):
    """Leaves the session where it is told to, once."""

    failures: tuple[Failure, ...] = ()

    def poll(self, session: bytes | None) -> Instruction:
        return self.coordinator.poll(self.site, session, HOLD_S)

    def _pass(self, step: str, session: bytes) -> None:
        attempt = self.coordinator._course.attempt
        if attempt is not None and attempt.session == session:
            here = (self.site, step, attempt.header.round, attempt.header.attempt)
            if here in self.failures:
                self.withdraw(session, "interrupted")
                raise StaleSession("this site left")

    def advertise(self, session: bytes, advertisement: Advertisement | None) -> None:
        self._pass("join", session)
        super().advertise(session, advertisement)

    def share_keys(self, session: bytes, envelopes: Envelopes) -> None:
        self._pass("share", session)
        super().share_keys(session, envelopes)

    def upload(self, session: bytes, message: MaskedInput, vector: RingVector, progress: Progress) -> None:
        self._pass("upload", session)
        super().upload(session, message, vector, progress)

    def confirm(self, session: bytes, message: Consistency) -> None:
        self._pass("confirm", session)
        super().confirm(session, message)

    def unmask(self, session: bytes, shares: Shares) -> None:
        self._pass("unmask", session)
        super().unmask(session, shares)


class Study:
    """A study in one process: its server, and what its sites keep.

    Attributes:
        links: Makes a site's end of the connection.
        confirms: Judges a roster that differs, at each site.
    """

    def __init__(self, manifest: Manifest, trainers: Mapping[str, PullTrainer], *failures: Failure) -> None:
        self.manifest, self.trainers = manifest, trainers
        self.archive, self.told = MemoryArchive(), list[events.Event]()
        self.archive.save_model(0, Strategy.of(manifest).first(INITIAL), None)
        self.logs = {party: MemoryEvidence() for party in ("server", *trainers)}
        self.memories = {site: SiteMemory() for site in trainers}
        self.notes: dict[str, list[events.Event]] = {site: [] for site in trainers}
        self.own: dict[str, Weights | None] = {}
        self.personal: dict[str, Weights | None] = {}
        self.errors: dict[str, FedsegError] = {}
        self.roster, self.enrolled = toy.roster(manifest), toy.enrolled(manifest)
        self.identities = {site: toy.identity(site, manifest) for site in trainers}
        self.links: Callable[[str], Any] = lambda site: FailingLink(self.coordinator, site, failures)
        self.confirms: Callable[[str, Enrolled], Roster] = lambda _, __: self.roster
        self.charger: Callable[[str], Charger | None] = lambda _: None
        self.may_reuse = False
        self.scorers: Mapping[str, Scorer] = {}
        self.start()

    def start(self, *, evaluate: bool = False) -> None:
        """Start the server, anew where it ran before."""
        self.coordinator = Coordinator(
            self.manifest, self.archive, enrolled=lambda: self.enrolled, key=key("server"),
            evidence=self.logs["server"], notify=self.told.append, evaluate=evaluate,
        )  # fmt: skip

    def site(self, site: str) -> SiteRunner:
        """A process of a site."""
        return SiteRunner(
            self.identities[site], self.manifest, self.links(site), self.trainers[site], LAYOUT,
            self.memories[site], evidence=self.logs[site], confirm=lambda enrolled: self.confirms(site, enrolled),
            may_reuse=self.may_reuse, charger=self.charger(site), entropy=entropy(secrets.token_hex(8)),
            notify=self.notes[site].append, stop=Event(), scorer=self.scorers.get(site),
        )  # fmt: skip

    def live(self, site: str) -> Finished | None:
        """A site's part to its end, started again where it is killed; None where an error ended it."""
        while True:
            runner = self.site(site)
            try:
                finished = runner.run()
            except Killed:
                continue
            except FedsegError as error:
                self.errors[site] = error
                return None
            finally:
                self.own[site], self.personal[site] = runner.released, runner.personal
            runner.say_goodbye(finished)
            return finished

    def run(self) -> Outcome:
        """All sites at once, to the end of the study."""
        with ThreadPoolExecutor(len(self.trainers)) as pool:
            ends = [pool.submit(self.live, site) for site in self.trainers]
            finished = {end for each in ends if (end := each.result(LIMIT_S)) is not None}
        history = self.coordinator.history
        assert {end.history for end in finished} <= {history}
        return Outcome(self.coordinator.weights, self.own, history, tuple(self.told), self.archive, self.logs)


class Killed(Exception):
    """A site's process ended without a word."""


@dataclass(frozen=True)
class Outcome:
    """How a study ended."""

    weights: Weights
    own: Mapping[str, Weights | None]
    history: tuple[tuple[int, tuple[str, ...]], ...]
    told: tuple[events.Event, ...]
    archive: MemoryArchive
    logs: Mapping[str, MemoryEvidence]

    @property
    def rounds(self) -> list[tuple[int, int, str]]:
        """(round, attempt, state) of every attempt."""
        return [(row.round, row.attempt, row.state) for row in self.archive.rounds()]


def run(
    manifest: Manifest,
    trainers: Mapping[str, PullTrainer],
    *failures: Failure,
    charger: Callable[[str], Charger | None] = lambda _: None,
) -> Outcome:
    """Run a study to its end, at which every site must arrive."""
    study = Study(manifest, trainers, *failures)
    study.charger = charger
    outcome = study.run()
    for error in study.errors.values():
        raise error
    return outcome


def contradictions(folder: Path, study: str, logs: Mapping[str, Evidence]) -> list[str]:
    """What an audit finds wrong with the logs of these parties, by themselves and against each other."""
    for party, evidence in logs.items():
        _write(folder / f"{party}.jsonl", study, party, evidence.entries())
    found = verify([load(folder / f"{party}.jsonl") for party in logs]).findings
    return [f"{each.party}: {each.what}" for each in found]


def _write(path: Path, study: str, party: str, entries: Sequence[tuple[str, Mapping[str, object]]]) -> None:
    with AuditLog.create(path, key(party), "server" if party == "server" else "site", party, study) as log:
        for kind, body in entries:
            log.append(kind, body)
