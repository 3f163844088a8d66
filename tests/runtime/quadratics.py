"""Sites whose loss is a quadratic of their own, trained by plain SGD; and the papers' loops over them."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedseg.federation.closing import close_round
from fedseg.federation.schedule import path_length
from fedseg.federation.strategy import Strategy
from fedseg.federation.vector import Weights, model_hash
from fedseg.plan.manifest import Manifest
from fedseg.plan.study import StudyPlan, parse_plan
from fedseg.runtime.local_round import LocalRounds, as_sent
from fedseg.runtime.simulation import SiteMemory
from fedseg.secagg.encoding import rounding_seed
from tests.runtime import toy

SITES = ("a", "b", "c")
Exact = NDArray[np.float64]
Named = Mapping[str, NDArray[np.float32]]
QUIET: dict[str, Any] = {"entropy": secrets.token_bytes, "on_step": lambda *_: None, "should_stop": lambda: False}
TOGETHER = {"fedbn": ((10, toy.SIZE),)}
"""Under FedBN the toy's bias plays the normalisation."""


def plan(strategy: str, *, rounds: int = 2, mode: str = "secure", rate: float = 0.1, more: str = "") -> StudyPlan:
    """A study of three sites that all take part in every round, of five SGD steps."""
    return parse_plan(
        f"name: quadratics\nseed: 3\nprivacy: {{mode: 'off'}}\naggregation: {{mode: {mode}, quorum: 3{more}}}\n"
        f"training: {{steps: 5, optimiser: sgd, momentum: 0.0, learning_rate: {rate}}}\nstrategy: {{{strategy}}}\n"
        f"schedule: {{rounds: {rounds}, deadline_s: 20, absent_after_s: 5}}\nsites: {{a: {{}}, b: {{}}, c: {{}}}}\n",
        "quadratics",
    ).content


def manifest(strategy: str, *, rounds: int = 2, mode: str = "secure", rate: float = 0.1, more: str = "") -> Manifest:
    made = plan(strategy, rounds=rounds, mode=mode, rate=rate, more=more)
    document = toy.plan(rounds=rounds)
    trained = TOGETHER.get(made.strategy.name, ((0, toy.SIZE),))
    return toy.manifest(type(document)(made, "quadratics", {}), trained)


class Quadratic:
    """Half of sum(curvature (y - target)^2): every site has others."""

    def __init__(self, site: str) -> None:
        rng = np.random.default_rng(ord(site))
        self.curvature, self.target = rng.uniform(0.2, 3.0, toy.SIZE), rng.normal(0, 1, toy.SIZE)

    def gradient(self, y: Exact) -> Exact:
        return self.curvature * (y - self.target)


LOSSES = {site: Quadratic(site) for site in SITES}
OPTIMUM = sum(each.curvature * each.target for each in LOSSES.values()) / sum(
    each.curvature for each in LOSSES.values()
)


class QuadraticTrainer(toy.PullTrainer):
    """The trainer of a site; it knows no strategy but the pull of FedProx and Ditto."""

    def __init__(self, plan: StudyPlan, site: str, before: Callable[[int], None] = lambda _: None) -> None:
        super().__init__(0.0, before=before)
        self._plan, self._loss = plan, LOSSES[site]

    def update(
        self,
        weights: Named,
        round_number: int,
        *,
        entropy: Callable[[int], bytes],
        on_step: Callable[[int, int], None],
        should_stop: Callable[[], bool],
        correction: Named | None = None,
        towards: Named | None = None,
    ) -> dict[str, NDArray[np.float32]]:
        self.before(round_number)
        self.trained.append(round_number)
        steps = self._plan.training.steps
        start, added = flat(weights), 0.0 if correction is None else flat(correction)
        anchor = start if self._plan.strategy.name == "fedprox" else None if towards is None else flat(towards)
        y, rate = start, path_length(self._plan, round_number) / steps
        for done in range(1, steps + 1):
            pulled = 0.0 if anchor is None else (self._plan.strategy.proximal or 0.0) * (y - anchor)
            y = y - rate * (self._loss.gradient(y) + added + pulled)
            on_step(done, steps)
        return toy.LAYOUT.unflatten((y - start).astype(np.float32))


def trainers(study: Manifest) -> dict[str, toy.PullTrainer]:
    return {site: QuadraticTrainer(study.plan, site) for site in SITES}


@dataclass(frozen=True)
class Ended:
    """How a study ends for everybody: the last state, and each site's own model where it has one."""

    strategy: Strategy
    state: Weights
    memories: Mapping[str, SiteMemory]
    personal: Mapping[str, Weights | None]

    @property
    def released(self) -> Weights:
        return self.strategy.released(self.state)


def by_hand(study: Manifest) -> Ended:
    """All rounds without a protocol: every site trains, the code adds up."""
    strategy, code, memories = Strategy.of(study), toy.code(study), {site: SiteMemory() for site in SITES}
    rounds = {
        site: LocalRounds(study, trainer, toy.LAYOUT, memories[site]) for site, trainer in trainers(study).items()
    }
    state = strategy.first(toy.INITIAL)
    for number in range(1, study.plan.schedule.rounds + 1):
        total = np.zeros(code.length, dtype=np.uint32)
        for site in SITES:
            trained = rounds[site].train(rounds[site].turn(number, number - 1, state), **QUIET)
            encoded = code.encode(trained.update, 1, rounding_seed(study.plan.seed, number, site))
            rounds[site].keep(trained, as_sent(code, encoded, 1))
            total += encoded.vector
        mean = close_round(study, code, total, SITES, base_model=model_hash(state), best=None).mean
        state = strategy.move(state, mean.update, number)
    last = study.plan.schedule.rounds
    personal = {site: rounds[site].personal(strategy.released(state), last) for site in SITES}
    return Ended(strategy, state, memories, personal)


def flat(arrays: Named) -> Exact:
    return toy.LAYOUT.flatten(arrays).astype(np.float64)


def scaffold(study: StudyPlan) -> tuple[Exact, Exact]:
    """Karimireddy et al. 2020, Algorithm 1, option II, all sites sampled and global step size 1: x and c."""
    x, c = np.zeros(toy.SIZE), np.zeros(toy.SIZE)
    variates = {site: np.zeros(toy.SIZE) for site in SITES}
    steps = study.training.steps
    for number in range(1, study.schedule.rounds + 1):
        eta = path_length(study, number) / steps
        delta_x, delta_c = [], []
        for site in SITES:
            y = x
            for _ in range(steps):
                y = y - eta * (LOSSES[site].gradient(y) - variates[site] + c)
            following = variates[site] - c + (x - y) / (steps * eta)
            delta_x.append(y - x)
            delta_c.append(following - variates[site])
            variates[site] = following
        x, c = x + np.mean(delta_x, axis=0), c + np.mean(delta_c, axis=0)
    return x, c


def ditto(study: StudyPlan, site: str) -> tuple[Exact, Exact]:
    """Li et al. 2021, Algorithm 1, all devices sampled: the global model and one site's own."""
    w = v = np.zeros(toy.SIZE)
    steps, pull = study.training.steps, study.strategy.proximal or 0.0
    for number in range(1, study.schedule.rounds + 1):
        eta, updates = path_length(study, number) / steps, []
        for each in SITES:
            y = w
            for _ in range(steps):
                y = y - eta * LOSSES[each].gradient(y)
            updates.append(y - w)
        for _ in range(steps):
            v = v - eta * (LOSSES[site].gradient(v) + pull * (v - w))
        w = w + np.mean(updates, axis=0)
    return w, v
