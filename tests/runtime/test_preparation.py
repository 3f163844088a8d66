from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fedseg.errors import StorageError
from fedseg.imaging.bids import load_dataset
from fedseg.labels import FETA
from fedseg.runtime.charging import sampling_frame
from fedseg.runtime.preparation import prepare_training, require_room
from tests.runtime.private import private_plan


def test_what_is_sampled_is_what_is_charged(make_bids: Callable[..., Path], tmp_path: Path) -> None:
    table = "participant_id\tsubject_key\nsub-01\tP1\nsub-02\tP1\n"
    dataset = load_dataset(make_bids(3, participants=table), scheme=FETA)
    plan = private_plan().content
    prepared = prepare_training(dataset, plan, tmp_path / "cache", lambda *_: None)
    assert {unit: len(scans) for unit, scans in prepared.items()} == {"P1": 2, "03": 1}
    frame = sampling_frame(dataset, lambda *_: None)
    assert [subject.key or subject.ids[0] for subject in frame] == list(prepared)


def test_a_full_disk_is_noticed_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_room(tmp_path, 1)
    usage = shutil.disk_usage(tmp_path)._replace(free=2_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StorageError) as caught:
        require_room(tmp_path, 5_000_000)
    assert caught.value.what == "the disk has 2 MB free, 5 MB are needed"
    assert caught.value.where == str(tmp_path)
