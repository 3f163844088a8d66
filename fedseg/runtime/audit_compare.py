"""Several parties' logs held against each other: sites are each other's witnesses, and the server's.

A signature that somebody else has kept can't be taken back. So where a party's own log says something else than its
signature in another's, or nothing, the finding names that party. Where logs differ in what nobody signed for the
others, it says that one of them is false, and no more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import pairwise
from typing import TypeVar

from fedseg.runtime import audit_gaps
from fedseg.runtime.audit_closings import Closing, signed_part
from fedseg.runtime.audit_evidence import Finding
from fedseg.runtime.audit_history import History
from fedseg.runtime.audit_ledgers import charge_of
from fedseg.runtime.audit_steps import Attempt, Vote, listed
from fedseg.secagg.session import SessionHeader
from fedseg.store.audit_records import Believed, Closed, Evaluated, Unmask

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)

TOLD = (
    "the server told these parties different things, or one of them logged what it was not told; "
    "the logs alone do not show which"
)


def compare(histories: Sequence[History]) -> list[Finding]:
    """What the logs of different parties, one each, say against each other."""
    checks: tuple[Callable[[Sequence[History]], Iterator[Finding]], ...] = (
        _rosters,
        _attempts,
        _two_votes,
        _two_inputs,
        _two_unmaskings,
        _two_closes,
        _different_closes,
        _broken_chain,
        _fetched_others,
        _believed_others,
        _other_versions,
        _other_rounds,
        _two_heads,
        audit_gaps.lost_heads,
        audit_gaps.lost_steps,
        audit_gaps.lost_closes,
    )
    return [finding for check in checks for finding in check(histories)]


def _rosters(histories: Sequence[History]) -> Iterator[Finding]:
    pinned = [each for each in histories if each.rosters]
    for other in pinned[1:]:
        first = pinned[0]
        if not {each.fingerprint for each in first.rosters} & {each.fingerprint for each in other.rosters}:
            changes = ", ".join(first.rosters[-1].differences(other.rosters[-1]))
            what = f"{first.party} and {other.party} have pinned different rosters; in the second, {changes}"
            proves = "one of them was shown a roster that is not the other's: compare the words of both by telephone"
            yield Finding("", f"{first.log.path}; {other.log.path}", what, proves)


def _attempts(histories: Sequence[History]) -> Iterator[Finding]:
    by_place: dict[tuple[int, int], dict[str, Attempt]] = defaultdict(dict)
    for history in histories:
        for attempt in history.attempts.values():
            by_place[attempt.place].setdefault(history.party, attempt)
    for place in sorted(by_place):
        yield from _attempt(by_place[place])


def _attempt(logged: Mapping[str, Attempt]) -> Iterator[Finding]:
    """One attempt in all logs: the first thing in which they differ, for what follows differs with it."""
    where = next(iter(logged.values())).name
    headers = _groups({party: attempt.header for party, attempt in logged.items()})
    if len(headers) > 1:
        yield Finding("", where, _other_header(headers), TOLD)
        return
    views: tuple[tuple[str, Callable[[Attempt], Hashable | None]], ...] = (
        ("lists U2 of those who shared keys", lambda attempt: attempt.u2),
        ("sessions (sid): the keys that were relayed differ", lambda attempt: attempt.sid),
        ("lists U3 of contributors", lambda attempt: attempt.u3),
    )
    for what, view in views:
        groups = _groups({party: view(attempt) for party, attempt in logged.items() if view(attempt) is not None})
        if len(groups) > 1:
            yield Finding("", where, f"the logs have different {what}: {_shown(groups)}", TOLD)
            return


def _other_header(groups: Mapping[SessionHeader, list[str]]) -> str:
    first, second = list(groups)[:2]
    names = [each.name for each in fields(first) if getattr(first, each.name) != getattr(second, each.name)]
    told = "; ".join(f"{_short(getattr(header, names[0]))} by {listed(who)}" for header, who in groups.items())
    return f"the logs have different headers; {names[0].replace('_', ' ')}: {told}"


def _two_votes(histories: Sequence[History]) -> Iterator[Finding]:
    votes = [vote for history in histories for vote in history.votes]
    for one, other in _two_of(votes, lambda vote: (vote.key, vote.sid), lambda vote: vote.sets):
        what = (
            f"round {one.round}: {one.site} signed step 4 of one session ({one.sid[:16]}) over two outcomes, "
            f"{_outcome(one)} and {_outcome(other)}"
        )
        proves = f"site {one.site} broke the protocol: both signatures are its own, and it may give only one"
        yield Finding(f"site {one.site}", f"{one.where}; {other.where}", what, proves)


def _outcome(vote: Vote) -> str:
    u2, u3 = vote.sets
    return f"U3 = {listed(u3)} of U2 = {listed(u2)}"


def _two_inputs(histories: Sequence[History]) -> Iterator[Finding]:
    inputs = [each for history in histories for each in history.contributions]
    for one, other in _two_of(inputs, lambda each: (each.key, each.sid), lambda each: each.digest):
        what = (
            f"round {one.round}: {one.site} signed two inputs to one session ({one.sid[:16]}), "
            f"{one.digest[:16]} and {other.digest[:16]}"
        )
        proves = f"site {one.site} broke the protocol: it masked twice, or logged another input than it sent"
        yield Finding(f"site {one.site}", f"{one.where}; {other.where}", what, proves)


def _two_unmaskings(histories: Sequence[History]) -> Iterator[Finding]:
    """In one log this is found by itself; here one log has one attempt, and another the other."""
    rounds: dict[int, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for history in histories:
        for attempt in history.attempts.values():
            if Unmask in attempt.steps:
                rounds[attempt.header.round][attempt.header.attempt].append(history.party)
    for number, attempts in sorted(rounds.items()):
        parties = [set(each) for each in attempts.values()]
        if not set.intersection(*parties):
            told = "; ".join(f"attempt {attempt} by {listed(who)}" for attempt, who in sorted(attempts.items()))
            proves = "the server asked for the shares of two sums over one update, or one of these logs is false"
            yield Finding("", f"round {number}", f"step 5 was reached in two attempts: {told}", proves)


def _two_closes(histories: Sequence[History]) -> Iterator[Finding]:
    closings = [closing for history in histories for closing in history.closings]
    for one, other in _two_of(closings, lambda each: (each.roster.server_key, each.body.round), signed_part):
        what = f"round {one.body.round}: the server signed two closes of one round: {_differing(one, other)}"
        proves = "the server lied: it published two versions of one round, and both signatures are its own"
        yield Finding("server", f"{one.where}; {other.where}", what, proves)


def _different_closes(histories: Sequence[History]) -> Iterator[Finding]:
    """What a closing says beside what the server signed follows from it: two logs can't differ in good faith."""
    closings = [(history.party, closing) for history in histories for closing in history.closings]
    for number, given in sorted(_by(closings, lambda each: each[1].body.round).items()):
        for (first, one), (second, other) in pairwise(given):
            if one.roster.server_key != other.roster.server_key:
                what = f"{first} and {second} have it closed under different keys of the server"
                yield Finding("", f"round {number}", what, TOLD)
            elif signed_part(one) == signed_part(other) and (names := _unsigned_differences(one, other)):
                what = f"{first} and {second} have the same sum, but another {' and '.join(names)} to it"
                proves = "one of the two logs is false, or was written by other software: these follow from the sum"
                yield Finding("", f"round {number}", what, proves)


def _broken_chain(histories: Sequence[History]) -> Iterator[Finding]:
    """Model to model over rounds that no single log has both of."""
    together = {(one.body.round, two.body.round) for each in histories for one, two in pairwise(each.closings)}
    rounds = _by((closing for each in histories for closing in each.closings), lambda closing: closing.body.round)
    for number in sorted(rounds):
        if number + 1 not in rounds or (number, number + 1) in together:
            continue
        ended, begun = rounds[number][0], rounds[number + 1][0]
        if ended.body.next_model != begun.body.base_model:
            what = (
                f"round {number} ended with model {ended.body.next_model[:16]} ({ended.where}), the next began with "
                f"{begun.body.base_model[:16]} ({begun.where})"
            )
            yield Finding("", f"round {number + 1}", what, TOLD)


def _fetched_others(histories: Sequence[History]) -> Iterator[Finding]:
    """Models that a site took on the server's word, and that no round made."""
    closings = {closing.body.round: closing for each in histories for closing in each.closings}
    for history in histories:
        for taken in history.fetched:
            made = closings.get(taken.round)
            known = _has_server(histories) if made is None else made.body.next_model != taken.model
            if not known:
                continue
            ended = f"ended with {made.body.next_model[:16]} ({made.where})" if made else "is not in the server's log"
            what = f"{history.party} was given model {taken.model[:16]} as that of round {taken.round}, which {ended}"
            yield Finding("", history.log.path, what, TOLD)


def _believed_others(histories: Sequence[History]) -> Iterator[Finding]:
    """Best models that a site took on the server's word, and that no round has scored so."""
    if _has_server(histories):
        for history, taken in _unscored(histories):
            what = (
                f"{history.party} was told that model {taken.model[:16]} was the best so far, with {taken.score:.3f}; "
                "no round in the server's log has scored it so"
            )
            yield Finding("", history.log.path, what, TOLD)


def _other_versions(histories: Sequence[History]) -> Iterator[Finding]:
    """A plan's hash covers what it extends, so two logs can't differ in good faith."""
    told = [(history, version) for history in histories for version in history.extended.values()]
    for given in _by(told, lambda each: each[1].plan_hash).values():
        for (first, one), (second, other) in pairwise(given):
            if one != other:
                what = (
                    f"{first.party} and {second.party} have plan {one.plan_hash[:16]} go on from others: "
                    f"{one.parent[:16]} after round {one.last_round}, {other.parent[:16]} after round "
                    f"{other.last_round}"
                )
                proves = "one of the two logs is false: the hash of a plan covers what it extends"
                yield Finding("", f"{first.log.path}; {second.log.path}", what, proves)


def _other_rounds(histories: Sequence[History]) -> Iterator[Finding]:
    """A plan's hash covers its number of rounds too."""
    told = [(history, plan, rounds) for history in histories for plan, rounds in history.planned.items()]
    for given in _by(told, lambda each: each[1]).values():
        for (first, plan, one), (second, _, other) in pairwise(given):
            if one != other:
                what = f"{first.party} has {one} rounds in plan {plan[:16]}, {second.party} has {other}"
                proves = "one of the two logs is false: the hash of a plan covers its number of rounds"
                yield Finding("", f"{first.log.path}; {second.log.path}", what, proves)


def _two_heads(histories: Sequence[History]) -> Iterator[Finding]:
    """A ledger charges each attempt once: two heads for one are two ledgers, or one that was set back."""
    heads = [(history, head) for history in histories for head in history.countersigned]
    for (first, one), (second, other) in _two_of(heads, lambda each: charge_of(each[1]), lambda each: each[1].head):
        what = (
            f"the server countersigned two heads of the ledger of {one.site} for one charge (round {one.round}, "
            f"attempt {one.attempt}): {one.head[:16]} and {other.head[:16]}"
        )
        proves = f"the ledger of {one.site} was set back or copied, and the server let it pass: it signed both itself"
        yield Finding("server", f"{first.log.path}; {second.log.path}", what, proves)


def _has_server(histories: Sequence[History]) -> bool:
    """Whether the server's own log is here: what it lacks, it has not closed."""
    return any(each.is_server and not each.log.broken for each in histories)


def _unscored(histories: Sequence[History]) -> Iterator[tuple[History, Believed]]:
    closed = [closing.body for each in histories for closing in each.closings]
    scored = {(body.base_model, body.score) for body in closed if isinstance(body, Closed)}
    for history in histories:
        yield from ((history, taken) for taken in history.believed if (taken.model, taken.score) not in scored)


def unproven(histories: Sequence[History]) -> Iterator[str]:
    """What sites took on the server's word, where no log here shows the round that would bear it out."""
    if _has_server(histories):
        return
    closings = {closing.body.round for each in histories for closing in each.closings}
    for history in histories:
        for taken in history.fetched:
            if taken.round not in closings:
                yield (
                    f"{history.party} took model {taken.model[:16]}, said to be that of round {taken.round}, on the "
                    "server's word: no log here shows the sum that made it"
                )
    for history, best in _unscored(histories):
        yield (
            f"{history.party} took model {best.model[:16]} for the best so far on the server's word: no log here shows "
            "the round that scored it"
        )


def _differing(one: Closing, other: Closing) -> str:
    """The first thing that the server signed differently."""
    names = ("contributors", "sum", "next_model", "session")
    name = next(name for name in names if getattr(one.body, name) != getattr(other.body, name))
    first, second = getattr(one.body, name), getattr(other.body, name)
    return f"{name.replace('_', ' ')} {_short(first)} and {_short(second)}"


def _unsigned_differences(one: Closing, other: Closing) -> list[str]:
    first, second = one.body, other.body
    if isinstance(first, Evaluated) != isinstance(second, Evaluated):
        return ["kind"]
    names = ("released",) if isinstance(first, Evaluated) else ("base_model", "weight", "score", "rolled_back")
    return [name.replace("_", " ") for name in names if getattr(first, name) != getattr(second, name)]


def _short(value: object) -> str:
    if isinstance(value, tuple):
        return listed(value)
    return (value.hex() if isinstance(value, bytes) else str(value))[:16]


def _groups(values: Mapping[str, K]) -> dict[K, list[str]]:
    found: dict[K, list[str]] = defaultdict(list)
    for party, value in values.items():
        found[value].append(party)
    return found


def _shown(groups: Mapping[Hashable, list[str]]) -> str:
    return "; ".join(f"{_short(value)} by {listed(parties)}" for value, parties in groups.items())


def _two_of(items: Iterable[T], key: Callable[[T], K], said: Callable[[T], Hashable]) -> Iterator[tuple[T, T]]:
    """Of what should be said once for each key: the first two that say different things."""
    for given in _by(items, key).values():
        versions = list({said(each): each for each in given}.values())
        if len(versions) > 1:
            yield versions[0], versions[1]


def _by(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    found: dict[K, list[T]] = defaultdict(list)
    for item in items:
        found[key(item)].append(item)
    return found
