"""What one log says of sums that differ from an earlier one by single sites: over one model, or over test subjects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fedseg.runtime.audit_steps import Attempt, listed
from fedseg.store.audit_records import Confirmed, Reused


def problems(attempts: Sequence[Attempt], reused: Sequence[Reused]) -> Iterator[tuple[str, str]]:
    """Where and what: sums that a site may not confirm after those before, or only with a record that it did.

    Args:
        attempts: Of one log, as they were opened.
        reused: Its records.
    """
    for number, later in enumerate(attempts):
        if Confirmed in later.steps:
            for what in _after(later, _confirmed(attempts[:number], later), reused):
                yield later.where, f"{later.name}: {what}"


def _confirmed(attempts: Sequence[Attempt], later: Attempt) -> list[Attempt]:
    """Of each earlier round the attempt that was confirmed last: no attempt before it can have been unmasked."""
    earlier = (each for each in attempts if Confirmed in each.steps and each.header.round != later.header.round)
    return list({(each.header.round, *_use(each)): each for each in earlier}.values())


def _after(later: Attempt, earlier: Sequence[Attempt], reused: Sequence[Reused]) -> Iterator[str]:
    same = {each.header.round: each for each in earlier if _use(each) == _use(later)}
    others = [number for number, each in same.items() if each.u3 != later.u3]
    if later.header.evaluation and others:
        yield f"a second evaluation of the model of round {others[0]}, of other sites"
        return
    said = _said_of(later, earlier, reused)
    lacking = sorted({*others} - said) or ([] if said & same.keys() else sorted(same))
    if lacking:
        yield f"a second sum over the model of round {listed(map(str, lacking))}, without a record of it"
    if apart := sorted(_apart(later, earlier) - said):
        yield f"an evaluation of other sites than that of round {listed(map(str, apart))}, without a record of it"


def _apart(later: Attempt, earlier: Sequence[Attempt]) -> set[int]:
    """Evaluations of other models by other sites, where this is one."""
    both = [each for each in earlier if each.header.evaluation and later.header.evaluation]
    return {each.header.round for each in both if _use(each) != _use(later) and each.u3 != later.u3}


def _said_of(later: Attempt, earlier: Sequence[Attempt], reused: Sequence[Reused]) -> set[int]:
    """The earlier rounds that records of reuse name truly."""
    sum_of = later.header.round, later.header.model_hash.hex(), later.u3
    sums = {(each.header.round, each.u3) for each in earlier}
    told = [each for each in reused if (each.round, each.model, each.u3) == sum_of]
    return {each.earlier_round for each in told if (each.earlier_round, each.earlier_u3) in sums}


def _use(attempt: Attempt) -> tuple[bytes, bool]:
    """What a round does to which model: it trains it, or evaluates it."""
    return attempt.header.model_hash, attempt.header.evaluation
