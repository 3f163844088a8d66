from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedseg.imaging.bias import without_bias
from fedseg.imaging.nifti import Volume
from fedseg.imaging.transforms import prepare
from fedseg.labels import FETA
from tests.conftest import tiny_head


def spoilt(grey: Any, background: float = 0.0) -> Any:
    """The same scan under a field that runs from a half to double."""
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, size) for size in grey.shape], indexing="ij")
    field = np.exp(0.5 * x + 0.2 * y * z)
    return (background + grey * field).astype(np.float32)


@pytest.fixture(scope="module")
def head() -> Any:
    return tiny_head((44, 52, 40))


def test_a_slow_change_of_brightness_is_taken_out_and_background_stays(head: Any) -> None:
    grey, labels = head
    inside = labels > 0
    before, after = spoilt(grey, 3.0), without_bias(spoilt(grey, 3.0), inside, 3.0, 1.6)
    spread = [np.std(np.log((each[inside] - 3) / grey[inside])) for each in (before, after)]
    assert spread[0] > 0.15
    assert spread[1] < 0.35 * spread[0]
    assert after.dtype == np.float32
    assert np.allclose(after[~inside], 3.0)


def test_the_same_bits_every_time(head: Any) -> None:
    grey, labels = head
    first, second = (without_bias(spoilt(grey), labels > 0, 0.0, 1.6) for _ in range(2))
    assert np.array_equal(first, second)


def test_nothing_to_fit_in(head: Any) -> None:
    grey, labels = head
    assert without_bias(grey, labels > 9, 0.0, 1.6) is grey
    small, inside = grey[:8, :8, :8], labels[:8, :8, :8] >= 0
    assert without_bias(small, inside, 0.0, 1.6) is small


def test_prepare_takes_it_out_where_asked(head: Any) -> None:
    grey, _ = head
    affine = np.diag([1.4, 1.4, 1.4, 1.0])
    scans = [Volume(each, affine, (1.4, 1.4, 1.4), "s", each.shape, 0, 1, "float32") for each in (grey, spoilt(grey))]
    apart = {}
    for n4 in (False, True):
        one, other = (prepare(scan, None, None, spacing_mm=1.6, scheme=FETA, n4=n4).image for scan in scans)
        apart[n4] = float(np.sqrt(np.mean((one - other) ** 2)))
    assert apart[True] < 0.5 * apart[False]
