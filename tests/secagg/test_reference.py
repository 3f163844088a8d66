"""The whole protocol in one call: who is lost when, and what comes out. Every loss at n = 3 to 6: `test_dropouts`."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import numpy as np
import pytest

from fedseg.errors import BelowQuorum
from fedseg.secagg.aggregator import PlainAggregator
from fedseg.secagg.encoding import Encoding, rounding_seed
from fedseg.secagg.messages import Phase, SessionHeader
from fedseg.secagg.reference import aggregate
from fedseg.secagg.site import contribute
from fedseg.secagg.thresholds import Thresholds

from .helpers import NAMES, Vector, entropy, identity, inputs_of, keys, ring_sum, roster_of, session

STEPS = (Phase.ADVERTISE_KEYS, Phase.SHARE_KEYS, Phase.MASKED_INPUT, Phase.CONSISTENCY, Phase.UNMASKING)
LOSSES = (*STEPS, None)


def summed(
    header: SessionHeader, inputs: Mapping[str, Vector], lost_at: Mapping[str, Phase] | None = None
) -> tuple[Vector, tuple[str, ...]]:
    private = keys(sites=header.sites)
    return aggregate(header, roster_of(header), private, inputs, entropy(header.sid0()), lost_at)


def expected_end(header: SessionHeader, lost_at: Mapping[str, Phase]) -> tuple[Phase | None, tuple[str, ...]]:
    """By counting alone: the phase that fails, or None with U3."""
    left = {site: STEPS.index(lost_at[site]) if site in lost_at else len(STEPS) for site in header.sites}
    for place, phase in enumerate(STEPS):
        needed = header.t if phase in (Phase.CONSISTENCY, Phase.UNMASKING) else max(header.t, header.m)
        if sum(last > place for last in left.values()) < needed:
            return phase, ()
    return None, tuple(site for site, last in left.items() if last > STEPS.index(Phase.MASKED_INPUT))


def check(header: SessionHeader, lost_at: Mapping[str, Phase]) -> bool:
    inputs = inputs_of(header)
    failing, survivors = expected_end(header, lost_at)
    if failing is None:
        total, u3 = summed(header, inputs, lost_at)
        assert u3 == survivors
        np.testing.assert_array_equal(total, ring_sum([inputs[site] for site in survivors]))
    else:
        with pytest.raises(BelowQuorum, match=f"finished {failing}") as caught:
            summed(header, inputs, lost_at)
        assert caught.value.exit_code == 3
    return failing is None


@pytest.mark.parametrize(("c", "accept_two", "sums"), [(0, False, 7), (0, True, 16), (1, False, 1)])
def test_every_dropout_at_every_phase(c: int, accept_two: bool, sums: int) -> None:
    """`sums` counts the histories that end in a sum, by hand; the others end in BelowQuorum.

    With m = 3 all must send an input, and two of them (t = 2) must answer to the end: 1 + 3 * 2. With m = 2 any two
    must answer to the end: 1 + 3 * 5.
    """
    header = session(3, c, dimension=3, accept_two=accept_two)
    histories = [
        {site: phase for site, phase in zip(header.sites, phases, strict=True) if phase is not None}
        for phases in product(LOSSES, repeat=3)
    ]
    finished = [check(header, lost_at) for lost_at in histories]
    assert (len(finished), sum(finished)) == (6**3, sums)


def test_a_dropout_before_share_keys_and_an_even_number_of_answers() -> None:
    """Regression: "an even number of shares below n ends in IndexError; a dropout before ShareKeys in KeyError"."""
    header = session(6, 0, dimension=3)
    lost_at = {"amiens": Phase.SHARE_KEYS, "brno": Phase.UNMASKING}
    assert header.t == 4
    assert check(header, lost_at)


def test_a_contributor_that_signs_nothing_is_still_in_the_sum() -> None:
    header = session(5)
    total, u3 = summed(header, inputs_of(header), {"amiens": Phase.CONSISTENCY})
    assert u3 == header.sites
    np.testing.assert_array_equal(total, ring_sum(list(inputs_of(header).values())))


def test_a_site_that_never_comes_is_a_dropout() -> None:
    header = session(5)
    inputs = inputs_of(header)
    del inputs["cluj"]
    total, u3 = summed(header, inputs)
    assert u3 == ("amiens", "brno", "dakar", "essen")
    np.testing.assert_array_equal(total, ring_sum(list(inputs.values())))


def test_below_quorum_names_who_is_missing() -> None:
    with pytest.raises(BelowQuorum) as caught:
        summed(session(), inputs_of(session()), {"brno": Phase.MASKED_INPUT})
    assert str(caught.value) == (
        "round 4, attempt 1: 2 of 3 sites finished MaskedInputCollection, 3 are needed (missing: brno)"
    )


@pytest.mark.parametrize("scored", [False, True])
@pytest.mark.parametrize(("n", "lost"), [(3, ()), (5, ("dakar",)), (10, ("amiens", "essen", "jena"))])
def test_secure_and_plain_are_one_model_bit_for_bit(n: int, lost: tuple[str, ...], scored: bool) -> None:
    code = Encoding(n, 1.5, 4, 70_000, scored)
    header = session(n, encoding=code)
    draw = np.random.default_rng(n)
    weights = {site: 1 + place % 4 for place, site in enumerate(header.sites)}
    inputs = {}
    for site, weight in weights.items():
        update = draw.normal(size=code.dimension).astype(np.float32)
        inputs[site] = code.encode(update, weight, rounding_seed(7, 1, site), 0.5 if scored else None).vector
    total, u3 = summed(header, inputs, dict.fromkeys(lost, Phase.MASKED_INPUT))
    plain = PlainAggregator(session(n, encoding=code, thresholds=Thresholds.plain(n, n - len(lost))), roster_of(header))
    for site in header.sites:
        plain.join(site)
    joined = plain.close_join()
    for site in reversed(joined):
        if site not in lost:
            message = contribute(plain.header, identity(site, header), joined, inputs[site])
            assert plain.mask(message, inputs[site])
    assert plain.close_mask() == u3 == tuple(site for site in NAMES[:n] if site not in lost)
    assert plain.close_unmask().tobytes() == total.tobytes()
    mean = code.decode(total, [weights[site] for site in u3])
    assert mean.weight == sum(weights[site] for site in header.sites if site not in lost)
    assert np.isfinite(mean.update).all()
    assert (mean.score, mean.scorers) == ((0.5, len(u3)) if scored else (None, 0))


def test_thirty_sites_of_which_ten_are_lost() -> None:
    sites = [f"site{place:02}" for place in range(30)]
    header = session(sites=sites, encoding=Encoding(30, 1.0, 1, 4), thresholds=Thresholds.of(30))
    lost_at = {site: STEPS[place % 5] for place, site in enumerate(sites[:10])}
    assert check(header, lost_at)
    assert not check(header, {**lost_at, "site20": Phase.UNMASKING})
