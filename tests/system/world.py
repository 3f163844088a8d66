"""A toy study of real processes: made, started, killed, waited for. Leaves no process behind."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from fedseg.federation.vector import model_hash
from fedseg.plan.study import parse_plan
from fedseg.runtime.simulation import simulate
from fedseg.runtime.study import StudyFolder
from tests.runtime.toy import FIRST, INITIAL, LAYOUT, PullTrainer

ROOT = Path(__file__).resolve().parents[2]
TARGETS = {"a": 1.0, "b": 2.0, "c": -0.5}
LIMIT_S = 60.0
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "GRPC_VERBOSITY": "NONE", "PYTHONPATH": str(ROOT)}

PLAN = """
name: toy
seed: 7
privacy: PRIVACY
aggregation: AGGREGATION
schedule: {rounds: 3, deadline_s: 60, absent_after_s: 12}
sites: {a: {}, b: {}, c: {}}
"""
OFF = "{mode: off}"
LOCAL = "{mode: local, epsilon: 8, delta: 1e-5, sampling_rate: 0.5, reserve_rounds: 1}"
SECURE = "{mode: secure}"
TWO = '{mode: secure, quorum: 2, accept_two_contributors: "the three hospitals already share these scans"}'


def free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(holds: Callable[[], bool], what: str, limit_s: float = LIMIT_S) -> None:
    """Wait until something holds; an AssertionError that says what did not."""
    end = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < end, f"waited {limit_s:g} s for {what}"
        time.sleep(0.02)


class World:
    """One study's folder and processes; a context manager."""

    def __init__(self, folder: Path, *, privacy: str = OFF, aggregation: str = SECURE) -> None:
        self.folder, self.port = folder, free_port()
        text = PLAN.replace("PRIVACY", privacy).replace("AGGREGATION", aggregation)
        self.study = StudyFolder.create(
            folder / "study", parse_plan(text, "toy.yaml"), FIRST,
            address=f"localhost:{self.port}", now=time.time(),
        )  # fmt: skip
        self.started: list[subprocess.Popen[str]] = []

    def __enter__(self) -> World:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.communicate(timeout=10)

    def start(self, *words: str | Path) -> subprocess.Popen[str]:
        """Start a node."""
        log = (self.folder / f"{len(self.started):02d}-{words[0]}.log").open("w")
        with log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.system.node", *map(str, words)],
                stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT, env=ENVIRONMENT,
            )  # fmt: skip
        self.started.append(process)
        return process

    def server(self) -> subprocess.Popen[str]:
        """Start the server."""
        return self.start("server", self.study.root, f"127.0.0.1:{self.port}")

    def state(self, site: str) -> Path:
        """A site's state folder."""
        return self.folder / site

    def site(self, name: str, *more: str) -> subprocess.Popen[str]:
        """Start a site, with an invite where it is its first time."""
        invite: tuple[str, ...] = ()
        if not (self.state(name) / "site.json").is_file():
            invite = ("--invite", self.study.invite(name, now=time.time(), hours=1).encode())
        return self.start("site", self.state(name), *invite, "--target", str(TARGETS[name]), *more)

    def sites(self, *more: str) -> dict[str, subprocess.Popen[str]]:
        """Start all three."""
        return {name: self.site(name, *more) for name in TARGETS}

    def trained(self, site: str) -> list[tuple[int, bool]]:
        """(round, whether it was charged before) of each training that began at a site."""
        path = Path(f"{self.state(site)}.trace")
        lines = path.read_text().splitlines() if path.is_file() else []
        return [(number, charged) for number, charged in map(json.loads, lines)]

    def rounds_trained(self, site: str) -> list[int]:
        """Rounds of all trainings that began at a site."""
        return [number for number, _ in self.trained(site)]

    def in_round(self, number: int, *sites: str) -> None:
        """Wait until sites train in a round."""
        for site in sites or TARGETS:
            until(lambda site=site: number in self.rounds_trained(site), f"{site} to train in round {number}")  # type: ignore[misc]

    def in_phase(self, number: int, phase: str) -> None:
        """Wait until the server has said that a round is in a phase."""
        sign = f"PhaseStarted(round={number}, phase='{phase}'"
        until(lambda: sign in self.logs(), f"round {number} to enter {phase}")

    def let_go(self) -> None:
        """Let every held trainer go on."""
        for site in TARGETS:
            Path(f"{self.state(site)}.go").touch()

    def answer(self, process: subprocess.Popen[str], code: int = 0) -> dict[str, Any]:
        """What a node printed at its end, which must come with that exit code."""
        text, _ = process.communicate(timeout=LIMIT_S)
        assert process.returncode == code, self.logs()
        answer: dict[str, Any] = json.loads(text) if text else {}
        return answer

    def kill(self, process: subprocess.Popen[str]) -> None:
        """SIGKILL."""
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=10)

    def logs(self) -> str:
        """All logs, for a failed test."""
        return "\n".join(f"== {path.name}\n{path.read_text()}" for path in sorted(self.folder.glob("*.log")))

    def undisturbed(self) -> str:
        """Hash of the model that the same study gives in one process, without a wire."""
        trainers = {site: PullTrainer(target) for site, target in TARGETS.items()}
        weights, _ = simulate(self.study.manifest, INITIAL, LAYOUT, trainers, entropy=secrets.token_bytes)
        return model_hash(weights)


@contextlib.contextmanager
def world(folder: Path, *, privacy: str = OFF, aggregation: str = SECURE) -> Iterator[World]:
    """A study whose processes end with the block."""
    with World(folder, privacy=privacy, aggregation=aggregation) as made:
        yield made
