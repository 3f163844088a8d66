from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedseg.errors import PlanError, ProtocolError, RosterError, StorageError
from fedseg.plan.manifest import Init, Manifest, Parent, Spent
from fedseg.policy import SitePolicy
from fedseg.privacy.accounting import epsilon
from fedseg.privacy.events import Event, RoundCharge
from fedseg.privacy.identity import Subject
from fedseg.runtime import pinning
from fedseg.runtime.charging import StudyCharger
from fedseg.runtime.course import StudyState
from fedseg.runtime.evidence import MemoryEvidence, roster_entry, session_entry
from fedseg.runtime.extension import append_versions, check_covered, check_extension, extend, following, spent_under
from fedseg.runtime.resolution import check_manifest, events_of
from fedseg.runtime.versions import all_versions, replace_plan
from fedseg.secagg.signing import public_half
from fedseg.store.files import write_atomic
from fedseg.store.study_db import ClaimRow, RoundRow, RoundState
from tests.runtime import toy
from tests.runtime.bench import Bench
from tests.runtime.private import ledger_at, private_manifest
from tests.runtime.script import header
from tests.runtime.threads import Study, contradictions
from tests.secagg.helpers import key

PLAIN = toy.manifest(toy.plan(rounds=2))
PRIVATE = private_manifest(rounds=3, reserve=1)
FRAME = [Subject((name,)) for name in ("01", "02")]


def row(number: int, attempt: int = 1, state: RoundState = "closed") -> RoundRow:
    return RoundRow(number, attempt, state, "f" * 64, ("a", "b", "c"), {}, "f" * 64, 0.0, 1.0, 0)


def said(site: str, number: int, attempt: int = 1, *, rounds: int | None = None, of: Manifest = PRIVATE) -> ClaimRow:
    """A claim of so many charges (by default as many as rounds), made in that attempt."""
    charged = number if rounds is None else rounds
    return ClaimRow(site, charged, 10 * charged, f"{site}{number}{attempt}", of.plan_hash, number, attempt)


def longer(old: Manifest, rounds: int = 5, *, last_round: int = 2, spent: tuple[Spent, ...] = ()) -> Manifest:
    """An extension by hand: its noise is not calibrated."""
    plan = old.plan.model_copy(
        update={"schedule": old.plan.schedule.model_copy(update={"rounds": old.plan.schedule.rounds + rounds})}
    )
    parent = Parent(plan_hash=old.plan_hash, last_round=last_round, spent=spent)
    return old.model_copy(update={"plan": plan, "parent": parent})


def paid(rounds: int, sigma: float | None = None) -> Spent:
    sigma = sigma or PRIVATE.noise_multiplier or 0.0
    return Spent(noise_multiplier=sigma, sampling_rate=0.5, steps=10 * rounds)


@pytest.fixture(scope="module")
def extended() -> Manifest:
    """The private study after its three rounds, two rounds longer."""
    claims = [said(site, number) for number in (1, 2, 3) for site in "abc"]
    return extend(PRIVATE, toy.INITIAL, rounds=2, epsilon=10.0, book=[row(n) for n in (1, 2, 3)], claims=claims)


# What the past has cost at most.


ALL = [said(site, 2) for site in "abc"]


@pytest.mark.parametrize(
    ("book", "claims", "rounds"),
    [
        ([], [], 0),
        # All trained in the newest attempt: as claimed.
        ([row(1), row(2)], ALL, 2),
        # A second attempt over the same updates charges nobody; one that somebody trained for does.
        ([row(1), row(2, 1, "abandoned"), row(2, 2)], [*ALL[:2], said("c", 2, 2, rounds=3)], 3),
        # Since its claim a site may have charged once in each attempt, and been killed before it could say so.
        ([row(1), row(2), row(3, 1, "open")], ALL, 3),
        ([row(1), row(2), row(3, 1, "abandoned"), row(3, 2, "open")], ALL, 4),
        # A site that never claimed may have charged in every attempt.
        ([row(1), row(2, 1, "abandoned"), row(2, 2)], [said("a", 2), said("b", 2)], 3),
    ],
)
def test_what_was_claimed_and_what_may_have_been_charged_since_is_spent(
    book: list[RoundRow], claims: list[ClaimRow], rounds: int
) -> None:
    expected = (paid(rounds),) if rounds else ()
    assert spent_under(PRIVATE, book, claims) == expected


def test_a_second_version_pays_for_its_own_rounds_alone() -> None:
    second = longer(PRIVATE, last_round=3, spent=(paid(3),)).model_copy(update={"noise_multiplier": 4.0})
    book = [row(n) for n in (1, 2, 3, 4, 5)]
    # Site b was not there in round 3: what it charged before is the first version's, by the claim it made then.
    claims = [said("a", 3), said("b", 2), said("c", 3)]
    claims += [said(site, 5, rounds=rounds, of=second) for site, rounds in [("a", 5), ("b", 4), ("c", 5)]]
    assert spent_under(second, book, claims) == (paid(2, 4.0),)


def test_without_privacy_nothing_is_spent() -> None:
    assert spent_under(PLAIN, [row(1)], []) == ()


# The coordinator's arithmetic.


def test_past_and_rest_keep_the_raised_budget(extended: Manifest) -> None:
    assert extended.parent == Parent(plan_hash=PRIVATE.plan_hash, last_round=3, spent=(paid(3),))
    assert extended.study == PRIVATE.study
    assert (extended.plan.schedule.rounds, extended.plan.privacy.epsilon) == (5, 10.0)
    assert extended.initial_model == PRIVATE.initial_model
    sigma = extended.noise_multiplier
    assert sigma is not None
    # Two rounds and the reserve of one, of ten steps, after thirty at the old noise.
    rest = Event(sigma, 0.5, 30)
    history = (Event(PRIVATE.noise_multiplier or 0.0, 0.5, 30), rest)
    assert events_of(extended) == history
    assert 9.9 < epsilon(history, 1e-5) <= 10
    check_manifest(extended)


def test_with_less_noise_or_less_of_the_past_a_site_refuses_the_extension(extended: Manifest) -> None:
    less = extended.model_copy(update={"noise_multiplier": (extended.noise_multiplier or 0) * 0.99})
    with pytest.raises(PlanError, match=r"the study's noise does not keep its budget: 30 steps cost epsilon 10\.\d+"):
        check_manifest(less)


def test_a_spent_budget_needs_a_larger_one_and_the_message_says_so() -> None:
    claims = [said(site, number) for number in (1, 2, 3, 4) for site in "abc"]
    with pytest.raises(PlanError) as caught:
        extend(PRIVATE, toy.INITIAL, rounds=5, epsilon=7.0, book=[row(n) for n in (1, 2, 3, 4)], claims=claims)
    assert "the budget of epsilon 7 at delta 1e-05 is spent: the rounds so far cost" in caught.value.what
    assert caught.value.hint == (
        "fewer --rounds, a smaller --reserve, or a larger --epsilon, to which every site must agree"
    )


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"rounds": 5, "epsilon": 8.0}, "privacy: Value error, epsilon is set but mode is off"),
        ({"rounds": 20_000}, "schedule.rounds: Input should be less than or equal to 10000"),
        ({"rounds": 5, "reserve": 2000}, "privacy.reserve_rounds: Input should be less than or equal to 1000"),
    ],
)
def test_what_no_plan_may_say_no_extension_may(more: dict[str, Any], says: str) -> None:
    with pytest.raises(PlanError) as caught:
        extend(PLAIN, toy.INITIAL, book=[row(1)], claims=[], **more)
    assert says in caught.value.what
    assert caught.value.where == "extension"


def test_a_study_that_never_began_can_be_extended_too() -> None:
    new = extend(PLAIN, toy.INITIAL, rounds=1, book=[], claims=[])
    assert new.parent == Parent(plan_hash=PLAIN.plan_hash, last_round=0, spent=())
    assert (new.plan.schedule.rounds, new.noise_multiplier) == (3, None)


# What a site refuses.


def _plan(section: str, **update: Any) -> Callable[[Manifest], Manifest]:
    def change(manifest: Manifest) -> Manifest:
        changed = getattr(manifest.plan, section).model_copy(update=update)
        return manifest.model_copy(update={"plan": manifest.plan.model_copy(update={section: changed})})

    return change


def _manifest(**update: Any) -> Callable[[Manifest], Manifest]:
    return lambda manifest: manifest.model_copy(update=update)


CHANGES: dict[str, Callable[[Manifest], Manifest]] = {
    "study": _manifest(study="cd" * 16),
    "quorum": _manifest(quorum=2),
    "architecture.preset": _manifest(architecture={"preset": "other"}),
    "parameters": _manifest(parameters=1001),
    "trained": _manifest(trained=((0, 10),)),
    "initial_model": _manifest(initial_model="0" * 64),
    "init": _manifest(init=Init(model_hash="0" * 64, trained_on="patients")),
    "plan.task": lambda manifest: manifest.model_copy(
        update={"plan": manifest.plan.model_copy(update={"task": "brain_mask"})}
    ),
    "plan.training.layers": _plan("training", layers="head"),
    "plan.training.steps": _plan("training", steps=20),
    "plan.privacy.mode": _plan("privacy", mode="local"),
    "plan.privacy.delta": _plan("privacy", delta=1e-4),
    "plan.aggregation.mode": _plan("aggregation", mode="plain"),
    "plan.schedule.deadline_s": _plan("schedule", deadline_s=5.0),
    "plan.sites": lambda manifest: manifest.model_copy(
        update={
            "plan": manifest.plan.model_copy(update={"sites": {**manifest.plan.sites, "d": manifest.plan.sites["a"]}})
        }
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_an_extension_that_changes_anything_else_is_refused_by_name(what: str) -> None:
    check_extension(PLAIN, longer(PLAIN))
    with pytest.raises(PlanError) as caught:
        check_extension(PLAIN, CHANGES[what](longer(PLAIN)))
    assert caught.value.what == f"an extension changes rounds and budget alone, this one also {what}"
    assert "nothing was agreed to; talk to the coordinator" in str(caught.value)


def test_an_extension_may_come_from_a_newer_fedseg() -> None:
    check_extension(PLAIN, longer(PLAIN).model_copy(update={"code_version": "9"}))


@pytest.mark.parametrize(
    ("new", "says"),
    [
        (longer(PLAIN, 0), "an extension has more rounds than the plan before"),
        (longer(PLAIN, -1), "an extension has more rounds than the plan before"),
        (toy.manifest(toy.plan(rounds=5)), "the plan does not go on from the version before"),
        (longer(longer(PLAIN)), "the plan does not go on from the version before"),
    ],
)
def test_what_is_no_extension_is_refused(new: Manifest, says: str) -> None:
    with pytest.raises(PlanError, match=says):
        check_extension(PLAIN, new)


@pytest.mark.parametrize(("last_round", "spent"), [(3, ()), (3, (paid(2),)), (2, (paid(3),))])
def test_an_extension_of_an_extension_keeps_the_whole_past(last_round: int, spent: tuple[Spent, ...]) -> None:
    second = longer(PRIVATE, last_round=3, spent=(paid(3),))
    check_extension(second, longer(second, last_round=3, spent=(paid(3), paid(1, 4.0))))
    with pytest.raises(PlanError, match="an extension leaves out what earlier versions of the plan have cost"):
        check_extension(second, longer(second, last_round=last_round, spent=spent))


def charge(number: int, attempt: int = 1, of: Manifest = PRIVATE) -> RoundCharge:
    return RoundCharge(
        study=of.study, plan_hash=of.plan_hash, site="a", round=number, attempt=attempt, model_hash="f" * 64,
        code_version="0.1.0", noise_multiplier=of.noise_multiplier or 0.0, sampling_rate=0.5, steps=10,
        public_subjects=10, max_grad_norm=1.0,
        subjects=("0" * 64,),
    )  # fmt: skip


def test_an_extension_must_count_all_that_this_sites_ledger_has_charged() -> None:
    second = longer(PRIVATE, last_round=3, spent=(paid(3),))
    check_covered(second, [charge(number) for number in (1, 2, 3)], 3)
    # What it charges itself is no past.
    check_covered(second, [*(charge(number) for number in (1, 2, 3)), charge(4, of=second)], 3)
    with pytest.raises(PlanError) as caught:
        check_covered(second, [charge(1), charge(2), charge(2, 2), charge(3)], 3)
    assert caught.value.what == (
        "the extension leaves out 10 private steps that this site's ledger has charged to this study"
    )
    assert "the coordinator must extend the study's own folder, not an older copy of it" in str(caught.value)


def test_an_extension_goes_on_after_the_newest_round_that_this_site_knows() -> None:
    second = longer(PRIVATE, last_round=2, spent=(paid(3),))
    with pytest.raises(PlanError, match="the extension goes on after round 2, this site knows of round 3"):
        check_covered(second, [], 3)
    with pytest.raises(PlanError, match="the extension goes on after round 2, this site knows of round 3"):
        check_covered(second, [charge(3)])
    check_covered(PRIVATE, [charge(9)], 9)


# Versions that a site slept through.


def chain(length: int) -> list[Manifest]:
    found = [PLAIN]
    for number in range(length):
        found.append(longer(found[-1], 1, last_round=2 + number))
    return found


def test_versions_that_a_site_slept_through_are_fetched_and_checked() -> None:
    first, second, third = chain(2)
    asked: list[str] = []

    def fetch(plan_hash: str) -> bytes:
        asked.append(plan_hash)
        return {each.plan_hash: each.to_json() for each in (first, second)}[plan_hash]

    assert following(first, third.to_json(), fetch) == [second, third]
    assert asked == [second.plan_hash]
    assert following(second, third.to_json(), fetch) == [third]
    assert asked == [second.plan_hash]


def test_a_version_between_that_breaks_a_promise_is_refused() -> None:
    first, second, _ = chain(2)
    bent = CHANGES["plan.training.steps"](second)
    third = longer(bent, 1, last_round=3)
    with pytest.raises(PlanError, match=r"this one also plan\.training\.steps"):
        following(first, third.to_json(), lambda _: bent.to_json())


def test_a_server_that_hands_out_another_version_or_none_is_refused() -> None:
    first, _, third = chain(2)
    with pytest.raises(PlanError, match="the server sent another plan than version"):
        following(first, third.to_json(), lambda _: first.to_json())

    def gone(_: str) -> bytes:
        raise ProtocolError("this study has no such version of its plan")

    with pytest.raises(PlanError, match=r"does not hand out version .* of the plan: this study has no such version"):
        following(first, third.to_json(), gone)


def test_another_study_or_an_endless_chain_is_no_extension() -> None:
    first, second, third = chain(2)
    kept = {each.plan_hash: each.to_json() for each in (first, second)}
    with pytest.raises(PlanError) as caught:
        following(toy.manifest(toy.plan(rounds=9)), third.to_json(), kept.__getitem__)
    assert "a changed plan is another study: ask the coordinator for a new invite" in str(caught.value)
    many = chain(101)
    kept = {each.plan_hash: each.to_json() for each in many}
    with pytest.raises(PlanError, match="the server's plan has more than 100 versions"):
        following(many[0], many[-1].to_json(), kept.__getitem__)


# On disk.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "manifest.json").write_bytes(PLAIN.to_json())
    (tmp_path / "model.safetensors").write_text("of the first version")
    return tmp_path


def test_every_version_and_its_model_is_kept(folder: Path) -> None:
    _, second, third = chain(2)
    replace_plan(folder, second)
    (folder / "model.safetensors").write_text("of the second version")
    replace_plan(folder, third)
    assert all_versions(folder) == [PLAIN, second, third]
    assert (folder / "model-1.safetensors").read_text() == "of the first version"
    assert (folder / "model-2.safetensors").read_text() == "of the second version"
    assert not (folder / "model.safetensors").exists()


def test_a_site_that_slept_keeps_the_versions_between(folder: Path) -> None:
    _, second, third = chain(2)
    replace_plan(folder, second, third)
    assert all_versions(folder) == [PLAIN, second, third]
    assert sorted(path.name for path in folder.iterdir()) == [
        "manifest-1.json", "manifest-2.json", "manifest.json", "model-1.safetensors",
    ]  # fmt: skip


@pytest.mark.parametrize("writes", [0, 1, 2])
def test_a_crash_between_leaves_the_version_before_in_force(
    folder: Path, writes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, second, third = chain(2)
    done = list[Path]()

    def dying(path: Path, data: bytes, mode: int = 0o600) -> None:
        if len(done) == writes:
            raise StorageError("the machine stopped")
        done.append(path)
        write_atomic(path, data, mode)

    with monkeypatch.context() as patch:
        patch.setattr("fedseg.runtime.versions.write_atomic", dying)
        with pytest.raises(StorageError, match="the machine stopped"):
            replace_plan(folder, second, third)
    assert all_versions(folder) == [PLAIN]
    replace_plan(folder, second, third)
    assert all_versions(folder) == [PLAIN, second, third]
    assert (folder / "model-1.safetensors").read_text() == "of the first version"


# Studies that go on.


def go_on(study: Study, manifest: Manifest) -> None:
    """The same parties under another version of the plan."""
    study.manifest = manifest
    study.roster, study.enrolled = toy.roster(manifest), toy.enrolled(manifest)
    study.identities = {site: toy.identity(site, manifest) for site in study.trainers}
    for log in study.logs.values():
        append_versions(log, [manifest])
    study.start()


def test_an_extended_study_goes_on_as_if_it_had_been_planned_so(tmp_path: Path) -> None:
    sites = {"a": 1.0, "b": 2.0, "c": -0.5}
    study = Study(PLAIN, {site: toy.PullTrainer(target) for site, target in sites.items()})
    study.run()
    go_on(study, longer(PLAIN, 2))
    assert study.coordinator.state is StudyState.GATHERING
    outcome = study.run()
    assert study.errors == {}
    assert outcome.rounds == [(number, 1, "closed") for number in (1, 2, 3, 4)]
    whole = Study(toy.manifest(toy.plan(rounds=4)), {site: toy.PullTrainer(target) for site, target in sites.items()})
    np.testing.assert_array_equal(outcome.weights, whole.run().weights)
    assert contradictions(tmp_path, PLAIN.study, outcome.logs) == []


def test_a_private_study_charges_on_and_its_ledgers_add_up(extended: Manifest, tmp_path: Path) -> None:
    study = Study(PRIVATE, {site: toy.PullTrainer(1.0) for site in "abc"})
    study.charger = lambda site: StudyCharger(
        ledger_at(tmp_path / site), study.manifest, site, policy=SitePolicy(), frame=FRAME, notify=lambda _: None
    )
    study.run()
    go_on(study, extended)
    outcome = study.run()
    assert study.errors == {}
    assert outcome.rounds == [(number, 1, "closed") for number in range(1, 6)]
    for site in "abc":
        ledger = ledger_at(tmp_path / site).ledger
        assert [each.round for each in ledger.charges()] == list(range(1, 6))
        assert ledger.epsilon(PRIVATE.study, 1e-5) == epsilon(events_of(extended, 20), 1e-5) <= 10
        check_covered(extended, ledger.charges(), 0)
    claims = [each for each in outcome.archive.claims.values() if each.plan == extended.plan_hash]
    assert [(each.rounds, each.steps) for each in claims] == [(5, 50)] * 3
    (tmp_path / "logs").mkdir()
    assert contradictions(tmp_path / "logs", PRIVATE.study, outcome.logs) == []


def test_a_study_that_ended_early_runs_again_once_it_is_extended() -> None:
    bench = Bench(PRIVATE)
    bench.one_round()
    bench.archive.save_end(PRIVATE.plan_hash, "the privacy budget is used up at a")
    bench.archive.save_finished("a", PRIVATE.plan_hash)
    bench.start()
    assert bench.stands_at(StudyState.COMPLETE)
    bench.manifest = longer(PRIVATE, last_round=2)
    bench.start()
    assert bench.stands_at(StudyState.GATHERING)
    assert bench.coordinator.without_model() == ("a", "b", "c")


def test_sites_are_waited_for_until_all_have_come_back_and_then_the_next_round_opens() -> None:
    bench = Bench(PLAIN)
    bench.one_round()
    bench.manifest = longer(PLAIN, last_round=2)
    bench.start()
    bench.players["a"].ask()
    bench.wait(10_000, "a")
    assert bench.stands_at(StudyState.GATHERING)
    for site in "bc":
        bench.players[site].ask()
    assert [(each.round, each.attempt) for each in bench.archive.rounds()] == [(1, 1), (2, 1), (3, 1)]
    bench.start()
    assert bench.stands_at(StudyState.RUNNING)


def test_an_attempt_of_the_version_before_is_not_tried_again_under_another_plan() -> None:
    bench = Bench(PLAIN)
    bench.gather()
    bench.coordinator.pause("lunch")
    bench.manifest = longer(PLAIN, last_round=1)
    bench.start()
    bench.gather()
    assert [(each.round, each.attempt, each.state) for each in bench.archive.rounds()] == [
        (1, 1, "abandoned"), (2, 1, "open"),
    ]  # fmt: skip


# The roster, whose words stand for the plan too.


def offered(old: Manifest, new: Manifest, *, approved: bytes | None = None, other_key: bool = False) -> pinning.Offer:
    """What site a makes of the roster under another version of the plan, after it confirmed that of the first."""
    now = toy.enrolled(new)
    if other_key:
        now = replace(now, keys={**now.keys, "b": public_half(key("b again"))})
    return pinning.check_offer(now, new, "a", key=public_half(key("a")), pinned=toy.roster(old), approved=approved)


def test_the_same_sites_under_another_plan_are_to_be_confirmed_again() -> None:
    first, second = chain(1)
    roster = toy.roster(second)
    assert offered(first, second) == pinning.Unconfirmed(roster)
    # What was approved before was the plan before.
    assert offered(first, second, approved=toy.roster(first).fingerprint) == pinning.Unconfirmed(roster)
    assert offered(first, second, approved=roster.fingerprint) == pinning.Confirmed(roster)
    with pytest.raises(RosterError, match="approved here is 010101"):
        offered(first, second, approved=b"\1" * 32)


def test_another_key_under_another_plan_is_told_as_such() -> None:
    first, second = chain(1)
    with pytest.raises(RosterError) as caught:
        offered(first, second, other_key=True)
    assert (
        "the plan is another one (it was extended; this site agreed to that at `join`, perhaps by --yes); "
        "b has another key (it enrolled again, or somebody speaks in its name)"
    ) in caught.value.what


# What an audit makes of it.


def log_of(*plans: Manifest, told: bool = True, number: int = 3) -> MemoryEvidence:
    """A log that goes from plan to plan, and opens a round under the last."""
    log = MemoryEvidence()
    for plan in plans:
        if told:
            append_versions(log, [plan])
        log.append("roster", roster_entry(toy.roster(plan), plan.plan.schedule.rounds))
    log.append("session", session_entry(header(plans[-1], number)))
    return log


def found(folder: Path, **logs: MemoryEvidence) -> list[str]:
    return contradictions(folder, PLAIN.study, logs)


def test_logs_over_several_versions_contradict_nothing(tmp_path: Path) -> None:
    first, second, third = chain(2)
    log = log_of(first, second, third, number=4)
    assert found(tmp_path, server=log, a=log) == []
    (tmp_path / "slept").mkdir()
    slept = MemoryEvidence()
    for kind, body in log.entries():
        if kind != "roster" or body["plan_hash"] != second.plan_hash:
            slept.append(kind, body)
    assert found(tmp_path / "slept", server=log, a=slept) == []


def test_another_plan_that_nothing_announces_is_found(tmp_path: Path) -> None:
    first, second = chain(1)
    says = (
        f"it goes on under plan {second.plan_hash[:16]}, of which nothing says that it extends {first.plan_hash[:16]}"
    )
    assert found(tmp_path, a=log_of(first, second, told=False)) == [f"site a: {says}"]


def test_a_round_of_the_past_under_the_extended_plan_is_found(tmp_path: Path) -> None:
    (says,) = found(tmp_path, a=log_of(*chain(1), number=2))
    assert says == "site a: round 2, attempt 1: its plan goes on after round 2"


def test_an_extension_announced_twice_or_too_late_is_found(tmp_path: Path) -> None:
    first, second = chain(1)
    twice = log_of(first, second)
    kind, body = next(each for each in twice.entries() if each[0] == "extended")
    twice.append(kind, body)
    (says,) = found(tmp_path, a=twice)
    assert says == f"site a: plan {second.plan_hash[:16]}, which goes on after round 2, is announced twice"
    (tmp_path / "late").mkdir()
    late = log_of(first)
    append_versions(late, [second])
    (says,) = found(tmp_path / "late", a=late)
    assert says.endswith("which goes on after round 2, is announced after round 3")


def test_two_stories_of_one_extension_are_found(tmp_path: Path) -> None:
    first, second = chain(1)
    other = MemoryEvidence()
    for kind, body in log_of(first, second).entries():
        other.append(kind, {**body, "last_round": 1} if kind == "extended" else body)
    told = found(tmp_path, a=log_of(first, second), b=other)
    plan = first.plan_hash[:16]
    assert told == [
        f": site a and site b have plan {second.plan_hash[:16]} go on from others: {plan} after round 2, {plan} after "
        "round 1"
    ]


def test_extensions_in_a_circle_end_the_reading_not_the_reader(tmp_path: Path) -> None:
    log = log_of(PLAIN)
    for plan, parent in (("1" * 64, "2" * 64), ("2" * 64, "1" * 64)):
        log.append("extended", {"plan_hash": plan, "parent": parent, "last_round": 9})
    roster = roster_entry(replace(toy.roster(PLAIN), plan_hash=bytes.fromhex("1" * 64)), 9)
    log.append("roster", roster)
    (says,) = found(tmp_path, a=log)
    assert "of which nothing says that it extends" in says
