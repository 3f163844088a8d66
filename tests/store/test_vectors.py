from __future__ import annotations

import os
import stat
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedseg.errors import StorageError
from fedseg.store import vectors
from fedseg.store.vectors import load_model_vector, load_ring_vector, save_vector


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model-00001.npy"


@given(hnp.arrays(np.float32, st.integers(0, 50)))
def test_models_come_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, vector: np.ndarray[tuple[int], np.dtype[np.float32]]
) -> None:
    path = tmp_path_factory.mktemp("v") / "v.npy"
    save_vector(path, vector)
    read = load_model_vector(path)
    assert (read.dtype.name, read.tobytes()) == ("float32", vector.tobytes())
    assert read.flags.writeable


def test_ring_sums_come_back(path: Path) -> None:
    total = np.array([0, 1, 2**32 - 1], np.uint32)
    save_vector(path, total)
    read = load_ring_vector(path)
    assert read.dtype == np.uint32
    np.testing.assert_array_equal(read, total)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_the_two_kinds_are_kept_apart(path: Path) -> None:
    save_vector(path, np.zeros(3, np.uint32))
    with pytest.raises(StorageError, match="the file holds uint32, not float32"):
        load_model_vector(path)
    save_vector(path, np.zeros(3, np.float32))
    with pytest.raises(StorageError, match=r"model-00001.npy: the file holds float32, not uint32"):
        load_ring_vector(path)


@pytest.mark.parametrize(
    "odd", [np.zeros(3), np.zeros((2, 2), np.float32), np.zeros(3, np.int32), np.zeros((), np.float32)]
)
def test_anything_else_is_not_written(path: Path, odd: Any) -> None:
    with pytest.raises(StorageError, match="not a flat vector of float32 or uint32"):
        save_vector(path, odd)
    assert not path.exists()


@pytest.mark.parametrize("odd", [np.zeros(3), np.zeros((2, 2), np.float32), np.zeros(3, ">f4")])
def test_anything_else_is_not_read(path: Path, odd: Any) -> None:
    np.save(path, odd)
    with pytest.raises(StorageError, match=r"not a flat vector|the file holds >f4"):
        load_model_vector(path)


def test_no_pickle_is_read(path: Path) -> None:
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(StorageError, match="not a flat vector of float32 or uint32: object"):
        load_model_vector(path)


def test_cut_anywhere_it_is_refused(path: Path) -> None:
    save_vector(path, np.ones(5, np.float32))
    data = path.read_bytes()
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(StorageError, match="the file is cut short, or no vector"):
            load_model_vector(path)


def test_what_follows_the_vector_is_refused(path: Path) -> None:
    save_vector(path, np.ones(5, np.float32))
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(StorageError, match="something follows"):
        load_model_vector(path)


@given(st.binary(max_size=200), st.booleans())
def test_no_bytes_make_it_fail_otherwise(tmp_path_factory: pytest.TempPathFactory, data: bytes, magic: bool) -> None:
    path = tmp_path_factory.mktemp("v") / "v.npy"
    path.write_bytes((b"\x93NUMPY\x01\x00" if magic else b"") + data)
    with pytest.raises(StorageError):
        load_model_vector(path)


def write_header(path: Path, text: bytes, data: bytes = bytes(8), version: bytes = b"\1\0") -> None:
    path.write_bytes(b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text + data)


def header(count: int) -> bytes:
    return b"{'descr': '<f4', 'fortran_order': False, 'shape': (%d,), }" % count


@pytest.mark.parametrize("count", [3, 1_000_000_000, 10**15, 10**30])
def test_a_huge_claim_allocates_nothing(path: Path, count: int) -> None:
    write_header(path, header(count))
    tracemalloc.start()
    with pytest.raises(StorageError, match="the file is cut short, or no vector"):
        load_model_vector(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"{'descr'",
        b"(" * 5000,
        b"[1]",
        b"'\\x",
        b"    1\n  2",
        b"1" * 9000,
        header(2)[:-1],
        b"\xff",
        b"-" * 3000 + b"1",
        b"-" * 9000 + b"1",
        b"{[]:1}",
    ],
)
def test_a_header_that_no_program_wrote_is_refused(path: Path, text: bytes) -> None:
    write_header(path, text)
    with pytest.raises(StorageError, match="the file is cut short, or no vector"):
        load_model_vector(path)


def test_another_version_of_the_format_is_refused(path: Path) -> None:
    write_header(path, header(2))
    assert load_model_vector(path).tolist() == [0, 0]
    write_header(path, header(2), version=b"\2\0")
    with pytest.raises(StorageError, match="the file is cut short, or no vector"):
        load_model_vector(path)


def test_a_file_that_is_cut_while_it_is_read_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_vector(path, np.ones(5, np.float32))

    def cut(file: Any, dtype: Any, count: int) -> Any:
        os.truncate(path, path.stat().st_size - 4)
        return fromfile(file, dtype, count)

    fromfile = np.fromfile
    monkeypatch.setattr(np, "fromfile", cut)
    with pytest.raises(StorageError, match="the file is cut short, or no vector"):
        load_model_vector(path)


def test_saving_copies_nothing_and_loading_makes_one_vector(path: Path) -> None:
    vector = np.ones(1_000_000, np.float32)
    tracemalloc.start()
    save_vector(path, vector)
    saved = tracemalloc.get_traced_memory()[1]
    load_model_vector(path)
    loaded = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert saved < 2**20
    assert loaded < vector.nbytes + 2**20


def test_every_other_number_of_a_vector_can_be_kept_too(path: Path) -> None:
    save_vector(path, np.arange(10, dtype=np.uint32)[::2])
    assert load_ring_vector(path).tolist() == [0, 2, 4, 6, 8]


def test_disk_errors_name_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageError, match=r"model-00001.npy: there is no such file"):
        load_model_vector(path)
    with pytest.raises(StorageError):
        save_vector(path.parent / "none" / "v.npy", np.zeros(1, np.float32))
    save_vector(path, np.ones(50, np.float32))
    monkeypatch.setattr(vectors, "MAX_BYTES", 100)
    with pytest.raises(StorageError, match="the file is larger than any model"):
        load_model_vector(path)


def test_a_failed_write_leaves_the_old_vector(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_vector(path, np.ones(5, np.float32))
    monkeypatch.setattr("os.fsync", _full_disk)
    with pytest.raises(StorageError, match="no room is left on the disk"):
        save_vector(path, np.zeros(5, np.float32))
    monkeypatch.undo()
    np.testing.assert_array_equal(load_model_vector(path), np.ones(5, np.float32))
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def _full_disk(_: int) -> None:
    raise OSError(28, "No space left on device")
