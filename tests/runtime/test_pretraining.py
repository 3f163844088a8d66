"""Pretraining: reproducible in one run or several, from public label maps only, and a model file that says so."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedseg.errors import DataError, StorageError, UsageError
from fedseg.imaging.label_maps import find_labels, public_labels
from fedseg.imaging.made_up_fingerprint import T2_MADE_UP
from fedseg.imaging.synthesis import synthesize
from fedseg.plan.study import StudyPlan, parse_plan
from fedseg.runtime.pretraining import MODEL, STATE, Limit, Pretrained, Sources, pretrain
from fedseg.store.checkpoints import load_model

PLAN = """
name: small
privacy: {mode: 'off'}
image: {spacing_mm: 4.0, patch: [16, 16, 16]}
network: {preset: small}
training: {threads: 1, precision: float32}
schedule: {rounds: 1}
sites: {a: {}}
"""
FEW = Sources(made_up=2)


def plan(text: str = PLAN) -> StudyPlan:
    return parse_plan(text, "test").content


def train(out: Path, steps: int, sources: Sources = FEW, **other: Any) -> Pretrained:
    options: dict[str, Any] = {"seed": 3, "limit": Limit(steps=steps), "should_stop": lambda: False}
    return pretrain(plan(), sources, out, on_part=lambda *_: None, **(options | other))


def after(steps: int) -> Callable[[], bool]:
    """Asked after each step, it says stop after so many."""
    asked = iter(range(steps + 1))
    return lambda: next(asked) >= steps


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "labels"
    synthesize(folder, subjects=4, seed=1, site_style=1, spacing_mm=4.0)
    for scan in folder.glob("sub-*/anat/*_T2w.nii.gz"):
        scan.unlink()
    return folder


def test_the_same_steps_give_the_same_bits_in_one_run_or_in_several(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", 4)
    halved = train(tmp_path / "halved", 4, should_stop=after(2))
    assert (halved.steps, halved.complete) == (2, False)
    resumed = train(tmp_path / "halved", 4)
    assert (resumed.steps, resumed.complete) == (4, True)
    assert whole.model.read_bytes() == resumed.model.read_bytes()
    other = train(tmp_path / "other", 4, seed=4)
    assert other.card.model_hash != whole.card.model_hash


def test_a_run_that_was_stopped_leaves_a_model_that_can_be_used(tmp_path: Path) -> None:
    stopped = train(tmp_path, 9, should_stop=after(1))
    arrays, card = load_model(stopped.model)
    assert card.model_hash == stopped.card.model_hash
    assert all(np.isfinite(values).all() for values in arrays.values())


def test_time_is_counted_over_all_runs(tmp_path: Path) -> None:
    ticks = iter(range(0, 10_000, 10))
    limit = Limit(minutes=2.0)
    first = train(tmp_path, 1, limit=limit, should_stop=after(1), clock=lambda: float(next(ticks)))
    second = train(tmp_path, 1, limit=limit, clock=lambda: float(next(ticks)))
    assert not first.complete and second.complete
    assert first.seconds < 120 <= second.seconds


def test_training_on_made_up_brains_lowers_the_loss(tmp_path: Path) -> None:
    import torch

    from fedseg.training.inference import load_segmenter
    from fedseg.training.losses import subject_loss
    from fedseg.training.pretraining import made_up

    def loss(model: Path) -> float:
        arrays, card = load_model(model)
        network = load_segmenter(arrays, card.architecture)
        image, labels = made_up(maps[0], plan(), np.random.default_rng(0))
        cut = tuple(slice(0, 16 * (side // 16)) for side in image.shape)
        with torch.no_grad():
            logits = network(torch.from_numpy(image[cut].copy())[None, None])
        return float(subject_loss(logits, torch.from_numpy(labels[cut].copy())[None]))

    from fedseg.runtime.pretraining import label_maps

    maps = label_maps(plan(), FEW, 9, lambda *_: None)
    assert loss(train(tmp_path / "long", 50).model) < 0.9 * loss(train(tmp_path / "short", 1).model)


def test_the_model_file_says_what_it_was_trained_on(tmp_path: Path, published: Path) -> None:
    sources = Sources(made_up=1, folders=(published,), public="CC0, by its authors, 2021")
    card = train(tmp_path, 1, sources).card
    assert card.privacy == {
        "mode": "public",
        "trained_on": "images made up (1 step) from the labels of 1 made-up brain (seed 3), and of 3 label maps "
        'declared public: "CC0, by its authors, 2021"',
    }
    assert (card.contributors, card.rounds, card.task, card.patch) == ((), 0, "feta", (16, 16, 16))


def test_the_model_file_has_the_made_up_fingerprint(tmp_path: Path) -> None:
    train(tmp_path, 1)
    card = load_model(tmp_path / MODEL)[1]
    assert card.fingerprint == T2_MADE_UP
    assert card.normalisation["n4"] is False


def test_label_maps_need_no_scan_and_kept_back_subjects_are_left_out(published: Path) -> None:
    assert [path.parent.parent.name for path in find_labels(published)] == ["sub-001", "sub-002", "sub-003"]
    told: list[tuple[int, int]] = []
    maps = public_labels(published, labels=None, spacing_mm=4.0, on_map=lambda *done: told.append(done))
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert all(set(np.unique(each)) == set(range(8)) for each in maps)


def test_our_own_results_are_no_label_maps(tmp_path: Path) -> None:
    for name in ("derivatives/fedseg/sub-1/anat/sub-1_dseg.nii.gz", "sub-2/anat/sub-2_seg-fedseg_dseg.nii.gz"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    with pytest.raises(DataError, match="no label map to train on"):
        find_labels(tmp_path)


def test_label_maps_without_a_table_are_refused(tmp_path: Path, published: Path) -> None:
    folder = tmp_path / "labels"
    shutil.copytree(published, folder)
    (folder / "derivatives/manual/dseg.tsv").unlink()
    with pytest.raises(DataError, match=r"no dseg\.tsv says what the label numbers mean"):
        public_labels(folder, labels=None, spacing_mm=4.0, on_map=lambda *_: None)
    assert len(public_labels(folder, labels="fidon", spacing_mm=4.0, on_map=lambda *_: None)) == 3


def test_a_brain_mask_network_learns_a_mask() -> None:
    from fedseg.imaging.label_maps import made_up_labels
    from fedseg.training.pretraining import made_up

    labels, masks = made_up_labels(0, 0, 4.0), plan(f"task: brain_mask\n{PLAN}")
    images = [made_up(labels, masks, np.random.default_rng(seed)) for seed in range(20)]
    assert all(set(np.unique(image.labels)) <= {0, 1} for image in images)
    stacks = [image for image in images if max(image.image.shape) * 4.0 >= 180]
    heads = [image for image in images if max(image.image.shape) * 4.0 < 180]
    assert 10 <= len(stacks) < 20
    assert any(not image.labels.any() for image in stacks)
    assert all(image.labels.any() for image in heads)


@pytest.mark.parametrize(
    ("made_up", "folders", "public", "what"),
    [
        (0, ("labels",), None, "nobody has declared these label maps public"),
        (0, ("labels",), "  ", "nobody has declared these label maps public"),
        (2, (), "CC0", "there is nothing to declare public"),
        (0, (), None, "there is no label map to train on"),
        (0, ("labels",), "CC0\nand more", "on one line"),
        (0, ("labels",), 1001 * "x", "at most 1000"),
    ],
)
def test_sources_that_cannot_be_are_refused(made_up: int, folders: tuple[str, ...], public: str, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        Sources(made_up, tuple(map(Path, folders)), public)


def test_a_folder_of_another_pretraining_is_left_alone(tmp_path: Path) -> None:
    before = train(tmp_path, 1).model.read_bytes()
    for changed in ({"seed": 4}, {"sources": Sources(made_up=3)}):
        with pytest.raises(UsageError, match="holds another pretraining"):
            train(tmp_path, 2, **changed)
    assert (tmp_path / MODEL).read_bytes() == before


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    train(tmp_path, 1)
    state = tmp_path / STATE
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(StorageError, match="state of pretraining is damaged"):
        train(tmp_path, 2)
