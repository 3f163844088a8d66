"""Sites that are killed without a word, and started again on what their disk and their log hold."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedseg.errors import LinkError
from fedseg.federation.exchange import LedgerClaim
from fedseg.plan.manifest import Manifest
from fedseg.runtime.evidence import MemoryEvidence
from fedseg.runtime.simulation import SiteMemory
from tests.runtime import toy
from tests.runtime.private import private_manifest
from tests.runtime.script import wait_for
from tests.runtime.threads import LIMIT_S, FailingLink, Killed, Outcome, Study, contradictions, run

TARGETS = {"a": 1.0, "b": 2.0, "c": -0.5}
STEPS = {"secure": ("advertise", "share_keys", "upload", "confirm", "unmask"), "plain": ("advertise", "upload")}
BOTH = [(mode, step) for mode, steps in STEPS.items() for step in steps]
Death = tuple[str, str, str]
"""(site, method of the link, whether the message reaches the server first: `before` or `after`)."""


class MortalLink:
    """A link that kills its process at a message. What the site had written by then is all that is left of it."""

    def __init__(self, study: MortalStudy, site: str) -> None:
        self._study, self._site = study, site
        self._link = FailingLink(study.coordinator, site)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._link, name)

        def send(*arguments: Any) -> Any:
            # A killed process is a thread here, which runs on for a moment: nobody hears of it.
            if self._study.links_now.get(self._site) is not self:
                raise LinkError("this process is dead")
            self._die(name, "before")
            answer = method(*arguments)
            self._die(name, "after")
            return answer

        return send

    def _die(self, name: str, when: str) -> None:
        if (self._site, name, when) in self._study.deaths:
            self._study.deaths.remove((self._site, name, when))
            self._study.bury(self._site)
            raise Killed


class MortalStudy(Study):
    """A study whose sites die where they are told to, once each.

    Attributes:
        dying: Called before a death; holds it back until it returns.
    """

    def __init__(self, manifest: Manifest, trainers: dict[str, toy.PullTrainer], *deaths: Death) -> None:
        super().__init__(manifest, trainers)
        self.deaths, self.links_now = list(deaths), dict[str, MortalLink]()
        self.dying: Callable[[str], object] = self.once_trained
        self.links = self._link

    def _link(self, site: str) -> MortalLink:
        self.links_now[site] = MortalLink(self, site)
        return self.links_now[site]

    def once_trained(self, site: str) -> object:
        return wait_for(lambda: self.memories[site]._contribution is not None)

    def bury(self, site: str) -> None:
        """Keep what is on the site's disk; what its dead process still writes is lost."""
        self.dying(site)
        del self.links_now[site]
        self.memories[site] = copy.copy(self.memories[site])
        log = MemoryEvidence()
        for kind, body in self.logs[site].entries():
            log.append(kind, body)
        self.logs[site] = log


def trainers() -> dict[str, toy.PullTrainer]:
    return {site: toy.PullTrainer(target) for site, target in TARGETS.items()}


def of(mode: str, rounds: int = 2) -> Manifest:
    return toy.manifest(toy.plan(tuple(TARGETS), mode=mode, rounds=rounds))


def undisturbed(study: Study, outcome: Outcome, folder: Path) -> None:
    """It ended as if nobody had died."""
    calm = run(study.manifest, trainers())
    assert study.errors == {}
    assert outcome.history == calm.history
    for own in outcome.own.values():
        assert own is not None
        np.testing.assert_array_equal(own, calm.weights)
    assert contradictions(folder, study.manifest.study, outcome.logs) == []


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("mode", "step"), BOTH)
def test_a_site_killed_in_any_step_goes_on_in_the_same_attempt(mode: str, step: str, when: str, tmp_path: Path) -> None:
    study = MortalStudy(of(mode), trainers(), ("a", step, when))
    outcome = study.run()
    assert study.deaths == []
    assert outcome.rounds == [(1, 1, "closed"), (2, 1, "closed")]
    assert {site: trainer.trained for site, trainer in study.trainers.items()} == {site: [1, 2] for site in TARGETS}
    assert [event for event in outcome.told if type(event).__name__ == "SiteLost"] == []
    undisturbed(study, outcome, tmp_path)


@pytest.mark.parametrize("mode", STEPS)
def test_sites_that_are_killed_all_the_time_still_finish_the_attempt(mode: str, tmp_path: Path) -> None:
    deaths = [(site, step, when) for site in TARGETS for step in STEPS[mode] for when in ("before", "after")]
    study = MortalStudy(of(mode), trainers(), *deaths)
    outcome = study.run()
    assert study.deaths == []
    assert outcome.rounds == [(1, 1, "closed"), (2, 1, "closed")]
    undisturbed(study, outcome, tmp_path)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", ["published", "model", "poll"])
def test_a_site_killed_between_rounds_misses_nothing(step: str, when: str, tmp_path: Path) -> None:
    study = MortalStudy(of("secure"), trainers(), ("a", step, when))
    study.dying = lambda _: None
    outcome = study.run()
    assert study.deaths == []
    assert outcome.rounds == [(1, 1, "closed"), (2, 1, "closed")]
    undisturbed(study, outcome, tmp_path)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("mode", "step"), [("secure", "advertise"), ("secure", "share_keys"), ("plain", "advertise")])
def test_a_site_killed_before_its_update_was_there_drops_out_and_trains_afresh(
    mode: str, step: str, when: str, tmp_path: Path
) -> None:
    killed = threading.Event()
    sites = trainers()
    sites["a"].before = lambda _: hold(killed)
    study = MortalStudy(of(mode), sites, ("a", step, when))
    study.dying = lambda _: killed.set()
    outcome = study.run()
    assert outcome.rounds == [(1, 1, "abandoned"), (1, 2, "closed"), (2, 1, "closed")]
    # Once in vain, by the process that died; the others keep what they have computed.
    assert {site: sorted(trainer.trained) for site, trainer in sites.items()} == {
        "a": [1, 1, 2], "b": [1, 2], "c": [1, 2],
    }  # fmt: skip
    ended = [body["why"] for kind, body in outcome.logs["a"].entries() if kind == "aborted"]
    assert ended == ["the site restarted before its update was computed"]
    undisturbed(study, outcome, tmp_path)


def hold(until: threading.Event) -> None:
    """Train until this has happened."""
    assert until.wait(LIMIT_S)


class Purse:
    """A ledger that is on the site's disk: it survives the process."""

    def __init__(self) -> None:
        self.charged: list[tuple[int, int]] = []
        self.committed: list[tuple[int, int]] = []
        self.countersigned: list[str] = []

    def charge(self, round_number: int, attempt: int, model: str) -> bool:
        if (round_number, attempt) in self.charged:
            return False
        self.charged.append((round_number, attempt))
        return True

    def commit(self, round_number: int, attempt: int) -> None:
        self.committed.append((round_number, attempt))

    def claim(self) -> LedgerClaim:
        return LedgerClaim(len(self.charged), 10 * len(self.charged), f"{len(self.charged):064x}")

    def check_countersigned(self, head: str | None) -> None:
        assert head is None or int(head, 16) <= len(self.charged)

    def note_countersigned(self, head: str, signature: bytes) -> None:
        self.countersigned.append(head)


@pytest.mark.parametrize("trained", [False, True])
def test_in_a_private_study_what_is_trained_afresh_is_charged_afresh_and_nothing_else(trained: bool) -> None:
    killed, purses = threading.Event(), {site: Purse() for site in TARGETS}
    sites = trainers()
    study = MortalStudy(private_manifest(rounds=1), sites, ("a", "share_keys", "before"))
    study.charger = lambda site: purses[site]
    if not trained:
        sites["a"].before = lambda _: hold(killed)
        study.dying = lambda _: killed.set()
    outcome = study.run()
    assert study.errors == {}
    assert outcome.rounds == ([] if trained else [(1, 1, "abandoned")]) + [(1, 1 if trained else 2, "closed")]
    assert purses["a"].charged == ([(1, 1)] if trained else [(1, 1), (1, 2)])
    assert purses["b"].charged == purses["c"].charged == [(1, 1)]
    assert len(sites["a"].trained) == len(purses["a"].charged)


def test_a_folder_whose_update_is_lost_never_makes_another_for_the_same_session() -> None:
    study = MortalStudy(of("secure", 1), trainers(), ("a", "share_keys", "after"))

    def lose(site: str) -> None:
        study.once_trained(site)
        memory = SiteMemory()
        memory._session, memory._weights = study.memories[site]._session, study.memories[site]._weights
        study.memories[site] = memory

    study.dying = lose
    outcome = study.run()
    assert outcome.rounds == [(1, 1, "abandoned"), (1, 2, "closed")]
    kinds = [kind for kind, _ in outcome.logs["a"].entries()]
    assert kinds == ["roster", "session", "aborted", "session", "masked", "confirmed", "unmask", "closed"]
