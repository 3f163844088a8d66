"""More rounds: `study extend`, and `client join` where the server's plan goes on from the one that was agreed to."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fedseg.cli import client
from fedseg.runtime.roster_words import lines
from fedseg.runtime.serve import serve
from fedseg.runtime.site_folder import SiteFolder
from fedseg.runtime.study import StudyFolder
from fedseg.store.files import exclusive
from fedseg.store.study_db import ClaimRow, RoundRow
from tests.cli.conftest import PLAN, Answer, Command, enrol, enrol_at_desk, meanwhile
from tests.system.world import free_port

OPEN = PLAN.replace("{mode: local, epsilon: 8, delta: 1e-5, reserve_rounds: 1}", "{mode: off}")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_CONTACT_S", 0.0)


@pytest.fixture(autouse=True)
def went_on(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Sites that were let past consent and roster; training is left out."""
    sites: list[str] = []
    monkeypatch.setattr(client, "_take_part", lambda _folder, identity, *_rest: sites.append(identity.site))
    return sites


def row(number: int, state: str = "closed") -> RoundRow:
    return RoundRow(number, 1, state, "f" * 64, ("a", "b", "c"), {}, "f" * 64, 0.0, 1.0, 0)  # type: ignore[arg-type]


@pytest.fixture
def study(fedseg: Command, tmp_path: Path) -> StudyFolder:
    """A study without privacy, both of whose rounds are closed; all sites have enrolled."""
    (tmp_path / "plan.yaml").write_text(OPEN)
    words = ("--plan", tmp_path / "plan.yaml", "--address", f"localhost:{free_port()}")
    answer = fedseg("study", "create", tmp_path / "study", *words)
    assert answer.code == 0, answer.err
    made = StudyFolder.open(tmp_path / "study")
    for number in (1, 2):
        made.db.save_round(row(number))
    archive = made.archive
    archive.save_model(2, archive.load_model(0), None)
    made.model.write_text("the model of two rounds")
    return made


@pytest.fixture
def site(study: StudyFolder, data: Path, tmp_path: Path) -> SiteFolder:
    """Site a, where the study is complete."""
    enrol(study, "b", "c")
    folder = enrol_at_desk(study, "a", SiteFolder(tmp_path / "state"), data=data, ledger=tmp_path / "ledger")
    folder.accept(study.manifest)
    folder.pin_roster(study.roster())
    folder.model.write_text("the model of two rounds")
    return folder


@pytest.fixture
def extended(study: StudyFolder, site: SiteFolder) -> StudyFolder:
    """The study, five rounds longer, without its server."""
    study.extend(5)
    return study


@contextlib.contextmanager
def serving(study: StudyFolder) -> Iterator[None]:
    """The study's server, in a thread."""
    stop, up = threading.Event(), threading.Event()
    bind = f"127.0.0.1:{study.address.rpartition(':')[2]}"
    thread = threading.Thread(target=lambda: serve(study, bind, notify=lambda _: up.set(), stop=stop), name="server")
    thread.start()
    assert up.wait(timeout=20)
    yield
    stop.set()
    thread.join(timeout=20)
    assert not thread.is_alive()


@pytest.fixture
def server_up(study: StudyFolder) -> Iterator[None]:
    """The server of the study as it stands when this is asked for: extended, where that was asked for before."""
    with serving(study):
        yield


@pytest.fixture
def join(fedseg: Command, site: SiteFolder) -> Callable[..., Answer]:
    return lambda *words: fedseg("client", "join", "--state", site.root, *words)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """`terminal(text)`: a terminal on which this is typed."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    return lambda typed: monkeypatch.setattr(sys, "stdin", Terminal(typed))


# At the coordinator's.


def test_a_study_is_extended_in_place_and_says_what_each_site_must_do(fedseg: Command, study: StudyFolder) -> None:
    old = study.manifest
    answer = fedseg("study", "extend", study.root, "--rounds", "5")
    assert answer.code == 0, answer.err
    new = study.manifest
    assert (new.plan.schedule.rounds, new.study) == (7, old.study)
    assert study.versions == [old, new]
    assert new.parent is not None
    assert (new.parent.plan_hash, new.parent.last_round) == (old.plan_hash, 2)
    assert not study.model.exists()
    assert (study.root / "model-1.safetensors").read_text() == "the model of two rounds"
    assert answer.out == (
        "Study 'small' goes on under a new version of its plan:\n"
        f"  plan hash        {old.plan_hash[:16]} -> {new.plan_hash[:16]}\n"
        "  rounds           2 -> 7, of which 2 were begun\n"
        f"The version before is kept: {study.root / 'manifest-1.json'}\n"
        f"The version before is kept: {study.root / 'model-1.safetensors'}\n"
        f"Next, start the server:\n  fedseg server start {study.root}\n"
        f"Nobody has enrolled yet; send each site its invite: fedseg study invite {study.root} SITE\n"
    )


def test_sites_that_have_enrolled_are_to_agree_again(fedseg: Command, study: StudyFolder) -> None:
    enrol(study, "b")
    assert fedseg("study", "extend", study.root, "--rounds", "5").out.endswith(
        "and have each site look at what changes, agree, and compare the roster's words again:\n"
        "  fedseg client join --state DIR\n"
    )


def test_extended_twice_it_has_three_versions(fedseg: Command, study: StudyFolder) -> None:
    for rounds in ("5", "1"):
        assert fedseg("study", "extend", study.root, "--rounds", rounds).code == 0
    assert [version.plan.schedule.rounds for version in study.versions] == [2, 7, 8]
    facts = json.loads(fedseg("study", "extend", study.root, "--rounds", "1", "--json").out)
    assert facts["plan_hash"] == study.manifest.plan_hash
    assert facts["extends"] == study.versions[-2].plan_hash


def test_no_study_is_extended_under_a_running_server(fedseg: Command, study: StudyFolder) -> None:
    before = study.manifest
    with exclusive(study.root):
        answer = fedseg("study", "extend", study.root, "--rounds", "5")
    answer.says(2, "another fedseg process is at work in this folder")
    assert study.manifest == before


def test_a_budget_without_privacy_is_a_mistake(fedseg: Command, study: StudyFolder) -> None:
    answer = fedseg("study", "extend", study.root, "--rounds", "5", "--epsilon", "9")
    answer.says(1, "epsilon is set but mode is off")
    assert study.versions == [study.manifest]


def test_a_private_study_shows_budget_and_noise_before_and_after(
    fedseg: Command, study_master: Path, tmp_path: Path
) -> None:
    shutil.copytree(study_master, tmp_path / "private")
    study = StudyFolder.open(tmp_path / "private")
    old = study.manifest
    study.db.save_round(row(1))
    for site in "abc":
        study.db.save_claim(ClaimRow(site, 1, 1, f"{ord(site):064x}", old.plan_hash, 1, 1, bytes(64)))
    answer = fedseg("study", "extend", study.root, "--rounds", "1", "--epsilon", "9.5", "--reserve", "0")
    assert answer.code == 0, answer.err
    new = study.manifest
    assert new.noise_multiplier != old.noise_multiplier
    assert "  rounds           2 -> 3, of which 1 were begun\n  reserve rounds   1 -> 0\n" in answer.out
    assert "  budget           epsilon 8 at delta 1e-05 -> epsilon 9.5 at delta 1e-05 for all rounds " in answer.out
    assert f"  noise multiplier {old.noise_multiplier:g} -> {new.noise_multiplier:g}\n" in answer.out


# At a site.


def test_where_nothing_changed_a_complete_study_is_at_its_end(
    join: Callable[..., Answer], server_up: object, went_on: list[str]
) -> None:
    answer = join()
    assert answer.code == 0
    assert answer.out.startswith("The study is complete.\n")
    assert answer.err == ""
    assert went_on == []


def test_where_nobody_can_be_asked_a_complete_study_may_go_on(
    join: Callable[..., Answer], site: SiteFolder, went_on: list[str]
) -> None:
    answer = join()
    answer.says(
        1,
        "the server cannot be asked whether the study goes on: no server answers at this address",
        f"the model of the study as it was complete is {site.model}; to ask again: fedseg client join --state "
        f"{site.root}",
    )
    assert answer.out == ""
    assert went_on == []


def test_a_server_that_comes_a_little_later_is_waited_for(
    join: Callable[..., Answer], extended: StudyFolder, site: SiteFolder, went_on: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(client, "FIRST_CONTACT_S", 20.0)
    site.approve(extended.roster().fingerprint)
    with contextlib.ExitStack() as later, meanwhile(
        site.log, "trying again", lambda: later.enter_context(serving(extended))
    ):  # fmt: skip
        answer = join("--yes")
    assert answer.code == 0, answer.err
    assert went_on == ["a"]


def test_a_second_join_beside_a_running_one_asks_the_server_nothing(
    join: Callable[..., Answer], site: SiteFolder, server_up: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(SiteFolder, "connect", lambda *_: asked.append("connected"))
    before = site.membership
    with exclusive(site.root):
        join("--policy", _policy(site)).says(2, "another fedseg process is at work in this folder")
    assert asked == []
    assert site.membership == before


def _policy(site: SiteFolder) -> Path:
    path = site.root.parent / "policy.yaml"
    path.write_text("min_sites: 3\n")
    return path


def test_the_words_confirmed_before_are_not_approved_again(
    fedseg: Command, join: Callable[..., Answer], extended: StudyFolder, site: SiteFolder, server_up: object
) -> None:
    old, due = site.roster, extended.roster()
    assert old is not None
    approve = ("client", "approve-roster", "--state", site.root, "--fingerprint")
    assert fedseg(*approve, old.fingerprint.hex()).code == 0, "before the extension is agreed to it is the roster"
    site.extend(extended.versions[1:])
    answer = fedseg(*approve, old.fingerprint.hex())
    answer.says(
        2,
        "this is the roster that was confirmed here before, under the plan as it was; nothing was approved",
        f"it is the one with the fingerprint {due.fingerprint.hex()}: compare the words that `join` shows",
    )
    assert answer.out == ""
    assert fedseg(*approve, due.fingerprint.hex()).code == 0
    assert site.approved == due.fingerprint


def test_an_extension_is_shown_and_asked_for(
    join: Callable[..., Answer], extended: StudyFolder, site: SiteFolder, server_up: object, went_on: list[str]
) -> None:
    before = site.manifest
    answer = join()
    answer.says(2, "The coordinator has extended the study small", "rounds", "2", "7, of which 2 were begun")
    answer.says(2, "Unchanged: the server (localhost:", "the sites (a, b, c), the task", "nobody can be asked")
    assert site.manifest == before
    assert site.model.is_file()
    assert went_on == []


def test_who_declines_keeps_the_end_that_was(
    join: Callable[..., Answer],
    extended: StudyFolder,
    site: SiteFolder,
    server_up: object,
    terminal: Callable[[str], None],
    went_on: list[str],
) -> None:
    terminal("n\n")
    join().says(1, "Go on under the extended plan?", "not agreed: nothing was computed or sent")
    assert site.versions == extended.versions[:1]
    assert site.model.read_text() == "the model of two rounds"
    assert went_on == []


def test_who_agrees_compares_the_words_again_and_goes_on(
    join: Callable[..., Answer],
    extended: StudyFolder,
    site: SiteFolder,
    server_up: object,
    terminal: Callable[[str], None],
    went_on: list[str],
) -> None:
    terminal("y\nyes\n")
    answer = join()
    assert answer.code == 0, answer.err
    assert "These are the same sites and keys as you have confirmed before, under another plan" in answer.err
    for line in lines(extended.roster().fingerprint):
        assert line in answer.err
    assert site.versions == extended.versions
    assert site.roster == extended.roster()
    assert (site.root / "model-1.safetensors").read_text() == "the model of two rounds"
    assert went_on == ["a"]


def test_yes_and_an_approval_beforehand_need_no_terminal(
    join: Callable[..., Answer], extended: StudyFolder, site: SiteFolder, server_up: object, went_on: list[str]
) -> None:
    site.approve(extended.roster().fingerprint)
    assert join("--yes").code == 0
    assert site.versions == extended.versions
    assert went_on == ["a"]


def test_a_site_that_slept_through_an_extension_catches_up(
    join: Callable[..., Answer], extended: StudyFolder, site: SiteFolder, went_on: list[str]
) -> None:
    extended.extend(1)
    site.approve(extended.roster().fingerprint)
    with serving(extended):
        answer = join("--yes")
    assert answer.code == 0, answer.err
    assert "8, of which 2 were begun" in answer.err
    assert site.versions == extended.versions
    assert len(site.versions) == 3
    assert went_on == ["a"]


def test_a_policy_is_asked_again(
    join: Callable[..., Answer], extended: StudyFolder, site: SiteFolder, server_up: object, went_on: list[str]
) -> None:
    site.remember(replace(site.membership, policy="require_privacy: true\n"))
    join("--yes").says(1, "the study trains without privacy")
    assert len(site.versions) == 1
    assert went_on == []


def test_a_change_that_is_no_extension_is_another_study(
    join: Callable[..., Answer], study: StudyFolder, site: SiteFolder, went_on: list[str]
) -> None:
    other = study.manifest.model_copy(update={"study": "cd" * 16})
    (study.root / "manifest.json").write_bytes(other.to_json())
    with serving(study):
        join("--yes").says(
            1,
            f"the server's plan is {other.plan_hash[:16]}, this site agreed to",
            "a changed plan is another study: ask the coordinator for a new invite",
        )
    assert went_on == []
