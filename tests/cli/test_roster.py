"""Who takes part: `study roster`, `client approve-roster`, and what `client join` asks and refuses."""

from __future__ import annotations

import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from fedseg.cli import client
from fedseg.rpc.certificates import new_protocol_key, protocol_public_key
from fedseg.rpc.channel import RemoteStudy
from fedseg.runtime.roster_words import lines, words
from fedseg.runtime.site_folder import Membership, SiteFolder
from fedseg.runtime.study import StudyFolder
from fedseg.store.files import exclusive
from tests.cli.conftest import Command, enrol, meanwhile
from tests.system.world import ENVIRONMENT

MakeInvite = Callable[..., str]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_CONTACT_S", 0.0)


@pytest.fixture
def folder(tmp_path: Path) -> SiteFolder:
    """The state of site a, once it has joined."""
    return SiteFolder(tmp_path / "state")


@pytest.fixture
def went_on(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Sites that were let past the roster; training is left out."""
    sites: list[str] = []
    monkeypatch.setattr(client, "_take_part", lambda _folder, identity, *_rest: sites.append(identity.site))
    return sites


@pytest.fixture
def nothing_sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Calls of everything but manifest, roster and enrolment; they don't reach the server."""
    calls: list[str] = []
    for name in ("poll", "advertise", "share_keys", "upload", "confirm", "unmask", "withdraw", "claim"):
        monkeypatch.setattr(RemoteStudy, name, lambda *_words, _name=name: calls.append(_name))
    return calls


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """`terminal(text)`: a terminal on which this is typed."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    return lambda typed: monkeypatch.setattr(sys, "stdin", Terminal(typed))


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


# At the coordinator's.


def test_a_roster_that_is_not_whole_says_who_is_missing(fedseg: Command, study: StudyFolder) -> None:
    enrol(study, "b")
    answer = fedseg("study", "roster", study.root)
    assert answer.code == 0
    assert "There are no words to compare yet: a, c yet to enrol" in answer.out
    assert f"fedseg study invite {study.root} SITE" in answer.out
    rows = {line.split(maxsplit=1)[0]: line for line in answer.out.splitlines() if line[:2] in ("a ", "b ", "c ")}
    assert ["not enrolled yet" in rows[site] for site in "abc"] == [True, False, True]
    assert "fingerprint" not in answer.out
    facts = json.loads(fedseg("study", "roster", study.root, "--json").out)
    assert (facts["missing"], facts["fingerprint"], facts["words"]) == (["a", "c"], None, None)
    assert [row["key"] is None for row in facts["sites"]] == [True, False, True]


def test_a_whole_roster_shows_words_and_fingerprint(fedseg: Command, study: StudyFolder) -> None:
    enrol(study, "a", "b", "c")
    roster = study.roster()
    answer = fedseg("study", "roster", study.root)
    assert answer.code == 0
    for line in lines(roster.fingerprint):
        assert f"  {line}\n" in answer.out
    assert f"fingerprint  {roster.fingerprint.hex()}\n" in answer.out
    assert "Have the sites read the words to each other, in one call" in answer.out
    assert "not by the mail that carried the invite" in answer.out
    assert "where it has no terminal, at the site and with its own state folder, by:" in answer.out
    assert f"fedseg client approve-roster --state DIR --fingerprint {roster.fingerprint.hex()}\n" in answer.out
    assert json.loads(fedseg("study", "roster", study.root, "--json").out) == {
        "study": study.manifest.study,
        "plan_hash": study.manifest.plan_hash,
        "server_key": roster.server_key.hex(),
        "sites": [{"site": site, "key": key.hex()} for site, key in roster.keys.items()],
        "missing": [],
        "fingerprint": roster.fingerprint.hex(),
        "words": list(words(roster.fingerprint)),
    }


# Approval.


@pytest.fixture
def member(folder: SiteFolder) -> SiteFolder:
    """The folder of a site that has enrolled."""
    folder.root.mkdir()
    folder.remember(Membership("localhost:1", "a", "/data", None, "/ledger", None))
    return folder


@pytest.mark.parametrize(
    ("typed", "what"),
    [
        ("12" * 31 + "1g", "'g' is no hexadecimal digit"),
        ("12" * 31, "a fingerprint has 64 hexadecimal digits, this one 62"),
        ("legal winner thank year wave sausage", "these are words, not a fingerprint"),
        ("HEX", "these are words, not a fingerprint"),
    ],
)
def test_a_mistyped_fingerprint_approves_nothing(typed: str, what: str, fedseg: Command, member: SiteFolder) -> None:
    answer = fedseg("client", "approve-roster", "--state", member.root, "--fingerprint", typed)
    answer.says(2, what, "where: --fingerprint", "`fedseg study roster DIR` prints it at the coordinator's")
    assert member.approved is None


def test_an_approval_for_a_folder_that_is_no_sites(fedseg: Command, study: StudyFolder, tmp_path: Path) -> None:
    for place in (tmp_path / "none", study.root):
        answer = fedseg("client", "approve-roster", "--state", place, "--fingerprint", "12" * 32)
        answer.says(2, "this folder holds no site's state", str(place))
        assert not (place / "approved").exists()


def test_an_approval_is_given_while_another_process_holds_the_folder(fedseg: Command, member: SiteFolder) -> None:
    fingerprint = bytes(range(32))
    text = fingerprint.hex().upper()
    with exclusive(member.root):
        answer = fedseg("client", "approve-roster", "--state", member.root, "--fingerprint", f"{text[:20]} {text[20:]}")
    assert answer.code == 0, answer.err
    assert member.approved == fingerprint
    assert "Approved for a: the roster with these words, and no other" in answer.out
    for line in lines(fingerprint):
        assert f"  {line}\n" in answer.out
    assert "A `join` that waits goes on by itself" in answer.out
    assert f"fedseg client join --state {member.root}" in answer.out


# At a site: `client join`.


@pytest.mark.usefixtures("server")
def test_unattended_a_site_waits_for_an_approval_which_yes_is_not(
    join: Command, invite: MakeInvite, study: StudyFolder, folder: SiteFolder, went_on: list[str]
) -> None:
    enrol(study, "b", "c")

    def approve() -> None:
        assert folder.roster is None
        command = ["client", "approve-roster", "--state", str(folder.root)]
        command += ["--fingerprint", study.roster().fingerprint.hex()]
        subprocess.run([sys.executable, "-m", "fedseg", *command], check=True, timeout=60, env=ENVIRONMENT)

    with meanwhile(folder.log, "waiting: this site's operator to approve the roster", approve):
        answer = join(invite(), "--yes")
    assert answer.code == 0, answer.err
    roster = study.roster()
    assert (went_on, folder.roster) == (["a"], roster)
    assert answer.err.count("Nobody can be asked here: there is no terminal") == 1
    assert f"fedseg client approve-roster --state {folder.root} --fingerprint HEX" in answer.err
    assert f"fingerprint  {roster.fingerprint.hex()}" in answer.err
    assert f"this site takes part under roster {roster.fingerprint.hex()}" in folder.log.read_text()


@pytest.mark.usefixtures("server")
def test_on_a_terminal_yes_pins(
    join: Command,
    invite: MakeInvite,
    study: StudyFolder,
    folder: SiteFolder,
    went_on: list[str],
    terminal: Callable[[str], None],
) -> None:
    enrol(study, "b", "c")
    terminal(" Yes \n")
    answer = join(invite(), "--yes")
    assert answer.code == 0, answer.err
    assert (went_on, folder.roster) == (["a"], study.roster())
    assert "by a way that isn't this connection? Type yes" in answer.err
    for line in lines(study.roster().fingerprint):
        assert f"  {line}\n" in answer.err
    (mine,) = [line for line in answer.err.splitlines() if "this site" in line and line.startswith("a ")]
    assert "this site" in mine
    assert "Nobody can be asked here" not in answer.err


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("typed", ["\n", "no\n", "y\n"])
def test_on_a_terminal_anything_else_is_no(
    typed: str,
    join: Command,
    fedseg: Command,
    invite: MakeInvite,
    study: StudyFolder,
    folder: SiteFolder,
    went_on: list[str],
    nothing_sent: list[str],
    terminal: Callable[[str], None],
) -> None:
    enrol(study, "b", "c")
    terminal(typed)
    answer = join(invite(), "--yes")
    answer.says(
        1,
        "the roster was not confirmed: nothing was computed or sent",
        "if the words differ, tell the coordinator and the other hospitals",
        f"to be asked again: fedseg client join --state {folder.root}",
    )
    assert (went_on, folder.roster, nothing_sent) == ([], None, [])
    terminal("yes\n")
    assert fedseg("client", "join", "--state", folder.root).code == 0
    assert went_on == ["a"]


@pytest.mark.usefixtures("server")
def test_a_terminal_that_closes_is_no_answer(
    join: Command, invite: MakeInvite, study: StudyFolder, folder: SiteFolder, terminal: Callable[[str], None]
) -> None:
    enrol(study, "b", "c")
    terminal("")
    answer = join(invite(), "--yes")
    answer.says(130, "stopped before the roster was confirmed: nothing was computed or sent", "go on with: fedseg")
    assert folder.roster is None


@pytest.mark.usefixtures("server")
def test_waiting_for_a_site_can_be_stopped_and_goes_on(
    join: Command, fedseg: Command, invite: MakeInvite, study: StudyFolder, folder: SiteFolder, went_on: list[str]
) -> None:
    enrol(study, "b")
    with meanwhile(folder.log, "waiting: c to enrol", interrupt):
        answer = join(invite(), "--yes")
    answer.says(130, "waiting: c to enrol", "stopped before a roster was confirmed: nothing was computed or sent")
    assert f"go on with: fedseg client join --state {folder.root}" in answer.err
    assert (went_on, folder.roster) == ([], None)
    enrol(study, "c")
    # Approved before `join` waits: nobody is asked.
    fedseg("client", "approve-roster", "--state", folder.root, "--fingerprint", study.roster().fingerprint.hex())
    again = fedseg("client", "join", "--state", folder.root)
    assert again.code == 0, again.err
    assert "Nobody can be asked here" not in again.err
    assert (went_on, folder.roster) == (["a"], study.roster())


@pytest.mark.usefixtures("server")
def test_another_roster_than_the_approved_one(
    join: Command, fedseg: Command, invite: MakeInvite, study: StudyFolder, folder: SiteFolder, nothing_sent: list[str]
) -> None:
    with meanwhile(folder.log, "waiting: b, c to enrol", interrupt):
        join(invite(), "--yes").says(130)
    folder.approve(bytes(32))
    enrol(study, "b", "c")
    offered = study.roster().fingerprint.hex()
    answer = fedseg("client", "join", "--state", folder.root)
    answer.says(
        1,
        f"the server offers roster {offered}, approved here is {'00' * 32}",
        "somebody may have put a site of their own in a hospital's place",
        f"fedseg client approve-roster --state {folder.root} --fingerprint HEX",
    )
    assert (folder.roster, nothing_sent) == (None, [])


@pytest.mark.usefixtures("server")
def test_a_coordinator_who_mints_a_site_gets_nothing_until_it_is_approved(
    join: Command, fedseg: Command, invite: MakeInvite, study: StudyFolder, folder: SiteFolder, nothing_sent: list[str]
) -> None:
    enrol(study, "b", "c")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client, "_take_part", lambda *_: None)
        with meanwhile(folder.log, "to approve the roster", lambda: folder.approve(study.roster().fingerprint)):
            join(invite(), "--yes")
    honest = study.roster()
    assert folder.roster == honest
    enrol(study, "b")
    minted = study.roster()
    answer = fedseg("client", "join", "--state", folder.root)
    answer.says(
        1,
        "the roster is not the one that was confirmed here: b has another key "
        "(it enrolled again, or somebody speaks in its name)",
        f"confirmed {honest.fingerprint.hex()}, offered {minted.fingerprint.hex()}",
        "nothing was sent under it; ask whoever changed",
        f"fedseg client approve-roster --state {folder.root} --fingerprint HEX",
    )
    assert (folder.roster, nothing_sent) == (honest, [])
    fedseg("client", "approve-roster", "--state", folder.root, "--fingerprint", minted.fingerprint.hex())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client, "_take_part", lambda *_: None)
        assert fedseg("client", "join", "--state", folder.root).code == 0
    assert folder.roster == minted


@pytest.mark.usefixtures("server")
def test_a_server_that_speaks_in_this_sites_name(
    join: Command, fedseg: Command, invite: MakeInvite, study: StudyFolder, folder: SiteFolder, nothing_sent: list[str]
) -> None:
    with meanwhile(folder.log, "waiting: b, c to enrol", interrupt):
        join(invite(), "--yes").says(130)
    with closing(sqlite3.connect(study.root / "study.sqlite")) as book, book:
        book.execute("UPDATE sites SET protocol_key = ? WHERE name = 'a'", (protocol_public_key(new_protocol_key()),))
    answer = fedseg("client", "join", "--state", folder.root)
    answer.says(
        1,
        "the server gives this site, a, a key that is not its own",
        "nothing was sent; talk to the coordinator and the other sites",
    )
    assert (folder.roster, nothing_sent) == (None, [])
