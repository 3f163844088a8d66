"""What happens in a study, as lines of a log: rounds and evaluations apart, and the steps of a session in words."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from fedseg.report.numbers import printed
from fedseg.runtime import events

WORTH_A_WORD = 0.1
STEPS = {
    "AdvertiseKeys": "step 1, joining",
    "ShareKeys": "step 2, exchanging keys",
    "MaskedInputCollection": "step 3, computing and sending",
    "ConsistencyCheck": "step 4, agreeing on the contributors",
    "Unmasking": "step 5, taking the masks off",
}
"""The phases of Bonawitz et al. 2017, which the code, the logs' records and the wire go by."""
_STEP = re.compile(rf"\b({'|'.join(STEPS)})\b")


def in_words(text: str) -> str:
    """A text with the protocol's names of phases put into words: that of an event, of an error, of the server."""
    return _STEP.sub(lambda found: STEPS[found[0]], text)


def _part(event: events.PhaseStarted | events.SiteLost | events.RoundAbandoned) -> str:
    return "evaluation" if event.evaluation else f"round {event.round}"


def _again(attempt: int) -> str:
    return f", attempt {attempt}" if attempt > 1 else ""


def _closed(event: events.RoundClosed) -> str:
    lost = "".join(f"; without {site}: {why}" for site, why in event.lost.items())
    names = ", ".join(event.contributors)
    return f"round {event.round} closed after {event.seconds:.0f} s with {names}{lost}"


def _started(event: events.RoundStarted) -> str:
    so_far = "" if event.closed is None else f"; {event.closed} of {event.rounds} are closed"
    return f"round {event.round}{_again(event.attempt)} begins{so_far}"


def _drowned(event: events.Encoded) -> str:
    if event.relative_error < WORTH_A_WORD:
        return ""
    return f": the plan's clip of {event.clip:g} is so far above it that rounding drowns it; tell the coordinator"


def _encoded(event: events.Encoded) -> str:
    shortened = f", brought down to the plan's clip {event.clip:g}" if event.norm > event.clip else ""
    return (
        f"round {event.round}: the update's norm is {event.norm:.3g}{shortened}; "
        f"rounding moves it by {event.relative_error:.1e} of that{_drowned(event)}"
    )


def _evaluated(event: events.Evaluated) -> str:
    sites = f"{len(event.contributors)} sites"
    if event.dice is None:
        return f"evaluation: none of {sites} has kept-back subjects"
    return f"evaluation: mean Dice {event.dice:.3f} over {event.subjects} subjects of {sites}"


LINES: dict[type, Callable[[Any], str]] = {
    events.Waiting: lambda event: f"waiting: {event.reason}",
    events.RoundStarted: _started,
    events.PhaseStarted: lambda event: f"{_part(event)}, {event.phase}: {', '.join(event.expected)}",
    events.SiteLost: lambda event: f"{_part(event)}: lost {event.site}: {event.why}",
    events.RoundClosed: _closed,
    events.RoundAbandoned: lambda event: f"{_part(event)}, attempt {event.attempt} abandoned: {event.why}",
    events.Charged: lambda event: (
        f"round {event.round} charged to the privacy ledger: epsilon {printed(event.epsilon)} of {event.budget:g}"
    ),
    events.Encoded: _encoded,
    events.Taken: lambda event: (
        f"round {event.round} closed without this site, which takes what it made on the server's word; "
        "fedseg audit verify compares it with the other parties' logs"
    ),
    events.EvaluationStarted: lambda event: (
        f"evaluation{_again(event.attempt)} begins: each site scores the model on its kept-back subjects"
    ),
    events.Evaluated: _evaluated,
    events.Note: lambda event: event.text,
}


def describe(event: events.Event) -> str | None:
    """An event as one line for a log, or None where it only moves a bar."""
    line = LINES.get(type(event))
    return in_words(line(event)) if line is not None else None
