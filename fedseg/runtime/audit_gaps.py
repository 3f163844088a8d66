"""What a party's own log lacks, and by others' logs should hold: it was cut, or gone back to an older copy.

Logs that are broken are passed over: what stands behind the break is not known.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fedseg.runtime.audit_evidence import Finding
from fedseg.runtime.audit_history import History
from fedseg.store.audit_records import Confirmed


@dataclass(frozen=True)
class Lacking:
    """What a log should hold, by a signature in another's."""

    step: str
    round: int
    where: str


def lost_heads(histories: Sequence[History]) -> Iterator[Finding]:
    """The server logs a head before it answers: what a site holds of its signatures, its log has."""
    for server in (each for each in histories if each.is_server and not each.log.broken):
        own = set(server.countersigned)
        for history in histories:
            lacking = [head for head in history.countersigned if head not in own]
            if lacking:
                what = (
                    f"the log lacks {len(lacking)} countersigned heads of the ledger of {lacking[0].site}, the first "
                    f"of round {lacking[0].round}, which the server has signed: {history.log.path}"
                )
                proves = "the server has cut its log or gone back to an older copy: the signature is its own"
                yield Finding("server", server.log.path, what, proves)


def lost_steps(histories: Sequence[History]) -> Iterator[Finding]:
    """Steps that a site has signed, by another's log; and rounds that count it, of which its own log knows nothing."""
    for history in histories:
        if history.log.broken:
            continue
        for sid, lacking in _lacking(history, histories).items():
            steps = " and ".join(sorted({each.step for each in lacking}))
            what = (
                f"the log lacks {steps} of session {sid[:16]} (round {lacking[0].round}), which {history.party} has "
                f"signed: {lacking[0].where}"
            )
            proves = f"{history.party} has cut its log or gone back to an older copy: the signature is its own"
            yield Finding(history.party, history.log.path, what, proves)
        yield from _uncounted(history, histories)


def _lacking(history: History, histories: Sequence[History]) -> dict[str, list[Lacking]]:
    """By session, what others hold of a site's signatures and its own log doesn't have."""
    own = {attempt.sid: attempt for attempt in history.attempts.values()}
    found: dict[str, list[Lacking]] = defaultdict(list)
    for other in (each for each in histories if each is not history):
        for each in other.contributions:
            if each.key == history.key and each.sid not in own:
                found[each.sid].append(Lacking("step 3", each.round, each.where))
        for vote in other.votes:
            if vote.key == history.key and (vote.sid not in own or Confirmed not in own[vote.sid].steps):
                found[vote.sid].append(Lacking("step 4", vote.round, vote.where))
    return found


def _uncounted(history: History, histories: Sequence[History]) -> Iterator[Finding]:
    """Rounds that count a site by the server's word alone, of which its own log knows nothing."""
    signed = _lacking(history, histories).keys()
    seen = {closing.body.round for closing in history.closings}
    for closing in {each.body.session: each for other in histories for each in other.closings}.values():
        body = closing.body
        mine = history.begin.party in body.contributors and closing.roster.keys.get(history.begin.party) == history.key
        if mine and body.session not in signed and body.round not in seen and history.attempt_of(body.session) is None:
            what = f"the log lacks round {body.round}, which counts {history.begin.party} among its contributors"
            proves = (
                f"{history.party} has cut its log, or the server counts an input that was never given: the server's "
                "own log would hold the signature that decides it"
            )
            yield Finding(history.party, f"{history.log.path}; {closing.where}", what, proves)


def lost_closes(histories: Sequence[History]) -> Iterator[Finding]:
    """Rounds that the server has closed, by another's log."""
    for server in histories:
        if not server.is_server or server.log.broken:
            continue
        own = {closing.body.round for closing in server.closings}
        lost = {each.body.round: each for other in histories for each in other.closings if each.body.round not in own}
        for number, closing in sorted(lost.items()):
            what = f"the log lacks the close of round {number}, which the server has signed: {closing.where}"
            proves = "the server has cut its log or gone back to an older copy: the signature is its own"
            yield Finding("server", server.log.path, what, proves)
