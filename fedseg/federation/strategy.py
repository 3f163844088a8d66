"""How a round's mean moves a study: what is carried from round to round, as one vector with one hash.

The *state* is float32 [P + d for each moment + d for the average]: all weights of the network; the moments of the
strategy's optimiser (`federation.optimisers`); a moving average of the weights that are trained together, in a plan
that has one. The server and every site compute it alike, in float64 and rounded once, so they agree on it bit for bit,
and whoever has missed a round fetches it whole and checks its hash. All of it is computed from published sums: no
privacy is at stake in it. What a site keeps to itself is not in it (`federation.parts`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedseg.federation.optimisers import Average, Exact, Moments, Optimiser, optimiser_of
from fedseg.federation.vector import Weights
from fedseg.plan.manifest import Manifest
from fedseg.plan.study import StudyPlan

State = NDArray[np.float32]


@dataclass(frozen=True)
class Strategy:
    """How one study moves.

    Args:
        parameters: P, of the network.
        trained: Ranges of those that are trained together, d in all.
        optimiser: What a mean does to them.
        average: Decay of the moving average; None where there is none.
    """

    parameters: int
    trained: tuple[tuple[int, int], ...]
    optimiser: Optimiser = field(default_factory=Average)
    average: float | None = None

    @classmethod
    def of(cls, manifest: Manifest) -> Strategy:
        """The strategy of a study."""
        return cls.for_plan(manifest.plan, manifest.parameters, manifest.trained)

    @classmethod
    def for_plan(cls, plan: StudyPlan, parameters: int, trained: tuple[tuple[int, int], ...]) -> Strategy:
        """The strategy of a plan over so many parameters, of which these ranges are trained together."""
        return cls(parameters, trained, optimiser_of(plan), plan.training.average)

    @property
    def dimension(self) -> int:
        """d, weights that are trained together."""
        return sum(stop - start for start, stop in self.trained)

    @property
    def size(self) -> int:
        """Length of the state."""
        return self.parameters + self.dimension * (len(self.optimiser.start) + (self.average is not None))

    def first(self, weights: Weights) -> State:
        """The state before round 1.

        Args:
            weights: float32[P].
        """
        moments = [np.full(self.dimension, value, dtype=np.float32) for value in self.optimiser.start]
        average = [] if self.average is None else [self.chosen(weights)]
        return np.concatenate([weights, *moments, *average])

    def weights(self, state: State) -> Weights:
        """float32[P]: what the next round trains."""
        return state[: self.parameters].copy()

    def moments(self, state: State) -> tuple[Weights, ...]:
        """float32[d] each: the optimiser's."""
        return tuple(state[where] for where in self._places)

    def released(self, state: State) -> Weights:
        """float32[P]: what the study gives away; the averaged weights where the plan averages."""
        weights = self.weights(state)
        return weights if self.average is None else self.put(weights, state[-self.dimension :])

    def move(self, state: State, mean: NDArray[np.float64] | Weights, round_number: int) -> State:
        """The state after a round.

        Args:
            state: float32[size], before it.
            mean: [d], the mean update; in distributed mode the mean gradient.
            round_number: From 1. The average forgets the first model sooner than its decay would: in round r the
                decay is at most (1 + r) / (10 + r).
        """
        exact: Exact = state.astype(np.float64)
        before: Moments = tuple(exact[where] for where in self._places)
        step, moments = self.optimiser.step(np.asarray(mean, dtype=np.float64), before, round_number)
        for where, moment in zip(self._places, moments, strict=True):
            exact[where] = moment
        moved = self._joined(exact) + step
        self._spread(exact, moved)
        if self.average is not None:
            decay = min(self.average, (1 + round_number) / (10 + round_number))
            exact[-self.dimension :] = decay * exact[-self.dimension :] + (1 - decay) * moved
        return exact.astype(np.float32)

    def chosen(self, weights: Weights) -> Weights:
        """float32[d]: of float32[P], what is trained together."""
        return self._joined(weights).astype(np.float32, copy=False)

    def put(self, weights: Weights, values: Weights) -> Weights:
        """float32[P]: other values, float32[d], for what is trained together."""
        changed = weights.copy()
        self._spread(changed, values)
        return changed

    @property
    def apart(self) -> NDArray[np.bool_]:
        """bool[P]: what no update holds: layers that don't train, and those that each site trains for itself."""
        rest = np.ones(self.parameters, dtype=bool)
        for start, stop in self.trained:
            rest[start:stop] = False
        return rest

    @property
    def _places(self) -> list[slice]:
        starts = (self.parameters + number * self.dimension for number in range(len(self.optimiser.start)))
        return [slice(start, start + self.dimension) for start in starts]

    def _joined(self, vector: NDArray[np.float32] | Exact) -> NDArray[np.float32] | Exact:
        return np.concatenate([vector[start:stop] for start, stop in self.trained])

    def _spread(self, vector: NDArray[np.float32] | Exact, values: NDArray[np.float32] | Exact) -> None:
        at = 0
        for start, stop in self.trained:
            vector[start:stop] = values[at : at + stop - start]
            at += stop - start
