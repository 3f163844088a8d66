"""A study of `atlas.yaml`, shortened, on real scans: five sites, one lost in each phase in turn, the sum exact."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedseg.errors import LinkError
from fedseg.federation.exchange import Enrolled, RingVector
from fedseg.federation.round import Phase
from fedseg.federation.vector import Layout, Weights, model_hash
from fedseg.imaging.transforms import Prepared
from fedseg.plan.manifest import Manifest
from fedseg.plan.study import parse_plan
from fedseg.runtime.archive import MemoryArchive
from fedseg.runtime.coordinator import Coordinator
from fedseg.runtime.course import StudyState
from fedseg.runtime.evidence import MemoryEvidence
from fedseg.runtime.preparation import first_model, layout_of, make_trainer, prepare_training, training_data
from fedseg.runtime.resolution import resolve
from fedseg.runtime.session import roster_of
from fedseg.runtime.simulation import LocalLink, SiteMemory
from fedseg.runtime.site import SiteRunner
from fedseg.secagg.roster import Identity
from fedseg.secagg.signing import public_half

ATLAS = Path(__file__).resolve().parents[2] / "sample_configs" / "atlas.yaml"
SOURCES = {"crl-a": "site-crl", "crl-b": "site-crl", "wu-a": "site-wu", "wu-b": "site-wu", "sba": "site-sba"}
LOST, LAST = "wu-b", 2
CALLS = {
    Phase.ADVERTISE_KEYS: "advertise",
    Phase.SHARE_KEYS: "share_keys",
    Phase.MASKED_INPUT: "upload",
    Phase.CONSISTENCY: "confirm",
    Phase.UNMASK: "unmask",
}

pytestmark = [pytest.mark.realdata, pytest.mark.xdist_group("processes")]


class Gone(Exception):
    """The site's machine is off."""


@dataclass(frozen=True)
class Study:
    """Five sites' trainers, and what the study starts from."""

    manifest: Manifest
    initial: Weights
    layout: Layout
    subjects: dict[str, dict[str, list[Prepared]]]


class Dying:
    """A link whose site is gone for good in one step of the last round, before its message arrives."""

    def __init__(self, link: LocalLink, step: str, joined: Callable[[], int]) -> None:
        self._link, self._step, self._joined, self._gone = link, step, joined, False

    def __getattr__(self, name: str) -> Any:
        self._gone = self._gone or (name == self._step and self._joined() == LAST)
        if self._gone and name == "withdraw":
            raise LinkError("nobody is there to say goodbye")
        if self._gone:
            raise Gone
        return getattr(self._link, name)


class Witness(SiteMemory):
    """Remembers what the site put into each round, before any mask."""

    def __init__(self) -> None:
        super().__init__()
        self.put: dict[int, RingVector] = {}

    def save_contribution(self, round_number: int, model: str, vector: RingVector) -> None:
        super().save_contribution(round_number, model, vector)
        self.put[round_number] = vector.copy()


class Sums(MemoryArchive):
    """Keeps every sum."""

    def __init__(self) -> None:
        super().__init__()
        self.sums: dict[int, RingVector] = {}

    def save_model(self, closed_round: int, weights: Weights, total: RingVector | None) -> None:
        super().save_model(closed_round, weights, total)
        if total is not None:
            self.sums[closed_round] = total.copy()


@pytest.fixture(scope="module")
def study(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    text = ATLAS.read_text()
    for old, new in {
        "patch: [48, 64, 48]": "patch: [32, 32, 32]",
        "steps: 25": "steps: 1",
        "rounds: 40": f"rounds: {LAST}",
        "deadline_s: 900": "deadline_s: 60\n  absent_after_s: 8",
        "  site-crl: {}\n  site-wu: {}\n  site-sba: {}": "".join(f"  {site}: {{}}\n" for site in SOURCES),
    }.items():
        assert old in text
        text = text.replace(old, new)
    document = parse_plan(text, "atlas.yaml")
    first = first_model(document.content)
    weights, manifest = first.weights, resolve(document, first, study=secrets.token_hex(16))
    cache, subjects = tmp_path_factory.mktemp("cache"), {}
    for site, source in SOURCES.items():
        dataset = training_data(real_data / source, document.content, None)
        half = sorted(dataset.subjects("train"))[int(site.endswith("b")) :: 2][:2]
        chosen = replace(dataset, cases=tuple(case for case in dataset.cases if case.subject in half))
        subjects[site] = prepare_training(chosen, document.content, cache, lambda _done, _of: None)
    return Study(manifest, weights, layout_of(manifest), subjects)


def run(study: Study, phase: Phase) -> Iterator[tuple[int, tuple[str, ...], bool]]:
    """Round, contributors, and whether the published sum is exactly that of what they put in."""
    keys = {site: secrets.token_bytes(32) for site in SOURCES}
    server_key = secrets.token_bytes(32)
    enrolled = Enrolled(public_half(server_key), {site: public_half(key) for site, key in keys.items()})
    roster, archive = roster_of(study.manifest, enrolled), Sums()
    archive.save_model(0, study.initial, None)
    coordinator = Coordinator(
        study.manifest, archive, enrolled=lambda: enrolled, key=server_key, evidence=MemoryEvidence(),
        notify=lambda _: None,
    )  # fmt: skip
    memories = {site: Witness() for site in SOURCES}

    def take_part(site: str) -> str:
        link: Any = LocalLink(coordinator, site)
        if site == LOST:
            link = Dying(link, CALLS[phase], lambda: archive.rounds()[-1].round if archive.rounds() else 0)
        runner = SiteRunner(
            Identity(site, keys[site], roster), study.manifest, link,
            make_trainer(study.manifest, site, study.subjects[site]), study.layout, memories[site],
            evidence=MemoryEvidence(), confirm=lambda _: roster, may_reuse=False, charger=None,
            entropy=secrets.token_bytes, notify=lambda _: None, stop=threading.Event(),
        )  # fmt: skip
        with suppress(Gone):
            runner.run()
        return "" if runner.released is None else model_hash(runner.released)

    with ThreadPoolExecutor(len(SOURCES)) as pool:
        models = dict(zip(SOURCES, pool.map(take_part, SOURCES), strict=True))
    assert coordinator.state is StudyState.COMPLETE
    assert {models[site] for site in SOURCES if site != LOST} == {model_hash(coordinator.weights)}
    for number, contributors in coordinator.history:
        total = np.zeros_like(archive.sums[number])
        for site in contributors:
            total += memories[site].put[number]
        yield number, contributors, np.array_equal(total, archive.sums[number])


@pytest.mark.parametrize("phase", CALLS)
def test_one_of_five_real_sites_is_lost_and_the_sum_is_exact(study: Study, phase: Phase) -> None:
    late = phase in (Phase.CONSISTENCY, Phase.UNMASK)
    left = tuple(sorted(site for site in SOURCES if late or site != LOST))
    assert list(run(study, phase)) == [(1, tuple(sorted(SOURCES)), True), (LAST, left, True)]
