"""The site policy: what one hospital accepts, whoever runs the study.

A hospital writes it once (`fedseg client join --policy FILE`); without a file the defaults below hold. A plan that asks
for more is refused before anything is computed, with the policy's line.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedseg import document
from fedseg.document import Document, Section
from fedseg.errors import PolicyError
from fedseg.plan import Manifest

DEFAULT_NAME = "the default policy"


class SitePolicy(Section):
    """What this hospital accepts.

    Attributes:
        require_privacy: Refuse studies without differential privacy.
        max_epsilon: The largest budget of one study; unset: no limit.
        max_delta: The largest delta.
        lifetime_epsilon: The largest epsilon of one subject over all studies; unset: no limit.
        lifetime_delta: The delta that this epsilon is measured at, whatever delta a study has.
        require_secure_aggregation: Refuse studies in which the server sees single updates.
        allow_two_contributors: Accept a quorum of two, in which each contributor can read the other's update.
        min_sites: The fewest sites of a study.
        tasks: The label schemes that may be trained.
    """

    require_privacy: bool = False
    max_epsilon: Annotated[float, Field(gt=0)] | None = None
    max_delta: Annotated[float, Field(gt=0, le=1e-3)] = 1e-3
    lifetime_epsilon: Annotated[float, Field(gt=0)] | None = None
    lifetime_delta: Annotated[float, Field(gt=0, le=1e-3)] = 1e-5
    require_secure_aggregation: bool = True
    allow_two_contributors: bool = False
    min_sites: Annotated[int, Field(ge=1)] = 3
    tasks: tuple[Literal["feta", "brain_mask"], ...] = ("feta", "brain_mask")


def parse_policy(text: str, name: str) -> Document[SitePolicy]:
    """Read a policy from YAML 1.2; raises `PolicyError` with file, line and what is allowed."""
    return document.parse(text, SitePolicy, name=name, error=PolicyError)


def default_policy() -> Document[SitePolicy]:
    """The policy of a hospital that wrote none."""
    return Document(SitePolicy(), DEFAULT_NAME, {})


def refusals(policy: Document[SitePolicy], manifest: Manifest) -> list[str]:
    """Everything in a study that the policy does not accept, one sentence each; empty when it may run."""
    limits, plan = policy.content, manifest.plan
    privacy, two = plan.privacy, manifest.quorum < 3 and len(plan.sites) >= 3
    checks = {
        "require_privacy": (limits.require_privacy and not plan.private, "the study trains without privacy"),
        "max_epsilon": (
            limits.max_epsilon is not None and (privacy.epsilon or 0) > limits.max_epsilon,
            f"the study's budget is epsilon {privacy.epsilon}, at most {limits.max_epsilon} is accepted",
        ),
        "max_delta": (
            plan.private and privacy.delta > limits.max_delta,
            f"the study's delta is {privacy.delta}, at most {limits.max_delta} is accepted",
        ),
        "require_secure_aggregation": (
            limits.require_secure_aggregation and plan.aggregation.mode != "secure",
            "the server would see this site's own updates (aggregation.mode: plain)",
        ),
        "allow_two_contributors": (
            two and not limits.allow_two_contributors,
            f"a round may end with {manifest.quorum} contributors, who could each read the other's update",
        ),
        "min_sites": (
            len(plan.sites) < limits.min_sites,
            f"the study has {len(plan.sites)} sites, at least {limits.min_sites} are asked for",
        ),
        "tasks": (plan.task not in limits.tasks, f"the task {plan.task} is not accepted"),
    }
    return [f"{what} ({_line(policy, key)})" for key, (refused, what) in checks.items() if refused]


def _line(policy: Document[SitePolicy], key: str) -> str:
    if policy.name == DEFAULT_NAME:
        return f"{key} of {DEFAULT_NAME}"
    return f"{policy.where(key)}, {key}"


def accept(policy: Document[SitePolicy], manifest: Manifest) -> None:
    """Refuse a study that the policy does not allow.

    Raises:
        PolicyError: naming every refusal and its line.
    """
    found = refusals(policy, manifest)
    if found:
        raise PolicyError(
            "this hospital's policy refuses the study: " + "; ".join(found),
            hint="talk to the coordinator, or have the policy's owner change it (--policy FILE)",
        )
