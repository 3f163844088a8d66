"""Every dropout of every site at every phase: the exact sum of those who lasted, or an end that says who is missing.

Each site is lost at one of the five phases, or never: 6^n ways. They are walked as a tree, whose nodes are "these sites
answered in phase 1, these of them in phase 2, ...". That leaves none out: whether a site falls silent in a phase after
the attempt has ended changes nothing that happened, so an end in phase k with r sites left stands for (6 - k)^r ways
(each of the r is lost in one of the later phases, or never). The ways are counted, and compared with a count that looks
at each of the 6^n by itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from itertools import combinations, product
from typing import Any

import numpy as np
import pytest

from fedseg.errors import BelowQuorum
from fedseg.secagg.aggregator import SecureAggregator
from fedseg.secagg.messages import Phase, SessionHeader
from fedseg.secagg.reference import aggregate
from fedseg.secagg.site import advertise
from fedseg.secagg.state import dump, load

from .helpers import Vector, entropy, identity, inputs_of, keys, ring_sum, roster_of, session

PHASES = tuple(Phase)
DONE = "summed"
Outcome = tuple[str, tuple[str, ...]]
"""The phase that ended the attempt and who is missing; or DONE and U3."""


def needed(header: SessionHeader) -> tuple[int, ...]:
    """How many must answer in each phase: max(t, m) until the inputs are in, then t."""
    return (*[max(header.t, header.m)] * 3, header.t, header.t)


def outcome(header: SessionHeader, lost_at: Mapping[str, Phase | None]) -> Outcome:
    """What must come of it, by counting alone."""
    answering = list(header.sites)
    u3: tuple[str, ...] = ()
    for phase, least in zip(PHASES, needed(header), strict=True):
        answering = [site for site in answering if lost_at[site] is not phase]
        if len(answering) < least:
            return phase, tuple(site for site in header.sites if site not in answering)
        if phase is Phase.MASKED_INPUT:
            u3 = tuple(answering)
    return DONE, u3


def one_by_one(header: SessionHeader) -> Counter[Outcome]:
    everything = product((None, *PHASES), repeat=len(header.sites))
    return Counter(outcome(header, dict(zip(header.sites, lost, strict=True))) for lost in everything)


class Walk:
    """The tree. A site's step is taken once a node, by a state that was written down and read back."""

    def __init__(self, header: SessionHeader) -> None:
        self.header, self.inputs = header, inputs_of(header)
        self.sums = {sites: ring_sum([self.inputs[site] for site in sites]) for sites in subsets(header.sites) if sites}
        self.found: Counter[Outcome] = Counter()
        self._shared: dict[int, Any] = {id(header): header, id(roster_of(header)): roster_of(header)}

    def run(self) -> Counter[Outcome]:
        server = SecureAggregator(self.header, roster_of(self.header))
        who = [identity(site, self.header) for site in self.header.sites]
        advertised = {each.site: advertise(self.header, each, entropy(each.site)) for each in who}
        self._answer(0, server, advertised, {}, lambda copy, state, _: copy.advertise(state.message), "close_advertise")
        return self.found

    def _share(self, server: SecureAggregator, states: Mapping[str, Any], u1: Any) -> None:
        after = {
            site: state.share_keys(u1, entropy(f"{site}/{len(u1)}")) for site, state in self._restored(states).items()
        }
        self._answer(1, server, after, {}, lambda copy, state, _: copy.share(state.message), "close_share")

    def _mask(self, server: SecureAggregator, states: Mapping[str, Any], u2: tuple[str, ...]) -> None:
        both = {
            site: state.mask(server.envelopes_for(site), u2, self.inputs[site])
            for site, state in self._restored(states).items()
        }
        after, vectors = {site: pair[0] for site, pair in both.items()}, {site: pair[1] for site, pair in both.items()}
        self._answer(2, server, after, vectors, lambda copy, state, y: copy.mask(state.message, y), "close_mask")

    def _confirm(self, server: SecureAggregator, states: Mapping[str, Any], u3: tuple[str, ...]) -> None:
        assert u3 == tuple(states)
        after = {site: state.confirm(u3) for site, state in self._restored(states).items()}
        self._answer(
            3, server, after, {}, lambda copy, state, _: copy.consistency(state.message), "close_consistency", u3
        )

    def _unmask(self, server: SecureAggregator, states: Mapping[str, Any], given: Mapping[str, bytes], u3: Any) -> None:
        assert tuple(given) == tuple(states)
        after = {site: state.unmask(given) for site, state in self._restored(states).items()}
        self._answer(4, server, after, {}, lambda copy, state, _: copy.shares(state.message), "close_unmask", u3)

    def _answer(
        self,
        depth: int,
        server: SecureAggregator,
        states: Mapping[str, Any],
        vectors: Mapping[str, Vector],
        send: Callable[[SecureAggregator, Any, Any], object],
        close: str,
        u3: tuple[str, ...] = (),
    ) -> None:
        """Let every subset of the sites that are left answer, and go on where it is large enough."""
        self._shared |= {id(state.message): state.message for state in states.values()}
        for answering in subsets(tuple(states)):
            copy = deepcopy(server, dict(self._shared))
            for site in answering:
                send(copy, states[site], vectors.get(site))
            if len(answering) < needed(self.header)[depth]:
                self._ended(depth, answering, copy, close)
            elif depth == len(PHASES) - 1:
                np.testing.assert_array_equal(getattr(copy, close)(), self.sums[u3])
                self.found[DONE, u3] += 1
            else:
                rest = (u3,) if depth == PHASES.index(Phase.CONSISTENCY) else ()
                following = (self._share, self._mask, self._confirm, self._unmask)[depth]
                following(copy, {site: states[site] for site in answering}, getattr(copy, close)(), *rest)

    def _ended(self, depth: int, answering: Sequence[str], server: SecureAggregator, close: str) -> None:
        missing = tuple(site for site in self.header.sites if site not in answering)
        with pytest.raises(BelowQuorum) as caught:
            getattr(server, close)()
        least = needed(self.header)[depth]
        counted = f"{len(answering)} of {len(self.header.sites)} sites finished {PHASES[depth]}, {least} are needed"
        assert (caught.value.what, caught.value.hint) == (counted, f"missing: {', '.join(missing)}")
        self.found[PHASES[depth], missing] += (len(PHASES) - depth) ** len(answering)

    def _restored(self, states: Mapping[str, Any]) -> dict[str, Any]:
        return {site: load(dump(state), identity(site, self.header)) for site, state in states.items()}


def subsets(sites: Sequence[str]) -> Iterator[tuple[str, ...]]:
    for size in range(len(sites) + 1):
        yield from combinations(sites, size)


def check(header: SessionHeader) -> None:
    found = Walk(header).run()
    assert found.total() == 6 ** len(header.sites)
    assert found == one_by_one(header)
    assert any(ending == DONE for ending, _ in found)


@pytest.mark.parametrize("c", [0, 1])
def test_three_sites(c: int) -> None:
    check(session(3, c, dimension=3))


def test_three_sites_of_which_two_may_contribute() -> None:
    check(session(3, dimension=3, accept_two=True))


@pytest.mark.parametrize("c", [0, 1, 2])
def test_four_sites(c: int) -> None:
    check(session(4, c, dimension=3))


@pytest.mark.parametrize("c", [0, 1, 2, 3])
def test_five_sites(c: int) -> None:
    check(session(5, c, dimension=3))


@pytest.mark.parametrize("c", [0, 1, 2, 3, 4])
def test_six_sites(c: int) -> None:
    check(session(6, c, dimension=3))


@pytest.mark.parametrize("header", [session(3, dimension=3), session(3, dimension=3, accept_two=True)])
def test_the_whole_protocol_ends_as_the_tree_does(header: SessionHeader) -> None:
    inputs = inputs_of(header)
    for lost in product((None, *PHASES), repeat=len(header.sites)):
        lost_at = dict(zip(header.sites, lost, strict=True))
        ending, names = outcome(header, lost_at)
        given = {site: phase for site, phase in lost_at.items() if phase is not None}
        if ending == DONE:
            total, u3 = aggregate(header, roster_of(header), keys(), inputs, entropy(), given)
            assert u3 == names
            np.testing.assert_array_equal(total, ring_sum([inputs[site] for site in names]))
        else:
            with pytest.raises(BelowQuorum, match=f"sites finished {ending}, .*missing: {', '.join(names)}"):
                aggregate(header, roster_of(header), keys(), inputs, entropy(), given)
