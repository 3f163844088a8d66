from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedseg.federation.exchange import Best
from fedseg.federation.rollback import Judgement, judge

A, B = "a" * 64, "b" * 64
scores = st.none() | st.floats(0, 1)


@pytest.mark.parametrize(
    ("best", "base", "score", "expected"),
    [
        pytest.param(None, A, 0.5, Judgement(Best(A, 0.5)), id="the first score is the best"),
        pytest.param(None, A, 0.0, Judgement(Best(A, 0.0)), id="even where it is 0"),
        pytest.param(None, A, None, Judgement(None), id="nobody has scored yet"),
        pytest.param(Best(A, 0.5), B, None, Judgement(Best(A, 0.5)), id="nobody scored this model"),
        pytest.param(Best(A, 0.5), B, 0.6, Judgement(Best(B, 0.6)), id="a better one takes its place"),
        pytest.param(Best(A, 0.5), B, 0.5, Judgement(Best(B, 0.5)), id="a tie goes to the newer"),
        pytest.param(Best(A, 0.5), B, 0.45, Judgement(Best(A, 0.5)), id="a little worse is no collapse"),
        pytest.param(Best(A, 0.5), B, 0.375, Judgement(Best(A, 0.5)), id="just the drop is none either"),
        pytest.param(Best(A, 0.5), B, 0.37, Judgement(Best(A, 0.5), back=True), id="more than the drop is one"),
        pytest.param(Best(A, 0.5), B, 0.0, Judgement(Best(A, 0.5), back=True), id="nothing left of it"),
        pytest.param(Best(A, 0.5), A, 0.45, Judgement(Best(A, 0.45)), id="the best scored again: the newer score"),
        pytest.param(Best(A, 0.5), A, 0.0, Judgement(Best(A, 0.0)), id="never back from the best to itself"),
        pytest.param(Best(A, 0.5), A, None, Judgement(Best(A, 0.5)), id="the best trained again without scorers"),
    ],
)
def test_judgements(best: Best | None, base: str, score: float | None, expected: Judgement) -> None:
    assert judge(best, base, score, drop=0.125) == expected


@given(st.lists(scores, max_size=20), st.floats(0.01, 0.9))
def test_two_rollbacks_never_follow_each_other(announced: list[float | None], drop: float) -> None:
    best, base, went_back = None, "0", False
    for number, score in enumerate(announced, 1):
        verdict = judge(best, base, score, drop)
        assert not (verdict.back and went_back), "the round after a rollback starts from the best and keeps its sum"
        best, went_back = verdict.best, verdict.back
        base = best.model_hash if went_back and best is not None else str(number)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.floats(0.01, 0.9))
def test_without_a_collapse_the_best_is_the_newest_of_the_highest(announced: list[float], drop: float) -> None:
    best: Best | None = None
    for number, score in enumerate(announced):
        best = judge(best, str(number), score, drop).best
    highest = max(announced)
    newest = max(number for number, score in enumerate(announced) if score == highest)
    assert best == Best(str(newest), highest)


def test_one_score_set_too_high_costs_one_rollback() -> None:
    best, backs, base = None, [], "0"
    for number, score in enumerate([0.6, 1.0, 0.62, 0.61, 0.63, 0.64], 1):
        verdict = judge(best, base, score, drop=0.1)
        backs.append(verdict.back)
        best = verdict.best
        base = best.model_hash if verdict.back and best is not None else str(number)
    assert backs == [False, False, True, False, False, False]
    assert best == Best("5", 0.64)
