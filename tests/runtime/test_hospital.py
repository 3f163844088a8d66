from __future__ import annotations

import errno
from pathlib import Path
from typing import NoReturn

import pytest

from fedseg.errors import LedgerError, StorageError
from fedseg.runtime.hospital import ID_FILE, Hospital
from fedseg.store.files import write_atomic


@pytest.fixture
def ours(tmp_path: Path) -> Hospital:
    """A hospital with scans and a home, and no ledger yet."""
    (tmp_path / "scans").mkdir()
    return Hospital(tmp_path / "scans", tmp_path / "home")


def test_one_ledger_a_data_folder_in_the_operators_home(ours: Hospital) -> None:
    folder = ours.ledger_folder(None)
    assert folder.parent == ours.home / ".fedseg" / "ledgers"
    assert Hospital(ours.data / ".." / "scans", ours.home).ledger_folder(None) == folder
    assert Hospital(ours.data.parent, ours.home).ledger_folder(None) != folder
    assert not ours.home.exists()


def test_a_new_study_finds_the_ledger_of_the_first(ours: Hospital, tmp_path: Path) -> None:
    place = ours.ledger_folder(tmp_path / "ledger")
    assert place == tmp_path / "ledger"
    ledger = ours.first_ledger(place)
    assert (ours.data / ID_FILE).read_text() == f"{place}\n"
    assert ours.ledger_folder(None) == place
    assert ours.ledger_folder(tmp_path / "scans" / ".." / "ledger") == place
    for again in (ours.first_ledger(place), ours.known_ledger(place)):
        assert again.ledger.identity == ledger.ledger.identity
    assert Hospital(ours.data, tmp_path / "another home").ledger_folder(None) == place


def test_another_ledger_for_the_same_scans_is_refused(ours: Hospital, tmp_path: Path) -> None:
    ours.first_ledger(tmp_path / "ledger")
    for call in (ours.ledger_folder, ours.first_ledger):
        with pytest.raises(LedgerError) as caught:
            call(tmp_path / "clean")
        assert (
            caught.value.what == f"this data folder's privacy ledger is {tmp_path / 'ledger'}, not {tmp_path / 'clean'}"
        )
        assert caught.value.where == str(ours.data / ID_FILE)
    assert not (tmp_path / "clean").exists()


def test_a_ledger_that_moved_is_followed_once_its_new_place_is_written_down(ours: Hospital, tmp_path: Path) -> None:
    ledger = ours.first_ledger(tmp_path / "ledger").ledger.identity
    (tmp_path / "ledger").rename(tmp_path / "elsewhere")
    with pytest.raises(LedgerError, match="is missing") as caught:
        ours.known_ledger(tmp_path / "ledger")
    assert "write its new place into" in str(caught.value.hint)
    (ours.data / ID_FILE).write_text(f"{tmp_path / 'elsewhere'}\n")
    assert ours.known_ledger(tmp_path / "ledger").ledger.identity == ledger
    assert ours.kept_ledger(tmp_path / "clean") == tmp_path / "elsewhere"


def test_a_ledger_that_is_gone_is_not_begun_anew(ours: Hospital, tmp_path: Path) -> None:
    ours.first_ledger(tmp_path / "ledger")
    (tmp_path / "ledger").rename(tmp_path / "elsewhere")
    for call in (lambda: ours.ledger_folder(None), lambda: ours.first_ledger(tmp_path / "ledger")):
        with pytest.raises(LedgerError, match="what its subjects have spent is unknown") as caught:
            call()
        assert f"restore it from a backup, or write its new place into {ours.data / ID_FILE}" in str(caught.value)
    assert not (tmp_path / "ledger").exists()
    (ours.data / ID_FILE).write_text(str(tmp_path / "elsewhere"))
    assert ours.ledger_folder(None) == tmp_path / "elsewhere"


def test_a_joined_study_needs_its_ledger(ours: Hospital, tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="missing"):
        ours.known_ledger(tmp_path / "ledger")


def test_a_table_of_pairs_is_bound_by_its_folder(ours: Hospital, tmp_path: Path) -> None:
    table = ours.data / "pairs.csv"
    table.write_text("image,label\n")
    Hospital(table, ours.home).first_ledger(tmp_path / "ledger")
    assert ours.ledger_folder(None) == Hospital(table, ours.home).ledger_folder(None) == tmp_path / "ledger"


def test_read_only_scans_are_bound_from_the_home_folder(
    ours: Hospital, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_elsewhere(path: Path, content: bytes) -> None:
        if path.parent == ours.data:
            refuse(path)
        write_atomic(path, content)

    monkeypatch.setattr("fedseg.runtime.hospital.write_atomic", write_elsewhere)
    ledger = ours.first_ledger(tmp_path / "ledger")
    assert not (ours.data / ID_FILE).exists()
    assert ours.ledger_folder(None) == ledger.folder == tmp_path / "ledger"
    with pytest.raises(LedgerError, match="this data folder's privacy ledger is"):
        ours.first_ledger(tmp_path / "clean")


def refuse(path: Path) -> NoReturn:
    raise StorageError("the disk is read-only", where=str(path)) from OSError(errno.EROFS, "Read-only file system")
