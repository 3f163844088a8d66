from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fedseg.errors import DataError
from fedseg.training.canaries import SIDE, MadeUp, made_up
from fedseg.training.losses import subject_loss
from fedseg.training.membership import FEWEST_FOR_TAIL, advantage, auc, membership, subject_loss_of
from fedseg.training.network import SegmentationNet, build_network

PATCH = (SIDE, SIDE, SIDE)


def noisy(seed: int) -> MadeUp:
    """A head whose labels are partly wrong in a way of its own, so that only memory can know them."""
    rng, head = np.random.default_rng(seed), made_up(1)[0]
    labels = np.where(rng.random(head.labels.shape) < 0.5, rng.integers(0, 8, head.labels.shape), head.labels)
    image = head.image + rng.standard_normal(head.image.shape)
    return MadeUp(image.astype(np.float32), labels.astype(np.uint8))


def losses(model: SegmentationNet, heads: Sequence[MadeUp]) -> NDArray[np.float64]:
    return np.array([subject_loss_of(model.eval(), [head], PATCH) for head in heads])


def overfitted(heads: Sequence[MadeUp]) -> SegmentationNet:
    model = build_network("small", 8, 0).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    images = torch.from_numpy(np.stack([head.image for head in heads]))[:, None]
    labels = torch.from_numpy(np.stack([head.labels for head in heads]))
    for _ in range(35):
        optimizer.zero_grad()
        subject_loss(model(images), labels).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def groups() -> Mapping[str, Sequence[MadeUp]]:
    return {"members": [noisy(seed) for seed in range(8)], "others": [noisy(seed) for seed in range(100, 108)]}


def test_an_overfitted_model_is_told(groups: Mapping[str, Sequence[MadeUp]]) -> None:
    model = overfitted(groups["members"])
    found = membership(losses(model, groups["members"]), losses(model, groups["others"]))
    assert found.told_apart
    assert found.auc > 0.9
    assert found.auc_interval[0] > 0.5
    assert found.auc_interval[0] <= found.auc <= found.auc_interval[1]
    assert (found.members, found.others, found.tpr_at_1_percent) == (8, 8, None)


def test_a_model_that_saw_nobody_is_not(groups: Mapping[str, Sequence[MadeUp]]) -> None:
    model = build_network("small", 8, 0)
    found = membership(losses(model, groups["members"]), losses(model, groups["others"]), confidence=0.999)
    assert not found.told_apart
    assert found.auc_interval[0] < 0.5 < found.auc_interval[1]
    assert found.advantage_interval[0] == 0.0


def test_two_of_each_prove_nothing_however_far_apart() -> None:
    found = membership(np.array([0.1, 0.2]), np.array([5.0, 6.0]))
    assert found.auc == 1.0
    assert not found.told_apart
    assert found.auc_interval[0] < 0.5


def test_one_is_too_few() -> None:
    with pytest.raises(DataError, match="1 subjects that were trained on and 5 that were not") as refusal:
        membership(np.ones(1), np.arange(5.0))
    assert "column split of participants.tsv" in str(refusal.value)


def test_rates_are_those_of_counting() -> None:
    rng = np.random.default_rng(0)
    members, others = rng.integers(0, 9, 30).astype(float), rng.integers(2, 12, 40).astype(float)
    pairs = [(a < b) + 0.5 * (a == b) for a in members for b in others]
    assert auc(members, others) == pytest.approx(np.mean(pairs))
    best = max(np.mean(members <= t) - np.mean(others <= t) for t in range(-1, 13))
    assert advantage(members, others) == pytest.approx(best)
    assert advantage(others + 100, members) == 0.0


def test_intervals_cover() -> None:
    rng, inside = np.random.default_rng(1), []
    for _ in range(300):
        found = membership(rng.normal(0, 1, 12), rng.normal(1, 1, 10))
        inside.append(
            (
                found.auc_interval[0] <= 0.7602 <= found.auc_interval[1],
                found.advantage_interval[0] <= 0.3829 <= found.advantage_interval[1],
            )
        )
    assert np.mean(inside, axis=0) == pytest.approx([0.95, 1.0], abs=0.05)


def test_the_tail_is_reported_where_there_are_enough() -> None:
    others = np.arange(float(FEWEST_FOR_TAIL))
    assert membership(np.array([-1.0, 0.5, 5.0, 6.0]), others).tpr_at_1_percent == 0.5
    assert membership(np.array([-1.0, 0.5, 5.0, 6.0]), others[1:]).tpr_at_1_percent is None


def test_a_loss_is_the_training_loss_of_whole_volumes(groups: Mapping[str, Sequence[MadeUp]]) -> None:
    model, (one, other) = build_network("small", 8, 0).eval(), groups["members"][:2]
    with torch.no_grad():
        logits = model(torch.from_numpy(one.image)[None, None])
        expected = float(subject_loss(logits, torch.from_numpy(one.labels)[None]))
    assert subject_loss_of(model, [one], PATCH) == pytest.approx(expected, rel=0.02)
    both = subject_loss_of(model, [one, other], PATCH)
    assert both == pytest.approx(np.mean(losses(model, [one, other])), rel=1e-9)


def test_labels_that_the_model_has_no_class_for_are_refused(groups: Mapping[str, Sequence[MadeUp]]) -> None:
    with pytest.raises(DataError, match="a label 7, where the model has classes 0 to 2"):
        subject_loss_of(build_network("small", 3, 0).eval(), groups["members"][:1], PATCH)
