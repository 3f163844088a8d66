from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedseg.errors import ProtocolError, StaleSession
from fedseg.federation.exchange import CLOSE, SERVER, Best, Head, Published
from fedseg.federation.vector import Weights, model_hash
from fedseg.plan.manifest import Manifest
from fedseg.runtime import events
from fedseg.runtime.evidence import session_entry
from fedseg.runtime.following import Follower, most_closed
from fedseg.runtime.participation import Participation
from fedseg.runtime.simulation import SiteMemory
from fedseg.secagg.signing import public_half, sign
from fedseg.secagg.state import Joined, dump
from tests.runtime import toy
from tests.runtime.script import FIRST, PLAIN, SECURE, START, Script, header, one_round, signed
from tests.secagg.helpers import entropy, key

ALL = ("a", "b", "c")
SCORED = toy.manifest(toy.plan(rounds=9, more="rollback: {drop: 0.1}"))
TALK = " (stop and talk to the coordinator: the server is broken, or lies)"
OTHER_BEST = "the server names another best model than the published scores give" + TALK


class PowerCut(Exception):
    """The machine stopped at a write."""


class Disk(SiteMemory):
    """A site's disk, log and process; one write can be the last."""

    def __init__(self, manifest: Manifest = SECURE, weights: Weights | None = toy.INITIAL) -> None:
        super().__init__()
        self.manifest, self.link, self.notes = manifest, Script(), list[events.Event]()
        self.log = list[tuple[str, Mapping[str, Any]]]()
        self.writes_left: int | None = None
        if weights is not None:
            super().save_weights(weights)
        self.restart()

    def restart(self) -> None:
        self.writes_left = None
        self.part = Participation(toy.identity("a", self.manifest), self, self, entropy=entropy("a"), may_reuse=False)
        self.follower = Follower(
            self.manifest, self.link, self, self, notify=self.notes.append, patiently=lambda call: call()
        )

    def catch_up(self, head: Head) -> bool:
        return self.follower.catch_up(head, self.part, public_half(key("server")))

    def told(self, published: Published, *models: Weights) -> None:
        """What the server has to give."""
        self.link.sums[published.round] = published
        self.link.models |= {model_hash(model): model for model in models}

    def of(self, kind: str) -> list[Mapping[str, Any]]:
        return [body for each, body in self.log if each == kind]

    def _write(self) -> None:
        if self.writes_left is not None:
            self.writes_left -= 1
            if self.writes_left < 0:
                raise PowerCut

    def save_weights(self, weights: Weights) -> None:
        self._write()
        super().save_weights(weights)

    def save_session(self, data: bytes) -> None:
        self._write()
        super().save_session(data)

    def save_best(self, best: Best) -> None:
        self._write()
        super().save_best(best)

    def entries(self) -> tuple[tuple[str, Mapping[str, Any]], ...]:
        return tuple(self.log)

    def append(self, kind: str, body: Mapping[str, object]) -> None:
        self._write()
        self.log.append((kind, body))


def refusal(disk: Disk, head: Head) -> str:
    with pytest.raises(ProtocolError) as caught:
        disk.catch_up(head)
    return str(caught.value)


def holds(disk: Disk, weights: Weights) -> None:
    """The site holds this model, on its disk too."""
    kept = disk.weights()
    assert kept is not None
    np.testing.assert_array_equal(kept, weights)
    assert disk.follower.state is kept


def closed(number: int = 1, **more: Any) -> tuple[Published, Weights, Head]:
    total, following = one_round([0.5, 0.25, -0.25], SECURE, number=number, **more)
    return total, following, Head(model_hash(following), number, FIRST)


# A sum.


def test_the_next_model_is_made_of_the_sum_and_written_down_once() -> None:
    disk = Disk()
    total, following, head = closed()
    disk.told(total)
    assert disk.catch_up(head)
    holds(disk, following)
    (entry,) = disk.of("closed")
    assert {name: entry[name] for name in ("round", "session", "contributors", "base_model", "next_model")} == {
        "round": 1, "session": total.session.hex(), "contributors": list(ALL), "base_model": FIRST,
        "next_model": model_hash(following),
    }  # fmt: skip
    assert (entry["weight"], entry["sum"], entry["score"], entry["rolled_back"]) == (3, total.digest.hex(), None, False)
    assert entry["signature"] == total.signature.hex()
    assert 0 < entry["relative_error"] < 1e-4
    assert not disk.catch_up(head)
    assert len(disk.log) == 1
    assert disk.link.kinds() == ["published"]


@pytest.mark.parametrize("scored", [False, True])
def test_a_power_cut_at_any_write_is_made_good(scored: bool) -> None:
    manifest = SCORED if scored else SECURE
    total, following = one_round([0.5, 0.25, -0.25], manifest, scores=[0.4, 0.6, None] if scored else ())
    head = Head(model_hash(following), 1, FIRST, Best(FIRST, 0.5) if scored else None)
    for writes in range(10):
        disk = Disk(manifest)
        disk.part.join(header(manifest))
        disk.told(total)
        disk.writes_left = writes
        try:
            disk.catch_up(head)
        except PowerCut:
            disk.restart()
            disk.catch_up(head)
        holds(disk, following)
        assert [kind for kind, _ in disk.log] == ["session", "closed"]
        assert disk.part.session is None
        assert disk.best() == head.best
    assert disk.writes_left == 9 - 3 - scored


@pytest.mark.parametrize(
    "bend",
    [
        lambda each: replace(each, signature=bytes(64)),
        lambda each: replace(each, signature=sign(key("b"), CLOSE, each.session, SERVER, each.statement)),
        lambda each: replace(each, signature=sign(key("server"), "Open", each.session, SERVER, each.statement)),
        lambda each: replace(each, signature=sign(key("server"), CLOSE, bytes(32), SERVER, each.statement)),
        lambda each: replace(each, signature=sign(key("server"), CLOSE, each.session, "a", each.statement)),
        lambda each: replace(each, contributors=("a", "b", "d")),
        lambda each: replace(each, total=each.total + np.uint32(1)),
        lambda each: replace(each, next_model="f" * 64),
        lambda each: replace(each, session=bytes(32)),
    ],
)
def test_what_the_server_did_not_sign_is_refused(bend: Callable[[Published], Published]) -> None:
    disk = Disk()
    total, _, head = closed()
    disk.told(bend(total))
    assert "signature" in refusal(disk, head)
    holds(disk, toy.INITIAL)
    assert disk.log == []


def test_another_next_model_is_refused_and_both_are_named_in_full() -> None:
    total, following, head = closed()
    made, other = model_hash(following), "e" * 64
    cases = {
        "head": (total, replace(head, model_hash=other)),
        "signed": (signed(replace(total, next_model=other)), head),
        "both": (signed(replace(total, next_model=other)), replace(head, model_hash=other)),
    }
    for published, named in cases.values():
        disk = Disk()
        disk.told(published)
        assert refusal(disk, named) == f"the server names model {other} where its own sum gives {made}{TALK}"
        holds(disk, toy.INITIAL)
        assert disk.log == []


def test_a_changed_sum_makes_another_model_than_the_one_named() -> None:
    disk = Disk()
    total, following, head = closed()
    bent = total.total.copy()
    bent[0] += 1 << 16
    disk.told(signed(replace(total, total=bent)))
    assert refusal(disk, head).startswith(f"the server names model {model_hash(following)} where its own sum gives ")


def test_the_sum_of_another_round_is_refused() -> None:
    disk = Disk()
    total, following, _ = closed(number=1)
    disk.link.sums[2] = total
    assert refusal(disk, Head(model_hash(following), 2, FIRST)) == "the server sent the sum of round 1, not 2"


@pytest.mark.parametrize(
    ("contributors", "says"),
    [
        (("a", "b"), "round 1 was closed below the quorum" + TALK),
        (("a", "b", "z"), "round 1 was closed with sites that the plan does not name" + TALK),
    ],
)
def test_contributors_that_cannot_be_are_refused(contributors: tuple[str, ...], says: str) -> None:
    disk = Disk()
    total, _, head = closed()
    disk.told(signed(replace(total, contributors=contributors)))
    assert refusal(disk, head) == says


def agreed(disk: Disk, sid: bytes, u3: tuple[str, ...], *, answered: bool = False) -> None:
    """This site has signed for these contributors in round 1."""
    session = header(disk.manifest).sid0()
    body = {"session": session.hex(), "sid": sid.hex(), "u2": list(u3), "u3": list(u3)}
    disk.log += [("session", session_entry(header(disk.manifest))), ("confirmed", body)]
    if answered:
        disk.log.append(("unmask", body))
    disk.restart()


def test_a_sum_of_others_than_this_site_has_signed_for_is_refused() -> None:
    four = toy.manifest(toy.plan(("a", "b", "c", "d", "e"), rounds=2))
    everybody = four.plan.site_names
    total, following = one_round([0.5] * 4, four, sites=everybody[:4])
    head = Head(model_hash(following), 1, FIRST)
    says = "the server published a sum for round 1 of others than this site has signed for" + TALK
    for sid, u3, answered, lies in (
        (total.session, everybody, False, True),
        (total.session, everybody[:4], True, False),
        # Attempt 2, without this site, is no lie where attempt 1 never came to step 5.
        (bytes(32), everybody, False, False),
        (bytes(32), everybody, True, True),
    ):
        disk = Disk(four)
        agreed(disk, sid, u3, answered=answered)
        disk.told(total)
        if lies:
            assert refusal(disk, head) == says
            holds(disk, toy.INITIAL)
        else:
            assert disk.catch_up(head)


def test_a_round_that_this_site_was_in_started_where_it_started() -> None:
    disk = Disk()
    disk.part.join(header(SECURE))
    total, following, head = closed()
    disk.told(total, following)
    assert refusal(disk, replace(head, base_model="e" * 64)) == (
        f"the server says that round 1 started from model {'e' * 64}, it was {FIRST}{TALK}"
    )
    assert disk.link.kinds() == []
    assert disk.part.session is not None
    assert disk.catch_up(head)


# A model.


def test_who_holds_nothing_fetches_the_model_by_its_hash() -> None:
    disk = Disk(weights=None)
    assert disk.catch_up(START)
    holds(disk, toy.INITIAL)
    assert disk.log == []


def test_who_missed_a_round_fetches_the_model_by_its_hash_and_leaves_its_session() -> None:
    disk = Disk()
    disk.part.join(header(SECURE))
    third = np.full(toy.SIZE, 3, np.float32)
    disk.link.models[model_hash(third)] = third
    assert disk.catch_up(Head(model_hash(third), 3, "c" * 64))
    holds(disk, third)
    assert disk.of("fetched") == [{"round": 3, "base_model": "c" * 64, "model": model_hash(third)}]
    assert events.Taken(3) in disk.notes
    assert disk.of("aborted") == [
        {"session": header(SECURE).sid0().hex(), "why": "the study went on without this site"}
    ]


@pytest.mark.parametrize("sent", [np.ones(toy.SIZE, np.float32), toy.INITIAL[:-1]])
def test_a_model_that_is_not_the_one_named_is_refused(sent: Weights) -> None:
    disk = Disk(SCORED, weights=None)
    disk.link.models[FIRST] = sent
    assert refusal(disk, START) == "the model that the server sent is not the one it named"
    assert disk.weights() is None


def test_before_the_first_round_there_is_the_plans_model_and_no_best_one() -> None:
    disk = Disk(SCORED, weights=None)
    other = Head("e" * 64, 0, "e" * 64)
    assert refusal(disk, other) == "the study's first model is not the one that the plan names"
    assert refusal(disk, replace(START, best=Best("e" * 64, 0.9))) == OTHER_BEST
    assert disk.link.kinds() == []
    assert disk.best() is None


# The number of a round.


def after(number: int = 1, manifest: Manifest = SECURE) -> tuple[Disk, Weights, Head]:
    """A site that has followed a round."""
    disk = Disk(manifest)
    total, following, head = closed(number)
    disk.told(total)
    disk.catch_up(head)
    return disk, following, head


@pytest.mark.parametrize("base", ["e" * 64, FIRST])
def test_the_model_that_a_site_holds_is_not_that_of_a_later_round(base: str) -> None:
    disk, following, head = after()
    log = list(disk.log)
    lie = replace(head, closed_round=2, base_model=base)
    assert refusal(disk, lie) == (
        "the server says that round 2 ended with the model of an earlier round, in a study that does not roll back"
        + TALK
    )
    assert disk.follower.closed_round == 1
    assert disk.log == log
    assert disk.catch_up(replace(head, base_model=FIRST)) is False
    holds(disk, following)


def test_neither_is_the_first_model_that_of_a_round() -> None:
    disk = Disk()
    assert refusal(disk, Head(FIRST, 2, "e" * 64)).startswith("the server says that round 2 ended with the model of an")
    # Where the round is said to have changed nothing, its sum must show that.
    total, _, _ = closed()
    disk.told(total)
    assert "where its own sum gives" in refusal(disk, Head(FIRST, 1, FIRST))
    assert disk.log == []


def test_a_round_whose_sum_changes_nothing_is_followed_as_any_other() -> None:
    disk = Disk()
    total, same = one_round([0.0] * 3, SECURE)
    assert model_hash(same) == FIRST
    disk.told(total)
    assert disk.catch_up(Head(FIRST, 1, FIRST))
    assert [body["round"] for body in disk.of("closed")] == [1]


def test_rounds_that_have_led_back_to_a_sites_own_model_are_written_down_and_said() -> None:
    (total, following, head), disk = history(0.5)[0], Disk(SCORED)
    disk.told(total)
    disk.catch_up(head)
    later = Head(head.model_hash, 3, "c" * 64, head.best)
    assert disk.catch_up(later) is False
    assert disk.of("fetched") == [{"round": 3, "base_model": "c" * 64, "model": model_hash(following)}]
    assert disk.notes == [events.Taken(3)]
    assert disk.follower.closed_round == 3
    assert disk.catch_up(later) is False
    assert len(disk.of("fetched")) == 1


def test_a_liar_is_not_believed_that_rounds_have_led_back() -> None:
    (total, _, head), disk = history(0.5)[0], Disk(SCORED)
    disk.told(total)
    disk.catch_up(head)
    lie = Best("e" * 64, 0.9)
    assert refusal(disk, replace(head, best=lie)) == OTHER_BEST
    assert refusal(disk, Head(head.model_hash, 3, "c" * 64, lie)) == OTHER_BEST
    assert disk.of("fetched") == []


def test_a_round_that_a_site_knows_has_one_model() -> None:
    for missed in (False, True):
        disk, following, head = after()
        if missed:
            following = np.full(toy.SIZE, 3, np.float32)
            head = Head(model_hash(following), 2, "c" * 64)
            disk.told(closed()[0], following)
            disk.catch_up(head)
        near = following.copy()
        near[0] = np.nextafter(near[0], np.float32(9))
        disk.told(closed()[0], near)
        assert refusal(disk, replace(head, model_hash=model_hash(near))) == (
            f"the server names model {model_hash(near)} as that of round {head.closed_round}, which had ended with "
            f"{model_hash(following)}{TALK}"
        )
        holds(disk, following)


def test_no_round_is_missed_after_those_of_the_plan() -> None:
    only = toy.manifest(toy.plan(rounds=1))
    disk, following, _ = after(manifest=only)
    near = following.copy()
    near[0] = np.nextafter(near[0], np.float32(9))
    disk.told(closed()[0], near)
    assert refusal(disk, Head(model_hash(near), 3, "e" * 64)) == (
        "the server says that round 3 is closed, though the 1 of the plan were closed before it" + TALK
    )
    holds(disk, following)
    # The same where the plan's only round was missed.
    other = Disk(only)
    other.told(closed()[0], following, near)
    other.catch_up(Head(model_hash(following), 2, "e" * 64))
    assert "though the 1 of the plan were closed before it" in refusal(other, Head(model_hash(near), 3, "e" * 64))


def test_how_many_rounds_can_be_closed_by_a_log() -> None:
    back = toy.manifest(toy.plan(rounds=9, more="rollback: {drop: 0.1}"))
    for kinds, sure, with_rollback in (
        ([], 0, 0),
        ([("closed", 1), ("closed", 3)], 2, 3),
        ([("fetched", 3), ("closed", 5), ("evaluated", 6)], 4, 5),
        ([("closed", 1), ("fetched", 4), ("fetched", 4)], 4, 4),
    ):
        disk = Disk()
        disk.log += [(kind, {"round": number}) for kind, number in kinds]
        assert (most_closed(disk, SECURE), most_closed(disk, back)) == (sure, with_rollback)


# Back to the best model.


def history(*scores: float) -> list[tuple[Published, Weights, Head]]:
    """Rounds 1 to len(scores), each over the model of the one before, which scores that; by an honest server."""
    weights, best, rounds, models = toy.INITIAL, None, [], {}
    for number, score in enumerate(scores, 1):
        base = model_hash(weights)
        models[base] = weights
        total, following = one_round(
            [0.1 * number] * 3, SCORED, base=weights, number=number, scores=[score] * 3
        )  # fmt: skip
        if best is not None and base != best.model_hash and score < best.score - 0.1:
            following = models[best.model_hash]
            total = signed(replace(total, next_model=best.model_hash))
        elif best is None or score >= best.score or base == best.model_hash:
            best = Best(base, _mean(total))
        rounds.append((total, following, Head(model_hash(following), number, base, best)))
        weights = following
    return rounds


def _mean(total: Published) -> float:
    score, scorers = total.total[-2:].tolist()
    return float(score / scorers)


def test_a_collapse_brings_the_best_model_back() -> None:
    rounds, disk = history(0.5, 0.8, 0.3), Disk(SCORED)
    for total, following, head in rounds:
        disk.told(total, following)
        disk.catch_up(head)
        holds(disk, following)
        assert disk.best() == head.best
    second = model_hash(rounds[0][1])
    assert rounds[2][2].model_hash == second
    assert [entry["rolled_back"] for entry in disk.of("closed")] == [False, False, True]
    assert disk.of("closed")[2]["next_model"] == second
    assert [entry["score"] for entry in disk.of("closed")] == pytest.approx([0.5, 0.8, 0.3])
    assert disk.notes.count(events.Note("the validation Dice collapsed; back to the best model")) == 1


def test_a_server_that_does_not_go_back_is_refused() -> None:
    rounds, disk = history(0.5, 0.8, 0.3), Disk(SCORED)
    for total, _, head in rounds[:2]:
        disk.told(total)
        disk.catch_up(head)
    total, best, head = rounds[2]
    _, on = one_round([0.3] * 3, SCORED, base=rounds[1][1], number=3, scores=[0.3] * 3)
    disk.told(signed(replace(total, next_model=model_hash(on))), best)
    assert refusal(disk, replace(head, model_hash=model_hash(on))) == (
        f"the server names model {model_hash(on)} where its own sum gives {model_hash(best)}{TALK}"
    )
    holds(disk, rounds[1][1])


def test_a_server_that_goes_back_without_a_collapse_is_refused() -> None:
    rounds, disk = history(0.5, 0.8, 0.75), Disk(SCORED)
    for total, _, head in rounds[:2]:
        disk.told(total)
        disk.catch_up(head)
    total, on, head = rounds[2]
    best = model_hash(rounds[0][1])
    disk.told(signed(replace(total, next_model=best)), rounds[0][1])
    assert refusal(disk, replace(head, model_hash=best)) == (
        f"the server names model {best} where its own sum gives {model_hash(on)}{TALK}"
    )


@pytest.mark.parametrize("lie", [None, Best("e" * 64, 0.8), Best(FIRST, 0.9)])
def test_another_best_model_than_the_scores_give_is_refused(lie: Best | None) -> None:
    (total, _, head), disk = history(0.5)[0], Disk(SCORED)
    disk.part.join(header(SCORED))
    disk.told(total)
    assert refusal(disk, replace(head, best=lie)) == OTHER_BEST
    assert disk.best() is None
    disk.catch_up(head)
    # Neither does a server get it through afterwards.
    assert refusal(disk, replace(head, best=lie)) == OTHER_BEST
    assert disk.best() == head.best


def test_who_missed_the_collapse_goes_back_with_the_others() -> None:
    rounds, disk = history(0.5, 0.8, 0.3, 0.8), Disk(SCORED)
    for total, _, head in rounds[:2]:
        disk.told(total)
        disk.catch_up(head)
    disk.restart()
    # It was away in round 3, and comes back after it; or after round 4, which started from the best model.
    for total, following, head in rounds[2:]:
        disk.told(total, rounds[0][1])
        disk.catch_up(head)
        holds(disk, following)
        assert disk.best() == head.best


@pytest.mark.parametrize("again", [0.75, 0.45, 0.3])
def test_who_holds_the_best_model_and_missed_that_it_is_learns_it_from_the_server(again: float) -> None:
    """What that model scores in round 4 is less than this site thinks the best one does, or a collapse from there."""
    rounds = history(0.5, 0.8, 0.3, again, again)
    # It holds the model of round 1, as after the rollback of round 3 everybody does.
    for first_back in (2, 3):
        disk = Disk(SCORED)
        total, following, head = rounds[0]
        disk.told(total)
        disk.catch_up(head)
        for total, following, head in rounds[first_back:]:
            disk.told(total, following)
            disk.catch_up(head)
            holds(disk, following)
            assert disk.best() == head.best
            assert not any("collapsed" in str(note) for note in disk.notes)


def test_a_sum_or_model_that_the_server_no_longer_has_changes_nothing() -> None:
    rounds, disk = history(0.5, 0.8, 0.3), Disk(SCORED)
    for total, _, head in rounds[:2]:
        disk.told(total)
        disk.catch_up(head)
    total, best, head = rounds[2]
    disk.told(total, best)
    disk.link.refusals["model"] = [StaleSession("the server no longer has that model")]
    with pytest.raises(StaleSession):
        disk.catch_up(head)
    assert len(disk.of("closed")) == 2
    assert disk.catch_up(head)
    holds(disk, best)


def test_in_a_study_that_keeps_no_scores_there_is_no_best_model() -> None:
    total, _, head = closed()
    disk = Disk()
    disk.told(total)
    assert refusal(disk, replace(head, best=Best(FIRST, 0.5))) == OTHER_BEST


def test_the_round_of_a_plain_session_is_known_too() -> None:
    disk = Disk(PLAIN)
    disk.save_session(dump(Joined(header(PLAIN))))
    disk.restart()
    assert disk.part.said.base_of(1) == FIRST
