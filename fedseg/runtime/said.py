"""What a site has said in its sessions, by its own log: nothing is said twice in two ways."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedseg.errors import ProtocolError
from fedseg.federation.exchange import Published
from fedseg.runtime.ports import Evidence
from fedseg.secagg.messages import SessionHeader


class Said:
    """A site's log, read by session.

    Args:
        evidence: The log.
    """

    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence
        self._bodies: dict[tuple[str, str], Mapping[str, Any]] = {}
        self._headers: dict[str, SessionHeader] = {}
        self._signed: dict[str, tuple[str, ...]] = {}
        self._used: dict[tuple[bytes, bool], dict[int, tuple[str, ...]]] = {}
        for kind, body in evidence.entries():
            self._note(kind, body)

    @property
    def newest(self) -> SessionHeader | None:
        """The session that began last; None before the first."""
        return next(reversed(self._headers.values()), None)

    def has(self, kind: str, session: bytes) -> bool:
        """Whether a record of that kind names the session."""
        return (kind, session.hex()) in self._bodies

    def base_of(self, round_number: int) -> str | None:
        """The model from which a round that this site took part in started, in hex."""
        models = [header.model_hash.hex() for header in self._headers.values() if header.round == round_number]
        return models[-1] if models else None

    @property
    def evaluations(self) -> frozenset[int]:
        """The evaluations to which this site has given its scores, by round."""
        given = (self._headers[session] for kind, session in self._bodies if kind == "masked")
        return frozenset(header.round for header in given if header.evaluation)

    def denies(self, published: Published) -> bool:
        """Whether the sum can't be one: of others than this site has signed for, or of an attempt too many.

        Once step 5 was asked for, a round has no other attempt.
        """
        sid = published.session.hex()
        if sid in self._signed:
            return self._signed[sid] != published.contributors
        answered = [session for kind, session in self._bodies if kind == "unmask"]
        return published.round in [self._headers[session].round for session in answered if session in self._headers]

    def earlier_sums(self, header: SessionHeader) -> dict[int, tuple[str, ...]]:
        """Contributors, as this site signed them, of other rounds that used the session's model for the same."""
        used = self._used.get((header.model_hash, header.evaluation), {})
        return {number: members for number, members in used.items() if number != header.round}

    def other_evaluations(self, header: SessionHeader) -> dict[int, tuple[str, ...]]:
        """Contributors, as this site signed them, of evaluations of other models; none where this session trains."""
        if not header.evaluation:
            return {}
        used = self._used.items()
        others = [rounds for (model, evaluation), rounds in used if evaluation and model != header.model_hash]
        return {number: members for rounds in others for number, members in rounds.items() if number != header.round}

    def say(self, kind: str, session: bytes, body: Mapping[str, object]) -> None:
        """Append to the log what is not in it yet.

        Raises:
            ProtocolError: This site has signed something else there: whatever was about to leave must not.
        """
        entry = {"session": session.hex(), **body}
        said = self._bodies.get((kind, session.hex()))
        if said is None:
            self._evidence.append(kind, entry)
            self._note(kind, entry)
        elif said.get("signature") != entry.get("signature"):
            raise ProtocolError(f"this site has said something else in this session ({kind})", hint="nothing was sent")

    def _note(self, kind: str, body: Mapping[str, Any]) -> None:
        session = str(body.get("session"))
        self._bodies.setdefault((kind, session), body)
        if kind == "session":
            self._headers[session] = SessionHeader.from_bytes(bytes.fromhex(body["header"]))
        if kind == "confirmed" and session in self._headers:
            header, members = self._headers[session], tuple(body["u3"])
            self._used.setdefault((header.model_hash, header.evaluation), {})[header.round] = members
            self._signed[body["sid"]] = members
