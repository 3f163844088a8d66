"""The whole protocol: who is lost when, and what comes out."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations_with_replacement, product

import numpy as np
import pytest

from fedseg.errors import BelowQuorum
from fedseg.secagg.aggregator import PlainAggregator, plain_input
from fedseg.secagg.encoding import Encoding, rounding_seed
from fedseg.secagg.messages import Phase, SessionHeader
from fedseg.secagg.reference import aggregate
from fedseg.secagg.thresholds import Thresholds

from .helpers import NAMES, entropy, inputs_of, ring_sum, session

STEPS = (Phase.ADVERTISE_KEYS, Phase.SHARE_KEYS, Phase.MASKED_INPUT, Phase.UNMASKING)
LOSSES = (*STEPS, None)


def expected_end(header: SessionHeader, lost_at: Mapping[str, Phase]) -> tuple[Phase | None, tuple[str, ...]]:
    """By counting alone: the phase that fails, or None with U3."""
    left = {site: STEPS.index(lost_at[site]) if site in lost_at else len(STEPS) for site in header.sites}
    for place, phase in enumerate(STEPS):
        needed = header.t if phase is Phase.UNMASKING else max(header.t, header.m)
        if sum(last > place for last in left.values()) < needed:
            return phase, ()
    return None, tuple(site for site, last in left.items() if last > STEPS.index(Phase.MASKED_INPUT))


def check(header: SessionHeader, lost_at: Mapping[str, Phase]) -> bool:
    inputs = inputs_of(header)
    failing, survivors = expected_end(header, lost_at)
    if failing is None:
        total, u3 = aggregate(header, inputs, entropy(header.sid0()), lost_at)
        assert u3 == survivors
        np.testing.assert_array_equal(total, ring_sum([inputs[site] for site in survivors]))
    else:
        with pytest.raises(BelowQuorum, match=f"finished {failing}") as caught:
            aggregate(header, inputs, entropy(header.sid0()), lost_at)
        assert caught.value.exit_code == 3
    return failing is None


def losses(sites: tuple[str, ...], phases: tuple[Phase | None, ...]) -> dict[str, Phase]:
    return {site: phase for site, phase in zip(sites, phases, strict=True) if phase is not None}


@pytest.mark.parametrize(
    ("n", "c", "accept_two", "sums"),
    [(3, None, False, 4), (3, None, True, 13), (4, None, False, 17), (4, 2, False, 1)],
)
def test_every_dropout_at_every_phase(n: int, c: int | None, accept_two: bool, sums: int) -> None:
    """`sums` counts the histories that end in a sum, by hand; the others end in BelowQuorum."""
    header = session(n, c, dimension=3, accept_two=accept_two)
    finished = [check(header, losses(header.sites, phases)) for phases in product(LOSSES, repeat=n)]
    assert (len(finished), sum(finished)) == (5**n, sums)


@pytest.mark.parametrize("n", [5, 6])
def test_dropouts_of_larger_rosters_up_to_the_names(n: int) -> None:
    """Every number of losses at every phase; which sites those are rotates."""
    header = session(n, dimension=3)
    for turn, phases in enumerate(combinations_with_replacement(LOSSES, n)):
        check(header, losses(header.sites[turn % n :] + header.sites[: turn % n], phases))


def test_a_dropout_before_share_keys_and_an_even_number_of_answers() -> None:
    """Regression: "an even number of shares below n ends in IndexError; a dropout before ShareKeys in KeyError"."""
    header = session(6, 0, dimension=3)
    lost_at = {"amiens": Phase.SHARE_KEYS, "brno": Phase.UNMASKING}
    assert header.t == 4
    assert check(header, lost_at)


def test_a_site_that_never_comes_is_a_dropout() -> None:
    header = session(5)
    inputs = inputs_of(header)
    del inputs["cluj"]
    total, u3 = aggregate(header, inputs, entropy())
    assert u3 == ("amiens", "brno", "dakar", "essen")
    np.testing.assert_array_equal(total, ring_sum(list(inputs.values())))


def test_below_quorum_names_who_is_missing() -> None:
    with pytest.raises(BelowQuorum) as caught:
        aggregate(session(), inputs_of(session()), entropy(), {"brno": Phase.MASKED_INPUT})
    assert str(caught.value) == (
        "round 4, attempt 1: 2 of 3 sites finished MaskedInputCollection, 3 are needed (missing: brno)"
    )


@pytest.mark.parametrize(("n", "lost"), [(3, ()), (5, ("dakar",)), (10, ("amiens", "essen", "jena"))])
def test_secure_and_plain_are_one_model_bit_for_bit(n: int, lost: tuple[str, ...]) -> None:
    code = Encoding(n, 1.5, 4, 70_000)
    header = session(n, encoding=code)
    draw = np.random.default_rng(n)
    inputs = {
        site: code.encode(
            draw.normal(size=code.dimension).astype(np.float32), 1 + place % 4, rounding_seed(7, 1, site)
        ).vector
        for place, site in enumerate(header.sites)
    }
    total, u3 = aggregate(header, inputs, entropy(), dict.fromkeys(lost, Phase.MASKED_INPUT))
    plain = PlainAggregator(header)
    for site in header.sites:
        plain.join(site)
    joined = plain.close_join()
    for site in reversed(joined):
        if site not in lost:
            assert plain.mask(plain_input(header, site, joined, inputs[site]), inputs[site])
    assert plain.close_mask() == u3 == tuple(site for site in NAMES[:n] if site not in lost)
    assert plain.close_unmask().tobytes() == total.tobytes()
    mean, weight = code.decode(total, len(u3))
    assert weight == sum(1 + place % 4 for place, site in enumerate(header.sites) if site not in lost)
    assert np.isfinite(mean).all()


def test_thirty_sites_of_which_ten_are_lost() -> None:
    sites = [f"site{place:02}" for place in range(30)]
    header = session(sites=sites, encoding=Encoding(30, 1.0, 1, 4), thresholds=Thresholds.of(30))
    lost_at = {site: STEPS[place % 4] for place, site in enumerate(sites[:10])}
    assert check(header, lost_at)
    assert not check(header, {**lost_at, "site20": Phase.UNMASKING})
