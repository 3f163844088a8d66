"""A study that goes on after its plan's rounds: a new version of the plan, which names the one that it extends.

Nothing changes but how many rounds there are, whether the model is evaluated, the privacy budget with its reserve, and
so the noise of the rounds to come: it is calibrated so that all rounds, past and to come, keep the budget. Past rounds
stay as they were charged. Every site agrees again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pydantic import ValidationError

from fedseg.document import Document
from fedseg.errors import PlanError, ProtocolError
from fedseg.federation.strategy import Strategy
from fedseg.federation.vector import Weights
from fedseg.plan.manifest import Manifest, Parent, Spent
from fedseg.plan.study import StudyPlan
from fedseg.privacy.events import Event, RoundCharge
from fedseg.runtime.evidence import append_once
from fedseg.runtime.ports import Evidence
from fedseg.runtime.resolution import FirstModel, check_manifest, past_events, resolve
from fedseg.runtime.session import noise_share
from fedseg.store.study_db import ClaimRow, RoundRow

MOST_VERSIONS = 100
_TALK = "nothing was agreed to; talk to the coordinator: the server is broken, or lies"


def extend(
    old: Manifest,
    first: Weights,
    *,
    rounds: int,
    epsilon: float | None = None,
    reserve: int | None = None,
    evaluate: bool = False,
    book: Sequence[RoundRow],
    claims: Sequence[ClaimRow],
) -> Manifest:
    """The version of a plan that goes on after another.

    Args:
        old: The version in force.
        first: The state that round 1 started from, float32.
        rounds: How many rounds more than it has; 0 only where an evaluation comes to it.
        epsilon: The budget of all rounds together; None: as it was.
        reserve: Rounds beyond the schedule that the noise is calibrated for; None: as many as it has.
        evaluate: Whether federated evaluation comes to the plan, where it had none.
        book: All attempts at all rounds so far.
        claims: All that sites have claimed of their ledgers, in order.

    Raises:
        PlanError: No noise keeps the budget, or a number is out of range.
    """
    if rounds < 1 and evaluate <= old.plan.evaluation.federated:
        hint = "add rounds: --rounds 1 or more; or an evaluation, where the plan has none: --evaluate"
        raise PlanError("an extension by no round changes nothing", where="extension", hint=hint)
    begun = max((row.round for row in book), default=0)
    earlier = old.parent.spent if old.parent else ()
    parent = Parent(plan_hash=old.plan_hash, last_round=begun, spent=(*earlier, *spent_under(old, book, claims)))
    plan = _longer(old.plan, rounds, epsilon, reserve, evaluate)
    weights = Strategy.of(old).weights(first)
    start = FirstModel(weights, old.architecture, old.trained, old.init)
    try:
        new = resolve(Document(plan, "the extended plan", {}), start, study=old.study, parent=parent)
    except PlanError as error:
        hint = "fewer --rounds, a smaller --reserve, or a larger --epsilon, to which every site must agree"
        raise PlanError(error.what, where="extension", hint=hint) from None
    check_extension(old, new)
    return new


def _longer(plan: StudyPlan, rounds: int, epsilon: float | None, reserve: int | None, evaluate: bool) -> StudyPlan:
    changed: dict[str, Any] = {
        "evaluation": plan.evaluation.model_copy(update={"federated": plan.evaluation.federated or evaluate}),
        "schedule": plan.schedule.model_copy(update={"rounds": plan.schedule.rounds + rounds}),
        "privacy": plan.privacy.model_copy(
            update={
                "epsilon": plan.privacy.epsilon if epsilon is None else epsilon,
                "reserve_rounds": plan.privacy.reserve_rounds if reserve is None else reserve,
            }
        ),
    }
    try:
        return StudyPlan.model_validate_json(plan.model_copy(update=changed).model_dump_json())
    except ValidationError as failure:
        first = failure.errors()[0]
        raise PlanError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}", where="extension") from None


def spent_under(manifest: Manifest, book: Sequence[RoundRow], claims: Sequence[ClaimRow]) -> tuple[Spent, ...]:
    """What the rounds begun under a version of a plan cost each subject of any site at most.

    A site claims its charges before it trains. So it has charged what it claimed last, and since then at most once in
    each later attempt; where it never claimed, at most in every attempt.

    Args:
        manifest: The version.
        book: All attempts at all rounds.
        claims: All claims, in order, under whatever version.
    """
    plan, sigma, share = manifest.plan, manifest.noise_multiplier, noise_share(manifest)
    if sigma is None:
        return ()
    last_round = manifest.parent.last_round if manifest.parent else 0
    attempts = [(row.round, row.attempt) for row in book if row.round > last_round]
    steps = max(_steps(site, manifest, attempts, claims) for site in plan.site_names)
    spent = Spent(
        noise_multiplier=sigma,
        sampling_rate=plan.privacy.sampling_rate,
        steps=max(steps, 1),
        sensitivity=share.sensitivity if share else 0.0,
        dimension=share.dimension if share else 0,
    )
    return (spent,) if steps else ()


def _steps(site: str, manifest: Manifest, attempts: Sequence[tuple[int, int]], claims: Sequence[ClaimRow]) -> int:
    own = [claim for claim in claims if claim.site == site]
    here = [claim for claim in own if claim.plan == manifest.plan_hash]
    before = [claim.steps for claim in own if claim.plan != manifest.plan_hash]
    claimed = here[-1].steps - max(before, default=0) if here else 0
    since = [each for each in attempts if not here or each > (here[-1].round, here[-1].attempt)]
    return claimed + len(since) * manifest.plan.training.steps


# What a site checks.


def following(agreed: Manifest, newest: bytes, fetch: Callable[[str], bytes]) -> list[Manifest]:
    """The versions from the one after `agreed` to the server's newest, each checked against the one before.

    Args:
        agreed: What this site's operator agreed to.
        newest: The server's manifest, canonical JSON; another one than `agreed`.
        fetch: Asks for the manifest of an earlier version, by its hash.

    Raises:
        PlanError: The newest does not go on from `agreed`, or not as an extension may.
    """
    versions = [Manifest.from_json(newest)]
    while (parent := versions[0].parent) is not None and parent.plan_hash != agreed.plan_hash:
        if len(versions) == MOST_VERSIONS:
            raise PlanError(f"the server's plan has more than {MOST_VERSIONS} versions", hint=_TALK)
        versions.insert(0, _fetched(parent.plan_hash, fetch))
    if parent is None:
        raise PlanError(
            f"the server's plan is {versions[-1].plan_hash[:16]}, this site agreed to {agreed.plan_hash[:16]}",
            hint="a changed plan is another study: ask the coordinator for a new invite",
        )
    for old, new in zip([agreed, *versions[:-1]], versions, strict=True):
        check_extension(old, new)
    check_manifest(versions[-1])
    return versions


def _fetched(plan_hash: str, fetch: Callable[[str], bytes]) -> Manifest:
    try:
        version = Manifest.from_json(fetch(plan_hash))
    except ProtocolError as error:
        raise PlanError(
            f"the server does not hand out version {plan_hash[:16]} of the plan: {error.what}", hint=_TALK
        ) from None
    if version.plan_hash != plan_hash:
        raise PlanError(f"the server sent another plan than version {plan_hash[:16]}", hint=_TALK)
    return version


def check_extension(old: Manifest, new: Manifest) -> None:
    """Refuse a version that changes more than an extension may.

    Raises:
        PlanError: Names the first field that differs, or what of the past it leaves out.
    """
    parent = new.parent
    if parent is None or parent.plan_hash != old.plan_hash:
        raise PlanError("the plan does not go on from the version before", hint=_TALK)
    changed = _first_change(_fixed(old), _fixed(new))
    if changed is not None:
        raise PlanError(f"an extension changes rounds and budget alone, this one also {changed}", hint=_TALK)
    _check_length(old.plan, new.plan)
    earlier = old.parent.spent if old.parent else ()
    past = old.parent.last_round if old.parent else 0
    if parent.spent[: len(earlier)] != earlier or parent.last_round < past:
        raise PlanError("an extension leaves out what earlier versions of the plan have cost", hint=_TALK)


def _check_length(old: StudyPlan, new: StudyPlan) -> None:
    evaluated, rounds = old.evaluation.federated, old.schedule.rounds
    if evaluated and not new.evaluation.federated:
        raise PlanError("an extension does not take the evaluation out of a plan", hint=_TALK)
    if new.schedule.rounds < rounds + (new.evaluation.federated == evaluated):
        raise PlanError("an extension has more rounds than the plan before", hint=_TALK)
    if new.schedule.rounds > rounds and new.strategy.name == "scaffold":
        # A site that has yet to take in the last sum would divide it by another rate than the server has.
        raise PlanError(
            "a study under scaffold cannot have more rounds: what its sites correct by is divided by the learning "
            "rates of the plan's rounds, which more of them would change",
            where="strategy.name",
            hint="begin another study from this one's model: fedseg study create --init MODEL",
        )


def _fixed(manifest: Manifest) -> dict[str, Any]:
    """What an extension may not change."""
    data = manifest.model_dump(mode="json", exclude={"parent", "noise_multiplier", "code_version"})
    del (
        data["plan"]["evaluation"]["federated"],
        data["plan"]["schedule"]["rounds"],
        data["plan"]["privacy"]["epsilon"],
        data["plan"]["privacy"]["reserve_rounds"],
    )
    return data


def _first_change(old: Any, new: Any, path: str = "") -> str | None:
    if isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys():
        found = (_first_change(old[name], new[name], f"{path}.{name}" if path else name) for name in sorted(old))
        return next((each for each in found if each is not None), None)
    return None if old == new else path


def check_covered(manifest: Manifest, charges: Iterable[RoundCharge], newest_round: int = 0) -> None:
    """Refuse an extension that counts less of the past than this site's own ledger and log do.

    Args:
        manifest: The extension.
        charges: This study's, in this site's ledger.
        newest_round: The newest round that this site knows of.

    Raises:
        PlanError: Saying what is left out.
    """
    parent = manifest.parent
    if parent is None:
        return
    own: Counter[tuple[Any, ...]] = Counter()
    past = [charge for charge in charges if charge.plan_hash != manifest.plan_hash]
    for charge in past:
        own[_kind(charge.event)] += charge.steps
    counted: Counter[tuple[Any, ...]] = Counter()
    for event in past_events(parent):
        counted[_kind(event)] += event.steps
    missing = {kind: steps - counted[kind] for kind, steps in own.items() if steps > counted[kind]}
    if missing:
        raise PlanError(
            f"the extension leaves out {sum(missing.values())} private steps that this site's ledger has charged to "
            "this study",
            hint="nothing was agreed to; the coordinator must extend the study's own folder, not an older copy of it",
        )
    newest = max([newest_round, *(charge.round for charge in past)], default=0)
    if newest > parent.last_round:
        raise PlanError(
            f"the extension goes on after round {parent.last_round}, this site knows of round {newest}", hint=_TALK
        )


def _kind(event: Event) -> tuple[Any, ...]:
    return event.noise_multiplier, event.sampling_rate, event.skellam


# What is written down.


def append_versions(evidence: Evidence, versions: Iterable[Manifest]) -> None:
    """Write into a party's log which version of the plan extends which; what is there already is not said again."""
    for version in versions:
        if version.parent is not None:
            body = {
                "plan_hash": version.plan_hash,
                "parent": version.parent.plan_hash,
                "last_round": version.parent.last_round,
            }
            append_once(evidence, "extended", body)
