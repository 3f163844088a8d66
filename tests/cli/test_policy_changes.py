"""A policy whose file is changed between two starts of `client join`, or named later."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

from fedseg.cli import client
from fedseg.cli.accepting import _ask
from fedseg.errors import BudgetError
from fedseg.privacy.outlook import Outlook
from fedseg.runtime.preparation import training_data
from fedseg.runtime.prospects import Prospects
from fedseg.runtime.site_folder import SiteFolder
from fedseg.runtime.study import StudyFolder
from tests.cli.conftest import Answer, Command, enrol, enrol_at_desk

FIRST = "max_epsilon: 10\nmin_sites: 3\n"


@pytest.fixture(autouse=True)
def went_on(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Sites that were let past consent and roster; training is left out."""
    sites: list[str] = []
    monkeypatch.setattr(client, "FIRST_CONTACT_S", 0.0)
    monkeypatch.setattr(client, "_take_part", lambda _folder, identity, *_rest: sites.append(identity.site))
    return sites


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(FIRST)
    return path


@pytest.fixture
def site(study: StudyFolder, data: Path, tmp_path: Path) -> SiteFolder:
    """Site a, enrolled, in front of a roster that it has approved."""
    enrol(study, "b", "c")
    folder = enrol_at_desk(study, "a", SiteFolder(tmp_path / "state"), data=data, ledger=tmp_path / "ledger")
    folder.approve(study.roster().fingerprint)
    return folder


@pytest.fixture
def again(fedseg: Command, site: SiteFolder) -> Callable[..., Answer]:
    return lambda *words: fedseg("client", "join", "--state", site.root, *words)


@pytest.fixture
def agreed(again: Callable[..., Answer], policy: Path, went_on: list[str]) -> None:
    """The study is agreed to under the first policy."""
    answer = again("--yes", "--policy", policy)
    assert answer.code == 0, answer.err
    went_on.clear()


@pytest.mark.usefixtures("server", "agreed")
def test_a_file_that_stays_as_it_was_is_not_spoken_of(
    again: Callable[..., Answer], site: SiteFolder, policy: Path, went_on: list[str]
) -> None:
    assert (site.membership.policy, site.membership.policy_file) == (FIRST, str(policy))
    answer = again()
    assert (answer.code, went_on) == (0, ["a"])
    assert "policy" not in answer.err
    assert "Take part" not in answer.err


@pytest.mark.usefixtures("server", "agreed")
def test_a_stricter_one_holds_without_a_question(
    again: Callable[..., Answer], site: SiteFolder, policy: Path, went_on: list[str]
) -> None:
    policy.write_text("max_epsilon: 8\nmin_sites: 3\ntasks: [feta]\n")
    answer = again()
    assert (answer.code, went_on) == (0, ["a"]), answer.err
    text = " ".join(answer.err.split())
    assert f"policy ({policy}) has changed since it was agreed to" in " ".join(answer.err.split())
    assert "max_epsilon 10 8 holds at once tasks feta, brain_mask feta holds at once" in text
    assert site.membership.policy == policy.read_text()
    assert "has changed" not in again().err


@pytest.mark.usefixtures("server", "agreed")
def test_one_that_refuses_the_study_ends_it_before_the_server_is_asked(
    again: Callable[..., Answer],
    site: SiteFolder,
    policy: Path,
    went_on: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy.write_text("# ours\nmax_epsilon: 4\n")
    answer = again("--yes")
    answer.says(
        1, "this hospital's policy refuses the study: the study's budget is epsilon 8.0, at most 4.0 is accepted"
    )
    answer.says(1, f"{policy}:2, max_epsilon")
    assert went_on == []
    assert site.membership.policy == FIRST


@pytest.mark.usefixtures("server", "agreed")
def test_a_laxer_one_is_shown_and_asked_for(
    again: Callable[..., Answer], site: SiteFolder, policy: Path, went_on: list[str]
) -> None:
    policy.write_text("max_epsilon: 12\nmin_sites: 3\n")
    answer = again()
    answer.says(
        2, "nobody can be asked: there is no terminal", "accepts more: asked for", "Study: small", "leaves here"
    )
    assert went_on == []
    assert site.membership.policy == FIRST
    answer = again("--yes")
    assert (answer.code, went_on) == (0, ["a"]), answer.err
    assert "lifetime" in answer.err
    assert site.membership.policy == policy.read_text()


@pytest.mark.usefixtures("server", "agreed")
def test_a_lifetime_that_the_study_would_pass_ends_it_before_anything_is_charged(
    again: Callable[..., Answer], site: SiteFolder, policy: Path, went_on: list[str]
) -> None:
    policy.write_text(f"{FIRST}lifetime_epsilon: 3\n")
    again().says(1, "the whole study does not fit this hospital's lifetime privacy budget", "of 3 allowed")
    assert went_on == []
    assert site.membership.policy == FIRST


@pytest.mark.usefixtures("server", "agreed")
def test_another_file_may_be_named_later(
    again: Callable[..., Answer], site: SiteFolder, tmp_path: Path, went_on: list[str]
) -> None:
    (tmp_path / "other.yaml").write_text("max_epsilon: 9\nmin_sites: 3\n")
    assert again("--policy", tmp_path / "other.yaml").code == 0
    assert site.membership.policy_file == str(tmp_path / "other.yaml")
    assert (site.membership.policy, went_on) == ("max_epsilon: 9\nmin_sites: 3\n", ["a"])


@pytest.mark.usefixtures("server", "agreed")
def test_a_file_that_is_gone_leaves_what_was_agreed_to(
    again: Callable[..., Answer], site: SiteFolder, policy: Path, went_on: list[str]
) -> None:
    policy.unlink()
    answer = again()
    assert (answer.code, went_on) == (0, ["a"])
    assert f"There is no {policy} any more: the policy that was read there last holds." in answer.err
    assert site.membership.policy == FIRST


@pytest.mark.usefixtures("server", "agreed")
def test_a_file_that_is_no_policy_stops_the_client(again: Callable[..., Answer], policy: Path) -> None:
    policy.write_text("max_epsilom: 4\n")
    again("--yes").says(1, f"where: {policy}:1", "unknown key max_epsilom", "did you mean max_epsilon?")


@pytest.mark.usefixtures("server")
def test_before_the_study_is_agreed_to_the_file_is_read_as_it_is(
    again: Callable[..., Answer], site: SiteFolder, policy: Path, went_on: list[str]
) -> None:
    policy.write_text("max_epsilon: 2\n")
    again("--yes", "--policy", policy).says(1, "at most 2.0 is accepted")
    policy.write_text(FIRST)
    assert again("--yes").code == 0
    assert (site.membership.policy, went_on) == (FIRST, ["a"])
    assert list(site.membership.agreed) == [site.manifest.plan_hash if site.manifest else ""]


@pytest.mark.parametrize("under_way", [True, False])
def test_a_study_that_no_longer_fits_goes_on_only_where_it_has_begun(
    site: SiteFolder, study: StudyFolder, data: Path, capsys: pytest.CaptureFixture[str], under_way: bool
) -> None:
    manifest = study.manifest
    full = Outlook(spent=9.5, after=20.5, delta=1e-5, limit=20.0)
    found = Prospects(Outlook(0.0, 8.0, 1e-5, 8.0), full, under_way, public_subjects=10)
    dataset = training_data(data, manifest.plan, None)
    with contextlib.nullcontext() if under_way else pytest.raises(BudgetError, match=r"could take one to 20\.500"):
        _ask(manifest, manifest, site.membership, dataset, [], found, yes=False)
    said = capsys.readouterr().err
    assert ("will leave the study at the first round that would pass it" in said) == under_way
    assert (f"fedseg client ledger show --ledger {site.membership.ledger}\n" in said) == under_way
