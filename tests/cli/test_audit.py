"""`fedseg audit verify`: its table, its findings, its JSON, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedseg.federation.exchange import SERVER
from fedseg.runtime.audit import LIMITS
from fedseg.store.audit_log import LOG
from tests.cli.conftest import Command
from tests.runtime.audits import A, B, C, D, Story, a_story, close_again, model_after
from tests.secagg.helpers import roster


@pytest.fixture
def story() -> Story:
    return a_story()


def test_logs_that_agree(fedseg: Command, story: Story, tmp_path: Path) -> None:
    folders = story.write(tmp_path)
    answer = fedseg("audit", "verify", folders[SERVER], folders[A], folders[D] / LOG)
    assert answer.code == 0, answer.err
    said = " ".join(answer.out.replace("│", " ").split())
    for part in (
        "Audit of study atlas",
        f"site {A} 19",
        "n=4 c=1 t=3 m=3 ",
        " 5: server, ",
        "3 (attempt 2)",
        roster(4).fingerprint.hex()[:12],
        f"{model_after(1)[:12]} to",
        "Nothing contradicts: these 3 logs are whole and signed, and agree with each other.",
        f"What this cannot show: {LIMITS[0]}; ",
        f"Next: ask {B}, {C} for their audit.jsonl (it holds no patient data), then:",
        f"fedseg audit verify {folders[SERVER]} {folders[A]} {folders[D] / LOG} FILE...",
    ):
        assert part in said, said
    assert "FINDING" not in said


def test_one_log_alone(fedseg: Command, story: Story, tmp_path: Path) -> None:
    answer = fedseg("audit", "verify", story.write(tmp_path, [D])[D])
    assert answer.code == 0
    assert "Nothing contradicts: this log is whole and signed, and so is what it holds of others." in answer.out
    assert " n=4 " in answer.out


def test_all_logs_leave_nobody_to_ask(fedseg: Command, story: Story, tmp_path: Path) -> None:
    answer = fedseg("audit", "verify", *story.write(tmp_path).values())
    assert answer.code == 0
    assert "Next:" not in answer.out


def test_a_plain_study_says_that_nothing_is_masked(fedseg: Command, tmp_path: Path) -> None:
    story = Story(plain=True)
    story.round(1)
    answer = fedseg("audit", "verify", story.write(tmp_path)[SERVER])
    assert answer.code == 0
    assert "n=4 m=3 (plain)" in answer.out
    assert "Plain: nothing is masked, the server saw every update." in answer.out


def test_a_lie_fails_the_command_and_names_the_liar(fedseg: Command, story: Story, tmp_path: Path) -> None:
    close_again(story.bodies(D, "closed")[2], next_model="ab" * 32)
    folders = story.write(tmp_path, [B, D])
    answer = fedseg("audit", "verify", *folders.values())
    assert answer.code == 1
    assert (
        "FINDING: server: round 3: the server signed two closes of one round: next model a63f0dfe98cc2a03" in answer.out
    )
    assert f"  where:  {folders[B] / LOG}, line 19; {folders[D] / LOG}, line 10" in answer.out
    assert "  proves: the server lied: it published two versions of one round" in answer.out
    assert "1 finding: show them to all parties" in answer.out
    assert "Nothing contradicts" not in answer.out


def test_a_changed_log_is_broken(fedseg: Command, story: Story, tmp_path: Path) -> None:
    path = story.write(tmp_path, [A])[A] / LOG
    path.write_text(path.read_text().replace('"round":2', '"round":9'))
    answer = fedseg("audit", "verify", path)
    assert answer.code == 1
    assert "BROKEN" in answer.out
    assert f"FINDING: site {A}: this record was changed after it was written" in answer.out


def test_the_json_says_all_of_it(fedseg: Command, story: Story, tmp_path: Path) -> None:
    folders = story.write(tmp_path / "honest")
    answer = fedseg("audit", "verify", folders[SERVER], "--json")
    document = json.loads(answer.out)
    assert answer.code == 0
    assert (document["consistent"], document["study"], document["findings"]) == (True, "atlas", [])
    assert document["absent"] == [f"site {site}" for site in (A, B, C, D)]
    assert document["not_shown"] == list(LIMITS)
    assert [each["contributors"] for each in document["rounds"]] == [[A, B, C, D], [A, B, C], [A, B, C]]
    assert document["rounds"][0]["witnesses"][1] == {"party": f"site {A}", "signed": True, "logged": False}
    story.bodies(B, "closed")[0]["weight"] = 9
    folders = story.write(tmp_path / "lies")
    answer = fedseg("audit", "verify", folders[SERVER], folders[B], "--json")
    document = json.loads(answer.out)
    assert answer.code == 1
    assert document["consistent"] is False
    assert [each["where"] for each in document["findings"]] == ["round 1"]
    assert document["findings"][0]["what"] == f"server and site {B} have the same sum, but another weight to it"


def test_what_is_no_log(fedseg: Command, tmp_path: Path) -> None:
    fedseg("audit", "verify", tmp_path / "none").says(
        2, "there is no audit log", str(tmp_path / "none"), "state folder"
    )
    (tmp_path / LOG).write_bytes(b"hello\n")
    fedseg("audit", "verify", tmp_path).says(1, "this line is not a record", f"{tmp_path / LOG}, line 1")


def test_help_has_an_example(fedseg: Command) -> None:
    answer = fedseg("audit", "verify", "--help")
    assert answer.code == 0
    assert "Example: fedseg audit verify" in " ".join(answer.out.split())
