"""The end of a round as one log tells it: signed by the server, over what stands before it, and possible at all."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fedseg.errors import ProtocolError
from fedseg.federation.evaluation import aggregate_of
from fedseg.federation.exchange import CLOSE, SERVER, closing_statement
from fedseg.runtime.audit_steps import Attempt, listed, order_problems, outside, too_few
from fedseg.secagg import signing
from fedseg.secagg.roster import Roster
from fedseg.secagg.statistics import StatisticsCode
from fedseg.store.audit_records import Believed, Closed, Evaluated

Close = Closed | Evaluated


@dataclass(frozen=True)
class Closing:
    """A closed round, one that trained or an evaluation, with the server's valid signature, in anybody's log.

    Attributes:
        attempt: The attempt that made it, where this log knows it.
    """

    body: Close
    roster: Roster
    attempt: Attempt | None
    where: str


def signed_part(closing: Closing) -> tuple[Hashable, ...]:
    """What the server's signature of a close covers, beside the round."""
    body = closing.body
    return body.session, body.contributors, body.sum, body.next_model


def is_signed(body: Close, roster: Roster) -> bool:
    """Whether the server of this roster has signed it."""
    statement = closing_statement(body.round, body.contributors, bytes.fromhex(body.sum), body.next_model)
    try:
        signing.verify(
            roster.server_key, CLOSE, bytes.fromhex(body.session), SERVER, statement, bytes.fromhex(body.signature)
        )
    except ProtocolError:
        return False
    return True


def problems(
    body: Close, roster: Roster, role: str, earlier: Sequence[Closing], believed: Sequence[Believed]
) -> Iterator[str]:
    """What is wrong with the end of a round in one log, whatever attempt made it.

    Args:
        body: What the log says.
        roster: The one that the round was under.
        role: Whose log it is.
        earlier: Closed rounds before it in this log.
        believed: Best models before it, taken on the server's word.
    """
    if not is_signed(body, roster):
        yield "the server's signature of its close is not valid"
    yield from outside("its contributors", body.contributors, "the roster", roster.sites)
    yield from _out_of_order(body, role, earlier)
    yield from other_start(body.round, body.base_model, "its close starts", role, earlier)
    if isinstance(body, Evaluated):
        yield from _evaluated_before(body, earlier)
        return
    models = {each.body.base_model for each in earlier} | {each.model for each in believed}
    if body.rolled_back and body.next_model not in models:
        yield f"it goes back to model {body.next_model[:16]}, from which no round before it started"


def _out_of_order(body: Close, role: str, earlier: Sequence[Closing]) -> Iterator[str]:
    newest = max((each.body.round for each in earlier), default=0)
    # Who was away hears of an evaluation only where its model is the newest: a rollback may have led back to it.
    late = isinstance(body, Evaluated) and role == "site"
    if body.round in [each.body.round for each in earlier]:
        yield "it is closed a second time"
    elif body.round < newest and not late:
        yield f"it is closed after round {newest}"


def other_start(round_number: int, model: str, it_starts: str, role: str, earlier: Sequence[Closing]) -> Iterator[str]:
    """A round that starts from another model than the one before it made.

    The server makes every model; a site may have missed rounds in between.

    Args:
        round_number: Of the round.
        model: From which it starts.
        it_starts: For the sentence.
        role: Whose log it is.
        earlier: Closed rounds before it in this log.
    """
    last = max((each.body for each in earlier), key=lambda body: body.round, default=None)
    if last is None or model == last.next_model:
        return
    if role == "server" or round_number == last.round + 1:
        yield f"{it_starts} from model {model[:16]}, where round {last.round} ended with {last.next_model[:16]}"


def _evaluated_before(body: Evaluated, earlier: Sequence[Closing]) -> Iterator[str]:
    """Two evaluations of one model differ by the scores of the sites that are in one of them alone."""
    for other in (each.body for each in earlier):
        same = isinstance(other, Evaluated) and other.model == body.model
        if same and other.contributors != body.contributors:
            yield (
                f"it is a second evaluation of the model of round {other.round}, of {listed(body.contributors)} "
                f"where that one was of {listed(other.contributors)}"
            )


def attempt_problems(body: Close, attempt: Attempt, role: str) -> Iterator[str]:
    """What is wrong with the end of a round after the steps of the attempt that made it.

    Args:
        body: What the log says.
        attempt: With the steps before.
        role: Whose log it is.
    """
    evaluation = isinstance(body, Evaluated)
    if evaluation != attempt.header.evaluation:
        kinds = ("an evaluation", "a round that trains")
        session, close = kinds if attempt.header.evaluation else kinds[::-1]
        yield f"its session is {session}, it was closed as {close}"
    elif isinstance(body, Evaluated):
        yield from _impossible(body, attempt)
    yield from order_problems(attempt, body, role, True)
    if body.round != attempt.header.round:
        yield f"its sum is published as that of round {body.round}"
    if body.base_model != attempt.header.model_hash.hex():
        yield f"it was closed over model {body.base_model[:16]}, not over its own"
    if attempt.u3 is not None and body.contributors != attempt.u3:
        yield f"it was closed with {listed(body.contributors)}, before that they were {listed(attempt.u3)}"
    yield from too_few("the close", body.contributors, attempt)


def _impossible(body: Evaluated, attempt: Attempt) -> Iterator[str]:
    """What is wrong with the statistics themselves."""
    code, total = attempt.header.encoding, np.asarray(body.statistics, dtype=np.uint32)
    if isinstance(code, StatisticsCode):
        try:
            aggregate_of(code, total, len(body.contributors))
        except ProtocolError as error:
            yield f"its statistics cannot be: {error.what}"
