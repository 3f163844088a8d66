from __future__ import annotations

import errno
import gc
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedseg.errors import ProtocolError, StorageError
from fedseg.rpc import staging
from fedseg.rpc.staging import stage
from fedseg.rpc.transfer import CHUNK_BYTES
from fedseg.secagg.messages import input_digest


def in_pieces(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    ends = sorted({*cuts, len(data)} - {0})
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        yield data[start:end]


@given(st.binary(min_size=1, max_size=100), st.data())
def test_what_was_sent_is_there_however_it_was_cut(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, drawn: st.DataObject
) -> None:
    data *= 4
    cuts = drawn.draw(st.lists(st.integers(1, len(data)), max_size=5))
    vector = stage(tmp_path_factory.getbasetemp(), in_pieces(data, cuts), len(data))
    assert vector.dtype == np.uint32
    assert vector.tobytes() == data


def test_the_words_are_little_endian(tmp_path: Path) -> None:
    assert stage(tmp_path, [b"\1\0\0\0\0\0\0\x80"], 8).tolist() == [1, 2**31]


def test_a_vector_larger_than_a_piece_comes_whole_and_is_used_like_one_in_memory(tmp_path: Path) -> None:
    sent = np.random.default_rng(0).integers(0, 2**32, 600_000, dtype=np.uint32)
    data = sent.tobytes()
    vector = stage(tmp_path, in_pieces(data, list(range(0, len(data), CHUNK_BYTES))), len(data))
    assert input_digest(bytes(32), "brno", ["brno"], vector) == input_digest(bytes(32), "brno", ["brno"], sent)
    np.testing.assert_array_equal(vector + vector, sent + sent)


def test_nobody_can_write_to_it(tmp_path: Path) -> None:
    vector = stage(tmp_path, [bytes(8)], 8)
    assert not vector.flags.writeable
    with pytest.raises(ValueError, match="cannot set WRITEABLE flag"):
        vector.flags.writeable = True


def open_files(folder: Path) -> list[os.stat_result]:
    links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return [link.stat() for link in links if str(link.readlink()).startswith(f"{folder}/")]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc to see open files")
def test_its_file_has_no_name_no_other_reader_and_goes_with_it(tmp_path: Path) -> None:
    def parts() -> Iterator[bytes]:
        for _ in range(2):
            yield bytes(4)
            assert list(tmp_path.iterdir()) == []

    vector = stage(tmp_path, parts(), 8)
    (status,) = open_files(tmp_path)
    assert (stat.S_IMODE(status.st_mode), status.st_nlink, status.st_size) == (0o600, 0, 8)
    assert vector.sum() == 0
    del vector
    gc.collect()
    assert open_files(tmp_path) == []


def nothing_may_come() -> Iterator[bytes]:
    pytest.fail("a piece was asked for")
    yield b""


@pytest.mark.parametrize("size", [0, -4, 6, staging.MAX_BYTES + 4])
def test_a_size_that_no_vector_has_is_refused_before_anything_is_written(tmp_path: Path, size: int) -> None:
    with pytest.raises(ProtocolError, match=f"no vector has {size} bytes"):
        stage(tmp_path / "none", nothing_may_come(), size)


@pytest.mark.parametrize(
    ("parts", "size", "message"),
    [
        ([bytes(8), bytes(4)], 8, "a piece of 4 bytes where 0 of 8 were left to come"),
        ([bytes(9)], 8, "a piece of 9 bytes where 8 of 8 were left to come"),
        ([bytes(4), b"", bytes(4)], 8, "a piece of 0 bytes where 4 of 8 were left to come"),
        ([bytes(CHUNK_BYTES + 4)], CHUNK_BYTES + 4, "a piece of 1048580 bytes where"),
        ([bytes(7)], 8, "a transfer was cut short: 7 of 8 bytes"),
        ([], 8, "a transfer was cut short: 0 of 8 bytes"),
    ],
)
def test_more_or_fewer_bytes_and_odd_pieces_are_refused(
    tmp_path: Path, parts: list[bytes], size: int, message: str
) -> None:
    with pytest.raises(ProtocolError, match=message):
        stage(tmp_path, parts, size)
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"none: an upload cannot be kept: No such file") as caught:
        stage(tmp_path / "none", [bytes(4)], 4)
    assert caught.value.hint == "use a folder that can be written to"


FULL = """
import resource, signal, sys
from pathlib import Path
from fedseg.errors import StorageError
from fedseg.rpc.staging import stage
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    stage(Path(sys.argv[1]), [bytes(600), bytes(600)], 1200)
except StorageError as error:
    print(error)
"""


def test_a_write_that_stops_short_is_seen(tmp_path: Path) -> None:
    told = subprocess.run([sys.executable, "-c", FULL, tmp_path], capture_output=True, text=True, check=True).stdout
    assert told == f"{tmp_path}: an upload cannot be kept: File too large (use a folder that can be written to)\n"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def full(_file: object, _part: bytes) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(staging, "_write", full)
    with pytest.raises(StorageError, match="no room is left on the disk for an upload") as caught:
        stage(tmp_path, [bytes(4)], 4)
    assert (caught.value.where, caught.value.hint) == (
        str(tmp_path),
        "free some space: a site sends its upload again",
    )


MEMORY = """
import resource, sys
from pathlib import Path
from fedseg.rpc.staging import stage
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
held = [stage(Path(sys.argv[1]), (bytes(1 << 20) for _ in range(32)), 32 << 20) for _ in range(3)]
print(peak() - before)
"""


def test_uploads_that_wait_hold_no_memory(tmp_path: Path) -> None:
    """Three of 32 MiB each."""
    told = subprocess.run([sys.executable, "-c", MEMORY, tmp_path], capture_output=True, text=True, check=True).stdout
    unit = 1024 if sys.platform == "linux" else 1
    assert int(told) * unit < 16 << 20
