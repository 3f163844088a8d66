"""How a site comes to hold the newest model: from the published sum, which it decodes itself, or by its hash."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from fedseg.errors import ProtocolError, StaleSession
from fedseg.federation.closing import Closing, close_round
from fedseg.federation.exchange import CLOSE, SERVER, Best, Head, Link, Published
from fedseg.federation.strategy import State, Strategy
from fedseg.federation.vector import Weights, model_hash
from fedseg.plan.manifest import Manifest
from fedseg.runtime import events
from fedseg.runtime.evidence import append_once, closed_entry
from fedseg.runtime.participation import Participation
from fedseg.runtime.ports import Evidence, Memory
from fedseg.runtime.session import encoding_of
from fedseg.secagg.signing import verify

T = TypeVar("T")
TALK = "stop and talk to the coordinator: the server is broken, or lies"
OTHER_BEST = "the server names another best model than the published scores give"


def known_rounds(evidence: Evidence) -> dict[int, str]:
    """The closed rounds of a site's log, followed or taken on the server's word, and the model of each."""
    model_of = {"closed": "next_model", "fetched": "model"}
    return {body["round"]: body[model_of[kind]] for kind, body in evidence.entries() if kind in model_of}


def most_closed(evidence: Evidence, manifest: Manifest) -> int:
    """How many rounds can be closed, by a site's log, at most.

    A sum that it followed started from the model that it held, so no round between had made another; before a model
    taken on the server's word any may have. In a study that rolls back, rounds between may have led back to that model.
    """
    back, most, newest = manifest.plan.aggregation.rollback is not None, 0, 0
    for kind, body in evidence.entries():
        if kind in ("closed", "fetched"):
            most += 1 if kind == "closed" and not back else body["round"] - newest
            newest = body["round"]
    return most


class Follower:
    """A site's model, round after round.

    Args:
        manifest: The study.
        link: The connection to the server.
        memory: The site's disk.
        evidence: The site's log.
        notify: Told what happens.
        patiently: Calls, and calls again while the server cannot be reached.

    Attributes:
        state: The study's, as this site holds it; None before the first model.
        closed_round: The newest round that is closed, once `catch_up` has told.
    """

    def __init__(
        self,
        manifest: Manifest,
        link: Link,
        memory: Memory,
        evidence: Evidence,
        *,
        notify: events.Notify,
        patiently: Callable[[Callable[[], Any]], Any],
    ) -> None:
        self._manifest, self._link, self._memory, self._evidence = manifest, link, memory, evidence
        self._notify, self._patiently = notify, patiently
        self._encoding, self._strategy = encoding_of(manifest), Strategy.of(manifest)
        self._best = memory.best()
        self._doubt: ProtocolError | None = None
        self.state = memory.weights()
        self.closed_round = 0

    @property
    def released(self) -> Weights | None:
        """float32[P]: what the study gives away as it stands."""
        return None if self.state is None else self._strategy.released(self.state)

    def catch_up(self, head: Head, part: Participation, server_key: bytes) -> bool:
        """Hold the model of `head`; whether that is another one than before.

        Args:
            head: Where the study stands, by the server's word.
            part: This site's newest session: it is over once its sum is known.
            server_key: The server's, of the roster.

        Raises:
            ProtocolError: What the server says doesn't fit together, or not what this site knows itself.
        """
        state, following = self.state, None
        own = None if state is None else model_hash(state)
        with self._doubting():
            self._check_head(head, part)
            if own == head.model_hash and self._is_newest(head, part):
                self._follow_best(head)
                self.closed_round = head.closed_round
                return False
            if state is not None and head.closed_round and own == head.base_model:
                following = self._apply(state, head, part, server_key)
        if following is None:
            following = self._download(head, part)
        self.state, self.closed_round = following, head.closed_round
        self._memory.save_weights(following)
        return True

    @contextmanager
    def _doubting(self) -> Iterator[None]:
        """Remember a lie: who found one doesn't believe the same server's word on a later model, until it restarts."""
        try:
            yield
        except StaleSession:
            raise
        except ProtocolError as error:
            self._doubt = error
            raise

    def _check_head(self, head: Head, part: Participation) -> None:
        """Refuse a history other than the one that this site was part of."""
        self._check_round(head)
        if head.closed_round == 0 and head.model_hash != self._manifest.initial_model:
            raise ProtocolError("the study's first model is not the one that the plan names")
        if head.best is not None and not (self._encoding.scored and head.closed_round):
            raise ProtocolError(OTHER_BEST, hint=TALK)
        base = part.said.base_of(head.closed_round)
        if base not in (None, head.base_model):
            raise ProtocolError(
                f"the server says that round {head.closed_round} started from model {head.base_model}, it was {base}",
                hint=TALK,
            )

    def _check_round(self, head: Head) -> None:
        """Refuse a newest round that is older than this site's, had another model, or is one too many."""
        known, rounds = known_rounds(self._evidence), self._manifest.plan.schedule.rounds
        number, newest = head.closed_round, max(known, default=0)
        if number < newest:
            raise ProtocolError(f"the server's newest round is {number}, this site knows of round {newest}", hint=TALK)
        if number in known and head.model_hash != known[number]:
            raise ProtocolError(
                f"the server names model {head.model_hash} as that of round {number}, which had ended with "
                f"{known[number]}",
                hint=TALK,
            )
        if number > newest and len(known) >= rounds:
            raise ProtocolError(
                f"the server says that round {number} is closed, though the {rounds} of the plan were closed before it",
                hint=TALK,
            )

    def _is_newest(self, head: Head, part: Participation) -> bool:
        """Whether the model that this site holds is that of the newest round; False where a sum must show it.

        Rounds that it missed may have led back to that model, in a study that rolls back. The number alone matters too:
        by it a site keeps what its strategy leaves it of a round, and knows when the model may be evaluated.
        """
        if head.closed_round <= max(known_rounds(self._evidence), default=0):
            return True
        if head.base_model == head.model_hash:
            return False
        if self._manifest.plan.aggregation.rollback is None:
            raise ProtocolError(
                f"the server says that round {head.closed_round} ended with the model of an earlier round, in a study "
                "that does not roll back",
                hint=TALK,
            )
        self._take_round(head, part)
        return True

    def _take_round(self, head: Head, part: Participation) -> None:
        """Take a round that this site missed on the server's word, unless the server was caught in a lie."""
        if self._doubt is not None:
            raise self._doubt
        part.end("the study went on without this site")
        if head.closed_round:
            said = {"round": head.closed_round, "base_model": head.base_model, "model": head.model_hash}
            self._take("fetched", said, head)

    def _download(self, head: Head, part: Participation) -> Weights:
        """The newest model as the server has it: its hash is in the session, so a lie about it sums with nobody's."""
        self._take_round(head, part)
        weights = self._fetch(head.model_hash, "fetching the model")
        self._believe(head)
        return weights

    def _take(self, kind: str, said: Mapping[str, object], head: Head) -> None:
        """Write down and say what is taken on the server's word."""
        append_once(self._evidence, kind, said)
        self._notify(events.Taken(head.closed_round))

    def _believe(self, head: Head) -> None:
        """The best model so far, of rounds that this site missed: the server's word, or nothing to roll back to."""
        if head.best is not None and head.best != self._best:
            best = {"model": head.best.model_hash, "score": head.best.score}
            self._take("believed", {"round": head.closed_round, **best}, head)
        self._keep_best(head.best)

    def _follow_best(self, head: Head) -> None:
        """Take the server's word for the best model only where a round that this site missed has brought it back."""
        closed = [body["round"] for kind, body in self._evidence.entries() if kind == "closed"]
        if head.best != self._best and head.closed_round in closed:
            raise ProtocolError(OTHER_BEST, hint=TALK)
        self._believe(head)

    def _keep_best(self, best: Best | None) -> None:
        if best is not None and best != self._best:
            self._memory.save_best(best)
            self._best = best

    def _fetch(self, wanted: str, what: str) -> Weights:
        weights: Weights = self._patiently(lambda: self._link.model(wanted, self._transfer(what)))
        if weights.size != self._strategy.size or model_hash(weights) != wanted:
            raise ProtocolError("the model that the server sent is not the one it named")
        return weights

    def _apply(self, state: State, head: Head, part: Participation, server_key: bytes) -> State | None:
        """The model that the published sum makes of this site's; None where it can't know what was best before."""
        transfer = self._transfer("fetching the sum")
        published: Published = self._patiently(lambda: self._link.published(head.closed_round, transfer))
        self._check_published(published, head, part, server_key)
        closing = close_round(
            self._manifest, self._encoding, published.total, published.contributors,
            base_model=head.base_model, best=self._best,
        )  # fmt: skip
        if closing.best != head.best and part.said.base_of(head.closed_round) is None:
            # Rounds that this site missed had brought the study back to the model that it holds.
            return None
        following = self._following(state, closing, published.round)
        self._check_outcome(closing, following, published, head)
        append_once(self._evidence, "closed", closed_entry(published, closing, head.base_model))
        part.end(None)
        self._keep_best(closing.best)
        self._doubt = None
        return following

    def _check_published(self, published: Published, head: Head, part: Participation, server_key: bytes) -> None:
        """Refuse a sum that the server won't stand by, or one of others than this site has signed for."""
        verify(server_key, CLOSE, published.session, SERVER, published.statement, published.signature)
        if published.round != head.closed_round:
            raise ProtocolError(f"the server sent the sum of round {published.round}, not {head.closed_round}")
        if len(published.contributors) < self._manifest.quorum:
            raise ProtocolError(f"round {head.closed_round} was closed below the quorum", hint=TALK)
        if not set(published.contributors) <= set(self._manifest.plan.sites):
            raise ProtocolError(
                f"round {head.closed_round} was closed with sites that the plan does not name", hint=TALK
            )
        if part.said.denies(published):
            raise ProtocolError(
                f"the server published a sum for round {head.closed_round} of others than this site has signed for",
                hint=TALK,
            )

    def _following(self, state: State, closing: Closing, round_number: int) -> State:
        if not closing.back or closing.best is None:
            return self._strategy.move(state, closing.mean.update, round_number)
        self._notify(events.Note("the validation Dice collapsed; back to the best model"))
        return self._fetch(closing.best.model_hash, "fetching the best model")

    def _check_outcome(self, closing: Closing, following: Weights, published: Published, head: Head) -> None:
        made = model_hash(following)
        if not made == head.model_hash == published.next_model:
            named = published.next_model if made == head.model_hash else head.model_hash
            raise ProtocolError(f"the server names model {named} where its own sum gives {made}", hint=TALK)
        if closing.best != head.best:
            raise ProtocolError(OTHER_BEST, hint=TALK)

    def check_history(self, history: Sequence[tuple[int, tuple[str, ...]]]) -> None:
        """Refuse a list of closed rounds that the plan, or what this site saw itself, contradicts.

        Raises:
            ProtocolError: It does.
        """
        plan, numbers = self._manifest.plan, [number for number, _ in history]
        own = {
            body["round"]: tuple(body["contributors"]) for kind, body in self._evidence.entries() if kind == "closed"
        }
        possible = (
            numbers == sorted(set(numbers))
            and len(numbers) <= plan.schedule.rounds
            and all(set(sites) <= set(plan.sites) and len(sites) >= self._manifest.quorum for _, sites in history)
            and own.items() <= dict(history).items()
        )
        if not possible:
            raise ProtocolError(
                "the server tells of other rounds than this site has seen, or the plan allows", hint=TALK
            )

    def _transfer(self, what: str) -> Callable[[int, int], None]:
        return lambda done, size: self._notify(events.Transfer(what, done, size))
