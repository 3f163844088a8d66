from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from fedseg.errors import DataError
from fedseg.metrics.topology import euler_characteristic, euler_difference
from tests.metrics.shapes import Mask, cube, pairs

SOLID = cube((7, 7, 7), (1, 1, 1), 5)
TUNNEL = SOLID & ~np.pad(np.ones((7, 1, 1), dtype=np.bool_), ((0, 0), (3, 3), (3, 3)))
CAVITY = SOLID & ~cube((7, 7, 7), (3, 3, 3), 1)
EMPTY = np.zeros((7, 7, 7), dtype=np.bool_)


@pytest.mark.parametrize(("mask", "expected"), [(EMPTY, 0), (SOLID, 1), (TUNNEL, 0), (CAVITY, 2)])
def test_pieces_less_tunnels_plus_cavities(mask: Mask, expected: int) -> None:
    assert euler_characteristic(mask) == expected
    assert euler_difference(mask, EMPTY) == euler_difference(EMPTY, mask) == expected


def test_voxels_that_touch_at_an_edge_are_two_pieces() -> None:
    mask = np.zeros((3, 3, 3), dtype=np.bool_)
    mask[0, 0, 0] = mask[1, 1, 0] = True
    assert euler_characteristic(mask) == 2
    mask[1, 0, 0] = True
    assert euler_characteristic(mask) == 1


def test_a_tunnel_and_a_cavity_may_hide_each_other() -> None:
    assert euler_difference(np.concatenate([TUNNEL, CAVITY]), np.concatenate([SOLID, SOLID])) == 0


@given(pairs())
def test_pieces_far_apart_add_up_and_place_does_not_matter(masks: tuple[Mask, Mask]) -> None:
    first, second = masks
    together = np.concatenate([first, np.zeros_like(first[:1]), second])
    assert euler_characteristic(together) == euler_characteristic(first) + euler_characteristic(second)
    assert euler_characteristic(first[::-1].transpose(2, 0, 1)) == euler_characteristic(first)


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(DataError, match="not volumes of one shape"):
        euler_difference(SOLID, SOLID[1:])
