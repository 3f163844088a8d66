"""The page of a privacy report, and the sections that it shares with the terminal."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from fedseg.report.audit_facts import Audit, Inversion, Probe
from fedseg.report.facts import PrivacyReport
from fedseg.report.html import privacy_page
from fedseg.report.numbers import number, percent, printed
from fedseg.report.own_figures import MORE, own_section
from fedseg.report.privacy_course import Dates, Policy, VersionFacts
from fedseg.report.privacy_parts import Section
from fedseg.report.privacy_sections import headline, sections
from tests.report.documents import AGGREGATION, GUARANTEE, MECHANISM, OWN, REPORT, ROUNDS, SITE, privacy
from tests.report.test_html import read

AUDIT = Audit(
    statement="The real engine.",
    given=True,
    code_version="1.2.3",
    passed=True,
    claimed_epsilon=2.0,
    lower_bound=0.75,
    lower_bound_gaussian=1.25,
    largest_provable=5.5,
    confidence=0.95,
    trials=1000,
    steps=4,
    probes=(Probe("noise", True, "variance 0.999"),),
    inversion=(Inversion("with noise", 0.03, 7.25),),
)


def words_of(report: PrivacyReport) -> str:
    """All that the sections say, without their charts."""
    found = []
    for section in sections(report):
        found += [
            section.title,
            *section.paragraphs,
            *section.points,
            *(part for fact in section.facts for part in fact),
        ]
        if section.table is not None:
            found += [*section.table.head, *(cell for row in section.table.rows for cell in row)]
    return "\n".join(found)


def test_the_page_holds_every_word_of_the_sections() -> None:
    text = set(read(privacy_page(privacy(audit=AUDIT))).text)
    assert {line for line in words_of(privacy(audit=AUDIT)).splitlines() if line} <= text


def test_every_table_has_as_many_cells_as_heads() -> None:
    for report in (privacy(audit=AUDIT), privacy(privacy="off", epsilon=None, guarantee=None, mechanism=None)):
        tables = [section.table for section in sections(report) if section.table is not None]
        assert len(tables) > 1
        assert all(len(row) == len(table.head) for table in tables for row in table.rows)


def test_the_page_has_both_curves_and_their_tables() -> None:
    page = privacy_page(privacy())
    assert page.count("<svg") == 2
    assert 'aria-labelledby="attacker-title attacker-text"' in page
    assert "At 1% false positives no attacker reaches more than 12.4% true positives." in page
    assert "After 2 charges epsilon is 3.001; the budget is 8." in page
    assert len(page) < 40_000


def test_without_privacy_there_is_nothing_to_draw() -> None:
    rounds = (replace(ROUNDS[0], epsilon_after=None, charged=None),)
    page = privacy_page(privacy(privacy="off", epsilon=None, guarantee=None, mechanism=None, rounds=rounds))
    assert "<svg" not in page
    assert "Privacy is off" in read(page).text


def test_an_epsilon_that_nothing_bounds_is_said_and_not_drawn() -> None:
    rounds = tuple(replace(row, epsilon_after=math.inf) for row in ROUNDS)
    report = privacy(epsilon=math.inf, rounds=rounds)
    assert headline(report)[0] == "Epsilon unbounded"
    assert privacy_page(report).count("<svg") == 1
    assert report.to_json()["epsilon"] is None


@pytest.mark.parametrize(
    ("report", "first"),
    [
        (privacy(privacy="off", epsilon=None), "Privacy is off"),
        (privacy(epsilon=None, ledger_error="the chain is broken"), "Epsilon is not known"),
        (privacy(perspective="study"), "Epsilon 3.001"),
        (privacy(), "Epsilon 3.001"),
    ],
)
def test_the_headline(report: PrivacyReport, first: str) -> None:
    assert first in read(privacy_page(report)).text


def test_a_broken_ledger_is_a_warning() -> None:
    report = privacy(epsilon=None, guarantee=None, ledger_error="the chain is broken", sites=(
        replace(SITE, epsilon=None, ledger_intact=False),
    ))  # fmt: skip
    (warning,) = [section for section in sections(report) if section.warning]
    assert warning.paragraphs == ("LEDGER: the chain is broken",)
    assert "BROKEN" in words_of(report)


def test_rounds_say_who_was_lost_and_what_was_not_computed() -> None:
    text = words_of(privacy())
    assert "Attempts: 1 closed, 1 charged only." in text
    assert "Round 1, attempt 1 (closed): lost graz: no answer" in text
    assert "at most 3.001" in text
    assert "some rounds show the epsilon of a later one" in text
    exact = words_of(privacy(rounds=ROUNDS[:1]))
    assert "1.901" in exact
    assert "at most" not in exact.split("Rounds\n")[1].split("\nMechanism")[0]


def test_a_quorum_of_two_is_on_the_page() -> None:
    two = replace(AGGREGATION, two_contributors="Each can subtract.", accepted_because="a pilot")
    text = read(privacy_page(privacy(aggregation=two))).text
    assert {"Each can subtract.", "The plan accepts it because: a pilot"} <= set(text)


def test_distributed_noise_says_what_it_assumes() -> None:
    pooled = replace(
        MECHANISM, honest_others=4, colluders=2, tolerated=2, scale=2.0**19, integer_sensitivity=2.0**19,
        epsilon_one_more=9.6, epsilon_alone=11.1,
    )  # fmt: skip
    text = words_of(privacy(mechanism=pooled))
    assert "honest contributors assumed, h\n4\n" in text
    assert "epsilon of one site's share alone\n11.100" in text
    assert "epsilon where one contributor more does\n9.600" in text
    assert "leave out their noise, max(c, 1)\n2\n" in text
    assert "524,288" in text
    assert "share alone" not in words_of(privacy())


def test_what_an_audit_found_and_could_have_found() -> None:
    text = words_of(privacy(audit=AUDIT))
    assert "every probe passed" in text
    assert "the most that could have been proven\n5.5\n" in text
    assert "inversion of a made-up gradient, with noise: correlation 0.03, 7.2 dB" in text
    caught = replace(AUDIT, passed=False, probes=(Probe("clip", False, "norm 9"),))
    section = next(each for each in sections(privacy(audit=caught)) if each.title.startswith("Audit"))
    assert section.warning
    assert ("result", "CAUGHT: at least one probe failed") in section.facts
    assert section.points[0] == "FAILED: clip: norm 9"


def test_what_only_the_site_may_see_is_in_no_section_of_the_report() -> None:
    section = own_section(OWN, privacy())
    said = " ".join(section.paragraphs)
    assert "For this site's eyes only: the newest charge names 17 subjects (pregnancies, not ids)." in said
    assert "all of its ids joined: 3.001." in said
    assert "is right about any one of them at most 12.4% of the time" in said
    assert "this one, and 1 besides." in said
    assert section.table is not None
    assert section.table.rows == (("1e-06", "the policy's", "4.500", "20"),)
    assert (section.warning, MORE in section.paragraphs) == (False, False)
    assert "eyes only" not in words_of(privacy())
    assert "epsilon of all studies" not in words_of(privacy())


def test_a_subject_of_several_ids_is_a_warning_on_the_sites_own_screen() -> None:
    section = own_section(replace(OWN, epsilon=5.5), privacy())
    assert (section.warning, MORE in section.paragraphs) == (True, True)


def test_earlier_versions() -> None:
    text = words_of(privacy())
    assert f"plan {'78' * 8} after round 1, which cost at most epsilon 1.500" in text
    assert f"1, the newest {'cd' * 32}" in text


def section_of(title: str, report: PrivacyReport) -> Section:
    (found,) = [each for each in sections(report) if each.title == title]
    return found


def test_what_was_promised_in_each_version_stands_beside_the_last() -> None:
    table = section_of("Choices of the plan, and its versions", privacy()).table
    assert table is not None
    assert table.head == ("version", "budget", "rounds", "in reserve", "agreed to on")
    assert table.rows == (
        ("78" * 8, "4", "8", "1", "2026-01-02"),
        ("34" * 8, "8", "10", "2", "2026-02-03"),
    )


def test_the_hospitals_own_limits_are_in_the_annex() -> None:
    section = section_of("The hospital's own limits", privacy())
    assert section.facts == (("require_privacy", "true"), ("max_epsilon", "14"), ("lifetime_epsilon", "unset"))
    assert "the policy that was agreed to last" in section.paragraphs[0]
    unwritten = privacy(policy=Policy(False, {"max_epsilon": None}))
    assert "it wrote no policy" in section_of("The hospital's own limits", unwritten).paragraphs[0]
    assert "own limits" not in words_of(privacy(policy=None, perspective="study"))


def test_a_first_model_that_nothing_protects_is_a_warning_where_the_report_begins() -> None:
    start = replace(REPORT.pretraining, protection="none")
    for report, warns in (
        (privacy(pretraining=start), True),
        (privacy(), False),
        (privacy(pretraining=start, privacy="off"), False),
    ):
        assert sections(report)[0].title == "The claim"
        assert sections(report)[0].warning is warns
    facts = dict(section_of("Choices of the plan, and its versions", privacy()).facts)
    assert facts["whose word that is"] == "The coordinator's word."
    assert facts["strategy"] == "fedavg: the mean moves the model"


def test_an_audit_of_another_version_than_trained_says_so() -> None:
    same = section_of("Audit of the engine", privacy(audit=replace(AUDIT, code_version="1.2.3")))
    assert (same.warning, len(same.paragraphs)) == (False, 1)
    both = replace(SITE, code_versions=("1.2.3", "1.2.4"))
    other = section_of("Audit of the engine", privacy(audit=replace(AUDIT, code_version="1.2.3"), sites=(both,)))
    assert other.warning
    assert other.paragraphs[1] == (
        "The audited engine is fedseg 1.2.3. By the ledger rounds were trained by fedseg 1.2.4: of these the audit "
        "says nothing."
    )
    trained = dict(section_of("Provenance", privacy(sites=(both,))).facts)["trained by"]
    assert trained == "fedseg 1.2.3, fedseg 1.2.4"
    assert (
        dict(section_of("Provenance", privacy(perspective="study")).facts)["trained by"] == "known at each site alone"
    )


def test_what_is_noised_and_what_is_sent_are_two_numbers() -> None:
    facts = dict(section_of("Mechanism", privacy()).facts)
    assert facts["parameters that are clipped and noised"] == "302,600"
    assert facts["parameters that are sent, d"] == "302,525"


def test_what_stays_at_a_site_is_told() -> None:
    assert section_of("What stays at a site", privacy()).points == ("cache/: the scans; removed at the end",)


def test_dates_and_versions_stand_with_the_hashes() -> None:
    facts = dict(next(each for each in sections(privacy()) if each.title == "Provenance").facts)
    assert facts["final model, its weights"] == "9a" * 32
    assert facts["final model, SHA-256 of the file"] == "bc" * 32
    assert (facts["plan resolved by"], facts["report made by"]) == ("fedseg 1.2.3", "fedseg 1.2.4, python 3.11.7")
    assert [(name, day) for name, day in facts.items() if name.endswith(" on")] == [
        ("study agreed to on", "2026-01-02"),
        ("extended plan agreed to on", "2026-02-03"),
        ("first charge on", "2026-01-04"),
        ("newest charge on", "2026-03-05"),
        ("report made on", "2026-04-06"),
    ]
    versions = replace(REPORT.versions, agreed=(VersionFacts("34" * 32, 8.0, 10, 2),))
    seen = words_of(privacy(perspective="study", dates=Dates(first_attempt="2026-01-04"), versions=versions))
    assert "first attempt at a round on\n2026-01-04" in seen
    assert "agreed to on" not in seen


def test_what_leaves_is_told_by_class() -> None:
    section = next(each for each in sections(privacy()) if each.title == "What leaves a site")
    assert section.points == (
        "accounted: the update (Upload.chunk): clipped and noised",
        "nothing personal: Upload.session",
    )


def test_bounds_are_rounded_up() -> None:
    assert [printed(value) for value in (0.0, 1.0, 1.0001, 7.9999, 0.0004, None, math.inf)] == [
        "0.000", "1.000", "1.001", "8.000", "0.001", "unknown", "unbounded",
    ]  # fmt: skip
    assert [percent(share) for share in (0.0, 0.01, 0.0101, 1.0)] == ["0%", "1%", "1.1%", "100%"]
    found = [number(value) for value in (None, 1234567, 8.0, 1e-5, 0.25)]
    assert found == ["\N{EN DASH}", "1,234,567", "8", "1e-05", "0.25"]


def test_the_document_has_every_field_and_no_tuple() -> None:
    document = privacy().to_json()
    assert document["schema_version"] == 2
    assert document["rounds"][0]["lost"] == {"graz": "no answer"}
    assert document["guarantee"]["epsilon_at"][1]["epsilon"] == GUARANTEE.epsilon_at[1].epsilon
