from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedseg.cli.event_lines import describe
from fedseg.errors import BelowQuorum, BudgetError, FedsegError, Interrupted, LinkError, ProtocolError, StaleSession
from fedseg.federation.exchange import (
    Best,
    Confirm,
    Finished,
    Head,
    Instruction,
    Join,
    LedgerClaim,
    Paused,
    Published,
    ShareKeys,
    Submit,
    Unmask,
    Wait,
)
from fedseg.federation.vector import Weights, model_hash
from fedseg.plan.manifest import Manifest
from fedseg.runtime import events
from fedseg.runtime.evidence import MemoryEvidence
from fedseg.runtime.session import encoding_of
from fedseg.runtime.simulation import SiteMemory
from fedseg.secagg.messages import SessionHeader
from fedseg.secagg.state import Ended, dump, load
from tests.runtime import toy
from tests.runtime.script import (
    FIRST,
    PLAIN,
    SECURE,
    START,
    Patient,
    Script,
    header,
    left,
    one_round,
    patient,
    refused,
    runner,
    signed,
    wait_for,
)

PRIVATE = SECURE.model_copy(
    update={
        "noise_multiplier": 1.0,
        "plan": SECURE.plan.model_copy(
            update={"privacy": SECURE.plan.privacy.model_copy(update={"mode": "local", "epsilon": 8.0})}
        ),
    }
)


class Purse:
    """A charger that keeps count, and can be empty."""

    def __init__(self, *answers: bool | FedsegError) -> None:
        self.answers, self.calls = list(answers), list[tuple[Any, ...]]()

    def charge(self, round_number: int, attempt: int, model: str) -> bool:
        self.calls.append(("charge", round_number, attempt, model))
        answer = self.answers.pop(0)
        if isinstance(answer, FedsegError):
            raise answer
        return answer

    def commit(self, round_number: int, attempt: int) -> None:
        self.calls.append(("commit", round_number, attempt))

    def claim(self) -> LedgerClaim:
        return LedgerClaim(1, 10, "ab" * 32)

    def check_countersigned(self, head: str | None) -> None:
        self.calls.append(("check", head))

    def note_countersigned(self, head: str, signature: bytes) -> None:
        self.calls.append(("countersigned", head))


def test_a_plain_round_sends_exactly_the_encoded_update() -> None:
    session = header().sid0()
    link, memory = patient(Join(header(), START), Submit(session, ("a", "b", "c"), {}), LinkError("enough"))
    trainer = toy.PullTrainer(1.0)
    assert refused(link, memory=memory, trainer=trainer).what == "enough"
    assert link.kinds() == ["model", "advertise", "upload", "withdraw"]
    assert link.of("poll") == [None, session, session]
    kept = memory.contribution(1, FIRST)
    assert kept is not None
    np.testing.assert_array_equal(link.of("upload")[0], kept)
    mean = encoding_of(PLAIN).decode(kept, [1])
    np.testing.assert_allclose(mean.update, 0.5, atol=1e-4)
    assert mean.weight == 1
    assert trainer.trained == [1]
    assert link.of("withdraw") == [(session, "failed")]


def test_in_a_secure_round_the_update_leaves_masked() -> None:
    joined = header(SECURE)
    link, memory = patient(Join(joined, START), LinkError("enough"))
    refused(link, SECURE, memory=memory)
    (message,) = link.of("advertise")
    assert message.site == "a"
    assert b"\0" * 32 not in (message.envelope_key, message.mask_key)


@pytest.mark.parametrize(
    ("offered", "says"),
    [
        (header(model="f" * 64), "the session's model hash is not the one this site expects"),
        (replace(header(), study="cd" * 16), "the session's study is not the one"),
        (
            replace(header(), clip=1.0, scale=replace(header().encoding, clip=1.0).scale),
            "the session's scale is not the one",
        ),
        (replace(header(), m=2), "the session's m is not the one"),
        (replace(header(), sites=("a", "b", "d")), "the session's sites is not the one"),
    ],
)
def test_a_session_of_another_kind_is_refused_before_anything_is_sent(offered: SessionHeader, says: str) -> None:
    link, trainer = Script(Join(offered, START)), toy.PullTrainer(1.0)
    why = left(link, trainer=trainer)
    assert says in why
    assert "nothing was sent" in why
    assert [kind for kind in link.kinds() if kind != "roster"] == ["model", "withdraw"]
    assert link.of("withdraw") == [(offered.sid0(), "refused")]
    assert trainer.trained == []


@pytest.mark.parametrize("other", [toy.manifest(toy.plan(mode="plain", rounds=3)), SECURE])
def test_another_plan_ends_this_sites_part_until_somebody_agrees_to_it(other: Manifest) -> None:
    link, trainer = Script(Join(header(other), START), Wait("told twice")), toy.PullTrainer(1.0)
    error = refused(link, trainer=trainer)
    assert str(error) == (
        f"the study goes on under another plan, {other.plan_hash[:16]}, than this site has agreed to, "
        f"{PLAIN.plan_hash[:16]} (nothing was sent; to see what changes, and agree: fedseg client join --state DIR)"
    )
    assert link.kinds() == ["withdraw"]
    assert trainer.trained == []


def test_no_round_is_trained_beyond_those_of_the_plan() -> None:
    rounds = PLAIN.plan.schedule.rounds
    evidence, trainer = MemoryEvidence(), toy.PullTrainer(1.0)
    for number in range(1, rounds + 1):
        evidence.append("closed", {"round": number, "contributors": ["a", "b", "c"], "next_model": FIRST})
    memory = SiteMemory()
    memory.save_weights(toy.INITIAL)
    newest = Head(FIRST, rounds, "ab" * 32)
    why = left(Script(Join(header(number=rounds + 1), newest)), memory=memory, evidence=evidence, trainer=trainer)
    assert f"the server opens another round, though the {rounds} of the plan are closed" in why
    assert trainer.trained == []


def test_a_first_model_that_the_plan_does_not_name_is_refused() -> None:
    other = np.ones(toy.SIZE, np.float32)
    name = model_hash(other)
    link = Script(Join(header(model=name), Head(name, 0, name)))
    link.models[name] = other
    assert left(link) == "the study's first model is not the one that the plan names"


@pytest.mark.parametrize("sent", [np.ones(toy.SIZE, np.float32), toy.INITIAL[:-1]])
def test_a_model_that_is_not_the_one_named_is_refused(sent: Weights) -> None:
    link = Script(Join(header(), START))
    link.models[FIRST] = sent
    assert left(link) == "the model that the server sent is not the one it named"


def catching_up(total: Published, named: str) -> tuple[Script, SiteMemory]:
    """A site that holds the first model, told of a second that this sum should give."""
    memory = SiteMemory()
    memory.save_weights(toy.INITIAL)
    link = Script(Finished(Head(named, 1, FIRST), ((1, total.contributors),)))
    link.sums[1] = total
    return link, memory


def test_the_next_model_is_computed_from_the_sum() -> None:
    total, following = one_round([0.5, 0.25, -0.25])
    link, memory = catching_up(total, model_hash(following))
    assert runner(link, memory=memory).run().history == ((1, ("a", "b", "c")),)
    kept = memory.weights()
    assert kept is not None
    np.testing.assert_array_equal(kept, following)
    assert link.kinds() == ["published"]
    assert link.of("poll") == [None]


def test_a_sum_that_does_not_give_the_named_model_is_refused() -> None:
    total, following = one_round([0.5, 0.25, -0.25])
    link, memory = catching_up(total, "f" * 64)
    assert left(link, memory=memory) == (
        f"the server names model {'f' * 64} where its own sum gives {model_hash(following)} "
        "(stop and talk to the coordinator: the server is broken, or lies)"
    )
    assert memory.weights() is toy.INITIAL


def test_a_round_below_the_quorum_is_refused() -> None:
    total, following = one_round([0.5, 0.25])
    link, memory = catching_up(total, model_hash(following))
    assert left(link, memory=memory).startswith("round 1 was closed below the quorum (stop and talk")


def test_a_sum_that_so_many_cannot_make_is_refused() -> None:
    fewer = toy.manifest(toy.plan(mode="plain", rounds=2, more="quorum: 2"))
    total, following = one_round([0.5, 0.25, -0.25])
    link, memory = catching_up(signed(replace(total, contributors=("a", "b"))), model_hash(following))
    assert "the total weight is not the 2 of 2 contributors" in left(link, fewer, memory=memory)


def test_a_server_that_goes_on_being_wrong_is_given_up() -> None:
    total, _ = one_round([0.5, 0.25, -0.25])
    link, memory = catching_up(total, "f" * 64)
    link.instructions *= 9
    error = refused(link, memory=memory)
    assert isinstance(error, ProtocolError)
    assert "where its own sum gives" in error.what
    assert len(link.of("published")) == 4


@pytest.mark.parametrize(
    "instruction",
    [
        ShareKeys(header(SECURE).sid0(), ()),
        Submit(header(SECURE).sid0(), ("a", "b", "c"), {}),
        Confirm(header(SECURE).sid0(), ("a", "b", "c")),
        Unmask(header(SECURE).sid0(), {}),
    ],
)
def test_steps_before_a_session_are_refused(instruction: Instruction) -> None:
    link = Script(instruction)
    why = left(link, SECURE)
    assert "out of order" in why or "of another session" in why
    assert link.kinds() == []


OTHER = header(SECURE, attempt=2).sid0()


@pytest.mark.parametrize(
    "instruction",
    [ShareKeys(OTHER, ()), Submit(OTHER, ("a", "b", "c"), {}), Confirm(OTHER, ("a", "b", "c")), Unmask(OTHER, {})],
)
def test_steps_of_another_session_are_refused(instruction: Instruction) -> None:
    link, memory = patient(Join(header(SECURE), START), instruction)
    why = left(link, SECURE, memory=memory)
    assert "out of order" in why or "of another session" in why
    assert link.kinds() == ["model", "advertise", "withdraw"]
    assert link.of("withdraw") == [(header(SECURE).sid0(), "refused")]


SESSION = header(SECURE).sid0()


@pytest.mark.parametrize(
    "instruction",
    [Submit(SESSION, ("a", "b", "c"), {}), Confirm(SESSION, ("a", "b", "c")), Unmask(SESSION, {})],
)
def test_steps_out_of_order_are_refused(instruction: Instruction) -> None:
    link, memory = patient(Join(header(SECURE), START), instruction)
    assert left(link, SECURE, memory=memory) == ("the server asks for a step out of order (this site released nothing)")
    assert link.kinds() == ["model", "advertise", "withdraw"]
    assert link.of("withdraw") == [(header(SECURE).sid0(), "refused")]


def test_a_step_that_comes_too_late_is_no_error() -> None:
    link, memory = patient(Join(header(), START), Wait("the next round"), LinkError("enough"))
    link.refusals["advertise"] = [StaleSession("that session has moved on")]
    assert refused(link, memory=memory).what == "enough"


def test_the_second_attempt_sends_the_stored_contribution() -> None:
    first, second = header(), header(attempt=2)
    everybody = ("a", "b", "c")
    link, memory = patient(
        Join(first, START), Submit(first.sid0(), everybody, {}), Join(second, START),
        Submit(second.sid0(), everybody, {}), LinkError("enough"),
    )  # fmt: skip
    trainer = toy.PullTrainer(1.0)
    refused(link, memory=memory, trainer=trainer)
    assert trainer.trained == [1]
    uploads = link.of("upload")
    assert len(uploads) == 2
    np.testing.assert_array_equal(uploads[0], uploads[1])


def test_a_restarted_site_sends_what_it_stored() -> None:
    link, memory = patient(Join(header(), START), Submit(header().sid0(), ("a", "b", "c"), {}), LinkError("killed"))
    refused(link, memory=memory)
    again = Patient(Join(header(attempt=2), START), Submit(header(attempt=2).sid0(), ("a", "b", "c"), {}))
    again.memory = memory
    trainer = toy.PullTrainer(-9.0)
    refused(again, memory=memory, trainer=trainer)
    assert trainer.trained == []
    np.testing.assert_array_equal(again.of("upload")[0], link.of("upload")[0])


@pytest.mark.parametrize(
    ("last", "joins"),
    [
        (None, True),
        ((1, 1, False), True),
        ((1, 2, False), False),
        ((1, 1, True), False),
        ((2, 1, False), False),
    ],
)
def test_a_site_only_goes_forward(last: tuple[int, int, bool] | None, joins: bool) -> None:
    offered, trainer = header(SECURE, attempt=2), toy.PullTrainer(1.0)
    link, memory = patient(Join(offered, START))
    if last is not None:
        memory.save_session(dump(Ended(*last, header(SECURE).sid0(), header(SECURE).roster)))
    before = memory.session()
    refused(link, SECURE, memory=memory, trainer=trainer)
    assert ("advertise" in link.kinds()) is joins
    if joins:
        kept = memory.session()
        assert kept is not None
        assert load(kept, toy.identity("a", SECURE)) == Ended(1, 2, False, offered.sid0(), offered.roster)
    else:
        assert link.of("withdraw") == [(offered.sid0(), "refused")]
        assert trainer.trained == []
        assert memory.session() == before


def test_another_model_is_trained_anew() -> None:
    total, following = one_round([0.5, 0.25, -0.25])
    name = model_hash(following)
    second = header(number=2, model=name)
    link, memory = patient(
        Join(header(), START), Submit(header().sid0(), ("a", "b", "c"), {}), Join(second, Head(name, 1, FIRST)),
        Submit(second.sid0(), ("a", "b", "c"), {}), LinkError("enough"),
    )  # fmt: skip
    link.sums[1] = total
    trainer = toy.PullTrainer(1.0)
    refused(link, memory=memory, trainer=trainer)
    assert trainer.trained == [1, 2]
    assert memory.contribution(1, FIRST) is None
    assert memory.contribution(2, name) is not None


def test_an_empty_purse_withdraws_before_training() -> None:
    joined = header(PRIVATE)
    link, trainer = Script(Join(joined, START), Wait("others")), toy.PullTrainer(1.0)
    error = refused(link, PRIVATE, charger=Purse(BudgetError("nothing left")), trainer=trainer)
    assert isinstance(error, BudgetError)
    assert (joined.sid0(), "budget") in link.of("withdraw")
    assert "advertise" not in link.kinds()
    assert trainer.trained == []


def test_a_budget_that_ends_the_study_ends_it_well() -> None:
    link = Script(Join(header(PRIVATE), START), Finished(START, ()), Wait("told twice"))
    notes: list[events.Event] = []
    site = runner(link, PRIVATE, charger=Purse(BudgetError("nothing left")), notify=notes.append)
    assert site.run() == Finished(START, ())
    assert events.Note("the study ends here: nothing left") in notes


def test_a_round_is_charged_before_it_is_trained_and_committed_after() -> None:
    second = header(PRIVATE, attempt=2)
    link, memory = patient(
        Join(header(PRIVATE), START), Join(second, START), Submit(second.sid0(), ("a", "b", "c"), {})
    )
    purse, seen = Purse(True), list[int]()
    trainer = toy.PullTrainer(1.0, before=lambda _: seen.append(len(purse.calls)))
    refused(link, PRIVATE, memory=memory, charger=purse, trainer=trainer)
    assert seen == [4]
    assert purse.calls == [
        ("check", None), ("check", None), ("charge", 1, 1, FIRST), ("countersigned", "ab" * 32), ("commit", 1, 1)
    ]  # fmt: skip
    assert link.of("claim") == [LedgerClaim(1, 10, "ab" * 32, None, 1, 1)]
    assert link.kinds().index("claim") < link.kinds().index("advertise")


def test_an_attempt_that_was_charged_before_is_sat_out() -> None:
    joined = header(PRIVATE)
    link, trainer = Script(Join(joined, START), Wait("the next round"), LinkError("enough")), toy.PullTrainer(1.0)
    refused(link, PRIVATE, charger=Purse(False), trainer=trainer)
    assert link.of("withdraw")[0] == (joined.sid0(), "interrupted")
    assert "advertise" not in link.kinds()
    assert trainer.trained == []


def test_privacy_and_ledger_go_together() -> None:
    with pytest.raises(ProtocolError, match="a private study needs a ledger, and only a private study does"):
        runner(Script(), PRIVATE)
    with pytest.raises(ProtocolError, match="a private study needs a ledger, and only a private study does"):
        runner(Script(), PLAIN, charger=Purse())


def test_a_stop_leaves_the_session_and_says_how_to_go_on() -> None:
    stop = threading.Event()
    link, memory = patient(Join(header(), START))
    trainer = toy.PullTrainer(1.0, before=lambda _: stop.set())
    poll = link.poll

    def poll_after_training(session: bytes | None) -> Instruction:
        return wait_for(stop.is_set) if session else poll(session)

    link.poll = poll_after_training  # type: ignore[method-assign]
    error = refused(link, memory=memory, trainer=trainer, stop=stop)
    assert isinstance(error, Interrupted)
    assert "nothing is lost" in error.what
    assert link.of("withdraw") == [(header().sid0(), "interrupted")]


def test_a_paused_study_is_left_without_a_withdrawal() -> None:
    link, memory = patient(Join(header(), START), Paused("lunch"))
    error = refused(link, memory=memory)
    assert isinstance(error, BelowQuorum)
    assert str(error) == "the study is paused: lunch (go on with: fedseg client join --state DIR)"
    assert link.of("withdraw") == []


def test_a_training_that_fails_ends_the_site_with_its_own_error() -> None:
    def fail(_: int) -> None:
        raise ProtocolError("training broke")

    link, memory = patient(Join(header(), START), *[Wait("others")] * 500)
    trainer = toy.PullTrainer(1.0, before=fail)
    breath, poll = threading.Event(), link.poll

    def poll_slowly(session: bytes | None) -> Instruction:
        breath.wait(0.005)
        return poll(session)

    link.poll = poll_slowly  # type: ignore[method-assign]
    assert refused(link, memory=memory, trainer=trainer).what == "training broke"
    assert link.of("withdraw") == [(header().sid0(), "failed")]


def test_a_server_that_cannot_be_told_of_leaving_does_not_hide_the_reason() -> None:
    link, memory = patient(Join(header(), START), LinkError("the wire broke"))
    link.refusals["withdraw"] = [LinkError("still broken")]
    notes: list[events.Event] = []
    assert refused(link, memory=memory, notify=notes.append).what == "the wire broke"
    assert events.Note("the server could not be told that this site leaves") in notes


def test_an_update_beyond_the_clip_is_shortened_and_said() -> None:
    link, memory = patient(Join(header(), START), Submit(header().sid0(), ("a", "b", "c"), {}))
    notes: list[events.Event] = []
    refused(link, memory=memory, trainer=toy.PullTrainer(1000.0), notify=notes.append)
    (said,) = [event for event in notes if isinstance(event, events.Encoded)]
    line = "round 1: the update's norm is 1.58e+04, brought down to the plan's clip 64; rounding moves it by "
    assert str(describe(said)).startswith(line)
    assert 0 < said.relative_error < 1e-5
    mean = encoding_of(PLAIN).decode(link.of("upload")[0], [1])
    assert mean.norm == pytest.approx(64.0, rel=1e-4)


def test_a_model_taken_on_the_servers_word_is_written_down_once_and_said() -> None:
    other = np.full(toy.SIZE, 0.25, np.float32)
    head = Head(model_hash(other), 3, "ab" * 32)
    link, evidence = Script(Join(header(number=4, model=head.model_hash), head)), MemoryEvidence()
    said: list[events.Event] = []
    link.models[head.model_hash] = other
    refused(link, evidence=evidence, notify=said.append)
    fetched = {"round": 3, "base_model": "ab" * 32, "model": head.model_hash}
    assert [body for kind, body in evidence.entries() if kind == "fetched"] == [fetched]
    assert events.Taken(3) in said


def test_a_best_model_taken_on_the_servers_word_is_written_down_and_said() -> None:
    scored = toy.manifest(toy.plan(mode="plain", rounds=2, more="rollback: {drop: 0.1}"))
    best = Best("cd" * 32, 0.9)
    other = np.full(toy.SIZE, 0.25, np.float32)
    head = Head(model_hash(other), 3, "ab" * 32, best)
    link, evidence = Script(Join(header(scored, number=4, model=head.model_hash), head)), MemoryEvidence()
    said: list[events.Event] = []
    link.models[head.model_hash] = other
    refused(link, scored, evidence=evidence, notify=said.append)
    believed = {"round": 3, "model": best.model_hash, "score": 0.9}
    assert [body for kind, body in evidence.entries() if kind == "believed"] == [believed]
    assert events.Taken(3) in said


def test_a_site_is_not_led_back_behind_a_round_that_it_knows() -> None:
    evidence, memory = MemoryEvidence(), SiteMemory()
    evidence.append("closed", {"round": 1, "contributors": ["a", "b", "c"], "next_model": FIRST})
    memory.save_weights(np.full(toy.SIZE, 0.25, np.float32))
    why = left(Script(Join(header(number=2), START)), memory=memory, evidence=evidence)
    assert why.startswith("the server's newest round is 0, this site knows of round 1")
    assert [kind for kind, _ in evidence.entries()] == ["closed", "roster"]


@pytest.mark.parametrize(
    "history",
    [
        ((1, ("a", "b", "c")), (77, ("a", "b", "c"))),
        ((1, ("a", "b")),),
        ((1, ("a", "b", "mallory")),),
        ((2, ("a", "b", "c")),),
    ],
)
def test_a_history_that_this_site_did_not_see_is_refused(history: tuple[tuple[int, tuple[str, ...]], ...]) -> None:
    evidence, memory = MemoryEvidence(), SiteMemory()
    one_round_plan = toy.manifest(toy.plan(mode="plain", rounds=1))
    evidence.append("closed", {"round": 1, "contributors": ["a", "b", "c"], "next_model": FIRST})
    memory.save_weights(toy.INITIAL)
    head = Head(FIRST, 1, "ab" * 32)
    why = left(Script(Finished(head, history)), one_round_plan, memory=memory, evidence=evidence)
    assert why.startswith("the server tells of other rounds than this site has seen, or the plan allows")
