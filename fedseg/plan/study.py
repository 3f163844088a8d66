"""The study plan as a coordinator writes it, in YAML.

`fedseg study create` resolves it to a `Manifest` (`plan.manifest`).
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedseg import document
from fedseg.document import Document, Impossible, Section
from fedseg.errors import PlanError
from fedseg.plan.combinations import check_combinations
from fedseg.plan.sections import (
    MAX_SITES,
    Aggregation,
    Evaluation,
    Image,
    Network,
    Printable,
    Privacy,
    Schedule,
    Site,
    SiteName,
    Strategy,
    Training,
)

MAX_STEPS = 200_000
MAX_PATCH_VOXELS = 2**28
DOWNSAMPLING = {"small": 8, "base": 16, "lean": 16}


class StudyPlan(Section):
    """A study plan as its coordinator writes it."""

    name: Annotated[str, Field(min_length=1, max_length=100), Printable]
    task: Literal["feta", "brain_mask"] = "feta"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    image: Image = Image()
    network: Network = Network()
    training: Training = Training()
    privacy: Privacy
    aggregation: Aggregation = Aggregation()
    evaluation: Evaluation = Evaluation()
    strategy: Strategy = Strategy()
    schedule: Schedule
    sites: Annotated[dict[SiteName, Site], Field(min_length=1, max_length=MAX_SITES)]

    @model_validator(mode="after")
    def _possible(self) -> StudyPlan:
        _check_patch(self)
        _check_work(self)
        check_combinations(self)
        return self

    @property
    def distributed(self) -> bool:
        """Whether every site adds a share of one noise."""
        return self.privacy.mode == "distributed"

    @property
    def private(self) -> bool:
        """Whether sites train with differential privacy."""
        return self.privacy.mode != "off"

    @property
    def site_names(self) -> tuple[str, ...]:
        """All sites, sorted: the order that secure aggregation numbers them in."""
        return tuple(sorted(self.sites))


def _check_patch(plan: StudyPlan) -> None:
    patch, training = plan.image.patch, plan.training
    factor = DOWNSAMPLING[plan.network.preset]
    if any(side % factor for side in patch):
        why = f"each side must be a multiple of {factor} for the {plan.network.preset} network, not {list(patch)}"
        near = [max(factor, round(side / factor) * factor) for side in patch]
        raise Impossible(why, "image.patch", "network.preset", hint=f"{near} is near")
    batch = training.subjects_per_step * training.patches_per_subject
    if math.prod(patch) * batch > MAX_PATCH_VOXELS:
        raise Impossible(
            "patches_per_subject and subjects_per_step make too large a batch of it",
            "image.patch",
            "training.patches_per_subject",
            "training.subjects_per_step",
            hint=f"at most {MAX_PATCH_VOXELS} voxels in all; a step takes {batch} such patches",
        )


def _check_work(plan: StudyPlan) -> None:
    quorum, sites = plan.aggregation.quorum, len(plan.sites)
    if plan.training.steps * (plan.schedule.rounds + plan.privacy.reserve_rounds) > MAX_STEPS:
        why = f"more than {MAX_STEPS} steps in all rounds together, those in reserve too"
        raise Impossible(why, "training.steps", "schedule.rounds", hint="fewer steps a round, or fewer rounds")
    if plan.training.made_up and plan.task != "feta":
        why = "images are made up from tissues, which the task brain_mask has none of"
        raise Impossible(why, "training.made_up", hint="remove the line")
    if quorum is not None and quorum > sites:
        why = f"{quorum} of {sites} sites can never be reached"
        raise Impossible(why, "aggregation.quorum", hint=f"at most {sites}, or leave the line out")


def parse_plan(text: str, name: str) -> Document[StudyPlan]:
    """Read a plan from YAML 1.2.

    Args:
        text: The document.
        name: What errors call the file.

    Raises:
        PlanError: with file, line, what is allowed and the nearest match.
    """
    return document.parse(text, StudyPlan, name=name, error=PlanError)
