"""One party lies in its own log, with a valid signature under each lie: the log by itself gives it away."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedseg.federation.exchange import SERVER
from fedseg.runtime.audit import load, verify
from fedseg.runtime.evidence import roster_entry, session_entry
from fedseg.secagg.roster import Roster
from fedseg.secagg.signing import public_half
from fedseg.store import audit_log
from fedseg.store.audit_records import Begin, Repair
from tests.runtime.audits import A, B, Body, C, D, Story, a_story, close_again, vote
from tests.secagg.helpers import PLAN_HASH, STUDY, roster

Lie = Callable[[Story], None]
LIES: list[Any] = []


def finds(*what: str, of: str = B, proves: str = "signed this itself") -> Callable[[Lie], Lie]:
    """Register a lie in the log of `of`, and the findings that it must give, no more and no fewer."""

    def register(lie: Lie) -> Lie:
        LIES.append(pytest.param(lie, of, what, proves, id=lie.__name__))
        return lie

    return register


@pytest.fixture(autouse=True)
def _no_power_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of logs are written here, and no test reads one after a power cut."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def story() -> Story:
    return a_story()


# Rosters.


def _cut(story: Story, kind: str, which: int = 0, of: str = B) -> None:
    """The log ends before a record, so that one lie is one finding."""
    story.told[of] = story.told[of][: story.place(of, kind, which)]


def _with_another_key_of(site: str) -> Roster:
    return Roster(STUDY, PLAN_HASH, roster(4).server_key, {**roster(4).keys, site: public_half(bytes(32))})


@finds("a roster that cannot be: a protocol key is a point of low order, under which anybody can sign")
def a_roster_that_cannot_be(story: Story) -> None:
    _cut(story, "session")
    story.bodies(B, "roster")[0]["keys"][A] = "00" * 32


@finds("the roster's fingerprint is not that of the sites and keys beside it")
def a_fingerprint_of_something_else(story: Story) -> None:
    _cut(story, "session")
    story.bodies(B, "roster")[0]["fingerprint"] = "ab" * 32


@finds("the roster does not hold the key that signs this log as that of site brno")
def a_roster_with_another_key_of_its_own(story: Story) -> None:
    _cut(story, "session")
    story.bodies(B, "roster")[0].update(roster_entry(_with_another_key_of(B), 20))


@finds("the roster does not hold the key that signs this log as that of server", of=SERVER)
def a_server_with_another_key(story: Story) -> None:
    _cut(story, "session", of=SERVER)
    changed = Roster(STUDY, PLAN_HASH, public_half(bytes(32)), roster(4).keys)
    story.bodies(SERVER, "roster")[0].update(roster_entry(changed, 20))


@finds("round 1, attempt 1: it was opened before a roster was pinned")
def no_roster(story: Story) -> None:
    _cut(story, "confirmed")
    story.drop(B, "roster")


# Sessions.


@finds("a session's header that cannot be: this session header is of another kind or version")
def a_header_that_cannot_be(story: Story) -> None:
    _cut(story, "closed")
    story.bodies(B, "session")[0]["header"] = "ab" * 40


@finds("a session's header that cannot be: thresholds t = 1, m = 3 are not those of 4 sites with collusion 1")
def a_threshold_of_one(story: Story) -> None:
    _cut(story, "closed")
    body = story.bodies(B, "session")[0]
    assert body["header"].endswith("000100030003")
    body["header"] = body["header"].removesuffix("000100030003") + "000100010003"


@finds("round 1, attempt 1: the session is not the hash of its header")
def a_session_that_is_not_its_header(story: Story) -> None:
    _cut(story, "masked")
    story.bodies(B, "session")[0]["session"] = "ab" * 32


@finds(r"round 2, attempt 1: it is under roster f9a979cc46e358d7, pinned is [0-9a-f]{16}$")
def a_session_under_a_roster_of_before(story: Story) -> None:
    _cut(story, "masked", 1)
    story.told[B].insert(story.place(B, "session", 1), ("roster", roster_entry(_with_another_key_of(D), 20)))


@finds("round 4, attempt 1: its study, plan or sites are not those of its roster")
def a_session_of_another_plan(story: Story) -> None:
    header = story.header(4, plan_hash=bytes(32), roster=roster(4).fingerprint)
    story.tell(B, "session", session_entry(header))


@finds("round 2, attempt 2: it was opened after round 3, attempt 2")
def a_round_of_before(story: Story) -> None:
    story.tell(B, "session", session_entry(story.header(2, 2)))


@finds("round 4, attempt 1: it was opened after round 4, attempt 1")
def a_session_twice(story: Story) -> None:
    story.open(story.header(4))
    story.open(story.header(4))


@finds(f"round 4, attempt 1: it starts from model {'0' * 16}, where round 3 ended with a63f0dfe98cc2a03")
def a_model_that_no_round_made(story: Story) -> None:
    story.model = bytes(32)
    story.open(story.header(4))


@finds(f"round 7, attempt 1: it starts from model {'0' * 16}, where round 3 ended with a63f0dfe98cc2a03", of=SERVER)
def a_model_that_the_server_never_made(story: Story) -> None:
    story.model = bytes(32)
    story.open(story.header(7))


@finds("round 4, attempt 2: it was opened after step 5 of attempt 1, which ends a round")
def two_attempts_unmasked(story: Story) -> None:
    story.round(4, publish=False)
    story.round(4, 2, publish=False)


@finds("round 4, attempt 2: it was opened after step 5 of attempt 1, which ends a round", of=SERVER)
def two_attempts_unmasked_by_the_server(story: Story) -> None:
    two_attempts_unmasked(story)


@finds(*(f"{step} stands under a session that this log never opened" for step in (r"step 3 \(masked\)", "its abort")))
def steps_of_no_session(story: Story) -> None:
    story.tell(B, "masked", story.bodies(B, "masked")[0] | {"session": "ab" * 32})
    story.tell(B, "aborted", {"session": "ab" * 32, "why": "x"})


# The order of steps.


@finds(r"round 1, attempt 1: step 3 \(masked\) stands twice$")
def one_input_twice(story: Story) -> None:
    story.told[B].insert(story.place(B, "masked") + 1, ("masked", story.bodies(B, "masked")[0].copy()))


@finds(
    r"round 1, attempt 1: step 3 \(masked\) stands twice, and says two things",
    "round 1, attempt 1: the signature of brno over its input is not valid",
)
def two_inputs(story: Story) -> None:
    again = story.bodies(B, "masked")[0] | {"digest": "ab" * 32}
    story.told[B].insert(story.place(B, "masked") + 1, ("masked", again))


@finds(
    r"round 1, attempt 1: step 4 \(confirmed\) stands twice, and says two things",
    r"the contributors in step 4 \(confirmed\) \(amiens, brno, cluj\) are not those before it \(amiens, brno, cluj, d",
    f"round 1: brno signed step 4 of one session .* U3 = {A}, {B}, {C}, {D} of U2 .* and U3 = {A}, {B}, {C} of U2",
    proves="signed this itself|both signatures are its own, and it may give only one",
)
def two_votes(story: Story) -> None:
    again = story.bodies(B, "confirmed")[0] | {"u3": [A, B, C]}
    again["signature"] = vote(B, again)
    story.told[B].insert(story.place(B, "confirmed") + 1, ("confirmed", again))


@finds(
    r"round 1, attempt 1: step 4 \(confirmed\) comes right after its opening",
    "sid or U2 in step 4 .confirmed. is not that of step 3",
)
def a_vote_without_an_input(story: Story) -> None:
    _cut(story, "unmask")
    story.drop(B, "masked")


@finds(r"round 1, attempt 1: step 5 \(unmask\) comes right after step 3 \(masked\)")
def shares_without_a_vote(story: Story) -> None:
    story.drop(B, "confirmed")


@finds(r"round 1, attempt 1: step 5 \(unmask\) comes right after its abort")
def shares_after_an_abort(story: Story) -> None:
    opened = story.bodies(B, "session")[0]["session"]
    story.told[B].insert(story.place(B, "unmask"), ("aborted", {"session": opened, "why": "x"}))


@finds(r"round 1, attempt 1: step 4 \(confirmed\) comes after a later attempt was opened")
def a_vote_in_an_attempt_that_was_left(story: Story) -> None:
    late = story.drop(B, "confirmed")
    story.drop(B, "unmask")
    story.drop(B, "closed")
    story.told[B].insert(story.place(B, "masked", 1), ("confirmed", late))


@finds(r"round 1, attempt 1: step 3 \(received\) has no place in a site's log of a secure session")
def a_site_that_plays_the_server(story: Story) -> None:
    _cut(story, "masked")
    story.tell(B, "received", story.bodies(SERVER, "received")[0])


@finds(r"round 1, attempt 1: its close comes right after step 3 \(received\)", of=SERVER)
def a_sum_without_unmasking(story: Story) -> None:
    story.drop(SERVER, "unmask")


# Sets and signatures.


@finds("round 1, attempt 1: U2 does not name brno")
def a_u2_without_itself(story: Story) -> None:
    _cut(story, "confirmed")
    story.bodies(B, "masked")[0]["u2"] = [A, C, D]


@finds("round 1, attempt 1: U2 with x, whom the roster does not name")
def a_u2_with_a_stranger(story: Story) -> None:
    _cut(story, "confirmed")
    story.bodies(B, "masked")[0]["u2"] = [A, B, C, "x"]


@finds(r"round 1, attempt 1: U2 has 2 sites, fewer than max\(t, m\) = 3")
def a_u2_of_two(story: Story) -> None:
    _cut(story, "confirmed")
    story.bodies(B, "masked")[0]["u2"] = [A, B]


@finds(r"round 1, attempt 1: U2 has 2 sites, fewer than max\(t, m\) = 3", of=SERVER)
def a_u2_of_two_at_the_server(story: Story) -> None:
    _cut(story, "unmask", of=SERVER)
    body = story.bodies(SERVER, "received")[0]
    body["u2"] = [A, B]
    body["inputs"] = {site: body["inputs"][site] for site in (A, B)}


@finds(
    "round 1, attempt 1: sid is sid0 in plain mode, and only there", "the signature of brno over its input is not valid"
)
def a_secure_session_without_keys(story: Story) -> None:
    _cut(story, "confirmed")
    body = story.bodies(B, "masked")[0]
    body["sid"] = body["session"]


def _votes(story: Story, u3: list[str], *voters: str) -> None:
    """Round 1 ends for B with a vote on another U3."""
    _cut(story, "unmask")
    body = story.bodies(B, "confirmed")[0]
    body["u3"] = u3
    body["signature"] = vote(B, body)
    if voters:
        told = {name: body[name] for name in ("session", "sid", "u2", "u3")}
        story.tell(B, "unmask", told | {"signatures": {site: vote(site, body) for site in voters}})


@finds("round 1, attempt 1: U3 does not name brno")
def a_vote_on_others(story: Story) -> None:
    _votes(story, [A, C, D])


@finds("round 1, attempt 1: U3 with x, whom U2 does not name")
def a_vote_on_a_stranger(story: Story) -> None:
    _votes(story, [A, B, C, "x"])


@finds(
    r"round 1, attempt 1: U3 has 2 sites, fewer than max\(t, m\) = 3",
    r"round 1, attempt 1: U3 has 2 sites, fewer than max\(t, m\) = 3",
    "round 1, attempt 1: 2 signatures of step 4, where t = 3 must be had",
)
def a_sum_of_two_where_all_signers_agreed(story: Story) -> None:
    _votes(story, [A, B], A, B)


@finds("round 1, attempt 1: the signers of step 4 with dakar, whom U3 does not name")
def a_signer_that_gave_no_input(story: Story) -> None:
    _votes(story, [A, B, C], A, B, C, D)


@finds(
    "round 1, attempt 1: 2 signatures of step 4, where t = 3 must be had",
    "round 1, attempt 1: the signatures of step 4 lack the one that brno gave",
)
def shares_for_too_few_and_foreign_votes(story: Story) -> None:
    _votes(story, [A, B, C, D], A, C)


@finds("round 1, attempt 1: the signature of cluj over U2 and U3 is not valid")
def a_vote_that_is_not_valid(story: Story) -> None:
    signatures = story.bodies(B, "unmask")[0]["signatures"]
    signatures[C] = signatures[D]


@finds("round 1, attempt 1: the signature of brno over U2 and U3 is not valid")
def a_vote_of_its_own_that_is_not_valid(story: Story) -> None:
    _cut(story, "unmask")
    story.bodies(B, "confirmed")[0]["signature"] = "ab" * 64


@finds("round 1, attempt 1: the signature of cluj over its input is not valid", of=SERVER)
def an_input_that_was_never_signed(story: Story) -> None:
    story.bodies(SERVER, "received")[0]["inputs"][C]["digest"] = "ab" * 32


@finds(
    "round 2, attempt 1: the inputs with dakar, whom U2 does not name",
    "round 2, attempt 1: the signature of dakar over its input is not valid",
    of=SERVER,
)
def an_input_of_a_site_without_keys(story: Story) -> None:
    _cut(story, "unmask", 1, of=SERVER)
    body = story.bodies(SERVER, "received")[1]
    body["u2"] = [A, B, C]
    body["inputs"][D] = body["inputs"][A]


@finds(
    r"the contributors in step 5 \(unmask\) \(amiens, brno, cluj\) are not those before it \(amiens, brno, cluj, da",
    "the signatures of step 4 lack the one that brno gave",
    "round 1: brno signed step 4 of one session .* over two outcomes",
    proves="signed this itself|both signatures are its own, and it may give only one",
)
def shares_for_others_than_it_voted_on(story: Story) -> None:
    _cut(story, "closed")
    body = story.bodies(B, "unmask")[0]
    body["u3"] = [A, B, C]
    body["signatures"] = {site: vote(site, body) for site in (A, B, C)}


# Closed rounds.


@finds("round 1: the server's signature of its close is not valid")
def a_close_that_the_server_never_signed(story: Story) -> None:
    _cut(story, "session", 1)
    story.bodies(B, "closed")[0]["next_model"] = "ab" * 32


@finds("round 1, attempt 1: it was closed with amiens, brno, cluj, before that they were amiens, brno, cluj, dakar")
def a_sum_of_others_than_it_voted_on(story: Story) -> None:
    close_again(story.bodies(B, "closed")[0], contributors=[A, B, C])


@finds(
    r"round 1, attempt 1: the close has 2 sites, fewer than max\(t, m\) = 3",
)
def a_sum_of_two(story: Story) -> None:
    for kind in ("confirmed", "unmask"):
        story.drop(B, kind)
    close_again(story.bodies(B, "closed")[0], contributors=[A, B])


@finds(
    "round 1, attempt 1: it was closed with nobody, before that they were amiens, brno", "the close has 0 sites, fewer"
)
def a_sum_of_nobody(story: Story) -> None:
    close_again(story.bodies(B, "closed")[0], contributors=[])


@finds("round 3: its contributors with x, whom the roster does not name", of=D)
def a_sum_with_a_stranger(story: Story) -> None:
    close_again(story.bodies(D, "closed")[2], contributors=[A, B, C, "x"])


@finds("round 1, attempt 1: its sum is published as that of round 9")
def a_sum_as_another_rounds(story: Story) -> None:
    _cut(story, "session", 1)
    close_again(story.bodies(B, "closed")[0], round=9)


@finds("round 1, attempt 1: it was closed over model ababababababab")
def a_sum_over_another_model(story: Story) -> None:
    story.bodies(B, "closed")[0]["base_model"] = "ab" * 32


@finds("round 3: it is closed a second time", "round 3, attempt 2: its close stands twice")
def a_round_closed_twice(story: Story) -> None:
    story.tell(B, "closed", story.bodies(B, "closed")[2])


@finds("round 1: it is closed after round 3", of=D)
def rounds_closed_backwards(story: Story) -> None:
    story.drop(D, "closed", 1)
    first = story.drop(D, "closed", 0)
    story.tell(D, "closed", first)


@finds("round 3: its close starts from model ababababababab.*, where round 2 ended with 97e2521720cb4b38", of=D)
def a_chain_of_models_with_a_gap(story: Story) -> None:
    story.bodies(D, "closed")[2]["base_model"] = "ab" * 32


@finds("round 1 was closed before a roster was pinned")
def a_close_before_a_roster(story: Story) -> None:
    _cut(story, "session", 1)
    story.told[B] = story.told[B][-1:]


@finds("round 3: a close of a session whose inputs this log never received", of=SERVER)
def a_sum_of_nothing(story: Story) -> None:
    opened = story.bodies(SERVER, "session")[-1]["session"]
    story.told[SERVER] = [each for each in story.told[SERVER] if each[1].get("session") != opened]


@finds(
    "round 2: the close counts brno, whose log has no input to that session",
    proves="either site brno has cut its log, or the server counts an input that was never given",
)
def a_contributor_that_knows_nothing_of_it(story: Story) -> None:
    opened = story.bodies(B, "session")[1]["session"]
    story.told[B] = [each for each in story.told[B] if each[1].get("session") != opened]


# Plain mode.


def test_steps_of_secure_mode_have_no_place_in_a_plain_study(tmp_path: Path) -> None:
    story = Story(plain=True)
    story.round(1)
    body = story.bodies(B, "masked")[0]
    told = {name: body[name] for name in ("session", "sid", "u2")} | {"u3": [A, B, C, D], "signature": "ab" * 64}
    story.told[B].insert(story.place(B, "closed"), ("confirmed", told))
    findings = story.audit(tmp_path, [B]).findings
    assert "step 4 (confirmed) has no place in a site's log of a plain session" in findings[0].what


def test_a_contributor_in_plain_mode_that_knows_nothing_of_it(tmp_path: Path) -> None:
    story = Story(plain=True)
    story.round(1)
    story.drop(B, "masked")
    (finding,) = story.audit(tmp_path, [B]).findings
    assert finding.what == "round 1: the close counts brno, whose log has no input to that session"


@pytest.mark.parametrize(("lie", "of", "what", "proves"), LIES)
def test_a_lie_in_a_log_is_found_in_it(
    story: Story, tmp_path: Path, lie: Lie, of: str, what: tuple[str, ...], proves: str
) -> None:
    lie(story)
    findings = story.audit(tmp_path, [of]).findings
    assert len(findings) == len(what), findings
    for finding, expected in zip(findings, what, strict=True):
        assert re.search(expected, finding.what), finding
        assert finding.party == ("server" if of == SERVER else f"site {of}")
        assert finding.where.startswith(str(tmp_path / of))
        assert re.search(proves, finding.proves), finding


def test_every_lie_is_tried() -> None:
    assert len(LIES) >= 45


NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=3) | st.just("ab" * 32),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([A, B, "x", "digest"]), inner),
    max_leaves=4,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 50), field=st.integers(0, 8), value=JSON)
def test_no_signed_record_makes_the_audit_fail(
    tmp_path_factory: pytest.TempPathFactory, place: int, field: int, value: Any
) -> None:
    told = a_story()
    for party in (SERVER, A):
        kind, body = told.told[party][place % len(told.told[party])]
        name = sorted(body)[field % len(body)]
        told.told[party][place % len(told.told[party])] = (kind, body | {name: value})
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(audit_log, "parse_body", lambda kind, body: _opening(kind, body) or Repair(discarded_bytes=1))
        folders = told.write(tmp_path_factory.mktemp("lies"), [SERVER, A])
    assert len(verify([load(path) for path in folders.values()]).parties) == 2


def _opening(kind: str, body: Body) -> Begin | None:
    return Begin(**body) if kind == "begin" else None
