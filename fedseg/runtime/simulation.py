"""A whole study in one process: the same state machines as over gRPC, without a wire, a disk or keys on it.

With privacy off, the same manifest, trainers and contributors give the same model as real processes do, bit for bit.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from fedseg.federation.exchange import (
    Best,
    Countersigned,
    Enrolled,
    Finished,
    Instruction,
    LedgerClaim,
    Progress,
    Published,
    RingVector,
    WithdrawReason,
)
from fedseg.federation.parts import Kept, newest_of
from fedseg.federation.strategy import Strategy
from fedseg.federation.vector import Layout, Weights
from fedseg.plan.manifest import Manifest
from fedseg.runtime import events
from fedseg.runtime.archive import MemoryArchive
from fedseg.runtime.coordinator import Coordinator
from fedseg.runtime.evidence import MemoryEvidence
from fedseg.runtime.ports import Charger, Entropy, Scorer, Trainer
from fedseg.runtime.session import roster_of
from fedseg.runtime.site import SiteRunner
from fedseg.secagg.messages import Advertisement, Consistency, Envelopes, MaskedInput, Shares
from fedseg.secagg.roster import Identity
from fedseg.secagg.signing import SIGNING_KEY_SIZE, public_half


@dataclass(frozen=True)
class LocalLink:
    """A site's end of a connection to a coordinator in the same process."""

    coordinator: Coordinator
    site: str

    def manifest(self, plan_hash: str | None = None) -> bytes:
        """See `federation.exchange.Link`."""
        return self.coordinator.manifest(plan_hash)

    def roster(self) -> Enrolled:
        """See `federation.exchange.Link`."""
        return self.coordinator.roster()

    def poll(self, session: bytes | None) -> Instruction:
        """See `federation.exchange.Link`."""
        return self.coordinator.poll(self.site, session)

    def advertise(self, session: bytes, advertisement: Advertisement | None) -> None:
        """See `federation.exchange.Link`."""
        self.coordinator.advertise(self.site, session, advertisement)

    def share_keys(self, session: bytes, envelopes: Envelopes) -> None:
        """See `federation.exchange.Link`."""
        self.coordinator.share_keys(self.site, session, envelopes)

    def upload(self, session: bytes, message: MaskedInput, vector: RingVector, progress: Progress) -> None:
        """See `federation.exchange.Link`."""
        self.coordinator.upload(self.site, session, message, vector)
        progress(vector.nbytes, vector.nbytes)

    def confirm(self, session: bytes, message: Consistency) -> None:
        """See `federation.exchange.Link`."""
        self.coordinator.confirm(self.site, session, message)

    def unmask(self, session: bytes, shares: Shares) -> None:
        """See `federation.exchange.Link`."""
        self.coordinator.unmask(self.site, session, shares)

    def withdraw(self, session: bytes, reason: WithdrawReason) -> None:
        """See `federation.exchange.Link`."""
        self.coordinator.withdraw(self.site, session, reason)

    def evaluated(self, round_number: int, progress: Progress) -> Published:
        """See `federation.exchange.Link`."""
        return self.published(round_number, progress)

    def holds(self, model_hash: str) -> None:
        """See `federation.exchange.Link`."""
        self.coordinator.holds(self.site, model_hash)

    def claim(self, claim: LedgerClaim) -> Countersigned:
        """See `federation.exchange.Link`."""
        return self.coordinator.claim(self.site, claim)

    def countersigned(self) -> Countersigned | None:
        """See `federation.exchange.Link`."""
        return self.coordinator.countersigned(self.site)

    def model(self, model_hash: str, progress: Progress) -> Weights:
        """See `federation.exchange.Link`."""
        weights = self.coordinator.model(model_hash)
        progress(weights.nbytes, weights.nbytes)
        return weights

    def published(self, round_number: int, progress: Progress) -> Published:
        """See `federation.exchange.Link`."""
        published = self.coordinator.published(round_number)
        progress(published.total.nbytes, published.total.nbytes)
        return published


class SiteMemory:
    """A site's memory without a disk: the newest of everything."""

    def __init__(self) -> None:
        self._weights: Weights | None = None
        self._contribution: tuple[int, str, RingVector] | None = None
        self._session: bytes | None = None
        self._masked: tuple[bytes, RingVector] | None = None
        self._scored: dict[str, str] = {}
        self._best: Best | None = None
        self._kept: dict[int, Weights] = {}

    def weights(self) -> Weights | None:
        """The newest model."""
        return self._weights

    def save_weights(self, weights: Weights) -> None:
        """Keep the newest model."""
        self._weights = weights

    def contribution(self, round_number: int, model: str) -> RingVector | None:
        """The contribution to that round and model, where it is the newest."""
        kept = self._contribution
        return kept[2] if kept is not None and kept[:2] == (round_number, model) else None

    def save_contribution(self, round_number: int, model: str, vector: RingVector) -> None:
        """Keep the newest contribution."""
        self._contribution = (round_number, model, vector)

    def session(self) -> bytes | None:
        """The newest session's state."""
        return self._session

    def save_session(self, data: bytes) -> None:
        """Keep it."""
        self._session = data

    def masked(self, session: bytes) -> RingVector | None:
        """The masked update of that session, where it is the newest."""
        kept = self._masked
        return kept[1] if kept is not None and kept[0] == session else None

    def save_masked(self, session: bytes, vector: RingVector) -> None:
        """Keep the newest masked update."""
        self._masked = (session, vector)

    def scored(self, model: str) -> str | None:
        """Hash of the statistics of that model that were given to an evaluation."""
        return self._scored.get(model)

    def save_scored(self, model: str, digest: str) -> None:
        """Keep it."""
        self._scored[model] = digest

    def best(self) -> Best | None:
        """What a collapse would roll back to."""
        return self._best

    def save_best(self, best: Best) -> None:
        """Keep it."""
        self._best = best

    def kept(self, closed: int) -> Kept | None:
        """What stays here of the newest round up to `closed`."""
        newest = newest_of(self._kept, closed)
        return None if newest is None else Kept(newest, self._kept[newest])

    def save_kept(self, round_number: int, closed: int, vector: Weights) -> None:
        """Keep it, and what it follows."""
        newest = newest_of(self._kept, closed)
        before = {} if newest is None else {newest: self._kept[newest]}
        self._kept = {**before, round_number: vector}

    def finish(self, needed: int | None) -> None:
        """Forget what is kept of rounds but the newest up to `needed`."""
        newest = None if needed is None else newest_of(self._kept, needed)
        self._kept = {} if newest is None else {newest: self._kept[newest]}


def simulate(
    manifest: Manifest,
    initial: Weights,
    layout: Layout,
    trainers: Mapping[str, Trainer],
    *,
    entropy: Entropy,
    chargers: Mapping[str, Charger] | None = None,
    scorers: Mapping[str, Scorer] | None = None,
    notify: events.Notify = lambda _: None,
) -> tuple[Weights, Finished]:
    """Run a study with one thread a site.

    Args:
        manifest: The study.
        initial: The weights that round 1 starts from.
        layout: Order of the network's arrays in the flat vector.
        trainers: One for each site of the plan.
        entropy: Random bytes for keys and privacy noise.
        chargers: The sites' ledgers, in a private study.
        scorers: One for each site, in a study with federated evaluation.
        notify: Told what happens at the server.

    Returns:
        The final model, which every site has computed too, and the history of rounds.

    Raises:
        FedsegError: whatever ended a site's part.
    """
    archive = MemoryArchive()
    archive.save_model(0, Strategy.of(manifest).first(initial), None)
    server_key = entropy(SIGNING_KEY_SIZE)
    keys = {site: entropy(SIGNING_KEY_SIZE) for site in manifest.plan.site_names}
    enrolled = Enrolled(public_half(server_key), {site: public_half(key) for site, key in keys.items()})
    roster = roster_of(manifest, enrolled)
    coordinator = Coordinator(
        manifest, archive, enrolled=lambda: enrolled, key=server_key, evidence=MemoryEvidence(), notify=notify
    )
    runners = [
        SiteRunner(
            Identity(site, key, roster), manifest, LocalLink(coordinator, site), trainers[site], layout, SiteMemory(),
            evidence=MemoryEvidence(), confirm=lambda _: roster, may_reuse=False, charger=(chargers or {}).get(site),
            entropy=entropy, notify=lambda _: None, stop=threading.Event(), scorer=(scorers or {}).get(site),
        )
        for site, key in keys.items()
    ]  # fmt: skip
    with ThreadPoolExecutor(len(runners)) as pool:
        finished = [future.result() for future in [pool.submit(runner.run) for runner in runners]]
    for runner in runners:
        runner.say_goodbye(finished[0])
    return coordinator.weights, finished[0]
