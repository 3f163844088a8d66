"""Made-up stacks: the mask follows the brain, one generator decides everything."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedseg.imaging.label_maps import made_up_labels
from fedseg.imaging.womb import Stack, draw_stack, generate_stack

SPACING_MM = 4.0


@pytest.fixture(scope="module")
def labels() -> NDArray[np.uint8]:
    return made_up_labels(1, 3, SPACING_MM)


def drawn(seed: int) -> Stack:
    return draw_stack(np.random.default_rng(seed))


def whole(seed: int) -> Stack:
    """A stack that shows a whole brain, as large as its label map."""
    return replace(
        drawn(seed), brain=True, field_mm=(200.0, 200.0, 200.0), centre=(0.5, 0.5, 0.5), matrix=np.eye(3),
        bend_mm=0.0, more_fluid=0.0, motion_mm=0.0,
    )  # fmt: skip


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000))
def test_every_stack_is_finite_normalised_and_as_large_as_its_field_of_view(
    labels: NDArray[np.uint8], seed: int
) -> None:
    stack = drawn(seed)
    image, mask = generate_stack(labels, SPACING_MM, stack)
    assert image.shape == mask.shape == tuple(max(8, round(side / SPACING_MM)) for side in stack.field_mm)
    assert image.dtype == np.float32 and mask.dtype == np.uint8
    assert np.isfinite(image).all() and float(image.std()) > 0.3
    assert set(np.unique(mask)) <= {0, 1} and mask.any() <= stack.brain
    assert stack.field_mm[stack.axis] == min(stack.field_mm)


def test_about_a_quarter_of_the_stacks_show_no_brain_and_slices_lie_any_way() -> None:
    stacks = [drawn(seed) for seed in range(300)]
    assert 0.65 < np.mean([stack.brain for stack in stacks]) < 0.85
    assert {stack.axis for stack in stacks} == {0, 1, 2}


def test_heads_lie_in_every_direction() -> None:
    up = np.array([(stack.matrix / np.linalg.norm(stack.matrix, axis=0))[2] for stack in map(drawn, range(400))])
    assert np.abs(up.mean(axis=0)).max() < 0.12
    np.testing.assert_allclose((up**2).mean(axis=0), 1 / 3, atol=0.06)


def test_the_mask_is_the_brain_of_the_label_map(labels: NDArray[np.uint8]) -> None:
    _, mask = generate_stack(labels, SPACING_MM, whole(5))
    assert int(mask.sum()) == pytest.approx(int((labels > 0).sum()), rel=0.01)


def test_a_larger_brain_has_a_larger_mask(labels: NDArray[np.uint8]) -> None:
    _, mask = generate_stack(labels, SPACING_MM, replace(whole(5), matrix=np.eye(3) / 1.5))
    assert int(mask.sum()) == pytest.approx(1.5**3 * int((labels > 0).sum()), rel=0.03)


def test_more_fluid_belongs_to_the_mask(labels: NDArray[np.uint8]) -> None:
    _, tight = generate_stack(labels, SPACING_MM, whole(5))
    _, wide = generate_stack(labels, SPACING_MM, replace(whole(5), more_fluid=0.2))
    assert wide[tight == 1].all() and int(wide.sum()) > 1.1 * int(tight.sum())


def test_without_a_brain_there_is_a_womb_and_no_mask(labels: NDArray[np.uint8]) -> None:
    image, mask = generate_stack(labels, SPACING_MM, replace(whole(5), brain=False))
    assert not mask.any() and float(image.std()) > 0.3


def test_slices_move_with_their_mask(labels: NDArray[np.uint8]) -> None:
    still = replace(whole(5), axis=1, thickness_mm=SPACING_MM)
    _, before = generate_stack(labels, SPACING_MM, still)
    _, after = generate_stack(labels, SPACING_MM, replace(still, motion_mm=8.0))
    np.testing.assert_array_equal(before.sum(axis=(0, 2)), after.sum(axis=(0, 2)))
    assert (before != after).any()


def test_brain_and_surroundings_differ_where_a_scan_has_its_skull(labels: NDArray[np.uint8]) -> None:
    darker = 0
    for seed in range(8):
        image, mask = generate_stack(labels, SPACING_MM, whole(seed))
        inside = np.zeros_like(mask)
        for axis in range(3):
            for step in (-1, 1):
                inside |= np.roll(mask, step, axis)
        darker += float(image[(inside == 1) & (mask == 0)].mean()) < float(image[mask == 1].mean())
    assert darker >= 6


def test_the_same_stack_is_the_same_bits(labels: NDArray[np.uint8]) -> None:
    first, second = (generate_stack(labels, SPACING_MM, drawn(9)) for _ in range(2))
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])
    other, _ = generate_stack(labels, SPACING_MM, replace(drawn(9), seed=1))
    assert other.shape == first[0].shape and (other != first[0]).any()
