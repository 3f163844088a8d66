"""What a site's part in a study is given: its trainer, its memory, its ledger."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedseg.federation.evaluation import Measured
from fedseg.federation.exchange import Best, LedgerClaim, RingVector
from fedseg.federation.parts import Kept
from fedseg.federation.vector import Weights
from fedseg.privacy.distributed import NoiseShare

Entropy = Callable[[int], bytes]
OnStep = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""
ShouldStop = Callable[[], bool]
Arrays = Mapping[str, NDArray[np.float32]]


class Trainer(Protocol):
    """Local training: weights in, update out; and what a model is worth here, where a plan rolls back."""

    def update(
        self,
        weights: Arrays,
        round_number: int,
        *,
        entropy: Entropy,
        on_step: OnStep,
        should_stop: ShouldStop,
        correction: Arrays | None = None,
        towards: Arrays | None = None,
    ) -> Arrays:
        """Weights after minus weights before one round's steps, of the layers that train.

        A strategy may add a correction to every gradient, or pull to another model than `weights`; only then are they
        given. `Interrupted` where `should_stop` said so.
        """

    def gradient_sum(
        self, weights: Arrays, share: NoiseShare, *, entropy: Entropy, on_step: OnStep, should_stop: ShouldStop
    ) -> Mapping[str, NDArray[np.int64]]:
        """This site's part of one pooled step: the sum over the subjects drawn, and its share of the noise.

        Each subject's gradient over the layers that train is clipped to C, scaled by S, truncated toward zero.
        `Interrupted` where `should_stop` said so.
        """

    def score(self, weights: Arrays, *, should_stop: ShouldStop) -> float | None:
        """Mean Dice of the tissues over the site's validation subjects, 0 to 1; None where it has none.

        Changes no later update by a bit. `Interrupted` where `should_stop` said so.
        """


class Scorer(Protocol):
    """How good a model is on this site's kept-back subjects, scored as `fedseg evaluate` does."""

    def measure(self, weights: Arrays, *, on_scan: OnStep, should_stop: ShouldStop) -> Sequence[Measured]:
        """The scores of each subject of the split `test`; none where there is none.

        `on_scan` is called with (scans done, scans in all). `Interrupted` where `should_stop` said so; another
        `FedsegError` where a scan cannot be scored.
        """


class SessionMemory(Protocol):
    """What a site keeps of the newest session of secure aggregation."""

    def session(self) -> bytes | None:
        """The session's state, as it was saved last."""

    def save_session(self, data: bytes) -> None:
        """Keep it, fsynced, before the message that it holds leaves. It is secret; what it replaces is erased."""

    def masked(self, session: bytes) -> RingVector | None:
        """The masked update of that session (sid0), where it was made."""

    def save_masked(self, session: bytes, vector: RingVector) -> None:
        """Keep it, fsynced, before it leaves."""

    def scored(self, model: str) -> str | None:
        """Hash of the statistics of that model that were given to an evaluation, in hex; None where none were."""

    def save_scored(self, model: str, digest: str) -> None:
        """Keep it for good, fsynced, before they are masked for the first time."""


class Evidence(Protocol):
    """A party's own log: hash-chained, signed, never changed (`store.audit_log` says what is in it)."""

    def entries(self) -> Sequence[tuple[str, Mapping[str, Any]]]:
        """(kind, body) of everything in it."""

    def append(self, kind: str, body: Mapping[str, object]) -> object:
        """Write one entry, durable when this returns."""


class KeptMemory(Protocol):
    """What of a site's rounds never leaves it: its own normalisation, model or correction, by the plan's strategy."""

    def kept(self, closed: int) -> Kept | None:
        """What was kept of the newest round up to `closed`; None where nothing was."""

    def save_kept(self, round_number: int, closed: int, vector: Weights) -> None:
        """Keep a round's, fsynced, and what `kept(closed)` gives; all else has served."""

    def finish(self, needed: int | None) -> None:
        """Erase what a complete study has no more use for, all that was kept but `kept(needed)` (None: all of it)."""


class Memory(SessionMemory, KeptMemory, Protocol):
    """What a site keeps on its own disk between messages."""

    def weights(self) -> Weights | None:
        """The newest model it holds."""

    def save_weights(self, weights: Weights) -> None:
        """Keep the newest model."""

    def contribution(self, round_number: int, model: str) -> RingVector | None:
        """The encoded update of that round and model, where it was computed."""

    def save_contribution(self, round_number: int, model: str, vector: RingVector) -> None:
        """Keep it, fsynced, before it is masked for the first time."""

    def best(self) -> Best | None:
        """What a collapse would roll back to, as this site has computed it."""

    def save_best(self, best: Best) -> None:
        """Keep it."""


class Charger(Protocol):
    """The site's privacy ledger, as one study uses it."""

    def charge(self, round_number: int, attempt: int, model: str) -> bool:
        """Charge a whole round before its first gradient.

        Returns:
            False where this attempt was charged before: its gradients may have been computed, so never again.

        Raises:
            BudgetError: if a budget would be exceeded.
            LedgerError: if the ledger cannot be trusted.
        """

    def commit(self, round_number: int, attempt: int) -> None:
        """Note that the round was trained to its end."""

    def claim(self) -> LedgerClaim:
        """What the study is told: rounds and steps charged to it, and the ledger's head."""

    def check_countersigned(self, head: str | None) -> None:
        """Refuse a ledger that lacks a head which the server has countersigned; None: it has countersigned none.

        Raises:
            LedgerError: It was rolled back, or is not the ledger that it was.
        """

    def note_countersigned(self, head: str, signature: bytes) -> None:
        """Write down, durable when this returns, that the server has signed that head."""
