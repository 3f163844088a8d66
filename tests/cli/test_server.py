"""`fedseg server start`: how it ends when nobody comes, and when it is stopped."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedseg.federation.vector import model_hash
from fedseg.plan.study import parse_plan
from fedseg.runtime.study import StudyFolder
from fedseg.store.study_db import RoundRow
from tests.cli.conftest import Command, enrol
from tests.runtime.toy import FIRST, INITIAL
from tests.system.world import ENVIRONMENT, OFF, PLAN, SECURE, free_port, until


@pytest.fixture
def study(tmp_path: Path) -> StudyFolder:
    """A study without torch whose sites get one second for each phase."""
    text = PLAN.replace("PRIVACY", OFF).replace("AGGREGATION", SECURE)
    text = text.replace("deadline_s: 30", "deadline_s: 1")
    address = f"localhost:{free_port()}"
    document = parse_plan(text, "toy.yaml")
    return StudyFolder.create(tmp_path / "study", document, FIRST, address=address, now=time.time())


def test_below_quorum_pauses_with_exit_code_3(fedseg: Command, study: StudyFolder) -> None:
    study.db.save_round(
        RoundRow(1, 1, "abandoned", model_hash(INITIAL), (), {"*": "server stopped"}, None, 0.0, 1.0, 0)
    )
    enrol(study, "a", "b", "c")
    answer = fedseg("server", "start", study.root, "--bind", "127.0.0.1:0")
    answer.says(
        3,
        "the study is paused: fewer than 3 sites could finish round 1",
        f"where: {study.root}",
        f"go on with: fedseg server start {study.root}",
        "listening on port",
    )
    assert "abandoned: 0 of 3 sites in step 1, joining" in study.log.read_text()
    states = [(row.round, row.attempt, row.state) for row in study.db.rounds()]
    assert states == [(1, 1, "abandoned"), (1, 2, "abandoned")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_server_says_how_to_go_on(number: signal.Signals, study: StudyFolder) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "fedseg", "server", "start", str(study.root)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
    )  # fmt: skip
    try:
        until(
            lambda: study.log.is_file() and "a, b, c to enrol" in study.log.read_text(),
            "the server to wait for its sites",
        )
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.communicate(timeout=10)
    assert process.returncode == 130, err
    assert out == ""
    assert "the server was stopped; closed rounds are kept" in err
    assert f"go on with: fedseg server start {study.root}" in err
    assert "Traceback" not in err
