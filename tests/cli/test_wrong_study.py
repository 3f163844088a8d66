"""Wrong plans, invites, servers, folders, budgets and disks: what the commands say, and with which exit code."""

from __future__ import annotations

import shutil
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from fedseg.cli import client
from fedseg.rpc.invites import Invite
from fedseg.runtime.site_folder import SiteFolder
from fedseg.runtime.study import StudyFolder
from tests.cli.conftest import PLAN, Command

MakeInvite = Callable[..., str]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Don't try again where the server is not there."""
    monkeypatch.setattr(client, "FIRST_CONTACT_S", 0.0)


class Mistake(NamedTuple):
    """A line of the plan, what it is changed to, and the answer."""

    line: str
    wrong: str
    what: str
    hint: str


MISTAKES = {
    "unknown key": Mistake("{rounds: 2,", "{round: 2,", "unknown key schedule.round", "did you mean rounds?"),
    "unknown section": Mistake("network:", "netwrok:", "unknown key netwrok", "did you mean network?"),
    "wrong word": Mistake("preset: small", "preset: smal", "network.preset", "did you mean small?"),
    "wrong type": Mistake("steps: 1", "steps: many", "training.steps", ""),
    "low quorum": Mistake("sites:", "aggregation: {quorum: 2}\nsites:", "aggregation.quorum: 2", "ask for 3 or more"),
    "not YAML": Mistake("name: small", "name: [small", "not valid YAML", "is the [ that opens here closed?"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_plan_with_a_mistake_names_file_and_line(name: str, fedseg: Command, tmp_path: Path) -> None:
    mistake, path = MISTAKES[name], tmp_path / "plan.yaml"
    assert PLAN.count(mistake.line) == 1
    text = PLAN.replace(mistake.line, mistake.wrong)
    path.write_text(text)
    answer = fedseg("study", "create", tmp_path / "s", "--plan", path, "--address", "localhost:1")
    answer.says(1, mistake.what, f"where: {path}:", mistake.hint)
    if name != "not YAML":
        line = 1 + next(i for i, each in enumerate(text.splitlines()) if mistake.wrong.splitlines()[0] in each)
        assert f"where: {path}:{line}\n" in answer.err
    assert not (tmp_path / "s").exists()


def test_a_plan_that_is_not_there(fedseg: Command, tmp_path: Path) -> None:
    answer = fedseg("study", "create", tmp_path / "s", "--plan", tmp_path / "none.yaml", "--address", "localhost:1")
    answer.says(2, "there is no such plan", str(tmp_path / "none.yaml"))


def test_an_address_that_is_none(fedseg: Command, plan_file: Path, tmp_path: Path) -> None:
    answer = fedseg("study", "create", tmp_path / "s", "--plan", plan_file, "--address", "localhost")
    answer.says(2, "this is not an address", "write HOST:PORT")
    assert not (tmp_path / "s").exists()


def test_a_study_in_a_folder_that_is_not_empty(fedseg: Command, plan_file: Path, tmp_path: Path) -> None:
    answer = fedseg("study", "create", tmp_path, "--plan", plan_file, "--address", "localhost:1")
    answer.says(2, "the folder is not empty", str(tmp_path), "name a new folder")


def test_a_site_that_the_plan_does_not_know(fedseg: Command, study: StudyFolder) -> None:
    fedseg("study", "invite", study.root, "d").says(
        2, "the plan names no site 'd'", str(study.root), "its sites: a, b, c"
    )


@pytest.mark.parametrize(
    "words", [("study", "invite", "DIR", "a"), ("study", "roster", "DIR"), ("server", "start", "DIR")]
)
def test_a_folder_that_holds_no_study(words: tuple[str, ...], fedseg: Command, tmp_path: Path) -> None:
    def answer(folder: Path) -> object:
        return fedseg(*(str(folder) if word == "DIR" else word for word in words))

    answer(tmp_path / "none").says(2, "there is no such folder", str(tmp_path / "none"), "fedseg study create")  # type: ignore[attr-defined]
    answer(tmp_path).says(2, "this folder holds no study", str(tmp_path), "fedseg study create")  # type: ignore[attr-defined]


def test_an_invite_is_one_line_on_stdout(fedseg: Command, study: StudyFolder) -> None:
    answer = fedseg("study", "invite", study.root, "a")
    assert answer.code == 0
    assert answer.out.count("\n") == 1
    assert Invite.decode(answer.out).site == "a"
    assert "fedseg client join" in answer.err
    assert "it is good once, for 72 hours. There:" in answer.err
    assert "good once, for 1 hour. There:" in fedseg("study", "invite", study.root, "a", "--hours", "1").err


def test_a_mistyped_invite(join: Command, invite: MakeInvite, tmp_path: Path) -> None:
    line = invite()
    at = len(line) // 2
    mistyped = line[:at] + ("A" if line[at] != "A" else "B") + line[at + 1 :]
    join(mistyped).says(1, "a letter of this invite is wrong", "copy the whole line again")
    join(line[: 8 + 4 * 50]).says(1, "this invite is cut short", "copy the whole line again")
    join("hello").says(1, "this is no invite", "copy the whole line again")
    assert not (tmp_path / "state").exists()


def test_an_expired_invite(join: Command, invite: MakeInvite, tmp_path: Path) -> None:
    join(invite(age_h=2)).says(1, "expired", "ask")
    assert not (tmp_path / "state").exists()


@pytest.mark.usefixtures("server", "impatient")
def test_a_used_invite(join: Command, invite: MakeInvite, tmp_path: Path) -> None:
    line = invite()
    folder = SiteFolder(tmp_path / "first")
    folder.enrol(Invite.decode(line), data=tmp_path, labels=None, ledger=tmp_path, policy=None, now=time.time())
    answer = join(line, "--yes")
    answer.says(1, "Error: the server says: this invite has been used\n", "where: localhost:")
    answer.says(1, "hint:  ask the study's coordinator for a new invite; a site that has joined goes on from its own")
    assert "study invite" not in answer.err
    assert not (tmp_path / "state").exists()


@pytest.mark.usefixtures("server", "impatient")
def test_a_used_invite_takes_nothing_else_from_a_folder(join: Command, invite: MakeInvite, tmp_path: Path) -> None:
    line = invite()
    folder = SiteFolder(tmp_path / "first")
    folder.enrol(Invite.decode(line), data=tmp_path, labels=None, ledger=tmp_path, policy=None, now=time.time())
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "ca.pem").write_text("what an enrolment that failed has left")
    join(line, "--yes").says(1, "this invite has been used")
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["ca.pem"]


def test_a_plan_that_is_no_text(fedseg: Command, tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"

    def refused(*parts: str) -> None:
        answer = fedseg("study", "create", tmp_path / "s", "--plan", path, "--address", "localhost:1")
        answer.says(2, *parts, f"where: {path}\n")

    path.write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe")
    refused("this plan is not text", "is this the right file? It has to be text in UTF-8")
    path.write_text(PLAN, encoding="utf-16")
    refused("this plan is not text", "it is UTF-16: save it as UTF-8")
    path.unlink()
    path.mkdir()
    refused("this is a folder, not a plan", "name the file in it")


def test_a_plan_with_a_mark_before_it_is_read(fedseg: Command, tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN.replace("privacy: {", "privacy: {mood: 1, "), encoding="utf-8-sig")
    answer = fedseg("study", "create", tmp_path / "s", "--plan", path, "--address", "localhost:1")
    answer.says(1, "unknown key privacy.mood", f"where: {path}:")


@pytest.mark.usefixtures("server", "impatient")
def test_an_invite_that_a_newer_one_replaced(join: Command, invite: MakeInvite) -> None:
    old, _ = invite(), invite()
    answer = join(old, "--yes")
    answer.says(1, "ask the study's coordinator for a new invite")


@pytest.mark.usefixtures("impatient")
def test_a_server_that_is_not_there(join: Command, invite: MakeInvite, study: StudyFolder) -> None:
    answer = join(invite(), "--yes")
    answer.says(1, "no server answers at this address", f"where: {study.address}", "is `fedseg server start` running")
    again = join(invite(), "--yes")
    again.says(1, "no server answers at this address")


def test_a_port_in_use(fedseg: Command, study: StudyFolder) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        answer = fedseg("server", "start", study.root, "--bind", address)
    answer.says(1, "the port is in use", f"where: {address}", "choose another port with --bind")


@pytest.mark.usefixtures("server", "impatient")
def test_state_folders_are_kept_apart(
    join: Command, fedseg: Command, invite: MakeInvite, data: Path, tmp_path: Path
) -> None:
    SiteFolder(tmp_path / "state").enrol(
        Invite.decode(invite("a")), data=data, labels=None, ledger=tmp_path / "ledger", policy=None, now=time.time()
    )
    other = join(invite("b"), "--yes")
    other.says(2, "the state of another study or site", str(tmp_path / "state"), "name a new folder with --state")
    same = join(invite("a"), "--yes")
    same.says(2, "this site has joined already", f"fedseg client join --state {tmp_path / 'state'}")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").touch()
    full = join(invite("b"), "--yes", state="full")
    full.says(2, "the state folder is not empty", str(tmp_path / "full"), "name a new folder")
    nothing = fedseg("client", "join", "--state", tmp_path / "none")
    nothing.says(2, "this folder holds no site's state", str(tmp_path / "none"), "fedseg client join INVITE")


@pytest.mark.usefixtures("server", "impatient")
def test_what_was_agreed_to_cannot_be_changed(
    fedseg: Command, study: StudyFolder, invite: MakeInvite, data: Path, tmp_path: Path
) -> None:
    folder = SiteFolder(tmp_path / "state")
    folder.enrol(
        Invite.decode(invite("a")), data=data, labels=None, ledger=tmp_path / "ledger", policy=None, now=time.time()
    )
    better = fedseg("client", "join", "--state", folder.root, "--labels", "fidon")
    better.says(2, "nobody can be asked: there is no terminal", "add --yes")
    assert folder.membership.labels == "fidon"
    assert folder.membership.ledger == str(tmp_path / "ledger")
    folder.accept(study.manifest)
    for option in ("--data", "--labels", "--ledger"):
        again = fedseg("client", "join", "--state", folder.root, option, data)
        again.says(2, f"{option} cannot be changed once the study is agreed to", f"--state {folder.root}")


def test_joining_without_data_or_with_a_folder_that_is_not_there(
    fedseg: Command, invite: MakeInvite, tmp_path: Path
) -> None:
    fedseg("client", "join", invite(), "--state", tmp_path / "s").says(2, "--data is missing", "--data BIDS_DIR")
    answer = fedseg("client", "join", invite(), "--state", tmp_path / "s", "--data", tmp_path / "none")
    answer.says(1, "there is no such folder", str(tmp_path / "none"), "check the path")
    assert not (tmp_path / "s").exists()


@pytest.mark.usefixtures("server", "impatient")
def test_bad_scans_are_refused_before_training(join: Command, invite: MakeInvite, data: Path, tmp_path: Path) -> None:
    labels = next(data.rglob("*_dseg.nii.gz"))
    labels.write_bytes(labels.read_bytes()[:-500])
    join(invite(), "--yes").says(1, "the voxels cannot be read to the end", str(labels), "copy or export it again")
    assert not (tmp_path / "state" / "manifest.json").exists()
    assert not (tmp_path / "ledger").exists()


@pytest.mark.usefixtures("server", "impatient")
def test_nobody_to_ask(join: Command, invite: MakeInvite, tmp_path: Path) -> None:
    answer = join(invite())
    answer.says(2, "nobody can be asked: there is no terminal", "add --yes", "epsilon 8 at delta 1e-05")
    answer.says(2, f"fedseg client join --state {tmp_path / 'state'} --yes\n")
    assert not (tmp_path / "state" / "manifest.json").exists()


@pytest.mark.usefixtures("server", "impatient")
def test_a_policy_that_refuses_the_plan(join: Command, invite: MakeInvite, tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text("require_privacy: true\nmax_epsilon: 2\n")
    answer = join(invite(), "--yes", "--policy", tmp_path / "policy.yaml")
    answer.says(1, "the study's budget is epsilon 8.0, at most 2.0 is accepted")
    answer.says(1, f"{tmp_path / 'policy.yaml'}:2, max_epsilon")
    assert not (tmp_path / "state" / "manifest.json").exists()


@pytest.mark.usefixtures("server", "impatient")
def test_a_disk_without_room_is_seen_before_training(
    join: Command, invite: MakeInvite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    answer = join(invite(), "--yes")
    answer.says(1, "the disk has 1 MB free", "MB are needed", str(tmp_path / "state"), "free some space")
    assert not (tmp_path / "ledger").exists()
    assert not (tmp_path / "state" / "cache").exists()


@pytest.mark.parametrize("words", [(), ("study", "create"), ("demo",)])
def test_native_windows_is_refused(words: tuple[str, ...], fedseg: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    fedseg(*words).says(2, "fedseg does not run on native Windows", "use WSL2")


@pytest.mark.parametrize("words", [("nonsense",), ("study", "create"), ("client", "join", "--state", "x", "--nope")])
def test_wrong_use_is_exit_code_2_without_a_traceback(words: tuple[str, ...], fedseg: Command) -> None:
    fedseg(*words).says(2, "Usage: ")


def test_a_demo_overwrites_nothing_else(fedseg: Command, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    answer = fedseg("demo", "--out", tmp_path)
    answer.says(2, "this folder holds something else than a demo", str(tmp_path), "name another with --out")
    assert (tmp_path / "thesis.tex").exists()
