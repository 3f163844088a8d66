"""The ring code of an evaluation: a few sums over a site's subjects, none of them below zero.

Each statistic adds up numbers from 0 to 1, one a subject, so it lies between 0 and the number of subjects. That the sum
of all sites cannot wrap is proven when a `StatisticsCode` is built. `federation.evaluation` says what they mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedseg.errors import PlanError, ProtocolError
from fedseg.secagg.encoding import MAX_DIMENSION, RING_BITS

RING = 2**RING_BITS
LEAST_SCALE = 2**10


@dataclass(frozen=True)
class StatisticsCode:
    """The code of one study's evaluations; both ends build it from the plan.

    A vector is the statistics and a 1 for the site. `scale` is the largest power of two with
    `sites * weight_max * scale < 2^32`, `site_scale` the largest with `sites * site_scale < 2^32`: nothing is negative,
    so the whole ring holds the sum. The zero low bits of the tail make a sum whose masks did not cancel show itself.

    Args:
        sites: Sites in the roster.
        dimension: How many statistics.
        weight_max: The most subjects of a site.
        clip: In mm, what a distance counts as at most; it is divided by that.

    Raises:
        PlanError: A number out of range, or a scale below 2^10.
    """

    sites: int
    dimension: int
    weight_max: int
    clip: float
    scale: float = field(init=False)
    site_scale: int = field(init=False)

    def __post_init__(self) -> None:
        """Prove the bounds in integers."""
        if not (self.sites >= 1 and self.weight_max >= 1 and 1 <= self.dimension <= MAX_DIMENSION):
            raise PlanError(f"{self.dimension} statistics of {self.sites} sites cannot be summed", where="evaluation")
        if not 1e-30 <= self.clip <= 1e30:
            raise PlanError(f"{self.clip} mm is no usable bound on a distance", where="evaluation")
        object.__setattr__(self, "scale", float(_power_of_two_within(self.sites * self.weight_max)))
        object.__setattr__(self, "site_scale", _power_of_two_within(self.sites))
        if self.scale < LEAST_SCALE:
            raise PlanError(
                f"{self.sites} sites of {self.weight_max} subjects leave too few of the ring's {RING_BITS} bits",
                where="evaluation",
            )

    @property
    def scored(self) -> bool:
        """No validation score rides along."""
        return False

    @property
    def length(self) -> int:
        """Coordinates of an encoded vector: the statistics and the tail."""
        return self.dimension + 1

    def encode(self, statistics: Sequence[float]) -> NDArray[np.uint32]:
        """Each statistic times `scale`, rounded to the nearest whole number, then the tail.

        Args:
            statistics: `dimension` sums, each 0 to `weight_max`.

        Returns:
            uint32[length].

        Raises:
            ProtocolError: Another number of them, or one out of range.
        """
        values = np.asarray(statistics, dtype=np.float64)
        if values.shape != (self.dimension,):
            raise ProtocolError(f"an evaluation has {self.dimension} statistics, not {values.size}")
        # Written so that NaN is refused too.
        if not bool(np.all((values >= 0) & (values <= self.weight_max))):
            raise ProtocolError(f"a statistic is not within 0 to {self.weight_max}, the most subjects of a site")
        vector = np.empty(self.length, dtype=np.uint32)
        vector[:-1] = np.rint(values * self.scale)
        vector[-1] = self.site_scale
        return vector

    def decode(self, total: NDArray[np.uint32], many: int) -> NDArray[np.float64]:
        """The statistics summed over `many` contributors.

        Args:
            total: uint32[length], the ring sum of encoded vectors.
            many: How many sites are in it.

        Returns:
            float64[dimension], exact: each site's own rounding, of half of 1 / `scale` at most, is all that is off.

        Raises:
            ProtocolError: Another type or shape, or a sum that so many contributors cannot make: masks did not cancel,
                or somebody broke the code.
        """
        if total.dtype != np.uint32 or total.shape != (self.length,):
            raise ProtocolError(f"a sum is uint32 of shape ({self.length},), not {total.dtype} of {total.shape}")
        if not 1 <= many <= self.sites:
            raise ProtocolError(f"a sum is of 1 to {self.sites} contributors, not {many}")
        if int(total[-1]) != many * self.site_scale:
            raise ProtocolError(f"the sum is not that of {many} contributors: masks did not cancel")
        statistics = total[:-1] / np.float64(self.scale)
        if float(statistics.max()) > many * self.weight_max:
            raise ProtocolError(f"the sum is out of the range of {many} contributors: masks did not cancel")
        return statistics


def _power_of_two_within(most: int) -> int:
    """The largest power of two p with most * p < 2^32; 0 where there is none."""
    return int(2 ** (((RING - 1) // most).bit_length() - 1)) if most < RING else 0
