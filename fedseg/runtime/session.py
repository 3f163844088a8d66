"""What a session is, derived from the manifest alone, so that both ends build the same one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fedseg.document import Document
from fedseg.errors import PlanError
from fedseg.federation.evaluation import statistics_code
from fedseg.federation.exchange import Enrolled
from fedseg.labels import scheme
from fedseg.plan.manifest import Manifest
from fedseg.plan.study import StudyPlan
from fedseg.privacy.distributed import NoiseShare, honest_others
from fedseg.secagg.encoding import Encoding
from fedseg.secagg.integers import IntegerCode
from fedseg.secagg.messages import SessionHeader
from fedseg.secagg.roster import Roster
from fedseg.secagg.session import Code
from fedseg.secagg.statistics import StatisticsCode
from fedseg.secagg.thresholds import Thresholds


def thresholds_of(plan: StudyPlan, quorum: int | None) -> Thresholds:
    """The thresholds of a plan's roster.

    Raises:
        PlanError: if n, c and quorum do not go together.
    """
    if plan.aggregation.mode == "plain":
        return Thresholds.plain(len(plan.sites), quorum or len(plan.sites))
    two = quorum == 2 and plan.aggregation.accept_two_contributors is not None
    return Thresholds.of(len(plan.sites), plan.aggregation.collusion, accept_two=two, quorum=quorum)


def least_quorum(plan: StudyPlan) -> int:
    """The fewest contributors that a plan's sites allow; in plain mode what the plan asks for, or all.

    Raises:
        PlanError: if n and c do not go together.
    """
    asked = plan.aggregation.quorum
    return thresholds_of(plan, asked if plan.aggregation.mode == "plain" or asked == 2 else None).quorum


@contextmanager
def at_plan_line(document: Document[StudyPlan]) -> Iterator[None]:
    """Give a `PlanError` that names a key of the plan the line of that key."""
    try:
        yield
    except PlanError as error:
        path = (error.where or "sites").split(".")
        raise PlanError(error.what, where=document.where(*path), hint=error.hint) from None


def check_aggregation(document: Document[StudyPlan]) -> int:
    """The quorum of a plan, checked against the thresholds of secure aggregation.

    Raises:
        PlanError: naming the line of the quorum (or of the sites), what is asked and what is possible.
    """
    plan = document.content
    asked = plan.aggregation.quorum
    with at_plan_line(document):
        least = least_quorum(plan)
    if asked is not None and asked < least:
        two = (
            "; a quorum of two (three sites, collusion 0) also needs aggregation.accept_two_contributors, a sentence "
            "that says why it is acceptable that each of two contributors can read the other's update"
            if asked == 2 and len(plan.sites) == 3
            else ""
        )
        raise PlanError(
            f"aggregation.quorum: {asked} is below the least that secure aggregation allows here, {least}{two}",
            where=document.where("aggregation", "quorum"),
            hint=f"remove the line, or ask for {least} or more",
        )
    return asked or least


def check_weights(document: Document[StudyPlan], quorum: int) -> None:
    """Refuse weights with which a secure sum is nearly one site's own update.

    Raises:
        PlanError: if a site weighs more than the others with which it may be alone in a round.
    """
    plan = document.content
    weights = {name: site.weight for name, site in plan.sites.items()}
    for name, weight in weights.items():
        others = sorted(other for site, other in weights.items() if site != name)[: quorum - 1]
        if plan.aggregation.mode == "secure" and weight > sum(others):
            raise PlanError(
                f"sites.{name}.weight: {weight} outweighs the other {len(others)} contributors of a smallest round "
                f"({sum(others)} together): the sum would be nearly this site's own update",
                where=document.where("sites", name, "weight"),
                hint="give the sites more equal weights",
            )


def share_of(plan: StudyPlan, quorum: int, noise_multiplier: float, dimension: int) -> NoiseShare:
    """A site's share of distributed noise.

    Args:
        plan: In distributed mode.
        quorum: Of the study.
        noise_multiplier: sigma.
        dimension: d, parameters that train.
    """
    numbers = thresholds_of(plan, quorum)
    return NoiseShare.of(
        noise_multiplier,
        plan.privacy.max_grad_norm,
        honest=honest_others(numbers.quorum, numbers.c),
        dimension=dimension,
        sites=len(plan.sites),
        subjects=sum(site.public_subjects for site in plan.sites.values()),
    )


def noise_share(manifest: Manifest) -> NoiseShare | None:
    """A site's share of a study's noise; None where the plan does not distribute it."""
    if not manifest.plan.distributed or manifest.noise_multiplier is None:
        return None
    return share_of(manifest.plan, manifest.quorum, manifest.noise_multiplier, manifest.dimension)


def encoding_of(manifest: Manifest) -> Code:
    """The ring code of what a study's sites send.

    Raises:
        PlanError: if the bound on the sum cannot be kept.
    """
    plan, share = manifest.plan, noise_share(manifest)
    if share is not None:
        return IntegerCode(len(plan.sites), share.max_grad_norm, share.dimension, share.scale)
    return Encoding(
        sites=len(plan.sites),
        clip=plan.aggregation.clip,
        weight_max=max(site.weight for site in plan.sites.values()),
        dimension=manifest.dimension,
        scored=plan.aggregation.rollback is not None,
    )


def evaluation_code(manifest: Manifest) -> StatisticsCode:
    """The ring code of what a study's sites send in an evaluation.

    Raises:
        PlanError: if the bound on the sum cannot be kept.
    """
    return statistics_code(len(manifest.plan.sites), len(scheme(manifest.plan.task).tissues))


def roster_of(manifest: Manifest, enrolled: Enrolled) -> Roster:
    """The roster of a study in which these have enrolled.

    Raises:
        ProtocolError: if a key cannot be, or two parties have one.
    """
    return Roster(manifest.study, bytes.fromhex(manifest.plan_hash), enrolled.server_key, enrolled.keys)


def header_of(
    manifest: Manifest, roster: Roster, round_number: int, attempt: int, model_hash: str, *, evaluation: bool = False
) -> SessionHeader:
    """The header of one attempt at a round, which every site recomputes and compares.

    Args:
        manifest: The study.
        roster: The study's.
        round_number: The round.
        attempt: At it.
        model_hash: Of the state that the round starts from.
        evaluation: Whether the round measures that state's model instead of training it.
    """
    plan = manifest.plan
    return SessionHeader.of(
        study=manifest.study,
        plan_hash=bytes.fromhex(manifest.plan_hash),
        round=round_number,
        attempt=attempt,
        model_hash=bytes.fromhex(model_hash),
        encoding=evaluation_code(manifest) if evaluation else encoding_of(manifest),
        sites=plan.site_names,
        roster=roster.fingerprint,
        thresholds=thresholds_of(plan, manifest.quorum),
    )
