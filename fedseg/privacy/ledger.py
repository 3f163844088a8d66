"""A hospital's privacy ledger as a value: what was charged, to whom, and whether one more round may be.

Four kinds of record: `open` (the first, and only the first), `charge` (before a round's first gradient), `commit`
(the round's update was handed over: a note, it frees nothing) and `repair` (a half-written last line was dropped).
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass

from fedseg.errors import BudgetError, LedgerError
from fedseg.privacy.accounting import delta_cap, per_subject
from fedseg.privacy.chain import Record, seal, verify
from fedseg.privacy.events import RoundCharge

Budget = tuple[float, float]
"""(epsilon, delta)."""

Key = tuple[str, int, int]
"""(study, round, attempt)."""


@dataclass(frozen=True)
class Ledger:
    """Verified records and the charges in them. Build it with `from_records`."""

    records: tuple[Record, ...]
    charged: tuple[RoundCharge, ...]
    committed: frozenset[Key]

    @classmethod
    def from_records(cls, records: Iterable[Record], where: str = "ledger") -> Ledger:
        """Verify everything: the chain, the kinds, each charge, and that none is charged or committed twice.

        Raises:
            LedgerError: Something is wrong; says `where` and the line, from 1.
        """
        chain = tuple(records)
        verify(chain, where)
        if not chain or chain[0].kind != "open":
            raise LedgerError(
                "the ledger does not begin with its opening record", where=where, hint="restore it from a backup"
            )
        charges: dict[Key, RoundCharge] = {}
        committed: set[Key] = set()
        for record in chain[1:]:
            try:
                _replay(record, charges, committed)
            except LedgerError as error:
                raise LedgerError(error.what, where=f"{where}, line {record.sequence + 1}") from error
        return cls(chain, tuple(charges.values()), frozenset(committed))

    @property
    def head(self) -> str:
        """Hash of the last record: names this ledger's whole history."""
        return self.records[-1].hash

    @property
    def identity(self) -> str:
        """Hash of the opening record: names this ledger, whatever is added to it."""
        return self.records[0].hash

    def contains(self, head: str) -> bool:
        """Whether `head` was once this ledger's head, as it must be if nothing was rolled back since."""
        return any(record.hash == head for record in self.records)

    def charges(self, study: str | None = None) -> tuple[RoundCharge, ...]:
        """All charges in order, or those of one study."""
        return tuple(charge for charge in self.charged if study is None or charge.study == study)

    def is_charged(self, study: str, round_number: int, attempt: int) -> bool:
        """Whether that attempt stands in the ledger, so that computing it (again) would need a new one."""
        return any(charge.key == (study, round_number, attempt) for charge in self.charged)

    def would_spend(self, charge: RoundCharge, delta: float, study: str | None = None) -> float:
        """The largest epsilon, after `charge`, of the subjects that it names; over one study's charges or over all."""
        return self._largest((*self.charges(study), charge), charge, delta)

    def spent_by(self, charge: RoundCharge, delta: float, study: str | None = None) -> float:
        """The largest epsilon, before `charge`, of the subjects that it names."""
        return self._largest(self.charges(study), charge, delta)

    def charge_record(self, charge: RoundCharge, time: str = "") -> Record:
        """The record that charges a round; append it before the first gradient.

        Raises:
            LedgerError: That attempt at that round is charged already.
        """
        _refuse_twice(charge.key, {known.key for known in self.charged})
        return seal(self.records[-1], "charge", charge.to_json(), time)

    def commit_record(self, study: str, round_number: int, attempt: int, time: str = "") -> Record:
        """The record that notes a charged round as handed over.

        Raises:
            LedgerError: It was not charged, or is committed already.
        """
        key = (study, round_number, attempt)
        _check_commit(key, {known.key for known in self.charged}, self.committed)
        return seal(self.records[-1], "commit", {"study": study, "round": round_number, "attempt": attempt}, time)

    @staticmethod
    def _largest(charges: tuple[RoundCharge, ...], charge: RoundCharge, delta: float) -> float:
        named = per_subject(charges, delta)
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


def _check_limit(ledger: Ledger, charge: RoundCharge, budget: Budget, study: str | None, whose: str) -> None:
    epsilon, delta = budget
    cap = delta_cap(charge.public_subjects)
    if not 0 < delta <= cap:
        raise BudgetError(
            f"{whose} delta {delta:g} must lie above 0 and be at most {cap:g}",
            hint=f"the cap is min(1e-3, 1/(10 N0)) with N0 = {charge.public_subjects}",
        )
    after = ledger.would_spend(charge, delta, study)
    if after <= epsilon:
        return
    spent = ledger.spent_by(charge, delta, study)
    raise BudgetError(
        f"{whose} privacy budget does not cover round {charge.round}: epsilon {spent:.4g} of {epsilon:.4g} spent; "
        f"{max(epsilon - spent, 0.0):.4g} left; this round needs {after - spent:.4g} (at delta {delta:g})",
        where=f"study {charge.study}",
        hint="nothing was trained; a larger budget is a new plan version that every site approves again",
    )


def _replay(record: Record, charges: dict[Key, RoundCharge], committed: set[Key]) -> None:
    if record.kind == "charge":
        charge = RoundCharge.from_json(record.body)
        _refuse_twice(charge.key, charges)
        charges[charge.key] = charge
    elif record.kind == "commit":
        key = _commit_key(record.body)
        _check_commit(key, charges, committed)
        committed.add(key)
    elif record.kind != "repair":
        raise LedgerError(f"a record of kind {record.kind!r} does not belong here")


def _refuse_twice(key: Key, known: Container[Key]) -> None:
    if key in known:
        study, round_number, attempt = key
        raise LedgerError(
            f"round {round_number}, attempt {attempt} of study {study} is charged already",
            hint="computing a round again is a new attempt with a charge of its own",
        )


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
