"""Subject-level DP-SGD (Abadi et al. 2016): Opacus' step, fed one subject at a time; and one site's pooled step.

The sensitivity argument, line by line: each subject adds one vector of L2 norm at most C to the sum
(`clip_and_accumulate`); whether it takes part is its own coin of rate q (`poisson_sample`); Gaussian noise of standard
deviation sigma C is added to every coordinate (`add_noise`); all after that (`scale_grad`, the optimizer) sees only
the noised sum and the plan's constants. The actual number of subjects enters nothing. No loss can join two subjects: a
step calls one subject's loss, takes its gradient off, and only then calls the next.

Floating point: norm, sum and noise are float64, the clip is C (1 - 1e-6), which leaves room for their rounding, and
the noised sum is put on a fixed grid before it becomes float32. This mitigates the attacks of Mironov 2012 and
Jin et al. 2022 (2112.05307); it is no proof against them. In a pooled step (`private_sum`) the sum is of integers, its
sensitivity is exact, and the noise is of integers too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from opacus.optimizers import DPOptimizer
from opacus.validators import ModuleValidator
from torch import Tensor, nn

from fedseg.errors import Interrupted, PlanError
from fedseg.privacy.distributed import NoiseShare
from fedseg.training.compute import one_thread
from fedseg.training.noise import Entropy, NormalStream
from fedseg.training.skellam import SkellamStream

CLIP_MARGIN = 1e-6
GRID_BITS = 20
"""The grid's step is 2^-20 times the power of two at or below sigma C: float32 holds sums below 8 sigma C exactly."""

MOST_SENSITIVITY = 2.0**32
"""S C at most: int64 then holds the sum of 2^30 subjects."""


def validate(model: nn.Module) -> None:
    """Refuse what would let one subject's data pass by the clip.

    Raises:
        PlanError: A batch normalisation or a layer that tracks running statistics (by name), a layer that Opacus'
            ModuleValidator refuses, a model in evaluation mode, or trainable parameters that are not float32.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) or _tracks_statistics(module):
            raise PlanError(
                f"layer {name!r} ({type(module).__name__}) keeps statistics across subjects, which no clip bounds",
                hint="use GroupNorm, or InstanceNorm without running statistics",
            )
    for error in ModuleValidator.validate(model, strict=False):
        raise PlanError(f"the network cannot be trained with differential privacy: {error}")
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            raise PlanError(f"parameter {name!r} is {parameter.dtype}; private training keeps parameters in float32")


def poisson_sample(n_subjects: int, rate: float, entropy: Entropy) -> list[int]:
    """Draw each subject with probability `rate`, each by its own coin.

    A coin compares 64 bits with floor(rate 2^64): the probability is exact to 2^-64 and never above `rate`.

    Args:
        n_subjects: Subjects in the sampling frame.
        rate: q, in (0, 1].
        entropy: Source of the bits.

    Returns:
        Indices drawn, ascending; may be empty.

    Raises:
        PlanError: `rate` is no probability above 0.
    """
    if not 0 < rate <= 1:
        raise PlanError(f"the sampling rate must lie above 0 and be at most 1, not {rate}")
    threshold = math.floor(Fraction(rate) * 2**64)
    bits = entropy(8 * n_subjects)
    return [i for i in range(n_subjects) if int.from_bytes(bits[8 * i : 8 * i + 8], "big") < threshold]


class SubjectOptimizer(DPOptimizer):  # type: ignore[misc]  # opacus has no types
    """Opacus' `DPOptimizer` for one subject a backward pass, with float64 sums and noise from the operating system.

    Use: for each subject of a step `zero_grad()`, a backward pass, `step_subject(last=...)`; for a step that drew
    nobody `step_empty()`. The divisor is the constant q N0, never the batch's size.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        noise_multiplier: float,
        max_grad_norm: float,
        sampling_rate: float,
        public_subjects: int,
        entropy: Entropy,
    ) -> None:
        """Wrap `optimizer`.

        Args:
            optimizer: Takes the noised, scaled gradient; holds the parameters.
            noise_multiplier: sigma, above 0.
            max_grad_norm: C, above 0.
            sampling_rate: q, in (0, 1].
            public_subjects: N0, the plan's constant.
            entropy: Keys of the noise.

        Raises:
            PlanError: A value is out of range.
        """
        for name, value in (("noise_multiplier", noise_multiplier), ("max_grad_norm", max_grad_norm)):
            if not 0 < value < math.inf:
                raise PlanError(f"{name} must be a finite number above 0, not {value}")
        if not (0 < sampling_rate <= 1 and public_subjects >= 1):
            raise PlanError(f"no sampling with rate {sampling_rate} of {public_subjects} public subjects")
        super().__init__(
            optimizer,
            noise_multiplier=noise_multiplier,
            max_grad_norm=max_grad_norm,
            expected_batch_size=sampling_rate * public_subjects,
        )
        self._entropy = entropy

    def step_subject(self, *, last: bool) -> None:
        """Clip the subject's gradient in `.grad` and add it to the sum; after the `last` one, noise and step."""
        for p in self.params:
            p.grad_sample = torch.zeros_like(p)[None] if p.grad is None else p.grad.detach()[None]
        self.signal_skip_step(not last)
        with one_thread():
            self.step()

    def step_empty(self) -> None:
        """A step that drew nobody: noise alone."""
        self.zero_grad(set_to_none=True)
        for p in self.params:
            p.grad_sample = p.new_zeros((0, *p.shape))
        self.signal_skip_step(False)
        with one_thread():
            self.step()

    def clip_and_accumulate(self) -> None:
        """Add the one gradient (or none) to `summed_grad`, float64, scaled to a norm of at most C (1 - 1e-6).

        A gradient that is not finite counts as zero.
        """
        gradients = self.grad_samples
        factor = _clip_factor(gradients, self.max_grad_norm)
        for p, gradient in zip(self.params, gradients, strict=True):
            if p.summed_grad is None:
                p.summed_grad = torch.zeros_like(p, dtype=torch.float64)
            if factor > 0 and len(gradient):
                p.summed_grad.add_(gradient[0], alpha=factor)

    def add_noise(self) -> None:
        """`.grad` becomes the float64 sum plus N(0, (sigma C)^2), on the grid, as float32."""
        scale = self.noise_multiplier * self.max_grad_norm
        grid = 2.0 ** (math.floor(math.log2(scale)) - GRID_BITS)
        stream = NormalStream(self._entropy)
        for p in self.params:
            noise = torch.from_numpy(stream.draw(p.numel())).mul_(scale).view(p.shape).to(p.device)
            noised = noise.add_(p.summed_grad)
            p.grad = noised.div_(grid).round_().mul_(grid).to(p.dtype)


def private_steps(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    subjects: Sequence[Callable[[], Tensor]],
    *,
    noise_multiplier: float,
    max_grad_norm: float,
    sampling_rate: float,
    public_subjects: int,
    steps: int,
    entropy: Entropy,
    on_step: Callable[[int], None],
    should_stop: Callable[[], bool],
) -> None:
    """Run `steps` private steps; the caller has charged them all before.

    Args:
        model: In training mode; checked by `validate`.
        optimizer: Any torch optimizer of the model's trainable parameters.
        subjects: One callable a subject of the sampling frame: a forward pass over as many of its patches as the plan
            says (one or more) and nobody else's, giving their mean loss.
        noise_multiplier: sigma.
        max_grad_norm: C.
        sampling_rate: q.
        public_subjects: N0, the plan's constant for this site.
        steps: T.
        entropy: `os.urandom`.
        on_step: Called after each step with the number done. It learns nothing of batch or loss.
        should_stop: Asked before each step and each subject.

    Raises:
        PlanError: The model or a constant does not allow it.
        Interrupted: `should_stop` said so. What was charged stays charged.
    """
    validate(model)
    private = SubjectOptimizer(
        optimizer,
        noise_multiplier=noise_multiplier,
        max_grad_norm=max_grad_norm,
        sampling_rate=sampling_rate,
        public_subjects=public_subjects,
        entropy=entropy,
    )

    def heeding(subject: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """A subject's loss, unless training is to stop: a step over many subjects takes long."""

        def loss() -> Tensor:
            _stop_if(should_stop)
            return subject()

        return loss

    for step in range(steps):
        _stop_if(should_stop)
        take_step(private, [heeding(subjects[i]) for i in poisson_sample(len(subjects), sampling_rate, entropy)])
        on_step(step + 1)
    private.zero_grad(set_to_none=True)


def private_sum(
    model: nn.Module,
    subjects: Sequence[Callable[[], Tensor]],
    *,
    share: NoiseShare,
    sampling_rate: float,
    entropy: Entropy,
    should_stop: Callable[[], bool],
) -> dict[str, NDArray[np.int64]]:
    """One site's part of one pooled step: the integer sum over the subjects drawn, plus its share of Skellam noise.

    Why the sum over the sites is private, once each step has been charged:

    - Sampling: each subject takes part by its own coin of rate q, wherever it is (`poisson_sample`).
    - Sensitivity: a subject adds an integer vector z of L2 norm at most D2 = S C. Its gradient g is float32, its norm
      is measured as n in float64 with a relative error of at most 2^-25 (2^28 coordinates, in any order of adding up),
      and z = trunc(g f) for f = S min(1, C (1 - 1e-6) / n). A product is rounded by a relative 2^-53 at most, and
      truncation toward zero makes no coordinate larger, so |z| <= f |g| (1 + 2^-52). Where n > C (1 - 1e-6), that is
      at most S C (1 - 1e-6) (|g| / n) (1 + 2^-51), else at most S n (|g| / n) (1 + 2^-51) with n <= C (1 - 1e-6):
      below S C either way, as |g| / n <= 1 + 2^-24. A gradient that is not finite counts as zero. Integers are summed
      without rounding.
    - Noise: Poisson(rate) - Poisson(rate) at each coordinate of each site. Skellam variables are closed under sums
      (Agarwal, Kairouz, Liu 2021, 2110.04995, section 2), so what h sites add has variance sigma^2 D2^2 where each
      share has that over h (`NoiseShare.rate`). Shares are calibrated to h honest *others*: every site sees the sum
      and can take its own noise off. What dishonest sites add is independent of the honest ones' noise.
    - After the noise nothing is clipped or rounded. Reduction modulo 2^32, the masks and the division are
      post-processing, wrap-around included.

    Args:
        model: In training mode; checked by `validate`.
        subjects: As in `private_steps`.
        share: C, S and the noise.
        sampling_rate: q of the whole plan.
        entropy: `os.urandom`.
        should_stop: Asked before each subject.

    Returns:
        int64 arrays by parameter name, sorted, of the parameters that train.

    Raises:
        PlanError: The model does not allow it, a constant is out of range, or `share.dimension` is not the model's.
        Interrupted: `should_stop` said so. What was charged stays charged.
    """
    validate(model)
    parameters = {name: p for name, p in sorted(model.named_parameters()) if p.requires_grad}
    _refuse_misfit(share, sum(p.numel() for p in parameters.values()))
    stream = SkellamStream(share.rate, entropy)
    total = {name: torch.zeros_like(p, dtype=torch.int64) for name, p in parameters.items()}
    for index in poisson_sample(len(subjects), sampling_rate, entropy):
        _stop_if(should_stop)
        _differentiate(model, subjects[index])
        with one_thread():
            _add_integers(parameters, total, share)
    model.zero_grad(set_to_none=True)
    sums = {name: each.cpu().numpy() for name, each in total.items()}
    for array in sums.values():
        np.add(array, stream.draw(array.size).reshape(array.shape), out=array)
    return sums


def _refuse_misfit(share: NoiseShare, dimension: int) -> None:
    if share.dimension != dimension:
        raise PlanError(f"noise for {share.dimension:,} parameters, where the network trains {dimension:,}")
    if not 0 < share.sensitivity <= MOST_SENSITIVITY:
        raise PlanError(f"one subject's integers of norm {share.sensitivity:g} don't fit the ring of 2^32")


def _add_integers(parameters: Mapping[str, nn.Parameter], total: Mapping[str, Tensor], share: NoiseShare) -> None:
    """Add one subject's clipped gradient, times S and truncated toward zero."""
    gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
    factor = _clip_factor(list(gradients.values()), share.max_grad_norm) * share.scale
    for name, gradient in gradients.items():
        if factor > 0:
            total[name].add_(gradient.double().mul_(factor).long())


def _clip_factor(gradients: Sequence[Tensor], max_grad_norm: float) -> float:
    """What brings the norm of all `gradients` together to at most C (1 - 1e-6); 0 where a value is not finite.

    The norm stays on the gradients' device until the end: one wait a subject, not one a parameter.
    """
    if not gradients:
        return 0.0
    norms = [torch.linalg.vector_norm(g, dtype=torch.float64) for g in gradients]
    norm = float(torch.linalg.vector_norm(torch.stack(norms)))
    if not math.isfinite(norm):
        return 0.0
    bound = max_grad_norm * (1 - CLIP_MARGIN)
    return bound / norm if norm > bound else 1.0


def take_step(private: SubjectOptimizer, batch: Sequence[Callable[[], Tensor]]) -> None:
    """One step over the losses of the subjects that were drawn; over none it is noise alone."""
    if not batch:
        private.step_empty()
    for number, subject in enumerate(batch, 1):
        _differentiate(private, subject)
        private.step_subject(last=number == len(batch))


def _differentiate(holder: nn.Module | torch.optim.Optimizer, subject: Callable[[], Tensor]) -> None:
    """Leave one subject's gradient, and nothing of another's, in `.grad`."""
    holder.zero_grad(set_to_none=True)
    loss = subject()
    if loss.requires_grad:
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped


def _stop_if(should_stop: Callable[[], bool]) -> None:
    if should_stop():
        raise Interrupted("training was stopped between two steps", hint="join again to go on")


def _tracks_statistics(module: Any) -> bool:
    return bool(getattr(module, "track_running_stats", False)) or getattr(module, "running_mean", None) is not None
