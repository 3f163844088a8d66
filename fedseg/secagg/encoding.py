"""A site's weighted update as a vector of Z/2^32, and the sum of all back as a mean.

No coordinate can saturate and nothing is clipped in silence: the update's L2 norm is brought down to the plan's bound
where it exceeds it, and that this fits the ring for every site together is proven when an `Encoding` is built.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from fedseg.errors import PlanError, ProtocolError
from fedseg.secagg.masking import PIECE, keystream

RING_BITS = 32
HALF_RING = 2 ** (RING_BITS - 1)
MAX_DIMENSION = 2**31 - 2
MAX_RELATIVE_ERROR = 0.01
# A norm summed in float64 may fall short of the true one by a part in 10^13: the proof leaves room for that.
_SLACK = 1 + Fraction(1, 2**20)


@dataclass(frozen=True)
class Encoded:
    """An update in the ring, and what happened to it on the way.

    Args:
        vector: uint32[dimension + 1]; the last coordinate is the weight.
        norm: L2 norm of the update as it came.
        factor: What it was multiplied by to keep within the bound; 1.0 where it did already.
    """

    vector: NDArray[np.uint32] = field(repr=False)
    norm: float
    factor: float

    @property
    def rescaled(self) -> bool:
        """Whether the bound took something away."""
        return self.factor < 1.0


@dataclass(frozen=True)
class Encoding:
    """The fixed-point code of one study; both ends build it from the plan and get the same numbers.

    `scale` is the largest power of two with `sites * (weight_max * clip * scale + 1) < 2^31`, so that the signed sum
    of all sites can't wrap; `weight_scale` the largest with `sites * weight_max * weight_scale < 2^31`, whose zero low
    bits make a sum whose masks did not cancel show itself.

    Args:
        sites: Sites in the roster.
        clip: L2 norm that an update may have, in the units of the weights.
        weight_max: The largest weight of a site.
        dimension: Coordinates of an update.

    Raises:
        PlanError: A number out of range, or a code so coarse that rounding alone could move the mean by more than a
            hundredth of `clip`.
    """

    sites: int
    clip: float
    weight_max: int
    dimension: int
    scale: float = field(init=False)
    weight_scale: int = field(init=False)

    def __post_init__(self) -> None:
        """Prove the bounds in exact arithmetic."""
        _check_numbers(self)
        room = (Fraction(HALF_RING, self.sites) - 1) / (self.weight_max * Fraction(self.clip) * _SLACK)
        object.__setattr__(self, "scale", _power_of_two_below(room))
        object.__setattr__(self, "weight_scale", int(_power_of_two_below(Fraction(HALF_RING, self._weights))))
        if self.relative_error > MAX_RELATIVE_ERROR:
            raise PlanError(
                f"{self.sites} sites with weights up to {self.weight_max} leave too few of the ring's {RING_BITS} bits",
                where="sites",
                hint="give the sites smaller weights: 1, 2 and 3 instead of 100, 200 and 300",
            )

    @property
    def _weights(self) -> int:
        return self.sites * self.weight_max

    @property
    def length(self) -> int:
        """Coordinates of an encoded vector: the update's and the weight."""
        return self.dimension + 1

    @property
    def relative_error(self) -> float:
        """The most that rounding is expected to move the mean: its L2 norm over `clip`, all weights 1."""
        return math.sqrt(self.dimension / self.sites) / (2 * self.scale * self.clip)

    def encode(self, update: NDArray[np.float32], weight: int, seed: bytes) -> Encoded:
        """`stochastic_round(weight * update * scale) mod 2^32`, then the weight.

        Rounds up with the probability of the fraction, so that the mean is right; a function of its arguments alone.

        Args:
            update: float32[dimension], finished (noise included).
            weight: 1 to weight_max.
            seed: 32 bytes, see `rounding_seed`.

        Raises:
            ProtocolError: Another type or shape, a NaN or infinity, a weight out of range.
        """
        self._check_input(update, weight)
        norm = _norm(update)
        factor = min(1.0, self.clip / norm) if norm else 1.0
        gain = weight * factor * self.scale
        vector = np.empty(self.length, dtype=np.uint32)
        for where, draws in keystream(seed, self.dimension):
            exact = update[where].astype(np.float64) * gain
            low = np.floor(exact)
            low += draws < (exact - low) * 2.0**32
            vector[where] = low.astype(np.int64).astype(np.uint32)
        vector[-1] = weight * self.weight_scale
        return Encoded(vector, norm, factor)

    def decode(self, total: NDArray[np.uint32], contributors: int | None = None) -> tuple[NDArray[np.float32], int]:
        """The weighted mean of the updates in `total`, and the total weight.

        Args:
            total: uint32[dimension + 1], the ring sum of encoded vectors.
            contributors: How many, where that is known: the bounds then are theirs, not those of the roster.

        Returns:
            float32[dimension] and the sum of the weights.

        Raises:
            ProtocolError: Another type or shape, or a sum that so many contributors cannot make: masks did not
                cancel, or somebody broke the code.
        """
        self._check_vector(total)
        many = self.sites if contributors is None else contributors
        weight = self._total_weight(int(total[-1]), contributors or 1, many)
        bound = many * (self.weight_max * self.clip * self.scale * float(_SLACK) + 1)
        mean = np.empty(self.dimension, dtype=np.float32)
        for where in _pieces(self.dimension):
            exact = total[where].view(np.int32).astype(np.float64)
            if np.abs(exact).max() > bound:
                raise ProtocolError(f"the sum is out of the range of {many} contributors: masks did not cancel")
            mean[where] = exact / (self.scale * weight)
        return mean, weight

    def _check_input(self, update: NDArray[np.float32], weight: int) -> None:
        if update.dtype != np.float32 or update.shape != (self.dimension,):
            raise ProtocolError(
                f"an update is float32 of shape ({self.dimension},), not {update.dtype} of {update.shape}"
            )
        if not 1 <= weight <= self.weight_max:
            raise ProtocolError(f"weight {weight} is not within 1 to {self.weight_max}")

    def _check_vector(self, total: NDArray[np.uint32]) -> None:
        if total.dtype != np.uint32 or total.shape != (self.length,):
            raise ProtocolError(f"a sum is uint32 of shape ({self.length},), not {total.dtype} of {total.shape}")

    def _total_weight(self, coded: int, fewest: int, most: int) -> int:
        weight, rest = divmod(coded, self.weight_scale)
        if rest or not fewest <= weight <= most * self.weight_max:
            raise ProtocolError(f"the total weight is not one of {most} contributors: masks did not cancel")
        return weight


def rounding_seed(plan_seed: int, round: int, site: str) -> bytes:
    """The seed of one site's rounding in one round: the same in a second attempt, and over gRPC as in simulation.

    Nothing secret: it decides only which way fractions are rounded.
    """
    text = f"fedseg/secagg/v1/rounding\0{plan_seed}\0{round}\0{site}"
    return hashlib.sha256(text.encode()).digest()


def _pieces(length: int) -> Iterator[slice]:
    return (slice(start, min(start + PIECE, length)) for start in range(0, length, PIECE))


def _norm(update: NDArray[np.float32]) -> float:
    """L2 norm in float64; `np.sum` rather than BLAS, whose result depends on its threads."""
    total = 0.0
    for where in _pieces(update.size):
        piece = update[where].astype(np.float64)
        total += float(np.sum(np.square(piece, out=piece)))
    if not math.isfinite(total):
        raise ProtocolError("the update holds NaN or infinity", hint="training diverged: lower the learning rate")
    return math.sqrt(total)


def _power_of_two_below(limit: Fraction) -> float:
    """The largest power of two strictly below `limit`, which is positive."""
    exponent = limit.numerator.bit_length() - limit.denominator.bit_length() + 1
    while Fraction(2) ** exponent >= limit:
        exponent -= 1
    return float(Fraction(2) ** exponent)


def _check_numbers(code: Encoding) -> None:
    if not math.isfinite(code.clip) or not 1e-30 <= code.clip <= 1e30:
        raise PlanError(f"clip {code.clip} is no usable bound", where="aggregation.clip", hint="a positive number")
    if not 1 <= code.dimension <= MAX_DIMENSION:
        raise PlanError(f"a model of {code.dimension} weights cannot be aggregated", where="network")
    if code.sites < 1 or code.weight_max < 1 or 2 * code.sites * code.weight_max >= HALF_RING:
        raise PlanError(
            f"{code.sites} sites with weights up to {code.weight_max} do not fit a ring of {RING_BITS} bits",
            where="sites",
            hint="weights are whole numbers from 1; give the sites smaller ones",
        )
