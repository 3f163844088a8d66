"""What the mean update of a round does to a study's weights: one small pure optimiser for each strategy.

Each takes the mean update (weights after minus before: the pseudo-gradient with its sign turned) and its own moments,
and gives the step and the moments after it. All are float64 [d]. Moments are part of a study's state, which the server
and every site compute from published sums: they cost no privacy and nothing more is uploaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedseg.federation.schedule import path_length
from fedseg.plan.sections import Strategy
from fedseg.plan.study import StudyPlan

Exact = NDArray[np.float64]
Moments = tuple[Exact, ...]


class Optimiser(Protocol):
    """How a study steps."""

    @property
    def start(self) -> tuple[float, ...]:
        """What each coordinate of each moment is before round 1."""

    def step(self, update: Exact, moments: Moments, round_number: int) -> tuple[Exact, Moments]:
        """The step that is added to the weights, and the moments after it.

        Args:
            update: [d], the mean update of a round (of `Descent` and `Nesterov`: the mean gradient).
            moments: One [d] for each of `start`.
            round_number: From 1.
        """


@dataclass(frozen=True)
class Average:
    """FedAvg with constant weights (McMahan et al. 2017, Algorithm 1, on updates): the step is the mean update."""

    start: tuple[float, ...] = ()

    def step(self, update: Exact, moments: Moments, _round_number: int) -> tuple[Exact, Moments]:
        """See `Optimiser`."""
        return update, moments


@dataclass(frozen=True)
class Momentum:
    """FedAvgM (Hsu, Qi, Brown 2019, 1909.06335): v <- beta v + update; the step is rate times v.

    Args:
        rate: Of the server; 1 makes it that paper's.
        beta: Momentum.
    """

    rate: float
    beta: float
    start: tuple[float, ...] = (0.0,)

    def step(self, update: Exact, moments: Moments, _round_number: int) -> tuple[Exact, Moments]:
        """See `Optimiser`."""
        velocity = self.beta * moments[0] + update
        return self.rate * velocity, (velocity,)


@dataclass(frozen=True)
class Adaptive:
    """FedAdam and FedYogi (Reddi et al. 2021, 2003.00295, Algorithm 2), without bias correction, as there.

    m <- beta1 m + (1 - beta1) update; with u the squared update, Adam has v <- beta2 v + (1 - beta2) u, Yogi
    v <- v - (1 - beta2) u sign(v - u), which moves v by no more than u at a time; the step is rate m / (sqrt(v) + tau).
    v starts at tau^2, the least that the paper allows.

    Args:
        rate: eta; about the furthest that a weight moves in a round.
        beta1: Decay of m.
        beta2: Decay of v.
        tau: Degree of adaptivity: updates far below it are multiplied by one number, eta / (2 tau) to eta / tau.
        yogi: Whether v moves as Yogi's does.
    """

    rate: float
    beta1: float
    beta2: float
    tau: float
    yogi: bool

    @property
    def start(self) -> tuple[float, ...]:
        """Those of m and v."""
        return 0.0, self.tau**2

    def step(self, update: Exact, moments: Moments, _round_number: int) -> tuple[Exact, Moments]:
        """See `Optimiser`."""
        squared = np.square(update)
        mean = self.beta1 * moments[0] + (1 - self.beta1) * update
        if self.yogi:
            spread = moments[1] - (1 - self.beta2) * squared * np.sign(moments[1] - squared)
        else:
            spread = self.beta2 * moments[1] + (1 - self.beta2) * squared
        return self.rate * mean / (np.sqrt(spread) + self.tau), (mean, spread)


@dataclass(frozen=True)
class Controlled:
    """The server's side of SCAFFOLD, option II (Karimireddy et al. 2020, 1910.06378, Algorithm 1), with every site.

    A site's variate changes by c_i+ - c_i = -c + (x - y_i) / (K eta), and y_i - x is its update. So where all sites are
    in the sum, c+ = c + mean(c_i+ - c_i) = -(mean update) / (K eta): c is part of the state, and nothing but updates is
    sent. The global step size is 1. The site's side is `parts.Corrected`.

    Args:
        path: K eta of a round.
    """

    path: Callable[[int], float]
    start: tuple[float, ...] = (0.0,)

    def step(self, update: Exact, _moments: Moments, round_number: int) -> tuple[Exact, Moments]:
        """See `Optimiser`."""
        return update, (-update / self.path(round_number),)


@dataclass(frozen=True)
class Nesterov:
    """The pooled step of distributed noise under FedAvg: SGD with Nesterov momentum on a gradient, as torch has it."""

    rate: float
    momentum: float
    start: tuple[float, ...] = (0.0,)

    def step(self, gradient: Exact, moments: Moments, _round_number: int) -> tuple[Exact, Moments]:
        """See `Optimiser`."""
        velocity = self.momentum * moments[0] + gradient
        return -self.rate * (gradient + self.momentum * velocity), (velocity,)


@dataclass(frozen=True)
class Descent:
    """The pooled step of distributed noise: one SGD step makes the update that another optimiser takes."""

    rate: float
    then: Optimiser = Average()

    @property
    def start(self) -> tuple[float, ...]:
        """That of the other."""
        return self.then.start

    def step(self, gradient: Exact, moments: Moments, round_number: int) -> tuple[Exact, Moments]:
        """See `Optimiser`."""
        return self.then.step(-self.rate * gradient, moments, round_number)


def optimiser_of(plan: StudyPlan) -> Optimiser:
    """How a plan's studies step."""
    made = _made(plan.strategy, plan)
    if not plan.distributed:
        return made
    rate, momentum = plan.training.learning_rate, plan.training.momentum
    return Nesterov(rate, momentum) if momentum else Descent(rate, made)


def _made(chosen: Strategy, plan: StudyPlan) -> Optimiser:
    rate, beta1 = chosen.server_rate or 0.0, chosen.server_momentum or 0.0
    match chosen.name:
        case "fedavgm":
            return Momentum(rate, beta1)
        case "fedadam" | "fedyogi":
            return Adaptive(rate, beta1, chosen.beta2 or 0.0, chosen.tau or 0.0, yogi=chosen.name == "fedyogi")
        case "scaffold":
            return Controlled(lambda round_number: path_length(plan, round_number))
        case _:
            return Average()
