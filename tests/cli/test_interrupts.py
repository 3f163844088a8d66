"""Ctrl-C before a site takes part: on a real terminal, at the questions, and while scans are read."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from fedseg.cli import client
from fedseg.cli.screen import Screen, stopping
from fedseg.errors import Interrupted
from fedseg.imaging.quality import check as checks
from fedseg.runtime import events
from fedseg.runtime.site_folder import SiteFolder
from fedseg.runtime.study import StudyFolder
from tests.cli.conftest import Command, enrol, enrol_at_desk
from tests.system.world import ENVIRONMENT

LIMIT_S = 240.0
# Runs a command on a terminal of its own, to which it hands on what comes in by a pipe.
RELAY = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"


def at_terminal(*words: str | Path, home: Path, sign: str, typed: bytes) -> tuple[int, str]:
    """Run `fedseg` on a terminal and type something once a sign stands there; exit code, and all that stood there."""
    command = [sys.executable, "-c", RELAY, sys.executable, "-m", "fedseg", *map(str, words)]
    environment = {**ENVIRONMENT, "HOME": str(home), "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
    )
    assert process.stdin is not None
    assert process.stdout is not None
    over = threading.Timer(LIMIT_S, process.kill)
    over.start()
    said = b""
    try:
        while sign.encode() not in said and (piece := os.read(process.stdout.fileno(), 4096)):
            said += piece
        process.stdin.write(typed)
        process.stdin.flush()
        while piece := os.read(process.stdout.fileno(), 4096):
            said += piece
        return process.wait(), re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said.decode(errors="replace"))
    finally:
        over.cancel()
        process.kill()
        process.communicate()


@pytest.fixture
def site(study: StudyFolder, data: Path, tmp_path: Path) -> SiteFolder:
    """Site a, enrolled beside the others; nothing is agreed to or confirmed."""
    enrol(study, "b", "c")
    return enrol_at_desk(study, "a", SiteFolder(tmp_path / "state"), data=data, ledger=tmp_path / "ledger")


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(
    ("words", "sign", "agreed"), [((), "Take part?", False), (("--yes",), "Enter alone means no)", True)]
)
def test_one_ctrl_c_ends_a_question(
    words: tuple[str, ...], sign: str, agreed: bool, site: SiteFolder, tmp_path: Path
) -> None:
    code, said = at_terminal(
        "client", "join", "--state", site.root, *words, home=tmp_path / "home", sign=sign, typed=b"\x03"
    )
    assert code == 130, said
    assert "Stopped: stopped before" in said
    assert f"go on with: fedseg client join --state {site.root}" in said.replace("\r\n", "")
    assert "Stopping cleanly" not in said
    assert (site.manifest is not None, site.roster) == (agreed, None)
    # The answer begins a line of its own.
    assert any(line.startswith("Stopped:") for line in said.replace("\r", "\n").splitlines()), said


@pytest.mark.usefixtures("server")
def test_one_ctrl_c_ends_the_check_of_the_scans(
    fedseg: Command, site: SiteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, read = checks._check_case, []

    def interrupted(dataset: Any, case: Any, *rest: Any) -> Any:
        read.append(case)
        os.kill(os.getpid(), signal.SIGINT)
        return real(dataset, case, *rest)

    monkeypatch.setattr(checks, "_check_case", interrupted)
    answer = fedseg("client", "join", "--state", site.root, "--yes")
    answer.says(130, "stopped before this site went on: nothing was sent", "go on with: fedseg client join --state")
    assert "Stopping cleanly" not in answer.err
    assert len(read) == 1
    assert site.manifest is None


def test_what_was_stopped_earlier_does_not_begin() -> None:
    with stopping() as stop:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(Interrupted), stop.at_once():
            pytest.fail("it began")
        assert not stop.ends_at_once


def test_work_that_looks_at_it_comes_to_a_clean_end(capsys: pytest.CaptureFixture[str]) -> None:
    with stopping() as stop:
        with stop.at_once():
            pass
        signal.raise_signal(signal.SIGTERM)
        assert stop.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert "Stopping cleanly; press Ctrl-C once more" in capsys.readouterr().err


def test_a_stopped_terminal_leaves_no_bar_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    from fedseg.cli import screen as screens

    monkeypatch.setattr(screens.err, "_force_terminal", True)
    with Screen(None) as screen:
        screen(events.RoundStarted(4, 3, 1, 2))
        assert _bars(screen) == {"rounds": (2, 3)}
        screen(events.EvaluationStarted(5, 1))
        assert _bars(screen) == {}
        screen(events.RoundStarted(2, 3, 1))
        screen(events.RoundClosed(2, 3, ("a",), {}, 1.0))
        assert _bars(screen) == {"rounds": (2, 3)}
        screen(events.RoundClosed(3, 3, ("a",), {}, 1.0))
        assert _bars(screen) == {}


def _bars(screen: Screen) -> dict[str, tuple[float, float | None]]:
    return {task.description: (task.completed, task.total) for task in screen._progress.tasks}


@pytest.mark.usefixtures("server")
def test_the_last_line_comes_after_the_bars(
    fedseg: Command, site: SiteFolder, study: StudyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    leave = Screen.__exit__

    def trained(*_: object) -> int:
        order.append("trained")
        return 2

    def left(screen: Screen, *words: object) -> None:
        order.append("bars off")
        leave(screen, *words)

    monkeypatch.setattr(client, "_take_part", trained)
    monkeypatch.setattr(client, "_print_end", lambda _folder, what: order.append(what))
    monkeypatch.setattr(Screen, "__exit__", left)
    site.approve(study.roster().fingerprint)
    assert fedseg("client", "join", "--state", site.root, "--yes").code == 0
    assert order[-3:] == ["trained", "bars off", "The study is complete: 2 of 2 rounds closed."]
