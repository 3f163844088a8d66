"""Audit logs held against each other: each lie that another party's log gives away is a finding that names it."""

from __future__ import annotations

import copy
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedseg.federation.exchange import CLOSE, SERVER, closing_statement
from fedseg.runtime.audit import load, verify
from fedseg.runtime.evidence import roster_entry
from fedseg.secagg import signing
from fedseg.secagg.messages import MaskedInput, SessionHeader
from fedseg.secagg.roster import Roster
from fedseg.store.audit_log import LOG, AuditLog
from tests.runtime.audits import A, B, C, D, Story, a_story, close_again, model_after, shows, vote
from tests.secagg.helpers import PLAN_HASH, STUDY, identity, key, roster


@pytest.fixture(autouse=True)
def _no_power_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of logs are written here, and no test reads one after a power cut."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def story() -> Story:
    return a_story()


# What logs say against each other.


def test_two_rosters(story: Story, tmp_path: Path) -> None:
    changed = Roster(STUDY, PLAN_HASH, roster(4).server_key, {**roster(4).keys, D: signing.public_half(bytes(32))})
    for party in (B, C):
        story.told[party] = story.told[party][:1]
    story.bodies(C, "roster")[0].update(roster_entry(changed, 20))
    what = f"site {B} and site {C} have pinned different rosters; in the second, {D} has another key"
    shows(
        story.audit(tmp_path, [B, C]), "", rf"brno/{LOG}; .*cluj/{LOG}", what, "compare the words of both by telephone"
    )


def test_two_models_in_one_round(story: Story, tmp_path: Path) -> None:
    other = copy.deepcopy(story)
    other.model = bytes(32)
    story.open(story.header(4))
    other.open(other.header(4))
    del other.told[C][story.place(C, "closed", 2)]
    logs = [*story.logs(tmp_path / "b", [A, B]), *other.logs(tmp_path / "c", [C])]
    what = f"different headers; model hash: a63f0dfe98cc2a03 by site {A}, site {B}; 0000000000000000 by site {C}"
    shows(
        verify(logs), "", "round 4, attempt 1", what, "the server told these parties different things, or one of them"
    )


def test_two_lists_of_sharers(story: Story, tmp_path: Path) -> None:
    for site, u2 in ((B, [A, B, C, D]), (C, [A, B, C])):
        _cut(story, site, "confirmed")
        story.bodies(site, "masked")[0]["u2"] = u2
    what = rf"different lists U2 of those who shared keys: {A}, {B}, {C}, {D} by site {B}; {A}, {B}, {C} by site {C}"
    shows(story.audit(tmp_path, [B, C]), "", "round 1, attempt 1", what, "the logs alone do not show which")


def test_two_sessions_of_one_header(story: Story, tmp_path: Path) -> None:
    """The server relayed different keys to different sites."""
    _cut(story, B, "confirmed")
    _cut(story, C, "confirmed")
    body = story.bodies(C, "masked")[0]
    body["sid"] = "ab" * 32
    message = MaskedInput.signed(bytes.fromhex("ab" * 32), identity(C, _header()), bytes.fromhex(body["digest"]))
    body["signature"] = message.signature.hex()
    what = (
        rf"different sessions \(sid\): the keys that were relayed differ: [0-9a-f]{{16}} by site {B}; abababababababab "
    )
    shows(story.audit(tmp_path, [B, C]), "", "round 1, attempt 1", what, "the server told these parties different")


def test_two_lists_of_contributors(story: Story, tmp_path: Path) -> None:
    _cut(story, B, "unmask")
    _cut(story, C, "unmask")
    body = story.bodies(C, "confirmed")[0]
    body["u3"] = [A, B, C]
    body["signature"] = vote(C, body)
    what = rf"different lists U3 of contributors: {A}, {B}, {C}, {D} by site {B}; {A}, {B}, {C} by site {C}"
    shows(story.audit(tmp_path, [B, C]), "", "round 1, attempt 1", what, "the server told these parties different")


def test_two_votes_of_one_site_kept_by_two_others(story: Story, tmp_path: Path) -> None:
    """Amiens keeps what three others signed of one list; brno what they signed of another."""
    for site in (A, B):
        _cut(story, site, "closed")
    for kind in ("confirmed", "unmask"):
        body = story.bodies(B, kind)[0]
        body["u3"] = [B, C, D]
        if kind == "confirmed":
            body["signature"] = vote(B, body)
        else:
            body["signatures"] = {site: vote(site, body) for site in (B, C, D)}
    audit = story.audit(tmp_path, [A, B])
    proven = [finding for finding in audit.findings if finding.party]
    assert [finding.party for finding in proven] == [f"site {B}", f"site {C}", f"site {D}"]
    for finding in proven:
        name = finding.party.removeprefix("site ")
        assert re.match(f"round 1: {name} signed step 4 of one session .* over two outcomes, U3 = ", finding.what)
        assert finding.proves == (
            f"{finding.party} broke the protocol: both signatures are its own, and it may give only one"
        )
        assert f"{A}/{LOG}, line" in finding.where
        assert f"{B}/{LOG}, line" in finding.where


def test_two_inputs_of_one_site(story: Story, tmp_path: Path) -> None:
    """What brno logged is not what it sent: its signature over that is in the server's log."""
    body = story.bodies(B, "masked")[0]
    message = MaskedInput.signed(bytes.fromhex(body["sid"]), identity(B, _header()), bytes.fromhex("ab" * 32))
    body.update(digest="ab" * 32, signature=message.signature.hex())
    what = rf"round 1: {B} signed two inputs to one session \([0-9a-f]{{16}}\), [0-9a-f]{{16}} and abababababababab"
    shows(
        story.audit(tmp_path),
        f"site {B}",
        f"server/{LOG}, line 4; .*{B}/{LOG}, line 4",
        what,
        "it masked twice, or logged",
    )


def test_two_closes_of_one_round(story: Story, tmp_path: Path) -> None:
    """Dakar was absent from round 3: the server told it of another model."""
    close_again(story.bodies(D, "closed")[2], next_model="ab" * 32, weight=9)
    what = "round 3: the server signed two closes of one round: next model a63f0dfe98cc2a03 and abababababababab"
    audit = story.audit(tmp_path, [B, D])
    assert [each.next_model for each in audit.rounds[2:]] == [model_after(3), "ab" * 32]
    assert [each.witnesses[-1].party for each in audit.rounds[2:]] == [f"site {C}", f"site {D}"]
    shows(
        audit,
        "server",
        f"{B}/{LOG}, line 19; .*{D}/{LOG}, line 10",
        what,
        "the server lied: .* both signatures are its own",
    )


@pytest.mark.parametrize(("field", "value"), [("contributors", [A, B]), ("sum", "ab" * 32), ("session", "ab" * 32)])
def test_two_closes_of_one_round_in_other_parts(story: Story, tmp_path: Path, field: str, value: Any) -> None:
    close_again(story.bodies(D, "closed")[2], **{field: value})
    what = f"the server signed two closes of one round: {field} "
    shows(story.audit(tmp_path, [B, D]), "server", f"{D}/{LOG}, line 10", what, "the server lied")


@pytest.mark.parametrize(
    ("field", "value"), [("weight", 99), ("score", 0.5), ("rolled_back", True), ("base_model", "ab" * 32)]
)
def test_one_sum_with_two_consequences(story: Story, tmp_path: Path, field: str, value: Any) -> None:
    """Round 1, so that no chain of models is broken beside it."""
    _cut(story, D, "session", 1)
    story.bodies(D, "closed")[0][field] = value
    for kind in ("session", "masked", "confirmed", "unmask"):
        story.drop(D, kind)
    close = story.bodies(B, "closed")[0]
    for each in (close, story.bodies(D, "closed")[0]):
        close_again(each, contributors=[A, B, C])
    for kind in ("confirmed", "unmask"):
        story.drop(B, kind)
    what = f"site {B} and site {D} have the same sum, but another {field.replace('_', ' ')} to it"
    audit = story.audit(tmp_path, [B, D])
    if field == "rolled_back":
        # Round 1 has nothing to go back to, as well.
        alone = [each for each in audit.findings if each.party]
        assert ["it goes back to model" in each.what for each in alone] == [True]
        audit = replace(audit, findings=tuple(each for each in audit.findings if not each.party))
    shows(audit, "", "round 1", what, "one of the two logs is false")


def test_closes_under_two_keys_of_the_server(story: Story, tmp_path: Path) -> None:
    _cut(story, D, "session", 0)
    changed = Roster(STUDY, PLAN_HASH, signing.public_half(bytes(32)), roster(4).keys)
    story.bodies(D, "roster")[0].update(roster_entry(changed, 20))
    body = copy.deepcopy(story.bodies(B, "closed")[2])
    total = bytes.fromhex(body["sum"])
    statement = closing_statement(3, tuple(body["contributors"]), total, body["next_model"])
    body["signature"] = signing.sign(bytes(32), CLOSE, bytes.fromhex(body["session"]), SERVER, statement).hex()
    story.tell(D, "closed", body)
    found = {finding.what for finding in story.audit(tmp_path, [B, D]).findings}
    assert found >= {
        f"site {B} and site {D} have pinned different rosters; in the second, the server has another key",
        f"site {B} and site {D} have it closed under different keys of the server",
    }


def test_shares_in_two_attempts_at_one_round(story: Story, tmp_path: Path) -> None:
    """Each of two sites saw but one; together they show that the server asked twice over one update."""
    other = copy.deepcopy(story)
    story.round(4, 1, publish=False)
    other.round(4, 2, publish=False)
    logs = [*story.logs(tmp_path / "b", [B]), *other.logs(tmp_path / "c", [C])]
    # Each has signed for the other's attempt as well: that is not what this is about.
    findings = [finding for finding in verify(logs).findings if "step 5" in finding.what]
    assert [(each.party, each.where, each.what) for each in findings] == [
        ("", "round 4", f"step 5 was reached in two attempts: attempt 1 by site {B}; attempt 2 by site {C}")
    ]
    assert "the server asked for the shares of two sums over one update" in findings[0].proves


def test_a_gap_between_models_that_no_log_has_both_of(story: Story, tmp_path: Path) -> None:
    _cut(story, A, "session", 1)
    story.bodies(D, "closed")[2]["base_model"] = "ab" * 32
    story.told[D] = [story.told[D][0], ("closed", story.bodies(D, "closed")[2])]
    _cut(story, B, "session", 2)
    what = "round 2 ended with model 97e2521720cb4b38 .*, the next began with abababababababab"
    audit = story.audit(tmp_path, [B, D])
    findings = [finding for finding in audit.findings if "ended with" in finding.what]
    assert [finding.where for finding in findings] == ["round 3"]
    assert re.search(what, findings[0].what)


# Models that were taken on the server's word.


def fetch(story: Story, site: str, number: int, model: str) -> None:
    story.tell(site, "fetched", {"round": number, "base_model": model_after(number - 1), "model": model})


def test_a_model_that_a_round_made_may_be_fetched(story: Story, tmp_path: Path) -> None:
    story.told[D] = story.told[D][:1]
    fetch(story, D, 3, model_after(3))
    assert not [each for each in story.audit(tmp_path).findings if "was given" in each.what]


def test_a_model_that_no_round_made(story: Story, tmp_path: Path) -> None:
    fetch(story, C, 9, "ab" * 32)
    what = f"site {C} was given model abababababababab as that of round 9, which is not in the server's log"
    shows(story.audit(tmp_path, [SERVER, C]), "", LOG, what, "the server told these parties different things")


def test_a_model_other_than_the_round_made(story: Story, tmp_path: Path) -> None:
    fetch(story, C, 2, "ab" * 32)
    what = f"site {C} was given model abababababababab as that of round 2, which ended with {model_after(2)[:16]} "
    shows(story.audit(tmp_path, [A, C]), "", LOG, what, "the server told these parties different things")


def test_a_model_whose_making_no_log_shows(story: Story, tmp_path: Path) -> None:
    fetch(story, C, 9, "ab" * 32)
    audit = story.audit(tmp_path, [A, C])
    assert audit.findings == ()
    assert (
        f"site {C} took model abababababababab, said to be that of round 9, on the server's word: "
        "no log here shows the sum that made it"
    ) in audit.notes


# Logs that were cut.


def test_a_cut_log_lacks_what_its_party_signed(story: Story, tmp_path: Path) -> None:
    _cut(story, B, "session", 2)
    for others in ([SERVER, A], [SERVER], [A]):
        audit = story.audit(tmp_path / "-".join(others), [B, *others])
        steps = "step 3 and step 4" if SERVER in others else "step 4"
        what = rf"the log lacks {steps} of session [0-9a-f]{{16}} \(round 3\), which site {B} has signed: .*, line "
        shows(
            audit, f"site {B}", f"{B}/{LOG}$", what, "has cut its log or gone back to an older copy: the signature is"
        )


def test_a_log_cut_within_a_round_lacks_the_rest(story: Story, tmp_path: Path) -> None:
    _cut(story, B, "confirmed", 2)
    what = r"the log lacks step 4 of session [0-9a-f]{16} \(round 3\)"
    shows(story.audit(tmp_path, [SERVER, B]), f"site {B}", LOG, what, "the signature is its own")


@pytest.mark.parametrize("party", [SERVER, B])
def test_a_log_that_is_broken_is_not_said_to_be_cut_as_well(story: Story, tmp_path: Path, party: str) -> None:
    folders = story.write(tmp_path)
    path = folders[party] / LOG
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], b"{}\n", *lines[4:]]))
    audit = verify([load(folder) for folder in folders.values()])
    shows(audit, "server" if party == SERVER else f"site {B}", "line 4", "this line is not a record")


def test_a_site_is_not_held_to_what_another_key_in_its_name_did(story: Story, tmp_path: Path) -> None:
    _cut(story, B, "session", 2)
    changed = Roster(STUDY, PLAN_HASH, roster(4).server_key, {**roster(4).keys, B: signing.public_half(bytes(32))})
    story.told[D] = [("roster", roster_entry(changed, 20)), ("closed", story.bodies(D, "closed")[2])]
    findings = story.audit(tmp_path, [B, D]).findings
    assert findings
    assert [finding.what for finding in findings if "which counts" in finding.what] == []


def test_a_log_cut_where_nobody_else_has_been_is_not_seen(story: Story, tmp_path: Path) -> None:
    """The stated limit: no other log reaches beyond the cut."""
    for party in (SERVER, A, B):
        _cut(story, party, "session", 2)
    audit = story.audit(tmp_path, [SERVER, A, B])
    assert audit.findings == ()
    assert [each.round for each in audit.rounds] == [1, 2]


def test_a_contributor_by_the_servers_word_alone(story: Story, tmp_path: Path) -> None:
    """Dakar's log has round 3 closed with brno; nobody here kept a signature of brno in it."""
    _cut(story, B, "session", 2)
    what = f"the log lacks round 3, which counts {B} among its contributors"
    proves = (
        "the server counts an input that was never given: the server's own log would hold the signature that decides"
    )
    shows(story.audit(tmp_path, [B, D]), f"site {B}", f"{B}/{LOG}; .*{D}/{LOG}, line 10", what, proves)


def test_a_cut_log_of_the_server(story: Story, tmp_path: Path) -> None:
    _cut(story, SERVER, "session", 2)
    what = rf"the log lacks the close of round 3, which the server has signed: .*{D}/{LOG}, line 10"
    shows(
        story.audit(tmp_path, [SERVER, D]), "server", f"server/{LOG}", what, "the server has cut its log or gone back"
    )


# Several logs in one name.


def test_an_older_copy_of_a_log_adds_nothing(story: Story, tmp_path: Path) -> None:
    longer = story.write(tmp_path / "longer", [B])[B]
    older = tmp_path / "older"
    older.mkdir()
    (older / LOG).write_bytes(b"".join((longer / LOG).read_bytes().splitlines(keepends=True)[:9]))
    audit = verify([load(older), load(longer / LOG)])
    assert audit.findings == ()
    assert [party.path for party in audit.parties] == [str(longer / LOG)]


def test_two_histories_of_one_party(story: Story, tmp_path: Path) -> None:
    longer = story.write(tmp_path / "one", [B])[B]
    other = tmp_path / "other"
    other.mkdir()
    (other / LOG).write_bytes(b"".join((longer / LOG).read_bytes().splitlines(keepends=True)[:9]))
    with AuditLog.open(other / LOG, key(B)) as log:
        log.append("aborted", story.bodies(B, "aborted")[0] | {"session": story.bodies(B, "session")[1]["session"]})
    what = rf"it has signed two different histories: from line 10 on, this one and .*one/{B}/{LOG}"
    shows(
        verify([load(longer), load(other)]),
        f"site {B}",
        f"other/{LOG}",
        what,
        "has rewritten its log, or went on twice",
    )


def test_two_keys_in_one_name(story: Story, tmp_path: Path) -> None:
    true = story.write(tmp_path / "one", [B])[B]
    with AuditLog.create(tmp_path / LOG, bytes(32), "site", B, STUDY) as log:
        log.append("roster", roster_entry(roster(4), 20))
    audit = verify([load(tmp_path), load(true)])
    what = rf"another log in this name is signed with another key: .*one/{B}/{LOG}"
    shows(audit, f"site {B}", rf"^{tmp_path}/{LOG}", what, "one of the two is not this party's, or it began anew")


def test_a_log_of_another_study(story: Story, tmp_path: Path) -> None:
    first = story.write(tmp_path / "one", [B])[B]
    with AuditLog.create(tmp_path / LOG, key(A), "site", A, "elsewhere") as log:
        log.append("roster", roster_entry(Roster("elsewhere", PLAN_HASH, roster(4).server_key, roster(4).keys), 20))
    what = "this log is of study elsewhere, the first one of atlas: it was left out"
    audit = verify([load(first), load(tmp_path)])
    shows(audit, f"site {A}", f"^{tmp_path}/{LOG}", what, "logs of different studies cannot contradict")
    assert [party.name for party in audit.parties] == [f"site {B}"]


def _cut(story: Story, party: str, kind: str, which: int = 0) -> None:
    story.told[party] = story.told[party][: story.place(party, kind, which)]


def _header() -> SessionHeader:
    return Story().header(1)
