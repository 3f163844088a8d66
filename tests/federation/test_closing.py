from __future__ import annotations

import numpy as np
import pytest

from fedseg.errors import ProtocolError
from fedseg.federation.closing import close_round
from fedseg.federation.exchange import Best, RingVector
from fedseg.federation.robust import combine
from fedseg.plan.manifest import Manifest
from fedseg.plan.study import parse_plan
from fedseg.runtime.session import encoding_of
from fedseg.secagg.integers import IntegerCode
from tests.runtime import toy
from tests.secagg.helpers import ring_sum

FIVE = ("a", "b", "c", "d", "e")
BASE, BETTER = "b" * 64, "a" * 64
ROLLBACK = "rollback: {drop: 0.1}"


def study(mode: str = "secure", more: str = "", weights: tuple[int, ...] = (1, 1, 1, 1, 1)) -> Manifest:
    manifest = toy.manifest(toy.plan(FIVE, mode=mode, more=more))
    sites = {
        name: site.model_copy(update={"weight": weight})
        for (name, site), weight in zip(manifest.plan.sites.items(), weights, strict=True)
    }
    return manifest.model_copy(update={"plan": manifest.plan.model_copy(update={"sites": sites})})


def vectors(manifest: Manifest, *updates: float, scores: tuple[float | None, ...] = ()) -> list[RingVector]:
    encoding, weights = toy.code(manifest), [site.weight for site in manifest.plan.sites.values()]
    given = scores or (None,) * len(updates)
    return [
        encoding.encode(np.full(toy.SIZE, update, np.float32), weight, bytes(32), score).vector
        for update, weight, score in zip(updates, weights, given, strict=False)
    ]


def test_the_mean_is_weighed_by_the_plans_constants_of_its_contributors() -> None:
    manifest = study(weights=(1, 2, 3, 4, 5))
    total = ring_sum(vectors(manifest, 0.1, 0.2, 0.3, 0.4, 0.5))
    closing = close_round(manifest, encoding_of(manifest), total, FIVE, base_model=BASE, best=None)
    np.testing.assert_allclose(closing.mean.update, (0.1 + 0.4 + 0.9 + 1.6 + 2.5) / 15, atol=1e-4)
    assert (closing.mean.weight, closing.best, closing.back) == (15, None, False)
    for others in (FIVE[:4], FIVE[1:], (*FIVE[:4], "d")):
        with pytest.raises(ProtocolError, match="the total weight is not the"):
            close_round(manifest, encoding_of(manifest), total, others, base_model=BASE, best=None)


def test_a_study_that_keeps_no_scores_never_goes_back() -> None:
    manifest = study()
    total = ring_sum(vectors(manifest, *[0.1] * 5))
    closing = close_round(manifest, encoding_of(manifest), total, FIVE, base_model=BASE, best=Best(BETTER, 0.9))
    assert (closing.best, closing.back) == (None, False)


@pytest.mark.parametrize(
    ("scores", "best", "after", "back"),
    [
        ((0.5, 0.7, None, None, 0.6), None, Best(BASE, 0.6), False),
        ((0.5, 0.7, None, None, 0.6), Best(BETTER, 0.55), Best(BASE, 0.6), False),
        ((0.5, 0.7, None, None, 0.6), Best(BETTER, 0.69), Best(BETTER, 0.69), False),
        ((0.5, 0.7, None, None, 0.6), Best(BETTER, 0.75), Best(BETTER, 0.75), True),
        # The best model itself is trained again after a rollback: nothing collapses from there.
        ((0.1, 0.1, None, None, 0.1), Best(BASE, 0.75), Best(BASE, 0.1), False),
        ((None,) * 5, Best(BETTER, 0.75), Best(BETTER, 0.75), False),
    ],
)
def test_the_sum_of_scores_judges_the_model_that_the_round_started_from(
    scores: tuple[float | None, ...], best: Best | None, after: Best | None, back: bool
) -> None:
    manifest = study(more=ROLLBACK)
    total = ring_sum(vectors(manifest, *[0.1] * 5, scores=scores))
    closing = close_round(manifest, encoding_of(manifest), total, FIVE, base_model=BASE, best=best)
    assert closing.back is back
    assert after is not None
    assert closing.best is not None
    assert closing.best.model_hash == after.model_hash
    assert closing.best.score == pytest.approx(after.score)
    assert closing.mean.scorers == sum(score is not None for score in scores)


@pytest.mark.parametrize(("rule", "liars"), [("median", None), ("trimmed_mean", 1), ("multi_krum", 1)], ids=str)
def test_what_a_robust_rule_publishes_may_be_longer_than_the_clip_by_so_much_and_no_more(
    rule: str, liars: int | None
) -> None:
    manifest = study("plain", f"rule: {rule}" + (f", liars: {liars}" if liars else ""))
    encoding = encoding_of(manifest)
    given = vectors(manifest, 0.1, 0.2, 0.3, 0.4, -5.0)
    total = combine(rule, given, toy.SIZE, liars)  # type: ignore[arg-type]  # one of the rules' names
    closing = close_round(manifest, encoding, total, FIVE, base_model=BASE, best=None)
    assert 0.1 <= float(closing.mean.update.min()) <= float(closing.mean.update.max()) <= 0.3 + 1e-4
    # Longer than any estimate over these can be: refused, as a mean beyond the clip is.
    too_long = total.copy()
    too_long[: toy.SIZE] = int(1.5 * 64 * encoding.scale * 5 / np.sqrt(toy.SIZE))
    with pytest.raises(ProtocolError, match="exceeds the clip 64: a contributor did not keep to it"):
        close_round(manifest, encoding, too_long, FIVE, base_model=BASE, best=None)


def test_a_pooled_gradient_is_divided_by_constants_of_the_plan() -> None:
    text = (
        "{name: t, privacy: {mode: distributed, epsilon: 8, sampling_rate: 0.5}, training: {steps: 1, optimiser: sgd},"
        " schedule: {rounds: 1}, sites: {a: {public_subjects: 10}, b: {public_subjects: 30}, c: {public_subjects: 50}}}"
    )
    plan = parse_plan(text, "t.yaml").content
    manifest = toy.manifest(toy.plan()).model_copy(update={"plan": plan, "noise_multiplier": 2.0})
    code = encoding_of(manifest)
    assert isinstance(code, IntegerCode)
    sent = code.encode(np.full(toy.SIZE, 7, np.int64))
    closing = close_round(manifest, code, sent + sent, ("a", "c"), base_model="ab" * 32, best=None)
    expected = np.full(toy.SIZE, 2 * 7 / code.scale / (0.5 * 60))
    np.testing.assert_allclose(closing.mean.update, expected, rtol=1e-6)
    assert closing.mean.norm == pytest.approx(float(np.linalg.norm(expected)))
