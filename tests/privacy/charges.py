from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace

from fedseg.privacy.chain import Record, seal
from fedseg.privacy.events import RoundCharge
from fedseg.privacy.ledger import Ledger


def key(name: str) -> str:
    """A stand-in for a subject's keyed hash."""
    return hashlib.sha256(name.encode()).hexdigest()


def charge(round_number: int = 1, subjects: Iterable[str] = "ABC", **changes: object) -> RoundCharge:
    """A cheap, valid charge of one round on subjects of these names."""
    plain = RoundCharge(
        study="atlas",
        plan_hash="p" * 64,
        site="crl",
        round=round_number,
        attempt=0,
        model_hash="m" * 64,
        code_version="0.1.0",
        noise_multiplier=4.0,
        sampling_rate=1.0,
        steps=5,
        public_subjects=40,
        max_grad_norm=1.0,
        subjects=tuple(key(name) for name in subjects),
    )
    return replace(plain, **changes)  # type: ignore[arg-type]  # a test may ask for a wrong type


def records(*charges: RoundCharge) -> tuple[Record, ...]:
    """A chain that opens a ledger and charges it."""
    chain = [seal(None, "open", {"key_id": "k"})]
    for item in charges:
        chain.append(seal(chain[-1], "charge", item.to_json()))
    return tuple(chain)


def linked(book: Ledger, *links: str) -> Ledger:
    """The ledger after it was told that the subjects named in each text are one."""
    record = book.identity_record([tuple(key(name) for name in link) for link in links])
    assert record is not None
    return Ledger.from_records((*book.records, record))


def ledger(*charges: RoundCharge) -> Ledger:
    return Ledger.from_records(records(*charges))
