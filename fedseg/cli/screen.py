"""What a person sees while a command runs: bars on a terminal, plain lines elsewhere, and a log file."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from fedseg.errors import StorageError
from fedseg.report.numbers import printed
from fedseg.runtime import events

T = TypeVar("T")

PLAIN_WIDTH = 110
WORTH_A_WORD = 0.1


def _console(*, stderr: bool) -> Console:
    """A console that is wide enough for tables where there is no terminal to ask."""
    console = Console(stderr=stderr, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    return console


out, err = _console(stderr=False), _console(stderr=True)


def _closed(event: events.RoundClosed) -> str:
    lost = "".join(f"; without {site}: {why}" for site, why in event.lost.items())
    names = ", ".join(event.contributors)
    return f"round {event.round} closed after {event.seconds:.0f} s with {names}{lost}"


def _started(event: events.RoundStarted) -> str:
    again = f", attempt {event.attempt}" if event.attempt > 1 else ""
    return f"round {event.round}{again} begins; {event.rounds} are to be closed in all"


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


def evaluated(event: events.Evaluated) -> str:
    """The outcome of an evaluation, in words."""
    sites = f"{len(event.contributors)} sites"
    if event.dice is None:
        return f"evaluation (round {event.round}): none of {sites} has kept-back subjects"
    return f"evaluation (round {event.round}): mean Dice {event.dice:.3f} over {event.subjects} subjects of {sites}"


LINES: dict[type, Callable[[Any], str]] = {
    events.Waiting: lambda event: f"waiting: {event.reason}",
    events.RoundStarted: _started,
    events.PhaseStarted: lambda event: f"round {event.round}: {event.phase} ({', '.join(event.expected)})",
    events.SiteLost: lambda event: f"round {event.round}: lost {event.site}: {event.why}",
    events.RoundClosed: _closed,
    events.RoundAbandoned: lambda event: f"round {event.round}, attempt {event.attempt} abandoned: {event.why}",
    events.Charged: lambda event: (
        f"round {event.round} charged to the privacy ledger: epsilon {printed(event.epsilon)} of {event.budget:g}"
    ),
    events.Encoded: _encoded,
    events.Taken: lambda event: (
        f"round {event.round} closed without this site, which takes what it made on the server's word; "
        "fedseg audit verify compares it with the other parties' logs"
    ),
    events.EvaluationStarted: lambda event: (
        f"round {event.round}: the model is evaluated on kept-back subjects"
        + (f" (attempt {event.attempt})" if event.attempt > 1 else "")
    ),
    events.Evaluated: evaluated,
    events.Note: lambda event: event.text,
}


def describe(event: events.Event) -> str | None:
    """An event as one line for a log, or None where it only moves a bar."""
    line = LINES.get(type(event))
    return line(event) if line is not None else None


class Screen:
    """Shows a study's events. Use it as a context manager; events may come from any thread.

    Args:
        log: File to append lines to, or None.
    """

    def __init__(self, log: Path | None) -> None:
        self._log = _file_log(log) if log is not None else None
        self._lock = threading.Lock()
        self._live = err.is_terminal
        self._last = ""
        self._tasks: dict[str, TaskID] = {}
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        self._progress = Progress(*columns, console=err, transient=True, disable=not self._live)

    def __enter__(self) -> Screen:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
        for handler in self._log.handlers if self._log is not None else ():
            handler.close()

    def __call__(self, event: events.Event) -> None:
        """Show an event."""
        with self._lock:
            line = describe(event)
            if line is not None and line != self._last:
                self._last = line
                self._print(line)
            self._move_bars(event)

    def pause(self, ask: Callable[[], T]) -> T:
        """Let `ask` have the terminal to itself."""
        self._progress.stop()
        try:
            return ask()
        finally:
            self._progress.start()

    def bar(self, what: str, done: int, of: int) -> None:
        """Move the bar called `what`; it goes away when it is full."""
        if not self._live:
            return
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=of)
        self._progress.update(self._tasks[what], completed=done, total=of)
        if done >= of:
            self._progress.remove_task(self._tasks.pop(what))

    def _print(self, line: str) -> None:
        if self._log is not None:
            self._log.info(line)
        if self._live:
            self._progress.console.print(line, markup=False)
        else:
            with suppress(BrokenPipeError):
                print(line, file=sys.stderr, flush=True)  # noqa: T201  # a plain log where there is no terminal

    def _move_bars(self, event: events.Event) -> None:
        match event:
            case events.Training():
                self.bar(f"round {event.round}: training", event.step, event.steps)
            case events.Scoring():
                self.bar("evaluating on this site's kept-back subjects", event.done, event.scans)
            case events.Transfer():
                self.bar(f"{event.what} (kB)", event.done // 1000, event.size // 1000)
            case events.RoundStarted():
                self.bar("rounds", min(event.round, event.rounds) - 1, event.rounds)
            case events.RoundClosed():
                self.bar("rounds", min(event.round, event.rounds), event.rounds)
            case _:
                pass


def _file_log(path: Path) -> logging.Logger:
    logger = logging.getLogger(f"fedseg.screen.{path}")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
        handler = logging.FileHandler(path)
    except OSError as error:
        hint = "name a folder that belongs to you"
        raise StorageError(f"the log cannot be written: {error.strerror}", where=str(path), hint=hint) from None
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    for target in (logger, logging.getLogger("fedseg")):
        target.handlers = [handler]
    logging.getLogger("fedseg").propagate = False
    return logger


@contextmanager
def stopping() -> Iterator[threading.Event]:
    """An event that Ctrl-C (or SIGTERM) sets; a second Ctrl-C ends the process at once."""
    stop = threading.Event()

    def ask(_signal: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        err.print("Stopping cleanly; press Ctrl-C once more to stop at once.")

    before: dict[int, Any] = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
