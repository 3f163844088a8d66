from __future__ import annotations

import numpy as np
import pytest

from fedseg.training.canaries import replayed
from fedseg.training.inversion import Inversion, demonstrate, victim


@pytest.fixture(scope="module")
def shown() -> Inversion:
    return demonstrate(1.0, replayed(b"noise"), iterations=150)


def test_it_works_without_privacy_and_clipping_alone_changes_nothing(shown: Inversion) -> None:
    plain, clipped, _ = shown.attempts
    assert plain.correlation > 0.7 > shown.labels_alone + 0.2
    assert clipped.correlation == pytest.approx(plain.correlation, abs=0.02)
    assert plain.psnr_db > 18


def test_noise_leaves_nothing_of_it(shown: Inversion) -> None:
    noised = shown.attempts[2]
    assert abs(noised.correlation) < 0.15
    assert noised.psnr_db < 10
    assert [each.name for each in shown.attempts] == ["without privacy", "clipped only", "clipped and noised"]


def test_too_little_noise_would_not_have_hidden_it() -> None:
    noised = demonstrate(1e-4, replayed(b"noise"), iterations=80).attempts[2]
    assert noised.correlation > 0.45


def test_it_says_how_far_it_is_and_leaves_the_random_state_alone() -> None:
    said: list[tuple[int, int]] = []
    first = [p.detach().numpy().copy() for p in victim().parameters()]
    demonstrate(1.0, replayed(b"noise"), lambda done, of: said.append((done, of)), iterations=2)
    assert said == [(done, 6) for done in range(1, 7)]
    for before, after in zip(first, victim().parameters(), strict=True):
        np.testing.assert_array_equal(before, after.detach().numpy())
