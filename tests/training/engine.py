"""Small models, and subjects whose gradients are known, for tests of the private steps."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fedseg.training import dpsgd
from fedseg.training.dpsgd import SubjectOptimizer, private_steps

Subject = Callable[[], Tensor]
UNLIKELY = 1e-7


class Vector(nn.Module):
    """A model that is one vector of weights, all zero, and perhaps one that no loss depends on."""

    def __init__(self, size: int, spare: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))
        self.spare = nn.Parameter(torch.zeros(spare)) if spare else None


def tiny_net() -> nn.Module:
    return nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv3d(4, 2, 1))


def pull(model: Vector, direction: Tensor) -> Subject:
    """A subject whose gradient is `direction`, wherever the weights are."""
    return lambda: model.weight.dot(direction)


def optimizer(model: nn.Module, **changes: object) -> SubjectOptimizer:
    values = {
        "noise_multiplier": 1.0,
        "max_grad_norm": 1.0,
        "sampling_rate": 1.0,
        "public_subjects": 1,
        "entropy": os.urandom,
        **changes,
    }
    return SubjectOptimizer(torch.optim.SGD(model.parameters(), lr=0.0), **values)  # type: ignore[arg-type]


def clipped_sum(model: nn.Module, batch: Sequence[Subject], bound: float = 1.0) -> Tensor:
    """What one step adds up before the noise, as one float64 vector."""
    private, sums = optimizer(model, max_grad_norm=bound), []
    private.attach_step_hook(lambda taken: sums.append([p.summed_grad.flatten().clone() for p in taken.params]))
    dpsgd.take_step(private, batch)
    return torch.cat(sums[0])


def run(model: nn.Module, subjects: Sequence[Subject], **changes: object) -> Tensor:
    """Train with SGD at rate 1 and give the weights' change as one vector."""
    values = {
        "noise_multiplier": 1.0,
        "max_grad_norm": 1.0,
        "sampling_rate": 1.0,
        "public_subjects": 1,
        "steps": 1,
        "entropy": os.urandom,
        "on_step": lambda _: None,
        "should_stop": lambda: False,
        **changes,
    }
    before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
    private_steps(model, torch.optim.SGD(model.parameters(), lr=1.0), subjects, **values)  # type: ignore[arg-type]
    return torch.cat([p.detach().flatten() for p in model.parameters()]) - before
