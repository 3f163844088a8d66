"""A whole study in one process: the same state machines as over gRPC, without a wire, a disk or keys on it.

With privacy off, the same manifest, trainers and contributors give the same model as real processes do, bit for bit.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from fedseg.federation.exchange import (
    Finished,
    Instruction,
    LedgerClaim,
    Progress,
    Published,
    RingVector,
    WithdrawReason,
)
from fedseg.federation.vector import Layout, Weights
from fedseg.plan import Manifest
from fedseg.runtime import events
from fedseg.runtime.archive import MemoryArchive
from fedseg.runtime.coordinator import Coordinator
from fedseg.runtime.ports import Charger, Entropy, Standing, Trainer
from fedseg.runtime.site import SiteRunner
from fedseg.secagg.messages import Advertisement, Envelopes, MaskedInput, Shares


@dataclass(frozen=True)
class LocalLink:
    """A site's end of a connection to a coordinator in the same process."""

    coordinator: Coordinator
    site: str

    def manifest(self) -> bytes:
        """See `federation.exchange.Link`."""
        return self.coordinator.manifest()

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

    def unmask(self, session: bytes, shares: Shares) -> None:
        """See `federation.exchange.Link`."""
        self.coordinator.unmask(self.site, session, shares)

    def withdraw(self, session: bytes, reason: WithdrawReason) -> None:
        """See `federation.exchange.Link`."""
        self.coordinator.withdraw(self.site, session, reason)

    def claim(self, claim: LedgerClaim) -> None:
        """See `federation.exchange.Link`."""
        self.coordinator.claim(self.site, claim)

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
    """A site's memory without a disk: the newest model and the newest contribution."""

    def __init__(self) -> None:
        self._weights: Weights | None = None
        self._contribution: tuple[int, str, RingVector] | None = None
        self._standing = Standing()

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

    def standing(self) -> Standing:
        """How far this site has gone."""
        return self._standing

    def save_standing(self, standing: Standing) -> None:
        """Keep it."""
        self._standing = standing

    def save_contribution(self, round_number: int, model: str, vector: RingVector) -> None:
        """Keep the newest contribution."""
        self._contribution = (round_number, model, vector)


def simulate(
    manifest: Manifest,
    initial: Weights,
    layout: Layout,
    trainers: Mapping[str, Trainer],
    *,
    entropy: Entropy,
    chargers: Mapping[str, Charger] | None = None,
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
        notify: Told what happens at the server.

    Returns:
        The final model, which every site has computed too, and the history of rounds.

    Raises:
        FedsegError: whatever ended a site's part.
    """
    archive = MemoryArchive()
    archive.save_model(0, initial, None)
    coordinator = Coordinator(manifest, archive, notify=notify)
    runners = [
        SiteRunner(
            site, manifest, LocalLink(coordinator, site), trainers[site], layout, SiteMemory(),
            charger=(chargers or {}).get(site), entropy=entropy, notify=lambda _: None, stop=threading.Event(),
        )
        for site in manifest.plan.site_names
    ]  # fmt: skip
    with ThreadPoolExecutor(len(runners)) as pool:
        finished = [future.result() for future in [pool.submit(runner.run) for runner in runners]]
    for runner in runners:
        runner.say_goodbye()
    return coordinator.weights, finished[0]
