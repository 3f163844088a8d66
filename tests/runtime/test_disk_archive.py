from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedseg.errors import StorageError
from fedseg.federation.vector import model_hash
from fedseg.runtime.study import StudyFolder
from fedseg.store.study_db import ClaimRow, RoundRow
from tests.runtime import toy


@pytest.fixture
def study(tmp_path: Path) -> StudyFolder:
    return StudyFolder.create(tmp_path / "study", toy.plan(), toy.FIRST, address="localhost:8443", now=0.0)


def test_the_best_model_outlives_a_restart_and_the_one_before_a_crash(study: StudyFolder) -> None:
    archive = study.archive
    models = [np.full(toy.SIZE, value, np.float32) for value in (1, 2, 3)]
    for weights in models:
        archive.save_best(weights, model_hash(weights))
    again = StudyFolder.open(study.root).archive
    for weights in models[1:]:
        np.testing.assert_array_equal(again.load_best(model_hash(weights)), weights)
    with pytest.raises(StorageError, match=r"best-[0-9a-f]{16}\.npy"):
        again.load_best(model_hash(models[0]))
    np.testing.assert_array_equal(again.load_model(0), toy.INITIAL)


def test_the_archive_keeps_what_is_needed_and_drops_the_rest(study: StudyFolder) -> None:
    archive = study.archive
    for number in (1, 2, 3):
        archive.save_model(number, np.full(toy.SIZE, number, np.float32), np.full(toy.SIZE + 1, number, np.uint32))
    names = sorted(path.name for path in (study.root / "rounds").iterdir())
    assert names == ["model-00000.npy", "model-00002.npy", "model-00003.npy", "sum-00002.npy", "sum-00003.npy"]
    assert archive.load_model(3)[0] == 3
    assert archive.load_total(3)[0] == 3
    with pytest.raises(StorageError, match=r"model-00001\.npy"):
        archive.load_model(1)
    row = RoundRow(1, 1, "open", "0" * 64, (), {}, None, 1.0, None, 0)
    archive.save_round(row)
    archive.save_claim(ClaimRow("a", 1, 10, "h"))
    assert StudyFolder.open(study.root).archive.rounds() == [row]
    assert study.db.claims()["a"].steps == 10


def test_what_a_void_round_leaves_a_gap_in_is_kept(study: StudyFolder) -> None:
    archive = study.archive
    total = np.zeros(toy.SIZE + 1, dtype=np.uint32)
    for number in (1, 4):
        archive.save_model(number, toy.INITIAL + np.float32(number), total)
    for number in (0, 1, 4):
        assert archive.load_model(number)[0] == number
    archive.load_total(1)
