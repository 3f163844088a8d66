from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from fedseg.errors import BudgetError, Interrupted
from fedseg.federation.exchange import RingVector
from fedseg.runtime.ports import ShouldStop
from fedseg.runtime.simulation import SiteMemory
from fedseg.runtime.work import Worker
from fedseg.secagg.messages import SessionHeader
from tests.secagg.helpers import session

FIRST, SECOND = session(round=1), session(round=2)
MODEL = FIRST.model_hash.hex()
KEY = b"k" * 32


class Ledger:
    """Writes down what is charged and committed; a round past its budget is refused, one charged before not charged."""

    def __init__(self, budget: int = 9) -> None:
        self.told: list[tuple[str, int]] = []
        self.budget = budget

    def charge(self, round_number: int, _attempt: int, _model: str, _key: bytes) -> bool:
        if round_number > self.budget:
            raise BudgetError("spent")
        fresh = ("charge", round_number) not in self.told
        self.told.append(("charge", round_number))
        return fresh

    def commit(self, round_number: int, _attempt: int) -> None:
        self.told.append(("commit", round_number))


class Computing:
    """Computes where it is let: a vector of the round's number, or nothing."""

    def __init__(self) -> None:
        self.may_end, self.rounds = threading.Event(), list[int]()
        self.gives = True

    def __call__(self, header: SessionHeader, should_stop: ShouldStop) -> RingVector | None:
        self.rounds.append(header.round)
        while not self.may_end.wait(0.01):
            if should_stop():
                raise Interrupted("stopped")
        return np.full(3, header.round, dtype=np.uint32) if self.gives else None


@pytest.fixture
def computing() -> Computing:
    return Computing()


@pytest.fixture
def memory() -> SiteMemory:
    return SiteMemory()


@pytest.fixture
def start(computing: Computing, memory: SiteMemory) -> Iterator[Callable[..., Worker]]:
    """A worker, with a ledger or without."""
    workers = []

    def make(ledger: Ledger | None = None) -> Worker:
        workers.append(Worker(computing, memory, ledger, threading.Event()))  # type: ignore[arg-type]
        return workers[-1]

    yield make
    for worker in workers:
        worker.close()


def test_a_contribution_is_charged_computed_once_kept_and_committed(
    start: Callable[..., Worker], computing: Computing, memory: SiteMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedseg.runtime.work.HEARTBEAT_S", 0.05)
    ledger = Ledger()
    worker = start(ledger)
    assert worker.prepare(FIRST, KEY)
    assert worker.prepare(FIRST, KEY)
    assert not worker.done()
    assert (ledger.told, memory.contribution(1, MODEL)) == ([("charge", 1)], None)
    computing.may_end.set()
    while not worker.done():
        pass
    assert ledger.told == [("charge", 1), ("commit", 1)]
    kept = memory.contribution(1, MODEL)
    assert kept is not None
    assert kept[0] == 1
    # What is on the disk is not computed again, nor charged.
    assert worker.prepare(FIRST, KEY)
    assert worker.done()
    assert (computing.rounds, len(ledger.told), worker.given_up()) == ([1], 2, None)


def test_what_was_charged_and_never_finished_is_not_computed(
    start: Callable[..., Worker], computing: Computing
) -> None:
    ledger = Ledger()
    ledger.charge(1, 1, MODEL, KEY)
    assert not start(ledger).prepare(FIRST, KEY)
    with pytest.raises(BudgetError):
        start(Ledger(budget=0)).prepare(FIRST, KEY)
    assert computing.rounds == []


def test_another_round_stops_the_one_before(
    start: Callable[..., Worker], computing: Computing, memory: SiteMemory
) -> None:
    worker = start()
    worker.prepare(FIRST, KEY)
    worker.prepare(SECOND, KEY)
    computing.may_end.set()
    while not worker.done():
        pass
    assert computing.rounds[-1] == 2
    assert memory.contribution(1, MODEL) is None
    assert memory.contribution(2, MODEL) is not None


def test_where_there_is_nothing_to_give_it_says_so_once(
    start: Callable[..., Worker], computing: Computing, memory: SiteMemory
) -> None:
    worker = start()
    computing.gives = False
    worker.prepare(FIRST, KEY)
    assert worker.given_up() is None
    computing.may_end.set()
    assert not worker.done()
    assert [worker.given_up(), worker.given_up()] == [MODEL, None]
    assert memory.contribution(1, MODEL) is None
