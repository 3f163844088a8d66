from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedseg.errors import DataError, Interrupted
from fedseg.federation.vector import Layout
from fedseg.imaging.bids import load_dataset
from fedseg.imaging.dataset import Dataset
from fedseg.labels import scheme
from fedseg.metrics.summary import summarise
from fedseg.plan.manifest import Manifest
from fedseg.plan.study import parse_plan
from fedseg.runtime import site_scoring
from fedseg.runtime.model_file import write_model
from fedseg.runtime.prediction import Segmenter
from fedseg.runtime.preparation import first_model, layout_of
from fedseg.runtime.resolution import resolve
from fedseg.runtime.scoring import evaluate
from fedseg.runtime.site_scoring import SiteScorer, measured, scored
from fedseg.training import compute, inference

PLAN = """
name: small
privacy: {mode: off}
evaluation: {federated: true}
image: {spacing_mm: 0.8, patch: [16, 16, 16]}
network: {preset: small}
training: {steps: 1, threads: 1}
schedule: {rounds: 1}
sites: {a: {}, b: {}, c: {}}
"""
TABLE = "participant_id\tsplit\nsub-01\ttrain\nsub-02\ttest\nsub-03\ttest\n"


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    document = parse_plan(PLAN, "p")
    return resolve(document, first_model(document.content), study="ab" * 16)


@pytest.fixture(scope="module")
def layout(manifest: Manifest) -> Layout:
    return layout_of(manifest)


@pytest.fixture
def dataset(make_bids: Callable[..., Path]) -> Dataset:
    return load_dataset(make_bids(3, participants=TABLE), scheme=scheme("feta"))


def go_on() -> bool:
    return False


def test_a_site_is_scored_as_its_own_evaluation_would_be(
    manifest: Manifest, layout: Layout, dataset: Dataset, tmp_path: Path
) -> None:
    weights, seen = first_model(manifest.plan).weights, list[tuple[int, int]]()
    (tmp_path / "state").mkdir()
    scorer = SiteScorer(manifest, layout, dataset, tmp_path / "state")
    found = scorer.measure(
        layout.unflatten(weights), on_scan=lambda done, of: seen.append((done, of)), should_stop=go_on
    )
    assert seen == [(1, 2), (2, 2)]
    assert list((tmp_path / "state").iterdir()) == []
    write_model(tmp_path / "m.safetensors", manifest, layout, weights, ())
    segmenter = Segmenter([tmp_path / "m.safetensors"])
    scores = [each.scores for each in evaluate(segmenter, dataset, "test", None, lambda *_: None)]
    assert [each.dice for each in found] == [tuple(each.dice.values()) for each in scores]
    assert [each.hd95_mm for each in found] == [tuple(each.hd95_mm.values()) for each in scores]
    means = [sum(each.dice) / len(each.dice) for each in found]
    assert summarise(scores)["dice"]["mean"] == pytest.approx(sum(means) / len(means))
    # Two scans of one person count as their mean.
    twice = measured([replace(each, subject="01") for each in scores])
    assert [each.dice for each in twice] == [
        tuple(pytest.approx((one + two) / 2) for one, two in zip(*(each.dice for each in found), strict=True))
    ]


def test_it_computes_with_the_threads_and_in_the_precision_of_the_plan(
    manifest: Manifest, layout: Layout, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, seen = set[str](), set[tuple[int, bool]]()

    def autocast(device: torch.device, precision: str) -> torch.autocast:
        asked.add(precision)
        seen.add((torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()))
        return compute.autocast(device, "float32")

    monkeypatch.setattr(inference, "autocast", autocast)
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    weights = layout.unflatten(first_model(manifest.plan).weights)
    training = manifest.plan.training.model_copy(update={"precision": "bf16", "threads": before[0] + 1})
    plan = manifest.plan.model_copy(update={"training": training})
    scorer = SiteScorer(manifest.model_copy(update={"plan": plan}), layout, dataset, tmp_path)
    scorer.measure(weights, on_scan=lambda *_: None, should_stop=go_on)
    assert (asked, seen) == ({"bf16"}, {(before[0] + 1, True)})
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before


def test_a_stop_ends_it_after_a_scan_and_leaves_no_file(
    manifest: Manifest, layout: Layout, dataset: Dataset, tmp_path: Path
) -> None:
    scorer, weights = SiteScorer(manifest, layout, dataset, tmp_path), first_model(manifest.plan).weights
    before = set(tmp_path.iterdir())
    with pytest.raises(Interrupted, match="the evaluation was stopped between two scans"):
        scorer.measure(layout.unflatten(weights), on_scan=lambda *_: None, should_stop=lambda: True)
    assert set(tmp_path.iterdir()) == before


def test_a_site_without_test_subjects_has_no_scores(
    manifest: Manifest, layout: Layout, make_bids: Callable[..., Path], tmp_path: Path
) -> None:
    trains = load_dataset(make_bids(2), scheme=scheme("feta"))
    scorer = SiteScorer(manifest, layout, trains, tmp_path)
    assert scorer.measure({}, on_scan=lambda *_: None, should_stop=go_on) == ()


def test_of_very_many_subjects_the_same_ones_are_scored_evenly_spaced(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site_scoring, "MOST_SUBJECTS", 4)
    case = dataset.cases[0]
    numbers = [replace(case, subject=f"{number:02d}", split="test") for number in range(10)]
    assert scored(replace(dataset, cases=tuple(numbers))) == {"00", "02", "05", "07"}
    assert scored(replace(dataset, cases=tuple(itertools.islice(numbers, 3)))) == {"00", "01", "02"}


def test_a_scan_that_cannot_be_read_is_named(
    manifest: Manifest, layout: Layout, dataset: Dataset, tmp_path: Path
) -> None:
    (case, *_) = (case for case in dataset.cases if case.split == "test")
    case.image.write_bytes(b"no scan")
    scorer, weights = SiteScorer(manifest, layout, dataset, tmp_path), first_model(manifest.plan).weights
    with pytest.raises(DataError, match=case.image.name):
        scorer.measure(layout.unflatten(weights), on_scan=lambda *_: None, should_stop=go_on)
