"""From a plan to the manifest that all parties agree on, and the same arithmetic again at each site."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from fedseg import __version__
from fedseg.document import Document
from fedseg.errors import PlanError
from fedseg.federation.strategy import Strategy
from fedseg.federation.vector import Weights, model_hash
from fedseg.plan.manifest import Init, Manifest, Parent
from fedseg.plan.study import StudyPlan
from fedseg.privacy.accounting import epsilon
from fedseg.privacy.calibration import noise_multiplier, skellam_multiplier
from fedseg.privacy.events import Event, SkellamNoise
from fedseg.privacy.planning import check_delta
from fedseg.runtime.session import (
    at_plan_line,
    check_aggregation,
    check_weights,
    encoding_of,
    least_quorum,
    noise_share,
    share_of,
)


@dataclass(frozen=True)
class FirstModel:
    """What round 1 starts from.

    Attributes:
        weights: float32[P].
        architecture: What rebuilds the network.
        trained: Ranges of the weights that train; None: all.
        init: Where the weights come from, unless from the plan's seed.
    """

    weights: Weights
    architecture: Mapping[str, str | int | list[int]]
    trained: tuple[tuple[int, int], ...] | None = None
    init: Init | None = None


def resolve(document: Document[StudyPlan], first: FirstModel, *, study: str, parent: Parent | None = None) -> Manifest:
    """Turn a plan into what all parties agree on.

    Args:
        document: The plan.
        first: Where round 1 starts.
        study: The study's identifier, 32 hex digits.
        parent: The version that the plan extends.

    Raises:
        PlanError: for what is impossible, with the plan's line.
    """
    plan, weights = document.content, first.weights
    ranges = first.trained or ((0, weights.size),)
    quorum = check_aggregation(document)
    check_weights(document, quorum)
    dimension = sum(stop - start for start, stop in ranges)
    sigma = _calibrate(document, quorum, dimension, parent) if plan.private else None
    manifest = Manifest(
        study=study,
        plan=plan,
        quorum=quorum,
        noise_multiplier=sigma,
        architecture=dict(first.architecture),
        parameters=weights.size,
        trained=ranges,
        initial_model=model_hash(Strategy.for_plan(plan, weights.size, ranges).first(weights)),
        init=first.init,
        parent=parent,
        code_version=__version__,
    )
    with at_plan_line(document):
        encoding_of(manifest)
        check_share(manifest)
    if sigma is not None and not plan.distributed:
        _check_clip(document, sigma, dimension)
    return manifest


def _calibrate(document: Document[StudyPlan], quorum: int, dimension: int, parent: Parent | None) -> float:
    plan = document.content
    privacy = plan.privacy
    with at_plan_line(document):
        check_delta(privacy.delta, public_subjects(plan))
    if privacy.epsilon is None:
        raise PlanError("privacy.epsilon is missing", where=document.where("privacy"))
    budget = (privacy.epsilon, privacy.delta, privacy.sampling_rate, steps_in_all(plan, parent))
    past = past_events(parent)
    try:
        if plan.distributed:
            return skellam_multiplier(*budget, lambda sigma: share_of(plan, quorum, sigma, dimension).noise, past=past)
        return noise_multiplier(*budget, past=past)
    except PlanError as error:
        hint = error.hint or "a larger epsilon, fewer rounds or steps, or a smaller sampling_rate"
        raise PlanError(error.what, where=document.where("privacy", "epsilon"), hint=hint) from None


def steps_in_all(plan: StudyPlan, parent: Parent | None) -> int:
    """The most private steps that a version of a plan may take: its rounds, reserve included, after its parent's.

    Raises:
        PlanError: if it leaves no round beyond its parent's.
    """
    rounds = plan.schedule.rounds + plan.privacy.reserve_rounds - (parent.last_round if parent else 0)
    if rounds < 1:
        raise PlanError(
            f"the study has begun {parent.last_round if parent else 0} rounds already",
            where="schedule.rounds",
            hint="an extension needs more rounds than that",
        )
    return plan.training.steps * rounds


def past_events(parent: Parent | None) -> tuple[Event, ...]:
    """What the versions before may have cost each subject."""
    return tuple(
        Event(
            spent.noise_multiplier,
            spent.sampling_rate,
            spent.steps,
            SkellamNoise(spent.sensitivity, spent.dimension) if spent.dimension else None,
        )
        for spent in (parent.spent if parent else ())
    )


def events_of(manifest: Manifest, steps: int | None = None) -> tuple[Event, ...]:
    """What a study may cost each subject of a site, earlier versions included.

    Args:
        manifest: Of a private study.
        steps: Private steps under this version; None: as many as it allows.
    """
    count = steps_in_all(manifest.plan, manifest.parent) if steps is None else steps
    return (*past_events(manifest.parent), *events_ahead(manifest, count))


def events_ahead(manifest: Manifest, steps: int) -> tuple[Event, ...]:
    """What so many private steps under this very version cost each subject."""
    share, sigma = noise_share(manifest), manifest.noise_multiplier
    if sigma is None or steps < 1:
        return ()
    return (Event(sigma, manifest.plan.privacy.sampling_rate, steps, share.noise if share else None),)


def check_share(manifest: Manifest) -> None:
    """Refuse distributed noise that leaves the ring no room, or nobody to trust.

    Raises:
        PlanError: as `NoiseShare.check`.
    """
    if (share := noise_share(manifest)) is not None:
        share.check()


def check_manifest(manifest: Manifest) -> None:
    """What a site recomputes before it takes part: a manifest is the server's word, its promises are arithmetic.

    Raises:
        PlanError: if the quorum, the encoding or the privacy budget does not follow from the plan.
    """
    plan = manifest.plan
    asked = plan.aggregation.quorum
    least = least_quorum(plan)
    if manifest.quorum < least:
        raise PlanError(f"the study's quorum is {manifest.quorum}, the least that its sites allow is {least}")
    if manifest.quorum != (asked or least):
        raise PlanError(f"the study's quorum is {manifest.quorum}, its plan says {asked or least}")
    check_weights(Document(plan, "the study's plan", {}), manifest.quorum)
    encoding_of(manifest)
    if (manifest.noise_multiplier is not None) != plan.private:
        raise PlanError("the study's noise multiplier and its privacy mode contradict each other")
    if plan.private:
        check_share(manifest)
        _check_budget(manifest)


def _check_budget(manifest: Manifest) -> None:
    plan, privacy = manifest.plan, manifest.plan.privacy
    spent = epsilon(events_of(manifest), privacy.delta)
    if privacy.epsilon is None or spent > privacy.epsilon:
        raise PlanError(
            f"the study's noise does not keep its budget: {steps_in_all(plan, manifest.parent)} steps cost epsilon "
            f"{spent:.3f}, not {privacy.epsilon}"
        )
    check_delta(privacy.delta, public_subjects(plan))


def public_subjects(plan: StudyPlan) -> dict[str, int]:
    """N0 of each site."""
    return {name: site.public_subjects for name, site in plan.sites.items()}


def expected_noise_norm(plan: StudyPlan, sigma: float, parameters: int) -> float:
    """L2 norm that privacy noise alone gives an update, about: what `aggregation.clip` must leave room for.

    For SGD each step adds a vector of norm rate * sigma C sqrt(d) / (q N0), T of them add up like a random walk,
    momentum stretches each by 1 / (1 - momentum). Adam moves each weight by at most about its rate a step.
    """
    training, privacy = plan.training, plan.privacy
    walk = training.learning_rate * math.sqrt(training.steps * parameters)
    if training.optimiser == "adam":
        return walk
    fewest = min(site.public_subjects for site in plan.sites.values())
    step = sigma * privacy.max_grad_norm / (privacy.sampling_rate * fewest)
    return walk * step / (1 - training.momentum)


def _check_clip(document: Document[StudyPlan], sigma: float, parameters: int) -> None:
    norm = expected_noise_norm(document.content, sigma, parameters)
    clip = document.content.aggregation.clip
    if norm > clip:
        raise PlanError(
            f"aggregation.clip: {clip:g} is less than the norm that noise alone gives an update, about {norm:.3g}",
            where=document.where("aggregation", "clip"),
            hint=f"set it to {2 * norm:.2g} or more, or lower training.learning_rate",
        )
