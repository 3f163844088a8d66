"""`fedseg pretrain`: what it says, what it refuses, what Ctrl-C keeps, and a study that starts from its model."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest

from fedseg.cli.pretrain import duration
from fedseg.imaging.synthesis import synthesize
from fedseg.training.pretraining import Pretrainer
from tests.cli.conftest import Command

PLAN = """
name: tiny
privacy: {mode: 'off'}
image: {spacing_mm: 4.0, patch: [16, 16, 16]}
network: {preset: small}
training: {steps: 1, threads: 1}
schedule: {rounds: 1}
sites: {a: {}, b: {}, c: {}}
"""


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(PLAN)
    return path


def test_a_model_is_made_and_what_comes_next_is_said(fedseg: Command, plan: Path, tmp_path: Path) -> None:
    out = tmp_path / "first model"
    answer = fedseg("pretrain", "--plan", plan, "--out", out, "--subjects", "2", "--steps", "2")
    assert answer.code == 0, answer.err
    assert re.search(r"Pretrained: 2 steps, \d+(\.\d)? s\. Model: ", answer.out)
    assert f"Model: {out}/model.safetensors" in answer.out
    assert "trained on  images made up (2 steps) from the labels of 2 made-up brains (seed 0)" in answer.out
    assert f"--plan {plan} --address HOST:PORT --init '{out}/model.safetensors'" in answer.out
    study = fedseg(
        "study", "create", tmp_path / "study", "--plan", plan, "--address", "x:1", "--init", out / "model.safetensors"
    )
    assert study.code == 0, study.err
    assert ", trained on public data: images made up (2 steps)" in study.out


def test_the_json_names_model_and_source(fedseg: Command, plan: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    synthesize(labels, subjects=2, seed=1, spacing_mm=4.0)
    words = (
        "pretrain",
        "--plan",
        plan,
        "--out",
        tmp_path / "out",
        "--labels",
        labels,
        "--public",
        "CC0, by us",
        "--json",
    )
    answer = fedseg(*words, "--steps", "1")
    assert answer.code == 0, answer.err
    facts = json.loads(answer.out)
    assert (
        facts["trained_on"] == 'images made up (1 step) from the labels of 2 label maps declared public: "CC0, by us"'
    )
    assert (facts["steps"], facts["model"]) == (1, str(tmp_path / "out" / "model.safetensors"))
    again = json.loads(fedseg(*words, "--steps", "1").out)
    assert again["model_hash"] == facts["model_hash"]


def test_ctrl_c_keeps_what_was_trained_and_the_same_command_goes_on(
    fedseg: Command, plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Pretrainer._take_step

    def interrupted(trainer: Pretrainer, rng: object) -> None:
        step(trainer, rng)  # type: ignore[arg-type]
        os.kill(os.getpid(), signal.SIGINT)

    words = ("pretrain", "--plan", plan, "--out", tmp_path / "out", "--subjects", "1", "--steps", "3")
    with monkeypatch.context() as patch:
        patch.setattr(Pretrainer, "_take_step", interrupted)
        stopped = fedseg(*words)
    stopped.says(
        130,
        "stopped after step 1",
        f"the model so far is {tmp_path}/out/model.safetensors",
        "the same command goes on",
    )
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert "Pretrained: 3 steps" in fedseg(*words).out


@pytest.mark.parametrize(
    ("words", "code", "parts"),
    [
        (["--labels", "."], 2, ("nobody has declared these label maps public", "--public", "the owner's sentence")),
        (["--public", "CC0"], 2, ("there is nothing to declare public", "name folders with --labels")),
        (
            ["--labels", "empty", "--public", "CC0"],
            1,
            ("no label map to train on in this folder", "expected sub-X_dseg"),
        ),
        (["--labels", "nowhere", "--public", "CC0"], 1, ("there is no such folder", "nowhere", "check the path")),
        (["--subjects", "0"], 2, ("there is no label map to train on", "--subjects")),
        (["--minutes", "1", "--steps", "1"], 2, ("both --minutes and --steps are given", "give one of the two")),
        (["--plan", "nowhere.yaml"], 2, ("there is no such plan", "nowhere.yaml")),
        (["--plan", "bad.yaml"], 1, ("bad.yaml", "privacy")),
    ],
)
def test_what_cannot_be_is_refused(
    fedseg: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    code: int,
    parts: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.yaml").write_text("name: bad\nschedule: {rounds: 1}\nsites: {a: {}}\n")
    fedseg("pretrain", "--out", tmp_path / "out", *words).says(code, *parts)
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_another_pretraining_in_the_folder_is_left_alone(fedseg: Command, plan: Path, tmp_path: Path) -> None:
    words = ("pretrain", "--plan", plan, "--out", tmp_path, "--subjects", "1", "--steps", "1")
    assert fedseg(*words).code == 0
    fedseg(*words, "--seed", "5").says(2, "this folder holds another pretraining", "name another folder with --out")


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.44, "0.4 s"), (38.2, "38 s"), (119.0, "119 s"), (300.0, "5.0 minutes")]
)
def test_durations_are_never_nothing(seconds: float, words: str) -> None:
    assert duration(seconds) == words
