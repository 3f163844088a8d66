from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from fedseg.errors import Interrupted, PlanError
from fedseg.training import dpsgd
from fedseg.training.dpsgd import poisson_sample, private_steps, validate
from fedseg.training.network import build_network
from tests.training.engine import UNLIKELY, Subject, Vector, clipped_sum, optimizer, pull, run, tiny_net


def zero_entropy(count: int) -> bytes:
    """Draws everybody, and gives every step the same noise."""
    return bytes(count)


@pytest.mark.parametrize("subjects", [0, 3])
def test_noise_has_the_variance_that_is_charged_in_every_parameter_and_step(subjects: int) -> None:
    model, noise = tiny_net(), []
    batch: list[Subject] = [lambda: torch.cat([p.flatten() for p in model.parameters()]).sum() * 0.0] * subjects
    for _ in range(60):
        change = run(model, batch, noise_multiplier=1.7, max_grad_norm=0.3, sampling_rate=0.5, public_subjects=40)
        noise.append(change.double().numpy() * 20 / (1.7 * 0.3))
    table = np.array(noise)
    assert UNLIKELY < stats.chi2(table.size).cdf((table**2).sum()) < 1 - UNLIKELY
    per_parameter = stats.chi2(len(table)).cdf((table**2).sum(axis=0))
    assert per_parameter.min() > UNLIKELY / table.shape[1]
    assert per_parameter.max() < 1 - UNLIKELY / table.shape[1]
    products = np.array([a * b for a, b in pairwise(table)])
    assert abs(products.sum()) / math.sqrt(products.size) < 5.5


@pytest.mark.parametrize("scale", [1e6, 1e30])
@pytest.mark.parametrize("bound", [0.01, 1.0, 50.0])
def test_a_huge_gradient_is_clipped_below_the_bound(scale: float, bound: float) -> None:
    model = Vector(5000)
    total = clipped_sum(model, [pull(model, torch.randn(5000) * scale)], bound)
    assert bound * (1 - 2e-6) < float(total.norm()) < bound


def test_a_small_gradient_passes_untouched() -> None:
    model, small = Vector(5000), torch.randn(5000) * 1e-3
    assert torch.equal(clipped_sum(model, [pull(model, small)]), small.double())


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_counts_as_zero(poison: float) -> None:
    model, good, bad = Vector(10), torch.full((10,), 0.1), torch.ones(10)
    bad[3] = poison
    for batch in ([pull(model, bad), pull(model, good)], [pull(model, good), pull(model, bad)]):
        assert torch.equal(clipped_sum(model, batch), good.double())
    assert bool(run(model, [pull(model, bad)]).isfinite().all())


@pytest.mark.parametrize("patches", [1, 50])
def test_a_subject_moves_the_sum_by_at_most_the_bound_however_many_patches(patches: int) -> None:
    torch.manual_seed(0)
    model, images = tiny_net(), torch.randn(patches, 1, 4, 4, 4) * 100
    others: list[Subject] = [lambda: model(torch.ones(2, 1, 4, 4, 4)).square().mean()] * 2
    with_it = clipped_sum(model, [*others, lambda: model(images).square().mean()], 0.5)
    assert 0.4 < float((with_it - clipped_sum(model, others, 0.5)).norm()) <= 0.5


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-4)])
@pytest.mark.parametrize("network", [tiny_net, partial(build_network, "small", 3, 0)])
def test_gradients_equal_opacus_hooks(network: Callable[[], nn.Module], dtype: torch.dtype, tolerance: float) -> None:
    from opacus.grad_sample import GradSampleModule

    torch.manual_seed(0)
    model, copy = network().to(dtype), network().to(dtype)
    contrast = torch.tensor([0.3, 1.0, 3.0], dtype=dtype).view(3, 1, 1, 1, 1, 1)
    images = (torch.randn(3, 2, 1, 16, 16, 16, dtype=dtype) * contrast + contrast).requires_grad_()

    def loss(patches: Tensor) -> Tensor:
        value: Tensor = model(patches).square().mean()
        return value

    copy.load_state_dict(model.state_dict())
    hooked = GradSampleModule(copy, loss_reduction="sum")
    hooked(images.flatten(0, 1)).square().flatten(1).mean(1).sum().backward()
    per_patch = torch.cat([p.grad_sample.flatten(1) for p in hooked.parameters()], dim=1).double()
    per_subject = per_patch.reshape(3, 2, -1).mean(1)
    norms = per_subject.norm(dim=1)
    bound = float(norms.median()) * 1.001
    factors = (bound * (1 - dpsgd.CLIP_MARGIN) / norms).clamp(max=1.0)
    assert 0 < int((factors < 1).sum()) < 3
    ours = clipped_sum(model, [partial(loss, image) for image in images], bound)
    assert float((ours - (factors[:, None] * per_subject).sum(0)).norm()) < tolerance * bound


def test_steps_do_not_leak_into_one_another() -> None:
    model, sums = Vector(4), []
    private = optimizer(model)
    private.attach_step_hook(lambda taken: sums.append(taken.params[0].summed_grad.clone()))
    subject = pull(model, torch.full((4,), 0.25))
    for batch in ([subject, subject], [], [subject]):
        dpsgd.take_step(private, batch)
    assert [float(total[0]) for total in sums] == [0.5, 0.0, 0.25]


def test_an_untouched_parameter_and_a_loss_without_a_graph_count_as_zero() -> None:
    model = Vector(4, spare=3)
    half = torch.full((4,), 0.5)
    total = clipped_sum(model, [pull(model, half * 0.5), lambda: torch.tensor(1.0), pull(model, half * 0.5)])
    assert total.tolist() == [0.5] * 4 + [0.0] * 3
    change = run(model, [pull(model, half)])
    assert int((change != 0).sum()) == 7


def test_the_same_divisor_and_noise_for_neighbouring_data_sets() -> None:
    changes = []
    for count in (0, 40, 41):
        model = Vector(50)
        subjects = [pull(model, torch.zeros(50))] * count
        changes.append(run(model, subjects, public_subjects=40, sampling_rate=0.1, entropy=zero_entropy))
    assert bool(changes[0].any())
    assert torch.equal(changes[0], changes[1])
    assert torch.equal(changes[1], changes[2])


def test_seeds_leave_the_noise_random() -> None:
    results = []
    for _ in range(2):
        torch.manual_seed(7)
        np.random.seed(7)
        results.append(run(Vector(50), []))
    assert not bool((results[0] == results[1]).any())


def test_what_leaves_lies_on_the_grid() -> None:
    for sigma in (0.3, 1.0, 77.0):
        change = run(Vector(1000), [], noise_multiplier=sigma).double()
        steps = change / 2.0 ** (math.floor(math.log2(sigma)) - dpsgd.GRID_BITS)
        assert torch.equal(steps, steps.round())
        assert len(set(steps.tolist())) > 900


def test_each_subject_is_drawn_at_the_rate_and_on_its_own() -> None:
    trials, rate = 20_000, 0.3
    drawn = np.zeros((trials, 4))
    for trial in range(trials):
        drawn[trial, poisson_sample(4, rate, os.urandom)] = 1
    deviation = math.sqrt(rate * (1 - rate) / trials)
    assert np.abs(drawn.mean(axis=0) - rate).max() < 5.5 * deviation
    correlation = np.corrcoef(drawn, rowvar=False)
    assert np.abs(correlation - np.eye(4)).max() < 5.5 / math.sqrt(trials)


def test_a_coin_is_compared_exactly() -> None:
    def coin(value: int) -> Callable[[int], bytes]:
        return lambda _: value.to_bytes(8, "big")

    assert poisson_sample(1, 0.25, coin(2**62 - 1)) == [0]
    assert poisson_sample(1, 0.25, coin(2**62)) == []
    assert poisson_sample(1, 1.0, coin(2**64 - 1)) == [0]
    assert poisson_sample(0, 0.5, os.urandom) == []
    with pytest.raises(PlanError, match="sampling rate must lie above 0 and be at most 1, not 0"):
        poisson_sample(3, 0, os.urandom)


def test_a_round_has_a_constant_number_of_steps_and_works_with_adam() -> None:
    model = tiny_net()
    done: list[int] = []
    images = torch.randn(2, 1, 4, 4, 4)
    private_steps(
        model,
        torch.optim.AdamW(model.parameters(), 1e-3),
        [lambda: model(images).square().mean()] * 3,
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        sampling_rate=0.3,
        public_subjects=3,
        steps=6,
        entropy=os.urandom,
        on_step=done.append,
        should_stop=lambda: False,
    )
    assert done == [1, 2, 3, 4, 5, 6]
    assert all(p.dtype == torch.float32 and bool(p.isfinite().all()) for p in model.parameters())


def test_private_training_learns_when_the_noise_is_small() -> None:
    model, target = Vector(3), torch.tensor([1.0, -2.0, 3.0])
    subjects: list[Subject] = [lambda: (model.weight - target).square().sum() / 2] * 100
    run(model, subjects, noise_multiplier=0.1, max_grad_norm=10.0, public_subjects=100, steps=3)
    torch.testing.assert_close(model.weight.detach(), target, rtol=0, atol=0.1)


def test_a_stop_is_heeded_between_steps() -> None:
    done: list[int] = []
    with pytest.raises(Interrupted, match="training was stopped between two steps"):
        run(Vector(3), [], steps=5, on_step=done.append, should_stop=lambda: len(done) == 2)
    assert done == [1, 2]


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.BatchNorm3d(2), r"layer '1\.bad' \(BatchNorm3d\) keeps statistics across subjects"),
        (nn.BatchNorm3d(2, affine=False, track_running_stats=False), r"layer '1\.bad' \(BatchNorm3d\) keeps"),
        (nn.InstanceNorm3d(2, track_running_stats=True), r"layer '1\.bad' \(InstanceNorm3d\) keeps .*use GroupNorm"),
    ],
)
def test_layers_that_mix_subjects_are_refused_by_name(layer: nn.Module, message: str) -> None:
    model = nn.Sequential(nn.Conv3d(1, 2, 1), nn.ModuleDict({"bad": layer}))
    with pytest.raises(PlanError, match=message):
        validate(model)


def test_validation_passes_what_is_safe_and_says_what_is_not() -> None:
    validate(nn.Sequential(nn.Conv3d(1, 2, 1), nn.InstanceNorm3d(2), nn.GroupNorm(1, 2)))
    with pytest.raises(PlanError, match="Model needs to be in training mode"):
        validate(tiny_net().eval())
    with pytest.raises(PlanError, match=r"parameter '0\.weight' is torch\.float16; .* in float32"):
        validate(tiny_net().half())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noise_multiplier": 0.0}, "noise_multiplier must be a finite number above 0, not 0.0"),
        ({"max_grad_norm": math.nan}, "max_grad_norm must be a finite number above 0, not nan"),
        ({"sampling_rate": 1.5}, "no sampling with rate 1.5 of 1 public subjects"),
        ({"public_subjects": 0}, "no sampling with rate 1.0 of 0 public subjects"),
    ],
)
def test_constants_out_of_range(changes: dict[str, object], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        run(Vector(3), [], **changes)
