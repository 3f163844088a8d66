"""Rules for the mean of updates that hold when some sites lie; only for plain mode, where the server has every update.

Each takes the encoded vectors of one round, one a contributor, and gives the vector that is published in place of
their ring sum: it decodes to the robust estimate of the mean, and its tail (weight, scores) is the plain sum. All is
integer arithmetic on the vectors as they came, a slice of coordinates at a time, so the result depends neither on the
order of the contributors nor on threads, and nothing the size of all updates together is held a second time.

What none of them resists: liars that stay within the spread of honest updates (Baruch et al. 2019, "A little is
enough"), the more so the more the hospitals' data differ; and they slight an honest hospital whose scans are unlike
the others'. They bound the harm of a round, they don't find the liar. All sites must have one weight: a rule counts
heads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedseg.errors import ProtocolError
from fedseg.plan.combinations import most_liars

RingVector = NDArray[np.uint32]
RobustRule = Literal["median", "trimmed_mean", "multi_krum"]

PIECE = 2**14
"""Coordinates at a time. Sums of products of 16-bit halves over fewer than 2^21 of them are exact in float64."""

_HALF_RING = 2**31


def combine(rule: RobustRule, vectors: Sequence[RingVector], dimension: int, liars: int | None = None) -> RingVector:
    """The vector to publish in place of the ring sum, by the plan's rule.

    Args:
        rule: `aggregation.rule` of the plan.
        vectors: uint32[length] each, sorted by site (multi-Krum breaks ties by place); all of one weight.
        dimension: Coordinates of the update, below `length`; the rest is summed.
        liars: `aggregation.liars` of the plan; `median` takes none.

    Returns:
        uint32[length]: round(estimate * contributors) in the ring, then the tail.

    Raises:
        ProtocolError: No vectors or unlike ones, more liars than the rule withstands over so many contributors, or an
            estimate that does not fit the ring: then more contributors lie than the rule is built for.
    """
    if rule == "median":
        return median(vectors, dimension)
    if liars is None:
        raise ProtocolError(f"{rule} needs the number of liars that it is built for")
    return (trimmed_mean if rule == "trimmed_mean" else multi_krum)(vectors, dimension, liars)


def stretch(rule: RobustRule, contributors: int, liars: int | None = None) -> float:
    """How many times longer (L2) than the longest of its vectors an estimate can be: 1 to sqrt(2).

    Where f values are cut off at either end, those above and the k - 2 f that are kept give the sum of squares at
    least k - f times the square of the estimate, coordinate by coordinate; so sqrt(k / (k - f)). The mean of vectors
    that multi-Krum chooses is no longer than they are. It bounds the estimate by the clip only where the server has
    held every single vector to the clip.
    """
    if rule == "multi_krum":
        return 1.0
    cut = most_liars(rule, contributors) if rule == "median" or liars is None else liars
    return math.sqrt(contributors / (contributors - cut))


def median(vectors: Sequence[RingVector], dimension: int) -> RingVector:
    """Coordinate-wise median (Yin et al. 2018, ICML, option I); exact. Arguments and errors as `combine`.

    Whatever fewer than half of the contributors send, each coordinate lies within the range of the honest ones. It
    is no mean: with few sites it follows one of them in each coordinate and drops what the others learned.
    """
    return _trimmed(vectors, dimension, most_liars("median", len(vectors)))


def trimmed_mean(vectors: Sequence[RingVector], dimension: int, liars: int) -> RingVector:
    """Coordinate-wise mean without the `liars` largest and smallest (Yin et al. 2018, option II), to the nearest.

    Arguments and errors as `combine`. Whatever `liars` contributors send, each coordinate lies within the range of the
    honest ones; more than that can move it anywhere. It uses more of what honest sites learned than the median does.
    """
    _check_liars("trimmed_mean", len(vectors), liars)
    return _trimmed(vectors, dimension, liars)


def multi_krum(vectors: Sequence[RingVector], dimension: int, liars: int) -> RingVector:
    """The mean of the k - liars - 2 vectors with the best Krum scores (Blanchard et al. 2017, NIPS), to the nearest.

    A score is the sum of squared distances to the k - liars - 2 nearest others, computed exactly; ties go to the
    earlier vector. Arguments and errors as `combine`. So many are averaged as the resilience of multi-Krum is proven
    for (Damaskinos et al. 2019, MLSys). A vector far from the honest ones is never chosen; one that hides a large
    change of a few coordinates within the distances of a long vector can be (El Mhamdi et al. 2018, ICML).
    """
    _check_liars("multi_krum", len(vectors), liars)
    total = _tail_summed(vectors, dimension)
    nearest = len(vectors) - liars - 2
    distances = _squared_distances(vectors, dimension)
    # A vector is its own nearest, at 0: one more than `nearest` makes room for it.
    scores = [sum(sorted(row)[: nearest + 1]) for row in distances]
    chosen = sorted(range(len(vectors)), key=lambda index: (scores[index], index))[:nearest]
    for where in _pieces(dimension):
        kept = sum(vectors[index][where].view(np.int32).astype(np.int64) for index in chosen)
        total[where] = _to_ring(np.asarray(kept), len(vectors), nearest)
    return total


def _trimmed(vectors: Sequence[RingVector], dimension: int, cut: int) -> RingVector:
    total, many = _tail_summed(vectors, dimension), len(vectors)
    for where in _pieces(dimension):
        ordered = np.stack([vector[where].view(np.int32) for vector in vectors], axis=1)
        ordered.sort(axis=1)
        kept = ordered[:, cut : many - cut].sum(axis=1, dtype=np.int64)
        total[where] = _to_ring(kept, many, many - 2 * cut)
    return total


def _squared_distances(vectors: Sequence[RingVector], dimension: int) -> list[list[int]]:
    """Squared L2 distances of all pairs as whole numbers, from inner products of the signed 16-bit halves.

    A value is `high * 2^16 + low`; products of halves are below 2^32, so float64 sums over a piece are exact in
    whatever order BLAS takes them, and int64 holds them over 2^30 coordinates.
    """
    many = len(vectors)
    gram = np.zeros((2 * many, 2 * many), dtype=np.int64)
    for where in _pieces(dimension):
        signed = np.stack([vector[where].view(np.int32) for vector in vectors])
        halves = np.concatenate([signed >> 16, signed & 0xFFFF]).astype(np.float64)
        gram += (halves @ halves.T).astype(np.int64)
    exact: NDArray[Any] = gram.astype(object)
    crossed = exact[:many, many:] + exact[many:, :many]
    inner = (exact[:many, :many] * 2**32 + crossed * 2**16 + exact[many:, many:]).tolist()
    return [[inner[i][i] + inner[j][j] - 2 * inner[i][j] for j in range(many)] for i in range(many)]


def _to_ring(sums: NDArray[np.int64], contributors: int, divisor: int) -> RingVector:
    """`sums / divisor * contributors` to the nearest whole number (halves upwards), in the ring."""
    nearest = (2 * contributors * sums + divisor) // (2 * divisor)
    if nearest.size and not -_HALF_RING <= int(nearest.min()) <= int(nearest.max()) < _HALF_RING:
        raise ProtocolError("the robust mean does not fit the ring: more contributors lie than the rule is built for")
    return nearest.astype(np.uint32)


def _tail_summed(vectors: Sequence[RingVector], dimension: int) -> RingVector:
    """uint32[length] with the tail summed in the ring, as for the mean; the other coordinates are 0."""
    _check_vectors(vectors, dimension)
    total = np.zeros_like(vectors[0])
    for vector in vectors:
        total[dimension:] += vector[dimension:]
    return total


def _check_vectors(vectors: Sequence[RingVector], dimension: int) -> None:
    shapes = {(vector.dtype.str, vector.shape) for vector in vectors}
    if len(shapes) != 1 or any(vector.dtype != np.uint32 or vector.ndim != 1 for vector in vectors):
        raise ProtocolError("a robust mean takes uint32 vectors of one length, at least one")
    if not 0 < dimension < vectors[0].size:
        raise ProtocolError(f"vectors of {vectors[0].size} coordinates hold no update of {dimension} and its weight")


def _check_liars(rule: RobustRule, contributors: int, liars: int) -> None:
    most = most_liars(rule, contributors)
    if not 0 <= liars <= most:
        raise ProtocolError(f"{rule} over {contributors} contributors withstands at most {max(most, 0)}, not {liars}")


def _pieces(dimension: int) -> Iterator[slice]:
    return (slice(start, min(start + PIECE, dimension)) for start in range(0, dimension, PIECE))
