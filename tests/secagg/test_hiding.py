"""What the sum hides: two sets of inputs with one sum are one and the same to the server, given masks to match.

Bonawitz et al. 2017, lemma 6.1, taken literally: for inputs x and x' whose sums over the honest
contributors are equal, the masks that honest pairs share are moved by what differs, along a path through them. Uniform
masks (that the streams pass for such is AES's) moved by a constant are as uniform; so if every byte that the server and
its colluders see is then the same, they can't tell x from x'.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import pytest

from fedseg.secagg import site as site_module
from fedseg.secagg.aggregator import SecureAggregator
from fedseg.secagg.masking import add_mask, pair_mask_key
from fedseg.secagg.messages import SessionHeader
from fedseg.secagg.sealing import agree
from fedseg.secagg.site import Advertised, advertise
from fedseg.secagg.state import dump

from .helpers import Vector, entropy, identity, inputs_of, ring_sum, roster_of, session

View = list[tuple[str, bytes]]


def watched(
    header: SessionHeader, inputs: Mapping[str, Vector], lost: tuple[str, ...], bad: tuple[str, ...]
) -> tuple[View, Vector]:
    """A run, all that the server sees of it and all that the `bad` sites know: states and inputs."""
    server, view = SecureAggregator(header, roster_of(header)), View()

    def sees(step: str, site: str, data: bytes, state: object) -> None:
        view.append((f"{step} of {site}", data))
        if site in bad:
            view.append((f"{step} at {site}", dump(state)))  # type: ignore[arg-type]

    first = {site: advertise(header, identity(site, header), entropy(site)) for site in header.sites}
    for site, advertised in first.items():
        server.advertise(advertised.message)
        sees("advertisement", site, advertised.message.to_bytes(), advertised)
    u1 = server.close_advertise()
    second = {site: state.share_keys(u1, entropy(site + "/share")) for site, state in first.items()}
    for site, shared in second.items():
        server.share(shared.message)
        sees("envelopes", site, shared.message.to_bytes(), shared)
    u2, third = server.close_share(), {}
    for site in (site for site in u2 if site not in lost):
        third[site], y = second[site].mask(server.envelopes_for(site), u2, inputs[site])
        server.mask(third[site].message, y)
        sees("y", site, y.tobytes(), third[site])
        sees("digest", site, third[site].message.to_bytes(), third[site])
    u3 = server.close_mask()
    fourth = {site: state.confirm(u3) for site, state in third.items()}
    for site, signed in fourth.items():
        server.consistency(signed.message)
        sees("signature", site, signed.message.to_bytes(), signed)
    signatures = server.close_consistency()
    fifth = {site: state.unmask(signatures) for site, state in fourth.items()}
    for site, unmasked in fifth.items():
        server.shares(unmasked.message)
        sees("shares", site, unmasked.message.to_bytes(), unmasked)
    view += [(f"input of {site}", inputs[site].tobytes()) for site in bad]
    total = server.close_unmask()
    return [*view, ("sum", total.tobytes())], total


def states_of(header: SessionHeader) -> dict[str, Advertised]:
    return {site: advertise(header, identity(site, header), entropy(site)) for site in header.sites}


@contextmanager
def moved_masks(moves: Mapping[bytes, Vector]) -> Iterator[set[bytes]]:
    """Let the stream of each of these keys be another: itself and the vector. Gives the keys that were met."""
    met = set()

    def moved(vector: Vector, key: bytes, sign: int) -> None:
        add_mask(vector, key, sign)
        if key in moves:
            met.add(key)
            np.add(vector, moves[key] if sign == 1 else -moves[key], out=vector)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(site_module, "add_mask", moved)
        yield met


def moves_between(header: SessionHeader, sid: bytes, change: Mapping[str, Vector]) -> dict[bytes, Vector]:
    """Along the honest contributors: each hands what has changed so far on to the next, in the mask that they share."""
    states, carried, moves = states_of(header), np.zeros(header.length, np.uint32), {}
    for site, peer in pairwise(sorted(change)):
        carried = carried + change[site]
        agreed = agree(states[site].keys.mask, states[peer].message.mask_key)
        moves[pair_mask_key(agreed, sid, site, peer)] = -carried
    return moves


def sid_of(header: SessionHeader) -> bytes:
    states = states_of(header)
    u1 = [state.message for state in states.values()]
    return next(iter(states.values())).share_keys(u1, entropy()).sid


def other_inputs(inputs: Mapping[str, Vector], honest: tuple[str, ...]) -> dict[str, Vector]:
    """Fresh for the honest but the last of them, who makes up the sum."""
    draw = np.random.default_rng(99)
    fresh = {site: draw.integers(0, 2**32, inputs[site].size, dtype=np.uint32) for site in honest[:-1]}
    owed = ring_sum([inputs[site] for site in honest])
    rest = owed - ring_sum(list(fresh.values()))
    return {**inputs, **fresh, honest[-1]: rest}


CASES: list[tuple[SessionHeader, tuple[str, ...], tuple[str, ...]]] = [
    (session(3), (), ()),
    (session(3, accept_two=True), ("brno",), ()),
    (session(4, 1), (), ("brno",)),
    (session(5), ("dakar",), ()),
    (session(5), ("dakar",), ("amiens",)),
    (session(6, 3), (), ("amiens", "dakar", "fez")),
    (session(10), ("jena", "brno"), ("cluj", "dakar", "izmir")),
]


@pytest.mark.parametrize(("header", "lost", "bad"), CASES)
def test_two_inputs_with_one_sum_give_one_view(
    header: SessionHeader, lost: tuple[str, ...], bad: tuple[str, ...]
) -> None:
    inputs = inputs_of(header)
    honest = tuple(site for site in header.sites if site not in lost + bad)
    others = other_inputs(inputs, honest)
    assert all((inputs[site] != others[site]).any() for site in honest)
    moves = moves_between(header, sid_of(header), {site: others[site] - inputs[site] for site in honest})
    view, total = watched(header, inputs, lost, bad)
    with moved_masks(moves) as met:
        view_of_others, total_of_others = watched(header, others, lost, bad)
    assert met == set(moves)
    assert len(met) == len(honest) - 1
    assert view_of_others == view
    np.testing.assert_array_equal(total, total_of_others)
    np.testing.assert_array_equal(total, ring_sum([inputs[site] for site in header.sites if site not in lost]))


def test_without_the_moved_masks_or_with_another_sum_the_views_differ() -> None:
    """So the equality above says something: it needs both."""
    header = session(3)
    inputs = inputs_of(header)
    others = other_inputs(inputs, header.sites)
    changes = {site: others[site] - inputs[site] for site in header.sites}
    view, _ = watched(header, inputs, (), ())
    plain, _ = watched(header, others, (), ())
    different = {name for (name, one), (_, two) in zip(view, plain, strict=True) if one != two}
    assert different == {f"{step} of {site}" for step in ("y", "digest") for site in header.sites}
    others["cluj"] = others["cluj"] + np.uint32(1)
    with moved_masks(moves_between(header, sid_of(header), changes)):
        another, _ = watched(header, others, (), ())
    assert {name for (name, one), (_, two) in zip(view, another, strict=True) if one != two} == {
        "y of cluj",
        "digest of cluj",
        "sum",
    }


def test_masked_zeros_look_uniform() -> None:
    """A sanity check and no more: 256 values of a byte, 255 degrees of freedom, bounds at about five deviations."""
    header = session(3, dimension=50_000)
    zeros = {site: np.zeros(header.length, np.uint32) for site in header.sites}
    view, total = watched(header, zeros, (), ())
    assert not total.any()
    seen = [np.frombuffer(data, np.uint8) for name, data in view if name.startswith("y of")]
    for data in (*seen, seen[0] ^ seen[1], np.concatenate(seen)):
        expected = data.size / 256
        chi_square = float(((np.bincount(data, minlength=256) - expected) ** 2 / expected).sum())
        assert 255 - 5 * np.sqrt(510) < chi_square < 255 + 5 * np.sqrt(510)
