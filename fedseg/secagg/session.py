"""What one attempt at one sum is about: study, plan, round, model, ring, roster and thresholds."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import StrEnum

from fedseg.errors import PlanError, ProtocolError
from fedseg.secagg.encoding import RING_BITS, Encoding
from fedseg.secagg.integers import IntegerCode
from fedseg.secagg.statistics import StatisticsCode
from fedseg.secagg.thresholds import MAX_PLAIN_SITES, Thresholds
from fedseg.secagg.wire import Reader, Writer, check_name

DOMAIN = b"fedseg/secagg/v1/"
HASH_SIZE = 32
MAX_ATTEMPTS = 2
MAX_STUDY_NAME = 200


class Phase(StrEnum):
    """The steps of one attempt, named as in Bonawitz et al. 2017."""

    ADVERTISE_KEYS = "AdvertiseKeys"
    SHARE_KEYS = "ShareKeys"
    MASKED_INPUT = "MaskedInputCollection"
    CONSISTENCY = "ConsistencyCheck"
    UNMASKING = "Unmasking"


Code = Encoding | IntegerCode
"""Of rounds that train."""


@dataclass(frozen=True)
class SessionHeader:
    """Step 0: what one attempt at one sum is about. All parties must hold the same, to the bit.

    Args:
        study: The study's name.
        plan_hash: SHA-256 of the resolved plan.
        round: From 0 or 1, as the study counts.
        attempt: 1, or 2 after a failed first.
        model_hash: SHA-256 of the weights that the round starts from.
        dimension: Coordinates of an update, or statistics of an evaluation; a vector has more, see `Encoding`.
        ring_bits: 32.
        scale: Of the encoding, a power of two.
        clip: L2 norm bound of an update; of one subject's gradient where integers are summed; of a distance in mm in an
            evaluation.
        weight_max: The largest weight; in an evaluation the most subjects of a site.
        scored: Whether a validation score rides behind the weight.
        integers: Whether vectors are noised integers (`IntegerCode`) rather than updates (`Encoding`).
        evaluation: Whether vectors are statistics of the model (`StatisticsCode`), which then stays as it is.
        sites: The whole roster, sorted: absent ones too.
        roster: The roster's fingerprint (`roster.Roster`): names and keys.
        c: Colluding sites assumed.
        t: Shares that reconstruct; 0 in plain mode.
        m: The fewest contributors.

    Raises:
        ProtocolError: A field out of range, or a roster that is unsorted or names a site twice.
        PlanError: Thresholds or scale that don't follow from the rest.
    """

    study: str
    plan_hash: bytes
    round: int
    attempt: int
    model_hash: bytes
    dimension: int
    ring_bits: int
    scale: float
    clip: float
    weight_max: int
    scored: bool
    integers: bool
    evaluation: bool
    sites: tuple[str, ...]
    roster: bytes
    c: int
    t: int
    m: int

    def __post_init__(self) -> None:
        """Check every field, and prove the encoding's bounds."""
        check_name(self.study, "study name", MAX_STUDY_NAME)
        check_hash(self.plan_hash, "plan hash")
        check_hash(self.model_hash, "model hash")
        check_hash(self.roster, "roster's fingerprint")
        _check_roster(self.sites)
        if self.scored + self.integers + self.evaluation > 1:
            raise ProtocolError("a session has one kind of code")
        if not 0 <= self.round < 2**32 or not 1 <= self.attempt <= MAX_ATTEMPTS:
            raise ProtocolError(f"round {self.round}, attempt {self.attempt} cannot be")
        _ = self.thresholds
        if (self.ring_bits, self.scale) != (RING_BITS, self.encoding.scale):
            raise PlanError(
                f"ring of {self.ring_bits} bits and scale {self.scale} do not follow from the plan",
                where="session header",
                hint=f"{RING_BITS} bits and scale {self.encoding.scale}",
            )

    @classmethod
    def of(
        cls,
        *,
        study: str,
        plan_hash: bytes,
        round: int,
        attempt: int,
        model_hash: bytes,
        encoding: Code | StatisticsCode,
        sites: Sequence[str],
        roster: bytes,
        thresholds: Thresholds,
    ) -> SessionHeader:
        """The header with the numbers of `encoding` and `thresholds`; `sites` in any order."""
        return cls(
            study,
            plan_hash,
            round,
            attempt,
            model_hash,
            encoding.dimension,
            RING_BITS,
            encoding.scale,
            float(encoding.clip),
            encoding.weight_max,
            encoding.scored,
            isinstance(encoding, IntegerCode),
            isinstance(encoding, StatisticsCode),
            tuple(sorted(sites)),
            roster,
            thresholds.c,
            thresholds.t,
            thresholds.m,
        )

    @property
    def thresholds(self) -> Thresholds:
        """The header's n, c, t and m."""
        return Thresholds(len(self.sites), self.c, self.t, self.m)

    @property
    def encoding(self) -> Code | StatisticsCode:
        """The code that follows from the header."""
        if self.evaluation:
            return StatisticsCode(len(self.sites), self.dimension, self.weight_max, self.clip)
        if self.integers:
            return IntegerCode(len(self.sites), self.clip, self.dimension, self.scale, self.weight_max, self.scored)
        return Encoding(len(self.sites), self.clip, self.weight_max, self.dimension, self.scored)

    @property
    def length(self) -> int:
        """Coordinates of a masked vector."""
        return self.encoding.length

    def index(self, site: str) -> int:
        """The site's place in the roster, from 1: its index in every sharing.

        Raises:
            ProtocolError: The roster doesn't name it.
        """
        if site not in self.sites:
            raise ProtocolError(f"the roster of study {self.study} does not name {site}")
        return self.sites.index(site) + 1

    def check_offer(self, offered: SessionHeader) -> None:
        """Refuse a session other than this one, which a site has put together from what it knows itself.

        Raises:
            ProtocolError: Names the first field that differs.
        """
        for item in fields(self):
            if getattr(self, item.name) != getattr(offered, item.name):
                raise ProtocolError(
                    f"the session's {item.name.replace('_', ' ')} is not the one this site expects",
                    where="session header",
                    hint="the server and this site hold different plans, models or rounds; nothing was sent",
                )

    def to_bytes(self) -> bytes:
        """The canonical encoding."""
        writer = Writer(DOMAIN + b"header\0").text(self.study).raw(self.plan_hash)
        writer.uint(self.round, 4).uint(self.attempt, 1).raw(self.model_hash).uint(self.dimension, 4)
        writer.uint(self.ring_bits, 1).double(self.scale).double(self.clip).uint(self.weight_max, 4)
        writer.uint(self.scored + 2 * self.integers + 3 * self.evaluation, 1).names(self.sites).raw(self.roster)
        return writer.uint(self.c, 2).uint(self.t, 2).uint(self.m, 2).done()

    @classmethod
    def from_bytes(cls, data: bytes) -> SessionHeader:
        """The header in exactly these bytes.

        Raises:
            ProtocolError: Anything else.
        """
        reader = Reader(data, DOMAIN + b"header\0", "session header")
        study, plan_hash = reader.text("study name", MAX_STUDY_NAME), reader.raw(HASH_SIZE)
        round, attempt, model_hash = reader.uint(4), reader.uint(1), reader.raw(HASH_SIZE)
        dimension, ring_bits, scale, clip = reader.uint(4), reader.uint(1), reader.double(), reader.double()
        weight_max, kind = reader.uint(4), reader.uint(1)
        if kind > 3:
            raise ProtocolError(f"a code of kind {kind} is unknown", where="session header")
        sites, roster = reader.names(MAX_PLAIN_SITES), reader.raw(HASH_SIZE)
        c, t, m = reader.uint(2), reader.uint(2), reader.uint(2)
        reader.done()
        try:
            return cls(
                study,
                plan_hash,
                round,
                attempt,
                model_hash,
                dimension,
                ring_bits,
                scale,
                clip,
                weight_max,
                kind == 1,
                kind == 2,
                kind == 3,
                sites,
                roster,
                c,
                t,
                m,
            )
        except PlanError as error:
            raise ProtocolError(error.what, where="session header", hint=error.hint) from error

    def sid0(self) -> bytes:
        """The hash that step 1 is bound to."""
        return hashlib.sha256(DOMAIN + b"sid0\0" + self.to_bytes()).digest()


def check_hash(data: bytes, what: str) -> None:
    """Refuse what is no SHA-256.

    Raises:
        ProtocolError: Another number of bytes.
    """
    if len(data) != HASH_SIZE:
        raise ProtocolError(f"a {what} has {HASH_SIZE} bytes, not {len(data)}")


def _check_roster(sites: tuple[str, ...]) -> None:
    for site in sites:
        check_name(site)
    if list(sites) != sorted(set(sites)):
        raise ProtocolError("the roster is not sorted, or names a site twice")
