"""A server that shows one half of the sites one thing and the other half another: every way of it, for small studies.

Sites are alike to the protocol: what one is called decides its index, its place in a list and which of two adds a mask,
never what is asked of it or checked. So of two plans that differ by a renaming of sites one is tried.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import combinations, product

import pytest

from .adversary import Server
from .helpers import NAMES
from .lies import model, now, signatures_for, u1_for, u2_for, world

Sets = tuple[frozenset[str], frozenset[str]]
"""U2 and U3 as one half of the sites is shown them."""


def subsets(sites: frozenset[str], least: int) -> Iterator[frozenset[str]]:
    for size in range(least, len(sites) + 1):
        yield from map(frozenset, combinations(sorted(sites), size))


def shared(n: int, c: int, helpers: int) -> Server:
    """Every site has shared its keys."""
    server = world(n, c, NAMES[:helpers])
    for name in server.sites:
        server.offer(name, server.header(1, 1, model(0)))
    for name in server.sites:
        server.send_u1(name, now(server, name), u1_for(server, name))
    return server


def plans(server: Server) -> Iterator[tuple[frozenset[str], Sets, Sets]]:
    """Who sees the second face, and the two faces; one plan of those that are alike."""
    everybody = frozenset(server.roster.sites)
    quorum = server.header(1, 1, model(0)).thresholds.quorum
    sets = [(u2, u3) for u2 in subsets(everybody, quorum) for u3 in subsets(u2, quorum)]
    seen = set()
    for one, two, second in product(sets, sets, subsets(frozenset(server.sites), 0)):
        face = Counter(
            (site in server.helpers, site in second, *(site in each for each in (*one, *two))) for site in everybody
        )
        key = frozenset(face.items())
        if key not in seen:
            seen.add(key)
            yield second, one, two


def deceive(server: Server, second: frozenset[str], one: Sets, two: Sets) -> None:
    faces = {name: two if name in second else one for name in server.sites}
    for name, (u2, _) in faces.items():
        server.send_u2(name, now(server, name), *u2_for(server, name, frozenset(server.roster.sites) - u2))
    for name, (_, u3) in faces.items():
        if server.parts[name, now(server, name)].y is not None:
            server.send_u3(name, now(server, name), sorted(u3))
    for name in server.sites:
        if server.parts[name, now(server, name)].sets is not None:
            server.send_signatures(name, now(server, name), signatures_for(server, name))


def try_every_plan(n: int, c: int, helpers: int) -> Counter[int]:
    """How many plans gave the server how many sums to read."""
    server, sums = shared(n, c, helpers), Counter[int]()
    for second, one, two in plans(server):
        attempt = server.fork()
        deceive(attempt, second, one, two)
        sums[len(attempt.check())] += 1
    return sums


@pytest.mark.parametrize(("n", "c"), [(3, 0), (3, 1), (4, 0), (4, 1), (4, 2), (5, 1), (5, 2)])
def test_two_faces_give_at_most_one_sum(n: int, c: int) -> None:
    sums = try_every_plan(n, c, helpers=c)
    assert sums[1] and sums.keys() <= {0, 1}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("n", "c"), [(5, 0), (6, 1), (6, 2), (7, 2)])
def test_two_faces_give_at_most_one_sum_in_larger_studies(n: int, c: int) -> None:
    sums = try_every_plan(n, c, helpers=c)
    assert sums[1] and sums.keys() <= {0, 1}
