"""Whole studies with one thread a site, in which sites can be made to fail."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Event

from fedseg.errors import StaleSession
from fedseg.federation.exchange import Finished, Progress, RingVector
from fedseg.federation.vector import Weights
from fedseg.plan import Manifest
from fedseg.runtime import events
from fedseg.runtime.archive import MemoryArchive
from fedseg.runtime.coordinator import Coordinator
from fedseg.runtime.ports import Charger
from fedseg.runtime.simulation import LocalLink, SiteMemory
from fedseg.runtime.site import SiteRunner
from fedseg.secagg.messages import Envelopes, MaskedInput, SessionHeader, Shares
from tests.runtime.toy import INITIAL, LAYOUT, PullTrainer
from tests.secagg.helpers import entropy

Failure = tuple[str, str, int, int]
"""(site, step, round, attempt) at which a site leaves instead of answering."""
LIMIT_S = 30


@dataclass(frozen=True)
class FailingLink(LocalLink):
    """Leaves the session where it is told to, once."""

    failures: tuple[Failure, ...] = ()
    headers: dict[bytes, SessionHeader] = field(default_factory=dict)

    def _pass(self, step: str, session: bytes) -> None:
        attempt = self.coordinator._attempt
        if attempt is not None and attempt.session == session:
            here = (self.site, step, attempt.header.round, attempt.header.attempt)
            if here in self.failures:
                self.withdraw(session, "interrupted")
                raise StaleSession("this site left")

    def share_keys(self, session: bytes, envelopes: Envelopes) -> None:
        self._pass("share", session)
        super().share_keys(session, envelopes)

    def upload(self, session: bytes, message: MaskedInput, vector: RingVector, progress: Progress) -> None:
        self._pass("upload", session)
        super().upload(session, message, vector, progress)

    def unmask(self, session: bytes, shares: Shares) -> None:
        self._pass("unmask", session)
        super().unmask(session, shares)


@dataclass(frozen=True)
class Outcome:
    """How a study ended."""

    weights: Weights
    own: Mapping[str, Weights | None]
    history: tuple[tuple[int, tuple[str, ...]], ...]
    told: tuple[events.Event, ...]
    archive: MemoryArchive


def run(
    manifest: Manifest,
    trainers: Mapping[str, PullTrainer],
    *failures: Failure,
    charger: Callable[[str], Charger | None] = lambda _: None,
) -> Outcome:
    """Run a study to its end."""
    archive, told = MemoryArchive(), list[events.Event]()
    archive.save_model(0, INITIAL, None)
    coordinator = Coordinator(manifest, archive, notify=told.append)
    runners = {
        site: SiteRunner(
            site, manifest, FailingLink(coordinator, site, failures), trainer, LAYOUT, SiteMemory(),
            charger=charger(site), entropy=entropy(site), notify=lambda _: None, stop=Event(),
        )
        for site, trainer in trainers.items()
    }  # fmt: skip
    with ThreadPoolExecutor(len(runners)) as pool:
        ends = [pool.submit(runner.run) for runner in runners.values()]
        finished: list[Finished] = [end.result(LIMIT_S) for end in ends]
    assert len(set(finished)) == 1
    own = {site: runner.weights for site, runner in runners.items()}
    return Outcome(coordinator.weights, own, finished[0].history, tuple(told), archive)
