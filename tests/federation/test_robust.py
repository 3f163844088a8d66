from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from itertools import permutations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedseg.errors import ProtocolError
from fedseg.federation import robust
from fedseg.federation.robust import RobustRule, combine, median, multi_krum, stretch, trimmed_mean
from fedseg.plan.combinations import most_liars
from fedseg.secagg.encoding import Encoding

Rows = list[list[int]]
Vectors = list[NDArray[np.uint32]]
TAIL = 3
RULES: list[RobustRule] = ["median", "trimmed_mean", "multi_krum"]
LOW, HIGH = -(2**31), 2**31 - 1


def encoded(rows: Rows, tails: Rows | None = None) -> Vectors:
    tails = tails or [[1, 2, 3] for _ in rows]
    return [np.array([*row, *tail], dtype=np.int64).astype(np.uint32) for row, tail in zip(rows, tails, strict=True)]


def decoded(total: NDArray[np.uint32], dimension: int) -> list[int]:
    return [int(value) for value in total[:dimension].view(np.int32)]


def nearest(value: Fraction) -> int:
    return math.floor(value + Fraction(1, 2))


def slow_trimmed(rows: Rows, cut: int) -> list[int]:
    many, found = len(rows), []
    for column in zip(*rows, strict=True):
        kept = sorted(column)[cut : many - cut]
        found.append(nearest(Fraction(sum(kept), len(kept)) * many))
    return found


def slow_median(rows: Rows) -> list[int]:
    many, found = len(rows), []
    for column in zip(*rows, strict=True):
        ordered = sorted(column)
        middle = Fraction(ordered[(many - 1) // 2] + ordered[many // 2], 2) * many
        assert middle.denominator == 1
        found.append(int(middle))
    return found


def slow_krum(rows: Rows, liars: int) -> list[int]:
    many = len(rows)
    near = many - liars - 2
    scores = []
    for one in rows:
        others = list(rows)
        others.remove(one)
        distances = sorted(sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) for other in others)
        scores.append(sum(distances[:near]))
    best = sorted(range(many), key=lambda index: (scores[index], index))[:near]
    return [nearest(Fraction(sum(column), near) * many) for column in zip(*(rows[i] for i in best), strict=True)]


@st.composite
def rounds(draw: st.DrawFn, values: st.SearchStrategy[int], least: int = 1) -> Rows:
    many, dimension = draw(st.integers(least, 9)), draw(st.integers(1, 5))
    return draw(st.lists(st.lists(values, min_size=dimension, max_size=dimension), min_size=many, max_size=many))


def fits(rows: Rows) -> int:
    return HIGH // len(rows)


small = st.integers(-9, 9)
wide = st.integers(-(2**27), 2**27)


@given(rounds(small | wide))
def test_the_median_is_the_naive_one(rows: Rows) -> None:
    assert decoded(median(encoded(rows), len(rows[0])), len(rows[0])) == slow_median(rows)


@given(rounds(small | wide), st.data())
def test_the_trimmed_mean_is_the_naive_one(rows: Rows, data: st.DataObject) -> None:
    liars = data.draw(st.integers(0, most_liars("trimmed_mean", len(rows))))
    assert decoded(trimmed_mean(encoded(rows), len(rows[0]), liars), len(rows[0])) == slow_trimmed(rows, liars)


@given(rounds(small | wide, least=3), st.data())
def test_multi_krum_is_the_naive_one(rows: Rows, data: st.DataObject) -> None:
    liars = data.draw(st.integers(0, most_liars("multi_krum", len(rows))))
    assert decoded(multi_krum(encoded(rows), len(rows[0]), liars), len(rows[0])) == slow_krum(rows, liars)


@given(rounds(st.sampled_from([LOW, LOW + 1, -65537, -65536, -1, 0, 1, 65535, 65536, HIGH]) | wide, least=2))
def test_distances_are_exact_to_the_ends_of_the_ring(rows: Rows) -> None:
    found = robust._squared_distances(encoded(rows), len(rows[0]))
    for one, line in zip(rows, found, strict=True):
        assert line == [sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) for other in rows]


@pytest.mark.parametrize("rule", RULES)
def test_pieces_join_without_a_seam(rule: RobustRule, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    vectors = [rng.integers(0, 2**27, 41).astype(np.uint32) for _ in range(5)]
    whole = combine(rule, vectors, 38, 1)
    for piece in (1, 7, 37, 38, 39):
        monkeypatch.setattr(robust, "PIECE", piece)
        assert np.array_equal(combine(rule, vectors, 38, 1), whole)


@pytest.mark.parametrize("rule", RULES)
def test_the_order_of_contributors_is_nothing(rule: RobustRule) -> None:
    rng = np.random.default_rng(5)
    vectors = [rng.integers(0, 2**32, 13).astype(np.uint32) // 64 for _ in range(5)]
    results = {combine(rule, list(order), 10, 1).tobytes() for order in permutations(vectors)}
    assert len(results) == 1


def test_krum_breaks_ties_by_place() -> None:
    alike = [[2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0], [0, 0, 0, 2]]
    far = [10**6] * 4
    assert decoded(multi_krum(encoded([*alike, far]), 4, 1), 4) == [5, 5, 0, 0]
    assert decoded(multi_krum(encoded([far, *alike[::-1]]), 4, 1), 4) == [0, 0, 5, 5]


@pytest.mark.parametrize("rule", RULES)
@given(rows=rounds(wide, least=5), lie=st.lists(st.integers(LOW, HIGH), min_size=5, max_size=5))
def test_the_tail_is_summed_in_the_ring_as_the_mean_rule_does(rule: RobustRule, rows: Rows, lie: list[int]) -> None:
    tails = [[2**30 + i, 7 * i, 1] for i in range(len(rows) - 1)] + [[2**31, lie[0] % 2**32, 0]]
    vectors = encoded(rows, tails)
    total = combine(rule, vectors, len(rows[0]), 1)
    assert total.dtype == np.uint32 and total.size == len(rows[0]) + TAIL
    assert [int(value) for value in total[-TAIL:]] == [sum(column) % 2**32 for column in zip(*tails, strict=True)]


@given(rounds(wide, least=3), st.data())
def test_liars_move_median_and_trimmed_mean_only_within_the_honest_range(rows: Rows, data: st.DataObject) -> None:
    liars = data.draw(st.integers(1, most_liars("median", len(rows))))
    anything = st.lists(st.sampled_from([LOW, HIGH]) | st.integers(LOW, HIGH), min_size=5, max_size=5)
    lies = [data.draw(anything)[: len(rows[0])] for _ in range(liars)]
    honest, many = rows[liars:], len(rows)
    for rule in ("median", "trimmed_mean"):
        found = decoded(combine(rule, encoded(lies + honest), len(rows[0]), liars), len(rows[0]))
        for value, column in zip(found, zip(*honest, strict=True), strict=True):
            assert many * min(column) <= value <= many * max(column)


@given(rounds(small, least=5), st.data())
def test_multi_krum_never_chooses_what_is_far_from_the_honest(rows: Rows, data: st.DataObject) -> None:
    liars = data.draw(st.integers(1, most_liars("multi_krum", len(rows))))
    far = st.integers(10**4, HIGH) | st.integers(LOW, -(10**4))
    lies = [[data.draw(far) for _ in rows[0]] for _ in range(liars)]
    honest = rows[liars:]
    found = decoded(multi_krum(encoded(honest + lies), len(rows[0]), liars), len(rows[0]))
    for value, column in zip(found, zip(*honest, strict=True), strict=True):
        assert len(rows) * min(column) <= value <= len(rows) * max(column)


def test_the_mean_would_have_followed_the_liar() -> None:
    rows = [[1], [2], [3], [4], [10**8]]
    assert decoded(trimmed_mean(encoded(rows), 1, 0), 1) == [10**8 + 10]
    assert [decoded(combine(rule, encoded(rows), 1, 1), 1) for rule in RULES] == [[15], [15], [13]]


@pytest.mark.parametrize("rule", RULES)
def test_a_round_decodes_to_the_estimate_and_keeps_its_weight_and_scores(rule: RobustRule) -> None:
    rng = np.random.default_rng(1)
    updates = rng.standard_normal((5, 50)).astype(np.float32)
    encoding = Encoding(sites=6, clip=20.0, weight_max=2, dimension=50, scored=True)
    scores = [0.5, None, 0.25, 0.75, None]
    vectors = [
        encoding.encode(update, 2, bytes([site]) * 32, score).vector
        for site, (update, score) in enumerate(zip(updates, scores, strict=True))
    ]
    mean = encoding.decode(combine(rule, vectors, encoding.dimension, 1), [2] * 5)
    expected = {
        "median": np.median(updates, axis=0),
        "trimmed_mean": np.sort(updates, axis=0)[1:-1].mean(axis=0),
        "multi_krum": updates[best_two(updates)].mean(axis=0),
    }[rule]
    np.testing.assert_allclose(mean.update, expected, atol=1.5 / encoding.scale)
    assert (mean.weight, mean.scorers) == (10, 3)
    assert mean.score == pytest.approx(0.5, abs=1e-6)


def best_two(updates: NDArray[np.float32]) -> list[int]:
    squares = np.square(updates[:, None] - updates).sum(axis=2)
    return [int(index) for index in np.sort(squares, axis=1)[:, :3].sum(axis=1).argsort()[:2]]


@given(rounds(st.integers(-1000, 1000), least=3), st.data())
def test_no_estimate_is_longer_than_stretch_allows(rows: Rows, data: st.DataObject) -> None:
    for rule in RULES:
        most = most_liars(rule, len(rows))
        liars = data.draw(st.integers(0, most))
        found = decoded(combine(rule, encoded(rows), len(rows[0]), liars), len(rows[0]))
        longest = max(math.hypot(*row) for row in rows)
        rounding = math.sqrt(len(rows[0])) / 2
        bound = len(rows) * stretch(rule, len(rows), None if rule == "median" else liars) * longest
        assert math.hypot(*found) <= bound * (1 + 1e-12) + rounding


def test_the_median_is_longer_than_its_vectors_and_stretch_says_by_how_much() -> None:
    rows = [[10, 10, 0], [10, 0, 10], [0, 10, 10]]
    found = math.hypot(*decoded(median(encoded(rows), 3), 3)) / 3
    assert found == pytest.approx(stretch("median", 3) * math.hypot(10, 10))
    assert stretch("median", 3) == pytest.approx(math.sqrt(1.5))
    assert stretch("trimmed_mean", 10, 2) == pytest.approx(math.sqrt(10 / 8))
    assert stretch("multi_krum", 10, 2) == 1.0


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda v: trimmed_mean(v, 2, 3), "trimmed_mean over 5 contributors withstands at most 2, not 3"),
        (lambda v: trimmed_mean(v, 2, -1), "trimmed_mean over 5 contributors withstands at most 2, not -1"),
        (lambda v: multi_krum(v, 2, 2), "multi_krum over 5 contributors withstands at most 1, not 2"),
        (lambda v: multi_krum(v[:2], 2, 0), "multi_krum over 2 contributors withstands at most 0, not 0"),
        (lambda v: combine("multi_krum", v, 2), "multi_krum needs the number of liars that it is built for"),
        (lambda v: median([], 2), "uint32 vectors of one length, at least one"),
        (lambda v: median([*v, v[0][:-1]], 2), "uint32 vectors of one length, at least one"),
        (lambda v: median([x.view(np.int32) for x in v], 2), "uint32 vectors of one length, at least one"),
        (lambda v: median([x[None] for x in v], 2), "uint32 vectors of one length, at least one"),
        (lambda v: median(v, 5), "vectors of 5 coordinates hold no update of 5 and its weight"),
        (lambda v: median(v, 0), "vectors of 5 coordinates hold no update of 0 and its weight"),
    ],
)
def test_what_no_rule_takes(call: Callable[[Vectors], object], says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        call(encoded([[i, i] for i in range(5)]))


@given(rounds(st.sampled_from([LOW, HIGH]), least=3))
def test_more_liars_than_the_rule_is_built_for_never_wrap_round_the_ring(rows: Rows) -> None:
    assume(all(abs(value) > fits(rows) for value in slow_median(rows)))
    with pytest.raises(ProtocolError, match="more contributors lie than the rule is built for"):
        median(encoded(rows), len(rows[0]))
