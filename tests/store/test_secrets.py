from __future__ import annotations

import errno
import itertools
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedseg.errors import StorageError
from fedseg.store import secrets

OLD, NEW = b"old secret " * 20_000, b"new secret " * 10
CALLS = ("open", "fsync", "replace", "link", "unlink", "pwrite", "rename")


class Crash(BaseException):
    """The process dies here: nothing that follows is run."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "site.secret"
    secrets.replace(made, OLD)
    return made


def _left(folder: Path) -> bytes:
    return b"".join(each.read_bytes() for each in folder.iterdir())


def _fail_at(patched: pytest.MonkeyPatch, count: int, error: Callable[[], BaseException]) -> None:
    """Make the `count`-th call that touches the disk fail, and every one after it too."""
    calls = itertools.count()

    def wrap(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*args: Any, **more: Any) -> Any:
            if next(calls) >= count:
                raise error()
            return real(*args, **more)

        return call

    for name in CALLS:
        patched.setattr(os, name, wrap(name))


def _crash_at(count: int, act: Callable[[], None]) -> bool:
    with pytest.MonkeyPatch.context() as patched:
        _fail_at(patched, count, Crash)
        try:
            act()
        except Crash:
            return True
    return False


def test_what_is_written_is_read_by_its_owner_alone(path: Path) -> None:
    assert secrets.read(path, len(OLD)) == OLD
    before = os.umask(0)
    try:
        secrets.replace(path, NEW)
    finally:
        os.umask(before)
    assert secrets.read(path, 1000) == NEW
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_the_old_bytes_are_zeros_once_they_are_replaced(path: Path) -> None:
    with path.open("rb") as old:
        secrets.replace(path, NEW)
        assert old.read() == bytes(len(OLD))


def test_the_bytes_are_zeros_once_they_are_erased(path: Path) -> None:
    with path.open("rb") as old:
        secrets.erase(path)
        assert old.read() == bytes(len(OLD))
    assert list(path.parent.iterdir()) == []


def test_where_files_have_no_second_name_the_old_bytes_are_overwritten_too(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    with path.open("rb") as old:
        secrets.replace(path, NEW)
        assert old.read() == bytes(len(OLD))
    assert list(path.parent.iterdir()) == [path]


def test_what_is_missing_reads_as_none_and_is_erased_already(tmp_path: Path) -> None:
    assert secrets.read(tmp_path / "none", 10) is None
    secrets.erase(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_too_large_is_not_read_whole(path: Path) -> None:
    with pytest.raises(StorageError, match=r"site\.secret: the file holds more than the 10 bytes that it may have"):
        secrets.read(path, 10)
    assert secrets.read(path, len(OLD)) == OLD


def test_a_link_is_not_followed_to_what_it_would_overwrite(path: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(StorageError):
        secrets.replace(tmp_path / "link", NEW)
    assert path.read_bytes() == OLD


def test_a_crash_anywhere_in_replace_leaves_old_or_new_and_no_trace_after_the_next(tmp_path: Path) -> None:
    ends = set()
    for count in itertools.count():
        path = tmp_path / str(count) / "site.secret"
        path.parent.mkdir()
        secrets.replace(path, OLD)
        crashed = _crash_at(count, lambda path=path: secrets.replace(path, NEW))  # type: ignore[misc]
        ends.add(secrets.read(path, len(OLD)))
        with path.open("rb") as first:
            secrets.replace(path, b"third")
            assert set(first.read()) == {0}
        assert _left(path.parent) == b"third"
        assert list(path.parent.iterdir()) == [path]
        if not crashed:
            break
    assert ends == {OLD, NEW}
    assert count > 8


def test_a_crash_anywhere_in_erase_leaves_it_whole_or_gone_and_no_trace_after_the_next(tmp_path: Path) -> None:
    ends = set()
    for count in itertools.count():
        path = tmp_path / str(count) / "site.secret"
        path.parent.mkdir()
        secrets.replace(path, OLD)
        with path.open("rb") as old:
            crashed = _crash_at(count, lambda path=path: secrets.erase(path))  # type: ignore[misc]
            ends.add(secrets.read(path, len(OLD)))
            secrets.erase(path)
            assert old.read() == bytes(len(OLD))
        assert list(path.parent.iterdir()) == []
        if not crashed:
            break
    assert ends == {OLD, None}


def test_a_full_disk_anywhere_is_said_and_never_loses_the_content(tmp_path: Path) -> None:
    for count in itertools.count():
        path = tmp_path / str(count) / "site.secret"
        path.parent.mkdir()
        secrets.replace(path, OLD)
        with pytest.MonkeyPatch.context() as patched:
            _fail_at(patched, count, lambda: OSError(errno.ENOSPC, "No space left on device"))
            try:
                secrets.replace(path, NEW)
                break
            except StorageError as error:
                assert str(error).startswith(f"{path}: no room is left on the disk (free some space")
        assert secrets.read(path, len(OLD)) in (OLD, NEW)
        secrets.erase(path)
        assert list(path.parent.iterdir()) == []
    assert count > 8


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_content_and_wipes_the_new(
    path: Path, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    real = os.open

    def spy(name: Any, flags: int, *more: int) -> int:
        descriptor = real(name, flags, *more)
        if flags & os.O_CREAT:
            opened.append(os.dup(descriptor))
        return descriptor

    def fail_once(*_: object) -> None:
        monkeypatch.undo()
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "open", spy)
    monkeypatch.setattr(os, failing, fail_once)
    with pytest.raises(StorageError, match=r"site\.secret: Input/output error"):
        secrets.replace(path, NEW)
    assert path.read_bytes() == OLD
    assert list(path.parent.iterdir()) == [path]
    (fresh,) = opened
    assert Path(f"/proc/self/fd/{fresh}").read_bytes() == bytes(len(NEW))
    os.close(fresh)
