"""A private study that is killed, resumed, moved to another folder and extended: its books add up to the last digit."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from fedseg.privacy.accounting import epsilon
from fedseg.privacy.events import Event
from fedseg.privacy.ledger import Ledger
from fedseg.runtime.audit import load, verify
from fedseg.runtime.privacy_facts import site_facts, study_facts
from fedseg.runtime.site_folder import SiteFolder
from fedseg.store.privacy_ledger import HospitalLedger
from tests.system.world import TARGETS, World, until

pytestmark = pytest.mark.xdist_group("processes")

PRIVACY = "{mode: local, epsilon: 8, delta: 1e-5, sampling_rate: 1.0, reserve_rounds: 1}"
STEPS = 10


def ledger_of(world: World, site: str) -> Ledger:
    return HospitalLedger.open(Path(SiteFolder.open(world.state(site)).membership.ledger)).ledger


def killed_and_resumed(world: World) -> None:
    """Three rounds. Site c dies when round 2 is charged, the server while round 3 is trained."""
    server = world.server()
    a, b, c = world.site("a", "--hold", "3"), world.site("b", "--hold", "3"), world.site("c", "--die-after-charge", "2")
    assert c.wait(timeout=60) == -signal.SIGKILL, world.logs()
    c = world.site("c", "--hold", "3")
    world.in_round(3)
    world.kill(server)
    server = world.server()
    world.let_go()
    ends = [world.answer(process) for process in (a, b, c)]
    assert {end["hash"] for end in ends} == {world.answer(server)["hash"]}, world.logs()


def begin_anew(world: World, site: str) -> None:
    """A site loses its state folder, not its data or its ledger."""
    world.state(site).rename(world.folder / f"{site}-before")


def test_killed_resumed_moved_and_extended_by_five_rounds_it_adds_up(tmp_path: Path) -> None:
    with World(tmp_path, privacy=PRIVACY) as world:
        killed_and_resumed(world)
        charged = {site: [each.key[1:] for each in ledger_of(world, site).charges()] for site in TARGETS}
        assert charged == {
            "a": [(1, 1), (2, 1), (3, 1)], "b": [(1, 1), (2, 1), (3, 1)], "c": [(1, 1), (2, 1), (2, 2), (3, 1)],
        }  # fmt: skip
        begin_anew(world, "b")
        first = world.study.manifest
        second = world.study.extend(5, epsilon=12.0)
        assert second.parent is not None
        # Attempt 2 at round 3 charged nobody, which the server cannot know: it counts it for those who claimed before.
        assert [(each.noise_multiplier, each.steps) for each in second.parent.spent] == [
            (first.noise_multiplier, 5 * STEPS)
        ]
        keys = world.study.enrolled().keys
        server, b = world.server(), world.site("b")
        until(lambda: world.study.enrolled().keys["b"] != keys["b"], "b to enrol again")
        for site in "ac":
            SiteFolder.open(world.state(site)).approve(world.study.roster().fingerprint)
        a, c = world.site("a"), world.site("c")
        ends = [world.answer(process) for process in (a, b, c)]
        assert {end["hash"] for end in ends} == {world.answer(server)["hash"]}, world.logs()
        assert {end["rounds"] for end in ends} == {8}
        assert [row.round for row in world.study.db.rounds() if row.state == "closed"] == list(range(1, 9))

        told = {site.site: site for site in study_facts(world.study).sites}
        for site in TARGETS:
            ledger, folder = ledger_of(world, site), SiteFolder.open(world.state(site))
            charges = ledger.charges(first.study)
            past = len(charged[site])
            assert [each.key[1:] for each in charges] == [*charged[site], *((number, 1) for number in range(4, 9))]
            assert {each.plan_hash for each in charges[:past]} == {first.plan_hash}
            assert {each.plan_hash for each in charges[past:]} == {second.plan_hash}
            # Ledger, the site's report, the study's report, and the two plans by hand.
            history = (
                Event(first.noise_multiplier or 0.0, 1.0, past * STEPS),
                Event(second.noise_multiplier or 0.0, 1.0, 5 * STEPS),
            )
            spent = epsilon(history, 1e-5)
            assert ledger.epsilon(first.study, 1e-5) == spent
            assert site_facts(folder).sites[0].epsilon == spent
            assert told[site].epsilon == spent
            assert (told[site].rounds, told[site].steps) == (past + 5, (past + 5) * STEPS)
            assert spent <= 12
            assert ledger.countersigned[-1].head == world.study.db.claims()[site].head
        assert max(site.epsilon or 0.0 for site in told.values()) == told["c"].epsilon
        audit = verify([load(world.study.root), *(load(world.state(site)) for site in TARGETS)])
        assert audit.findings == ()
        assert [each.round for each in audit.rounds] == list(range(1, 9))


def test_an_older_copy_of_the_ledger_trains_no_more(tmp_path: Path) -> None:
    with World(tmp_path, privacy=PRIVACY) as world:
        server, a, b = world.server(), world.site("a"), world.site("b")
        c = world.site("c", "--hold", "2")
        world.in_round(2)
        book = Path(f"{world.state('c')}.ledger") / "ledger.jsonl"
        world.kill(c)
        whole = book.read_bytes()
        lines = whole.splitlines(keepends=True)
        _, second = (number for number, line in enumerate(lines) if b'"kind":"charge"' in line)
        # As it was before round 2 was charged, with what was charged before.
        book.write_bytes(b"".join(lines[:second]))
        world.answer(world.site("c"), 1)
        assert "LedgerError" in world.logs()
        assert "the ledger was rolled back: it lacks the record" in world.logs()
        assert world.rounds_trained("c") == [1, 2]
        book.write_bytes(whole)
        c = world.site("c")
        ends = [world.answer(process) for process in (a, b, c)]
        assert {end["hash"] for end in ends} == {world.answer(server)["hash"]}, world.logs()
