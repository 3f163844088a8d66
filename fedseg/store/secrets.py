"""Small files that hold a site's secrets: replaced whole, and what they held before is overwritten.

Overwriting is best effort. It does what it says on a file system that writes in place; an SSD may keep the old block,
a copy-on-write file system, a snapshot or a backup does. What must stay secret even from such a copy needs a disk that
is encrypted. A crash leaves nothing that the next `replace` or `erase` of the same path doesn't overwrite.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from fedseg.errors import StorageError
from fedseg.store.files import fsync_folder, storage_errors

_PIECE = 1 << 16


def replace(path: Path, data: bytes) -> None:
    """Make `data` the whole content of a file that only its owner may read, and overwrite what it held before.

    Once this returns the content is durable. After a crash the old or the new content is there, whole.

    Args:
        path: In a folder that no other process works in; the file is made where it is missing.
        data: The content.

    Raises:
        StorageError: The disk is full or failing. The old content is untouched, unless it was the overwriting of it
            that failed: then the file holds `data`, and the next `replace` or `erase` overwrites again.
    """
    with storage_errors(path):
        _sweep(path)
        try:
            _swap(path, data)
        except OSError:
            with suppress(OSError):
                _sweep(path)
            raise


def erase(path: Path) -> None:
    """Overwrite and remove a file; one that is missing is well. It is gone at once, and durably when this returns.

    Raises:
        StorageError: The disk is failing; the next `erase` overwrites what is left.
    """
    _, former = _companions(path)
    with storage_errors(path):
        _sweep(path)
        with suppress(FileNotFoundError):
            path.rename(former)
            fsync_folder(path.parent)
            _wipe(former)
            fsync_folder(path.parent)


def read(path: Path, most: int) -> bytes | None:
    """The content of a file; None where there is none.

    Args:
        path: The file.
        most: Bytes that it may have.

    Raises:
        StorageError: It holds more, or cannot be read.
    """
    with storage_errors(path):
        try:
            with path.open("rb") as file:
                data = file.read(most + 1)
        except FileNotFoundError:
            return None
    if len(data) > most:
        hint = "it was damaged, or is another program's"
        raise StorageError(f"the file holds more than the {most} bytes that it may have", where=str(path), hint=hint)
    return data


def _companions(path: Path) -> tuple[Path, Path]:
    """The names beside `path` under which its next content is written and its last one overwritten."""
    return path.with_name(f".{path.name}.next"), path.with_name(f".{path.name}.last")


def sweep(path: Path) -> None:
    """Overwrite and remove what a crash has left beside a file.

    Raises:
        StorageError: The disk is failing.
    """
    with storage_errors(path):
        _sweep(path)


def _sweep(path: Path) -> None:
    fresh, former = _companions(path)
    _wipe(fresh)
    if former.exists() and path.exists() and former.samefile(path):
        former.unlink()  # a second name of what is still the content
    else:
        _wipe(former)


def _swap(path: Path, data: bytes) -> None:
    fresh, former = _companions(path)
    _write_new(fresh, data)
    old = _open_for_overwriting(path)
    try:
        if old is not None:
            with suppress(OSError):  # a file system without second names: there a crash may leave the old bytes
                os.link(path, former)
        fresh.replace(path)
        fsync_folder(path.parent)
        if old is not None:
            _overwrite(old)
    finally:
        if old is not None:
            os.close(old)
    former.unlink(missing_ok=True)


def _write_new(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _wipe(path: Path) -> None:
    descriptor = _open_for_overwriting(path)
    if descriptor is None:
        return
    try:
        _overwrite(descriptor)
    finally:
        os.close(descriptor)
    path.unlink()


def _open_for_overwriting(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None


def _overwrite(descriptor: int) -> None:
    size, offset = os.fstat(descriptor).st_size, 0
    while offset < size:
        offset += os.pwrite(descriptor, bytes(min(_PIECE, size - offset)), offset)
    os.fsync(descriptor)
