"""Federated evaluation: whole studies, the server's side, a site's side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from numpy.typing import NDArray

from fedseg.errors import PlanError, ProtocolError, UsageError
from fedseg.federation.evaluation import MOST_EVALUATIONS, Measured, statistics_code, statistics_of
from fedseg.federation.exchange import CLOSE, SERVER, Finished, Head, Instruction, Join, Published, Submit
from fedseg.federation.vector import model_hash
from fedseg.plan.manifest import Manifest, Parent
from fedseg.runtime import events
from fedseg.runtime.archive import MemoryArchive
from fedseg.runtime.audit import load, verify
from fedseg.runtime.course import StudyState
from fedseg.runtime.evaluations import Evaluation, evaluations_of, newest_of, refuse_demand
from fedseg.runtime.evidence import MemoryEvidence, session_entry
from fedseg.runtime.extension import check_extension, extend
from fedseg.runtime.session import evaluation_code, header_of
from fedseg.runtime.simulation import SiteMemory
from fedseg.secagg.signing import sign
from fedseg.secagg.statistics import StatisticsCode
from fedseg.store.study_db import RoundRow
from tests.runtime import toy
from tests.runtime.bench import CLOSED, MASK, UNMASK, Bench
from tests.runtime.machine import ME, WRITES, Machine, PowerCut, Round, audited, before, whole
from tests.runtime.measured import DICE, SUBJECTS, TISSUES, ToyScorer, evaluated, fail, scorers, subject
from tests.runtime.script import Patient, Script, left, refused, runner
from tests.runtime.test_extension import go_on
from tests.runtime.test_register import Server, kinds, of, told
from tests.runtime.test_restarts import Death, MortalStudy
from tests.runtime.threads import FailingLink, Failure, Outcome, Study, contradictions
from tests.secagg.helpers import key, ring_sum, session

THREE = ("a", "b", "c")
FIVE = ("a", "b", "c", "d", "e")


def manifest(sites: tuple[str, ...] = THREE, mode: str = "secure", rounds: int = 1, more: str = "") -> Manifest:
    return evaluated(toy.manifest(toy.plan(sites, mode=mode, rounds=rounds, more=more)))


def mean(*sites: str) -> float:
    values = [value for site in sites for value in DICE[site]]
    return float(sum(values) / len(values))


def published(study: Manifest, archive: MemoryArchive) -> list[Evaluation]:
    return evaluations_of(study, archive.rounds(), toy.enrolled(study).server_key)


# Whole studies.


def threads(study: Manifest, *failures: Failure, **other: ToyScorer) -> Study:
    sites = study.plan.site_names
    made = Study(study, {site: toy.PullTrainer(number) for number, site in enumerate(sites)}, *failures)
    made.scorers = scorers(*sites) | other
    return made


def ended(study: Study) -> Outcome:
    outcome = study.run()
    assert study.errors == {}
    return outcome


@pytest.mark.parametrize("mode", ["secure", "plain"])
def test_the_sum_over_all_sites_is_published_and_every_log_has_it(mode: str, tmp_path: Path) -> None:
    study = threads(manifest(mode=mode))
    outcome = ended(study)
    assert outcome.rounds == [(1, 1, "closed"), (2, 1, "closed")]
    assert outcome.history == ((1, THREE),)
    (found,) = published(study.manifest, outcome.archive)
    assert (found.round, found.trained, found.contributors) == (2, 1, THREE)
    assert found.model_hash == model_hash(outcome.weights)
    told = found.aggregate
    assert told.subjects == 3
    assert told.dice.mean == mean("a", "b") == 0.75
    assert told.dice.tissues == (0.75,) * 7
    assert told.dice.deviation == pytest.approx(0.25)
    assert told.hd95_mm.mean == pytest.approx(3.0, abs=1e-4)
    assert told.hd95_mm.missing == (1,) * 8
    assert told.volume_similarity.mean == pytest.approx(1.25 / 3, abs=1e-5)
    (entry,) = of(outcome.logs["server"], "evaluated")
    assert entry["released"] == model_hash(outcome.weights)
    for site in THREE:
        assert of(outcome.logs[site], "evaluated") == [entry]
        scorer = study.scorers[site]
        assert isinstance(scorer, ToyScorer)
        np.testing.assert_array_equal(scorer.shown, [outcome.weights])
        assert events.Evaluated(2, THREE, 3, 0.75) in study.notes[site]
    assert events.Evaluated(2, THREE, 3, 0.75) in outcome.told
    assert contradictions(tmp_path, study.manifest.study, outcome.logs) == []


def test_a_site_lost_before_its_scores_leave_is_not_in_the_sum(tmp_path: Path) -> None:
    study = threads(manifest(FIVE), ("e", "upload", 2, 1))
    outcome = ended(study)
    (found,) = published(study.manifest, outcome.archive)
    assert found.contributors == ("a", "b", "c", "d")
    assert found.lost == {"e": "withdrew (interrupted) in MaskedInputCollection"}
    assert found.aggregate.dice.mean == mean("a", "b", "c", "d")
    # Six subjects, one of them without a distance and one beyond the longest.
    assert found.aggregate.hd95_mm.mean == pytest.approx((2 + 4 + 8 + 100 + 2) / 5, abs=1e-3)
    assert of(outcome.logs["e"], "evaluated") == of(outcome.logs["server"], "evaluated")
    assert contradictions(tmp_path, study.manifest.study, outcome.logs) == []


def test_a_site_whose_scans_cannot_be_scored_sits_it_out_and_has_its_model() -> None:
    study = threads(manifest(FIVE), e=ToyScorer(subject(0.5), before=fail))
    outcome = ended(study)
    (found,) = published(study.manifest, outcome.archive)
    assert found.contributors == ("a", "b", "c", "d")
    assert found.lost["e"].startswith("withdrew (failed)")
    said = "this site takes no part in the evaluation: sub-01: the scan has no labels to score against"
    assert said in [event.text for event in study.notes["e"] if isinstance(event, events.Note)]
    np.testing.assert_array_equal(outcome.own["e"], outcome.weights)


def test_a_study_is_complete_without_an_evaluation_that_nobody_can_give() -> None:
    study = threads(manifest(), b=ToyScorer(before=fail))
    outcome = ended(study)
    assert outcome.rounds == [(1, 1, "closed"), (2, 1, "abandoned"), (2, 2, "abandoned")]
    assert study.coordinator.state is StudyState.COMPLETE
    assert published(study.manifest, outcome.archive) == []
    # A later demand tries again, at the next round.
    study.scorers = scorers(*THREE)
    study.start(evaluate=True)
    assert ended(study).rounds[-1] == (3, 1, "closed")
    assert published(study.manifest, outcome.archive)[0].aggregate.dice.mean == 0.75


def test_no_site_scores_the_model_of_an_early_round_that_is_called_the_last() -> None:
    study, evidence = manifest(rounds=3), MemoryEvidence()
    evidence.append("closed", {"round": 1, "contributors": list(THREE), "next_model": FIRST})
    memory = SiteMemory()
    memory.save_weights(toy.INITIAL)
    why, scorer = asked(offer(study, 4, 3), study=study, memory=memory, evidence=evidence)
    assert why.startswith("the server says that round 3 ended with the model of an earlier round, in a study that does")
    assert scorer.shown == []
    assert of(evidence, "fetched") == of(evidence, "session") == []


def test_rounds_that_a_site_knows_to_be_void_do_not_make_the_rounds_over() -> None:
    study, evidence = manifest(rounds=3), MemoryEvidence()
    for number in (1, 3):
        evidence.append("closed", {"round": number, "contributors": list(THREE), "next_model": FIRST})
    memory = SiteMemory()
    memory.save_weights(toy.INITIAL)
    why, scorer = asked(offer(study, 4, 3), study=study, memory=memory, evidence=evidence)
    assert "scores of the model of round 3, before the 3 rounds of the plan are closed" in why
    assert scorer.shown == []


def test_what_is_scored_is_the_average_that_the_study_releases() -> None:
    plan = toy.plan(rounds=2)
    training = plan.content.training.model_copy(update={"average": 0.5})
    plan = replace(plan, content=plan.content.model_copy(update={"training": training}))
    study = threads(evaluated(toy.manifest(plan)))
    outcome = ended(study)
    (found,) = published(study.manifest, outcome.archive)
    assert found.model_hash == model_hash(outcome.weights)
    scorer = study.scorers["a"]
    assert isinstance(scorer, ToyScorer)
    np.testing.assert_array_equal(scorer.shown, [outcome.weights])
    assert found.model_hash != study.coordinator._register.hash


class Deaths(list[events.Event]):
    """What the server tells; once it opens an evaluation, a site is to die."""

    def __init__(self, study: MortalStudy, *deaths: Death) -> None:
        super().__init__()
        self.study, self.deaths = study, list(deaths)

    def append(self, event: events.Event) -> None:
        if isinstance(event, events.EvaluationStarted) and event.attempt == 1:
            self.study.deaths += self.deaths
        super().append(event)


@pytest.mark.parametrize("death", [("b", "advertise", "after"), ("b", "upload", "after"), ("b", "unmask", "before")])
def test_a_site_that_is_killed_in_an_evaluation_says_the_same_again(death: Death, tmp_path: Path) -> None:
    study = MortalStudy(manifest(), {site: toy.PullTrainer(1.0) for site in THREE})
    study.scorers = scorers(*THREE)
    study.told = Deaths(study, death)
    study.start()
    outcome = ended(study)
    assert study.deaths == []
    (found,) = published(study.manifest, outcome.archive)
    assert (found.contributors, found.aggregate.dice.mean) == (THREE, 0.75)
    assert contradictions(tmp_path, study.manifest.study, outcome.logs) == []


# The server's side.

Played = TypeVar("Played", bound=Bench)


def bench(study: Manifest | None = None, archive: MemoryArchive | None = None) -> Bench:
    return with_subjects(Bench(study or manifest(), archive))


def with_subjects(made: Played) -> Played:
    for site, player in made.players.items():
        player.subjects = SUBJECTS[site]
    return made


def finish(made: Bench, *sites: str) -> None:
    """These sites (or all) take turns until the study is complete."""
    for _ in range(40):
        for site in sites or made.players:
            made.players[site].turn()
            if made.stands_at(StudyState.COMPLETE):
                return
    raise AssertionError(f"the study did not end: {made.phase}")


def test_the_model_stays_and_the_evaluation_is_announced() -> None:
    made = bench()
    made.one_round()
    weights = made.coordinator.weights
    finish(made)
    np.testing.assert_array_equal(made.coordinator.weights, weights)
    answer = made.players["a"].ask()
    assert isinstance(answer, Finished)
    assert (answer.head.closed_round, answer.evaluation, answer.history) == (1, 2, ((1, THREE),))
    assert kinds(made.evidence)[-4:] == ["session", "received", "unmask", "evaluated"]
    assert made.coordinator.published(2).next_model == model_hash(weights)
    assert made.phase == CLOSED


def test_room_is_made_for_an_upload_of_the_sessions_own_size() -> None:
    made = bench()
    made.until(MASK)
    sizes = []
    for _ in range(2):
        header = made.players["a"].header
        assert header is not None
        sizes.append(made.coordinator.expect_upload("a", header.sid0()))
        if len(sizes) == 1:
            made.one_round()
            made.until(MASK)
    assert sizes == [4 * (toy.SIZE + 1), 4 * evaluation_code(made.manifest).length]


@pytest.mark.parametrize(("mode", "reached"), [("secure", False), ("secure", True), ("plain", False)])
def test_a_power_cut_at_any_write_of_an_evaluation(mode: str, reached: bool, tmp_path: Path) -> None:
    # Of the last close: row and log. Of the evaluation: opened (row, session), received, unmasking and closed (2 each).
    for cut in range(9 if mode == "secure" else 7):
        server = with_subjects(Server(manifest(mode=mode)))
        server.until(UNMASK if mode == "secure" else MASK)
        server.disk.cut = (cut, reached)
        server.play()
        assert server.disk.cut is None
        rows = [row for row in server.disk.rounds() if row.evaluation]
        assert [row.state for row in rows if row.state in ("open", "unmasking")] == []
        closed = [row for row in rows if row.state == "closed"]
        assert [body["signature"] for body in of(server.disk, "evaluated")] == [row.signature.hex() for row in closed]
        # A cut once shares were asked for voids the evaluation; at any other write it is made, if at the second try.
        assert closed or rows[-1].state == "void"
        if closed:
            assert published(server.manifest, server.disk)[0].aggregate.dice.mean == 0.75
        assert told(server, tmp_path / f"{cut}") == []


def test_a_stop_during_the_evaluation_goes_on_with_it() -> None:
    made = bench()
    made.one_round()
    made.until(MASK)
    made.coordinator.pause("the server was stopped")
    for player in made.players.values():
        player.restart()
    made.start()
    finish(made)
    assert [(row.round, row.attempt, row.state) for row in made.archive.rounds()] == [
        (1, 1, "closed"), (2, 1, "abandoned"), (2, 2, "closed"),
    ]  # fmt: skip


def test_on_demand_all_sites_are_waited_for_until_the_deadline() -> None:
    study = manifest(FIVE)
    made = bench(study)
    made.one_round()
    made.archive._rounds[2, 1] = failed(made, 2)
    made.archive._rounds[2, 2] = replace(failed(made, 2), attempt=2)
    made.start()
    assert made.stands_at(StudyState.COMPLETE)
    made.start(evaluate=True)
    four = made.others("e")
    for site in four:
        made.players[site].restart()
        made.players[site].ask()
    made.wait(study.plan.schedule.deadline_s - 1, *four)
    made.coordinator.wait(0)
    assert made.stands_at(StudyState.GATHERING)
    made.wait(2, *four)
    finish(made, *four)
    (found,) = published(study, made.archive)
    assert (found.round, found.contributors) == (3, four)


def failed(made: Bench, number: int, state: Any = "abandoned") -> RoundRow:
    model = made.coordinator._register.hash
    return RoundRow(number, 1, state, model, (), {}, None, 1.0, 2.0, 8, released=model)


def test_every_site_that_is_there_hears_of_an_evaluation_on_demand_before_the_server_leaves() -> None:
    made = bench()
    made.one_round()
    finish(made)
    head = made.coordinator._register.head
    for site in THREE:
        made.coordinator.holds(site, head.model_hash)
    assert made.coordinator.all_told()
    made.archive._rounds[2, 1] = failed(made, 2, "void")
    made.start(evaluate=True)
    for player in made.players.values():
        player.restart()
    finish(made)
    made.players["a"].ask()
    assert not made.coordinator.all_told()
    for site in THREE:
        made.coordinator.holds(site, head.model_hash)
    assert made.coordinator.all_told()


def test_a_demand_that_cannot_be_met_is_refused_with_the_way_out() -> None:
    without = toy.manifest(toy.plan())
    with pytest.raises(UsageError, match=r"plan has no federated evaluation \(evaluation.federated\)") as caught:
        refuse_demand(without, (), "dir")
    assert caught.value.hint is not None and "fedseg study extend dir --rounds 0 --evaluate" in caught.value.hint
    made = bench()
    finish(made)
    with pytest.raises(UsageError, match="the study's newest model is evaluated already"):
        refuse_demand(made.manifest, made.archive.rounds(), "dir")
    book = [failed(made, number, "void") for number in range(2, 2 + MOST_EVALUATIONS)]
    refuse_demand(made.manifest, book[1:], "dir")
    with pytest.raises(UsageError, match="sites take part in 8 evaluations of one study, and so many have begun"):
        refuse_demand(made.manifest, book, "dir")


def test_a_stored_evaluation_that_was_changed_is_noticed() -> None:
    made = bench()
    finish(made)
    row = made.archive._rounds[2, 1]
    for changed in (replace(row, total=row.total[:-4] + b"\0\0\0\0"), replace(row, contributors=("a", "b"))):
        made.archive._rounds[2, 1] = changed
        with pytest.raises(ProtocolError, match="the signature of server in Close does not verify"):
            published(made.manifest, made.archive)


def test_in_plain_mode_scores_out_of_range_cost_that_site_alone() -> None:
    made = bench(manifest(mode="plain", more="quorum: 2"))
    made.one_round()
    made.players["c"].bend = lambda vector: vector + np.uint32(1)
    for _ in range(4):
        for site in THREE:
            try:
                made.players[site].turn()
            except ProtocolError as error:
                assert site == "c", error
    (found,) = published(made.manifest, made.archive)
    assert found.contributors == ("a", "b")
    assert found.lost["c"].startswith("sent an update that breaks")


# Extensions.


def parent_of(old: Manifest) -> Parent:
    return Parent(plan_hash=old.plan_hash, last_round=2, spent=())


def longer(old: Manifest, archive: MemoryArchive, rounds: int, *, evaluate: bool = False) -> Manifest:
    return extend(old, toy.INITIAL, rounds=rounds, evaluate=evaluate, book=archive.rounds(), claims=())


def test_a_study_trains_on_after_an_evaluation_and_is_evaluated_again(tmp_path: Path) -> None:
    study = threads(manifest())
    ended(study)
    extended = longer(study.manifest, study.archive, 1)
    assert extended.parent is not None and extended.parent.last_round == 2
    go_on(study, extended)
    outcome = ended(study)
    assert [(row.round, row.evaluation, row.state) for row in outcome.archive.rounds()] == [
        (1, False, "closed"), (2, True, "closed"), (3, False, "closed"), (4, True, "closed"),
    ]  # fmt: skip
    assert outcome.history == ((1, THREE), (3, THREE))
    first, second = published(extended, outcome.archive)
    assert (first.trained, second.trained) == (1, 2)
    assert first.model_hash != second.model_hash == model_hash(outcome.weights)
    server_key = toy.enrolled(extended).server_key
    assert newest_of(extended, outcome.archive.rounds(), server_key) == second
    assert newest_of(extended, outcome.archive.rounds()[:-1], server_key) is None
    assert contradictions(tmp_path, extended.study, outcome.logs) == []


def failing(study: Study, *failures: Failure) -> None:
    study.links = lambda site: FailingLink(study.coordinator, site, failures)


def again(study: Study, *failures: Failure) -> Outcome:
    """One round more and a second evaluation, of another model."""
    go_on(study, longer(study.manifest, study.archive, 1))
    failing(study, *failures)
    return ended(study)


def test_who_is_lost_in_a_second_evaluation_does_not_show_by_the_difference(tmp_path: Path) -> None:
    study = threads(manifest(FIVE))
    ended(study)
    outcome = again(study, ("d", "upload", 4, 1))
    assert outcome.rounds[-2:] == [(4, 1, "abandoned"), (4, 2, "closed")]
    first, second = published(study.manifest, outcome.archive)
    assert first.contributors == second.contributors == FIVE
    notes = [event.text for site in FIVE for event in study.notes[site] if isinstance(event, events.Note)]
    assert notes
    for why in notes:
        assert "round 4 would be an evaluation of other contributors than that of round 2" in why
        assert "a policy with allow_reused_models: true accepts it" in why
    assert contradictions(tmp_path, study.manifest.study, outcome.logs) == []


def test_a_hospital_may_allow_evaluations_of_others_and_its_log_says_so(tmp_path: Path) -> None:
    study = threads(manifest(FIVE))
    ended(study)
    study.may_reuse = True
    outcome = again(study, ("d", "upload", 4, 1))
    first, second = published(study.manifest, outcome.archive)
    assert first.aggregate.subjects - second.aggregate.subjects == len(SUBJECTS["d"])
    four = ["a", "b", "c", "e"]
    (said,) = of(outcome.logs["a"], "reused")
    assert (said["round"], said["earlier_round"], said["u3"], said["earlier_u3"]) == (4, 2, four, list(FIVE))
    assert contradictions(tmp_path, study.manifest.study, outcome.logs) == []
    assert verify([load(tmp_path / f"{party}.jsonl") for party in outcome.logs]).notes[-1] == (
        "round 4: an evaluation after that of round 2, confirmed by site a, site b, site c, site e: what the two sums "
        "differ by are scores of d"
    )
    logs = {party: MemoryEvidence() for party in outcome.logs}
    for party, log in logs.items():
        for kind, body in outcome.logs[party].entries():
            if kind != "reused":
                log.append(kind, body)
    (tmp_path / "silent").mkdir()
    silent = contradictions(tmp_path / "silent", study.manifest.study, logs)
    assert silent == [
        f"site {site}: round 4, attempt 1: an evaluation of other sites than that of round 2, without a record of it"
        for site in four
    ]


def test_who_was_not_in_the_first_evaluation_is_not_asked_in_the_second(tmp_path: Path) -> None:
    study = threads(manifest(FIVE), ("e", "upload", 2, 1))
    ended(study)
    outcome = again(study)
    assert outcome.rounds[-1] == (4, 1, "closed")
    first, second = published(study.manifest, outcome.archive)
    assert first.contributors == second.contributors == ("a", "b", "c", "d")
    assert second.lost == {"e": "was not in the study's earlier evaluation, so is not asked in AdvertiseKeys"}
    assert contradictions(tmp_path, study.manifest.study, outcome.logs) == []


def test_a_study_that_goes_back_to_an_evaluated_model_has_its_evaluation(tmp_path: Path) -> None:
    scores, models = (0.5, 0.6, 0.95), list[float]()

    def score(weights: Mapping[str, NDArray[np.float32]]) -> float:
        """The models of rounds 0, 1 and 2 get better and better, the one after has collapsed."""
        model = float(weights["bias"][0])
        if model not in models:
            models.append(model)
        return (*scores, 0.1)[models.index(model)]

    sites = (*THREE, "d")
    rolling = evaluated(toy.manifest(toy.plan(sites, rounds=2, more="rollback: {drop: 0.2}, quorum: 4")))
    study = Study(rolling, {site: toy.PullTrainer(1.0, score=score) for site in sites})
    study.scorers = scorers(*sites)
    ended(study)
    # d never hears of the evaluation, at first.
    away, heard = MemoryEvidence(), study.logs["d"].entries()
    for kind, body in heard:
        if kind != "evaluated":
            away.append(kind, body)
    study.logs["d"] = away
    go_on(study, longer(rolling, study.archive, 2))
    outcome = ended(study)
    assert [body["rolled_back"] for body in of(away, "closed")] == [False, False, False, True]
    book = outcome.archive.rounds()
    found = newest_of(study.manifest, book, toy.enrolled(study.manifest).server_key)
    assert found is not None and (found.round, found.trained) == (3, 2)
    assert [(kind, body["round"]) for kind, body in away.entries() if kind in ("closed", "evaluated")] == [
        ("closed", 1), ("closed", 2), ("closed", 4), ("closed", 5), ("evaluated", 3),
    ]  # fmt: skip
    with pytest.raises(UsageError, match="the study's newest model is evaluated already"):
        refuse_demand(study.manifest, book, "dir")
    assert contradictions(tmp_path, study.manifest.study, outcome.logs) == []


def test_an_extension_can_bring_nothing_but_an_evaluation() -> None:
    plain = toy.manifest(toy.plan(rounds=1))
    study = threads(plain)
    ended(study)
    extended = longer(plain, study.archive, 0, evaluate=True)
    assert extended.plan.evaluation.federated
    go_on(study, extended)
    assert study.coordinator.state is StudyState.GATHERING
    assert [each.round for each in published(extended, ended(study).archive)] == [2]
    for old, evaluate in ((plain, False), (extended, True)):
        with pytest.raises(PlanError, match=r"an extension by no round changes nothing .*--rounds 1 or more"):
            longer(old, study.archive, 0, evaluate=evaluate)
    with pytest.raises(PlanError, match="an extension has more rounds than the plan before"):
        check_extension(extended, extended.model_copy(update={"parent": parent_of(extended)}))


def test_an_extension_cannot_take_the_evaluation_away() -> None:
    old = manifest()
    extended = longer(old, MemoryArchive(), 1)
    off = extended.plan.model_copy(update={"evaluation": toy.plan().content.evaluation})
    check_extension(old, extended)
    with pytest.raises(PlanError, match="an extension does not take the evaluation out of a plan"):
        check_extension(old, extended.model_copy(update={"plan": off}))


# A site's side.

STUDY = manifest()
FIRST = model_hash(toy.INITIAL)


def head(study: Manifest = STUDY, closed: int = 1) -> Head:
    """A model that a site takes on the server's word: the first one, said to be that of a later round."""
    return Head(FIRST, closed, "e" * 64)


def offer(study: Manifest = STUDY, number: int = 2, closed: int = 1) -> Join:
    header = header_of(study, toy.roster(study), number, 1, FIRST, evaluation=True)
    return Join(header, head(study, closed))


def asked(*instructions: Instruction, study: Manifest = STUDY, **more: Any) -> tuple[str, ToyScorer]:
    scorer = ToyScorer(*SUBJECTS["a"])
    return left(Script(*instructions), study, scorer=scorer, **more), scorer


@pytest.mark.parametrize(
    ("instruction", "study", "says"),
    [
        (offer(toy.manifest(toy.plan(rounds=1))), toy.manifest(toy.plan(rounds=1)), "this study's plan has not"),
        (offer(manifest(rounds=2)), manifest(rounds=2), "model of round 1, before the 2 rounds of the plan are closed"),
        (offer(number=1), STUDY, "model of round 1, before the 1 rounds of the plan are closed"),
    ],
)
def test_what_the_plan_does_not_have_measured_is_refused_before_anything_is_scored(
    instruction: Join, study: Manifest, says: str
) -> None:
    why, scorer = asked(instruction, study=study)
    assert says in why
    assert scorer.shown == []


def test_a_round_that_trains_is_no_evaluation_and_the_other_way_round() -> None:
    evaluation = offer().header
    training = header_of(STUDY, toy.roster(STUDY), 2, 1, FIRST)
    with pytest.raises(ProtocolError, match="the session's dimension is not the one this site expects"):
        training.check_offer(evaluation)
    assert training.sid0() != evaluation.sid0()


def test_a_site_takes_part_in_so_many_evaluations_of_a_study() -> None:
    def log(many: int) -> MemoryEvidence:
        evidence = MemoryEvidence()
        for number in range(2, 2 + many):
            header = header_of(STUDY, toy.roster(STUDY), number, 1, f"{number:064x}", evaluation=True)
            evidence.append("session", session_entry(header))
            body = {"session": header.sid0().hex(), "sid": "1" * 64, "u2": list(THREE)}
            evidence.append("masked", body | {"digest": "2" * 64, "signature": "3" * 128})
        return evidence

    why, scorer = asked(offer(number=20), evidence=log(MOST_EVALUATIONS))
    assert "this site has taken part in 8 evaluations of this study" in why
    assert scorer.shown == []
    link = Script(offer(number=20))
    assert refused(link, STUDY, scorer=scorer, evidence=log(MOST_EVALUATIONS - 1)).what == "the script is over"
    assert link.kinds()[-1] != "withdraw" or link.of("advertise")


def test_a_second_evaluation_of_a_model_is_signed_for_the_same_sites_and_scores_alone() -> None:
    code = StatisticsCode(5, 4, 1000, 100.0)
    site = Machine(session(5, encoding=code), may_reuse=True)
    whole(site, session(5, encoding=code))
    # Training from the same model is another matter: what is added up is no score.
    whole(site, session(5, round=5))
    assert site.of("reused") == []
    again = Round(session(5, round=6, encoding=code))
    before("confirm", site, again)
    with pytest.raises(ProtocolError, match="round 6 would be a second evaluation of the model of round 4, of other"):
        again.ask(site.at_work, "confirm", few=True)
    assert again.ask(site.at_work, "confirm") is not None
    assert [(body["round"], body["earlier_round"]) for body in site.of("reused")] == [(6, 4)]
    changed = Round(session(5, round=7, encoding=code))
    changed.inputs[ME][-1] += np.uint32(1)
    before("submit", site, changed)
    with pytest.raises(ProtocolError, match="round 7 would be a second evaluation of one model, and this site"):
        changed.ask(site.at_work, "submit")
    assert site.masked(changed.session) is None
    assert [body["session"] for body in site.of("masked")].count(changed.session.hex()) == 0
    # Another model's scores are their own.
    other = Round(session(5, round=8, encoding=code, model_hash=bytes(32)))
    other.inputs[ME][-1] += np.uint32(1)
    before("confirm", site, other)
    assert other.ask(site.at_work, "confirm", few=True)
    assert [(body["round"], body["earlier_round"]) for body in site.of("reused")] == [(6, 4), (8, 4), (8, 6)]


def test_an_evaluation_of_another_model_is_signed_for_the_same_sites_where_the_policy_says_no_more() -> None:
    code = StatisticsCode(5, 4, 1000, 100.0)
    site = Machine(session(5, encoding=code))
    whole(site, session(5, encoding=code))
    other = Round(session(5, round=6, encoding=code, model_hash=bytes(32)))
    before("confirm", site, other)
    with pytest.raises(ProtocolError, match="round 6 would be an evaluation of other contributors than that of round"):
        other.ask(site.at_work, "confirm", few=True)
    assert other.ask(site.at_work, "confirm")
    # The same contributors leave nothing to be said, and training after an evaluation is another matter.
    before("confirm", site, training := Round(session(5, round=7)))
    assert training.ask(site.at_work, "confirm", few=True)
    assert site.of("reused") == []


def test_a_retry_is_held_to_the_last_attempt_of_the_evaluation_before_by_site_and_audit(tmp_path: Path) -> None:
    code = statistics_code(5, TISSUES)
    site = Machine(session(5, encoding=code))
    site.append("fetched", {"round": 3, "base_model": "1" * 64, "model": session(5).model_hash.hex()})
    for number, attempt, few in ((4, 1, False), (4, 2, True), (5, 1, True)):
        played = Round(session(5, round=number, attempt=attempt, encoding=code))
        before("confirm", site, played)
        assert played.ask(site.at_work, "confirm", few=few)
    assert [(body["round"], body["earlier_round"]) for body in site.of("reused")] == [(5, 4)]
    assert audited(site, tmp_path / "log", rounds=3) == []


@pytest.mark.parametrize("cut", range(WRITES["submit"] + 1))
@pytest.mark.parametrize("reached", [False, True])
def test_scores_are_on_the_disk_before_they_are_masked_whenever_the_power_fails(cut: int, reached: bool) -> None:
    code = StatisticsCode(5, 4, 1000, 100.0)
    site, played = Machine(session(5, encoding=code)), Round(session(5, encoding=code))
    before("submit", site, played)
    site.cuts = [(cut, reached)]
    with pytest.raises(PowerCut):
        played.ask(site.at_work, "submit")
    site.restart()
    scored = site.scored(played.header.model_hash.hex())
    assert (scored is None) == (cut == 0 and not reached)
    assert scored is not None or site.masked(played.session) is None
    again = Round(session(5, attempt=2, encoding=code))
    before("submit", site, again)
    assert again.ask(site.at_work, "submit")


def submit(offered: Join) -> Submit:
    return Submit(offered.header.sid0(), THREE, {})


PLAINLY = manifest(mode="plain")


def played(memory: SiteMemory, evidence: MemoryEvidence, scores: Sequence[Measured], *offers: Join) -> Patient:
    """The site's process begins, and the server asks it for scores; what it sent."""
    link = Patient(*(each for offered in offers for each in (offered, submit(offered))))
    link.memory = memory
    refused(link, PLAINLY, memory=memory, evidence=evidence, scorer=ToyScorer(*scores))
    return link


def test_the_same_scores_of_a_model_are_given_again_after_a_restart_and_no_others() -> None:
    memory, evidence = SiteMemory(), MemoryEvidence()
    first, second, third = (offer(PLAINLY, number) for number in (2, 3, 4))
    (sent,) = played(memory, evidence, SUBJECTS["a"], first).of("upload")
    (again,) = played(memory, evidence, SUBJECTS["a"], second).of("upload")
    np.testing.assert_array_equal(sent, again)
    grown = played(memory, evidence, (*SUBJECTS["a"], subject(0.25)), third)
    assert grown.of("upload") == []
    assert grown.of("withdraw")[0] == (third.header.sid0(), "refused")
    assert third.header.sid0().hex() not in [body["session"] for body in of(evidence, "masked")]
    # With the subjects of before it takes part again.
    (back,) = played(memory, evidence, SUBJECTS["a"], offer(PLAINLY, 5)).of("upload")
    np.testing.assert_array_equal(sent, back)


def test_a_site_whose_scores_have_changed_says_why_and_joins_no_other_attempt() -> None:
    memory, evidence = SiteMemory(), MemoryEvidence()
    played(memory, evidence, SUBJECTS["a"], offer(PLAINLY))
    retry = Join(header_of(PLAINLY, toy.roster(PLAINLY), 3, 2, FIRST, evaluation=True), head(PLAINLY))
    link = Patient(offer(PLAINLY, 3), submit(offer(PLAINLY, 3)), retry)
    link.memory = memory
    why = left(link, PLAINLY, memory=memory, evidence=evidence, scorer=ToyScorer(subject(0.25)))
    assert "its test subjects have changed, or how it computes" in why
    assert "nothing was sent; evaluate here with: fedseg evaluate" in why
    assert [reason for _, reason in link.of("withdraw")] == ["refused", "refused"]
    assert len(link.of("advertise")) == 1


def test_a_study_that_is_evaluated_needs_a_scorer() -> None:
    with pytest.raises(ProtocolError, match="a study with federated evaluation needs a scorer"):
        runner(Script(), STUDY)


def closing(
    subjects: Sequence[Sequence[Measured]] = ((subject(0.5),), (), ()), model: str = FIRST, **wrong: Any
) -> Published:
    total = ring_sum([statistics_of(evaluation_code(STUDY), each) for each in subjects])
    unsigned = replace(Published(2, THREE, total, b"s" * 32, model), **wrong)
    return replace(unsigned, signature=sign(key("server"), CLOSE, unsigned.session, SERVER, unsigned.statement))


def told_at_the_end(said: Published, study: Manifest = STUDY, **more: Any) -> Script:
    link = Script(*[Finished(head(), ((1, THREE),), 2)] * 4)
    link.sums[2] = said
    more.setdefault("scorer", ToyScorer())
    refused_or_not(link, study, **more)
    return link


def refused_or_not(link: Script, study: Manifest, **more: Any) -> None:
    link.finished = runner(link, study, **more).run()  # type: ignore[attr-defined]


def test_a_site_that_was_away_takes_in_what_was_published(tmp_path: Path) -> None:
    evidence, notes = MemoryEvidence(), list[events.Event]()
    told_at_the_end(closing(), evidence=evidence, notify=notes.append)
    (body,) = of(evidence, "evaluated")
    assert (body["round"], body["model"], body["contributors"]) == (2, FIRST, list(THREE))
    assert events.Evaluated(2, THREE, 1, 0.5) in notes
    # Asked again, it is not fetched again.
    link = told_at_the_end(closing(), evidence=evidence)
    assert "evaluated" not in link.kinds()


@pytest.mark.parametrize(
    ("said", "says"),
    [
        (replace(closing(), contributors=("a", "b")), "the signature of server in Close does not verify"),
        (closing(round=3), "an evaluation that was not asked for"),
        (closing(contributors=("a", "b")), "closed below the quorum, or with sites that the plan does not name"),
        (closing(contributors=("a", "b", "z")), "closed below the quorum, or with sites that the plan does not name"),
        (closing(model="f" * 64), f"an evaluation of another model than {FIRST}"),
        (closing(((), ())), "the sum is not that of 3 contributors: masks did not cancel"),
    ],
)
def test_an_evaluation_that_cannot_be_is_not_taken_in(said: Published, says: str) -> None:
    evidence = MemoryEvidence()
    with pytest.raises(ProtocolError) as caught:
        told_at_the_end(said, evidence=evidence)
    assert says in str(caught.value)
    assert of(evidence, "evaluated") == []
