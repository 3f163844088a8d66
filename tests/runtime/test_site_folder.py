from __future__ import annotations

import json
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedseg.errors import InviteError, LedgerError, StorageError, UsageError
from fedseg.rpc.certificates import new_protocol_key
from fedseg.rpc.invites import Invite
from fedseg.rpc.service import start_server
from fedseg.runtime.coordinator import Coordinator
from fedseg.runtime.evidence import MemoryEvidence
from fedseg.runtime.serve import desk_of
from fedseg.runtime.site_folder import Membership, SiteFolder
from fedseg.runtime.study import StudyFolder
from fedseg.secagg.roster import Roster
from fedseg.secagg.signing import public_half
from tests.runtime import toy

NOW = time.time()


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StudyFolder]:
    """A served study."""
    root = tmp_path_factory.mktemp("served") / "study"
    folder = StudyFolder.create(root, toy.plan(), toy.FIRST, address="127.0.0.1:1", now=NOW)
    coordinator = Coordinator(
        folder.manifest,
        folder.archive,
        enrolled=folder.enrolled,
        key=folder.signing_key,
        evidence=MemoryEvidence(),
        notify=lambda _: None,
    )
    server, port = start_server(desk_of(folder, coordinator), "127.0.0.1:0", folder.tls, sites=3)
    (root / "address").write_text(f"127.0.0.1:{port}")
    yield folder
    server.stop(0).wait()


@pytest.fixture
def site(tmp_path: Path) -> SiteFolder:
    return SiteFolder(tmp_path / "state")


def enrol(site: SiteFolder, invite: Invite) -> None:
    site.enrol(
        invite, data=Path("/data/bids"), labels="fidon", ledger=Path("/ledger"), policy="min_sites: 3\n", now=NOW
    )


def test_enrolling_leaves_all_that_is_needed_to_go_on(study: StudyFolder, site: SiteFolder) -> None:
    invite = study.invite("a", now=NOW, hours=1)
    site.refuse_other_study(invite)
    enrol(site, invite)
    again = SiteFolder.open(site.root)
    assert again.membership == Membership(
        study.address, "a", "/data/bids", "fidon", "/ledger", "min_sites: 3\n"
    )  # fmt: skip
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in site.root.rglob("*") if path.is_file()}
    assert modes == {"tls.key": 0o600, "protocol.key": 0o600, "tls.pem": 0o644, "ca.pem": 0o644, "site.json": 0o600}
    with again.connect() as remote:
        assert remote.manifest() == study.manifest.to_json()
    assert again.manifest is None
    again.accept(study.manifest)
    assert again.manifest == study.manifest
    # The public half of the protocol key is in the study's book, the private one only here.
    (row,) = [row for row in study.db.sites() if row.name == "a"]
    assert row.protocol_key == public_half(site.protocol_key)
    assert row.protocol_key != site.protocol_key


def test_an_enrolment_that_failed_may_begin_anew(study: StudyFolder, site: SiteFolder) -> None:
    used = study.invite("b", now=NOW, hours=1)
    enrol(SiteFolder(site.root.parent / "other"), used)
    with pytest.raises(InviteError, match="this invite has been used"):
        enrol(site, used)
    assert not site.enrolled
    invite = study.invite("b", now=NOW, hours=1)
    site.refuse_other_study(invite)
    enrol(site, invite)
    assert site.enrolled


def test_one_folder_one_study(study: StudyFolder, site: SiteFolder, tmp_path: Path) -> None:
    enrol(site, study.invite("c", now=NOW, hours=1))
    with pytest.raises(UsageError) as caught:
        site.refuse_other_study(study.invite("c", now=NOW, hours=1))
    assert caught.value.what == "this site has joined already"
    assert caught.value.hint == f"go on with: fedseg client join --state {site.root}"
    other = StudyFolder.create(tmp_path / "other", toy.plan(), toy.FIRST, address="127.0.0.1:1", now=NOW)
    for invite in (other.invite("c", now=NOW, hours=1), study.invite("a", now=NOW, hours=1)):
        with pytest.raises(UsageError, match=r"this folder is the state of another study or site \(name a new folder"):
            site.refuse_other_study(invite)


def test_a_folder_with_something_else_in_it_is_refused(study: StudyFolder, tmp_path: Path) -> None:
    invite = study.invite("a", now=NOW, hours=1)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    (tmp_path / "file").touch()
    for name in ("full", "file"):
        with pytest.raises(UsageError, match=r"the state folder is not empty \(name a new folder with --state\)"):
            SiteFolder(tmp_path / name).refuse_other_study(invite)
    (tmp_path / "empty").mkdir()
    SiteFolder(tmp_path / "empty").refuse_other_study(invite)


def test_a_command_names_a_folder_as_a_shell_takes_it(study: StudyFolder, tmp_path: Path) -> None:
    site, invite = SiteFolder(tmp_path / "my state"), study.invite("a", now=NOW, hours=1)
    enrol(site, invite)
    with pytest.raises(UsageError) as caught:
        site.refuse_other_study(invite)
    assert caught.value.hint == f"go on with: fedseg client join --state '{site.root}'"
    (site.root / "approved").write_text("x")
    with pytest.raises(StorageError, match=f"approve-roster --state '{site.root}' --fingerprint HEX"):
        _ = site.approved


def test_a_folder_without_a_membership(site: SiteFolder) -> None:
    with pytest.raises(UsageError, match="this folder holds no site's state") as caught:
        SiteFolder.open(site.root)
    assert "fedseg client join INVITE --data BIDS_DIR --state DIR" in (caught.value.hint or "")


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', "{}", json.dumps({"address": "x"}), "null"])
def test_a_damaged_membership_is_named(site: SiteFolder, text: str) -> None:
    site.root.mkdir()
    (site.root / "site.json").write_text(text)
    with pytest.raises(StorageError, match=r"site\.json: the site's state is damaged") as caught:
        _ = site.membership
    assert caught.value.hint == (
        "restore this folder from a backup; or ask the coordinator for a new invite, and join with it and another "
        "--state"
    )


# The roster.


def _roster(*keys: bytes) -> Roster:
    names = dict(zip("abc", map(public_half, keys), strict=True))
    return Roster("study", b"p" * 32, public_half(b"S" * 32), names)


FIRST, CHANGED = _roster(b"A" * 32, b"B" * 32, b"C" * 32), _roster(b"A" * 32, b"X" * 32, b"C" * 32)


def test_a_roster_is_pinned_and_read_back(site: SiteFolder) -> None:
    site.root.mkdir()
    assert site.roster is None
    for roster in (FIRST, CHANGED):
        site.pin_roster(roster)
        assert SiteFolder(site.root).roster == roster
    data = (site.root / "roster.bin").read_bytes()
    for damaged in (b"", data[:-1], data + b"x", data.replace(b"study", b"\xff\xff\xff\xff\xff")):
        (site.root / "roster.bin").write_bytes(damaged)
        with pytest.raises(StorageError, match=r"roster\.bin: the pinned roster is damaged.*restore this folder"):
            _ = site.roster


def test_an_approval_is_the_last_one(site: SiteFolder) -> None:
    site.root.mkdir()
    assert site.approved is None
    for roster in (FIRST, CHANGED):
        site.approve(roster.fingerprint)
    assert SiteFolder(site.root).approved == CHANGED.fingerprint
    assert site.roster is None


@pytest.mark.parametrize("data", [b"", b"ab" * 31, b"\xff" * 64, b"no" * 32])
def test_a_damaged_approval_is_named(site: SiteFolder, data: bytes) -> None:
    site.root.mkdir()
    (site.root / "approved").write_bytes(data)
    with pytest.raises(StorageError, match="approved: the approved fingerprint is damaged") as caught:
        _ = site.approved
    assert caught.value.hint == f"approve again: fedseg client approve-roster --state {site.root} --fingerprint HEX"


@pytest.mark.parametrize("data", [b"", b"x" * 31, b"x" * 33])
def test_a_damaged_protocol_key_is_named(site: SiteFolder, data: bytes) -> None:
    (site.root / "keys").mkdir(parents=True)
    with pytest.raises(StorageError, match=r"protocol\.key: there is no such file or folder"):
        _ = site.protocol_key
    (site.root / "keys" / "protocol.key").write_bytes(data)
    with pytest.raises(StorageError, match=r"protocol\.key: this site's protocol key is damaged.*restore this folder"):
        _ = site.protocol_key


# The log.


@pytest.fixture
def member(site: SiteFolder) -> SiteFolder:
    """A site's folder with its key, as enrolment leaves it."""
    (site.root / "keys").mkdir(parents=True)
    (site.root / "keys" / "protocol.key").write_bytes(new_protocol_key())
    site.remember(Membership("localhost:1", "a", "/data", None, "/ledger", None))
    return site


def test_a_site_begins_its_log_and_goes_on_with_it(member: SiteFolder) -> None:
    for _ in range(2):
        with member.open_audit("ab" * 16), pytest.raises(LedgerError):
            member.open_audit("ab" * 16)
    assert member.audit.read_bytes().count(b"\n") == 1


def test_a_log_that_is_gone_is_not_begun_anew(member: SiteFolder) -> None:
    member.open_audit("ab" * 16).close()
    member.memory.save_session(b"a session")
    member.audit.unlink()
    with pytest.raises(LedgerError):
        member.open_audit("ab" * 16)
