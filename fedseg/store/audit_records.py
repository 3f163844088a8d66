"""What may stand in a party's audit log: each kind of record and the fields that it has, no more and no fewer.

Checked when a record is written and when a log from elsewhere is read. Hashes, keys and signatures are lower-case hex,
lists of sites ascend. `session` is sid0; the `sid` of a plain session is its sid0. What the fields mean together is
`runtime.audit_history`'s to judge.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints, ValidationError

from fedseg.document import Section
from fedseg.errors import LedgerError, ProtocolError
from fedseg.secagg.session import MAX_STUDY_NAME
from fedseg.secagg.wire import MAX_BYTES, check_name

Role = Literal["site", "server"]


def _name(value: str) -> str:
    return _checked(value, "site name", 64)


def _study(value: str) -> str:
    return _checked(value, "study name", MAX_STUDY_NAME)


def _checked(value: str, what: str, cap: int) -> str:
    try:
        check_name(value, what, cap)
    except ProtocolError as error:
        raise ValueError(error.what) from error
    return value


def _ascending(names: tuple[str, ...]) -> tuple[str, ...]:
    if any(first >= second for first, second in pairwise(names)):
        raise ValueError("not sorted, or names a site twice")
    return names


Name = Annotated[str, AfterValidator(_name)]
Study = Annotated[str, AfterValidator(_study)]
Names = Annotated[tuple[Name, ...], AfterValidator(_ascending)]
Hash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Signature = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{128}$")]
Count = Annotated[int, Field(ge=0, lt=2**32)]


class Begin(Section):
    """The first record: whose log this is, and the key that signs it."""

    role: Role
    party: Name
    key: Hash
    study: Study


class RosterPinned(Section):
    """The roster under which what follows happens, and how many rounds its plan has."""

    fingerprint: Hash
    plan_hash: Hash
    rounds: Count
    server_key: Hash
    keys: dict[Name, Hash]


class Opened(Section):
    """One attempt at a round: its header, and sid0."""

    header: Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{2})+$", max_length=2 * MAX_BYTES)]
    session: Hash


class Masked(Section):
    """Step 3 at a site, before its input leaves."""

    session: Hash
    sid: Hash
    u2: Names
    digest: Hash
    signature: Signature


class Input(Section):
    """What a site said of its input."""

    digest: Hash
    signature: Signature


class Received(Section):
    """Step 3 at the server, once it is closed: whose input is in the sum."""

    session: Hash
    sid: Hash
    u2: Names
    inputs: dict[Name, Input]


class Confirmed(Section):
    """Step 4 at a site, before its signature leaves."""

    session: Hash
    sid: Hash
    u2: Names
    u3: Names
    signature: Signature


class Unmask(Section):
    """Step 5: at a site before it answers, at the server when it asks. The signatures are those of step 4."""

    session: Hash
    sid: Hash
    u2: Names
    u3: Names
    signatures: dict[Name, Signature]


class Closed(Section):
    """A published sum and the model that it makes. `session` is its sid: an absent site knows no sid0."""

    round: Count
    session: Hash
    contributors: Names
    base_model: Hash
    next_model: Hash
    weight: Annotated[int, Field(ge=0)]
    sum: Hash
    relative_error: float | None
    score: float | None
    rolled_back: bool
    signature: Signature


class Evaluated(Section):
    """A published evaluation of a model, which stays as it is. `session` is its sid.

    `model` is the state's hash, as in the session's header; `released` that of the weights that were scored, as in the
    model file; `statistics` the whole sum (`federation.evaluation`). The signature is the server's, as of a `Closed`
    round whose sum this is and whose next model is `model`.
    """

    round: Count
    session: Hash
    contributors: Names
    model: Hash
    released: Hash
    statistics: Annotated[tuple[Count, ...], Field(min_length=1, max_length=1000)]
    signature: Signature

    @property
    def base_model(self) -> str:
        """Where it started."""
        return self.model

    @property
    def next_model(self) -> str:
        """Where it ended."""
        return self.model

    @property
    def sum(self) -> str:
        """SHA-256 of the sum's little-endian bytes."""
        return hashlib.sha256(b"".join(value.to_bytes(4, "little") for value in self.statistics)).hexdigest()


class Fetched(Section):
    """A model that a site took on the server's word, of a round that it says this site has missed."""

    round: Count
    base_model: Hash
    model: Hash


class Believed(Section):
    """The best model so far, as a site took it on the server's word, at a round that it says this site has missed."""

    round: Count
    model: Hash
    score: Annotated[float, Field(ge=0, le=1)]


class Countersigned(Section):
    """A head of a site's privacy ledger with the server's signature: at the server before it answers, then there."""

    site: Name
    plan_hash: Hash
    rounds: Count
    steps: Annotated[int, Field(ge=0, lt=2**64)]
    head: Hash
    round: Count
    attempt: Count
    signature: Signature


class Extended(Section):
    """From here on another version of the plan holds, which goes on after `last_round` of the version before."""

    plan_hash: Hash
    parent: Hash
    last_round: Count


class Aborted(Section):
    """An attempt is over for this party, without a sum."""

    session: Hash
    why: Annotated[str, StringConstraints(max_length=4000)]


class Reused(Section):
    """A second sum over one model, with other contributors or the same; or an evaluation of others than one before."""

    model: Hash
    round: Count
    earlier_round: Count
    u3: Names
    earlier_u3: Names


class Repair(Section):
    """The end of a record that a crash had cut short was dropped: it never counted."""

    discarded_bytes: Annotated[int, Field(ge=1)]


Body = (
    Begin
    | RosterPinned
    | Opened
    | Masked
    | Received
    | Confirmed
    | Unmask
    | Closed
    | Evaluated
    | Fetched
    | Believed
    | Countersigned
    | Extended
    | Aborted
    | Reused
    | Repair
)
KINDS: Mapping[str, type[Body]] = {
    "begin": Begin,
    "roster": RosterPinned,
    "session": Opened,
    "masked": Masked,
    "received": Received,
    "confirmed": Confirmed,
    "unmask": Unmask,
    "closed": Closed,
    "evaluated": Evaluated,
    "fetched": Fetched,
    "believed": Believed,
    "countersigned": Countersigned,
    "extended": Extended,
    "aborted": Aborted,
    "reused": Reused,
    "repair": Repair,
}


def parse_body(kind: str, body: Mapping[str, object]) -> Body:
    """What a record says.

    Args:
        kind: What it is.
        body: JSON values, without the log's own signature.

    Raises:
        LedgerError: No such kind, or not exactly its fields; names the first that is wrong.
    """
    model = KINDS.get(kind)
    if model is None:
        raise LedgerError(f"there is no kind of record {ascii(kind)[:40]}")
    try:
        return model.model_validate_json(json.dumps(body, allow_nan=False))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ascii(".".join(str(part) for part in first["loc"]))[1:-1][:60]
        raise LedgerError(f"this {kind} record is wrong at '{field}': {first['msg']}") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise LedgerError(f"this {kind} record cannot be written as JSON: {error}") from None
