from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from fedseg.errors import StorageError
from fedseg.federation.exchange import Best
from fedseg.runtime.disk_memory import MOST_SESSION, DiskMemory


@pytest.fixture
def memory(tmp_path: Path) -> DiskMemory:
    return DiskMemory(tmp_path)


def test_weights_survive_a_restart(memory: DiskMemory) -> None:
    assert memory.weights() is None
    for value in (1, 2):
        memory.save_weights(np.full(5, value, np.float32))
    kept = DiskMemory(memory.root).weights()
    assert kept is not None
    np.testing.assert_array_equal(kept, np.full(5, 2, np.float32))


def test_a_session_survives_a_restart_and_is_for_the_owner_only(memory: DiskMemory) -> None:
    assert memory.session() is None
    memory.save_session(b"first")
    memory.save_session(b"second")
    assert DiskMemory(memory.root).session() == b"second"
    (path,) = memory.root.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_bytes(bytes(MOST_SESSION + 1))
    with pytest.raises(StorageError, match=r"session\.bin: the file holds more than the \d+ bytes"):
        memory.session()


def test_a_masked_update_is_kept_for_its_session_only(memory: DiskMemory) -> None:
    first, second, vector = b"1" * 32, b"2" * 32, np.arange(5, dtype=np.uint32)
    assert memory.masked(first) is None
    memory.save_masked(first, vector)
    kept = DiskMemory(memory.root).masked(first)
    assert kept is not None
    np.testing.assert_array_equal(kept, vector)
    assert memory.masked(second) is None
    memory.save_masked(second, vector)
    assert memory.masked(first) is None
    assert len(list(memory.root.iterdir())) == 1


def test_the_best_model_is_remembered_to_the_last_bit(memory: DiskMemory) -> None:
    assert memory.best() is None
    for score in (0.5, 1 / 3):
        memory.save_best(Best("ab" * 32, score))
    assert DiskMemory(memory.root).best() == Best("ab" * 32, 1 / 3)
    for text in ("", "{", "[1]", '{"score": 1}'):
        (memory.root / "best.json").write_text(text)
        with pytest.raises(StorageError, match=r"best\.json: what this site knows of the best model is damaged"):
            memory.best()


def test_what_evaluations_were_given_outlives_updates_and_models(memory: DiskMemory) -> None:
    assert memory.scored("ab" * 32) is None
    memory.save_scored("ab" * 32, "1" * 64)
    memory.save_scored("cd" * 32, "2" * 64)
    memory.save_weights(np.zeros(5, np.float32))
    memory.erase_updates()
    memory.clean_up()
    again = DiskMemory(memory.root)
    assert [again.scored(model * 32) for model in ("ab", "cd", "ef")] == ["1" * 64, "2" * 64, None]
    for text in ("", "{", "[1]", "7"):
        (memory.root / "scored.json").write_text(text)
        with pytest.raises(StorageError, match=r"scored\.json: what this site has given to evaluations is damaged"):
            memory.scored("ab" * 32)


def test_a_contribution_is_kept_for_its_round_and_model_only(memory: DiskMemory) -> None:
    vector = np.arange(5, dtype=np.uint32)
    assert memory.contribution(1, "a" * 64) is None
    memory.save_contribution(1, "a" * 64, vector)
    kept = DiskMemory(memory.root).contribution(1, "a" * 64)
    assert kept is not None
    np.testing.assert_array_equal(kept, vector)
    assert memory.contribution(2, "a" * 64) is None
    assert memory.contribution(1, "b" * 64) is None
    memory.save_contribution(2, "b" * 64, vector)
    assert memory.contribution(1, "a" * 64) is None
    assert len(list(memory.root.iterdir())) == 1


@pytest.fixture
def opened(memory: DiskMemory) -> Iterator[Callable[[], list[Path]]]:
    """Holds every update on disk open; the call says which of those it held have been overwritten with zeros."""
    memory.save_contribution(1, "a" * 64, np.arange(1, 6, dtype=np.uint32))
    memory.save_masked(b"1" * 32, np.arange(1, 6, dtype=np.uint32))
    held = {path: path.open("rb") for path in memory.root.iterdir()}
    assert len(held) == 2
    yield lambda: [path for path, file in held.items() if file.seek(0) == 0 and not any(file.read())]
    for file in held.values():
        file.close()


def test_updates_that_have_served_are_overwritten(memory: DiskMemory, opened: Callable[[], list[Path]]) -> None:
    assert opened() == []
    memory.save_contribution(2, "b" * 64, np.arange(5, dtype=np.uint32))
    assert [path.name[:12] for path in opened()] == ["contribution"]
    memory.save_masked(b"2" * 32, np.arange(5, dtype=np.uint32))
    assert len(opened()) == 2
    assert len(list(memory.root.iterdir())) == 2


@pytest.mark.parametrize("end", ["a round was closed", "the study is over"])
def test_after_a_round_and_after_the_study_no_update_is_left(
    memory: DiskMemory, opened: Callable[[], list[Path]], end: str
) -> None:
    memory.save_weights(np.zeros(5, np.float32)) if end == "a round was closed" else memory.erase_updates()
    assert len(opened()) == 2
    assert not [path for path in memory.root.iterdir() if path.name != "weights.npy"]


@pytest.mark.parametrize(("needed", "stays"), [(2, ["kept-00002.npy"]), (None, []), (0, [])])
def test_a_complete_study_leaves_no_scan_no_update_and_of_what_was_kept_the_newest_at_most(
    memory: DiskMemory, needed: int | None, stays: list[str]
) -> None:
    memory.save_kept(1, 0, np.ones(5, np.float32))
    memory.save_kept(2, 1, np.full(5, 2, np.float32))
    memory.save_kept(3, 2, np.full(5, 3, np.float32))
    memory.save_contribution(3, "b" * 64, np.arange(5, dtype=np.uint32))
    scan = memory.root / "cache" / "scan.npz"
    scan.parent.mkdir()
    scan.write_bytes(b"a patient")
    with (memory.root / "kept-00003.npy").open("rb") as held:
        memory.finish(needed)
        assert not any(held.read())
    assert sorted(path.name for path in memory.root.iterdir()) == stays
    memory.finish(needed)


@pytest.mark.parametrize("name", [".{}.x1.part", ".{}.last", "..{}.x1.part.last"])
def test_what_a_crash_left_of_an_update_is_overwritten(
    memory: DiskMemory, opened: Callable[[], list[Path]], name: str
) -> None:
    for path in list(memory.root.iterdir()):
        path.rename(memory.root / name.format(path.name))
    memory.save_session(b"a session")
    memory.clean_up()
    assert len(opened()) == 2
    assert [path.name for path in memory.root.iterdir()] == ["session.bin"]


def test_a_contribution_that_was_cut_short_is_not_sent(memory: DiskMemory) -> None:
    memory.save_contribution(1, "a" * 64, np.arange(5, dtype=np.uint32))
    (path,) = memory.root.iterdir()
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(StorageError, match="the file is cut short, or no vector"):
        memory.contribution(1, "a" * 64)
