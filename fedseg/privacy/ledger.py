"""A hospital's privacy ledger as a value: what was charged, to whom, and whether one more round may be.

Six kinds of record: `open` (the first, and only the first), `identity` (keys that are one subject), `charge` (before a
round's first gradient), `commit` (the round's update was handed over: a note, it frees nothing), `countersigned` (the
server has signed a head of this ledger: a note) and `repair` (a half-written last line was dropped).
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from fedseg.errors import BudgetError, LedgerError
from fedseg.privacy.accounting import delta_cap, per_subject, site_epsilon
from fedseg.privacy.chain import Record, seal, verify
from fedseg.privacy.events import RoundCharge
from fedseg.privacy.identity import Link, components, tells_more

Budget = tuple[float, float]
"""(epsilon, delta)."""

Key = tuple[str, int, int]
"""(study, round, attempt)."""

_HASH, _SIGNATURE = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{128}")


@dataclass(frozen=True)
class Countersigned:
    """What a server has signed: that this ledger, for this study and site, stood at this head."""

    study: str
    site: str
    head: str
    signature: str

    def to_json(self) -> dict[str, object]:
        """Plain JSON values, one for each field."""
        return dict(vars(self))


@dataclass(frozen=True)
class Ledger:
    """Verified records and what is in them. Build it with `from_records`."""

    records: tuple[Record, ...]
    charged: tuple[RoundCharge, ...]
    committed: frozenset[Key]
    links: tuple[Link, ...] = ()
    countersigned: tuple[Countersigned, ...] = ()

    @classmethod
    def from_records(cls, records: Iterable[Record], where: str = "ledger") -> Ledger:
        """Verify everything: the chain, the kinds, each record, and that none is charged or committed twice.

        Raises:
            LedgerError: Something is wrong; says `where` and the line, from 1.
        """
        chain = tuple(records)
        verify(chain, where)
        if not chain or chain[0].kind != "open":
            raise LedgerError(
                "the ledger does not begin with its opening record", where=where, hint="restore it from a backup"
            )
        book = _Book()
        for record in chain:
            try:
                book.add(record)
            except LedgerError as error:
                raise LedgerError(error.what, where=f"{where}, line {record.sequence + 1}") from error
        return cls(
            chain, tuple(book.charges.values()), frozenset(book.committed), tuple(book.links), tuple(book.countersigned)
        )

    @property
    def head(self) -> str:
        """Hash of the last record: names this ledger's whole history."""
        return self.records[-1].hash

    @property
    def identity(self) -> str:
        """Hash of the opening record: names this ledger, whatever is added to it."""
        return self.records[0].hash

    @cached_property
    def groups(self) -> Mapping[str, str]:
        """Every linked key and the key that stands for all that are linked to it; see `identity.components`."""
        return components(self.links)

    def contains(self, head: str) -> bool:
        """Whether `head` was once this ledger's head, as it must be if nothing was rolled back since."""
        return any(record.hash == head for record in self.records)

    def charges(self, study: str | None = None) -> tuple[RoundCharge, ...]:
        """All charges in order, or those of one study."""
        return tuple(charge for charge in self.charged if study is None or charge.study == study)

    def is_charged(self, study: str, round_number: int, attempt: int) -> bool:
        """Whether that attempt stands in the ledger, so that computing it (again) would need a new one."""
        return any(charge.key == (study, round_number, attempt) for charge in self.charged)

    def epsilon(self, study: str | None, delta: float) -> float:
        """The largest epsilon of any subject, over one study's charges or over all (None); 0 when there are none."""
        return site_epsilon(self.charges(study), delta, self.groups)

    def would_spend(self, charge: RoundCharge, delta: float, study: str | None = None) -> float:
        """The largest epsilon, after `charge`, of the subjects that it names; over one study's charges or over all."""
        return self._largest((*self.charges(study), charge), charge, delta)

    def spent_by(self, charge: RoundCharge, delta: float, study: str | None = None) -> float:
        """The largest epsilon, before `charge`, of the subjects that it names."""
        return self._largest(self.charges(study), charge, delta)

    def charge_record(self, charge: RoundCharge, time: str = "") -> Record:
        """The record that charges a round; append it before the first gradient.

        Raises:
            LedgerError: That attempt at that round is charged already, or the study has gone on under another plan.
        """
        _refuse_twice(charge.key, {known.key for known in self.charged})
        _refuse_old_plan(charge, [known.plan_hash for known in self.charged if known.study == charge.study])
        return seal(self.records[-1], "charge", charge.to_json(), time)

    def commit_record(self, study: str, round_number: int, attempt: int, time: str = "") -> Record:
        """The record that notes a charged round as handed over.

        Raises:
            LedgerError: It was not charged, or is committed already.
        """
        key = (study, round_number, attempt)
        _check_commit(key, {known.key for known in self.charged}, self.committed)
        return seal(self.records[-1], "commit", {"study": study, "round": round_number, "attempt": attempt}, time)

    def identity_record(self, links: Iterable[Link], time: str = "") -> Record | None:
        """The record that says which keys are one subject; None where all of it is known.

        Append it before the charge that it matters to.
        """
        news = [sorted(set(link)) for link in links if tells_more(link, self.groups)]
        return seal(self.records[-1], "identity", {"subjects": sorted(news)}, time) if news else None

    def countersigned_record(self, note: Countersigned, time: str = "") -> Record:
        """The record that notes what a server has signed.

        Raises:
            LedgerError: This ledger never stood at that head, or that is no signature.
        """
        _check_countersigned(note, {record.hash for record in self.records})
        return seal(self.records[-1], "countersigned", note.to_json(), time)

    def require_head(self, head: str, where: str = "ledger") -> None:
        """Check that the ledger goes on from a head that somebody else remembers.

        Raises:
            LedgerError: It does not: records that were there are gone.
        """
        if not self.contains(head):
            raise LedgerError(
                f"the ledger was rolled back: it lacks the record {head[:12]}…",
                where=where,
                hint="restore the newest copy of both its files, with that record in it; until then nothing may train",
            )

    def unlinked(self) -> Ledger:
        """The same charges, as if every key were a subject of its own: only to say what the links change."""
        return replace(self, links=())

    def _largest(self, charges: tuple[RoundCharge, ...], charge: RoundCharge, delta: float) -> float:
        named = per_subject(charges, delta, self.groups)
        return max((named.get(subject, 0.0) for subject in charge.subjects), default=0.0)


def check_budget(ledger: Ledger, charge: RoundCharge, *, study_budget: Budget, lifetime_budget: Budget | None) -> None:
    """Refuse a round that would take any subject past the study's or the hospital's budget.

    Spending the budget to the last bit is allowed; the comparison is exact.

    Args:
        ledger: Everything that this hospital has charged.
        charge: The round about to start.
        study_budget: (epsilon, delta) of the plan, for this study's charges.
        lifetime_budget: (epsilon, delta) of the site's policy, for all charges; None when the policy sets none.

    Raises:
        BudgetError: It would; says what is spent, what is left and what the round needs. Or a delta is above the cap.
    """
    _check_limit(ledger, charge, study_budget, charge.study, "this study's")
    if lifetime_budget is not None:
        _check_limit(ledger, charge, lifetime_budget, None, "this hospital's lifetime")


def check_delta(delta: float, public_subjects: int, whose: str) -> None:
    """Refuse a delta that says nothing at a site of N0 subjects.

    Raises:
        BudgetError: It is above min(1e-3, 1 / (10 N0)); says `whose` it is.
    """
    cap = delta_cap(public_subjects)
    if not 0 < delta <= cap:
        raise BudgetError(
            f"{whose} delta {delta:g} must lie above 0 and be at most {cap:g}",
            hint=f"the cap is min(1e-3, 1/(10 N0)) with N0 = {public_subjects}",
        )


def _check_limit(ledger: Ledger, charge: RoundCharge, budget: Budget, study: str | None, whose: str) -> None:
    epsilon, delta = budget
    check_delta(delta, charge.public_subjects, whose)
    after = ledger.would_spend(charge, delta, study)
    if after <= epsilon:
        return
    spent = ledger.spent_by(charge, delta, study)
    linked = ledger.unlinked().would_spend(charge, delta, study) <= epsilon
    raise BudgetError(
        f"{whose} privacy budget does not cover round {charge.round}: epsilon {spent:.4g} of {epsilon:.4g} spent; "
        f"{max(epsilon - spent, 0.0):.4g} left; this round needs {after - spent:.4g} (at delta {delta:g})"
        + (_LINKED if linked else ""),
        where=f"study {charge.study}",
        hint="nothing was trained; " + (_LINKED_HINT if linked else _LARGER if study else _POLICY),
    )


_POLICY = "the limit is lifetime_epsilon of this hospital's own policy"
_LARGER = "a larger budget is a new plan version that every site approves again"
_LINKED = "; it would cover it if some subjects were not charged under several ids that share scans or a subject_key"
_LINKED_HINT = (
    "give all ids of one pregnancy one subject_key, and each pregnancy the same one in every study; "
    "what was spent under its other ids stays spent"
)


@dataclass
class _Book:
    """What a chain's records say, as far as it was read."""

    charges: dict[Key, RoundCharge] = field(default_factory=dict)
    committed: set[Key] = field(default_factory=set)
    links: list[Link] = field(default_factory=list)
    countersigned: list[Countersigned] = field(default_factory=list)
    hashes: set[str] = field(default_factory=set)
    plans: dict[str, dict[str, None]] = field(default_factory=dict)

    def add(self, record: Record) -> None:
        """Take in the next record; LedgerError where it makes no sense after those before."""
        match record.kind:
            case "charge":
                self._charge(RoundCharge.from_json(record.body))
            case "commit":
                key = _commit_key(record.body)
                _check_commit(key, self.charges, self.committed)
                self.committed.add(key)
            case "identity":
                self.links += _links(record.body)
            case "countersigned":
                self.countersigned.append(_countersigned(record.body, self.hashes))
            case kind if kind != ("repair" if record.sequence else "open"):
                raise LedgerError(f"a record of kind {kind!r} does not belong here")
        self.hashes.add(record.hash)

    def _charge(self, charge: RoundCharge) -> None:
        _refuse_twice(charge.key, self.charges)
        plans = self.plans.setdefault(charge.study, {})
        _refuse_old_plan(charge, list(plans))
        plans[charge.plan_hash] = None
        self.charges[charge.key] = charge


def _refuse_twice(key: Key, known: Container[Key]) -> None:
    if key in known:
        study, round_number, attempt = key
        raise LedgerError(
            f"round {round_number}, attempt {attempt} of study {study} is charged already",
            hint="computing a round again is a new attempt with a charge of its own",
        )


def _refuse_old_plan(charge: RoundCharge, plans: Sequence[str]) -> None:
    """Refuse a version of the plan that was charged before the newest one; `plans` are the study's, in order."""
    if charge.plan_hash in plans and charge.plan_hash != plans[-1]:
        raise LedgerError(
            f"round {charge.round} of study {charge.study} belongs to plan {charge.plan_hash[:12]}…, "
            f"but the study has gone on under plan {plans[-1][:12]}…",
            hint="go on with the newest version of the plan",
        )


def _links(body: Mapping[str, object]) -> list[Link]:
    subjects = body.get("subjects")
    if len(body) != 1 or not isinstance(subjects, list) or not subjects or not all(map(_is_link, subjects)):
        raise LedgerError("an identity must list, for each subject, two or more keyed hashes, and nothing else")
    return [tuple(link) for link in subjects]


def _is_link(link: object) -> bool:
    if not isinstance(link, list) or not all(isinstance(key, str) and _HASH.fullmatch(key) for key in link):
        return False
    return len(link) > 1 and link == sorted(set(link))


def _countersigned(body: Mapping[str, object], heads: Container[str]) -> Countersigned:
    names = ("study", "site", "head", "signature")
    values = [value for name in names if isinstance(value := body.get(name), str)]
    if len(body) != len(names) or len(values) != len(names):
        raise LedgerError("a countersigned record must name study, site, head and signature, and nothing else")
    note = Countersigned(*values)
    _check_countersigned(note, heads)
    return note


def _check_countersigned(note: Countersigned, heads: Container[str]) -> None:
    if note.head not in heads:
        raise LedgerError(f"this ledger never stood at the countersigned head {note.head[:12]}…")
    if not _SIGNATURE.fullmatch(note.signature):
        raise LedgerError("a countersignature is 128 hex digits (Ed25519)")


def _commit_key(body: Mapping[str, object]) -> Key:
    study, round_number, attempt = (body.get(name) for name in ("study", "round", "attempt"))
    if len(body) != 3 or not isinstance(study, str) or type(round_number) is not int or type(attempt) is not int:
        raise LedgerError("a commit must name its study, round and attempt, and nothing else")
    return study, round_number, attempt


def _check_commit(key: Key, charged: Container[Key], committed: Container[Key]) -> None:
    study, round_number, attempt = key
    if key not in charged:
        raise LedgerError(f"round {round_number}, attempt {attempt} of study {study} was never charged")
    if key in committed:
        raise LedgerError(f"round {round_number}, attempt {attempt} of study {study} is committed already")
