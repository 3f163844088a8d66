"""What a person sees while a command runs: bars on a terminal, plain lines elsewhere, and a log file."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from fedseg.cli.event_lines import describe
from fedseg.errors import Interrupted, StorageError
from fedseg.runtime import events

T = TypeVar("T")

PLAIN_WIDTH = 110
ROUNDS = "rounds"
STOPPED = "stopped before this site went on: nothing was sent"
COUNTED = 100
"""Parts with more steps than that are told in per cent."""
FIRST_LINE_S, MOST_BETWEEN_S = 10.0, 600.0
"""Where there is no terminal, a long part says how far it is: first after so long, then rarer and rarer."""


def _console(*, stderr: bool) -> Console:
    """A console that is wide enough for tables where there is no terminal to ask.

    `:brain:` may be the name of a scan or a site: it is printed as it is.
    """
    console = Console(stderr=stderr, highlight=False, soft_wrap=True, emoji=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    return console


out, err = _console(stderr=False), _console(stderr=True)


@dataclass
class _Pace:
    """When the next line on a part's progress is due, where lines stand for a bar."""

    began: float
    due: float = FIRST_LINE_S
    spoke: bool = False

    def speaks(self, at: float, *, last: bool) -> bool:
        """Whether a line is due; the last one is where there was one before."""
        passed = at - self.began
        if last or passed < self.due:
            return last and self.spoke
        self.due = passed + min(passed, MOST_BETWEEN_S)
        self.spoke = True
        return True


class Screen:
    """Shows a study's events. Use it as a context manager; events may come from any thread.

    Args:
        log: File to append lines to, or None.
        clock: Seconds; for lines of progress where there is no terminal.
    """

    def __init__(self, log: Path | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._paces: dict[str, _Pace] = {}
        self._log = _file_log(log) if log is not None else None
        self._lock = threading.Lock()
        self._live = err.is_terminal
        self._last = ""
        self._closed = 0
        self._tasks: dict[str, TaskID] = {}
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
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
        """Move the bar called `what`; it goes away when it is full. Without a terminal: a line now and then."""
        if not self._live:
            self._say_how_far(what, done, of)
            return
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=of)
        self._progress.update(self._tasks[what], completed=done, total=of)
        if done >= of:
            self._progress.remove_task(self._tasks.pop(what))

    def _say_how_far(self, what: str, done: int, of: int) -> None:
        at = self._clock()
        pace = self._paces.setdefault(what, _Pace(at))
        if pace.speaks(at, last=done >= of):
            _print_plainly(f"{what}: {done} of {of}" if of <= COUNTED else f"{what}: {done / of:.0%}")
        if done >= of:
            del self._paces[what]

    def _print(self, line: str) -> None:
        if self._log is not None:
            self._log.info(line)
        if self._live:
            self._progress.console.print(line, markup=False)
        else:
            _print_plainly(line)

    def _move_bars(self, event: events.Event) -> None:
        match event:
            case events.Training():
                self.bar(f"round {event.round}: training", event.step, event.steps)
            case events.Scoring():
                self.bar("evaluating on this site's kept-back subjects", event.done, event.scans)
            case events.Transfer():
                self.bar(f"{event.what} (kB)", event.done // 1000, event.size // 1000)
            case _:
                self._count_rounds(event)

    def _count_rounds(self, event: events.Event) -> None:
        """On a bar alone: lines name the round anyway. An evaluation comes when no other round does."""
        if not self._live:
            return
        match event:
            case events.RoundStarted():
                # A number is no count: evaluations, and rounds that brought no sum, have numbers too.
                self._closed = min(event.round, event.rounds) - 1 if event.closed is None else event.closed
                self.bar(ROUNDS, self._closed, event.rounds)
            case events.RoundClosed():
                self._closed += 1
                self.bar(ROUNDS, self._closed, event.rounds)
            case events.EvaluationStarted():
                self._fill(ROUNDS)
            case _:
                pass

    def _fill(self, what: str) -> None:
        """What a bar was about is over, if there is one."""
        if what in self._tasks:
            total = int(self._progress.tasks[self._progress.task_ids.index(self._tasks[what])].total or 0)
            self.bar(what, total, total)


def _print_plainly(line: str) -> None:
    with suppress(BrokenPipeError):
        print(line, file=sys.stderr, flush=True)  # noqa: T201  # a plain log where there is no terminal


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


class Stop(threading.Event):
    """Set by the first Ctrl-C: whatever looks at it comes to a clean end. What never looks stands in `at_once`."""

    def __init__(self) -> None:
        super().__init__()
        self.ends_at_once = False

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """End what is inside at the first Ctrl-C: a question, or work of which nothing has to be kept.

        Raises:
            Interrupted: Then, or before it begins where that was asked for earlier.
        """
        self.ends_at_once = True
        try:
            if self.is_set():
                raise Interrupted(STOPPED)
            yield
        except KeyboardInterrupt:
            raise Interrupted(STOPPED) from None
        finally:
            self.ends_at_once = False


@contextmanager
def stopping() -> Iterator[Stop]:
    """An event that Ctrl-C (or SIGTERM) sets; a second Ctrl-C ends the process at once."""
    stop = Stop()

    def ask(_signal: int, _frame: FrameType | None) -> None:
        again = stop.is_set()
        stop.set()
        if again or stop.ends_at_once:
            raise KeyboardInterrupt
        err.print("Stopping cleanly; press Ctrl-C once more to stop at once.")

    before: dict[int, Any] = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
