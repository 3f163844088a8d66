from __future__ import annotations

import json
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fedseg.errors import InviteError, StorageError, UsageError
from fedseg.rpc.invites import Invite
from fedseg.rpc.service import start_server
from fedseg.runtime.coordinator import Coordinator
from fedseg.runtime.ports import Standing
from fedseg.runtime.serve import desk_of
from fedseg.runtime.site_folder import Membership, SiteFolder
from fedseg.runtime.study import DiskArchive, StudyFolder
from tests.runtime import toy

NOW = time.time()


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StudyFolder]:
    """A served study."""
    root = tmp_path_factory.mktemp("served") / "study"
    folder = StudyFolder.create(root, toy.plan(), toy.INITIAL, {"preset": "toy"}, address="127.0.0.1:1", now=NOW)
    coordinator = Coordinator(folder.manifest, DiskArchive(folder), notify=lambda _: None)
    server, port = start_server(desk_of(folder, folder.manifest, coordinator), "127.0.0.1:0", folder.tls, sites=3)
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
    assert len(row.protocol_key) == 32
    assert row.protocol_key != (site.root / "keys" / "protocol.key").read_bytes()


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
    other = StudyFolder.create(
        tmp_path / "other", toy.plan(), toy.INITIAL, {"preset": "toy"}, address="127.0.0.1:1", now=NOW
    )
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


def test_a_folder_without_a_membership(site: SiteFolder) -> None:
    with pytest.raises(UsageError, match="this folder holds no site's state") as caught:
        SiteFolder.open(site.root)
    assert "fedseg client join INVITE --data BIDS_DIR --state DIR" in (caught.value.hint or "")


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', "{}", json.dumps({"address": "x"}), "null"])
def test_a_damaged_membership_is_named(site: SiteFolder, text: str) -> None:
    site.root.mkdir()
    (site.root / "site.json").write_text(text)
    with pytest.raises(StorageError, match=r"site\.json: the site's state is damaged"):
        _ = site.membership


def test_weights_survive_a_restart(site: SiteFolder) -> None:
    site.root.mkdir()
    assert site.weights() is None
    for value in (1, 2):
        site.save_weights(np.full(5, value, np.float32))
    kept = SiteFolder(site.root).weights()
    assert kept is not None
    np.testing.assert_array_equal(kept, np.full(5, 2, np.float32))


def test_a_standing_survives_a_restart(site: SiteFolder) -> None:
    site.root.mkdir()
    assert site.standing() == Standing()
    site.save_standing(Standing(3, 2, unmasked=True))
    assert SiteFolder(site.root).standing() == Standing(3, 2, unmasked=True)
    (site.root / "standing.json").write_text("{")
    with pytest.raises(StorageError, match=r"standing\.json: the site's standing in the protocol is damaged"):
        site.standing()


def test_a_contribution_is_kept_for_its_round_and_model_only(site: SiteFolder) -> None:
    site.root.mkdir()
    vector = np.arange(5, dtype=np.uint32)
    assert site.contribution(1, "a" * 64) is None
    site.save_contribution(1, "a" * 64, vector)
    kept = SiteFolder(site.root).contribution(1, "a" * 64)
    assert kept is not None
    np.testing.assert_array_equal(kept, vector)
    assert site.contribution(2, "a" * 64) is None
    assert site.contribution(1, "b" * 64) is None
    site.save_contribution(2, "b" * 64, vector)
    assert site.contribution(1, "a" * 64) is None
    assert len(list(site.root.iterdir())) == 1


def test_a_contribution_that_was_cut_short_is_not_sent(site: SiteFolder) -> None:
    site.root.mkdir()
    site.save_contribution(1, "a" * 64, np.arange(5, dtype=np.uint32))
    (path,) = site.root.iterdir()
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(StorageError, match="the file is cut short, or no vector"):
        site.contribution(1, "a" * 64)
