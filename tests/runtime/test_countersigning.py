from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedseg.errors import LedgerError, LinkError, ProtocolError, StorageError, Unreachable
from fedseg.federation.exchange import COUNTERSIGN, SERVER, Countersigned, Finished, Join, LedgerClaim, Wait
from fedseg.policy import SitePolicy
from fedseg.privacy.identity import Subject
from fedseg.runtime.charging import StudyCharger
from fedseg.runtime.course import StudyState
from fedseg.runtime.evidence import MemoryEvidence, countersigned_entry, roster_entry
from fedseg.runtime.simulation import simulate
from fedseg.secagg.signing import public_half, sign
from tests.runtime import toy
from tests.runtime.bench import Bench
from tests.runtime.private import ledger_at, private_manifest
from tests.runtime.script import START, Script, countersigned, header, refused, runner
from tests.runtime.test_restarts import MortalLink, MortalStudy, trainers
from tests.runtime.threads import contradictions
from tests.secagg.helpers import entropy, key

PRIVATE = private_manifest(rounds=3, reserve=3)
FRAME = [Subject((name,)) for name in ("01", "02")]
H1, H2, H3 = (f"{number:064x}" for number in (1, 2, 3))


def charger(folder: Path, site: str = "a") -> StudyCharger:
    return StudyCharger(ledger_at(folder), PRIVATE, site, policy=SitePolicy(), frame=FRAME, notify=lambda _: None)


def claim(rounds: int, head: str, previous: str | None = None) -> LedgerClaim:
    return LedgerClaim(rounds, 10 * rounds, head, previous, rounds, 1)


# The server.


def test_a_claim_that_goes_on_from_the_last_is_signed_by_the_server_of_the_roster() -> None:
    bench = Bench(PRIVATE)
    assert bench.coordinator.countersigned("a") is None
    for number, (head, previous) in enumerate([(H1, None), (H2, H1)], 1):
        said = claim(number, head, previous)
        assert bench.coordinator.claim("a", said) == countersigned(said, PRIVATE)
        assert bench.coordinator.countersigned("a") == countersigned(said, PRIVATE)
    assert bench.coordinator.countersigned("b") is None
    assert bench.coordinator.claim("b", claim(1, H1)).head == H1
    logged = [body for kind, body in bench.evidence.entries() if kind == "countersigned"]
    assert [(body["site"], body["rounds"], body["head"]) for body in logged] == [
        ("a", 1, H1),
        ("a", 2, H2),
        ("b", 1, H1),
    ]


def test_the_same_claim_again_is_answered_the_same_and_logged_once() -> None:
    bench = Bench(PRIVATE)
    bench.coordinator.claim("a", claim(1, H1))
    answers = [bench.coordinator.claim("a", claim(2, H2, H1)) for _ in range(3)]
    assert len(set(answers)) == 1
    assert len([kind for kind in bench.logged if kind == "countersigned"]) == 2


@pytest.mark.parametrize(
    ("said", "known"),
    [
        (claim(2, H3), "this claim of 2 rounds goes on from no head"),
        (claim(2, H3, H1), "this claim of 2 rounds goes on from head 000000000000…"),
        (claim(1, H3, H2), "this claim of 1 rounds"),
        (replace(claim(2, H3, H2), steps=5), "this claim of 2 rounds"),
        (replace(claim(2, H2, H1), attempt=2), "this claim of 2 rounds"),
    ],
)
def test_a_fork_is_refused_in_words_for_the_sites_operator_and_changes_nothing(said: LedgerClaim, known: str) -> None:
    bench = Bench(PRIVATE)
    bench.coordinator.claim("a", claim(1, H1))
    newest = bench.coordinator.claim("a", claim(2, H2, H1))
    with pytest.raises(LedgerError) as caught:
        bench.coordinator.claim("a", said)
    assert caught.value.what.startswith(
        "the privacy ledger of a does not go on from where it stood: the server has countersigned head 000000000000… "
        "after 2 charged rounds, "
    )
    assert known in caught.value.what
    assert caught.value.what.endswith("an older copy of the ledger is in use, or two at once")
    assert caught.value.hint == (
        "nothing was trained; restore the newest copy of the ledger's folder, the one that has this head, and go on "
        "with that one alone; without it this site cannot train in this study again, as what its subjects have spent "
        "is unknown"
    )
    assert bench.coordinator.countersigned("a") == newest
    assert not bench.stands_at(StudyState.PAUSED)


def test_a_first_claim_after_a_head_that_the_server_never_signed_is_refused() -> None:
    with pytest.raises(LedgerError, match="the server has countersigned no head, this claim of 1 rounds goes on from"):
        Bench(PRIVATE).coordinator.claim("a", claim(1, H2, H1))


def test_a_server_that_restarts_and_a_site_that_enrols_again_reset_nothing() -> None:
    bench = Bench(PRIVATE)
    newest = bench.coordinator.claim("a", claim(1, H1))
    bench.enrolled = replace(bench.enrolled, keys={**bench.enrolled.keys, "a": public_half(key("a again"))})
    bench.start()
    assert bench.coordinator.countersigned("a") == newest
    with pytest.raises(LedgerError, match="does not go on from where it stood"):
        bench.coordinator.claim("a", claim(1, H2))


def test_without_privacy_nothing_is_countersigned() -> None:
    with pytest.raises(ProtocolError, match="this study charges no ledger"):
        Bench(toy.manifest(toy.plan())).coordinator.claim("a", claim(1, H1))


@pytest.mark.parametrize("where", ["evidence", "archive"])
def test_what_cannot_be_kept_is_not_signed(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(PRIVATE)

    def full(*_: object) -> None:
        raise StorageError("no room is left on the disk")

    monkeypatch.setattr(getattr(bench, where), {"evidence": "append", "archive": "save_claim"}[where], full)
    with pytest.raises(Unreachable, match="the server cannot store what it is sent"):
        bench.coordinator.claim("a", claim(1, H1))
    assert bench.stands_at(StudyState.PAUSED)
    assert bench.coordinator.reason == "no room is left on the disk"
    assert bench.coordinator.countersigned("a") is None


# A site, in front of a server that a test wrote.


def test_a_ledger_that_was_set_back_is_refused_before_anything_is_asked_or_trained(tmp_path: Path) -> None:
    purse = charger(tmp_path / "ledger")
    shutil.copytree(tmp_path / "ledger", tmp_path / "backup")
    purse.charge(1, 1, "f" * 64)
    link, trainer = Script(Wait("told twice")), toy.PullTrainer(1.0)
    link.newest = countersigned(replace(purse.claim(), round=1, attempt=1), PRIVATE)
    error = refused(link, PRIVATE, charger=charger(tmp_path / "backup"), trainer=trainer)
    assert isinstance(error, LedgerError)
    assert "the ledger was rolled back: it lacks the record" in str(error)
    assert "restore the newest copy" in str(error)
    assert link.kinds() == ["countersigned"]
    # The same ledger as it was: the study goes on.
    again = Script(Finished(START, ()))
    again.newest = link.newest
    assert runner(again, PRIVATE, charger=purse).run() == Finished(START, ())


def test_a_server_that_forgot_cannot_let_a_ledger_go_back_behind_the_sites_own_log(tmp_path: Path) -> None:
    purse = charger(tmp_path / "ledger")
    purse.charge(1, 1, "f" * 64)
    shutil.copytree(tmp_path / "ledger", tmp_path / "older")
    log, heads = MemoryEvidence(), []
    for number in (2, 3):
        purse.charge(number, 1, "f" * 64)
        signed = countersigned(replace(purse.claim(), round=number, attempt=1), PRIVATE)
        log.append("countersigned", countersigned_entry("a", signed))
        heads.append(signed.head)
    # Of the other sites' ledgers a log may tell what it likes.
    log.append("countersigned", countersigned_entry("b", countersigned(claim(9, H1), PRIVATE, "b")))
    link, trainer = Script(Wait("told twice")), toy.PullTrainer(1.0)
    error = refused(link, PRIVATE, charger=charger(tmp_path / "older"), evidence=log, trainer=trainer)
    assert isinstance(error, LedgerError)
    assert f"the ledger was rolled back: it lacks the record {heads[0][:12]}" in str(error)
    assert link.kinds() == []
    again = Script(Finished(START, ()))
    assert runner(again, PRIVATE, charger=purse, evidence=log).run() == Finished(START, ())


def test_a_ledger_that_is_set_back_in_mid_study_trains_no_more(tmp_path: Path) -> None:
    purse, newer = charger(tmp_path / "ledger"), charger(tmp_path / "newer")
    newer.charge(1, 1, "f" * 64)

    class Elsewhere(Script):
        """Another copy of this ledger goes on meanwhile."""

        def countersigned(self) -> Countersigned | None:
            answer = super().countersigned()
            self.newest = countersigned(newer.claim(), PRIVATE)
            return answer

    link, trainer = Elsewhere(Join(header(PRIVATE), START)), toy.PullTrainer(1.0)
    error = refused(link, PRIVATE, charger=purse, trainer=trainer)
    assert isinstance(error, LedgerError)
    assert link.of("withdraw")[0] == (header(PRIVATE).sid0(), "failed")
    assert "claim" not in link.kinds()
    assert purse.claim().rounds == 0
    assert trainer.trained == []


def _forged(signed: Countersigned) -> Countersigned:
    statement = signed.statement(PRIVATE.study, "a")
    forged = sign(key("liar"), COUNTERSIGN, bytes.fromhex(PRIVATE.plan_hash), SERVER, statement)
    return replace(signed, signature=forged)


LIES: dict[str, tuple[Callable[[Countersigned], Countersigned], str]] = {
    "another key": (_forged, "the signature under this ledger's countersigned head is not that of the server"),
    "another site": (
        lambda signed: countersigned(_claimed(signed), PRIVATE, "b"),
        "the signature under this ledger's countersigned head is not that of the server",
    ),
    "another head": (
        lambda signed: countersigned(replace(_claimed(signed), head=H3), PRIVATE),
        "the server has countersigned another claim than this site's",
    ),
    "fewer rounds": (
        lambda signed: countersigned(replace(_claimed(signed), rounds=0), PRIVATE),
        "the server has countersigned another claim than this site's",
    ),
}


def _claimed(signed: Countersigned) -> LedgerClaim:
    return LedgerClaim(signed.rounds, signed.steps, signed.head, None, signed.round, signed.attempt)


@pytest.mark.parametrize("lie", LIES)
def test_a_site_trains_on_no_other_signature_than_the_servers_of_its_own_claim(lie: str, tmp_path: Path) -> None:
    bend, says = LIES[lie]

    class Liar(Script):
        def claim(self, claim: LedgerClaim) -> Countersigned:
            return bend(super().claim(claim))

    link, trainer, log = Liar(Join(header(PRIVATE), START)), toy.PullTrainer(1.0), MemoryEvidence()
    error = refused(link, PRIVATE, charger=charger(tmp_path), trainer=trainer, evidence=log)
    assert isinstance(error, LedgerError)
    assert says in str(error)
    assert "talk to the coordinator" in str(error)
    assert link.of("withdraw")[0] == (header(PRIVATE).sid0(), "failed")
    assert trainer.trained == []
    assert "countersigned" not in [kind for kind, _ in log.entries()]
    assert len(ledger_at(tmp_path).ledger.charges()) == 1


def test_a_forged_newest_head_is_refused_at_start(tmp_path: Path) -> None:
    purse = charger(tmp_path)
    link = Script(Wait("told twice"))
    link.newest = _forged(countersigned(purse.claim(), PRIVATE))
    assert "is not that of the server in the roster" in str(refused(link, PRIVATE, charger=purse))
    assert link.kinds() == ["countersigned"]


def test_a_servers_refusal_ends_the_sites_part_untrained_and_charged(tmp_path: Path) -> None:
    link, trainer = Script(Join(header(PRIVATE), START)), toy.PullTrainer(1.0)
    link.refusals["claim"] = [LedgerError("the server says: an older copy of the ledger is in use")]
    error = refused(link, PRIVATE, charger=charger(tmp_path), trainer=trainer)
    assert "an older copy of the ledger is in use" in str(error)
    assert trainer.trained == []
    assert len(ledger_at(tmp_path).ledger.charges()) == 1


# Whole studies.


class Ledgers(MortalStudy):
    """A private study whose sites have real ledgers."""

    def __init__(self, folder: Path, *deaths: tuple[str, str, str]) -> None:
        super().__init__(PRIVATE, trainers(), *deaths)
        self.folder, self.dying = folder, lambda _: None
        self.charger = lambda site: DyingCharger(self, site)


class DyingCharger:
    """A site's ledger, whose process can be killed around each write."""

    def __init__(self, study: Ledgers, site: str) -> None:
        self._study, self._site, self._charger = study, site, charger(study.folder / site, site)

    def __getattr__(self, name: str) -> Any:
        method, link = getattr(self._charger, name), self._study.links_now[self._site]

        def call(*arguments: Any) -> Any:
            if self._study.links_now.get(self._site) is not link:
                raise LinkError("this process is dead")
            _die(link, name, "before")
            answer = method(*arguments)
            _die(link, name, "after")
            return answer

        return call


def _die(link: MortalLink, name: str, when: str) -> None:
    link._die(name, when)


STEPS = [
    ("countersigned", "before"), ("countersigned", "after"), ("charge", "before"), ("charge", "after"),
    ("claim", "before"), ("claim", "after"), ("note_countersigned", "before"), ("note_countersigned", "after"),
    ("advertise", "before"),
]  # fmt: skip


@pytest.mark.parametrize(("step", "when"), STEPS)
def test_a_site_killed_around_charge_claim_and_answer_goes_on(step: str, when: str, tmp_path: Path) -> None:
    study = Ledgers(tmp_path / "ledgers", ("a", step, when))
    outcome = study.run()
    assert study.errors == {}
    assert study.deaths == []
    assert len(outcome.history) == 3
    charges = ledger_at(tmp_path / "ledgers" / "a").ledger.charges()
    # Charged is what was trained, and what a death left untrained.
    assert len(charges) - len(study.trainers["a"].trained) in (0, 1)
    newest = study.coordinator.countersigned("a")
    assert newest is not None
    assert (newest.rounds, newest.steps) == (len(charges), sum(charge.steps for charge in charges))
    noted = ledger_at(tmp_path / "ledgers" / "a").ledger.countersigned
    assert noted[-1].head == newest.head
    (tmp_path / "logs").mkdir()
    assert contradictions(tmp_path / "logs", PRIVATE.study, outcome.logs) == []


def test_every_countersigned_head_is_in_the_ledger_in_both_logs_and_in_the_right_order(tmp_path: Path) -> None:
    study = Ledgers(tmp_path)
    outcome = study.run()
    assert study.errors == {}
    for site in study.trainers:
        ledger = ledger_at(tmp_path / site).ledger
        kinds = [record.kind for record in ledger.records if record.kind in ("charge", "countersigned", "commit")]
        assert kinds == ["charge", "countersigned", "commit"] * 3
        own = [body for kind, body in outcome.logs[site].entries() if kind == "countersigned"]
        assert [body["head"] for body in own] == [note.head for note in ledger.countersigned]
        assert own == [
            body for kind, body in outcome.logs["server"].entries() if kind == "countersigned" and body["site"] == site
        ]
        assert [(body["rounds"], body["round"], body["attempt"]) for body in own] == [(1, 1, 1), (2, 2, 1), (3, 3, 1)]


def test_a_simulated_study_countersigns_too(tmp_path: Path) -> None:
    chargers = {site: charger(tmp_path / site, site) for site in "abc"}
    simulate(
        PRIVATE, toy.INITIAL, toy.LAYOUT, {site: toy.PullTrainer(1.0) for site in "abc"}, entropy=entropy("x"),
        chargers=chargers,
    )  # fmt: skip
    assert [len(ledger_at(tmp_path / site).ledger.countersigned) for site in "abc"] == [3, 3, 3]


# What an audit makes of it.


def entries(*signed: Countersigned, site: str = "a") -> MemoryEvidence:
    """A log of these heads under the study's roster."""
    log = MemoryEvidence()
    log.append("roster", roster_entry(toy.roster(PRIVATE), PRIVATE.plan.schedule.rounds))
    for each in signed:
        log.append("countersigned", countersigned_entry(site, each))
    return log


def found(folder: Path, **logs: MemoryEvidence) -> list[str]:
    return contradictions(folder, PRIVATE.study, logs)


FIRST, SECOND = countersigned(claim(1, H1), PRIVATE), countersigned(claim(2, H2), PRIVATE)


def test_honest_heads_contradict_nothing(tmp_path: Path) -> None:
    # A site may have missed an answer, never the server what it has signed.
    assert found(tmp_path, server=entries(FIRST, SECOND), a=entries(SECOND)) == []


@pytest.mark.parametrize(
    ("log", "says"),
    [
        (entries(_forged(FIRST)), "site a: ledger of a, round 1: the server's signature of this head is not valid"),
        (entries(SECOND, FIRST), "site a: ledger of a, round 1: 1 rounds were charged, after 2 before: the ledger was"),
        (entries(FIRST, site="b"), "site a: ledger of b, round 1: it stands in the log of a"),
    ],
)
def test_a_false_head_in_a_log_is_found(log: MemoryEvidence, says: str, tmp_path: Path) -> None:
    assert found(tmp_path, a=log)[0].startswith(says)


def test_a_server_that_countersigned_a_fork_or_cut_its_log_is_found(tmp_path: Path) -> None:
    fork = countersigned(claim(1, H3), PRIVATE)
    (what,) = found(tmp_path, server=entries(FIRST, fork), a=entries(FIRST))[:1]
    assert what.startswith("server: ledger of a, round 1: 1 rounds were charged, after 1 before")
    (tmp_path / "two").mkdir()
    told = found(tmp_path / "two", server=entries(FIRST), a=entries(fork))
    assert told == [
        "server: the server countersigned two heads of the ledger of a for one charge (round 1, attempt 1): "
        f"{H1[:16]} and {H3[:16]}",
        f"server: the log lacks 1 countersigned heads of the ledger of a, the first of round 1, which the server has "
        f"signed: {tmp_path / 'two' / 'a.jsonl'}",
    ]


def test_the_statement_tells_every_field_study_and_site_apart() -> None:
    base = Countersigned(PRIVATE.plan_hash, 1, 10, H1, 1, 1)
    others = [
        replace(base, plan_hash=H2), replace(base, rounds=2), replace(base, steps=11), replace(base, head=H2),
        replace(base, round=2), replace(base, attempt=2),
    ]  # fmt: skip
    statements = [each.statement("s", "a") for each in (base, *others)]
    assert len({*statements, base.statement("s", "b"), base.statement("t", "a")}) == len(others) + 3


@pytest.mark.parametrize("wrong", [replace(FIRST, rounds=2**32), replace(FIRST, steps=-1)])
def test_numbers_that_no_ledger_has_are_no_statement(wrong: Countersigned) -> None:
    with pytest.raises(ProtocolError, match="a claim with numbers that no ledger has"):
        wrong.statement("s", "a")
