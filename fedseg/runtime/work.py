"""A round's contribution, charged to the privacy ledger and computed in the background."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass

from fedseg.errors import Interrupted
from fedseg.federation.exchange import RingVector
from fedseg.runtime.countersigning import WitnessedLedger
from fedseg.runtime.ports import Memory, ShouldStop
from fedseg.secagg.messages import SessionHeader

HEARTBEAT_S = 1.0

Compute = Callable[[SessionHeader, ShouldStop], RingVector | None]


@dataclass
class Work:
    """What is being computed for one round."""

    round: int
    attempt: int
    model: str
    stop: threading.Event
    result: Future[RingVector | None]


class Worker:
    """Computes one contribution at a time in a thread, while this one answers the server.

    Args:
        compute: The contribution to a session; None where there is none to give.
        memory: Where it is written down, before it is masked for the first time.
        ledger: What a round is charged to before its first gradient; None in a study without privacy.
        stop: Set by Ctrl-C.
    """

    def __init__(self, compute: Compute, memory: Memory, ledger: WitnessedLedger | None, stop: threading.Event) -> None:
        self._compute, self._memory, self._ledger, self._stop = compute, memory, ledger, stop
        self._work: Work | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="training")

    def prepare(self, header: SessionHeader, server_key: bytes) -> bool:
        """See that the round's contribution exists or is being computed.

        Args:
            header: The session.
            server_key: The server's, of the roster, with which it countersigns the charge.

        Returns:
            False where it was charged before, but never finished: this site sits the attempt out.

        Raises:
            BudgetError: A budget would be exceeded; nothing is charged.
            LedgerError: The ledger cannot be trusted, or the server refuses its head.
        """
        work, model = self._work, header.model_hash.hex()
        if work is not None and (work.round, work.model) == (header.round, model):
            return True
        self._drop()
        if self._memory.contribution(header.round, model) is not None:
            return True
        if self._ledger is not None and not self._ledger.charge(header.round, header.attempt, model, server_key):
            return False
        stop = threading.Event()
        result = self._pool.submit(self._run, header, model, stop)
        self._work = Work(header.round, header.attempt, model, stop, result)
        return True

    def done(self) -> bool:
        """Whether the contribution that was prepared last is there; waits for it as long as a heartbeat."""
        if self._work is None:
            return True
        try:
            vector = self._work.result.result(HEARTBEAT_S)
        except FutureTimeout:
            return False
        if vector is None:
            return False
        if self._ledger is not None:
            self._ledger.commit(self._work.round, self._work.attempt)
        self._work = None
        return True

    def given_up(self) -> str | None:
        """The model (its hash) for which there turned out to be nothing to give, once; None otherwise."""
        work = self._work
        if work is None or not work.result.done() or work.result.result() is not None:
            return None
        self._work = None
        return work.model

    def close(self) -> None:
        """Stop what is being computed, and wait for its end."""
        if self._work is not None:
            self._work.stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _run(self, header: SessionHeader, model: str, stop: threading.Event) -> RingVector | None:
        vector = self._compute(header, lambda: stop.is_set() or self._stop.is_set())
        if vector is not None:
            self._memory.save_contribution(header.round, model, vector)
        return vector

    def _drop(self) -> None:
        if self._work is not None:
            self._work.stop.set()
            try:
                self._work.result.result()
            except Interrupted:
                pass
            finally:
                self._work = None
