from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedseg.errors import StorageError
from fedseg.imaging import cache as cache_module
from fedseg.imaging.bids import load_dataset
from fedseg.imaging.cache import PreparedCache, prepare_case, prepare_files
from fedseg.imaging.label_tables import TABLES, class_map
from fedseg.imaging.transforms import Prepared
from fedseg.labels import BRAIN_MASK, FETA
from tests.conftest import tiny_head

FIDON = class_map(TABLES["fidon"], FETA, "fidon")


class Counted:
    """Counts how often a scan is really prepared."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        monkeypatch.setattr(cache_module, "prepare_files", self)

    def __call__(self, *arguments: object, **settings: object) -> Prepared:
        self.calls += 1
        return prepare_files(*arguments, **settings)  # type: ignore[arg-type]


@pytest.fixture
def pair(tmp_path: Path, save: Callable[..., Path]) -> tuple[Path, Path]:
    image, labels = tiny_head()
    return save(tmp_path / "i.nii.gz", image), save(tmp_path / "l.nii.gz", labels)


def _same(first: Prepared, second: Prepared) -> bool:
    if first.labels is None or second.labels is None:
        return first.labels is second.labels
    return (
        np.array_equal(first.image, second.image)
        and np.array_equal(first.labels, second.labels)
        and first.geometry == second.geometry
    )


def test_second_time_comes_from_disk_and_is_the_same(
    tmp_path: Path, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    counted, cache = Counted(monkeypatch), PreparedCache(tmp_path / "cache")
    first = cache.prepared(*pair, FIDON, scheme=FETA, spacing_mm=1.2)
    second = cache.prepared(*pair, FIDON, scheme=FETA, spacing_mm=1.2)
    assert counted.calls == 1
    assert _same(first, second)
    assert second.image.dtype == np.float32
    unlabelled = [cache.prepared(pair[0], None, None, scheme=FETA, spacing_mm=1.2) for _ in range(2)]
    assert counted.calls == 2
    assert unlabelled[1].labels is None
    files = list((tmp_path / "cache").iterdir())
    assert len(files) == 2
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700


def test_never_stale(
    tmp_path: Path, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, save: Callable[..., Path]
) -> None:
    counted, cache = Counted(monkeypatch), PreparedCache(tmp_path / "cache")
    cache.prepared(*pair, FIDON, scheme=FETA, spacing_mm=1.2)
    cache.prepared(*pair, FIDON, scheme=FETA, spacing_mm=1.3)
    cache.prepared(*pair, None, scheme=BRAIN_MASK, spacing_mm=1.2)
    cache.prepared(*pair, {**FIDON, 8: 4}, scheme=FETA, spacing_mm=1.2)
    assert counted.calls == 4
    image, labels = tiny_head(seed=9)
    save(pair[0], image)
    cache.prepared(*pair, FIDON, scheme=FETA, spacing_mm=1.2)
    labels[11, 13, 10] = 3
    save(pair[1], labels)
    cache.prepared(*pair, FIDON, scheme=FETA, spacing_mm=1.2)
    assert counted.calls == 6
    monkeypatch.setattr(cache_module, "CODE_VERSION", -1)
    cache.prepared(*pair, FIDON, scheme=FETA, spacing_mm=1.2)
    assert counted.calls == 7


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other"])
def test_damaged_entry_is_computed_again(
    tmp_path: Path, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    counted, cache = Counted(monkeypatch), PreparedCache(tmp_path / "cache")
    first = cache.prepared(*pair, FIDON, scheme=FETA, spacing_mm=1.2)
    (entry,) = (tmp_path / "cache").iterdir()
    content = bytearray(entry.read_bytes())
    content[len(content) // 2] ^= 0x10
    damaged = {"cut": content[: len(content) // 2], "flip": content, "empty": b"", "other": b"PK\x03\x04 no"}
    entry.write_bytes(bytes(damaged[damage]))
    again = cache.prepared(*pair, FIDON, scheme=FETA, spacing_mm=1.2)
    assert counted.calls == 2
    assert _same(first, again)
    assert cache.prepared(*pair, FIDON, scheme=FETA, spacing_mm=1.2).image.shape == first.image.shape
    assert counted.calls == 2


def test_folder_that_cannot_be_made(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        PreparedCache(tmp_path / "file" / "cache").prepared(*pair, FIDON, scheme=FETA, spacing_mm=1.2)


def test_prepare_case_with_and_without_cache(tmp_path: Path, make_bids: Callable[..., Path]) -> None:
    dataset = load_dataset(make_bids(1), scheme=FETA)
    plain = prepare_case(dataset, dataset.cases[0], spacing_mm=1.2)
    kept = prepare_case(dataset, dataset.cases[0], spacing_mm=1.2, cache=PreparedCache(tmp_path / "c"))
    assert _same(plain, kept)
    assert plain.labels is not None
    assert set(np.unique(plain.labels)) == set(range(8))


def test_n4_is_another_entry(tmp_path: Path, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    counted, cache = Counted(monkeypatch), PreparedCache(tmp_path / "cache")
    for n4 in (False, True, True):
        cache.prepared(*pair, FIDON, scheme=FETA, spacing_mm=1.2, n4=n4)
    assert counted.calls == 2
    assert cache.key(*pair, FIDON, scheme=FETA, spacing_mm=1.2) == cache.key(
        *pair, FIDON, scheme=FETA, spacing_mm=1.2, n4=False
    )
