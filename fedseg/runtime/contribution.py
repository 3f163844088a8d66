"""What a site gives to a round, as it is masked: its update, its part of a pooled step, or its scores."""

from __future__ import annotations

from fedseg.errors import ProtocolError
from fedseg.federation.exchange import RingVector
from fedseg.federation.parts import Turn
from fedseg.federation.vector import Layout
from fedseg.plan.manifest import Manifest
from fedseg.runtime import events
from fedseg.runtime.following import Follower
from fedseg.runtime.local_round import LocalRounds, as_sent
from fedseg.runtime.measuring import Evaluator
from fedseg.runtime.ports import Arrays, Entropy, OnStep, ShouldStop, Trainer
from fedseg.runtime.session import encoding_of, noise_share
from fedseg.secagg.encoding import Encoding, rounding_seed
from fedseg.secagg.integers import IntegerCode
from fedseg.secagg.messages import SessionHeader


class Contributor:
    """Computes what this site gives.

    Args:
        manifest: The study.
        site: This site.
        trainer: Local training.
        layout: Order of the network's arrays in the flat vector.
        rounds: What its rounds start from, make and keep.
        model: What it holds of the study.
        evaluator: Its part in evaluations.
        entropy: Random bytes from the operating system.
        notify: Told of each step; called from the thread that computes.
    """

    def __init__(
        self,
        manifest: Manifest,
        site: str,
        trainer: Trainer,
        layout: Layout,
        rounds: LocalRounds,
        model: Follower,
        evaluator: Evaluator,
        *,
        entropy: Entropy,
        notify: events.Notify,
    ) -> None:
        self._manifest, self._site, self._trainer, self._layout = manifest, site, trainer, layout
        self._rounds, self._model, self._evaluator = rounds, model, evaluator
        self._entropy, self._notify = entropy, notify
        self._encoding = encoding_of(manifest)
        self._sent = layout.within(layout.names_in(manifest.trained))

    def contribute(self, header: SessionHeader, should_stop: ShouldStop) -> RingVector | None:
        """uint32[length]: this site's part of the sum; None where it has no scores to give to an evaluation.

        Raises:
            Interrupted: `should_stop` said so.
            ProtocolError: This site holds no model yet.
        """
        return self._measure(should_stop) if header.evaluation else self._train(header.round, should_stop)

    def _measure(self, should_stop: ShouldStop) -> RingVector | None:
        """This site's scores of the model that the study gives away."""
        if (released := self._model.released) is None:
            raise ProtocolError("there is no model to evaluate")
        return self._evaluator.contribution(self._layout.unflatten(released), should_stop)

    def _train(self, round_number: int, should_stop: ShouldStop) -> RingVector:
        if (state := self._model.state) is None:
            raise ProtocolError("there is no model to train")
        turn = self._rounds.turn(round_number, self._model.closed_round, state)

        def on_step(done: int, steps: int) -> None:
            self._notify(events.Training(round_number, done, steps))

        if isinstance(self._encoding, IntegerCode):
            return self._summed(self._encoding, self._rounds.start(turn), on_step, should_stop)
        return self._updated(self._encoding, turn, on_step, should_stop)

    def _updated(self, code: Encoding, turn: Turn, on_step: OnStep, should_stop: ShouldStop) -> RingVector:
        """A round of training of this site's own, as it is sent; what stays here is kept."""
        plan, rounds = self._manifest.plan, self._rounds
        score = self._trainer.score(rounds.start(turn), should_stop=should_stop) if code.scored else None
        trained = rounds.train(turn, entropy=self._entropy, on_step=on_step, should_stop=should_stop)
        weight = plan.sites[self._site].weight
        encoded = code.encode(trained.update, weight, rounding_seed(plan.seed, turn.number, self._site), score)
        self._notify(events.Encoded(turn.number, encoded.norm, plan.aggregation.clip, encoded.relative_error))
        rounds.keep(trained, as_sent(code, encoded, weight))
        return encoded.vector

    def _summed(self, code: IntegerCode, weights: Arrays, on_step: OnStep, should_stop: ShouldStop) -> RingVector:
        """This site's part of one pooled step: integers that hold its share of the noise already."""
        share = noise_share(self._manifest)
        if share is None:
            raise ProtocolError("a pooled step without its noise")
        summed = self._trainer.gradient_sum(
            weights, share, entropy=self._entropy, on_step=on_step, should_stop=should_stop
        )
        return code.encode(self._sent.flatten(summed))
