"""A site's weighted update as a vector of Z/2^32, and the sum of all back as a mean.

No coordinate can saturate and nothing is clipped in silence: the update's L2 norm is brought down to the plan's bound
where it exceeds it, and that this fits the ring for every site together is proven when an `Encoding` is built.

Everything that a site says in a round is one vector: the update, then its weight, then (in a scored study) its
validation score and whether it has one. Weights are constants of the plan, so a sum is held to the exact weight of its
contributors, and to every bound that honest contributors cannot leave.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
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
        vector: uint32[length]; see `Encoding` for its tail.
        norm: L2 norm of the update as it came.
        factor: What it was multiplied by to keep within the bound; 1.0 where it did already.
        relative_error: What rounding did, measured: the L2 norm of `vector` less the float64 product that it rounds,
            over the norm of that product; 0 for an update of zeros. It is of one site's own update: it stays there.
    """

    vector: NDArray[np.uint32] = field(repr=False)
    norm: float
    factor: float
    relative_error: float

    @property
    def rescaled(self) -> bool:
        """Whether the bound took something away."""
        return self.factor < 1.0


@dataclass(frozen=True)
class Mean:
    """What the sum of a round's contributors says; a function of the published sum and the plan alone.

    Args:
        update: float32[dimension], the weighted mean of the updates.
        weight: Sum of the contributors' weights.
        norm: L2 norm of the mean, at most the clip and the worst rounding.
        relative_error: L2 norm that rounding is expected to have added, over the norm of the sum; 0 for a sum of
            zeros. A fraction f is rounded with variance f (1 - f), which is 1/6 on average over f, so that d
            coordinates of k contributors together err by sqrt(d k / 6).
        score: Mean validation score of those that gave one, within 0 to 1; None where nobody did.
        scorers: How many gave one.
    """

    update: NDArray[np.float32] = field(repr=False)
    weight: int
    norm: float
    relative_error: float
    score: float | None
    scorers: int


@dataclass(frozen=True)
class Encoding:
    """The fixed-point code of one study; both ends build it from the plan and get the same numbers.

    A vector is the update, the weight and, in a scored study, the score and a 1 where there is one (else both are 0).
    `scale` is the largest power of two with `sites * (weight_max * clip * scale + 1) < 2^31`, so that the signed sum
    of all sites can't wrap; `weight_scale` the largest with `sites * weight_max * weight_scale < 2^31` and
    `score_scale` the largest with `sites * score_scale < 2^31`. The zero low bits that these give to weights and to
    the number of scorers make a sum whose masks did not cancel show itself.

    Args:
        sites: Sites in the roster.
        clip: L2 norm that an update may have, in the units of the weights.
        weight_max: The largest weight of a site.
        dimension: Coordinates of an update.
        scored: Whether a validation score rides along.

    Raises:
        PlanError: A number out of range, or a code so coarse that rounding alone could move the mean by more than a
            hundredth of `clip`.
    """

    sites: int
    clip: float
    weight_max: int
    dimension: int
    scored: bool = False
    scale: float = field(init=False)
    weight_scale: int = field(init=False)
    score_scale: int = field(init=False)

    def __post_init__(self) -> None:
        """Prove the bounds in exact arithmetic."""
        _check_numbers(self)
        room = (Fraction(HALF_RING, self.sites) - 1) / (self.weight_max * Fraction(self.clip) * _SLACK)
        weights = Fraction(HALF_RING, self.sites * self.weight_max)
        object.__setattr__(self, "scale", _power_of_two_below(room))
        object.__setattr__(self, "weight_scale", int(_power_of_two_below(weights)))
        object.__setattr__(self, "score_scale", int(_power_of_two_below(Fraction(HALF_RING, self.sites))))
        if self.relative_error > MAX_RELATIVE_ERROR:
            raise PlanError(
                f"{self.sites} sites with weights up to {self.weight_max} leave too few of the ring's {RING_BITS} bits",
                where="sites",
                hint="give the sites smaller weights: 1, 2 and 3 instead of 100, 200 and 300",
            )

    @property
    def length(self) -> int:
        """Coordinates of an encoded vector: the update's and the tail."""
        return self.dimension + 1 + 2 * self.scored

    @property
    def relative_error(self) -> float:
        """The most that rounding is expected to move the mean: its L2 norm over `clip`, all weights 1."""
        return math.sqrt(self.dimension / self.sites) / (2 * self.scale * self.clip)

    def encode(self, update: NDArray[np.float32], weight: int, seed: bytes, score: float | None = None) -> Encoded:
        """`stochastic_round(weight * update * scale) mod 2^32`, then the tail.

        Rounds up with the probability of the fraction, so that the mean is right; a function of its arguments alone.

        Args:
            update: float32[dimension], finished (noise included).
            weight: 1 to weight_max.
            seed: 32 bytes, see `rounding_seed`.
            score: 0 to 1; None where the site has nobody to validate on.

        Raises:
            ProtocolError: Another type or shape, a NaN or infinity, a weight or score out of range, a score in a
                study that has none.
        """
        self._check_input(update, weight)
        tail = self._tail(weight, score)
        norm = _norm(update)
        factor = min(1.0, self.clip / norm) if norm else 1.0
        gain = weight * factor * self.scale
        vector = np.empty(self.length, dtype=np.uint32)
        vector[self.dimension :] = tail
        error = _round_into(vector[: self.dimension], update, gain, seed)
        return Encoded(vector, norm, factor, error / (gain * norm) if norm else 0.0)

    def decode(self, total: NDArray[np.uint32], weights: Sequence[int], longer: float = 1.0) -> Mean:
        """The weighted mean of the updates in `total`, and the mean of the scores.

        The sum is one of honest contributors, or else refused: its weight is theirs exactly, no coordinate and no
        score is further from zero than they can bring it together, and the mean's norm is within the clip (that of
        each of them is) and the worst rounding, of less than one step a coordinate and contributor.

        Args:
            total: uint32[length], the ring sum of encoded vectors.
            weights: The plan's weights of its contributors, one each.
            longer: How many times the clip an estimate may be long that isn't the mean (`federation.robust.stretch`).

        Raises:
            ProtocolError: Another type or shape, weights that are none of the plan, or a sum that these contributors
                cannot make: masks did not cancel, or somebody broke the code.
        """
        self._check_sum(total, weights)
        many, weight = len(weights), sum(weights)
        score, scorers = self._decode_tail(total[self.dimension :].tolist(), many, weight)
        update, steps = self._decode_update(total[: self.dimension], many, weight)
        norm = steps / (self.scale * weight)
        if norm > longer * self.clip * float(_SLACK) + many * math.sqrt(self.dimension) / (self.scale * weight):
            raise ProtocolError(
                f"the mean's norm {norm:.6g} exceeds the clip {self.clip:.6g}: a contributor did not keep to it"
            )
        error = math.sqrt(self.dimension * many / 6) / steps if steps else 0.0
        return Mean(update, weight, norm, error, score, scorers)

    def _check_input(self, update: NDArray[np.float32], weight: int) -> None:
        if update.dtype != np.float32 or update.shape != (self.dimension,):
            raise ProtocolError(
                f"an update is float32 of shape ({self.dimension},), not {update.dtype} of {update.shape}"
            )
        if not 1 <= weight <= self.weight_max:
            raise ProtocolError(f"weight {weight} is not within 1 to {self.weight_max}")

    def _check_sum(self, total: NDArray[np.uint32], weights: Sequence[int]) -> None:
        if total.dtype != np.uint32 or total.shape != (self.length,):
            raise ProtocolError(f"a sum is uint32 of shape ({self.length},), not {total.dtype} of {total.shape}")
        if not 1 <= len(weights) <= self.sites:
            raise ProtocolError(f"a sum is of 1 to {self.sites} contributors, not {len(weights)}")
        if min(weights) < 1 or max(weights) > self.weight_max:
            raise ProtocolError(f"a contributor's weight is not within 1 to {self.weight_max}")

    def _tail(self, weight: int, score: float | None) -> list[int]:
        if score is not None and not self.scored:
            raise ProtocolError("this study sums no validation scores")
        if score is not None and not 0 <= score <= 1:
            raise ProtocolError(f"a validation score of {score} is not within 0 to 1")
        scores = [0, 0] if score is None else [round(score * self.score_scale), self.score_scale]
        return [weight * self.weight_scale, *(scores if self.scored else [])]

    def _decode_tail(self, tail: list[int], many: int, weight: int) -> tuple[float | None, int]:
        if tail[0] != weight * self.weight_scale:
            raise ProtocolError(f"the total weight is not the {weight} of {many} contributors: masks did not cancel")
        if not self.scored:
            return None, 0
        scorers, rest = divmod(tail[2], self.score_scale)
        if rest or scorers > many or tail[1] > tail[2]:
            raise ProtocolError(f"the scores are not those of {many} contributors: one did not keep to the range")
        return (tail[1] / tail[2] if scorers else None), scorers

    def _decode_update(self, total: NDArray[np.uint32], many: int, weight: int) -> tuple[NDArray[np.float32], float]:
        """The mean, and the L2 norm of the signed sum in steps."""
        bound = math.floor(weight * self.clip * self.scale * float(_SLACK)) + many
        mean, squares = np.empty(self.dimension, dtype=np.float32), 0.0
        for where in _pieces(self.dimension):
            signed = total[where].view(np.int32)
            if max(-int(signed.min()), int(signed.max())) > bound:
                raise ProtocolError(f"the sum is out of the range of {many} contributors: masks did not cancel")
            exact = signed.astype(np.float64)
            mean[where] = exact / (self.scale * weight)
            squares += float(np.sum(np.square(exact, out=exact)))
        return mean, math.sqrt(squares)


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


def _round_into(rounded: NDArray[np.uint32], update: NDArray[np.float32], gain: float, seed: bytes) -> float:
    """Write `floor(update * gain + uniform)` into the ring; the L2 norm of what that added.

    With p = update * gain and u a multiple of 2^-32 below 1, p + u is rounded to 53 bits. That is monotone, so it
    comes to p or more, to p + 1 at most where p is whole, and else to less than the second integer above p, as p is an
    ulp below the first and u 2^-32 below 1. Its floor so is one of the two integers next to p (or p itself), at a
    distance of at most 1, and |p| + 1 < 2^31 is proven. The upper one has p's fraction as its probability, to within
    half an ulp below 2^31 and one 2^-32: less than 2^-22.
    """
    signed = rounded.view(np.int32)
    scratch, squares = np.empty((2, min(PIECE, update.size))), 0.0
    for where, words in keystream(seed, update.size):
        p, x = scratch[:, : words.size]
        np.copyto(p, update[where])
        p *= gain
        np.copyto(x, words)
        x *= 2.0**-32
        x += p
        np.floor(x, out=x)
        np.copyto(signed[where], x, casting="unsafe")
        x -= p
        squares += float(np.sum(np.square(x, out=x)))
    return math.sqrt(squares)


def _power_of_two_below(limit: Fraction) -> float:
    """The largest power of two strictly below `limit`, which is positive."""
    exponent = limit.numerator.bit_length() - limit.denominator.bit_length() + 1
    while Fraction(2) ** exponent >= limit:
        exponent -= 1
    return float(Fraction(2) ** exponent)


def _check_numbers(code: Encoding) -> None:
    if not 1e-30 <= code.clip <= 1e30:
        raise PlanError(f"clip {code.clip} is no usable bound", where="aggregation.clip", hint="a positive number")
    if not 1 <= code.dimension <= MAX_DIMENSION:
        raise PlanError(f"a model of {code.dimension} weights cannot be aggregated", where="network")
    if code.sites < 1 or code.weight_max < 1 or 2 * code.sites * code.weight_max >= HALF_RING:
        raise PlanError(
            f"{code.sites} sites with weights up to {code.weight_max} do not fit a ring of {RING_BITS} bits",
            where="sites",
            hint="weights are whole numbers from 1; give the sites smaller ones",
        )
