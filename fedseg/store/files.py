"""Files that are whole or not there, and errors of the disk in words."""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedseg.errors import StorageError, UsageError

LOCK = ".lock"

_REASONS = {
    errno.ENOSPC: ("no room is left on the disk", "free some space and start again; nothing was lost"),
    errno.EDQUOT: ("the disk quota is used up", "free some space and start again; nothing was lost"),
    errno.EROFS: ("the disk is read-only", "use a folder on a disk that can be written to"),
    errno.ENOENT: ("there is no such file or folder", "check the path"),
    errno.EEXIST: ("something else is in the way", "name another folder"),
    errno.ENOTDIR: ("a part of the path is a file, not a folder", "check the path"),
    errno.EACCES: ("permission denied", "use a folder that belongs to you"),
}


def write_atomic(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Write a file so that after a crash the old or the new content is there, whole, and the new one stays.

    Args:
        path: Replaced if it exists; its folder must exist.
        data: The whole content.
        mode: Permissions of the file.

    Raises:
        StorageError: The disk is full, or the folder missing or not writable. `path` is untouched.
    """
    write_parts(path, [data], mode)


def write_parts(path: Path, parts: Iterable[bytes | memoryview], mode: int = 0o600) -> None:
    """Write a file as `write_atomic` does, one part after the other and without joining them in memory.

    Args:
        path: Replaced if it exists; its folder must exist.
        parts: What the file is made of; written as they are.
        mode: Permissions of the file.

    Raises:
        StorageError: As `write_atomic`.
    """
    with storage_errors(path):
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.writelines(parts)
                file.flush()
                os.fchmod(file.fileno(), mode)
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        fsync_folder(path.parent)


def fsync_folder(folder: Path) -> None:
    """Make new and renamed names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold a folder for this process alone.

    Raises:
        UsageError: Another process holds it.
        StorageError: The folder cannot be opened.
    """
    with storage_errors(folder):
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        hint = "let that one go on, or stop it first"
        raise UsageError("another fedseg process is at work in this folder", where=str(folder), hint=hint) from None
    try:
        yield
    finally:
        os.close(descriptor)


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` inside into a `StorageError` that names `path`."""
    try:
        yield
    except OSError as error:
        what, hint = _REASONS.get(error.errno or 0, (error.strerror or str(error), None))
        raise StorageError(what, where=str(path), hint=hint) from error
