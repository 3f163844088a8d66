"""A server that lies in every way that we could think of, in any order, with up to c helpers among the sites.

`adversary.Server` keeps what it learns. Whatever it tries, it must never hold both secrets of an honest site, two
messages of one step, two sums over one update, or a sum over fewer than t - c honest sites.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from random import Random

import pytest
from hypothesis import HealthCheck, Phase, event, settings, target
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from fedseg.secagg.messages import Phase as Step
from fedseg.secagg.messages import SessionHeader

from .adversary import Server
from .helpers import NAMES, session
from .lies import (
    HEADER_LIES,
    SIGNATURE_LIES,
    U1_LIES,
    U2_LIES,
    U3_LIES,
    Lie,
    Sent,
    model,
    now,
    signatures_for,
    step,
    u1_for,
    u2_for,
    u3_for,
    world,
)

BITS = [1 << place for place in range(7)]
FEW = st.just(0) | st.sampled_from(BITS) | st.sampled_from([one | two for one in BITS for two in BITS])
"""Some of the sites, one bit each: none, one or two."""
FACES = st.integers(1, 126)
"""Who is shown the second face."""


def chosen(lies: Mapping[str, Lie[Sent]], number: int) -> Callable[[Server, str, Sent], Sent]:
    return lies[sorted(lies)[number % len(lies)]].of


class LyingServer(RuleBasedStateMachine):
    """A rule whose arguments are all at their least is a step of an honest run; a mask names sites by bits."""

    server: Server
    changed = False
    offered, latest = (0, 1, 0), (0, 1)
    read: Sequence[frozenset[str]] = ()

    @initialize(
        n=st.sampled_from([5, 6, 7, 4, 3]),
        c=st.sampled_from([-1, -1, 0, 1, 2]),
        helpers=st.sampled_from([0, 0, 1]),
    )
    def found(self, n: int, c: int, helpers: int) -> None:
        """Nearly always with as many helpers as the plan assumes."""
        wanted = None if c < 0 else min(c, n - 2)
        most = session(n, wanted).c
        self.server = world(n, wanted, NAMES[: max(0, most - helpers)])

    def masked(self, bits: int) -> tuple[str, ...]:
        sites = self.server.roster.sites
        return tuple(sites[place % len(sites)] for place in range(7) if bits >> place & 1)

    def asked(self, silent: int, faces: int = 0) -> Iterator[tuple[str, int]]:
        """The honest sites that are asked, and which of the server's two faces each sees."""
        for name in self.server.sites:
            if name not in self.masked(silent):
                self.changed = True
                yield name, int(name in self.masked(faces))

    def refused(self, name: str, send: Callable[..., None], *sent: object) -> None:
        before = self.server.sites[name].disk.state
        send(name, *sent)
        assert self.server.sites[name].disk.state == before

    def go_on(self, silent: int, faces: int, one: int, two: int, variants: bool) -> None:
        """Two faces: some sites are shown one list, some another, and helpers may advertise other keys to each.

        The list of one face leaves out sites that see the other: one without itself every site refuses.
        """
        second = set(self.masked(faces))
        lists = [set(self.masked(one)) & second if faces else set(self.masked(one)), set(self.masked(two)) - second]
        for name, face in self.asked(silent, faces):
            sid0 = now(self.server, name)
            if (name, sid0, Step.UNMASKING) in self.server.sent:
                continue
            if (name, sid0) not in self.server.parts:
                self.server.offer(name, self.shown(face))
            elif faces or name not in lists[0]:
                step(self.server, name, without=lists[face], variant=face * variants)

    go_on_some = rule(silent=FEW, faces=st.just(0), one=FEW, two=st.just(0), variants=st.just(False))(go_on)
    go_on_with_two_faces = rule(silent=FEW, faces=FACES, one=FEW, two=FEW, variants=st.booleans())(go_on)

    def run(self, seed: int) -> None:
        """Another session, or most of one: one of its lists is told in two ways, some sites are not asked to unmask.

        It is the second attempt at the round; or one at the next, over the model of before or another. By dice of our
        own, as ten things must fit for a lie to come far.
        """
        dice = Random(seed)
        round_number, attempt = self.latest
        second, used = attempt == 1 and dice.random() < 0.5, dice.random() < 0.5
        self.open(0, round_number + (not second), 1 + second, self.offered[2] + 2 * (not used and not second))
        told, faces = dice.choice([3, 3, 2, 1]), dice.choice([0, dice.getrandbits(7)])
        one, two, late = (dice.choice([0, dice.choice(BITS), dice.choice(BITS) | dice.choice(BITS)]) for _ in range(3))
        for number in range(1, dice.choice([5, 5, 5, 4])):
            lists = (faces, one, two) if number == told else (0, 0, 0)
            self.go_on(dice.choice([0, late]) if number == 4 else 0, *lists, False)

    run_one = rule(seed=st.integers(0, 2**32 - 1))(run)
    run_another = rule(seed=st.integers(0, 2**32 - 1))(run)

    @rule(silent=FEW, round_number=st.integers(1, 3), attempt=st.integers(1, 2), number=st.integers(0, 3))
    def open(self, silent: int, round_number: int, attempt: int, number: int) -> None:
        """Any round and attempt, old ones too. The model is one of two: see `shown`."""
        self.offered, self.latest = (round_number, attempt, number), max(self.latest, (round_number, attempt))
        for name, _ in self.asked(silent):
            self.server.offer(name, self.shown(0))

    def shown(self, face: int) -> SessionHeader:
        """The session that is on offer; where the number of the model is odd, the second face sees the one after."""
        round_number, attempt, number = self.offered
        return self.server.header(round_number, attempt, model(number + face * (number % 2)))

    @rule(silent=FEW, number=st.integers(0, 99))
    def lie(self, silent: int, number: int) -> None:
        """Something that no site may accept, whatever came before."""
        for name, _ in self.asked(silent):
            sid0 = now(self.server, name)
            if (name, sid0) in self.server.parts:
                self.lie_in_session(name, sid0, number)
            self.lie_about_the_session(name, number)

    def lie_about_the_session(self, name: str, number: int) -> None:
        honest = self.server.header(2, 2, self.server.sites[name].model)
        false = chosen(HEADER_LIES, number)(self.server, name, honest)
        self.refused(name, partial(self.server.offer, show_model=False), false)

    def lie_in_session(self, name: str, sid0: bytes, number: int) -> None:
        """About the list that comes next; and something of an older session."""
        server, part = self.server, self.server.parts[name, sid0]
        u1 = u1_for(server, name)
        if not part.envelopes and len(u1) > len(server.helpers) + 1:
            self.refused(name, server.send_u1, sid0, chosen(U1_LIES, number)(server, name, u1))
        if part.envelopes and part.y is None:
            self.refused(name, server.send_u2, sid0, *chosen(U2_LIES, number)(server, name, u2_for(server, name)))
        if part.y is not None and part.sets is None:
            self.refused(name, server.send_u3, sid0, chosen(U3_LIES, number)(server, name, u3_for(server, name)))
        if part.sets is not None:
            signatures = chosen(SIGNATURE_LIES, number)(server, name, signatures_for(server, name))
            self.refused(name, server.send_signatures, sid0, signatures)
        older = [its for site, its in server.parts if site == name and its != sid0]
        if older:
            self.replay(name, older[number % len(older)])

    def replay(self, name: str, old: bytes) -> None:
        part = self.server.parts[name, old]
        self.refused(name, self.server.offer, part.header)
        self.refused(name, self.server.send_u1, old, list(part.u1.values()))
        self.refused(name, self.server.send_u2, old, part.u2, {})
        self.refused(name, self.server.send_u3, old, part.u2)
        self.refused(name, self.server.send_signatures, old, {name: part.signature})

    @rule(silent=FEW, writes=st.integers(0, 3), how=st.sampled_from(["restart", "power cut", "abandon"]))
    def disturb(self, silent: int, writes: int, how: str) -> None:
        """A site starts again, will lose its power at one of its next writes, or leaves its session for good."""
        for name, _ in self.asked(silent):
            site = self.server.sites[name]
            site.restart()
            if how == "abandon":
                site.at_work.end("refused")
            if how == "power cut":
                site.disk.writes_left = writes

    @invariant()
    def nothing_is_bared(self) -> None:
        if self.changed:
            self.changed = False
            self.read = self.server.check()

    def teardown(self) -> None:
        """For `--hypothesis-show-statistics`: how far examples get."""
        event(f"sums that the server could read: {len(self.read)}")
        parts = self.server.parts.values()
        target(max([0, *(min(len(part.seed_shares), len(part.key_shares)) for part in parts)]))


SHORT = settings(
    max_examples=30,
    stateful_step_count=15,
    derandomize=True,
    deadline=None,
    # Shrinking takes minutes, and pytest's time would be over before its end: the run at length does it.
    phases=[Phase.explicit, Phase.generate, Phase.target],
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


class LyingServerAtLength(LyingServer):
    """As many sequences as fit into minutes, other ones each time."""


TestLyingServer = LyingServer.TestCase
TestLyingServer.settings = SHORT
TestLyingServerAtLength = pytest.mark.slow(pytest.mark.timeout(3000)(LyingServerAtLength.TestCase))
TestLyingServerAtLength.settings = settings(SHORT, max_examples=600, derandomize=False, phases=list(Phase))


def by_dice(seed: int) -> None:
    """Four sessions, one after another: what Hypothesis, which likes its examples short and alike, seldom gets to."""
    dice, machine = Random(seed), LyingServer()
    machine.found(dice.choice([4, 5, 5, 6, 7]), dice.choice([-1, -1, 0, 1, 2]), dice.choice([0, 0, 0, 1]))
    for _ in range(4):
        machine.run(dice.getrandbits(32))
        machine.lie(0, dice.randrange(100))
        machine.nothing_is_bared()
        machine.disturb(dice.choice([0, 127]), 0, "restart")


@pytest.mark.parametrize("first", range(0, 120, 20))
def test_sessions_by_dice(first: int) -> None:
    for seed in range(first, first + 20):
        by_dice(seed)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(10_000, 13_000, 500))
def test_thousands_of_sessions_by_dice(first: int) -> None:
    for seed in range(first, first + 500):
        by_dice(seed)
