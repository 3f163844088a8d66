"""What a strategy adds to the gradient of a site's steps: a pull towards a model, or a correction of its drift.

Both are added when the optimiser is about to step: after the clip of the gradient, and in a private study after the
noise. They are made of weights that were published or noised before, of no subject's data, so they change neither the
sensitivity of a step nor its noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from fedseg.plan.study import StudyPlan
from fedseg.training.network import Array

Named = Mapping[str, Array]


@dataclass(frozen=True)
class Correction:
    """Of one round at one site.

    Args:
        added: What is added to every gradient, by parameter name (SCAFFOLD: c - c_i).
        towards: The model that weights are pulled to, by parameter name.
        pull: The gradient of (pull / 2) |w - towards|^2 is added (Li et al. 2020, FedProx, 1812.06127, equation 2;
            Li et al. 2021, Ditto, 2012.04221, Algorithm 1).
    """

    added: Named | None = None
    towards: Named | None = None
    pull: float = 0.0

    @classmethod
    def of(cls, plan: StudyPlan, start: Named, added: Named | None, towards: Named | None) -> Correction:
        """What a plan's strategy adds in a round that starts from `start`; FedProx pulls to that."""
        if plan.strategy.name == "fedprox":
            towards = start
        return cls(added, towards, plan.strategy.proximal or 0.0)

    def attach(self, optimiser: torch.optim.Optimizer, model: nn.Module) -> torch.optim.Optimizer:
        """The same optimiser, whose every step takes the additions to its gradient from here on."""
        terms = self._terms(model)
        if terms:
            optimiser.register_step_pre_hook(lambda *_: _add(terms, self.pull))
        return optimiser

    def _terms(self, model: nn.Module) -> list[_Term]:
        if self.added is None and self.towards is None:
            return []
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        return [_Term(p, _like(p, self.added, name), _like(p, self.towards, name)) for name, p in trained]


@dataclass(frozen=True)
class _Term:
    parameter: nn.Parameter
    added: torch.Tensor | None
    towards: torch.Tensor | None


def _like(parameter: nn.Parameter, values: Mapping[str, Array] | None, name: str) -> torch.Tensor | None:
    return None if values is None else torch.from_numpy(values[name].copy()).to(parameter)


def _add(terms: list[_Term], pull: float) -> None:
    with torch.no_grad():
        for term in terms:
            p = term.parameter
            gradient = torch.zeros_like(p) if p.grad is None else p.grad
            if term.added is not None:
                gradient.add_(term.added)
            if term.towards is not None:
                gradient.add_(p - term.towards, alpha=pull)
            p.grad = gradient
