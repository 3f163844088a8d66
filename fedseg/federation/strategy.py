"""How a round's mean update moves the model.

FedAvg with constant weights (McMahan et al. 2017, Algorithm 1, on updates): next = weights + mean update. Computed
in float64 and rounded once, so that the server and every site get the same model bit for bit.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedseg.federation.vector import Weights


def fed_avg(weights: Weights, mean_update: NDArray[np.float64] | Weights) -> Weights:
    """The next model.

    Args:
        weights: float32[d], the model that the round started from.
        mean_update: [d], the weighted mean of the contributors' updates.
    """
    moved: Weights = (weights.astype(np.float64) + mean_update).astype(np.float32)
    return moved
