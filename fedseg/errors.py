"""Every error that a user can meet: what is wrong, where, and what to do.

Library code raises these and never prints; `fedseg.cli.main` is the only place that shows one.
The exit codes are documented in the README.
"""

from __future__ import annotations

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_PAUSED = 3
EXIT_INTERRUPTED = 130


class FedsegError(Exception):
    """A failure that a person can act on.

    Args:
        what: One sentence: what is wrong.
        where: The file, line, flag, site or address it is about.
        hint: What to do about it.
    """

    exit_code = EXIT_FAILED

    def __init__(self, what: str, *, where: str | None = None, hint: str | None = None) -> None:
        """Keep the three parts apart, so that a screen can lay them out."""
        super().__init__(what)
        self.what = what
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        """All three parts on one line, for logs and tests."""
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text} ({self.hint})" if self.hint else text


class UsageError(FedsegError):
    """The command line was used wrongly."""

    exit_code = EXIT_USAGE


class PlanError(FedsegError):
    """A study plan that cannot be read, or that asks for something impossible."""


class PolicyError(FedsegError):
    """A plan asks for something that this hospital's policy does not accept."""


class DataError(FedsegError):
    """A scan, label map or table that cannot be used."""


class ModelError(FedsegError):
    """A model file that cannot be used."""


class StorageError(FedsegError):
    """A folder or disk that cannot hold what must be kept."""


class InviteError(FedsegError):
    """An invite that is mistyped, used, expired or for somebody else."""


class RosterError(FedsegError):
    """The sites of a study and their keys are not those that this site's operator confirmed, or cannot be right."""


class LinkError(FedsegError):
    """The server cannot be reached, or the two ends don't trust each other."""


class Unreachable(LinkError):
    """The server cannot be reached now; trying again may help."""


class LedgerError(FedsegError):
    """A privacy ledger that is missing, broken, locked or rolled back. Training stops: fail closed."""


class BudgetError(FedsegError):
    """Training on would exceed a privacy budget."""


class ProtocolError(FedsegError):
    """A message that the protocol does not allow at this point."""


class StaleSession(ProtocolError):
    """A message for a session that has moved on: ask again what to do."""


class SiteFault(ProtocolError):
    """One site broke the protocol.

    Args:
        site: The site's name.
        phase: The phase of secure aggregation, named as in Bonawitz et al. 2017.
        reason: What was wrong with its message.
    """

    def __init__(self, site: str, phase: str, reason: str) -> None:
        """Name the culprit, the phase and the reason."""
        super().__init__(f"site {site} at {phase}: {reason}")
        self.site = site
        self.phase = phase
        self.reason = reason


class BelowQuorum(FedsegError):
    """Too few sites for the round: the study pauses and loses nothing."""

    exit_code = EXIT_PAUSED


class Interrupted(FedsegError):
    """A person stopped the command; what was done is kept."""

    exit_code = EXIT_INTERRUPTED
