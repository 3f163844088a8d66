from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedseg.errors import PlanError, ProtocolError
from fedseg.secagg import encoding
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
    assert sites * code.score_scale < 2**31 <= 2 * sites * code.score_scale


def test_frozen_scales() -> None:
    code = Encoding(3, 1.0, 2, 10)
    assert (code.scale, code.weight_scale, code.score_scale) == (2.0**28, 2**28, 2**29)
    assert Encoding(30, 8.0, 1, 5_000_000).scale == 2.0**23


def test_the_proof_counts_the_step_that_rounding_may_add_and_the_error_of_a_float64_norm() -> None:
    assert Encoding(1, (1 - 2**-32) / (1 + 2**-20), 1, 1).scale == 2.0**30, "a step more would reach 2^31"
    assert Encoding(1, 1 - 2**-30, 1, 1).scale == 2.0**30, "a norm that came out too short would"
    assert Encoding(1, 1 - 2**-19, 1, 1).scale == 2.0**31


def test_the_tail_is_the_weight_and_in_a_scored_study_the_score_and_whether_there_is_one() -> None:
    plain, scored = Encoding(3, 1.0, 3, 2), Encoding(3, 1.0, 3, 2, scored=True)
    update = np.zeros(2, np.float32)
    assert (plain.length, scored.length) == (3, 5)
    assert plain.encode(update, 2, SEED).vector.tolist() == [0, 0, 2 * plain.weight_scale]
    with_score = scored.encode(update, 2, SEED, 0.75).vector.tolist()
    assert with_score == [0, 0, 2 * scored.weight_scale, 3 * scored.score_scale // 4, scored.score_scale]
    assert scored.encode(update, 2, SEED).vector.tolist() == [0, 0, 2 * scored.weight_scale, 0, 0]
    assert scored.encode(update, 2, SEED, 0.0).vector.tolist()[3:] == [0, scored.score_scale]


@settings(max_examples=50)
@given(st.data())
def test_the_mean_comes_back(data: st.DataObject) -> None:
    sites, dimension = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 20))
    clip = data.draw(st.floats(0.1, 100))
    code = Encoding(sites, clip, 5, dimension, scored=True)
    draw = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    updates = [(draw.normal(size=dimension) * clip).astype(np.float32) for _ in range(sites)]
    weights = [data.draw(st.integers(1, 5)) for _ in range(sites)]
    scores = [data.draw(st.none() | st.floats(0, 1)) for _ in range(sites)]
    seeds = [rounding_seed(0, 0, str(site)) for site in range(sites)]
    coded = [code.encode(*each) for each in zip(updates, weights, seeds, scores, strict=True)]
    mean = code.decode(ring_sum([each.vector for each in coded]), weights)
    kept = sum(u.astype(np.float64) * e.factor * w for u, e, w in zip(updates, coded, weights, strict=True))
    assert mean.weight == sum(weights)
    rounding = 1.01 * sites / code.scale / mean.weight
    np.testing.assert_allclose(mean.update, kept / mean.weight, rtol=1e-6, atol=rounding + 1e-7 * clip)
    assert mean.norm == pytest.approx(np.linalg.norm(kept / mean.weight), rel=1e-6, abs=5 * rounding)
    given_scores = [score for score in scores if score is not None]
    assert mean.scorers == len(given_scores)
    expected = sum(given_scores) / len(given_scores) if given_scores else None
    assert mean.score == (None if expected is None else pytest.approx(expected, abs=1 / code.score_scale))


def test_an_update_over_the_bound_is_scaled_down_to_it_and_says_so() -> None:
    code = Encoding(1, 2.0, 1, 4)
    coded = code.encode(np.array([30, 0, -40, 0], np.float32), 1, SEED)
    assert (coded.norm, coded.factor, coded.rescaled) == (50.0, 0.04, True)
    np.testing.assert_allclose(code.decode(coded.vector, [1]).update, [1.2, 0, -1.6, 0], atol=1e-7)
    within = code.encode(np.array([1, 0, -1, 0], np.float32), 1, SEED)
    assert (within.factor, within.rescaled) == (1.0, False)


def test_an_update_of_zeros_is_exact() -> None:
    code = Encoding(2, 2.0, 1, 4)
    coded = code.encode(np.zeros(4, np.float32), 1, SEED)
    assert (coded.norm, coded.factor, coded.relative_error) == (0.0, 1.0, 0.0)
    mean = code.decode(coded.vector, [1])
    assert (mean.update.tolist(), mean.norm, mean.relative_error) == ([0, 0, 0, 0], 0.0, 0.0)
    assert (mean.score, mean.scorers) == (None, 0)


def test_values_clipped_in_silence_elsewhere_are_kept_here() -> None:
    """Regression: "values silently clipped to +-8 or +-3" (Flower PR 4982, Fed-BioMed)."""
    code = Encoding(2, 1000.0, 1, 3)
    update = np.array([999, -20, 3.5], np.float32)
    mean = code.decode(code.encode(update, 1, SEED).vector, [1])
    np.testing.assert_allclose(mean.update, update, rtol=1e-6)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_extremes_at_every_site_do_not_wrap(sign: int) -> None:
    code = Encoding(100, 3.0, 7, 2, scored=True)
    update = np.array([3.4e38 * sign, 0], np.float32)
    coded = [code.encode(update, 7, rounding_seed(0, 0, str(i)), 1.0).vector for i in range(100)]
    mean = code.decode(ring_sum(coded), [7] * 100)
    assert (mean.weight, mean.score, mean.scorers) == (700, 1.0, 100)
    np.testing.assert_allclose(mean.update, [3.0 * sign, 0], atol=1e-5)


@pytest.mark.parametrize("weight", [0, -1, 11])
def test_weights_above_the_range_are_refused_not_warned_about(weight: int) -> None:
    """Regression: "weights above the range only warned about" (Flower PR 4982)."""
    code = Encoding(3, 1.0, 10, 2)
    with pytest.raises(ProtocolError, match=f"weight {weight} is not within 1 to 10"):
        code.encode(np.zeros(2, np.float32), weight, SEED)
    with pytest.raises(ProtocolError, match="a contributor's weight is not within 1 to 10"):
        code.decode(np.zeros(3, np.uint32), [weight, 1])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused(value: float) -> None:
    with pytest.raises(ProtocolError, match="the update holds NaN or infinity") as caught:
        Encoding(3, 1.0, 1, 3).encode(np.array([0, value, 0], np.float32), 1, SEED)
    assert caught.value.hint == "training diverged: lower the learning rate"


@pytest.mark.parametrize("score", [-0.001, 1.001, math.nan, math.inf])
def test_scores_out_of_range_are_refused(score: float) -> None:
    with pytest.raises(ProtocolError, match=f"a validation score of {score} is not within 0 to 1"):
        Encoding(3, 1.0, 1, 3, scored=True).encode(np.zeros(3, np.float32), 1, SEED, score)


def test_a_score_in_a_study_without_is_refused() -> None:
    with pytest.raises(ProtocolError, match="this study sums no validation scores"):
        Encoding(3, 1.0, 1, 3).encode(np.zeros(3, np.float32), 1, SEED, 0.5)


def test_another_type_or_shape_is_refused() -> None:
    code = Encoding(3, 1.0, 1, 3)
    with pytest.raises(ProtocolError, match=r"float32 of shape \(3,\), not float64 of \(3,\)"):
        code.encode(np.zeros(3), 1, SEED)  # type: ignore[arg-type]
    with pytest.raises(ProtocolError, match=r"not float32 of \(4,\)"):
        code.encode(np.zeros(4, np.float32), 1, SEED)
    with pytest.raises(ProtocolError, match=r"a sum is uint32 of shape \(4,\), not uint32 of \(3,\)"):
        code.decode(np.zeros(3, np.uint32), [1])
    with pytest.raises(ProtocolError, match=r"not int32 of \(4,\)"):
        code.decode(np.zeros(4, np.int32), [1])


@pytest.mark.parametrize("many", [0, 4])
def test_a_sum_of_nobody_or_of_more_than_the_roster_is_refused(many: int) -> None:
    code = Encoding(3, 1.0, 1, 1)
    total = np.array([0, many * code.weight_scale % 2**32], np.uint32)
    with pytest.raises(ProtocolError, match=f"a sum is of 1 to 3 contributors, not {many}"):
        code.decode(total, [1] * many)


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
        ((3, 1e31, 1, 5), r"clip 1e\+31 is no usable bound"),
        ((3, 1e-31, 1, 5), "clip 1e-31 is no usable bound"),
        ((3, 1.0, 1, 0), "a model of 0 weights cannot be aggregated"),
        ((3, 1.0, 1, 2**31), "a model of 2147483648 weights cannot be aggregated"),
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
    with pytest.raises(ProtocolError, match="total weight is not the 3 of 3 contributors: masks did not cancel"):
        code.decode(good + noise, [1, 1, 1])
    noise[-1] = 2 * code.weight_scale
    with pytest.raises(ProtocolError, match="out of the range of 3 contributors: masks did not cancel"):
        code.decode(good + noise, [1, 1, 1])


@pytest.mark.parametrize("off", [-1, 1, 2**28, -(2**28)])
def test_the_weight_is_that_of_the_plan_to_the_last_bit(off: int) -> None:
    """One member could skew the mean by weighing itself anew, were the sum of weights only bounded."""
    code = Encoding(3, 1.0, 2, 4)
    total = np.array([0, 0, 0, 0, 3 * code.weight_scale + off], np.uint32)
    with pytest.raises(ProtocolError, match="the total weight is not the 3 of 2 contributors: masks did not cancel"):
        code.decode(total, [1, 2])
    total[-1] = 3 * code.weight_scale
    assert code.decode(total, [1, 2]).weight == 3


@pytest.mark.parametrize("sign", [1, -1])
def test_a_coordinate_is_within_the_reach_of_these_contributors(sign: int) -> None:
    code = Encoding(5, 1.0, 4, 1)
    reach = math.floor(3 * code.scale * (1 + 2**-20)) + 2
    total = np.array([sign * reach % 2**32, 3 * code.weight_scale], np.uint32)
    assert code.decode(total, [1, 2]).update[0] == pytest.approx(sign, rel=1e-5)
    total[0] = (sign * (reach + 1)) % 2**32
    with pytest.raises(ProtocolError, match="out of the range of 2 contributors: masks did not cancel"):
        code.decode(total, [1, 2])


def test_the_coordinate_furthest_out_of_range_is_seen() -> None:
    code = Encoding(3, 1.0, 1, 1)
    with pytest.raises(ProtocolError, match="out of the range of 1 contributors"):
        code.decode(np.array([2**31, code.weight_scale], np.uint32), [1])


def test_a_contributor_that_does_not_keep_to_the_clip_shows_in_the_norm_of_the_mean() -> None:
    """Each coordinate alone would pass; the sum of two liars' vectors is longer than any two honest ones."""
    code = Encoding(3, 64.0, 1, 400)
    honest = code.encode(np.full(400, 1.0, np.float32), 1, SEED).vector
    lie = np.zeros(401, np.uint32)
    lie[:-1], lie[-1] = int(50 * code.scale), code.weight_scale
    with pytest.raises(
        ProtocolError, match="the mean's norm 510 exceeds the clip 64: a contributor did not keep to it"
    ):
        code.decode(honest + lie, [1, 1])


def test_the_longest_honest_mean_with_the_worst_rounding_passes_and_no_longer_one() -> None:
    code = Encoding(2, 1.0, 1, 2**20)
    each = int(2 * code.scale / 2**10) + 2
    total = np.full(code.length, each, np.uint32)
    total[-1] = 2 * code.weight_scale
    assert 1 < code.decode(total, [1, 1]).norm < 1 + 2.1 / code.scale * 2**10
    total[:-1] += np.uint32(2)
    with pytest.raises(ProtocolError, match="exceeds the clip 1: a contributor did not keep to it"):
        code.decode(total, [1, 1])


def scored_sum(code: Encoding, score: int, scorers: int) -> NDArray[np.uint32]:
    return np.array([0, 2 * code.weight_scale, score, scorers], np.uint32)


def test_scores_that_contributors_cannot_give_are_refused() -> None:
    code = Encoding(3, 1.0, 1, 1, scored=True)
    one = code.score_scale
    for score, scorers in ((0, 0), (0, one), (one, one), (2 * one, 2 * one)):
        mean = code.decode(scored_sum(code, score, scorers), [1, 1])
        assert (mean.scorers, mean.score) == (scorers // one, score / scorers if scorers else None)
    for score, scorers in ((1, 0), (one + 1, one), (0, one + 1), (0, 3 * one), (2**32 - 1, one), (0, 2**32 - one)):
        with pytest.raises(
            ProtocolError, match="scores are not those of 2 contributors: one did not keep to the range"
        ):
            code.decode(scored_sum(code, score, scorers), [1, 1])


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


@settings(max_examples=300)
@given(st.floats(-1, 1, width=32), st.sampled_from([2**20, 2**30]), st.sampled_from([0, 1, 2**31, 2**32 - 1]))
def test_no_draw_moves_a_value_further_than_to_the_next_integer(value: float, scale: int, draw: int) -> None:
    code = Encoding(1, 1.0 * 2**30 / scale, 1, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "keystream", lambda _seed, length: constant_stream(draw, length))
        coded = code.encode(np.array([value], np.float32), 1, SEED)
    exact = Fraction(value) * Fraction(code.scale)
    rounded = int(coded.vector[:1].view(np.int32)[0])
    assert rounded in (math.floor(exact), math.floor(exact) + 1)
    fraction = exact - math.floor(exact)
    if abs(fraction + Fraction(draw, 2**32) - 1) > Fraction(1, 2**22):
        assert rounded == math.floor(exact + Fraction(draw, 2**32))


def constant_stream(draw: int, length: int) -> Iterator[tuple[slice, NDArray[np.uint32]]]:
    yield slice(0, length), np.full(length, draw, np.uint32)


def test_rounding_seeds_differ_by_plan_round_and_site() -> None:
    seeds = {rounding_seed(p, r, s) for p in (0, 1, 11) for r in (0, 1, 11) for s in ("a", "1a", "b")}
    assert len(seeds) == 27
    assert {len(seed) for seed in seeds} == {32}


def heavy_tail(size: int) -> NDArray[np.float32]:
    draw = np.random.default_rng(3)
    update = draw.standard_t(3, size=size).astype(np.float32)
    return update / np.float32(1.001 * math.sqrt(math.fsum(update.astype(np.float64) ** 2)))


def test_the_error_on_a_heavy_tail_is_that_of_the_design() -> None:
    """ "1.1e-5 with a = the L2 norm bound" for a heavy-tailed 5M update at n = 30; a tenth of the size here."""
    update = heavy_tail(500_000)
    code = Encoding(30, 1.0, 1, update.size)
    mean = code.decode(code.encode(update, 1, SEED).vector, [1])
    assert np.linalg.norm(mean.update - update) < 2e-5


def test_the_measured_error_is_that_of_a_float64_product() -> None:
    update = heavy_tail(200_000) * np.float32(3)
    code = Encoding(30, 1.0, 3, update.size)
    coded = code.encode(update, 2, SEED)
    product = update.astype(np.float64) * (2 * coded.factor * code.scale)
    difference = coded.vector[:-1].view(np.int32) - product
    norm = math.sqrt(math.fsum(product**2))
    assert coded.relative_error == pytest.approx(math.sqrt(math.fsum(difference**2)) / norm, rel=1e-9)


def test_the_error_expected_from_the_public_sum_is_the_one_that_rounding_made() -> None:
    code = Encoding(4, 1.0, 1, 200_000)
    updates = [heavy_tail(200_000) * np.float32(part) for part in (0.5, 0.9, 1.0)]
    coded = [code.encode(update, 1, rounding_seed(0, 0, str(part))) for part, update in enumerate(updates)]
    total = np.add.reduce([each.vector for each in coded], dtype=np.uint32)
    exact = np.add.reduce([update.astype(np.float64) for update in updates]) * code.scale
    made = np.linalg.norm(total[:-1].view(np.int32) - exact) / np.linalg.norm(exact)
    assert code.decode(total, [1, 1, 1]).relative_error == pytest.approx(made, rel=0.01)


THREADS = """
import hashlib, sys
import numpy as np
from fedseg.secagg.encoding import Encoding
update = np.random.default_rng(1).normal(size=300_000).astype(np.float32)
for part in range(5):
    code = Encoding(3, 0.5 + part, 1, 300_000 - part)
    coded = code.encode(update[part:], 1, bytes(32))
    mean = code.decode(coded.vector, [1])
    print(hashlib.sha256(coded.vector).hexdigest(), coded.norm, coded.relative_error, mean.norm, mean.relative_error)
"""


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    told = {
        subprocess.run(
            [sys.executable, "-c", THREADS],
            env={**os.environ, **dict.fromkeys(names, threads)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for threads in ("1", "2", "3")
    }
    assert len(told) == 1
