from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedseg.federation.optimisers import (
    Adaptive,
    Average,
    Controlled,
    Descent,
    Moments,
    Momentum,
    Nesterov,
    optimiser_of,
)
from fedseg.federation.schedule import path_length
from fedseg.federation.strategy import Strategy
from fedseg.plan.study import StudyPlan, parse_plan

SIZE = 6
UPDATES = [np.random.default_rng(number).normal(0, 0.1, SIZE) for number in range(8)]
HEAD = "name: x\nsites: {a: {}, b: {}, c: {}}\nschedule: {rounds: 4}\n"
OFF = "privacy: {mode: off}\n"
POOLED = "privacy: {mode: distributed, epsilon: 8}\n"


def plan(strategy: str, training: str = "", privacy: str = OFF) -> StudyPlan:
    return parse_plan(f"{HEAD}{privacy}training: {{{training}}}\nstrategy: {{{strategy}}}\n", "p").content


def moved(strategy: Strategy, updates: list[NDArray[np.float64]]) -> NDArray[np.float32]:
    state = strategy.first(np.linspace(-1, 1, strategy.parameters).astype(np.float32))
    for number, update in enumerate(updates, 1):
        state = strategy.move(state, update, number)
    return strategy.weights(state)


def of(text: str, training: str = "", privacy: str = OFF) -> Strategy:
    return Strategy.for_plan(plan(text, training, privacy), SIZE, ((0, SIZE),))


def torchs(make: Any, updates: list[NDArray[np.float64]], **named: object) -> NDArray[np.float64]:
    """A torch optimiser, whose gradient is the update with its sign turned."""
    parameter = torch.nn.Parameter(torch.linspace(-1, 1, SIZE).double())
    optimiser = make([parameter], **named)
    for update in updates:
        parameter.grad = torch.from_numpy(-update)
        optimiser.step()
    found: NDArray[np.float64] = parameter.detach().numpy()
    return found


def test_fedavg_adds_the_mean() -> None:
    np.testing.assert_allclose(moved(of("name: fedavg"), UPDATES), np.linspace(-1, 1, SIZE) + sum(UPDATES), atol=1e-6)
    assert of("name: fedavg").size == of("name: fedprox").size == of("name: ditto").size == SIZE


@pytest.mark.parametrize(("rate", "beta"), [(1.0, 0.9), (0.3, 0.5), (0.5, 0.0)])
def test_fedavgm_is_torchs_sgd_with_momentum(rate: float, beta: float) -> None:
    found = moved(of(f"name: fedavgm, server_rate: {rate}, server_momentum: {beta}"), UPDATES)
    np.testing.assert_allclose(found, torchs(torch.optim.SGD, UPDATES, lr=rate, momentum=beta), atol=2e-6)
    assert of("name: fedavgm").size == 2 * SIZE


def test_fedadam_is_torchs_adam_but_for_its_start_and_its_bias_correction() -> None:
    """Without the start of v both are one recursion, from which torch divides the bias of each round."""
    beta1, beta2, rate, rounds = 0.9, 0.99, 0.01, 5
    adaptive = Adaptive(rate, beta1, beta2, 0.0, yogi=False)
    moments: Moments = (np.zeros(SIZE), np.zeros(SIZE))
    x = np.linspace(-1, 1, SIZE)
    for number, update in enumerate(UPDATES[:rounds], 1):
        step, moments = adaptive.step(update, moments, number)
        x = x + step * math.sqrt(1 - beta2**number) / (1 - beta1**number)
    expected = torchs(torch.optim.Adam, UPDATES[:rounds], lr=rate, betas=(beta1, beta2), eps=0.0)
    np.testing.assert_allclose(x, expected, atol=1e-12)


def by_the_book(
    updates: list[NDArray[np.float64]], name: str, eta: float, b1: float, b2: float, tau: float
) -> list[float]:
    """Reddi et al. 2021, Algorithm 2, one coordinate at a time."""
    ends = []
    for i, start in enumerate(np.linspace(-1, 1, SIZE).tolist()):
        x, m, v = start, 0.0, tau**2
        for update in updates:
            delta = float(update[i])
            m = b1 * m + (1 - b1) * delta
            if name == "fedadam":
                v = b2 * v + (1 - b2) * delta**2
            else:
                v = v - (1 - b2) * delta**2 * (1 if v > delta**2 else -1)
            x += eta * m / (math.sqrt(v) + tau)
        ends.append(x)
    return ends


@pytest.mark.parametrize("name", ["fedadam", "fedyogi"])
@given(scale=st.floats(1e-5, 10), numbers=st.tuples(*[st.floats(0.0, 0.999)] * 2), tau=st.floats(1e-3, 1))
def test_fedadam_and_fedyogi_follow_the_paper(
    name: str, scale: float, numbers: tuple[float, float], tau: float
) -> None:
    updates = [update * scale for update in UPDATES]
    strategy = Strategy(SIZE, ((0, SIZE),), Adaptive(0.02, *numbers, tau, yogi=name == "fedyogi"))
    expected = by_the_book(updates, name, 0.02, *numbers, tau)
    np.testing.assert_allclose(moved(strategy, updates), expected, rtol=1e-4, atol=1e-4)


def test_what_a_plan_leaves_out_is_usual() -> None:
    assert optimiser_of(plan("name: fedadam")) == Adaptive(0.01, 0.9, 0.99, 1e-3, yogi=False)
    assert optimiser_of(plan("name: fedyogi, tau: 0.1")) == Adaptive(0.01, 0.9, 0.99, 0.1, yogi=True)
    assert optimiser_of(plan("name: fedavgm")) == Momentum(1.0, 0.9)
    assert optimiser_of(plan("name: ditto")) == Average()
    assert [of(f"name: {name}").size for name in ("fedavg", "fedavgm", "fedyogi")] == [SIZE, 2 * SIZE, 3 * SIZE]


def test_a_pooled_gradient_is_a_step_down_for_every_optimiser() -> None:
    """DP-SGD's step of rate 0.5 makes the update; what takes it is the same as without privacy."""
    gradients = [-2 * update for update in UPDATES]
    sgd = "steps: 1, optimiser: sgd, learning_rate: 0.5, momentum: 0.0"
    for name in ("fedavg", "fedavgm", "fedadam", "fedyogi"):
        pooled = moved(of(f"name: {name}", sgd, POOLED), gradients)
        np.testing.assert_array_equal(pooled, moved(of(f"name: {name}"), UPDATES))
    assert optimiser_of(plan("name: fedavg", sgd, POOLED)) == Descent(0.5)
    assert optimiser_of(plan("name: fedavg", sgd.replace("0.0", "0.8"), POOLED)) == Nesterov(0.5, 0.8)


def test_the_shared_variate_is_the_mean_gradient_of_the_round() -> None:
    quorum = "aggregation: {quorum: 3}\n"
    sgd = "steps: 5, optimiser: sgd, learning_rate: 0.1, momentum: 0.0"
    study = plan("name: scaffold", sgd, OFF + quorum)
    strategy, gradient = Strategy.for_plan(study, SIZE, ((0, SIZE),)), np.arange(SIZE) - 2.5
    state = strategy.first(np.zeros(SIZE, dtype=np.float32))
    np.testing.assert_array_equal(strategy.moments(state)[0], np.zeros(SIZE))
    for number in (1, 2, 3):
        state = strategy.move(state, -path_length(study, number) * gradient, number)
        np.testing.assert_allclose(strategy.moments(state)[0], gradient, rtol=1e-6)
    assert path_length(study, 1) == pytest.approx(0.5) and path_length(study, 3) < 0.4
    assert isinstance(optimiser_of(study), Controlled)
    # A private site's steps keep their rate.
    private = plan("name: scaffold", sgd, "privacy: {mode: local, epsilon: 8}\n" + quorum)
    assert path_length(private, 3) == pytest.approx(0.5)


@pytest.mark.parametrize("name", ["fedavgm", "fedadam", "fedyogi"])
def test_no_length_of_update_makes_a_moment_that_is_no_number(name: str) -> None:
    for size in (0.0, 1e-30, 1e-8, 1.0, 1e3):
        state = of(f"name: {name}").first(np.zeros(SIZE, dtype=np.float32))
        for number, sign in enumerate((1, -1, 0, 1), 1):
            state = of(f"name: {name}").move(state, np.full(SIZE, sign * size), number)
            assert np.isfinite(state).all()
