"""What passes between a site and the server in a study, free of any wire.

Sites only dial out: a site polls, the server answers with one `Instruction`. `Link` is a site's end; `rpc.channel`
implements it over gRPC, `runtime.simulation` in one process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from fedseg.federation.vector import Weights
from fedseg.secagg.messages import Advertisement, Envelopes, MaskedInput, SessionHeader, Shares

RingVector = NDArray[np.uint32]
Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""

WithdrawReason = Literal["budget", "interrupted", "refused", "failed"]


@dataclass(frozen=True)
class Wait:
    """Nothing to do: ask again."""

    reason: str


@dataclass(frozen=True)
class Head:
    """The study's newest model and how a site that holds the one before gets there.

    Attributes:
        model_hash: The newest model.
        closed_round: The round that made it; 0 for the initial model.
        base_model: The model that this round started from.
    """

    model_hash: str
    closed_round: int
    base_model: str


@dataclass(frozen=True)
class Join:
    """A session opens: check its header, advertise, train."""

    header: SessionHeader
    head: Head


@dataclass(frozen=True)
class ShareKeys:
    """Everybody's advertisements (U1) are in."""

    session: bytes
    advertisements: tuple[Advertisement, ...]


@dataclass(frozen=True)
class Submit:
    """The set of sharers (U2) is fixed: mask the update and send it. In plain mode the two collections are empty."""

    session: bytes
    sharers: tuple[str, ...]
    envelopes: Mapping[str, bytes] = field(repr=False)


@dataclass(frozen=True)
class Unmask:
    """The set of contributors (U3) is fixed: release the shares that this implies."""

    session: bytes
    contributors: tuple[str, ...]


@dataclass(frozen=True)
class Finished:
    """The study is complete.

    Attributes:
        head: The final model.
        history: (round, contributors) of every closed round.
    """

    head: Head
    history: tuple[tuple[int, tuple[str, ...]], ...]


@dataclass(frozen=True)
class Paused:
    """The server stops for now; a later `join` goes on."""

    reason: str


Instruction = Wait | Join | ShareKeys | Submit | Unmask | Finished | Paused


@dataclass(frozen=True)
class Published:
    """The published sum of a closed round, from which every site computes the next model itself.

    Attributes:
        round: The round.
        contributors: Whose updates are in it.
        total: uint32[d + 1], the ring sum; its last coordinate is the total weight.
    """

    round: int
    contributors: tuple[str, ...]
    total: RingVector = field(repr=False)


@dataclass(frozen=True)
class LedgerClaim:
    """What a site says of its own ledger in this study: public quantities only.

    Attributes:
        rounds: Rounds charged.
        steps: Private steps charged.
        head: SHA-256 of the ledger's last record, in hex.
    """

    rounds: int
    steps: int
    head: str


class Link(Protocol):
    """A site's end of the connection. Every method may raise `LinkError` or `ProtocolError`."""

    def manifest(self) -> bytes:
        """The study's manifest, canonical JSON."""

    def poll(self, session: bytes | None) -> Instruction:
        """Ask what to do.

        Args:
            session: The session (sid0) that this site holds keys for; None after a restart.
        """

    def advertise(self, session: bytes, advertisement: Advertisement | None) -> None:
        """Step 1 of secure aggregation; in plain mode None: only the readiness to contribute."""

    def share_keys(self, session: bytes, envelopes: Envelopes) -> None:
        """Step 2."""

    def upload(self, session: bytes, message: MaskedInput, vector: RingVector, progress: Progress) -> None:
        """Step 3; in plain mode the vector is not masked."""

    def unmask(self, session: bytes, shares: Shares) -> None:
        """Step 5."""

    def withdraw(self, session: bytes, reason: WithdrawReason) -> None:
        """Leave a session, so that nobody waits for this site."""

    def claim(self, claim: LedgerClaim) -> None:
        """Say how much of the privacy budget this study has used here."""

    def model(self, model_hash: str, progress: Progress) -> Weights:
        """The model of that hash, which the caller checks."""

    def published(self, round_number: int, progress: Progress) -> Published:
        """The sum of a closed round."""
