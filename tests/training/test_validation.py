"""Validation Dice at one site: conventions, determinism, and that training never notices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fedseg.errors import DataError, Interrupted, ModelError
from fedseg.imaging.bids import load_dataset
from fedseg.labels import FETA
from fedseg.metrics.overlap import dice
from fedseg.plan.study import StudyPlan
from fedseg.runtime.preparation import MOST_SCORED, make_trainer, prepare_validation, scored_cases
from fedseg.training.inference import load_segmenter, segment
from fedseg.training.local import LocalTrainer
from fedseg.training.network import architecture, arrays, build_network
from fedseg.training.validation import tissue_dice
from tests.training.test_local import CARD, make_plan, run, same, subjects

START = arrays(build_network("small", 3, 0))


def trainer(validation: dict[str, Any] | None, **training: Any) -> LocalTrainer:
    return LocalTrainer(make_plan(**training), "a", subjects(), architecture=CARD, validation=validation)


def score(of: LocalTrainer, weights: dict[str, Any] | None = None) -> float | None:
    return of.score(START if weights is None else weights, should_stop=lambda: False)


def numpy_draws() -> bytes:
    state: Any = np.random.get_state(legacy=False)
    return bytes(state["state"]["key"].tobytes()) + bytes([state["state"]["pos"] % 256])


def volume(values: list[int]) -> np.ndarray:
    return np.array(values, np.uint8).reshape(1, 1, -1)


@pytest.mark.parametrize(
    ("predicted", "truth", "expected"),
    [
        ([0, 1, 2, 2], [0, 1, 2, 2], 1.0),
        ([0, 0, 0, 0], [0, 1, 2, 2], 0.0),
        ([1, 1, 0, 0], [0, 1, 1, 0], (0.5 + 1) / 2),
        ([0, 1, 2, 2], [0, 1, 0, 0], (1 + 0) / 2),
        ([0, 0, 0, 0], [0, 0, 0, 0], 1.0),
    ],
)
def test_tissues_count_alike_and_the_background_not_at_all(
    predicted: list[int], truth: list[int], expected: float
) -> None:
    assert tissue_dice(volume(predicted), volume(truth), 3) == pytest.approx(expected)


def test_the_score_is_the_mean_over_subjects_of_what_segment_gives() -> None:
    held = subjects(4)
    held["sub-0"] = [*held["sub-0"], *held["sub-1"]]
    model, expected = load_segmenter(START, CARD), []
    for volumes in held.values():
        each = []
        for case in volumes:
            predicted = segment(model, case.image, (16, 16, 16), precision="float32").argmax(axis=0)
            each.append(np.mean([dice(predicted == tissue, case.labels == tissue) for tissue in (1, 2)]))
        expected.append(np.mean(each))
    assert score(trainer(held)) == pytest.approx(float(np.mean(expected)), abs=1e-9)


def test_a_site_without_validation_subjects_has_no_score() -> None:
    assert score(trainer(None)) is None
    assert score(trainer({})) is None


def test_training_raises_the_score_and_a_ruined_model_loses_it() -> None:
    taught = trainer(subjects(2), steps=30, subjects_per_step=2, learning_rate=1e-2, augment="none")
    weights = {name: START[name] + change for name, change in run(taught, weights=START).items()}
    before, after = score(taught), score(taught, weights)
    ruined = score(taught, {name: np.full_like(value, 1e30) for name, value in weights.items()})
    assert before is not None and after is not None and ruined is not None
    assert after > before + 0.2
    assert 0 <= ruined < after - 0.2


def test_scoring_changes_no_bit_of_training_and_draws_nothing() -> None:
    without, scored = trainer(None), trainer(subjects(2))
    torch_state, numpy_state = torch.get_rng_state(), numpy_draws()
    first = score(scored)
    assert torch.equal(torch.get_rng_state(), torch_state) and numpy_draws() == numpy_state
    for number in (1, 2):
        assert same(run(without, number), run(scored, number))
        assert score(scored) == first


def test_weights_given_are_left_as_they_are() -> None:
    kept = {name: value.copy() for name, value in START.items()}
    score(trainer(subjects(1)))
    assert same(START, kept)


def test_a_stop_between_scans_raises_and_the_trainer_stays_usable() -> None:
    asked: list[bool] = []

    def stop() -> bool:
        asked.append(len(asked) == 1)
        return asked[-1]

    stopped = trainer(subjects(3))
    with pytest.raises(Interrupted, match="validation was stopped between two scans"):
        stopped.score(START, should_stop=stop)
    assert asked == [False, True]
    assert same(run(stopped), run(trainer(None)))


def test_threads_are_put_back_after_a_score() -> None:
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    score(trainer(subjects(1)))
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before


def test_what_cannot_be_scored_is_refused_before_anything_is_trained() -> None:
    (case,) = subjects(1)["sub-0"]
    with pytest.raises(DataError, match="a validation volume has no labels"):
        trainer({"x": [SimpleNamespace(image=case.image, labels=None)]})
    with pytest.raises(DataError, match="a validation label 4, where the network has classes 0 to 2"):
        trainer(subjects(1, 5))
    with pytest.raises(ModelError, match="the network wants"):
        score(trainer(subjects(1)), arrays(build_network("small", 5, 0)))


def rolling(plan: StudyPlan) -> StudyPlan:
    return StudyPlan.model_validate(plan.model_dump() | {"aggregation": {"rollback": {"drop": 0.1}}})


def splits(count: int, train: int) -> str:
    rows = [f"sub-{n:02d}\t{'train' if n <= train else 'validation'}\n" for n in range(1, count + 1)]
    return "participant_id\tsplit\n" + "".join(rows)


def test_validation_scans_are_prepared_only_where_the_plan_rolls_back(
    make_bids: Callable[..., Path], tmp_path: Path
) -> None:
    root = make_bids(4, participants=splits(4, 2))
    dataset, plan = load_dataset(root, scheme=FETA), make_plan()
    told: list[tuple[int, int]] = []
    cache = tmp_path / "cache"
    assert prepare_validation(dataset, plan, cache, lambda done, of: told.append((done, of))) == {}
    assert told == [] and not cache.exists()
    prepared = prepare_validation(dataset, rolling(plan), cache, lambda done, of: told.append((done, of)))
    assert list(prepared) == ["03", "04"] and told == [(1, 2), (2, 2)]
    classes = 1 + len(FETA.tissues)
    weights = arrays(build_network("small", classes, 0))
    site = LocalTrainer(plan, "a", prepared, architecture=architecture("small", classes), validation=prepared)
    found = score(site, weights)
    assert found is not None and 0 <= found <= 1


def test_a_site_without_a_validation_split_prepares_nothing(make_bids: Callable[..., Path], tmp_path: Path) -> None:
    dataset = load_dataset(make_bids(2), scheme=FETA)
    assert prepare_validation(dataset, rolling(make_plan()), tmp_path / "cache", lambda done, of: None) == {}


@pytest.mark.parametrize("count", [1, MOST_SCORED, MOST_SCORED + 1, 3 * MOST_SCORED])
def test_no_more_than_a_few_subjects_are_scored_and_always_the_same(count: int) -> None:
    names = [f"{n:02d}" for n in range(count)]
    dataset: Any = SimpleNamespace(subjects=lambda split: {name: (name + "a", name + "b") for name in names})
    chosen: dict[str, Any] = {**scored_cases(dataset, rolling(make_plan()))}
    assert len(chosen) == min(count, MOST_SCORED)
    assert list(chosen) == sorted(set(chosen) & set(names)) and names[0] in chosen
    assert list(chosen.values()) == [(name + "a",) for name in chosen]
    assert scored_cases(dataset, rolling(make_plan())) == chosen


def test_the_site_gets_its_validation_subjects_from_make_trainer() -> None:
    plan = rolling(make_plan())
    manifest: Any = SimpleNamespace(plan=plan, architecture=CARD, noise_multiplier=None)
    held: Any = subjects(1)
    assert score(make_trainer(manifest, "a", subjects(), held)) == score(trainer(held))
    assert score(make_trainer(manifest, "a", subjects())) is None
