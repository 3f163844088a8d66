from __future__ import annotations

import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedseg.errors import PlanError, ProtocolError
from fedseg.secagg.encoding import Encoding, rounding_seed

from .helpers import ring_sum

SEED = rounding_seed(1, 2, "brno")


@given(
    st.integers(1, 100),
    st.floats(1e-6, 1e6),
    st.integers(1, 200),
)
def test_the_sum_of_all_sites_cannot_wrap_and_no_bit_is_wasted(sites: int, clip: float, weight_max: int) -> None:
    code = Encoding(sites, clip, weight_max, 10)

    def worst(scale: float) -> Fraction:
        return sites * (weight_max * Fraction(clip) * Fraction(scale) + 1)

    assert worst(code.scale) < 2**31
    assert worst(2.0001 * code.scale) >= 2**31
    assert np.frexp(code.scale)[0] == 0.5
    assert sites * weight_max * code.weight_scale < 2**31 <= 2 * sites * weight_max * code.weight_scale


def test_frozen_scales() -> None:
    assert (Encoding(3, 1.0, 1, 10).scale, Encoding(3, 1.0, 1, 10).weight_scale) == (2.0**29, 2**29)
    assert Encoding(30, 8.0, 1, 5_000_000).scale == 2.0**23


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_the_mean_comes_back(data: st.DataObject) -> None:
    sites, dimension = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 20))
    clip = data.draw(st.floats(0.1, 100))
    code = Encoding(sites, clip, 5, dimension)
    draw = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    updates = [(draw.normal(size=dimension) * clip).astype(np.float32) for _ in range(sites)]
    weights = [data.draw(st.integers(1, 5)) for _ in range(sites)]
    seeds = [rounding_seed(0, 0, str(site)) for site in range(sites)]
    coded = [code.encode(*each) for each in zip(updates, weights, seeds, strict=True)]
    mean, total = code.decode(ring_sum([each.vector for each in coded]), sites)
    kept = [u.astype(np.float64) * e.factor * w for u, e, w in zip(updates, coded, weights, strict=True)]
    assert total == sum(weights)
    rounding = 1.01 * sites / code.scale / total
    np.testing.assert_allclose(mean, sum(kept) / total, rtol=1e-6, atol=rounding + 1e-7 * clip)


def test_an_update_over_the_bound_is_scaled_down_to_it_and_says_so() -> None:
    code = Encoding(1, 2.0, 1, 4)
    coded = code.encode(np.array([30, 0, -40, 0], np.float32), 1, SEED)
    assert (coded.norm, coded.factor, coded.rescaled) == (50.0, 0.04, True)
    mean, _ = code.decode(coded.vector)
    np.testing.assert_allclose(mean, [1.2, 0, -1.6, 0], atol=1e-7)
    within = code.encode(np.array([1, 0, -1, 0], np.float32), 1, SEED)
    assert (within.factor, within.rescaled) == (1.0, False)
    assert code.encode(np.zeros(4, np.float32), 1, SEED).factor == 1.0


def test_values_clipped_in_silence_elsewhere_are_kept_here() -> None:
    """Regression: "values silently clipped to +-8 or +-3" (Flower PR 4982, Fed-BioMed)."""
    code = Encoding(2, 1000.0, 1, 3)
    update = np.array([999, -20, 3.5], np.float32)
    mean, _ = code.decode(code.encode(update, 1, SEED).vector, 1)
    np.testing.assert_allclose(mean, update, rtol=1e-6)


def test_the_extremes_at_every_site_do_not_wrap() -> None:
    code = Encoding(100, 3.0, 7, 2)
    for sign in (1, -1):
        update = np.array([3.4e38 * sign, 0], np.float32)
        coded = [code.encode(update, 7, rounding_seed(0, 0, str(i))).vector for i in range(100)]
        mean, weight = code.decode(ring_sum(coded), 100)
        assert weight == 700
        np.testing.assert_allclose(mean, [3.0 * sign, 0], atol=1e-5)


@pytest.mark.parametrize("weight", [0, -1, 11])
def test_weights_above_the_range_are_refused_not_warned_about(weight: int) -> None:
    """Regression: "weights above the range only warned about" (Flower PR 4982)."""
    with pytest.raises(ProtocolError, match=f"weight {weight} is not within 1 to 10"):
        Encoding(3, 1.0, 10, 2).encode(np.zeros(2, np.float32), weight, SEED)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused(value: float) -> None:
    with pytest.raises(ProtocolError, match="the update holds NaN or infinity") as caught:
        Encoding(3, 1.0, 1, 3).encode(np.array([0, value, 0], np.float32), 1, SEED)
    assert caught.value.hint == "training diverged: lower the learning rate"


def test_another_type_or_shape_is_refused() -> None:
    code = Encoding(3, 1.0, 1, 3)
    with pytest.raises(ProtocolError, match=r"float32 of shape \(3,\), not float64 of \(3,\)"):
        code.encode(np.zeros(3), 1, SEED)  # type: ignore[arg-type]
    with pytest.raises(ProtocolError, match=r"not float32 of \(4,\)"):
        code.encode(np.zeros(4, np.float32), 1, SEED)
    with pytest.raises(ProtocolError, match=r"a sum is uint32 of shape \(4,\), not uint32 of \(3,\)"):
        code.decode(np.zeros(3, np.uint32))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1.0, 1, 5), "0 sites with weights up to 1 do not fit"),
        ((3, 1.0, 0, 5), "weights up to 0 do not fit"),
        ((100, 1.0, 2**30, 5), "do not fit a ring of 32 bits"),
        ((3, 0.0, 1, 5), "clip 0.0 is no usable bound"),
        ((3, -1.0, 1, 5), "clip -1.0 is no usable bound"),
        ((3, float("nan"), 1, 5), "clip nan is no usable bound"),
        ((3, float("inf"), 1, 5), "clip inf is no usable bound"),
        ((3, 1.0, 1, 0), "a model of 0 weights cannot be aggregated"),
        ((100, 1.0, 10_000, 5_000_000), "leave too few of the ring's 32 bits"),
    ],
)
def test_impossible_codes_are_refused(arguments: tuple[int, float, int, int], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Encoding(*arguments)


def test_masks_that_did_not_cancel_show_themselves() -> None:
    code = Encoding(3, 1.0, 1, 1000)
    good = code.encode(np.full(1000, 0.01, np.float32), 1, SEED).vector
    noise = np.random.default_rng(0).integers(0, 2**32, 1001, dtype=np.uint32)
    with pytest.raises(ProtocolError, match="total weight is not one of 3 contributors: masks did not cancel"):
        code.decode(good + noise, 3)
    noise[-1] = 2 * code.weight_scale + 1
    with pytest.raises(ProtocolError, match="total weight is not one of 3 contributors"):
        code.decode(good + noise, 3)
    noise[-1] -= 1
    with pytest.raises(ProtocolError, match="out of the range of 3 contributors: masks did not cancel"):
        code.decode(good + noise, 3)
    with pytest.raises(ProtocolError, match="total weight"):
        code.decode(good, 2)


def test_rounding_is_unbiased_and_a_function_of_its_seed() -> None:
    code = Encoding(1, 1.0, 1, 200_000)
    exact = 0.3 / code.scale
    update = np.full(200_000, exact, np.float32)
    one, same, other = (code.encode(update, 1, rounding_seed(5, 0, site)).vector[:-1] for site in ("a", "a", "b"))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    assert set(np.unique(one)) == {0, 1}
    assert abs(one.mean() - 0.3) < 5 * np.sqrt(0.21 / one.size)
    negative = code.encode(-update, 1, rounding_seed(5, 0, "a")).vector[:-1].view(np.int32)
    assert abs(negative.mean() + 0.3) < 5 * np.sqrt(0.21 / one.size)


def test_rounding_seeds_differ_by_plan_round_and_site() -> None:
    seeds = {rounding_seed(p, r, s) for p in (0, 1, 11) for r in (0, 1, 11) for s in ("a", "1a", "b")}
    assert len(seeds) == 27
    assert {len(seed) for seed in seeds} == {32}


def test_the_error_on_a_heavy_tail_is_that_of_the_design() -> None:
    """ "1.1e-5 with a = the L2 norm bound" for a heavy-tailed 5M update at n = 30; a tenth of the size here."""
    draw = np.random.default_rng(3)
    update = draw.standard_t(3, size=500_000).astype(np.float32)
    update /= np.linalg.norm(update)
    code = Encoding(30, 1.0, 1, update.size)
    mean, _ = code.decode(code.encode(update, 1, SEED).vector, 1)
    assert np.linalg.norm(mean - update) < 2e-5


def test_encoding_stays_within_three_vectors() -> None:
    dimension = 1_000_000
    code = Encoding(3, 1.0, 1, dimension)
    update = np.full(dimension, 1e-4, np.float32)
    tracemalloc.start()
    vector = code.encode(update, 1, SEED).vector
    code.decode(vector)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * 4 * dimension, "the vector, the mean and pieces"
