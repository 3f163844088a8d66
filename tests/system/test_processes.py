"""Whole studies in real processes over mutual TLS, with a numpy trainer: undisturbed, killed, restarted."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from fedseg.runtime.privacy_facts import study_facts
from fedseg.runtime.privacy_trust import TWO as TWO_IN_WORDS
from fedseg.runtime.site_folder import SiteFolder
from fedseg.store.privacy_ledger import HospitalLedger
from tests.system.world import LOCAL, TARGETS, TWO, World

pytestmark = pytest.mark.xdist_group("processes")


def test_three_sites_end_with_one_model_and_it_is_the_simulated_one(tmp_path: Path) -> None:
    with World(tmp_path) as world:
        server, sites = world.server(), world.sites()
        ends = {name: world.answer(process) for name, process in sites.items()}
        at_server = world.answer(server)
        assert at_server["state"] == "complete"
        assert {end["hash"] for end in ends.values()} == {at_server["hash"]} == {world.undisturbed()}
        assert at_server["hash"] != world.study.manifest.initial_model
        assert [end["rounds"] for end in ends.values()] == [3, 3, 3]
        assert all(world.rounds_trained(site) == [1, 2, 3] for site in TARGETS)


def test_with_a_quorum_of_two_a_killed_site_does_not_stop_the_study(tmp_path: Path) -> None:
    with World(tmp_path, aggregation=TWO) as world:
        server = world.server()
        a, b, c = world.site("a"), world.site("b"), world.site("c", "--hold", "2")
        world.in_phase(2, "MaskedInputCollection")
        world.kill(c)
        end = world.answer(server)
        assert end["state"] == "complete", world.logs()
        assert world.answer(a)["hash"] == world.answer(b)["hash"] == end["hash"]
        facts = study_facts(world.study).to_json()
        closed = {row["round"]: row for row in facts["rounds"] if row["state"] == "closed"}
        assert sorted(closed) == [1, 2, 3]
        assert closed[1]["contributors"] == ["a", "b", "c"]
        assert closed[2]["contributors"] == closed[3]["contributors"] == ["a", "b"]
        assert closed[2]["lost"] == {"c": "no sign of life in MaskedInputCollection"}
        assert facts["aggregation"]["two_contributors"] == TWO_IN_WORDS
        assert facts["aggregation"]["accepted_because"] == "the three hospitals already share these scans"


def test_with_the_default_quorum_a_killed_site_comes_back_and_nobody_trains_twice_for_it(tmp_path: Path) -> None:
    with World(tmp_path) as world:
        server = world.server()
        a, b, c = world.site("a"), world.site("b"), world.site("c", "--hold", "2")
        world.in_round(2)
        world.kill(c)
        c = world.site("c")
        ends = [world.answer(process) for process in (a, b, c)]
        assert {end["hash"] for end in ends} == {world.answer(server)["hash"]} == {world.undisturbed()}
        assert world.rounds_trained("a") == world.rounds_trained("b") == [1, 2, 3]
        assert world.rounds_trained("c") == [1, 2, 2, 3]
        second = [(row.attempt, row.state) for row in world.study.db.rounds() if row.round == 2]
        assert second == [(1, "abandoned"), (2, "closed")]
        lost = next(row.lost for row in world.study.db.rounds() if (row.round, row.attempt) == (2, 1))
        assert list(lost) == ["c"]


def test_a_killed_server_goes_on_where_it_was(tmp_path: Path) -> None:
    with World(tmp_path) as world:
        server, sites = world.server(), world.sites("--hold", "2")
        world.in_round(2)
        world.kill(server)
        server = world.server()
        world.let_go()
        ends = [world.answer(process) for process in sites.values()]
        assert {end["hash"] for end in ends} == {world.answer(server)["hash"]} == {world.undisturbed()}
        assert all(world.rounds_trained(site) == [1, 2, 3] for site in TARGETS)
        states = [(row.round, row.attempt, row.state) for row in world.study.db.rounds()]
        assert states == [(1, 1, "closed"), (2, 1, "abandoned"), (2, 2, "closed"), (3, 1, "closed")]


def test_a_stopped_site_leaves_at_once_is_alone_to_blame_and_goes_on_later(tmp_path: Path) -> None:
    with World(tmp_path) as world:
        server = world.server()
        a, b, c = world.site("a", "--hold", "2"), world.site("b"), world.site("c", "--hold", "2")
        world.in_phase(2, "MaskedInputCollection")
        c.send_signal(signal.SIGINT)
        world.answer(c, 130)
        lost = [row.lost for row in world.study.db.rounds() if (row.round, row.attempt) == (2, 1)]
        assert lost == [{"c": "withdrew (interrupted) in MaskedInputCollection"}]
        world.let_go()
        c = world.site("c")
        ends = [world.answer(process) for process in (a, b, c)]
        assert {end["hash"] for end in ends} == {world.answer(server)["hash"]} == {world.undisturbed()}
        assert world.rounds_trained("a") == [1, 2, 3]


def test_a_stopped_server_pauses_the_study_and_all_go_on_later(tmp_path: Path) -> None:
    with World(tmp_path) as world:
        server, sites = world.server(), world.sites("--hold", "2")
        world.in_round(2)
        server.send_signal(signal.SIGINT)
        assert world.answer(server)["state"] == "paused"
        for process in sites.values():
            world.answer(process, 3)
        assert "the study is paused: the server was stopped" in world.logs()
        server, sites = world.server(), world.sites()
        ends = [world.answer(process) for process in sites.values()]
        assert {end["hash"] for end in ends} == {world.answer(server)["hash"]} == {world.undisturbed()}


def test_a_private_study_charges_before_it_trains_and_keeps_its_budget(tmp_path: Path) -> None:
    with World(tmp_path, privacy=LOCAL) as world:
        server, sites = world.server(), world.sites()
        ends = [world.answer(process) for process in sites.values()]
        assert {end["hash"] for end in ends} == {world.answer(server)["hash"]}
        manifest = world.study.manifest
        for site in TARGETS:
            assert world.trained(site) == [(1, True), (2, True), (3, True)]
            ledger = HospitalLedger.open(Path(SiteFolder.open(world.state(site)).membership.ledger))
            assert 0 < ledger.spent(manifest.study, manifest.plan.privacy.delta) <= 8
        facts = study_facts(world.study).to_json()
        assert [row["rounds"] for row in facts["sites"]] == [3, 3, 3]
        assert 0 < facts["epsilon"] <= 8


def test_a_site_that_dies_between_charge_and_training_never_trains_for_that_charge(tmp_path: Path) -> None:
    with World(tmp_path, privacy=LOCAL) as world:
        server = world.server()
        a, b, c = world.site("a"), world.site("b"), world.site("c", "--die-after-charge", "2")
        assert c.wait(timeout=60) == -signal.SIGKILL, world.logs()
        assert world.rounds_trained("c") == [1]
        c = world.site("c")
        ends = [world.answer(process) for process in (a, b, c)]
        assert {end["hash"] for end in ends} == {world.answer(server)["hash"]}
        assert world.trained("c") == [(1, True), (2, True), (3, True)]
        manifest = world.study.manifest
        ledger = HospitalLedger.open(Path(SiteFolder.open(world.state("c")).membership.ledger)).ledger
        charged = [(charge.round, charge.attempt) for charge in ledger.charges(manifest.study)]
        assert charged == [(1, 1), (2, 1), (2, 2), (3, 1)]
        assert [row["epsilon"] <= 8 for row in study_facts(world.study).to_json()["sites"]] == [True] * 3
