"""Countersigned ledger heads: a site cannot quietly go back to an older copy of its privacy ledger.

Before the first gradient of a private round a site charges its ledger and sends its new head with the newest one that
the server has signed for it; the server signs only what goes on from that (compare and swap). At start and before each
charge the site fetches the newest signed head, and trains only where its own chain has it. Heads are kept by the name
of the site: to enrol again resets nothing.

That finds a ledger that was lost, set back or copied *within one server's studies*: another study's server knows of no
head. A server that has forgotten everything is no way around it: the site also requires every countersigned head of its
own log. What was noted beside the data (`runtime.hospital`) counts in all studies. The server sees hashes and counts of
rounds, never a subject.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fedseg.errors import LedgerError, ProtocolError
from fedseg.federation.exchange import COUNTERSIGN, SERVER, Countersigned, LedgerClaim, Link
from fedseg.plan.manifest import Manifest
from fedseg.runtime.archive import Archive
from fedseg.runtime.evidence import append_once, countersigned_entry
from fedseg.runtime.ports import Charger, Evidence
from fedseg.secagg.signing import sign, verify
from fedseg.store.study_db import ClaimRow

SET_BACK = (
    "nothing was trained; restore the newest copy of the ledger's folder, the one that has this head, and go on with "
    "that one alone; without it this site cannot train in this study again, as what its subjects have spent is unknown"
)


class Countersigner:
    """The server's part.

    Args:
        manifest: The study.
        archive: Where claims are kept.
        key: The server's private Ed25519 key.
        evidence: The server's log.
    """

    def __init__(self, manifest: Manifest, archive: Archive, key: bytes, evidence: Evidence) -> None:
        self._manifest, self._archive, self._key, self._evidence = manifest, archive, key, evidence

    def newest(self, site: str) -> Countersigned | None:
        """The newest countersigned claim of a site."""
        row = self._archive.newest_claim(site)
        if row is None:
            return None
        return Countersigned(row.plan, row.rounds, row.steps, row.head, row.round, row.attempt, row.signature)

    def judge(self, site: str, claim: LedgerClaim) -> Countersigned:
        """What the answer to a claim is; the same one where it was answered before.

        Raises:
            LedgerError: It does not go on from the newest countersigned claim.
            ProtocolError: The study has no privacy, or the claim cannot be.
        """
        if not self._manifest.plan.private:
            raise ProtocolError("this study charges no ledger")
        newest, plan = self.newest(site), self._manifest.plan_hash
        if newest is not None and replace(newest, signature=b"") == Countersigned.of(claim, newest.plan_hash):
            return newest
        _check_descent(site, newest, claim)
        unsigned = Countersigned.of(claim, plan)
        statement = unsigned.statement(self._manifest.study, site)
        return replace(unsigned, signature=sign(self._key, COUNTERSIGN, bytes.fromhex(plan), SERVER, statement))

    def keep(self, site: str, signed: Countersigned) -> None:
        """Write an answer down, in the log first: what a site holds of the server's, the server's log has."""
        append_once(self._evidence, "countersigned", countersigned_entry(site, signed))
        row = ClaimRow(
            site, signed.rounds, signed.steps, signed.head, signed.plan_hash, signed.round, signed.attempt,
            signed.signature,
        )  # fmt: skip
        self._archive.save_claim(row)


def _check_descent(site: str, newest: Countersigned | None, claim: LedgerClaim) -> None:
    head = None if newest is None else newest.head
    fewer = newest is not None and (claim.rounds < newest.rounds or claim.steps < newest.steps)
    if claim.previous == head and not fewer:
        return
    known = "no head" if newest is None else f"head {newest.head[:12]}… after {newest.rounds} charged rounds"
    said = "no head" if claim.previous is None else f"head {claim.previous[:12]}…"
    raise LedgerError(
        f"the privacy ledger of {site} does not go on from where it stood: the server has countersigned {known}, this "
        f"claim of {claim.rounds} rounds goes on from {said}; an older copy of the ledger is in use, or two at once",
        hint=SET_BACK,
    )


class WitnessedLedger:
    """A site's part: its ledger, held against what the server has countersigned.

    Args:
        charger: The ledger, as this study uses it.
        manifest: The study.
        site: This site.
        link: The connection to the server.
        evidence: The site's log.
        patiently: Calls, and calls again while the server cannot be reached.
    """

    def __init__(
        self,
        charger: Charger,
        manifest: Manifest,
        site: str,
        link: Link,
        evidence: Evidence,
        patiently: Callable[[Callable[[], Any]], Any],
    ) -> None:
        self._charger, self._manifest, self._site = charger, manifest, site
        self._link, self._evidence, self._patiently = link, evidence, patiently
        self._held: set[str] = set()

    def check(self, server_key: bytes) -> str | None:
        """Refuse to go on with a ledger that lacks a head that was countersigned.

        It must hold every one in this site's log, and the newest one that the server knows.

        Returns:
            The server's newest head; None where it knows of none.

        Raises:
            LedgerError: The ledger lacks one, cannot be trusted, or the signature is not the server's.
        """
        self._check_log()
        signed: Countersigned | None = self._patiently(self._link.countersigned)
        if signed is None:
            self._charger.check_countersigned(None)
            return None
        self._verify(signed, server_key)
        self._charger.check_countersigned(signed.head)
        # After a crash the log may lack what the server has answered.
        append_once(self._evidence, "countersigned", countersigned_entry(self._site, signed))
        return signed.head

    def charge(self, round_number: int, attempt: int, model: str, server_key: bytes) -> bool:
        """Charge a round and have the ledger's head countersigned, before the round's first gradient.

        Returns:
            False where this attempt was charged before: its gradients may have been computed, so never again.

        Raises:
            BudgetError: A budget would be exceeded; nothing is charged.
            LedgerError: As `check`, or the server refuses the head. What was charged stays charged.
        """
        previous = self.check(server_key)
        if not self._charger.charge(round_number, attempt, model):
            return False
        claim = replace(self._charger.claim(), previous=previous, round=round_number, attempt=attempt)
        signed: Countersigned = self._patiently(lambda: self._link.claim(claim))
        if replace(signed, signature=b"") != Countersigned.of(claim, self._manifest.plan_hash):
            raise LedgerError("the server has countersigned another claim than this site's", hint=_TALK)
        self._verify(signed, server_key)
        self._charger.note_countersigned(signed.head, signed.signature)
        append_once(self._evidence, "countersigned", countersigned_entry(self._site, signed))
        return True

    def commit(self, round_number: int, attempt: int) -> None:
        """Note that the round was trained to its end."""
        self._charger.commit(round_number, attempt)

    def _check_log(self) -> None:
        """Each head once a process: a ledger that is set back under an open file is refused by its journal."""
        mine = [body for kind, body in self._evidence.entries() if kind == "countersigned"]
        for head in dict.fromkeys(body["head"] for body in mine if body["site"] == self._site):
            if head not in self._held:
                self._charger.check_countersigned(head)
                self._held.add(head)

    def _verify(self, signed: Countersigned, server_key: bytes) -> None:
        statement = signed.statement(self._manifest.study, self._site)
        session = bytes.fromhex(signed.plan_hash)
        try:
            verify(server_key, COUNTERSIGN, session, SERVER, statement, signed.signature)
        except ProtocolError:
            what = "the signature under this ledger's countersigned head is not that of the server in the roster"
            raise LedgerError(what, hint=_TALK) from None


_TALK = "nothing was trained; talk to the coordinator: the server is broken, or lies"
