"""What server and sites write into their logs alike, and a log without a disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedseg.federation.closing import Closing
from fedseg.federation.exchange import Countersigned, Published
from fedseg.runtime.ports import Evidence
from fedseg.secagg.messages import SessionHeader
from fedseg.secagg.roster import Roster

MOST_WHY = 1000


class MemoryEvidence:
    """A log without a disk and without signatures, for simulation."""

    def __init__(self) -> None:
        self._entries: list[tuple[str, Mapping[str, Any]]] = []

    def entries(self) -> Sequence[tuple[str, Mapping[str, Any]]]:
        """See `runtime.ports.Evidence`."""
        return tuple(self._entries)

    def append(self, kind: str, body: Mapping[str, object]) -> None:
        """See `runtime.ports.Evidence`."""
        self._entries.append((kind, body))


def roster_entry(roster: Roster, rounds: int) -> dict[str, object]:
    """The roster under which what follows happens, and how many rounds its plan has."""
    return {
        "fingerprint": roster.fingerprint.hex(),
        "plan_hash": roster.plan_hash.hex(),
        "rounds": rounds,
        "server_key": roster.server_key.hex(),
        "keys": {site: key.hex() for site, key in roster.keys.items()},
    }


def session_entry(header: SessionHeader) -> dict[str, object]:
    """The session that begins."""
    return {"header": header.to_bytes().hex(), "session": header.sid0().hex()}


def aborted_entry(session: str, why: str) -> dict[str, object]:
    """An attempt that is over without a sum; `session` is sid0 in hex. Of a long reason the log keeps the beginning."""
    return {"session": session, "why": why[:MOST_WHY]}


def closed_entry(published: Published, closing: Closing, base_model: str) -> dict[str, object]:
    """A round's end: whose updates, from which model to which."""
    return {
        "round": published.round,
        "session": published.session.hex(),
        "contributors": list(published.contributors),
        "base_model": base_model,
        "next_model": published.next_model,
        "weight": closing.mean.weight,
        "sum": published.digest.hex(),
        "relative_error": closing.mean.relative_error,
        "score": closing.mean.score,
        "rolled_back": closing.back,
        "signature": published.signature.hex(),
    }


def evaluated_entry(published: Published, released: str) -> dict[str, object]:
    """An evaluation's end: whose scores, of which model, and all that they add up to."""
    return {
        "round": published.round,
        "session": published.session.hex(),
        "contributors": list(published.contributors),
        "model": published.next_model,
        "released": released,
        "statistics": published.total.tolist(),
        "signature": published.signature.hex(),
    }


def countersigned_entry(site: str, signed: Countersigned) -> dict[str, object]:
    """A head of a site's privacy ledger that the server has countersigned."""
    return {
        "site": site,
        "plan_hash": signed.plan_hash,
        "rounds": signed.rounds,
        "steps": signed.steps,
        "head": signed.head,
        "round": signed.round,
        "attempt": signed.attempt,
        "signature": signed.signature.hex(),
    }


def append_once(evidence: Evidence, kind: str, body: Mapping[str, object]) -> None:
    """Append what is not in the log yet: after a crash the same is said again."""
    if (kind, body) not in evidence.entries():
        evidence.append(kind, body)


def logged_roster(evidence: Sequence[tuple[str, Mapping[str, Any]]]) -> str | None:
    """The fingerprint (hex) of the roster that a log is under; None before the first."""
    found = [body["fingerprint"] for kind, body in evidence if kind == "roster"]
    return found[-1] if found else None
