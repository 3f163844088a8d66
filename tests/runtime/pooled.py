"""A toy study in distributed mode: one pooled step a round, to whose noise every site adds a share."""

from __future__ import annotations

from fedseg.document import Document
from fedseg.plan.manifest import Manifest
from fedseg.plan.study import StudyPlan, parse_plan
from fedseg.runtime.resolution import resolve
from tests.runtime import toy

PLAN = """\
name: pooled
seed: 7
training: {steps: 1, optimiser: sgd, learning_rate: 0.5, momentum: MOMENTUM}
privacy: {mode: distributed, epsilon: 8, reserve_rounds: 3}
schedule: {rounds: ROUNDS, deadline_s: 20, absent_after_s: 5}
sites: {a: {}, b: {}, c: {}}
"""


def plan(rounds: int = 2, momentum: float = 0.5) -> Document[StudyPlan]:
    return parse_plan(PLAN.replace("ROUNDS", str(rounds)).replace("MOMENTUM", str(momentum)), "pooled.yaml")


def resolved(rounds: int = 2, momentum: float = 0.5) -> Manifest:
    return resolve(plan(rounds, momentum), toy.FIRST, study="ab" * 16)
