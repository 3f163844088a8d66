"""The audit of a study: who contributed to each round, under which roster, model and thresholds, and who says so.

Each party's log is judged by itself (`audit_history`), then against the others' (`audit_compare`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from fedseg.errors import UsageError
from fedseg.runtime.audit_closings import Closing, signed_part
from fedseg.runtime.audit_compare import compare, unproven
from fedseg.runtime.audit_evidence import Finding, Log, load
from fedseg.runtime.audit_history import History
from fedseg.runtime.audit_steps import Attempt, listed
from fedseg.store.audit_records import Closed, Reused, Unmask

__all__ = ["LIMITS", "Audit", "Finding", "Log", "Party", "Round", "Witness", "load", "verify"]

LIMITS = (
    "lines cut off at the end of a log, where no other log here reaches beyond the cut",
    "a story that the server and every site named in it have agreed to tell",
    "what a site trained on, or whether it trained as the plan says: only that it signed the input it gave",
)
"""What an audit without a finding does not show."""


@dataclass(frozen=True)
class Party:
    """One log that was looked at.

    Attributes:
        name: "server" or "site NAME".
        key: The Ed25519 key that signs it, in hex.
        path: The file.
        records: How many are its own.
        until: When the last was written, by its own clock; empty where that is no time.
        broken: Whether something stands in it that its party did not write.
    """

    name: str
    key: str
    path: str
    records: int
    until: str
    broken: bool


@dataclass(frozen=True)
class Witness:
    """A party that confirms who contributed to a round.

    Attributes:
        party: "server" or "site NAME".
        signed: Its signature over the contributors is in a log (the server's of the close, a site's of step 4).
        logged: Its own log, which is here, has the round's sum and next model.
    """

    party: str
    signed: bool
    logged: bool


@dataclass(frozen=True)
class Round:
    """A closed round.

    Attributes:
        round: Its number.
        attempt: The attempt that made it; None, like c, t and m, where no log here took part in it.
        contributors: U3.
        roster: The fingerprint, in hex.
        base_model: Where it started.
        next_model: Where it ended.
        n: Sites in the roster.
        c: Colluding sites assumed.
        t: Shares that reconstruct; 0 in plain mode.
        m: The fewest contributors.
        weight: The total weight.
        sum: SHA-256 of the sum's little-endian bytes.
        relative_error: The expected relative L2 error of the sum's rounding.
        score: The mean Dice of the base model, where the round carried it.
        rolled_back: Whether the next model is an earlier one.
        evaluation: Whether it measured the model, which stays as it is; its weight is how many contributed.
        witnesses: Who confirms it.
    """

    round: int
    attempt: int | None
    contributors: tuple[str, ...]
    roster: str
    base_model: str
    next_model: str
    n: int
    c: int | None
    t: int | None
    m: int | None
    weight: int
    sum: str
    relative_error: float | None
    score: float | None
    rolled_back: bool
    evaluation: bool
    witnesses: tuple[Witness, ...]


@dataclass(frozen=True)
class Audit:
    """What the logs show.

    Attributes:
        study: The study's identifier.
        parties: Whose logs were looked at.
        absent: Whose could be asked for.
        rounds: Closed rounds, in order; one that was closed in two versions (a finding says so) is there twice.
        findings: What is wrong; empty where nothing contradicts.
        notes: What is not wrong, but worth saying.
    """

    study: str
    parties: tuple[Party, ...]
    absent: tuple[str, ...]
    rounds: tuple[Round, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]


def verify(logs: Sequence[Log]) -> Audit:
    """Judge logs by themselves and against each other. Those of another study than the first are left out.

    Raises:
        UsageError: There is no log.
    """
    if not logs:
        raise UsageError("there is no audit log to verify")
    study = logs[0].begin.study
    findings = list(_strangers(logs, study))
    kept = []
    ours = sorted((log for log in logs if log.begin.study == study), key=_who)
    for _, copies in groupby(ours, _who):
        log, contradictions = _newest(list(copies))
        kept.append(log)
        findings += contradictions
    histories = [History(log) for log in kept]
    findings += [finding for history in histories for finding in history.findings]
    findings += compare(histories)
    return Audit(
        study=study,
        parties=tuple(_party(log) for log in kept),
        absent=_absent(histories),
        rounds=tuple(_rounds(histories)),
        findings=tuple(dict.fromkeys(findings)),
        notes=tuple(_notes(histories)),
    )


# Which logs.


def _who(log: Log) -> tuple[bool, str]:
    return log.begin.role != "server", log.begin.party


def _party(log: Log) -> Party:
    return Party(log.party, log.begin.key, log.path, len(log.hashes), log.until, log.broken)


def _strangers(logs: Sequence[Log], study: str) -> Iterator[Finding]:
    for log in logs:
        if log.begin.study != study:
            what = f"this log is of study {log.begin.study}, the first one of {study}: it was left out"
            yield Finding(log.party, log.path, what, "nothing: logs of different studies cannot contradict each other")


def _newest(copies: Sequence[Log]) -> tuple[Log, list[Finding]]:
    """Of several logs in one party's name the longest; the others must be older copies of it."""
    longest = max(copies, key=lambda log: len(log.hashes))
    findings = []
    for log in copies:
        if log.begin.key != longest.begin.key:
            what = f"another log in this name is signed with another key: {longest.path}"
            proves = "one of the two is not this party's, or it began anew: only the roster's key can speak for it"
            findings.append(Finding(log.party, log.path, what, proves))
        elif log.hashes != longest.hashes[: len(log.hashes)]:
            pairs = zip(log.hashes, longest.hashes, strict=False)
            line = next(number for number, (one, other) in enumerate(pairs, 1) if one != other)
            what = f"it has signed two different histories: from line {line} on, this one and {longest.path}"
            proves = f"{log.party} has rewritten its log, or went on twice from one state: it signed both itself"
            findings.append(Finding(log.party, log.path, what, proves))
    return longest, findings


def _absent(histories: Sequence[History]) -> tuple[str, ...]:
    rosters = [history.rosters[-1] for history in histories if history.rosters]
    named = {f"site {site}" for roster in rosters for site in roster.sites} | ({"server"} if rosters else set())
    return tuple(sorted(named - {history.party for history in histories}))


# Rounds.


def _rounds(histories: Sequence[History]) -> Iterator[Round]:
    closings = sorted((each for history in histories for each in history.closings), key=lambda each: each.body.round)
    for _, given in groupby(closings, lambda each: each.body.round):
        for version in {signed_part(each): each for each in given}.values():
            yield _round(version, histories)


def _round(closing: Closing, histories: Sequence[History]) -> Round:
    body = closing.body
    attempt = _attempt(body.session, histories)
    limits = attempt.header.thresholds if attempt else None
    trained = body if isinstance(body, Closed) else None
    return Round(
        round=body.round,
        attempt=attempt.header.attempt if attempt else None,
        contributors=body.contributors,
        roster=closing.roster.fingerprint.hex(),
        base_model=body.base_model,
        next_model=body.next_model,
        n=len(closing.roster.sites),
        c=limits.c if limits else None,
        t=limits.t if limits else None,
        m=limits.m if limits else None,
        weight=trained.weight if trained else len(body.contributors),
        sum=body.sum,
        relative_error=trained.relative_error if trained else None,
        score=trained.score if trained else None,
        rolled_back=trained is not None and trained.rolled_back,
        evaluation=trained is None,
        witnesses=tuple(_witnesses(closing, histories)),
    )


def _attempt(sid: str, histories: Sequence[History]) -> Attempt | None:
    found = (history.attempt_of(sid) for history in histories)
    return next((attempt for attempt in found if attempt is not None), None)


def _witnesses(closing: Closing, histories: Sequence[History]) -> Iterator[Witness]:
    body, keys = closing.body, closing.roster.keys
    voted = {
        vote.site
        for history in histories
        for vote in history.votes
        if vote.sid == body.session and vote.sets[1] == body.contributors and vote.key == keys.get(vote.site)
    }
    logged = {history.party for history in histories for each in history.closings if each.body == body}
    yield Witness("server", signed=True, logged="server" in logged)
    for site in closing.roster.sites:
        witness = Witness(f"site {site}", signed=site in voted, logged=f"site {site}" in logged)
        if witness.signed or witness.logged:
            yield witness


# Notes.


def _notes(histories: Sequence[History]) -> Iterator[str]:
    for history in histories:
        yield from history.notes
        if history.log.unfinished:
            yield (
                f"{history.log.path}: its last line has no end; it is being written, or a crash has cut it short: "
                "it was left out"
            )
    yield from unproven(histories)
    yield from _reuses(histories)
    yield from _unpublished(histories)


def _reuses(histories: Sequence[History]) -> Iterator[str]:
    told: dict[Reused, list[str]] = {}
    for history in histories:
        for reused in dict.fromkeys(history.reused):
            told.setdefault(reused, []).append(history.party)
    attempts = [attempt for history in histories for attempt in history.attempts.values()]
    evaluations = {attempt.header.round for attempt in attempts if attempt.header.evaluation}
    for reused, parties in sorted(told.items(), key=lambda each: each[0].round):
        apart = sorted(set(reused.u3) ^ set(reused.earlier_u3))
        scores = reused.round in evaluations
        what = "scores" if scores else "updates"
        differ = f"what the two sums differ by are {what} of {listed(apart)}" if apart else "of the same contributors"
        second = "an evaluation after that" if scores else "a second sum over the model"
        yield (
            f"round {reused.round}: {second} of round {reused.earlier_round}, confirmed by {listed(parties)}: {differ}"
        )


def _unpublished(histories: Sequence[History]) -> Iterator[str]:
    published = {closing.body.session for history in histories for closing in history.closings}
    asked = {
        attempt.sid: attempt.name
        for history in histories
        for attempt in history.attempts.values()
        if Unmask in attempt.steps and attempt.sid not in published
    }
    for name in asked.values():
        yield f"{name}: shares were asked for, so the server may know the sum; no log here has it published"
