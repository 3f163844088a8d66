from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedseg.errors import LedgerError, StaleSession, StorageError
from fedseg.federation.exchange import CLOSE, SERVER, Enrolled, Head, Join, Paused, RingVector
from fedseg.federation.vector import Weights, model_hash
from fedseg.plan.manifest import Manifest
from fedseg.runtime.archive import MemoryArchive
from fedseg.runtime.course import StudyState
from fedseg.runtime.disk_archive import DiskArchive
from fedseg.runtime.evidence import MemoryEvidence, roster_entry, session_entry
from fedseg.runtime.register import Register
from fedseg.runtime.session import header_of
from fedseg.runtime.study import StudyFolder
from fedseg.secagg.signing import public_half, verify
from fedseg.store.study_db import RoundRow
from tests.runtime import toy
from tests.runtime.bench import CONFIRM, MASK, SHARE, UNMASK, Bench
from tests.runtime.threads import contradictions
from tests.secagg.helpers import key

ALL = ("a", "b", "c")
FIRST = model_hash(toy.INITIAL)
ROUND = ["session", "received", "unmask", "closed"]


class PowerCut(Exception):
    """The machine stopped at a write."""


class Disk(MemoryArchive):
    """An archive and a log on one machine, which can lose its power at a write; it keeps every model and sum."""

    def __init__(self) -> None:
        super().__init__()
        self.log = list[tuple[str, Mapping[str, Any]]]()
        self.cut: tuple[int, bool] | None = None
        self.writes = 0

    def _write(self, write: Any) -> None:
        self.writes += 1
        left, reached = self.cut or (1, True)
        if left > 0 or reached:
            write()
        if self.cut is not None:
            self.cut = None if left == 0 else (left - 1, reached)
        if left == 0:
            raise PowerCut

    def save_round(self, row: RoundRow) -> None:
        self._write(lambda: MemoryArchive.save_round(self, row))

    def save_model(self, closed_round: int, weights: Weights, total: RingVector | None) -> None:
        def keep() -> None:
            self._models[closed_round] = weights
            if total is not None:
                self._totals[closed_round] = total

        self._write(keep)

    def save_best(self, weights: Weights, model: str) -> None:
        self._write(lambda: self._best.update({model: weights}))

    def entries(self) -> tuple[tuple[str, Mapping[str, Any]], ...]:
        return tuple(self.log)

    def append(self, kind: str, body: Mapping[str, object]) -> None:
        self._write(lambda: self.log.append((kind, body)))


class Server(Bench):
    """A bench whose server keeps everything on one disk."""

    def __init__(self, manifest: Manifest) -> None:
        self.disk = Disk()
        super().__init__(manifest, self.disk)
        self.evidence = self.disk  # type: ignore[assignment]  # a port, of which the bench names one implementation
        self.start()
        self.disk.writes = 0

    def play(self) -> None:
        """To the end of the study, started again after a power cut."""
        for _ in range(200):
            for player in self.players.values():
                try:
                    player.turn()
                except PowerCut:
                    self.start()
                if self.stands_at(StudyState.COMPLETE):
                    return
        raise AssertionError(f"the study did not end: {self.phase}")


def manifest(mode: str = "secure", **more: Any) -> Manifest:
    return toy.manifest(toy.plan(mode=mode, **more))


def scored() -> Manifest:
    return manifest(rounds=3, more="rollback: {drop: 0.1}")


def kinds(evidence: Any) -> list[str]:
    return [kind for kind, _ in evidence.entries()]


def of(evidence: Any, kind: str) -> list[Mapping[str, Any]]:
    return [body for each, body in evidence.entries() if each == kind]


def told(bench: Bench, folder: Path) -> list[str]:
    """What an audit finds wrong with the server's log."""
    folder.mkdir()
    return contradictions(folder, bench.manifest.study, {SERVER: bench.evidence})


# A round, written down.


def test_a_round_is_written_down_as_it_goes(tmp_path: Path) -> None:
    bench = Bench(manifest(rounds=2))
    bench.one_round()
    log = bench.evidence
    assert kinds(log) == ["roster", *ROUND, "session"]
    assert of(log, "roster") == [roster_entry(toy.roster(bench.manifest), bench.manifest.plan.schedule.rounds)]
    assert of(log, "session")[0] == session_entry(header_of(bench.manifest, toy.roster(bench.manifest), 1, 1, FIRST))
    (row,) = [row for row in bench.archive.rounds() if row.state == "closed"]
    (closed,) = of(log, "closed")
    assert (closed["round"], closed["contributors"], closed["weight"]) == (1, list(ALL), 3)
    assert (closed["base_model"], closed["next_model"]) == (row.model_hash, row.next_model)
    assert (closed["session"], closed["signature"]) == (row.session.hex(), row.signature.hex())
    assert closed["relative_error"] == row.relative_error is not None
    assert (closed["score"], closed["rolled_back"]) == (None, False)
    for kind in ("received", "unmask", "closed"):
        assert {body.get("sid", body["session"]) for body in of(log, kind)} == {row.session.hex()}
    bench.one_round()
    assert kinds(log) == ["roster", *ROUND, *ROUND]
    assert told(bench, tmp_path / "log") == []


def test_what_is_published_is_signed_by_the_server() -> None:
    bench = Bench(manifest())
    bench.one_round()
    published = bench.coordinator.published(1)
    verify(public_half(key("server")), CLOSE, published.session, SERVER, published.statement, published.signature)
    assert published.next_model == model_hash(bench.coordinator.weights)
    bench.start()
    again = bench.coordinator.published(1)
    assert (again.signature, again.statement) == (published.signature, published.statement)


def test_in_plain_mode_the_session_is_named_by_its_header(tmp_path: Path) -> None:
    bench = Bench(manifest("plain", more="quorum: 2"))
    bench.until(MASK)
    header = bench.players["a"].header
    assert header is not None
    bench.one_round()
    assert kinds(bench.evidence)[:4] == ["roster", "session", "received", "closed"]
    assert of(bench.evidence, "closed")[0]["session"] == header.sid0().hex()
    assert of(bench.evidence, "received")[0]["sid"] == header.sid0().hex()
    assert told(bench, tmp_path / "log") == []


def test_another_roster_is_written_down_before_its_first_session(tmp_path: Path) -> None:
    bench = Bench(manifest(rounds=3))
    bench.one_round()
    bench.until(SHARE)
    # Site c has enrolled again: the attempt under way goes on under the roster that it began with.
    anew = public_half(key("c, anew"))
    bench.enrolled = Enrolled(bench.enrolled.server_key, {**bench.enrolled.keys, "c": anew})
    bench.one_round()
    log = bench.evidence
    assert kinds(log) == ["roster", *ROUND, *ROUND, "roster", "session"]
    assert of(log, "roster")[1]["keys"]["c"] == anew.hex()
    assert told(bench, tmp_path / "log") == []


def test_an_attempt_without_a_sum_is_written_down_with_its_reason(tmp_path: Path) -> None:
    bench = Bench(manifest())
    bench.until(MASK)
    bench.coordinator.pause("lunch")
    assert kinds(bench.evidence) == ["roster", "session", "aborted"]
    assert of(bench.evidence, "aborted")[0]["why"] == "lunch"
    assert told(bench, tmp_path / "log") == []


def test_of_a_long_reason_the_log_keeps_the_beginning(tmp_path: Path) -> None:
    bench = Bench(manifest())
    bench.until(MASK)
    bench.coordinator.pause("very " * 10_000)
    assert len(of(bench.evidence, "aborted")[0]["why"]) == 1000
    assert told(bench, tmp_path / "log") == []


# Power cuts.


@pytest.mark.parametrize("phase", [SHARE, MASK, CONFIRM, UNMASK])
def test_what_was_open_when_the_server_stopped_has_ended(phase: str, tmp_path: Path) -> None:
    bench = Bench(manifest())
    bench.until(phase)
    bench.start()
    (row,) = bench.archive.rounds()
    assert row.state == ("void" if phase == UNMASK else "abandoned")
    assert (row.lost, row.ended_at) == ({"*": "server stopped"}, bench.clock())
    assert kinds(bench.evidence)[-1] == "aborted"
    session = of(bench.evidence, "session")[0]["session"]
    assert of(bench.evidence, "aborted") == [{"session": session, "why": "server stopped"}]
    log = list(bench.evidence.entries())
    bench.start()
    assert list(bench.evidence.entries()) == log
    assert told(bench, tmp_path / "log") == []


def model_of(bench: Bench) -> Weights:
    """The model that the closed rounds make, one after another."""
    weights = toy.INITIAL
    for row in bench.archive.rounds():
        if row.state == "closed":
            assert row.model_hash == model_hash(weights)
            weights = bench.expected(weights, row.round, *row.contributors)
    return weights


def test_a_whole_study_is_so_many_writes() -> None:
    server = Server(manifest(rounds=2))
    server.play()
    # Of each round: opened (row, session), received, unmasking (row, log), closed (sum, row, log); and the roster.
    assert server.disk.writes == 2 * 8 + 1


@pytest.mark.parametrize("reached", [False, True])
@pytest.mark.parametrize("mode", ["secure", "plain"])
def test_a_power_cut_at_any_write_leaves_a_log_that_is_whole(mode: str, reached: bool, tmp_path: Path) -> None:
    for cut in range(17):
        server = Server(manifest(mode, rounds=2))
        server.disk.cut = (cut, reached)
        server.play()
        rows = server.disk.rounds()
        closed = [row for row in rows if row.state == "closed"]
        assert [row.state for row in rows if row.state in ("open", "unmasking")] == []
        assert len(closed) == 2
        assert [body["signature"] for body in of(server.disk, "closed")] == [row.signature.hex() for row in closed]
        np.testing.assert_array_equal(server.coordinator.weights, model_of(server))
        sessions = of(server.disk, "session")
        assert len({body["session"] for body in sessions}) == len(sessions)
        assert len(sessions) == len(of(server.disk, "closed")) + len(of(server.disk, "aborted"))
        assert told(server, tmp_path / f"{cut}") == []


@pytest.mark.parametrize("reached", [False, True])
def test_a_power_cut_at_any_write_of_a_study_that_goes_back(reached: bool, tmp_path: Path) -> None:
    """Round 3 finds that the model of round 2 has collapsed; the one of round 1 was the best."""
    # What is left of round 3 once it is open: received, unmasking (row, log), closed (sum, row, log).
    for cut in range(6):
        server = Server(scored())
        for score in (0.5, 0.8):
            _score(server, score)
            server.one_round()
        first = server.disk._models[1]
        server.disk.cut = (cut, reached)
        _score(server, 0.1)
        server.play()
        assert server.disk.cut is None
        np.testing.assert_array_equal(server.coordinator.weights, first)
        assert [body["rolled_back"] for body in of(server.disk, "closed")] == [False, False, True]
        assert told(server, tmp_path / f"{cut}") == []


def _score(bench: Bench, score: float) -> None:
    """What the newest model is worth at every site."""
    for player in bench.players.values():
        player.score = score


def test_the_newest_close_is_healed_with_the_best_model_of_before() -> None:
    server = Server(scored())
    for score in (0.5, 0.8, 0.1):
        _score(server, score)
        server.one_round()
    whole = list(server.disk.log)
    assert whole[-1][0] == "closed"
    assert whole[-1][1]["rolled_back"]
    server.disk.log.pop()
    server.start()
    assert server.disk.log == whole


# What the server gives out.


def test_the_best_model_is_kept_and_given_out_after_a_restart() -> None:
    bench = Bench(scored())
    for score in (0.5, 0.8):
        _score(bench, score)
        before = bench.coordinator.weights
        bench.one_round()
    for _ in range(2):
        bench.players["a"].restart()
        instruction = bench.players["a"].ask()
        assert isinstance(instruction, Join)
        best = instruction.head.best
        assert best is not None
        assert best.model_hash == model_hash(before)
        assert best.score == pytest.approx(0.8)
        np.testing.assert_array_equal(bench.coordinator.model(model_hash(before)), before)
        bench.start()
    with pytest.raises(StaleSession, match="the server no longer has that model"):
        bench.coordinator.model(FIRST)


def test_a_round_without_scorers_judges_nothing() -> None:
    bench = Bench(scored())
    bench.one_round()
    instruction = bench.players["a"].ask()
    assert isinstance(instruction, Join)
    assert instruction.head.best is None
    assert bench.archive.rounds()[0].score is None


def test_the_record_of_a_round_has_its_error_and_its_score() -> None:
    bench = Bench(scored())
    bench.players["a"].score, bench.players["b"].score = 0.25, 0.75
    bench.one_round()
    row = bench.archive.rounds()[0]
    assert row.score == pytest.approx(0.5)
    assert row.relative_error is not None
    assert 0 < row.relative_error < 1e-4


# What cannot be kept is not heard of.


@pytest.mark.parametrize("error", [StorageError("no room is left"), LedgerError("the log was changed")])
@pytest.mark.parametrize("kind", ROUND)
def test_a_log_that_fails_pauses_the_study(kind: str, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(manifest(rounds=2))
    append = bench.evidence.append

    def fail(what: str, body: Mapping[str, object]) -> None:
        if what == kind:
            raise error
        append(what, body)

    monkeypatch.setattr(bench.evidence, "append", fail)
    for _ in range(6):
        for player in bench.players.values():
            player.turn()
    assert bench.stands_at(StudyState.PAUSED)
    assert bench.players["a"].ask() == Paused(str(error))
    assert kind not in kinds(bench.evidence)
    monkeypatch.undo()
    bench.start()
    while not bench.stands_at(StudyState.COMPLETE):
        bench.one_round()
    assert len(of(bench.evidence, "closed")) == 2


def test_a_register_begins_with_nothing_written() -> None:
    archive, log = MemoryArchive(), MemoryEvidence()
    archive.save_model(0, toy.INITIAL, None)
    register = Register(manifest(), archive, key("server"), log, lambda: 0.0)
    assert log.entries() == ()
    assert (register.rounds, register.history, register.closed, register.without_sum) == ([], (), None, 0)
    assert register.head == Head(FIRST, 0, FIRST)


class FailingArchive(DiskArchive):
    """A study's folder on a disk that is full whenever a round's record is due."""

    full = True

    def save_round(self, row: RoundRow) -> None:
        if row.state == "closed" and self.full:
            raise StorageError("no room is left")
        super().save_round(row)


def test_a_record_that_fails_again_and_again_loses_no_model(tmp_path: Path) -> None:
    folder = StudyFolder.create(tmp_path / "study", toy.plan(), toy.FIRST, address="localhost:1", now=1e9)
    archive = FailingArchive(folder.root, folder.db)
    archive.full = False
    bench = Bench(folder.manifest, archive)  # type: ignore[arg-type]  # an archive all the same, on a disk
    bench.one_round()
    weights, archive.full = bench.coordinator.weights, True
    for _ in range(3):
        for _ in range(7):
            for player in bench.players.values():
                player.turn()
        assert bench.stands_at(StudyState.PAUSED)
        bench.start()
        np.testing.assert_array_equal(bench.coordinator.weights, weights)
