"""A site's side of a federated evaluation: what it is asked for, what it gives, and what is published of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fedseg.errors import FedsegError, Interrupted, ProtocolError
from fedseg.federation.evaluation import MOST_EVALUATIONS, aggregate_of, statistics_of
from fedseg.federation.exchange import CLOSE, SERVER, Head, Link, Published, RingVector
from fedseg.plan.manifest import Manifest
from fedseg.runtime import events
from fedseg.runtime.evidence import append_once, evaluated_entry
from fedseg.runtime.following import TALK, most_closed
from fedseg.runtime.participation import Participation
from fedseg.runtime.ports import Arrays, Evidence, Scorer, ShouldStop
from fedseg.runtime.session import evaluation_code
from fedseg.secagg.messages import SessionHeader
from fedseg.secagg.signing import verify


class Evaluator:
    """A site's part in evaluations.

    Args:
        manifest: The study.
        scorer: Scores a model on this site's kept-back subjects; None where the plan has no evaluation.
        link: The connection to the server.
        evidence: The site's log.
        notify: Told what happens.
        patiently: Calls, and calls again while the server cannot be reached.

    Raises:
        ProtocolError: There is no scorer, and the plan asks for one.
    """

    def __init__(
        self,
        manifest: Manifest,
        scorer: Scorer | None,
        link: Link,
        evidence: Evidence,
        *,
        notify: events.Notify,
        patiently: Callable[[Callable[[], Any]], Any],
    ) -> None:
        if scorer is None and manifest.plan.evaluation.federated:
            raise ProtocolError("a study with federated evaluation needs a scorer")
        self._manifest, self._scorer, self._link = manifest, scorer, link
        self._evidence, self._notify, self._patiently = evidence, notify, patiently
        self._code = evaluation_code(manifest)

    def check(self, offered: SessionHeader, head: Head, part: Participation) -> None:
        """Refuse an evaluation that this site has not agreed to.

        Raises:
            ProtocolError: The plan has none, by this site's log its rounds cannot be over yet, or there were as many as
                a site takes part in.
        """
        rounds = self._manifest.plan.schedule.rounds
        if not self._manifest.plan.evaluation.federated:
            raise ProtocolError("the server asks for scores of the model, which this study's plan has not", hint=TALK)
        if head.closed_round >= offered.round or most_closed(self._evidence, self._manifest) < rounds:
            raise ProtocolError(
                f"the server asks for scores of the model of round {head.closed_round}, before the {rounds} rounds of "
                "the plan are closed",
                hint=TALK,
            )
        if len(part.said.evaluations - {offered.round}) >= MOST_EVALUATIONS:
            raise ProtocolError(
                f"this site has taken part in {MOST_EVALUATIONS} evaluations of this study, and takes part in no other",
                hint="each tells a little more of the same subjects; evaluate here with: fedseg evaluate",
            )

    def contribution(self, weights: Arrays, should_stop: ShouldStop) -> RingVector | None:
        """This site's statistics of a model, as they are masked; None where its subjects cannot be scored.

        Raises:
            Interrupted: `should_stop` said so.
        """
        try:
            if self._scorer is None:
                raise ProtocolError("there is no scorer")
            measured = self._scorer.measure(weights, on_scan=self._scoring, should_stop=should_stop)
            return statistics_of(self._code, measured)
        except Interrupted:
            raise
        except FedsegError as error:
            # The study is complete without an evaluation: no reason to leave it without its model.
            self._notify(events.Note(f"this site takes no part in the evaluation: {error}"))
            return None

    def _scoring(self, done: int, scans: int) -> None:
        self._notify(events.Scoring(done, scans))

    def follow(self, round_number: int, model: str, released: str, part: Participation, server_key: bytes) -> None:
        """Hold the server to what it has published of an evaluation, and write it down.

        Args:
            round_number: Of the evaluation, by the server's word; 0: there is none.
            model: Hash of the state that this site holds, which the evaluation must be of.
            released: Hash of the weights in it that are scored.
            part: This site's newest session: it is over once its sum is known.
            server_key: The server's, of the roster.

        Raises:
            ProtocolError: What the server says doesn't fit together, or not what this site knows itself.
        """
        known = [body["round"] for kind, body in self._evidence.entries() if kind == "evaluated"]
        if not round_number or round_number in known:
            return
        published: Published = self._patiently(lambda: self._link.evaluated(round_number, lambda _done, _size: None))
        self._check_published(published, round_number, model, part, server_key)
        aggregate = aggregate_of(self._code, published.total, len(published.contributors))
        append_once(self._evidence, "evaluated", evaluated_entry(published, released))
        if part.header is not None and part.header.round == round_number:
            part.end(None)
        self._notify(events.Evaluated(round_number, published.contributors, aggregate.subjects, aggregate.dice.mean))

    def _check_published(
        self, published: Published, round_number: int, model: str, part: Participation, server_key: bytes
    ) -> None:
        verify(server_key, CLOSE, published.session, SERVER, published.statement, published.signature)
        contributors, plan = set(published.contributors), self._manifest.plan
        if not plan.evaluation.federated or published.round != round_number:
            raise ProtocolError(f"the server publishes an evaluation that was not asked for, as {round_number}")
        if len(contributors) < self._manifest.quorum or not contributors <= set(plan.sites):
            raise ProtocolError("an evaluation was closed below the quorum, or with sites that the plan does not name")
        if published.next_model != model:
            raise ProtocolError(f"the server publishes an evaluation of another model than {model}", hint=TALK)
        if part.said.denies(published):
            raise ProtocolError("the server publishes an evaluation of others than this site has signed for", hint=TALK)
