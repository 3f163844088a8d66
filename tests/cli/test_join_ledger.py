"""`fedseg client join`: which ledger the scans are charged to, and that those are charged that train."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedseg.cli import client
from fedseg.errors import StorageError
from fedseg.runtime import hospital, pinning
from fedseg.runtime.site_folder import SiteFolder
from fedseg.runtime.study import StudyFolder
from fedseg.store.files import write_atomic
from fedseg.store.privacy_ledger import HospitalLedger
from tests.cli.conftest import Command, enrol, enrol_at_desk
from tests.conftest import Save, tiny_head

IMAGE = "sub-01/anat/sub-01_rec-srr_T2w.nii.gz"


@pytest.fixture
def read_only(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be written into the data folder."""

    def write(path: Path, content: bytes, mode: int = 0o600) -> None:
        if path.is_relative_to(data):
            raise StorageError("the disk is read-only", where=str(path))
        write_atomic(path, content, mode)

    monkeypatch.setattr(hospital, "write_atomic", write)


@pytest.mark.usefixtures("server", "read_only")
def test_read_only_scans_need_a_named_ledger_before_anything_is_agreed_to(
    fedseg: Command, invite: Callable[..., str], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_confirm_roster", lambda *_: None)
    monkeypatch.setattr(client, "_take_part", lambda *_: None)
    state = SiteFolder(tmp_path / "state")
    with monkeypatch.context() as patch:
        patch.setattr("fedseg.cli.consent.consent", lambda *_: pytest.fail("it was asked for consent"))
        answer = fedseg("client", "join", invite("a"), "--data", data, "--state", state.root, "--yes")
    answer.says(1, "this data folder cannot be written to", "a second ledger for the same scans", "--ledger DIR")
    assert state.manifest is None
    assert not (tmp_path / "home" / ".fedseg").exists()
    again = fedseg("client", "join", "--state", state.root, "--yes", "--ledger", tmp_path / "named")
    assert again.code == 0, again.err
    assert HospitalLedger.open(tmp_path / "named").ledger.charges() == ()
    assert state.manifest is not None
    assert {path.name for path in (tmp_path / "home" / ".fedseg").iterdir()} == {"known", "bindings"}


@pytest.fixture
def approved(study: StudyFolder, data: Path, tmp_path: Path) -> SiteFolder:
    """The state of site a, enrolled, in front of a roster that it has approved."""
    enrol(study, "b", "c")
    folder = enrol_at_desk(study, "a", SiteFolder(tmp_path / "state"), data=data, ledger=tmp_path / "ledger")
    folder.approve(study.roster().fingerprint)
    return folder


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Sites that went as far as the study itself, which ends at once."""
    sites: list[str] = []

    class Runner:
        released = None
        personal = None

        def __init__(self, identity: Any, *_words: Any, **_more: Any) -> None:
            self.site = identity.site

        def run(self) -> Any:
            sites.append(self.site)
            return type("Finished", (), {"history": ()})()

        def say_goodbye(self, _finished: Any) -> None: ...

    monkeypatch.setattr("fedseg.runtime.site.SiteRunner", Runner)
    return sites


@pytest.mark.usefixtures("server")
def test_a_scan_that_is_replaced_while_the_roster_is_waited_for_is_not_charged_as_the_one_before(
    fedseg: Command,
    approved: SiteFolder,
    ran: list[str],
    data: Path,
    save: Save,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await_roster = pinning.await_roster

    def replaced(*words: Any, **more: Any) -> Any:
        save(data / IMAGE, tiny_head(seed=77)[0])
        return await_roster(*words, **more)

    with monkeypatch.context() as patch:
        patch.setattr(pinning, "await_roster", replaced)
        answer = fedseg("client", "join", "--state", approved.root, "--yes")
    answer.says(1, "scans were replaced since this site read them for its ledger", "nothing was trained")
    answer.says(1, f"fedseg client join --state {approved.root}")
    assert ran == []
    assert HospitalLedger.open(tmp_path / "ledger").ledger.charges() == ()
    assert fedseg("client", "join", "--state", approved.root, "--yes").code == 0
    assert ran == ["a"]


@pytest.mark.usefixtures("server")
def test_at_the_studys_end_no_update_is_left(fedseg: Command, approved: SiteFolder, ran: list[str]) -> None:
    approved.memory.save_contribution(2, "a" * 64, np.arange(5, dtype=np.uint32))
    approved.memory.save_masked(b"1" * 32, np.arange(5, dtype=np.uint32))
    answer = fedseg("client", "join", "--state", approved.root, "--yes")
    assert answer.code == 0, answer.err
    assert ran == ["a"]
    assert not [*approved.root.glob("*contribution-*"), *approved.root.glob("*masked-*")]
