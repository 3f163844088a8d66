"""A whole private study with torch, through `fedseg` in real processes: from made-up scans to the privacy report."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from fedseg.labels import scheme
from fedseg.store.checkpoints import load_model
from tests.system.world import ENVIRONMENT, free_port, until

pytestmark = pytest.mark.xdist_group("processes")

nib: Any = nibabel  # only half of it is typed

SITES = ("a", "b", "c")
LIMIT_S = 120

PLAN = """
name: whole study
seed: 3
image: {spacing_mm: 4.0, patch: [16, 16, 16]}
network: {preset: small}
training: {steps: 2, threads: 1, learning_rate: 2e-3}
privacy: {mode: local, epsilon: 8, delta: 1e-5, sampling_rate: 0.5, reserve_rounds: 1}
schedule: {rounds: 2, deadline_s: 60, absent_after_s: 20}
sites: {a: {public_subjects: 4}, b: {public_subjects: 4}, c: {public_subjects: 4}}
"""


class Shell:
    """Runs `fedseg` in processes of their own, with logs in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *words: str | Path) -> subprocess.Popen[str]:
        """Start a command; its stderr goes to a file of its own."""
        log = (self.folder / f"{len(self.started):02d}.err").open("w")
        with log:
            process = subprocess.Popen(
                [sys.executable, "-m", "fedseg", *map(str, words)],
                stdout=subprocess.PIPE, stderr=log, text=True, stdin=subprocess.DEVNULL,
                env={**ENVIRONMENT, "HOME": str(self.folder)},
            )  # fmt: skip
        self.started.append(process)
        return process

    def error_of(self, process: subprocess.Popen[str]) -> str:
        """What it wrote to stderr so far."""
        return (self.folder / f"{self.started.index(process):02d}.err").read_text()

    def answer(self, process: subprocess.Popen[str], code: int = 0) -> str:
        """Its standard output, once it has ended with that code."""
        text, _ = process.communicate(timeout=LIMIT_S)
        assert process.returncode == code, self.error_of(process)
        return text

    def together(self, *commands: tuple[str | Path, ...]) -> list[str]:
        """Run commands at the same time."""
        return [self.answer(process) for process in [self.start(*words) for words in commands]]

    def json(self, *words: str | Path) -> dict[str, Any]:
        """Run a command whose standard output must be one JSON document."""
        document: dict[str, Any] = json.loads(self.answer(self.start(*words, "--json")))
        return document


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """A shell that leaves no process behind."""
    made = Shell(tmp_path)
    yield made
    for process in made.started:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=10)


def _join(shell: Shell, tmp_path: Path, site: str, invite: str) -> subprocess.Popen[str]:
    options = ("--data", tmp_path / site / "data", "--ledger", tmp_path / site / "ledger", "--yes")
    return shell.start("client", "join", invite, "--state", tmp_path / site / "state", *options)


def test_a_whole_private_study(shell: Shell, tmp_path: Path) -> None:
    study, port = tmp_path / "study", free_port()
    (tmp_path / "plan.yaml").write_text(PLAN)
    create = ("study", "create", study, "--plan", tmp_path / "plan.yaml", "--address", f"localhost:{port}")
    made_up = ("--subjects", "4", "--spacing-mm", "4")
    shell.together(
        create,
        *(
            ("data", "synthesize", tmp_path / site / "data", *made_up, "--seed", str(style), "--site-style", str(style))
            for style, site in enumerate(SITES)
        ),
    )
    invites = dict(zip(SITES, shell.together(*(("study", "invite", study, site) for site in SITES)), strict=True))

    server = shell.start("server", "start", study, "--bind", f"127.0.0.1:{port}")
    early = _join(shell, tmp_path, "c", invites["c"])
    until(lambda: "waiting: a, b to enrol" in shell.error_of(early), "c to wait for the others")
    early.send_signal(signal.SIGINT)
    shell.answer(early, 130)
    assert "Stopping cleanly" in shell.error_of(early)
    assert f"fedseg client join --state {tmp_path / 'c' / 'state'}" in shell.error_of(early)

    sites = [_join(shell, tmp_path, site, invites[site]) for site in ("a", "b")]
    sites.append(shell.start("client", "join", "--state", tmp_path / "c" / "state"))
    for process in sites:
        until(lambda process=process: "to approve the roster" in shell.error_of(process), "an approval to be asked for")  # type: ignore[misc]
    roster = shell.json("study", "roster", study)
    assert f"fingerprint  {roster['fingerprint']}" in shell.error_of(sites[0])
    states = [("--state", tmp_path / site / "state") for site in SITES]
    shell.together(*(("client", "approve-roster", *state, "--fingerprint", roster["fingerprint"]) for state in states))
    for process in sites:
        assert "The study is complete: 2 of 2 rounds closed." in shell.answer(process)
    assert "The study is complete: 2 of 2 rounds closed." in shell.answer(server)

    model = study / "model.safetensors"
    assert {(tmp_path / site / "state" / "model.safetensors").read_bytes() for site in SITES} == {model.read_bytes()}
    _, card = load_model(model)
    assert (card.rounds, card.contributors) == (2, ((1, SITES), (2, SITES)))
    assert card.privacy["epsilon"] == 8

    _check_evaluation(shell, model, tmp_path)
    _check_privacy(shell, study, tmp_path)


def _check_evaluation(shell: Shell, model: Path, tmp_path: Path) -> None:
    data = tmp_path / "a" / "data"
    evaluate = ("evaluate", model, "--data", data, "--out", tmp_path / "out", "--split", "all", "--json")
    scores, said = shell.together(evaluate, ("predict", model, data, "--out", tmp_path / "predicted", "--json"))
    document = json.loads(scores)
    assert len(document["subjects"]) == 4
    assert set(document["summary"]["dice"]) == {"mean", *scheme("feta").tissues}
    assert 0 <= document["summary"]["dice"]["mean"] <= 1
    told = json.loads(said)
    assert (len(told["segmented"]), told["failed"]) == (4, [])
    for scan in data.glob("sub-*/anat/*_T2w.nii.gz"):
        made = tmp_path / "predicted" / scan.relative_to(data).parent / scan.name.replace("_T2w", "_seg-fedseg_dseg")
        image, labels = nib.load(scan), nib.load(made)
        assert image.shape == labels.shape
        assert np.allclose(image.affine, labels.affine)


def _check_privacy(shell: Shell, study: Path, tmp_path: Path) -> None:
    at_site = shell.json("privacy-report", tmp_path / "a" / "state")
    at_study = shell.json("privacy-report", study)
    (row,) = at_site["sites"]
    assert (row["site"], row["rounds"], row["steps"], row["ledger_intact"]) == ("a", 2, 4, True)
    assert 0 < row["epsilon"] <= 8
    assert [each["site"] for each in at_study["sites"]] == list(SITES)
    assert at_study["epsilon"] == max(each["epsilon"] for each in at_study["sites"])
    assert at_study["sites"][0]["epsilon"] == pytest.approx(row["epsilon"])
    assert all(each["epsilon"] <= each["budget_epsilon"] == 8 for each in at_study["sites"])
