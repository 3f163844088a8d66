"""One site's part of a pooled step: integers of exact sensitivity, and a share of Skellam noise."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy import stats
from torch import nn

from fedseg.errors import Interrupted, PlanError
from fedseg.privacy.distributed import NoiseShare
from fedseg.training import dpsgd
from fedseg.training.dpsgd import private_sum
from fedseg.training.network import build_network, choose_layers, trained_arrays
from tests.training.engine import UNLIKELY, Subject, Vector, clipped_sum, pull, tiny_net

Ints = NDArray[np.int64]
SCALE = 2.0**20


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def share_of(model: nn.Module, *, sigma: float = 1.3, bound: float = 0.3, honest: int = 2) -> NoiseShare:
    return NoiseShare(sigma, bound, honest, size(model), SCALE)


def pooled(model: nn.Module, subjects: Sequence[Subject], share: NoiseShare, **changes: object) -> Ints:
    values = {"sampling_rate": 1.0, "entropy": os.urandom, "should_stop": lambda: False, **changes}
    sums = private_sum(model, subjects, share=share, **values)  # type: ignore[arg-type]
    return np.concatenate([each.ravel() for each in sums.values()])


def replayed(text: str) -> Callable[[int], bytes]:
    return lambda count: hashlib.shake_256(text.encode()).digest(count)


def integers(model: nn.Module, subjects: Sequence[Subject], share: NoiseShare) -> Ints:
    """The sum without its noise: that of the same key is taken off."""
    return pooled(model, subjects, share, entropy=replayed("key")) - pooled(model, [], share, entropy=replayed("key"))


def zero(model: nn.Module) -> Subject:
    return lambda: torch.cat([p.flatten() for p in model.parameters()]).sum() * 0.0


def added(gradient: NDArray[np.float32], bound: float, scale: float) -> list[int]:
    """What one subject adds, as Python's integers."""
    parameter = nn.Parameter(torch.zeros(gradient.size))
    parameter.grad = torch.from_numpy(gradient.copy())
    total = {"weight": torch.zeros(gradient.size, dtype=torch.int64)}
    dpsgd._add_integers({"weight": parameter}, total, NoiseShare(1.0, bound, 1, gradient.size, scale))
    return [int(value) for value in total["weight"].tolist()]


FINITE = st.floats(allow_nan=False, allow_infinity=False, width=32)
GRADIENTS = hnp.arrays(np.float32, st.integers(1, 40), elements=FINITE | st.floats(-1, 1, width=32))


@given(GRADIENTS, st.floats(1e-3, 1e3), st.integers(0, 22))
@settings(max_examples=300)
def test_one_subject_moves_the_sum_by_at_most_the_sensitivity(
    gradient: NDArray[np.float32], bound: float, power: int
) -> None:
    scale = 2.0**power
    z = added(gradient, bound, scale)
    assert sum(value * value for value in z) <= (Fraction(bound) * Fraction(scale)) ** 2
    exact = [Fraction(float(value)) * Fraction(scale) for value in gradient]
    if sum(value * value for value in exact) <= (Fraction(bound) * Fraction(scale) * Fraction(999, 1000)) ** 2:
        assert z == [math.trunc(value) for value in exact]
    assert all(value * ours >= 0 for value, ours in zip(exact, z, strict=True))


@pytest.mark.parametrize("factor", [1.0, 1e6, 1e30])
@pytest.mark.parametrize("count", [1, 4, 300_000])
def test_the_bound_holds_at_its_edge_and_little_is_lost(count: int, factor: float) -> None:
    gradient = np.full(count, factor / math.sqrt(count), np.float32)
    squares = sum(value * value for value in added(gradient, 1.0, 2.0**32))
    assert 2.0**64 * (1 - 3e-6) < squares <= 2**64


def test_equal_values_of_a_random_sign_keep_the_bound() -> None:
    gradient = np.random.default_rng().standard_normal(200_000).astype(np.float32) * np.float32(1e6)
    squares = sum(value * value for value in added(gradient, 0.7, 2.0**30))
    assert squares <= (Fraction(0.7) * 2**30) ** 2


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_counts_as_zero(poison: float) -> None:
    model, good, bad = Vector(10), torch.full((10,), 0.01), torch.ones(10)
    bad[3] = poison
    share = share_of(model)
    for batch in ([pull(model, bad), pull(model, good)], [pull(model, good), pull(model, bad)]):
        assert integers(model, batch, share).tolist() == [math.trunc(float(good[0]) * SCALE)] * 10


@pytest.mark.parametrize("patches", [1, 50])
def test_a_subject_moves_the_sum_by_at_most_the_sensitivity_however_many_patches(patches: int) -> None:
    torch.manual_seed(0)
    model, images = tiny_net(), torch.randn(patches, 1, 4, 4, 4) * 100
    others: list[Subject] = [lambda: model(torch.ones(2, 1, 4, 4, 4)).square().mean()] * 2
    share = share_of(model)
    with_it = integers(model, [*others, lambda: model(images).square().mean()], share)
    moved = sum(int(value) ** 2 for value in with_it - integers(model, others, share))
    assert (0.9 * share.sensitivity) ** 2 < moved <= Fraction(share.sensitivity) ** 2


def test_truncation_is_toward_zero_and_subjects_add_up() -> None:
    model, share = Vector(4), share_of(Vector(4))
    values = torch.tensor([1.7, -1.7, 0.9, -0.9]) / SCALE
    assert integers(model, [pull(model, values)] * 3, share).tolist() == [3, -3, 0, 0]


def test_the_sum_is_that_of_the_local_steps_to_within_one_unit_a_subject() -> None:
    torch.manual_seed(0)
    model, images = tiny_net(), torch.randn(5, 2, 1, 4, 4, 4) * 3
    subjects: list[Subject] = [partial(lambda patches: model(patches).square().mean(), each) for each in images]
    parameters = dict(model.named_parameters())
    expected = np.split(clipped_sum(model, subjects, 0.3).numpy(), np.cumsum([p.numel() for p in parameters.values()]))
    parts = dict(zip(parameters, expected, strict=False))
    ours = integers(model, subjects, share_of(model)) / SCALE
    assert np.abs(ours - np.concatenate([parts[name] for name in sorted(parts)])).max() < 5 / SCALE


@pytest.mark.parametrize("subjects", [0, 3])
def test_one_share_has_its_part_of_the_variance_in_every_parameter_and_step(subjects: int) -> None:
    model = tiny_net()
    share = share_of(model, sigma=1.7, honest=3)
    steps = np.array([pooled(model, [zero(model)] * subjects, share) for _ in range(60)])
    table = steps / (1.7 * 0.3 * SCALE / math.sqrt(3))
    assert UNLIKELY < stats.chi2(table.size).cdf((table**2).sum()) < 1 - UNLIKELY
    per_parameter = stats.chi2(len(table)).cdf((table**2).sum(axis=0))
    assert UNLIKELY / table.shape[1] < per_parameter.min() and per_parameter.max() < 1 - UNLIKELY / table.shape[1]
    assert abs(sum((a * b).sum() for a, b in pairwise(table))) / math.sqrt(table.size) < 5.5


@pytest.mark.parametrize(("sites", "honest"), [(3, 2), (5, 3), (8, 6)])
def test_the_shares_of_all_sites_are_one_noise_of_the_variance_promised(sites: int, honest: int) -> None:
    model = Vector(20_000)
    share = share_of(model, sigma=0.9, honest=honest)
    total = np.sum([pooled(model, [], share) for _ in range(sites)], axis=0) / (0.9 * share.sensitivity)
    assert UNLIKELY < stats.chi2(total.size).cdf((total**2).sum() * honest / sites) < 1 - UNLIKELY
    assert stats.kstest(total * math.sqrt(honest / sites), "norm").pvalue > UNLIKELY


def test_neighbouring_data_sets_get_the_same_noise() -> None:
    model = Vector(50)
    sums = [pooled(model, [zero(model)] * count, share_of(model), entropy=replayed("one")) for count in (0, 40, 41)]
    assert sums[0].any() and np.array_equal(sums[0], sums[1]) and np.array_equal(sums[1], sums[2])


def test_seeds_leave_the_noise_random() -> None:
    results = []
    for _ in range(2):
        torch.manual_seed(7)
        np.random.seed(7)
        results.append(pooled(Vector(50), [], share_of(Vector(50))))
    assert not (results[0] == results[1]).any()


def test_subjects_are_drawn_at_the_rate() -> None:
    model, drawn = Vector(3), []
    subjects: list[Subject] = [lambda: drawn.append(1) or model.weight.sum()] * 400  # type: ignore[func-returns-value]
    pooled(model, subjects, share_of(model), sampling_rate=0.25)
    assert abs(len(drawn) - 100) < 5.5 * math.sqrt(400 * 0.25 * 0.75)


def test_only_what_trains_is_summed_under_its_name_and_no_gradient_is_left() -> None:
    model = build_network("small", 3, 0)
    choose_layers(model, "norms")
    image = torch.randn(1, 1, 16, 16, 16)
    sums = private_sum(
        model,
        [lambda: model(image).square().mean()],
        share=share_of(model),
        sampling_rate=1.0,
        entropy=os.urandom,
        should_stop=lambda: False,
    )
    expected = trained_arrays(model)
    assert {name: each.shape for name, each in sums.items()} == {name: each.shape for name, each in expected.items()}
    assert list(sums) == list(expected) and all(each.dtype == np.int64 for each in sums.values())
    assert all(p.grad is None for p in model.parameters())


def test_a_loss_that_reaches_nothing_adds_nothing() -> None:
    model = Vector(4, spare=3)
    half = torch.full((4,), 0.125)
    total = integers(model, [lambda: torch.tensor(1.0), pull(model, half)], share_of(model))
    assert total.tolist() == [0] * 3 + [2**17] * 4


def test_a_stop_is_heeded_before_each_subject() -> None:
    model, asked = Vector(3), []
    subjects: list[Subject] = [lambda: asked.append(1) or model.weight.sum()] * 5  # type: ignore[func-returns-value]
    with pytest.raises(Interrupted, match="training was stopped between two steps"):
        pooled(model, subjects, share_of(model), should_stop=lambda: len(asked) == 2)
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("share", "message"),
    [
        (NoiseShare(1.0, 1.0, 1, 2, SCALE), "noise for 2 parameters, where the network trains 3"),
        (NoiseShare(1.0, 1.5, 1, 3, 2.0**32), r"integers of norm 6.44245e\+09 don't fit the ring of 2\^32"),
        (NoiseShare(1.0, 1.0, 1, 3, 1.0), r"Skellam noise of rate 0.5 is outside what is sampled accurately"),
    ],
)
def test_a_share_that_does_not_fit_is_refused(share: NoiseShare, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        pooled(Vector(3), [], share)


def test_layers_that_mix_subjects_are_refused_by_name() -> None:
    model = nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2))
    with pytest.raises(PlanError, match=r"layer '1' \(BatchNorm3d\) keeps statistics across subjects"):
        pooled(model, [], share_of(model))
