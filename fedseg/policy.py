"""The site policy: what one hospital accepts, whoever runs the study.

A hospital names its file once (`fedseg client join --policy FILE`), and each start reads it again; without a file the
defaults below hold. A plan that asks for more is refused before anything is computed, with the policy's line. A file
that accepts less than before holds at once, one that accepts more only once somebody has agreed to that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from fedseg import document
from fedseg.document import Document, Section
from fedseg.errors import PolicyError
from fedseg.plan.manifest import Manifest
from fedseg.plan.sections import Aggregation
from fedseg.plan.study import StudyPlan

DEFAULT_NAME = "the default policy"

PRIVACY_KEYS = (
    "require_privacy",
    "max_epsilon",
    "max_delta",
    "allow_unprotected_start",
    "allow_distributed_noise",
    "lifetime_epsilon",
    "lifetime_delta",
)
"""What a policy says of its patients' privacy. None of it depends on a subject, so a report may show it."""

Checks = dict[str, tuple[bool, str]]
"""By the policy's key: whether it refuses the study, and the sentence that says what it refuses."""


class SitePolicy(Section):
    """What this hospital accepts.

    Attributes:
        require_privacy: Refuse studies without differential privacy; unset: where an epsilon is limited, as no limit
            holds in a study that bounds nothing.
        max_epsilon: The largest budget of one study; unset: no limit.
        max_delta: The largest delta.
        allow_unprotected_start: Accept a private study whose first model was trained on patients without differential
            privacy: what it tells of them is in every later model, and no epsilon bounds it. Whether it was is the
            coordinator's word.
        allow_distributed_noise: Accept noise of which each site adds a share: it protects this hospital's subjects only
            as long as enough of the other sites are honest. Allowed where nothing is said, as no privacy at all is.
        lifetime_epsilon: The largest epsilon of one subject over all studies; unset: no limit.
        lifetime_delta: The delta that this epsilon is measured at, whatever delta a study has.
        require_secure_aggregation: Refuse studies in which the server sees single updates.
        allow_robust_rules: Accept a plan that joins updates by a rule that compares them one by one, at the server.
        allow_two_contributors: Accept a quorum of two, in which each contributor can read the other's update.
        allow_reused_models: In a study without privacy, add to a second sum over a model although its contributors
            are others than those of the first: two different sums over one model differ by an update. Likewise to an
            evaluation of another model by others than an earlier one: how many subjects a site scored can follow.
        allow_validation_scores: Accept a plan that rolls back: the mean Dice over this hospital's validation subjects
            then leaves it, each round, in the same sum as its update. Allowed where nothing is said: it happens only
            in studies without privacy, whose update tells of far more under the same protection.
        allow_evaluation: Accept a plan with federated evaluation: scores of the model on this hospital's kept-back
            subjects, and how many there are, then leave it in one sum at the end of the study. Allowed where nothing is
            said, for the same reason, and because a plan must ask for it.
        min_sites: The fewest sites of a study.
        min_contributors: The fewest contributors of a round (a quorum of two also takes `allow_two_contributors`).
        min_collusion: The fewest colluding sites that secure aggregation holds against, beside the server; unset: no
            fewer than where a plan names no number.
        tasks: The label schemes that may be trained.
    """

    require_privacy: bool | None = None
    max_epsilon: Annotated[float, Field(gt=0)] | None = None
    max_delta: Annotated[float, Field(gt=0, le=1e-3)] = 1e-3
    allow_unprotected_start: bool = False
    allow_distributed_noise: bool = True
    lifetime_epsilon: Annotated[float, Field(gt=0)] | None = None
    lifetime_delta: Annotated[float, Field(gt=0, le=1e-3)] = 1e-5
    require_secure_aggregation: bool = True
    allow_robust_rules: bool = False
    allow_two_contributors: bool = False
    allow_reused_models: bool = False
    allow_validation_scores: bool = True
    allow_evaluation: bool = True
    min_sites: Annotated[int, Field(ge=1)] = 3
    min_contributors: Annotated[int, Field(ge=1)] = 1
    min_collusion: Annotated[int, Field(ge=0)] | None = None
    tasks: tuple[Literal["feta", "brain_mask"], ...] = ("feta", "brain_mask")


@dataclass(frozen=True)
class Change:
    """One line in which a policy differs from the one before."""

    key: str
    before: Any
    after: Any
    laxer: bool
    """Whether the one after may accept what the one before refused."""


def policy_changes(before: SitePolicy, after: SitePolicy) -> list[Change]:
    """Every line in which two policies differ, in the order of `SitePolicy`."""
    pairs = {key: (getattr(before, key), getattr(after, key)) for key in SitePolicy.model_fields}
    return [Change(key, old, new, _laxer(key, old, new)) for key, (old, new) in pairs.items() if old != new]


def _laxer(key: str, before: Any, after: Any) -> bool:
    match key:
        case "tasks":
            return not set(after) <= set(before)
        case "require_privacy":
            return _REQUIRES[after] < _REQUIRES[before]
        case "require_secure_aggregation":
            return bool(before)
        case "min_collusion":
            # Unset, it follows the number of sites: neither is known to be the stricter.
            return before is None or after is None or after < before
        case "min_sites" | "min_contributors":
            return bool(after < before)
        case _ if key.startswith("allow_"):
            return bool(after)
    return _limit(after) > _limit(before)


_REQUIRES = {False: 0, None: 1, True: 2}


def _limit(most: float | None) -> float:
    return math.inf if most is None else most


def parse_policy(text: str, name: str) -> Document[SitePolicy]:
    """Read a policy from YAML 1.2; raises `PolicyError` with file, line and what is allowed."""
    return document.parse(text, SitePolicy, name=name, error=PolicyError)


def default_policy() -> Document[SitePolicy]:
    """The policy of a hospital that wrote none."""
    return Document(SitePolicy(), DEFAULT_NAME, {})


def refusals(policy: Document[SitePolicy], manifest: Manifest, collusion: int, usual_collusion: int) -> list[str]:
    """Everything in a study that the policy does not accept, one sentence each; empty when it may run.

    Args:
        policy: This hospital's.
        manifest: The study.
        collusion: c of the study's thresholds; unused in plain mode.
        usual_collusion: c of a study of as many sites whose plan leaves it out; unused in plain mode.
    """
    limits = policy.content
    checks = {
        **_privacy_checks(limits, manifest),
        **_aggregation_checks(limits, manifest.plan.aggregation),
        "allow_evaluation": (
            manifest.plan.evaluation.federated and not limits.allow_evaluation,
            "scores on this site's kept-back subjects would leave it in a sum (evaluation.federated)",
        ),
        **_roster_checks(limits, manifest),
    }
    if manifest.plan.aggregation.mode == "secure":
        least = usual_collusion if limits.min_collusion is None else limits.min_collusion
        checks["min_collusion"] = (
            collusion < least,
            f"updates stay hidden from a server with {collusion} sites on its side, at least {least} are asked for",
        )
    checks["tasks"] = (manifest.plan.task not in limits.tasks, f"the task {manifest.plan.task} is not accepted")
    return [f"{what} ({_line(policy, key)})" for key, (refused, what) in checks.items() if refused]


def _privacy_checks(limits: SitePolicy, manifest: Manifest) -> Checks:
    plan, privacy = manifest.plan, manifest.plan.privacy
    return {
        "require_privacy": _without_privacy(limits, plan),
        "max_epsilon": (
            limits.max_epsilon is not None and (privacy.epsilon or 0) > limits.max_epsilon,
            f"the study's budget is epsilon {privacy.epsilon}, at most {limits.max_epsilon} is accepted",
        ),
        "max_delta": (
            plan.private and privacy.delta > limits.max_delta,
            f"the study's delta is {privacy.delta}, at most {limits.max_delta} is accepted",
        ),
        "allow_unprotected_start": (
            manifest.unprotected_start and not limits.allow_unprotected_start,
            "its first model was trained on patients without differential privacy, and all its models tell of them",
        ),
        "allow_distributed_noise": (
            plan.distributed and not limits.allow_distributed_noise,
            "this site's noise alone would not protect its subjects (privacy.mode: distributed)",
        ),
    }


def _without_privacy(limits: SitePolicy, plan: StudyPlan) -> tuple[bool, str]:
    says = "the study trains without privacy"
    limited = [key for key in ("max_epsilon", "lifetime_epsilon") if getattr(limits, key) is not None]
    if plan.private or limits.require_privacy is not None or not limited:
        return not plan.private and bool(limits.require_privacy), says
    return True, f"{says}, where no {limited[0]} holds; write require_privacy: false to accept that"


def _aggregation_checks(limits: SitePolicy, aggregation: Aggregation) -> Checks:
    return {
        "require_secure_aggregation": (
            limits.require_secure_aggregation and aggregation.mode != "secure",
            "the server would see this site's own updates (aggregation.mode: plain)",
        ),
        "allow_robust_rules": (
            aggregation.rule != "mean" and not limits.allow_robust_rules,
            f"the server would compare this site's own updates with the others' (aggregation.rule: {aggregation.rule})",
        ),
        "allow_validation_scores": (
            aggregation.rollback is not None and not limits.allow_validation_scores,
            "this site's validation Dice would leave it in the sum of each round (aggregation.rollback)",
        ),
    }


def _roster_checks(limits: SitePolicy, manifest: Manifest) -> Checks:
    sites, quorum = len(manifest.plan.sites), manifest.quorum
    return {
        "allow_two_contributors": (
            quorum < 3 <= sites and not limits.allow_two_contributors,
            f"a round may end with {quorum} contributors, who could each read the other's update",
        ),
        "min_sites": (
            sites < limits.min_sites,
            f"the study has {sites} sites, at least {limits.min_sites} are asked for",
        ),
        "min_contributors": (
            quorum < limits.min_contributors,
            f"a round may end with {quorum} contributors, at least {limits.min_contributors} are asked for",
        ),
    }


def _line(policy: Document[SitePolicy], key: str) -> str:
    if policy.name == DEFAULT_NAME:
        return f"{key} of {DEFAULT_NAME}"
    if (key,) not in policy.lines:
        return f"{key} of {policy.name}, which leaves it at its default"
    return f"{policy.where(key)}, {key}"


def accept(policy: Document[SitePolicy], manifest: Manifest, collusion: int, usual_collusion: int) -> None:
    """Refuse a study that the policy does not allow. Arguments as `refusals`.

    Raises:
        PolicyError: naming every refusal and its line.
    """
    found = refusals(policy, manifest, collusion, usual_collusion)
    if found:
        raise PolicyError(
            "this hospital's policy refuses the study: " + "; ".join(found),
            hint="talk to the coordinator, or have the policy's owner change it (--policy FILE)",
        )
