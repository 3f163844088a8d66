"""A study in distributed mode over mutual TLS, in real processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedseg.runtime.site_folder import SiteFolder
from fedseg.store.privacy_ledger import HospitalLedger
from tests.system.world import TARGETS, World

pytestmark = pytest.mark.xdist_group("processes")

POOLED = """{mode: distributed, epsilon: 8, reserve_rounds: 1}
training: {steps: 1, optimiser: sgd, learning_rate: 0.1, momentum: 0.5}"""


def test_three_sites_end_with_one_model_and_each_pooled_step_was_charged_and_countersigned(tmp_path: Path) -> None:
    with World(tmp_path, privacy=POOLED) as world:
        server, sites = world.server(), world.sites()
        ends = {name: world.answer(process) for name, process in sites.items()}
        at_server = world.answer(server)
        assert at_server["state"] == "complete"
        assert {end["hash"] for end in ends.values()} == {at_server["hash"]}, world.logs()
        manifest = world.study.manifest
        for site in TARGETS:
            ledger = HospitalLedger.open(Path(SiteFolder.open(world.state(site)).membership.ledger)).ledger
            charges = ledger.charges(manifest.study)
            assert [(each.round, each.steps, each.mechanism) for each in charges] == [
                (number, 1, "skellam") for number in (1, 2, 3)
            ]
            assert {each.dimension for each in charges} == {manifest.dimension}
            assert 0 < ledger.epsilon(manifest.study, manifest.plan.privacy.delta) <= 8
            assert len(ledger.countersigned) == 3
            assert ledger.countersigned[-1].head == world.study.db.claims()[site].head
