"""What happens in a study, as values: a screen draws them, a log file keeps them, a test reads them.

None holds a patient's identifier.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Waiting:
    """Nothing moves until something happens."""

    reason: str


@dataclass(frozen=True)
class RoundStarted:
    """An attempt at a round begins.

    Attributes:
        round: Its number, which may be beyond `rounds`: a round without a sum, and an evaluation, have one too.
        rounds: How many the plan wants closed.
        attempt: 1 or 2.
        closed: How many are; None where a site cannot know, because some closed without it.
    """

    round: int
    rounds: int
    attempt: int
    closed: int | None = None


@dataclass(frozen=True)
class PhaseStarted:
    """A round, or an evaluation, enters a phase, in which these sites are asked."""

    round: int
    phase: str
    expected: tuple[str, ...]
    evaluation: bool = False


@dataclass(frozen=True)
class SiteLost:
    """A site missed the rest of a round, or of an evaluation."""

    round: int
    site: str
    why: str
    evaluation: bool = False


@dataclass(frozen=True)
class Training:
    """Local training goes on."""

    round: int
    step: int
    steps: int


@dataclass(frozen=True)
class Transfer:
    """Bytes go up or come down."""

    what: str
    done: int
    size: int


@dataclass(frozen=True)
class RoundClosed:
    """A round ended with a new model."""

    round: int
    rounds: int
    contributors: tuple[str, ...]
    lost: dict[str, str]
    seconds: float


@dataclass(frozen=True)
class RoundAbandoned:
    """An attempt at a round ended without a new model, or at an evaluation without a sum."""

    round: int
    attempt: int
    why: str
    evaluation: bool = False


@dataclass(frozen=True)
class Charged:
    """A round was charged to the site's privacy ledger, before its first gradient."""

    round: int
    epsilon: float
    budget: float


@dataclass(frozen=True)
class Encoded:
    """This site's update is in the ring. Both figures are its own: they stay on this machine.

    Attributes:
        round: The round.
        norm: L2 norm of the update.
        clip: The plan's bound on it.
        relative_error: Measured: what rounding has moved it by, L2 norm over its own.
    """

    round: int
    norm: float
    clip: float
    relative_error: float


@dataclass(frozen=True)
class Taken:
    """A round closed without this site, which takes its model, or which was best, on the server's word."""

    round: int


@dataclass(frozen=True)
class EvaluationStarted:
    """An attempt at an evaluation begins: sites score the model on their kept-back subjects."""

    round: int
    attempt: int


@dataclass(frozen=True)
class Scoring:
    """A site's kept-back scans are segmented and scored."""

    done: int
    scans: int


@dataclass(frozen=True)
class Evaluated:
    """An evaluation ended with a sum. All in it is published; `dice` is None where no site has kept-back subjects."""

    round: int
    contributors: tuple[str, ...]
    subjects: int
    dice: float | None


@dataclass(frozen=True)
class Note:
    """Something else worth a line."""

    text: str


Event = (
    Waiting
    | RoundStarted
    | PhaseStarted
    | SiteLost
    | Training
    | Transfer
    | RoundClosed
    | RoundAbandoned
    | Charged
    | Encoded
    | Taken
    | EvaluationStarted
    | Scoring
    | Evaluated
    | Note
)
Notify = Callable[[Event], None]
