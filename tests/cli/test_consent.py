"""What a hospital reads before it takes part."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fedseg.cli.consent import consent
from fedseg.cli.screen import err
from fedseg.errors import BudgetError
from fedseg.plan.manifest import Init, Manifest
from fedseg.plan.sections import Strategy
from fedseg.privacy.outlook import Outlook
from fedseg.runtime.preparation import training_data
from fedseg.runtime.prospects import Prospects
from fedseg.runtime.site_folder import Membership
from tests.runtime import toy
from tests.runtime.pooled import resolved
from tests.runtime.private import private_manifest

MEMBER = Membership("lab.example.org:8443", "a", "/data", None, "/ledger", None)
FIVE = ("a", "b", "c", "d", "e")
SEVEN = (*FIVE, "f", "g")


@pytest.fixture
def shown(make_bids: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`shown(sites, more=..., mode=...)`: the table for a study over these sites, on one line."""
    scans = make_bids(3)

    def show(sites: tuple[str, ...] = ("a", "b", "c"), **options: str) -> str:
        manifest = toy.manifest(toy.plan(sites, **options))  # type: ignore[arg-type]  # strings are what differs
        consent(manifest, MEMBER, training_data(scans, manifest.plan, None), yes=True)
        return " ".join(capsys.readouterr().err.split())

    return show


def test_a_narrow_terminal_shows_the_whole_plan_hash(
    shown: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(err, "width", 60)
    text = "".join(shown().split())
    assert f"planhash{toy.manifest(toy.plan()).plan_hash}server" in text
    assert "…" not in text


def test_collusion_and_thresholds_stand_in_words(shown: Callable[..., str]) -> None:
    assert (
        "secure while no site helps the server (c = 0): it sees only sums over at least 3 of 3 sites, and 2 must agree "
        "before a mask comes off (t = 2)"
    ) in shown()
    assert "secure while at most one site helps the server (c = 1)" in shown(FIVE)
    assert "at least 4 of 5 sites, and 4 must agree before a mask comes off (t = 4)" in shown(FIVE)
    assert "secure while at most 2 sites help the server (c = 2)" in shown(SEVEN)
    assert "PLAIN (mean): the server sees this site's updates" in shown(mode="plain")
    assert "PLAIN (median): the server sees this site's updates" in shown(mode="plain", more="rule: median")


def test_what_leaves_is_named_with_the_score_only_where_there_is_one(shown: Callable[..., str]) -> None:
    nothing = "a round; no scan, label, id or count"
    assert f"leaves here one masked update of 0.0 MB {nothing} ledger" in shown()
    assert "scores on" not in shown()
    scored = shown(more="rollback: {drop: 0.1}")
    assert f"one masked update of 0.0 MB {nothing}; a mean validation Dice, only inside the sum ledger" in scored
    assert "scores on 0 validation" in scored
    plain = shown(more="rollback: {drop: 0.1}", mode="plain")
    assert f"leaves here one update of 0.0 MB {nothing}; a mean validation Dice ledger" in plain


def test_what_trains_and_what_it_starts_from_is_named(shown: Callable[..., str]) -> None:
    text = shown()
    assert "starts from weights drawn from the plan's seed: nobody's data is in them" in text
    assert "trains all layers: 1,000 of 1,000 parameters" in text


@pytest.fixture
def table(make_bids: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> Callable[[Manifest], str]:
    """The table for any study, on one line."""
    scans = make_bids(3)

    def show(manifest: Manifest) -> str:
        consent(manifest, MEMBER, training_data(scans, manifest.plan, None), yes=True)
        return " ".join(capsys.readouterr().err.split())

    return show


def test_strategy_images_and_evaluation_are_named(table: Callable[[Manifest], str]) -> None:
    study = toy.manifest(toy.plan())
    text = table(study)
    assert "sees patches of the scans, lightly varied (augment: light) strategy" in text
    assert "strategy fedavg: the mean of the sites' updates is added to the model privacy" in text
    training = study.plan.training.model_copy(update={"augment": "strong", "made_up": 0.25})
    update = {"training": training, "strategy": Strategy(name="fedprox", proximal=0.5)}
    text = table(study.model_copy(update={"plan": study.plan.model_copy(update=update)}))
    assert (
        "sees patches of the scans, strongly varied (augment: strong); 25% of them from images made up of the label "
        "maps (made_up)"
    ) in text
    assert "strategy fedprox: training is pulled to each round's first model (mu 0.5)" in text


def test_a_pregnancy_is_counted_once_under_however_many_ids(
    make_bids: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    scans = make_bids(3, participants="participant_id\tsubject_key\nsub-01\tx\nsub-02\tx\nsub-03\ty\n")
    manifest = toy.manifest(toy.plan())
    consent(manifest, MEMBER, training_data(scans, manifest.plan, None), yes=True)
    assert "trains on 2 subjects (3 ids) here; 0 validation" in " ".join(capsys.readouterr().err.split())


def test_what_is_left_of_a_lifetime_is_said_before_anyone_is_asked(
    make_bids: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = private_manifest()
    dataset = training_data(make_bids(3), manifest.plan, None)
    study = Outlook(0.0, 7.9, 1e-5, 8.0)
    for limit, says in ((None, "no lifetime_epsilon in the policy"), (20.0, "lifetime_epsilon 20 allowed")):
        found = Prospects(study, Outlook(3.0001, 9.5, 1e-5, limit), under_way=False, public_subjects=10)
        consent(manifest, MEMBER, dataset, True, found)
        text = " ".join(capsys.readouterr().err.split())
        assert (
            "lifetime at most epsilon 3.001 spent so far by any subject here, and 9.500 after this whole study (delta "
            f"1e-05); {says}. Shown here alone: it tells of single subjects"
        ) in text
    found = Prospects(study, Outlook(3.0, 9.5, 1e-5, 9.0), under_way=False, public_subjects=10)
    with pytest.raises(BudgetError, match="the whole study does not fit"):
        consent(manifest, MEMBER, dataset, True, found)
    assert "lifetime_epsilon 9 allowed" in capsys.readouterr().err


def test_a_part_of_a_model_of_others_is_named_as_such(table: Callable[[Manifest], str]) -> None:
    study = toy.manifest(toy.plan())
    training = study.plan.training.model_copy(update={"layers": "head"})
    init = Init(model_hash="5e" * 32, trained_on="study 'old', WITHOUT differential privacy")
    update = {"plan": study.plan.model_copy(update={"training": training}), "trained": ((0, 10),), "init": init}
    text = table(study.model_copy(update=update))
    assert "starts from model 5e5e5e5e5e5e5e5e, trained on study 'old', WITHOUT differential privacy" in text
    assert "trains the head alone: 10 of 1,000 parameters" in text


def test_distributed_noise_says_whom_it_relies_on_and_what_leaves(table: Callable[[Manifest], str]) -> None:
    text = table(resolved())
    assert (
        "trust DISTRIBUTED NOISE: this site's own share does not protect its subjects by itself; epsilon holds as "
        "long as at most 1 of the other contributors of a sum pools what it knows or leaves out its noise, and no site "
        "helps the server. Where 2 of them do, it is epsilon "
    ) in text
    assert (
        "one masked noised sum of gradients of 0.0 MB a round; no scan, label, id or count; how much of the ledger's "
        "budget is used"
    ) in text


def test_local_noise_relies_on_nobody(table: Callable[[Manifest], str]) -> None:
    text = table(private_manifest())
    assert "trust" not in text
    assert "one masked update of 0.0 MB a round" in text
