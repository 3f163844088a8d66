"""What passes between a site and the server in a study, free of any wire.

Sites only dial out: a site polls, the server answers with one `Instruction`. `Link` is a site's end; `rpc.channel`
implements it over gRPC, `runtime.simulation` in one process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from fedseg.errors import ProtocolError
from fedseg.federation.vector import Weights
from fedseg.secagg.messages import Advertisement, Consistency, Envelopes, MaskedInput, SessionHeader, Shares
from fedseg.secagg.wire import Writer

RingVector = NDArray[np.uint32]
Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""

CLOSE, COUNTERSIGN, SERVER = "Close", "Countersign", "server"
"""Steps and name under which the server signs what it publishes, and what sites claim of their ledgers."""

WithdrawReason = Literal["budget", "interrupted", "refused", "failed"]


@dataclass(frozen=True)
class Wait:
    """Nothing to do: ask again."""

    reason: str


@dataclass(frozen=True)
class Best:
    """The best model so far by the sites' summed validation Dice, in a study that rolls back.

    Attributes:
        model_hash: The model.
        score: Its mean Dice over the sites that have validation subjects, 0 to 1.
    """

    model_hash: str
    score: float


@dataclass(frozen=True)
class Head:
    """The study's newest model and how a site that holds the one before gets there.

    Attributes:
        model_hash: The newest model.
        closed_round: The round that made it; 0 for the initial model.
        base_model: The model that this round started from.
        best: What a collapse would roll back to; None before the first score, and in studies that keep none.
    """

    model_hash: str
    closed_round: int
    base_model: str
    best: Best | None = None


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
class Confirm:
    """The set of contributors (U3) is fixed: sign it, once."""

    session: bytes
    contributors: tuple[str, ...]


@dataclass(frozen=True)
class Unmask:
    """Enough contributors have signed U2 and U3: release the shares that those two imply.

    Attributes:
        session: sid0.
        signatures: Of step 4, by site. Which share to release is never said: a site derives it.
    """

    session: bytes
    signatures: Mapping[str, bytes] = field(repr=False)


@dataclass(frozen=True)
class Finished:
    """The study is complete.

    Attributes:
        head: The final model.
        history: (round, contributors) of every closed round that trained.
        evaluation: The round of the newest published evaluation of that model; 0 where there is none.
    """

    head: Head
    history: tuple[tuple[int, tuple[str, ...]], ...]
    evaluation: int = 0


@dataclass(frozen=True)
class Paused:
    """The server stops for now; a later `join` goes on."""

    reason: str


Instruction = Wait | Join | ShareKeys | Submit | Confirm | Unmask | Finished | Paused


@dataclass(frozen=True)
class Published:
    """The published sum of a closed round, from which every site computes the next model itself.

    Attributes:
        round: The round.
        contributors: Whose updates are in it.
        total: uint32[length of the encoding], the ring sum.
        session: sid of the session that made it (sid0 in plain mode).
        next_model: The model that the server makes of it.
        signature: The server's, over all of this (`statement`).
    """

    round: int
    contributors: tuple[str, ...]
    total: RingVector = field(repr=False)
    session: bytes
    next_model: str
    signature: bytes = b""

    @property
    def digest(self) -> bytes:
        """SHA-256 of the sum's little-endian bytes."""
        return hashlib.sha256(np.ascontiguousarray(self.total, dtype="<u4").view(np.uint8).data).digest()

    @property
    def statement(self) -> bytes:
        """What the server signs: two of them for one round are evidence that it lied."""
        return closing_statement(self.round, self.contributors, self.digest, self.next_model)


def closing_statement(round_number: int, contributors: tuple[str, ...], digest: bytes, next_model: str) -> bytes:
    """What the server signs of a closed round: round, contributors, hash of the sum, next model."""
    writer = Writer(b"fedseg/federation/v1/closed\0").uint(round_number, 4).names(contributors)
    return writer.raw(digest).raw(bytes.fromhex(next_model)).done()


@dataclass(frozen=True)
class Enrolled:
    """Who has enrolled so far: what a roster is made of once all have.

    Attributes:
        server_key: The Ed25519 key with which the server signs what it publishes.
        keys: The sites' Ed25519 protocol keys.
    """

    server_key: bytes
    keys: Mapping[str, bytes]


@dataclass(frozen=True)
class LedgerClaim:
    """What a site says of its own ledger in this study, before the first gradient of a round: public quantities only.

    Attributes:
        rounds: Rounds charged; each attempt that was computed counts.
        steps: Private steps charged.
        head: Hash of the ledger's newest charge, in hex.
        previous: The newest head that the server has countersigned, as it told this site; None: it has none.
        round: The round that was charged last.
        attempt: Its attempt.
    """

    rounds: int
    steps: int
    head: str
    previous: str | None = None
    round: int = 0
    attempt: int = 0


@dataclass(frozen=True)
class Countersigned:
    """A claim with the server's signature: proof for the site, and for everybody that it cannot go back behind it.

    Attributes:
        plan_hash: The version of the plan under which it was claimed, in hex.
        rounds: As in `LedgerClaim`; the four below too.
        signature: The server's, by the key of the roster; over `statement`, in step `COUNTERSIGN` of session
            `plan_hash`.
    """

    plan_hash: str
    rounds: int
    steps: int
    head: str
    round: int
    attempt: int
    signature: bytes = b""

    @classmethod
    def of(cls, claim: LedgerClaim, plan_hash: str) -> Countersigned:
        """What the server signs of a claim."""
        return cls(plan_hash, claim.rounds, claim.steps, claim.head, claim.round, claim.attempt)

    def statement(self, study: str, site: str) -> bytes:
        """The bytes that are signed: everything but the signature, and in which study and for which site.

        Raises:
            ProtocolError: A number is out of range.
        """
        numbers = ((self.rounds, 4), (self.steps, 8), (self.round, 4), (self.attempt, 4))
        if not all(0 <= value < 256**size for value, size in numbers):
            raise ProtocolError("a claim with numbers that no ledger has")
        writer = Writer(b"fedseg/federation/v1/countersigned\0").text(study).text(site)
        for value, size in numbers:
            writer.uint(value, size)
        return writer.raw(bytes.fromhex(self.plan_hash)).raw(bytes.fromhex(self.head)).done()


class Link(Protocol):
    """A site's end of the connection. Every method may raise `LinkError` or `ProtocolError`."""

    def manifest(self, plan_hash: str | None = None) -> bytes:
        """The study's manifest, canonical JSON; the newest, or that of an earlier version of the plan."""

    def roster(self) -> Enrolled:
        """Who has enrolled, and the server's key."""

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

    def confirm(self, session: bytes, message: Consistency) -> None:
        """Step 4."""

    def unmask(self, session: bytes, shares: Shares) -> None:
        """Step 5."""

    def withdraw(self, session: bytes, reason: WithdrawReason) -> None:
        """Leave a session, so that nobody waits for this site."""

    def claim(self, claim: LedgerClaim) -> Countersigned:
        """Say how much of the privacy budget this study has used here.

        Raises:
            LedgerError: The server has countersigned another head since `claim.previous`.
        """

    def countersigned(self) -> Countersigned | None:
        """The newest claim of this site that the server has countersigned; None before the first."""

    def model(self, model_hash: str, progress: Progress) -> Weights:
        """The model of that hash, which the caller checks."""

    def published(self, round_number: int, progress: Progress) -> Published:
        """The sum of a closed round."""

    def evaluated(self, round_number: int, progress: Progress) -> Published:
        """The sum of an evaluation."""

    def holds(self, model_hash: str) -> None:
        """Say that this site has stored the study's final model: it needs the server no more."""
