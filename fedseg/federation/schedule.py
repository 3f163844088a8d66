"""How long a site's steps are: one function for those who take them and those who divide by them."""

from __future__ import annotations

import math

from fedseg.plan.study import StudyPlan

FINAL_RATE = 0.01


def scheduled_rate(rate: float, round_number: int, rounds: int) -> float:
    """Half a cosine from `rate` in round 1 towards a hundredth of it after the last of `rounds`."""
    progress = min(max((round_number - 1) / rounds, 0.0), 1.0)
    return rate * (FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * progress)))


def learning_rate(plan: StudyPlan, round_number: int) -> float:
    """The rate of every step of a round at a site: scheduled where privacy is off, else the plan's."""
    rate = plan.training.learning_rate
    return rate if plan.private else scheduled_rate(rate, round_number, plan.schedule.rounds)


def path_length(plan: StudyPlan, round_number: int) -> float:
    """K times eta: what a round of plain SGD steps multiplies the mean gradient by."""
    return plan.training.steps * learning_rate(plan, round_number)
