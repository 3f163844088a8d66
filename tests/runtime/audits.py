"""Honest audit logs of whole studies, made by the protocol itself, to be tampered with and signed again."""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from fedseg.federation.exchange import CLOSE, SERVER, Published, closing_statement
from fedseg.runtime.audit import Audit, Log, load, verify
from fedseg.runtime.evidence import roster_entry, session_entry
from fedseg.secagg import signing
from fedseg.secagg.aggregator import PlainAggregator, SecureAggregator
from fedseg.secagg.messages import Consistency, MaskedInput, SessionHeader
from fedseg.secagg.site import Masked, Shared, advertise, contribute
from fedseg.secagg.thresholds import Thresholds
from fedseg.store.audit_log import LOG, AuditLog
from fedseg.store.audit_records import Role
from tests.secagg.helpers import (
    NAMES,
    STUDY,
    Vector,
    entropy,
    identity,
    inputs_of,
    key,
    roster_of,
    session,
)

Body = dict[str, Any]
Told = list[tuple[str, Body]]
A, B, C, D = NAMES[:4]
FIRST_MODEL = bytes(range(32, 64))


def model_after(number: int) -> str:
    """The model that a round makes: any hash will do."""
    return hashlib.sha256(f"model {number}".encode()).hexdigest()


@dataclass
class Story:
    """A study of the first `n` names: what each party tells its log, in order.

    Attributes:
        rounds: Of its plan.
        told: (kind, body) by party; "server" is the server.
    """

    n: int = 4
    plain: bool = False
    rounds: int = 20
    told: dict[str, Told] = field(default_factory=dict)
    model: bytes = FIRST_MODEL

    def __post_init__(self) -> None:
        """Everybody pins the roster."""
        for party in self.parties:
            self.tell(party, "roster", roster_entry(roster_of(self.header(1)), self.rounds))

    @property
    def sites(self) -> tuple[str, ...]:
        return NAMES[: self.n]

    @property
    def parties(self) -> tuple[str, ...]:
        return (SERVER, *self.sites)

    def header(self, number: int, attempt: int = 1, **more: Any) -> SessionHeader:
        if self.plain:
            more["thresholds"] = Thresholds.plain(self.n, self.n - 1)
        return session(self.n, round=number, attempt=attempt, model_hash=self.model, **more)

    def tell(self, party: str, kind: str, body: Body) -> None:
        self.told.setdefault(party, []).append((kind, copy.deepcopy(body)))

    # What happens.

    def open(self, header: SessionHeader, absent: Sequence[str] = ()) -> None:
        for party in self.parties:
            if party not in absent:
                self.tell(party, "session", session_entry(header))

    def abort(self, header: SessionHeader, why: str = "too few", absent: Sequence[str] = ()) -> None:
        for party in self.parties:
            if party not in absent:
                self.tell(party, "aborted", {"session": header.sid0().hex(), "why": why})

    def round(
        self,
        number: int,
        attempt: int = 1,
        *,
        absent: Sequence[str] = (),
        lost: Sequence[str] = (),
        silent: Sequence[str] = (),
        publish: bool = True,
        **changes: Any,
    ) -> Published:
        """A round to its end.

        Args:
            number: Its number.
            attempt: At it.
            absent: Sites that take no part; they hear of the sum.
            lost: Sites that send no input; they hear of the sum.
            silent: Sites that sign nothing in step 4.
            publish: Whether anybody hears of the sum.
            changes: Of the header.
        """
        header = self.header(number, attempt, **changes)
        self.open(header, absent)
        sum_of = self._plain if self.plain else self._secure
        sid, contributors, total = sum_of(header, absent, lost, silent)
        unsigned = Published(number, contributors, total, sid, model_after(number))
        published = replace(
            unsigned, signature=signing.sign(key(SERVER), CLOSE, unsigned.session, SERVER, unsigned.statement)
        )
        if publish:
            for party in self.parties:
                self.tell(party, "closed", closed_body(published, self.model.hex()))
            self.model = bytes.fromhex(published.next_model)
        return published

    def _secure(
        self, header: SessionHeader, absent: Sequence[str], lost: Sequence[str], silent: Sequence[str]
    ) -> tuple[bytes, tuple[str, ...], Vector]:
        server, states = self._share(header, absent)
        masked = self._mask(server, states, lost)
        u3 = server.close_mask()
        sets = _sets(header, server.sid, next(iter(masked.values())).u2)
        self.tell(SERVER, "received", sets | {"inputs": _inputs(server)})
        sets["u3"] = list(u3)
        signed = {site: state.confirm(u3) for site, state in masked.items() if site not in silent}
        for site, state in signed.items():
            server.consistency(state.message)
            self.tell(site, "confirmed", sets | {"signature": state.message.signature.hex()})
        signatures = server.close_consistency()
        given = sets | {"signatures": {site: each.hex() for site, each in signatures.items()}}
        for party in (SERVER, *signed):
            self.tell(party, "unmask", given)
        for state in signed.values():
            server.shares(state.unmask(signatures).message)
        return server.sid, u3, server.close_unmask()

    def _share(self, header: SessionHeader, absent: Sequence[str]) -> tuple[SecureAggregator, dict[str, Shared]]:
        server = SecureAggregator(header, roster_of(header))
        present = [site for site in header.sites if site not in absent]
        states = {
            site: advertise(header, identity(site, header), entropy(f"{site}/{header.round}")) for site in present
        }
        for advertised in states.values():
            server.advertise(advertised.message)
        u1 = server.close_advertise()
        shared = {site: states[site].share_keys(u1, entropy(f"{site}/share")) for site in present}
        for each in shared.values():
            server.share(each.message)
        return server, shared

    def _mask(self, server: SecureAggregator, states: dict[str, Shared], lost: Sequence[str]) -> dict[str, Masked]:
        u2, inputs, masked = server.close_share(), inputs_of(server.header), {}
        for site in u2:
            if site not in lost:
                state, y = states[site].mask(server.envelopes_for(site), u2, inputs[site])
                server.mask(state.message, y)
                self.tell(site, "masked", _sets(server.header, server.sid, u2) | _said(state.message))
                masked[site] = state
        return masked

    def _plain(
        self, header: SessionHeader, absent: Sequence[str], lost: Sequence[str], _silent: Sequence[str]
    ) -> tuple[bytes, tuple[str, ...], Vector]:
        server, inputs = PlainAggregator(header, roster_of(header)), inputs_of(header)
        for site in header.sites:
            if site not in absent:
                server.join(site)
        joined = server.close_join()
        sets = _sets(header, header.sid0(), joined)
        for site in joined:
            if site not in lost:
                message = contribute(header, identity(site, header), joined, inputs[site])
                server.mask(message, inputs[site])
                self.tell(site, "masked", sets | _said(message))
        contributors = server.close_mask()
        self.tell(SERVER, "received", sets | {"inputs": _inputs(server)})
        return header.sid0(), contributors, server.close_unmask()

    # What a liar does.

    def bodies(self, party: str, kind: str) -> list[Body]:
        """All bodies of a kind in one party's log, to be changed in place."""
        return [body for each, body in self.told[party] if each == kind]

    def drop(self, party: str, kind: str, which: int = 0) -> Body:
        """Take a record out."""
        body = self.bodies(party, kind)[which]
        self.told[party] = [each for each in self.told[party] if each[1] is not body]
        return body

    def place(self, party: str, kind: str, which: int = 0) -> int:
        """Where a record stands in `told`."""
        body = self.bodies(party, kind)[which]
        return next(place for place, each in enumerate(self.told[party]) if each[1] is body)

    def without(self, party: str, kind: str, which: int) -> None:
        """Cut a log off before a record."""
        self.told[party] = self.told[party][: self.place(party, kind, which)]

    # On disk.

    def write(self, folder: Path, parties: Sequence[str] | None = None) -> dict[str, Path]:
        """The folders of the parties, each with its log, signed by its own key."""
        folders = {}
        for party in self.parties if parties is None else parties:
            folders[party] = folder / party
            folders[party].mkdir(parents=True)
            role: Role = "server" if party == SERVER else "site"
            with AuditLog.create(folders[party] / LOG, key(party), role, party, STUDY) as log:
                for kind, body in self.told[party]:
                    log.append(kind, body)
        return folders

    def logs(self, folder: Path, parties: Sequence[str] | None = None) -> list[Log]:
        return [load(path) for path in self.write(folder, parties).values()]

    def audit(self, folder: Path, parties: Sequence[str] | None = None) -> Audit:
        return verify(self.logs(folder, parties))


def closed_body(published: Published, base_model: str, **changes: Any) -> Body:
    return {
        "round": published.round,
        "session": published.session.hex(),
        "contributors": list(published.contributors),
        "base_model": base_model,
        "next_model": published.next_model,
        "weight": len(published.contributors),
        "sum": published.digest.hex(),
        "relative_error": 1e-5,
        "score": None,
        "rolled_back": False,
        "signature": published.signature.hex(),
    } | changes


def _sets(header: SessionHeader, sid: bytes, u2: Sequence[str]) -> Body:
    return {"session": header.sid0().hex(), "sid": sid.hex(), "u2": list(u2)}


def _said(message: MaskedInput) -> Body:
    return {"digest": message.digest.hex(), "signature": message.signature.hex()}


def _inputs(server: SecureAggregator | PlainAggregator) -> Body:
    return {site: _said(message) for site, message in server.inputs.items()}


def a_story() -> Story:
    """Three rounds of four sites, a copy each time: dakar gives no input in the second, and is absent from the third.

    The third is closed at its second attempt.
    """
    return copy.deepcopy(_a_story())


@cache
def _a_story() -> Story:
    story = Story()
    story.round(1)
    story.round(2, lost=[D])
    header = story.header(3)
    story.open(header, absent=[D])
    story.abort(header, absent=[D])
    story.round(3, 2, absent=[D])
    return story


def vote(site: str, body: Body) -> str:
    """What a site signs in step 4, or would sign if it lied, of the sets in a record."""
    who = identity(site, Story().header(1))
    return Consistency.signed(bytes.fromhex(body["sid"]), who, body["u2"], body["u3"]).signature.hex()


def close_again(body: Body, **changes: Any) -> None:
    """Change what a record says of a closed round, signed by the server as if it were so."""
    body.update(changes)
    contributors, total = tuple(body["contributors"]), bytes.fromhex(body["sum"])
    statement = closing_statement(body["round"], contributors, total, body["next_model"])
    body["signature"] = signing.sign(key(SERVER), CLOSE, bytes.fromhex(body["session"]), SERVER, statement).hex()


def shows(audit: Audit, party: str, where: str, what: str, proves: str = "") -> None:
    """One finding, and this is it."""
    assert len(audit.findings) == 1, audit.findings
    (finding,) = audit.findings
    assert finding.party == party
    for said, expected in ((finding.where, where), (finding.what, what), (finding.proves, proves)):
        assert re.search(expected, said), finding
