"""Audit logs: honest ones stand in every combination, and what a file by itself gives away."""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path

import pytest

from fedseg.errors import LedgerError, UsageError
from fedseg.federation.exchange import SERVER
from fedseg.runtime.audit import Witness, load, verify
from fedseg.runtime.evidence import roster_entry
from fedseg.secagg import signing
from fedseg.secagg.roster import Roster
from fedseg.store import audit_log
from fedseg.store.audit_log import LOG, AuditLog
from fedseg.store.audit_records import Begin
from tests.runtime.audits import FIRST_MODEL, A, B, Body, C, D, Story, a_story, model_after, shows, vote
from tests.secagg.helpers import PLAN_HASH, STUDY, key, roster


@pytest.fixture(autouse=True)
def _no_power_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of logs are written here, and no test reads one after a power cut."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def story() -> Story:
    return a_story()


# Honest logs.


def test_honest_logs_of_all_say_who_contributed_and_who_confirms_it(story: Story, tmp_path: Path) -> None:
    audit = story.audit(tmp_path)
    assert (audit.findings, audit.notes, audit.absent, audit.study) == ((), (), (), STUDY)
    assert [party.name for party in audit.parties] == ["server", f"site {A}", f"site {B}", f"site {C}", f"site {D}"]
    assert [(each.round, each.attempt, each.contributors) for each in audit.rounds] == [
        (1, 1, (A, B, C, D)),
        (2, 1, (A, B, C)),
        (3, 2, (A, B, C)),
    ]
    first, second, _ = audit.rounds
    assert (first.n, first.c, first.t, first.m) == (4, 1, 3, 3)
    assert first.roster == roster(4).fingerprint.hex()
    assert (first.base_model, first.next_model, second.base_model) == (
        FIRST_MODEL.hex(),
        model_after(1),
        model_after(1),
    )
    assert second.witnesses[0] == Witness("server", signed=True, logged=True)
    assert second.witnesses[-1] == Witness(f"site {D}", signed=False, logged=True)
    assert sum(witness.signed for witness in second.witnesses) == 4


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_honest_logs_of_some_contradict_nothing(story: Story, tmp_path: Path, size: int) -> None:
    logs = story.logs(tmp_path)
    for some in itertools.combinations(logs, size):
        audit = verify(some)
        assert audit.findings == ()
        assert len(audit.absent) == 5 - size
        assert [each.round for each in audit.rounds] == [1, 2, 3]


def test_a_log_alone_has_the_signatures_of_others_as_witnesses(story: Story, tmp_path: Path) -> None:
    (first, *_) = story.audit(tmp_path, [B]).rounds
    assert first.witnesses == (
        Witness("server", signed=True, logged=False),
        *(Witness(f"site {site}", signed=True, logged=site == B) for site in (A, B, C, D)),
    )


def test_a_signature_of_another_attempt_or_on_another_list_is_no_witness(story: Story, tmp_path: Path) -> None:
    story.round(4, 1, publish=False)
    story.drop(A, "unmask", -1)
    story.round(4, 2, silent=[D])
    assert f"site {D}" not in [each.party for each in story.audit(tmp_path / "attempt", [A]).rounds[3].witnesses]
    story = a_story()
    del story.bodies(A, "unmask")[0]["signatures"][D]
    story.told[D] = story.told[D][: story.place(D, "unmask")]
    body = story.bodies(D, "confirmed")[0]
    body["u3"] = [A, B, D]
    body["signature"] = vote(D, body)
    assert f"site {D}" not in [each.party for each in story.audit(tmp_path / "list", [A, D]).rounds[0].witnesses]


def test_a_site_that_was_absent_knows_the_sum_and_not_the_thresholds(story: Story, tmp_path: Path) -> None:
    last = story.audit(tmp_path, [D]).rounds[-1]
    assert (last.round, last.attempt, last.n, last.c, last.t, last.m) == (3, None, 4, None, None, None)
    assert last.witnesses == (Witness("server", True, False), Witness(f"site {D}", False, True))


def test_a_plain_study_is_told_apart(tmp_path: Path) -> None:
    story = Story(plain=True)
    story.round(1)
    story.round(2, lost=[B])
    story.round(3, absent=[C])
    audit = story.audit(tmp_path)
    assert audit.findings == ()
    assert [(each.t, each.m, each.contributors) for each in audit.rounds] == [
        (0, 3, (A, B, C, D)),
        (0, 3, (A, C, D)),
        (0, 3, (A, B, D)),
    ]


def test_sites_that_leave_at_any_step_are_no_liars(tmp_path: Path) -> None:
    """Their logs end there, or go on with an abort; the round closes with or without them."""
    story = Story()
    for number, (kind, aborts) in enumerate(itertools.product(("masked", "confirmed", "unmask"), (False, True)), 1):
        published = story.round(number, silent=[B] if kind == "masked" else [])
        if kind == "confirmed":
            story.drop(B, "unmask", -1)
        if aborts:
            opened = story.bodies(B, "session")[-1]["session"]
            story.told[B].insert(story.place(B, "closed", -1), ("aborted", {"session": opened, "why": "interrupted"}))
        assert B in published.contributors
    story.drop(B, "closed", 2)
    audit = story.audit(tmp_path)
    assert audit.findings == ()
    assert len(audit.rounds) == 6


def test_an_abort_may_be_logged_late(story: Story, tmp_path: Path) -> None:
    header = story.header(4)
    story.open(header)
    story.open(story.header(4, 2))
    story.abort(header)
    assert story.audit(tmp_path).findings == ()


def test_a_study_that_goes_on_under_another_roster_says_so(story: Story, tmp_path: Path) -> None:
    changed = Roster(STUDY, PLAN_HASH, roster(4).server_key, {**roster(4).keys, D: signing.public_half(bytes(32))})
    for party in (SERVER, A):
        story.tell(party, "roster", roster_entry(changed, 20))
    audit = story.audit(tmp_path, [SERVER, A])
    assert audit.findings == ()
    assert all(re.search(rf"goes on under another roster: {D} has another key", note) for note in audit.notes)
    assert len(audit.notes) == 2


def test_a_log_that_is_being_written_is_said_to_be(story: Story, tmp_path: Path) -> None:
    folders = story.write(tmp_path, [A])
    with (folders[A] / LOG).open("ab") as file:
        file.write(b'{"body"')
    audit = verify([load(folders[A])])
    assert audit.findings == ()
    assert re.search("its last line has no end; it is being written, or a crash", audit.notes[0])
    AuditLog.open(folders[A] / LOG, key(A)).close()
    assert re.search("a crash had cut a record short; it never counted", verify([load(folders[A])]).notes[0])


def test_a_sum_that_was_asked_for_and_not_published_is_said(story: Story, tmp_path: Path) -> None:
    story.round(4, publish=False)
    audit = story.audit(tmp_path)
    assert audit.findings == ()
    assert audit.notes == (
        "round 4, attempt 1: shares were asked for, so the server may know the sum; no log here has it published",
    )


def test_a_second_sum_over_one_model_is_reported_where_it_was_logged(story: Story, tmp_path: Path) -> None:
    _reuse(story)
    assert story.audit(tmp_path / "without", [A]).findings[0].what == (
        "round 5, attempt 1: a second sum over the model of round 4, without a record of it"
    )
    for site in (A, B, C):
        reused = {
            "model": story.model.hex(),
            "round": 5,
            "earlier_round": 4,
            "u3": [A, B, C],
            "earlier_u3": [A, B, C, D],
        }
        story.told[site].insert(story.place(site, "confirmed", -1), ("reused", reused))
    audit = story.audit(tmp_path)
    assert audit.findings == ()
    assert audit.notes[0] == (
        f"round 5: a second sum over the model of round 4, confirmed by site {A}, site {B}, site {C}: "
        f"what the two sums differ by are updates of {D}"
    )


def _reuse(story: Story) -> None:
    story.round(4, publish=False)
    story.abort(story.header(4))
    before = story.model
    story.round(5, lost=[D])
    story.model = before


def test_a_third_sum_is_to_be_logged_against_each_of_the_earlier_ones(story: Story, tmp_path: Path) -> None:
    """A second attempt too: what its round's first attempt had logged was of other contributors."""
    before = story.model
    story.round(4, publish=False)
    story.round(5, lost=[B], publish=False)
    story.round(6, lost=[D])
    after = {"model": before.hex(), "round": 6, "u3": [A, B, C]}
    fifth = {"model": before.hex(), "round": 5, "u3": [A, C, D], "earlier_round": 4, "earlier_u3": [A, B, C, D]}
    story.tell(A, "reused", fifth)
    story.tell(A, "reused", after | {"earlier_round": 5, "earlier_u3": [A, C, D]})
    what = "round 6, attempt 1: a second sum over the model of round 4, without a record of it"
    shows(story.audit(tmp_path / "one", [A]), f"site {A}", "", what)
    story.tell(A, "reused", after | {"earlier_round": 4, "earlier_u3": [A, B, C, D]})
    assert story.audit(tmp_path / "both", [A]).findings == ()


def test_a_second_sum_of_the_same_contributors_is_to_be_logged_too(story: Story, tmp_path: Path) -> None:
    story.round(4, publish=False)
    story.round(5)
    what = "round 5, attempt 1: a second sum over the model of round 4, without a record of it"
    shows(story.audit(tmp_path, [A]), f"site {A}", "", what)


def test_a_model_whose_sum_a_site_never_confirmed_is_not_used(story: Story, tmp_path: Path) -> None:
    story.round(4, silent=[A], publish=False)
    story.round(5, lost=[D])
    assert story.audit(tmp_path, [A]).findings == ()


def test_a_second_attempt_over_a_used_model_is_a_second_sum(story: Story, tmp_path: Path) -> None:
    story.round(4, publish=False)
    reused = {"model": story.model.hex(), "round": 5, "earlier_round": 4, "earlier_u3": [A, B, C, D]}
    story.round(5, 1, publish=False)
    story.tell(A, "reused", reused | {"u3": [A, B, C, D]})
    story.drop(A, "unmask", -1)
    story.round(5, 2, lost=[D])
    what = "round 5, attempt 2: a second sum over the model of round 4, without a record of it"
    shows(story.audit(tmp_path, [A]), f"site {A}", "", what)


@pytest.mark.parametrize("field", ["model", "round", "earlier_round", "u3", "earlier_u3"])
def test_a_record_of_reuse_that_says_something_else_does_not_count(story: Story, tmp_path: Path, field: str) -> None:
    _reuse(story)
    reused = {"model": story.model.hex(), "round": 5, "earlier_round": 4, "u3": [A, B, C], "earlier_u3": [A, B, C, D]}
    lies: Body = {"model": "ab" * 32, "round": 6, "earlier_round": 3, "u3": [A, B], "earlier_u3": [A, B, D]}
    story.told[A].append(("reused", reused | {field: lies[field]}))
    shows(story.audit(tmp_path, [A]), f"site {A}", "", "round 5, attempt 1: a second sum over the model of round 4")


# What the file itself gives away.


def test_a_changed_byte_ends_what_is_believed(story: Story, tmp_path: Path) -> None:
    folders = story.write(tmp_path, [A])
    path = folders[A] / LOG
    lines = path.read_bytes().splitlines(keepends=True)
    lines[9] = lines[9].replace(b'"kind"', b'"kinD"')
    path.write_bytes(b"".join(lines))
    audit = verify([load(path)])
    shows(audit, f"site {A}", "", "this line is not a record", "what stands from here on is no evidence")
    assert audit.findings[0].where == f"{path}, line 10"
    assert audit.parties[0].broken
    assert [each.round for each in audit.rounds] == [1]


def test_lines_of_another_key_are_not_believed(story: Story, tmp_path: Path) -> None:
    folders = story.write(tmp_path, [A])
    path = folders[A] / LOG
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(audit_log, "check_signature", lambda *_: None)
        patched.setattr(audit_log, "opening", lambda *_: Begin(role="site", party=A, key=_public(B), study=STUDY))
        with AuditLog.open(path, key(B)) as log:
            log.append("aborted", {"session": "ab" * 32, "why": "x"})
    shows(verify([load(path)]), f"site {A}", "", f"not signed by the key that {A} began the log with")


def _public(party: str) -> str:
    return signing.public_half(key(party)).hex()


@pytest.mark.parametrize(
    ("kind", "body", "what"),
    [
        ("note", {}, "there is no kind of record 'note'"),
        ("aborted", {"session": "ab" * 32}, "this aborted record is wrong at 'why': Field required"),
        ("begin", {"role": "site", "party": A, "key": "00" * 32, "study": STUDY}, "a second opening record"),
    ],
)
def test_records_that_cannot_be_are_findings_and_the_rest_stands(
    story: Story, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, body: Body, what: str
) -> None:
    story.told[A].insert(5, (kind, body))
    with monkeypatch.context() as patched:
        patched.setattr(audit_log, "parse_body", lambda *_: Begin(role="site", party=A, key=_public(A), study=STUDY))
        folders = story.write(tmp_path, [A])
    audit = verify([load(folders[A])])
    shows(audit, f"site {A}", "", what)
    assert audit.findings[0].where.endswith("line 7")
    assert [each.round for each in audit.rounds] == [1, 2, 3]


@pytest.mark.parametrize("time", ["", "yesterday about noon", "2025-01-02T03:04:05Z" * 2])
def test_a_time_that_is_none_is_not_shown(tmp_path: Path, time: str) -> None:
    AuditLog.create(tmp_path / LOG, key(A), "site", A, STUDY, clock=lambda: time).close()
    assert verify([load(tmp_path)]).parties[0].until == ""


def test_what_holds_no_log_is_refused(story: Story, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no audit log \(name a study's folder, a site's state folder, or"):
        load(tmp_path)
    with pytest.raises(UsageError, match="there is no audit log"):
        load(tmp_path / "none")
    with pytest.raises(UsageError, match="there is no audit log to verify"):
        verify([])
    (tmp_path / LOG).write_bytes(b"{}\n")
    with pytest.raises(LedgerError, match=r"audit\.jsonl, line 1: this line is not a record"):
        load(tmp_path)
    (tmp_path / LOG).write_bytes(b"")
    with pytest.raises(LedgerError, match="the log does not begin with its opening record"):
        load(tmp_path)
