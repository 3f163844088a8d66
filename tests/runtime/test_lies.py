"""A coordinator that lies to some of its sites, and sites that lie to it, in whole studies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedseg.errors import ProtocolError, RosterError
from fedseg.federation.exchange import (
    Best,
    Enrolled,
    Finished,
    Instruction,
    Join,
    Published,
    RingVector,
    ShareKeys,
    Wait,
    WithdrawReason,
)
from fedseg.federation.vector import model_hash
from fedseg.plan.manifest import Manifest
from fedseg.runtime import events
from fedseg.runtime.evidence import MemoryEvidence
from fedseg.runtime.pinning import roster_in_force
from fedseg.runtime.session import roster_of
from fedseg.runtime.simulation import SiteMemory
from fedseg.secagg.messages import Advertisement
from fedseg.secagg.roster import Identity, Roster
from fedseg.secagg.signing import public_half
from tests.runtime import toy
from tests.runtime.script import FIRST, signed
from tests.runtime.threads import FailingLink, Failure, Study, contradictions, run
from tests.secagg.helpers import key

FIVE = {"a": 1.0, "b": 2.0, "c": -0.5, "d": 0.3, "e": 1.7}
TALK = " (stop and talk to the coordinator: the server is broken, or lies)"
OTHER = np.full(toy.SIZE, 0.25, np.float32)
EVIL = model_hash(OTHER)
SCORED = "rollback: {drop: 0.5}"
Lies = Mapping[str, Callable[..., Any]]


class LyingLink:
    """A connection over which some answers are not those that the coordinator gave, or never asked of it."""

    def __init__(self, study: Study, site: str, lies: Lies, instead: Lies | None = None) -> None:
        self._link, self._lies, self._instead = FailingLink(study.coordinator, site), lies, instead or {}

    def __getattr__(self, name: str) -> Any:
        if name in self._instead:
            return self._instead[name]
        method, lie = getattr(self._link, name), self._lies.get(name)
        return method if lie is None else lambda *arguments: lie(method(*arguments))


def trainers(**more: Any) -> dict[str, toy.PullTrainer]:
    return {site: toy.PullTrainer(target, **more) for site, target in FIVE.items()}


def of(rounds: int = 2, mode: str = "secure", more: str = "") -> Manifest:
    """A study that doesn't wait long for anybody."""
    manifest = toy.manifest(toy.plan(tuple(FIVE), mode=mode, rounds=rounds, absent_s=2, more=more))
    schedule = manifest.plan.schedule.model_copy(update={"deadline_s": 4.0})
    return manifest.model_copy(update={"plan": manifest.plan.model_copy(update={"schedule": schedule})})


def told_lies(lies: Lies, manifest: Manifest, *deceived: str, **more: Any) -> Study:
    """A study in which these sites are lied to."""
    study = Study(manifest, trainers(**more))
    honest = study.links
    study.links = lambda site: LyingLink(study, site, lies) if site in deceived else honest(site)
    return study


def joins(bend: Callable[[Join], Join]) -> Lies:
    return {"poll": lambda told: bend(told) if isinstance(told, Join) else told}


def heads(bend: Callable[[Any], Any], *, closed: int = 1) -> Callable[[Instruction], Instruction]:
    """A lie about where the study stands, from some closed round on."""

    def lie(told: Instruction) -> Instruction:
        if isinstance(told, Join | Finished) and told.head.closed_round >= closed:
            return replace(told, head=bend(told.head))
        return told

    return lie


def another_sum(published: Published) -> Published:
    total = published.total.copy()
    total[0] += 1 << 16
    return signed(replace(published, total=total))


def named(model: str) -> Lies:
    return {
        "published": lambda each: signed(replace(each, next_model=model)),
        "poll": heads(lambda head: replace(head, model_hash=model)),
    }


LIES: dict[str, tuple[Lies, str]] = {
    "another sum": ({"published": another_sum}, "the server names model {right} where its own sum gives "),
    "another next model": (named("e" * 64), "the server names model " + "e" * 64 + " where its own sum gives {right}"),
    "another sum's contributors": (
        {"published": lambda each: signed(replace(each, contributors=each.contributors[:4]))},
        "the server published a sum for round 1 of others than this site has signed for",
    ),
    "the sum of another attempt": (
        {"published": lambda each: signed(replace(each, session=bytes(32)))},
        "the server published a sum for round 1 of others than this site has signed for",
    ),
    "a sum that it does not sign": (
        {"published": lambda each: replace(each, signature=bytes(64))},
        "the signature of server in Close does not verify",
    ),
    "another base": (
        {"poll": heads(lambda head: replace(head, base_model=EVIL, model_hash=EVIL))},
        f"the server says that round 1 started from model {EVIL}, it was {FIRST}",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_site_that_is_lied_to_about_a_round_refuses_and_keeps_its_model(lie: str, tmp_path: Path) -> None:
    lies, says = LIES[lie]
    study = told_lies(lies, of(), "a")
    outcome = study.run()
    calm = run(of(1), trainers())
    error = study.errors.pop("a")
    assert isinstance(error, ProtocolError)
    assert study.errors == {}
    assert error.what.startswith(says.format(right=model_hash(calm.weights)))
    np.testing.assert_array_equal(study.own["a"], toy.INITIAL)
    # The others go on, and know it.
    assert [number for number, _ in outcome.history] == [1, 2]
    assert outcome.history[1][1] == ("b", "c", "d", "e")
    assert [kind for kind, _ in outcome.logs["a"].entries()].count("closed") == 0
    assert contradictions(tmp_path, study.manifest.study, outcome.logs) == []


def test_a_best_model_that_the_scores_do_not_give_is_refused(tmp_path: Path) -> None:
    lies: Lies = {"poll": heads(lambda head: replace(head, best=Best(EVIL, 0.9)))}
    study = told_lies(lies, of(more=SCORED), "a", score=lambda _: 0.5)
    outcome = study.run()
    assert str(study.errors.pop("a")) == (
        "the server names another best model than the published scores give"
        " (stop and talk to the coordinator: the server is broken, or lies)"
    )
    assert study.errors == {}
    assert study.memories["a"].best() is None
    assert [number for number, _ in outcome.history] == [1, 2]
    assert contradictions(tmp_path, study.manifest.study, outcome.logs) == []


@pytest.mark.parametrize(
    ("bend", "says"),
    [
        (lambda header: replace(header, t=0, c=0), "the session's c is not the one this site expects"),
        (lambda header: replace(header, c=0, t=3, m=3), "the session's c is not the one this site expects"),
        (lambda header: replace(header, c=3, t=5, m=5), "the session's c is not the one this site expects"),
        (lambda header: replace(header, model_hash=bytes(32)), "the session's model hash is not the one"),
        (lambda header: replace(header, plan_hash=bytes(32)), "the study goes on under another plan, 0000000000000000"),
        (lambda header: replace(header, sites=("a", "b", "c", "d", "f")), "the session's sites is not the one"),
    ],
)
def test_a_session_that_is_not_the_plans_is_refused_with_nothing_sent(bend: Any, says: str) -> None:
    study = told_lies(joins(lambda told: replace(told, header=bend(told.header))), of(), "a")
    outcome = study.run()
    assert says in str(study.errors["a"])
    assert study.trainers["a"].trained == []
    assert [kind for kind, _ in outcome.logs["a"].entries()] == ["roster"]
    assert [number for number, _ in outcome.history] == [1, 2]


def test_a_plain_session_in_a_secure_study_gets_nothing_from_anybody() -> None:
    def plain(told: Join) -> Join:
        return replace(told, header=replace(told.header, c=0, t=0, m=5))

    study = told_lies(joins(plain), of(), *FIVE)
    outcome = study.run()
    assert set(study.errors) == set(FIVE)
    for site, error in study.errors.items():
        assert "the session's c is not the one this site expects" in str(error)
        assert [kind for kind, _ in outcome.logs[site].entries()] == ["roster"]
    assert outcome.history == ()


@dataclass
class Pins:
    """What site a's operator confirmed."""

    roster: Roster | None
    protocol_key: bytes = key("a")
    approved: bytes | None = None

    def pin_roster(self, roster: Roster) -> None:
        self.roster = roster


def test_another_roster_ends_a_sites_part_until_its_operator_approves_it() -> None:
    manifest = of()
    honest = toy.enrolled(manifest)
    minted = Enrolled(honest.server_key, {**honest.keys, "b": public_half(key("minted"))})
    fingerprint = toy.roster(manifest).fingerprint
    lies: Lies = {
        **joins(lambda told: replace(told, header=replace(told.header, roster=bytes(32)))),
        "roster": lambda _: minted,
    }
    study, pins = told_lies(lies, manifest, "a"), Pins(toy.roster(manifest))
    study.confirms = lambda site, enrolled: roster_in_force(pins, manifest, site, enrolled)
    outcome = study.run()
    error = study.errors["a"]
    assert isinstance(error, RosterError)
    assert "the roster is not the one that was confirmed here: b has another key" in error.what
    assert fingerprint.hex() in error.what
    assert study.trainers["a"].trained == []
    assert [kind for kind, _ in outcome.logs["a"].entries()] == ["roster"]
    assert [number for number, _ in outcome.history] == [1, 2]


def test_an_approved_roster_is_gone_on_under_and_logged(tmp_path: Path) -> None:
    """Site b has lost its disk, and enrolled again while the study was paused."""
    manifest = of()
    study = Study(manifest, trainers())
    study.trainers["a"].before = lambda number: study.coordinator.pause("b enrols again") if number == 2 else None
    study.run()
    assert {str(error).split(" (")[0] for error in study.errors.values()} == {"the study is paused: b enrols again"}
    first = study.roster
    keys = {**study.enrolled.keys, "b": public_half(key("b, anew"))}
    study.enrolled = Enrolled(study.enrolled.server_key, keys)
    study.roster = roster_of(manifest, study.enrolled)
    study.memories["b"], study.logs["b"] = SiteMemory(), MemoryEvidence()
    study.identities["b"] = Identity("b", key("b, anew"), study.roster)
    study.trainers["a"].before = lambda _: None
    study.errors.clear()
    study.start()
    outcome = study.run()
    assert study.errors == {}
    # A second attempt is only for those who remember the first: the round that was paused has none.
    assert outcome.history == ((1, tuple(FIVE)), (3, tuple(FIVE)))
    for party in ("server", "a", "c"):
        pinned = [body["fingerprint"] for kind, body in outcome.logs[party].entries() if kind == "roster"]
        assert pinned == [first.fingerprint.hex(), study.roster.fingerprint.hex()]
    del study.logs["b"]  # it is signed with a key that the first roster doesn't hold
    assert contradictions(tmp_path, manifest.study, outcome.logs) == []


# Two models.


class TwoModels(Study):
    """Site b misses round 1, and is given another model for round 2 than the others have.

    Args:
        relayed: The server tells the others that b is one of them; or it plays by the rules towards them.
    """

    def __init__(self, *, relayed: bool) -> None:
        super().__init__(of(), trainers())
        self.relayed, self.minted = relayed, list[Advertisement]()
        self.sessions: dict[bytes, bytes] = {}
        self.links = self._link

    def _link(self, site: str) -> LyingLink:
        if site != "b":
            return LyingLink(self, site, {"poll": self._with_b})
        instead: Lies = {"advertise": self._advertise, "model": lambda *_: OTHER, "withdraw": self._withdraw}
        return LyingLink(self, site, {"poll": self._to_b}, instead)

    def _to_b(self, told: Instruction) -> Instruction:
        if not isinstance(told, Join):
            return told
        if told.head.closed_round == 0:
            self._withdraw(told.header.sid0(), "interrupted")
            return Wait("the next round")
        header = replace(told.header, model_hash=bytes.fromhex(EVIL))
        self.sessions[header.sid0()] = told.header.sid0()
        return Join(header, replace(told.head, model_hash=EVIL, base_model="c" * 64))

    def _advertise(self, session: bytes, message: Advertisement) -> None:
        if not self.relayed:
            self.coordinator.advertise("b", self.sessions[session], message)
        self.minted[:] = [message]
        self._withdraw(session, "interrupted")

    def _withdraw(self, session: bytes, reason: WithdrawReason) -> None:
        self.coordinator.withdraw("b", self.sessions.get(session, session), reason)

    def _with_b(self, told: Instruction) -> Instruction:
        if isinstance(told, ShareKeys) and self.relayed:
            return replace(told, advertisements=(*told.advertisements, *self.minted))
        return told


def released(study: Study, site: str) -> list[str]:
    """What a site has signed or released after round 1."""
    entries = [kind for kind, _ in study.logs[site].entries()]
    start = entries.index("closed") + 1 if "closed" in entries else 0
    return [kind for kind in entries[start:] if kind in ("masked", "confirmed", "unmask", "closed")]


def test_sites_with_two_models_cannot_be_summed_and_release_nothing() -> None:
    study = TwoModels(relayed=True)
    outcome = study.run()
    assert outcome.history == ((1, ("a", "c", "d", "e")),)
    for site in FIVE:
        assert released(study, site) == []
    notes = [note.text for site in "acde" for note in study.notes[site] if isinstance(note, events.Note)]
    assert any("this site leaves the attempt: site b at AdvertiseKeys" in note for note in notes)
    # It was shown another model, and trained it; nothing of that has left it.
    assert 2 in study.trainers["b"].trained
    assert {row.state for row in outcome.archive.rounds()[1:]} == {"abandoned"}


def test_a_site_with_another_model_is_left_out_by_a_server_that_plays_by_the_rules(tmp_path: Path) -> None:
    study = TwoModels(relayed=False)
    outcome = study.run()
    assert outcome.history == ((1, ("a", "c", "d", "e")), (2, ("a", "c", "d", "e")))
    assert released(study, "b") == []
    for site in ("a", "c", "d", "e"):
        np.testing.assert_array_equal(outcome.own[site], outcome.weights)
    # Its log shows the lie to whoever lays it beside another.
    model = outcome.archive.rounds()[-1].model_hash
    headers, fetched = contradictions(tmp_path, study.manifest.study, outcome.logs)
    assert headers == (
        f": the logs have different headers; model hash: {model[:16]} by server, site a, site c, site d, site e; "
        f"{EVIL[:16]} by site b"
    )
    assert f"site b was given model {EVIL[:16]} as that of round 1, which ended with {model[:16]}" in fetched


# Sites that lie.


class LyingMemory(SiteMemory):
    """The disk of a site that bends its contribution, in some rounds."""

    def __init__(self, bend: Callable[[RingVector], None], rounds: int) -> None:
        super().__init__()
        self._bend, self._rounds = bend, rounds

    def contribution(self, round_number: int, model: str) -> RingVector | None:
        kept = super().contribution(round_number, model)
        if kept is None or round_number > self._rounds:
            return kept
        bent = kept.copy()
        self._bend(bent)
        return bent


def _weight(vector: RingVector) -> None:
    vector[toy.SIZE] *= 2


def _length(vector: RingVector) -> None:
    vector[:2] = 1 << 30


def _score(vector: RingVector) -> None:
    vector[toy.SIZE + 1] += 1 << 31


BENT: dict[Callable[[RingVector], None], str] = {
    _weight: "the total weight is not the 5 of 5 contributors: masks did not cancel",
    _length: "exceeds the clip 64: a contributor did not keep to it",
    _score: "the scores are not those of 5 contributors: one did not keep to the range",
}


def with_liar(manifest: Manifest, bend: Callable[[RingVector], None], rounds: int, *failures: Failure) -> Study:
    """Site e lies in the first so many rounds."""
    study = Study(manifest, trainers(score=lambda _: 0.5), *failures)
    study.memories["e"] = LyingMemory(bend, rounds)
    return study


@pytest.mark.parametrize("bend", BENT)
def test_a_masked_liar_makes_its_round_void_and_the_study_goes_on(
    bend: Callable[[RingVector], None], tmp_path: Path
) -> None:
    study = with_liar(of(1, more=SCORED), bend, 1)
    outcome = study.run()
    assert study.errors == {}
    (why,) = [event.why for event in outcome.told if isinstance(event, events.RoundAbandoned)]
    assert BENT[bend] in why
    assert outcome.rounds == [(1, 1, "void"), (2, 1, "closed")]
    assert outcome.history == ((2, tuple(FIVE)),)
    for site in FIVE:
        np.testing.assert_array_equal(outcome.own[site], outcome.weights)
        # Round 2 has summed over the model of round 1 again, of the same contributors.
        (reused,) = [body for kind, body in outcome.logs[site].entries() if kind == "reused"]
        assert (reused["round"], reused["earlier_round"], reused["u3"]) == (2, 1, list(FIVE))
    assert [body["why"] for kind, body in outcome.logs["server"].entries() if kind == "aborted"] == [why]
    assert contradictions(tmp_path, study.manifest.study, outcome.logs) == []


def test_a_masked_liar_that_goes_on_pauses_the_study_with_the_reason() -> None:
    study = with_liar(of(1, more=SCORED), _weight, 99)
    outcome = study.run()
    assert outcome.rounds == [(number, 1, "void") for number in range(1, 7)]
    reason = f"round 6 brought no sum: {BENT[_weight]}"
    assert study.coordinator.reason == reason
    assert {error.what for error in study.errors.values()} == {f"the study is paused: {reason}"}
    np.testing.assert_array_equal(outcome.weights, toy.INITIAL)


@pytest.mark.parametrize("may_reuse", [False, True])
def test_without_the_liar_its_round_is_another_sum_over_one_model_which_the_policy_must_allow(
    may_reuse: bool, tmp_path: Path
) -> None:
    gone: tuple[Failure, ...] = tuple(("e", "join", number, attempt) for number in range(2, 9) for attempt in (1, 2))
    study = with_liar(of(1, more=SCORED), _weight, 1, *gone)
    study.may_reuse = may_reuse
    outcome = study.run()
    if may_reuse:
        assert study.errors == {}
        assert outcome.history == ((2, ("a", "b", "c", "d")),)
        assert contradictions(tmp_path, study.manifest.study, outcome.logs) == []
        return
    assert outcome.history == ()
    says = "would be a second sum over the model of round 1, of other contributors"
    told = [note for site in FIVE for note in study.notes[site] if isinstance(note, events.Note) and says in note.text]
    assert len(told) >= 2
    for site in FIVE:
        kinds = [kind for kind, _ in outcome.logs[site].entries()]
        assert (kinds.count("confirmed"), kinds.count("unmask")) == (1, 1)


@pytest.mark.parametrize("bend", BENT)
def test_in_plain_mode_a_liar_is_named_and_left_out(bend: Callable[[RingVector], None], tmp_path: Path) -> None:
    study = with_liar(of(1, "plain", "quorum: 4, " + SCORED), bend, 99)
    outcome = study.run()
    reason = "sent an update that breaks the plan's clip, its weight or the range of scores"
    assert outcome.history == ((1, ("a", "b", "c", "d")),)
    assert outcome.archive.rounds()[0].lost == {"e": f"{reason} in MaskedInputCollection"}
    notes = [note.text for note in study.notes["e"] if isinstance(note, events.Note)]
    assert notes[0] == f"this site leaves the attempt: site e at MaskedInputCollection: {reason}"
    assert contradictions(tmp_path, study.manifest.study, outcome.logs) == []


@pytest.mark.parametrize(
    ("rule", "spoiled"),
    [("mean", True), ("median", False), ("trimmed_mean, liars: 1", False), ("multi_krum, liars: 1", False)],
)
def test_a_robust_rule_is_not_spoiled_by_one_liar_and_every_site_follows_it(
    rule: str, spoiled: bool, tmp_path: Path
) -> None:
    manifest, honest = of(1, "plain", f"rule: {rule}"), {"a": 1.0, "b": 1.1, "c": 1.2, "d": 0.9}
    # The liar pulls as hard as the clip lets it.
    study = Study(manifest, {site: toy.PullTrainer(target) for site, target in {**honest, "e": -1000.0}.items()})
    outcome = study.run()
    assert study.errors == {}
    inside = (outcome.weights >= 0.449) & (outcome.weights <= 0.601)
    assert inside.all() != spoiled
    for own in outcome.own.values():
        np.testing.assert_array_equal(own, outcome.weights)
    assert contradictions(tmp_path, manifest.study, outcome.logs) == []
