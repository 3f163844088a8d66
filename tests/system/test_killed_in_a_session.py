"""SIGKILL of a site in every state of secure aggregation that it writes down, before and after the state's message."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.system.world import ENVIRONMENT, ROOT, TARGETS, World, until

pytestmark = pytest.mark.xdist_group("processes")

STATES = ("Advertised", "Shared", "Masked", "Signed", "Unmasked")


def audit(world: World) -> dict[str, Any]:
    parties = [world.study.root, *(world.state(site) for site in TARGETS)]
    done = subprocess.run(
        [sys.executable, "-m", "fedseg", "audit", "verify", *map(str, parties), "--json"],
        capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def said(log: Path, kind: str) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in log.read_text().splitlines()]
    return [record["body"] for record in records if record["kind"] == kind]


@pytest.mark.parametrize("when", ["kept", "sent"])
@pytest.mark.parametrize("state", STATES)
def test_a_site_killed_in_a_state_sends_the_same_bytes_or_none(tmp_path: Path, state: str, when: str) -> None:
    with World(tmp_path) as world:
        server = world.server()
        a, b, c = world.site("a"), world.site("b"), world.site("c", "--die-in", f"2:{state}:{when}")
        until(lambda: c.poll() is not None, "c to die")
        assert c.returncode == -9, world.logs()
        c = world.site("c")
        ends = [world.answer(process) for process in (a, b, c)]
        assert {end["hash"] for end in ends} == {world.answer(server)["hash"]} == {world.undisturbed()}

        rounds = [(row.round, row.attempt) for row in world.study.db.rounds()]
        went_on = rounds == [(1, 1), (2, 1), (3, 1)]
        # Killed before its update was written down, it sits the attempt out: it never trains twice for one session.
        assert went_on or (state in ("Advertised", "Shared") and rounds == [(1, 1), (2, 1), (2, 2), (3, 1)])
        for kind in ("masked", "confirmed", "unmask"):
            sessions = [body["session"] for body in said(world.state("c") / "audit.jsonl", kind)]
            assert len(sessions) == len(set(sessions)) == 3
        assert audit(world)["findings"] == []
        inputs = [body["inputs"] for body in said(world.study.root / "audit.jsonl", "received")]
        assert [sorted(each) for each in inputs] == [["a", "b", "c"]] * 3
        own = {body["digest"] for body in said(world.state("c") / "audit.jsonl", "masked")}
        assert {each["c"]["digest"] for each in inputs} == own
