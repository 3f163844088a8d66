"""`fedseg privacy-report`: its three forms, that they agree, and what it says of what is wrong."""

from __future__ import annotations

import hashlib
import json
import re
import time
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedseg import __version__
from fedseg.cli.privacy import gather
from fedseg.federation.vector import Layout
from fedseg.plan.manifest import Manifest
from fedseg.plan.study import parse_plan
from fedseg.policy import SitePolicy
from fedseg.privacy.identity import Subject
from fedseg.report.html import privacy_page
from fedseg.report.numbers import printed
from fedseg.report.privacy_sections import sections
from fedseg.runtime.charging import StudyCharger
from fedseg.runtime.model_file import write_model
from fedseg.runtime.privacy_audit import KIND
from fedseg.runtime.privacy_trust import TWO
from fedseg.runtime.site_folder import Membership, SiteFolder
from fedseg.runtime.study import StudyFolder
from fedseg.store.privacy_ledger import HospitalLedger
from fedseg.store.study_db import RoundRow
from tests.cli.conftest import Command
from tests.runtime.toy import FIRST
from tests.system import world

KEYS = {
    *("site", "unit", "epsilon", "delta", "noise_multiplier", "max_grad_norm", "sampling_rate", "steps", "rounds"),
    *("budget_epsilon", "accountant", "ledger_intact"),
}
FRAME = [Subject(("01",), None, ()), Subject(("02",), None, ())]
FORBIDDEN = re.compile(r"anonym|gdpr.compli|complian\w* with the gdpr", flags=re.IGNORECASE)


def _study(folder: Path, *, privacy: str, aggregation: str = world.SECURE) -> StudyFolder:
    text = world.PLAN.replace("PRIVACY", privacy).replace("AGGREGATION", aggregation)
    return StudyFolder.create(folder, parse_plan(text, "toy.yaml"), FIRST, address="localhost:8443", now=time.time())


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    """A private study in which rounds 1 and 2 were closed, round 2 without c."""
    study = _study(tmp_path_factory.mktemp("private") / "study", privacy=world.LOCAL, aggregation=world.TWO)
    lost = {"c": "no sign of life in MaskedInputCollection"}
    study.db.save_round(RoundRow(1, 1, "closed", "0" * 64, ("a", "b", "c"), {}, "1" * 64, 0.0, 1.0, 0))
    study.db.save_round(RoundRow(2, 1, "closed", "1" * 64, ("a", "b"), lost, "2" * 64, 1.0, 2.0, 0))
    return study


@pytest.fixture
def site(private: StudyFolder, tmp_path: Path) -> SiteFolder:
    """The state of site a after two charged rounds."""
    folder = SiteFolder(tmp_path / "state")
    (tmp_path / "data").mkdir()
    folder.root.mkdir()
    member = Membership("localhost:8443", "a", str(tmp_path / "data"), None, str(tmp_path / "ledger"), None)
    (folder.root / "site.json").write_text(json.dumps(vars(member)))
    folder.accept(private.manifest)
    ledger = HospitalLedger.create(tmp_path / "ledger")
    charger = StudyCharger(ledger, private.manifest, "a", policy=SitePolicy(), frame=FRAME, notify=lambda _: None)
    for number in (1, 2):
        assert charger.charge(number, 1, "0" * 64)
        charger.commit(number, 1)
    return folder


class Cells(HTMLParser):
    """The text of every element of a page that holds nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []

    def handle_data(self, data: str) -> None:
        self.text.append(" ".join(data.split()))


def cells(page: str) -> set[str]:
    reader = Cells()
    reader.feed(page)
    return set(reader.text)


def squeezed(text: str) -> str:
    return re.sub(r"[\s\u2500-\u257f]+", "", text)


def test_of_a_site(fedseg: Command, site: SiteFolder, private: StudyFolder) -> None:
    answer = fedseg("privacy-report", site.root, "--json")
    assert answer.code == 0, answer.err
    facts = json.loads(answer.out)
    (row,) = facts["sites"]
    assert set(row) >= KEYS
    plan, steps = private.manifest.plan, private.manifest.plan.training.steps
    assert (row["site"], row["unit"], row["accountant"], row["ledger_intact"]) == ("a", "subject", "PLD", True)
    assert (row["rounds"], row["steps"], row["budget_epsilon"], row["delta"]) == (2, 2 * steps, 8, plan.privacy.delta)
    assert row["noise_multiplier"] == private.manifest.noise_multiplier
    assert 0 < row["epsilon"] < 8
    assert facts["epsilon"] == row["epsilon"]
    assert facts["schema_version"] == 2


def test_the_three_forms_say_the_same(fedseg: Command, site: SiteFolder, private: StudyFolder, tmp_path: Path) -> None:
    for folder in (site.root, private.root):
        page = tmp_path / "annex.html"
        shown = fedseg("privacy-report", folder, "--html", page)
        assert shown.code == 0, shown.err
        assert f"The page is {page}" in shown.out
        facts = json.loads(fedseg("privacy-report", folder, "--json").out)
        report = gather(folder, made=datetime.now(UTC).date())
        assert json.loads(json.dumps(report.to_json())) == facts
        on_page, on_screen = cells(page.read_text()), squeezed(shown.out)
        for section in sections(report):
            said = [*section.paragraphs, *section.points, *(text for _, text in section.facts)]
            said += [cell for row in section.table.rows for cell in row] if section.table else []
            assert set(said) <= on_page
            assert [text for text in said if squeezed(text) not in on_screen] == []
        numbers = {printed(facts["epsilon"]), *(printed(row["epsilon"]) for row in facts["sites"])}
        numbers |= {printed(row["epsilon_after"]) for row in facts["rounds"]}
        numbers |= {printed(each["epsilon"]) for each in facts["guarantee"]["epsilon_at"]}
        assert len(numbers) > 4
        assert numbers <= on_page
        assert all(number in on_screen for number in numbers)


def test_what_depends_on_single_subjects_is_on_the_sites_own_screen_alone(
    fedseg: Command, site: SiteFolder, private: StudyFolder
) -> None:
    shown = fedseg("privacy-report", site.root).out
    assert "For this site's eyes only: the newest charge names 2 subjects (pregnancies, not ids)." in shown
    assert "All studies on this hospital's ledger, composed for each subject: this one, and 0 besides." in shown
    assert 'lifetime":' not in fedseg("privacy-report", site.root, "--json").out
    assert "eyes only" not in fedseg("privacy-report", site.root, "--json").out
    assert "eyes only" not in privacy_page(gather(site.root))
    assert "eyes only" not in fedseg("privacy-report", private.root).out


def test_no_form_calls_a_model_what_only_a_case_can_show(
    fedseg: Command, site: SiteFolder, private: StudyFolder, tmp_path: Path
) -> None:
    off = _study(tmp_path / "off", privacy=world.OFF)
    for folder in (site.root, private.root, off.root):
        forms = [
            fedseg("privacy-report", folder).out,
            fedseg("privacy-report", folder, "--json").out,
            privacy_page(gather(folder)),
        ]
        assert [FORBIDDEN.findall(form) for form in forms] == [[], [], []]
        assert all("EDPB Opinion 28/2024" in form for form in forms)
    assert FORBIDDEN.search("an anonymous model") and FORBIDDEN.search("GDPR compliant")


def test_a_report_says_when_and_which_file_the_model_is(site: SiteFolder, private: StudyFolder) -> None:
    first = gather(site.root, made=date(2026, 1, 2))
    assert (first.dates.made, first.dates.agreed, first.model_file_hash) == ("2026-01-02", None, None)
    today = {(datetime.now(UTC) - timedelta(seconds=age)).date().isoformat() for age in (0, 600)}
    assert {first.dates.first_attempt, first.dates.last_attempt} <= today
    agreed = {private.manifest.plan_hash: "2025-12-24T23:59:59Z"}
    site.remember(replace(site.membership, agreed=agreed))
    write_model(site.model, private.manifest, Layout((("weight", (3,)),)), np.zeros(3, np.float32), ())
    report = gather(site.root)
    assert (report.dates.agreed, report.dates.agreed_version, report.dates.made) == ("2025-12-24", None, None)
    assert report.model_file_hash == hashlib.sha256(site.model.read_bytes()).hexdigest() != report.model_hash
    assert set(report.software) == {"fedseg", "python", "torch", "opacus", "dp-accounting"}
    assert re.fullmatch(r"3\.\d+\.\d+.*", report.software["python"])
    assert "T" not in json.dumps([*vars(report.dates).values()])


def test_a_studys_report_dates_its_attempts(private: StudyFolder) -> None:
    dates = gather(private.root, made=date(2026, 1, 2)).dates
    assert (dates.agreed, dates.first_attempt, dates.made) == (None, "1970-01-01", "2026-01-02")


def test_of_a_site_names_who_is_missing_from_a_round(fedseg: Command, site: SiteFolder, private: StudyFolder) -> None:
    layout = Layout((("weight", (3,)),))
    history = ((1, ("a", "b", "c")), (3, ("a", "b")))
    write_model(site.model, private.manifest, layout, np.zeros(3, np.float32), history)
    shown = fedseg("privacy-report", site.root)
    assert shown.code == 0, shown.err
    assert "Round 3 (closed): lost c: its update is not in the sum" in shown.out
    assert "Round 1 (" not in shown.out


def test_of_a_study_names_round_site_phase_and_what_two_contributors_mean(
    fedseg: Command, private: StudyFolder
) -> None:
    facts = json.loads(fedseg("privacy-report", private.root, "--json").out)
    assert [row["site"] for row in facts["sites"]] == ["a", "b", "c"]
    assert all(set(row) >= KEYS for row in facts["sites"])
    assert {row["site"]: row["rounds"] for row in facts["sites"]} == {"a": 2, "b": 2, "c": 1}
    assert facts["epsilon"] == max(row["epsilon"] for row in facts["sites"])
    shown = fedseg("privacy-report", private.root)
    assert TWO in shown.out
    assert "The plan accepts it because: the three hospitals already share these scans" in shown.out
    assert "Round 2, attempt 1 (closed): lost c: no sign of life in MaskedInputCollection" in shown.out


def test_of_a_study_without_privacy_says_so_in_words(fedseg: Command, tmp_path: Path) -> None:
    study = _study(tmp_path / "study", privacy=world.OFF)
    facts = json.loads(fedseg("privacy-report", study.root, "--json").out)
    assert facts["epsilon"] is None
    assert all(row["epsilon"] is None for row in facts["sites"])
    assert facts["statement"].startswith("Privacy is off")
    assert "Privacy is off" in fedseg("privacy-report", study.root).out


def test_a_changed_ledger_fails_the_report(fedseg: Command, site: SiteFolder, tmp_path: Path) -> None:
    path = Path(site.membership.ledger) / "ledger.jsonl"
    path.write_text(path.read_text().replace('"round":2', '"round":9'))
    answer = fedseg("privacy-report", site.root, "--json")
    assert answer.code == 1
    facts = json.loads(answer.out)
    assert facts["sites"][0]["ledger_intact"] is False
    assert (facts["sites"][0]["epsilon"], facts["epsilon"], facts["guarantee"]) == (None, None, None)
    shown = fedseg("privacy-report", site.root, "--html", tmp_path / "annex.html")
    assert shown.code == 1
    assert "LEDGER: " in shown.out
    assert str(path) in shown.out
    assert "Epsilon is not known" in (tmp_path / "annex.html").read_text()


def test_a_ledger_that_is_gone_fails_the_report(fedseg: Command, site: SiteFolder) -> None:
    for path in Path(site.membership.ledger).iterdir():
        path.unlink()
    Path(site.membership.ledger).rmdir()
    answer = fedseg("privacy-report", site.root)
    assert answer.code == 1
    assert "the privacy ledger is missing" in " ".join(answer.out.split())


def test_a_folder_of_neither(fedseg: Command, tmp_path: Path) -> None:
    hint = "check the path"
    fedseg("privacy-report", tmp_path).says(2, "neither a site's state nor a study", str(tmp_path), hint)
    fedseg("privacy-report", tmp_path / "none").says(2, str(tmp_path / "none"), hint)


def test_a_page_that_cannot_be_written(fedseg: Command, private: StudyFolder, tmp_path: Path) -> None:
    page = tmp_path / "none" / "annex.html"
    fedseg("privacy-report", private.root, "--html", page).says(1, str(page.parent))


# The audit.


def audit_of(manifest: Manifest, **changes: Any) -> dict[str, Any]:
    """The document of `fedseg privacy-audit` for a study in local mode."""
    return {
        "kind": KIND,
        "code_version": manifest.code_version,
        "plan_hash": manifest.plan_hash,
        "mode": "local",
        "noise_multiplier": manifest.noise_multiplier,
        "sampling_rate": manifest.plan.privacy.sampling_rate,
        "max_grad_norm": manifest.plan.privacy.max_grad_norm,
        "steps": 16,
        "honest": None,
        "claimed_epsilon": 2.5,
        "delta": 1e-5,
        "lower_bound": 0.625,
        "lower_bound_gaussian": 1.875,
        "largest_provable": 4.375,
        "confidence": 0.95,
        "trials": 1000,
        "false_alarm": 1e-6,
        "probes": [{"name": "noise", "passed": True, "detail": "variance 1.001 of what is claimed"}],
        "verdict": "consistent",
        "inversion": {
            "noise_multiplier": 1.0,
            "labels_alone": 0.4,
            "attempts": [{"name": "bare", "correlation": 0.99, "psnr_db": 31.5}],
        },
        **changes,
    }


@pytest.fixture
def audit(tmp_path: Path) -> Path:
    return tmp_path / "audit.json"


def test_an_audit_is_shown_with_what_it_could_have_proven(fedseg: Command, private: StudyFolder, audit: Path) -> None:
    assert "No audit was given" in fedseg("privacy-report", private.root).out
    audit.write_text(json.dumps(audit_of(private.manifest)))
    shown = fedseg("privacy-report", private.root, "--audit", audit)
    assert shown.code == 0, shown.err
    for part in ("every probe passed", "proven at least: 0.625", "could have been proven: 4.375", "31.5 dB"):
        assert part in shown.out
    assert "the audit says nothing" not in shown.out
    facts = json.loads(fedseg("privacy-report", private.root, "--audit", audit, "--json").out)["audit"]
    assert (facts["given"], facts["passed"], facts["lower_bound"], facts["largest_provable"]) == (
        True,
        True,
        0.625,
        4.375,
    )


def test_an_audit_that_caught_the_engine_is_said_so(fedseg: Command, private: StudyFolder, audit: Path) -> None:
    failed = [{"name": "clip", "passed": False, "detail": "norm 9 of 1"}]
    audit.write_text(json.dumps(audit_of(private.manifest, verdict="CAUGHT", probes=failed, code_version="0.0.1")))
    shown = fedseg("privacy-report", private.root, "--audit", audit).out
    assert "CAUGHT: at least one probe failed" in shown
    assert "engine: fedseg 0.0.1" in shown
    audit.write_text(json.dumps(audit_of(private.manifest, verdict="consistent", probes=failed)))
    assert "CAUGHT: at least one probe failed" in fedseg("privacy-report", private.root, "--audit", audit).out


def test_an_audit_is_held_against_the_versions_that_trained_here(
    fedseg: Command, site: SiteFolder, private: StudyFolder, audit: Path
) -> None:
    audit.write_text(json.dumps(audit_of(private.manifest, code_version="0.0.1")))
    shown = " ".join(fedseg("privacy-report", site.root, "--audit", audit).out.split())
    assert (
        f"The audited engine is fedseg 0.0.1. By the ledger rounds were trained by fedseg {__version__}: of these the "
        "audit says nothing." in shown
    )
    assert f"trained by: fedseg {__version__}" in shown
    audit.write_text(json.dumps(audit_of(private.manifest, code_version=__version__)))
    assert "The audited engine" not in fedseg("privacy-report", site.root, "--audit", audit).out


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"noise_multiplier": 0.5}, "its noise multiplier is 0.5, the study's is "),
        ({"mode": "distributed"}, "its mode is distributed, the study's is local"),
        ({"honest": 2}, "its number of honest others is 2, the study's is None"),
    ],
)
def test_an_audit_of_another_mechanism(
    fedseg: Command, private: StudyFolder, audit: Path, changes: dict[str, Any], said: str
) -> None:
    audit.write_text(json.dumps(audit_of(private.manifest, **changes)))
    answer = fedseg("privacy-report", private.root, "--audit", audit)
    answer.says(2, "this audit is of another mechanism", said, str(audit), "fedseg privacy-audit --study DIR")


def test_an_audit_of_another_study(fedseg: Command, private: StudyFolder, audit: Path) -> None:
    audit.write_text(json.dumps(audit_of(private.manifest, plan_hash="ab" * 32)))
    answer = fedseg("privacy-report", private.root, "--audit", audit)
    said = f"of abababababababab..., not {private.manifest.plan_hash[:16]}..."
    answer.says(2, "another study, or of another version of its plan", said, str(audit), "fedseg privacy-audit --study")
    audit.write_text(json.dumps(audit_of(private.manifest, plan_hash=None)))
    assert fedseg("privacy-report", private.root, "--audit", audit).code == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the document: Invalid JSON"),
        ("[]", "the document: "),
        ('{"kind": "something else"}', "kind: Input should be 'fedseg privacy audit 1'"),
        ('{"kind": "fedseg privacy audit 1"}', "code_version: Field required"),
    ],
)
def test_a_file_that_is_no_audit(fedseg: Command, private: StudyFolder, audit: Path, text: str, said: str) -> None:
    audit.write_text(text)
    answer = fedseg("privacy-report", private.root, "--audit", audit)
    answer.says(
        1, "this is no audit of fedseg's", said, str(audit), "name the audit.json that fedseg privacy-audit wrote"
    )


def test_an_audit_with_a_cursor_in_it(fedseg: Command, private: StudyFolder, audit: Path) -> None:
    probes = [{"name": "noise", "passed": True, "detail": "\x1b[2J"}]
    audit.write_text(json.dumps(audit_of(private.manifest, probes=probes)))
    answer = fedseg("privacy-report", private.root, "--audit", audit)
    answer.says(1, "probes.0.detail", "only printable characters")


def test_an_audit_that_is_not_there(fedseg: Command, private: StudyFolder, audit: Path) -> None:
    fedseg("privacy-report", private.root, "--audit", audit).says(1, str(audit))
