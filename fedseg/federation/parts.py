"""A site's own part in a study's strategy: what it trains from, what it adds to a step, and what it keeps to itself.

What is kept is one float32 vector a round, on the site's own disk; no message holds it. A round reads what was kept of
the newest round that is closed, so a round that is trained again, after a crash or because it brought no sum, begins
where it did the first time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from fedseg.errors import ProtocolError
from fedseg.federation.schedule import path_length
from fedseg.federation.strategy import State, Strategy
from fedseg.federation.vector import Weights
from fedseg.plan.study import StudyPlan


class Kept(NamedTuple):
    """What a site has kept to itself.

    Attributes:
        round: The round that it comes of.
        vector: float32; what is in it is the strategy's.
    """

    round: int
    vector: Weights


def newest_of(rounds: Iterable[int], closed: int) -> int | None:
    """The newest of some rounds up to `closed`; None where there is none."""
    return max((number for number in rounds if number <= closed), default=None)


class Steps(Protocol):
    """A round's steps at this site."""

    def __call__(self, start: Weights, *, correction: Weights | None = None, towards: Weights | None = None) -> Weights:
        """float32[P]: weights after minus `start`, 0 where nothing trains.

        Args:
            start: float32[P].
            correction: float32[P], added to the gradient of every step, after its clip and noise.
            towards: float32[P], what the plan's proximal term pulls to, where that is not `start`.
        """


@dataclass(frozen=True)
class Turn:
    """One round at one site.

    Attributes:
        number: Of the round.
        closed: The newest closed round before it.
        state: The study's.
        kept: What this site had kept of it, or of one before.
    """

    number: int
    closed: int
    state: State
    kept: Kept | None


class Part:
    """A site that keeps nothing: FedAvg, FedProx (whose pull is the trainer's), and what only the server's side does.

    Args:
        strategy: The study's.
        plan: The study's.
    """

    def __init__(self, strategy: Strategy, plan: StudyPlan) -> None:
        self._strategy, self._plan = strategy, plan

    def start(self, turn: Turn) -> Weights:
        """float32[P]: what the round trains from, and scores."""
        return self._strategy.weights(turn.state)

    def correction(self, _turn: Turn) -> Weights | None:
        """float32[P]: what every step's gradient is corrected by."""
        return None

    def keep(self, _turn: Turn, _update: Weights, _sent: Weights, _steps: Steps) -> Weights | None:
        """What is kept of a round that has been trained.

        Args:
            _turn: The round.
            _update: float32[P], what its steps made of `start`.
            _sent: float32[d], what of it is in the sum: clipped and rounded.
            _steps: To train once more.
        """
        return None

    def personal(self, _released: Weights, _kept: Kept | None) -> Weights | None:
        """float32[P]: this site's own model, beside the one that the study releases; None where there is none."""
        return None

    @property
    def outlives(self) -> bool:
        """Whether more rounds, of an extension, would start from what was kept of the last one."""
        return True


class Corrected(Part):
    """The site's side of SCAFFOLD, option II (Karimireddy et al. 2020, 1910.06378, Algorithm 1).

    Every step takes the gradient g(y) - c_i + c; after the round c_i+ = c_i - c + (x - y) / (K eta). It is computed of
    what the sum holds of this site's update, so that the mean of all c_i stays c where the clip has shortened one.
    In a private study that update is noised, and c_i is made of it and of published numbers alone: it costs nothing.
    """

    def correction(self, turn: Turn) -> Weights | None:
        """See `Part`."""
        own, (shared,) = self._variate(turn), self._strategy.moments(turn.state)
        return self._strategy.put(np.zeros(self._strategy.parameters, dtype=np.float32), shared - own)

    def keep(self, turn: Turn, _update: Weights, sent: Weights, _steps: Steps) -> Weights | None:
        """See `Part`."""
        own, (shared,) = self._variate(turn), self._strategy.moments(turn.state)
        mean_gradient = -sent.astype(np.float64) / path_length(self._plan, turn.number)
        return (own.astype(np.float64) - shared + mean_gradient).astype(np.float32)

    @property
    def outlives(self) -> bool:
        """No: such a study cannot have more rounds (`runtime.extension`).

        Two of them and what the server publishes give the site's last update in the clear.
        """
        return False

    def _variate(self, turn: Turn) -> Weights:
        """c_i, float32[d]: 0 before the first closed round, and after that of the newest one, as every site is in all.

        Raises:
            ProtocolError: It is not there.
        """
        if turn.kept is not None and turn.kept.round == turn.closed:
            return turn.kept.vector
        if turn.closed:
            raise ProtocolError(
                f"what this site kept of round {turn.closed} is missing: without its SCAFFOLD correction the study "
                "would go astray",
                hint="restore this site's state folder as it was last, or begin another study",
            )
        return np.zeros(self._strategy.dimension, dtype=np.float32)


class NormsAtHome(Part):
    """FedBN (Li, Jiang, Zhang, Kamp, Dou 2021, 2102.07623): scale and shift of normalisation stay at each site.

    That paper's layers are batch normalisation; here they are GroupNorm, which keeps no statistics. They train with
    all others, in a private study under the same clip and noise, and no update holds them: what is kept is all that
    lies outside the ranges that are trained together. The study's own model has them as the first model has: it is not
    what any site uses, and for a site that never trained it is what there is.
    """

    def start(self, turn: Turn) -> Weights:
        """See `Part`."""
        return self._at_home(super().start(turn), turn.kept)

    def keep(self, turn: Turn, update: Weights, _sent: Weights, _steps: Steps) -> Weights | None:
        """See `Part`."""
        return (self.start(turn) + update)[self._strategy.apart]

    def personal(self, released: Weights, kept: Kept | None) -> Weights | None:
        """See `Part`."""
        return None if kept is None else self._at_home(released, kept)

    def _at_home(self, weights: Weights, kept: Kept | None) -> Weights:
        own = weights.copy()
        if kept is not None:
            own[self._strategy.apart] = kept.vector
        return own


class Personal(Part):
    """Ditto (Li, Hu, Beirami, Smith 2021, 2012.04221, Algorithm 1): a model of the site's own, near the shared one.

    The shared model is FedAvg's, to the bit. Beside it each round takes as many steps again on the site's own model v:
    gradient of the site's loss plus lambda (v - w), w the round's first model. It starts from the first w that the
    site trains; what is kept is v, float32[d].
    """

    def keep(self, turn: Turn, _update: Weights, _sent: Weights, steps: Steps) -> Weights | None:
        """See `Part`."""
        shared = self.start(turn)
        own = shared if turn.kept is None else self._strategy.put(shared, turn.kept.vector)
        return self._strategy.chosen(own + steps(own, towards=shared))

    def personal(self, released: Weights, kept: Kept | None) -> Weights | None:
        """See `Part`."""
        return None if kept is None else self._strategy.put(released, kept.vector)


def part_of(plan: StudyPlan, strategy: Strategy) -> Part:
    """A site's part in a study."""
    kinds: dict[str, type[Part]] = {"scaffold": Corrected, "fedbn": NormsAtHome, "ditto": Personal}
    return kinds.get(plan.strategy.name, Part)(strategy, plan)
