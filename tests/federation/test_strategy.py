from __future__ import annotations

import numpy as np
import pytest
import torch

from fedseg.federation.optimisers import Average, Descent, Nesterov
from fedseg.federation.strategy import Strategy

ALL = ((0, 3),)
SOME = ((0, 2), (4, 7))


def f32(*values: float) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.array(values, dtype=np.float32)


def test_the_next_model_is_rounded_once() -> None:
    weights, mean = f32(1.0, 16777216.0, -0.5), np.array([2.0**-25 + 2.0**-24, 1.0, 0.25])
    after = Strategy(3, ALL).move(weights, mean, 1)
    assert after.dtype == np.float32
    # 1 + 1.5 * 2^-24 rounds up to the next float32 only where it was added in float64; 2^24 + 1 ties to even.
    np.testing.assert_array_equal(after, f32(1 + 2.0**-23, 16777216.0, -0.25))
    np.testing.assert_array_equal(weights, f32(1.0, 16777216.0, -0.5))


def test_only_what_trains_moves() -> None:
    strategy = Strategy(8, SOME)
    state = strategy.first(np.arange(8, dtype=np.float32))
    moved = strategy.move(state, f32(10, 20, 30, 40, 50), 1)
    np.testing.assert_array_equal(strategy.weights(moved), f32(10, 21, 2, 3, 34, 45, 56, 7))
    np.testing.assert_array_equal(strategy.released(moved), strategy.weights(moved))
    assert (strategy.size, strategy.dimension) == (8, 5)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_pooled_step_is_torchs_sgd_with_nesterov_momentum(momentum: float) -> None:
    rng = np.random.default_rng(0)
    strategy = Strategy(8, SOME, Nesterov(0.1, momentum) if momentum else Descent(0.1))
    start = rng.standard_normal(8).astype(np.float32)
    chosen = np.r_[0:2, 4:7]
    parameter = torch.nn.Parameter(torch.from_numpy(start[chosen]).double())
    optimiser = torch.optim.SGD([parameter], 0.1, momentum=momentum, nesterov=momentum > 0)
    state = strategy.first(start)
    for number in range(1, 6):
        gradient = rng.standard_normal(5)
        parameter.grad = torch.from_numpy(gradient.copy())
        optimiser.step()
        state = strategy.move(state, gradient, number)
    np.testing.assert_allclose(strategy.weights(state)[chosen], parameter.detach().numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(strategy.weights(state)[[2, 3, 7]], start[[2, 3, 7]])
    assert strategy.size == 8 + 5 * (momentum > 0)


def test_the_average_forgets_the_first_model_and_then_keeps_its_decay() -> None:
    strategy = Strategy(4, ((1, 3),), Average(), 0.5)
    state = strategy.first(f32(0, 8, 8, 5))
    average = 8.0
    for number, value in enumerate([4.0, -2.0, 1.0, 3.0], 1):
        state = strategy.move(state, f32(value, value) - strategy.weights(state)[1:3], number)
        decay = min(0.5, (1 + number) / (10 + number))
        average = decay * average + (1 - decay) * value
        np.testing.assert_allclose(strategy.released(state), f32(0, average, average, 5), rtol=1e-6)
        np.testing.assert_array_equal(strategy.weights(state), f32(0, value, value, 5))
    assert decay == pytest.approx(5 / 14)
    assert Strategy(4, ((1, 3),), average=0.5).move(state, f32(0, 0), 100).size == 6


def test_momentum_and_average_lie_side_by_side() -> None:
    both, alone = Strategy(3, ALL, Nesterov(0.5, 0.9), 0.8), Strategy(3, ALL, Nesterov(0.5, 0.9))
    one, two = both.first(f32(1, 2, 3)), alone.first(f32(1, 2, 3))
    for number in range(1, 4):
        gradient = f32(number, -number, 1)
        one, two = both.move(one, gradient, number), alone.move(two, gradient, number)
    np.testing.assert_array_equal(one[:6], two)
    assert (both.size, alone.size) == (9, 6)
    assert both.first(f32(1, 2, 3)).dtype == one.dtype == both.released(one).dtype == np.float32
    assert not np.array_equal(both.released(one), both.weights(one))


def test_what_is_trained_together_and_what_is_apart_make_the_whole() -> None:
    strategy, weights = Strategy(8, SOME), np.arange(8, dtype=np.float32)
    np.testing.assert_array_equal(strategy.chosen(weights), f32(0, 1, 4, 5, 6))
    np.testing.assert_array_equal(weights[strategy.apart], f32(2, 3, 7))
    changed = strategy.put(weights, f32(-1, -2, -3, -4, -5))
    np.testing.assert_array_equal(changed, f32(-1, -2, 2, 3, -3, -4, -5, 7))
    np.testing.assert_array_equal(weights, np.arange(8, dtype=np.float32))
