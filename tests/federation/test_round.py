from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fedseg.federation.round import PLAIN, SECURE, TABLES, Attendance, Event, Phase, Table, decide

SITES = ("a", "b", "c", "d", "e")
SUBSETS = st.frozensets(st.sampled_from(SITES))
ENDS = {Phase.CLOSED, Phase.ABANDONED}


@st.composite
def attendances(draw: st.DrawFn) -> Attendance:
    expected = draw(SUBSETS)
    arrived, lost = draw(SUBSETS) & expected, draw(SUBSETS) & expected
    return Attendance(expected, arrived, lost, draw(st.integers(1, 5)), draw(st.booleans()), draw(st.booleans()))


def phases(table: Table) -> list[Phase]:
    """The way of a round in which everybody answers."""
    way = [Phase.ADVERTISE_KEYS]
    while way[-1] not in ENDS:
        way.append(table[way[-1], Event.COMPLETE])
    return way


def test_the_way_of_a_round() -> None:
    agreement = [Phase.CONSISTENCY, Phase.UNMASK]
    steps = [Phase.ADVERTISE_KEYS, Phase.SHARE_KEYS, Phase.MASKED_INPUT, *agreement, Phase.CLOSED]
    assert phases(SECURE) == steps
    assert phases(PLAIN) == [Phase.ADVERTISE_KEYS, Phase.MASKED_INPUT, Phase.CLOSED]
    assert {"secure": SECURE, "plain": PLAIN} == TABLES


@pytest.mark.parametrize("table", [SECURE, PLAIN])
def test_every_phase_knows_every_event_and_ends_know_none(table: Table) -> None:
    open_phases = set(phases(table)) - ENDS
    assert set(table) == {(phase, event) for phase in open_phases for event in Event}
    assert all(table[phase, Event.SHORT] is Phase.ABANDONED for phase in open_phases)


@given(attendances())
def test_a_phase_never_completes_below_its_need(attendance: Attendance) -> None:
    if decide(attendance) is Event.COMPLETE:
        assert len(attendance.arrived) >= attendance.need


@given(attendances())
def test_a_phase_that_is_overdue_is_over(attendance: Attendance) -> None:
    assert decide(replace(attendance, overdue=True)) is not None


@given(attendances())
def test_a_phase_is_given_up_only_when_overdue_or_hopeless(attendance: Attendance) -> None:
    assume(not attendance.overdue)
    if decide(attendance) is Event.SHORT:
        could = attendance.expected - attendance.lost | attendance.arrived
        assert len(could) < attendance.need
        assert not attendance.patient


@given(attendances())
def test_it_waits_for_nobody_who_is_lost_and_for_everybody_who_is_not(attendance: Attendance) -> None:
    assume(not attendance.overdue)
    waiting = attendance.expected - attendance.arrived - attendance.lost
    if waiting and len(attendance.arrived | waiting) >= attendance.need:
        assert decide(attendance) is None
    if not waiting and len(attendance.arrived) >= attendance.need:
        assert decide(attendance) is Event.COMPLETE


@given(attendances(), st.sampled_from(SITES))
def test_one_more_answer_never_hurts(attendance: Attendance, site: str) -> None:
    assume(site in attendance.expected)
    more = replace(attendance, arrived=attendance.arrived | {site})
    if decide(attendance) is Event.COMPLETE:
        assert decide(more) is Event.COMPLETE
    if decide(more) is Event.SHORT:
        assert decide(attendance) is Event.SHORT


@given(attendances())
def test_patience_waits_for_the_deadline_and_no_longer(attendance: Attendance) -> None:
    patient, hasty = replace(attendance, patient=True), replace(attendance, patient=False)
    if attendance.overdue or decide(hasty) is Event.COMPLETE:
        assert decide(patient) is decide(hasty)
    else:
        assert decide(patient) is None


def test_three_sites_by_hand() -> None:
    asked = frozenset("abc")
    start = Attendance(asked, frozenset(), frozenset(), need=3, overdue=False)
    assert decide(start) is None
    assert decide(replace(start, arrived=frozenset("ab"))) is None
    assert decide(replace(start, arrived=asked)) is Event.COMPLETE
    assert decide(replace(start, lost=frozenset("a"))) is Event.SHORT
    assert decide(replace(start, lost=frozenset("a"), need=2)) is None
    assert decide(replace(start, lost=frozenset("a"), need=2, arrived=frozenset("bc"))) is Event.COMPLETE
    assert decide(replace(start, arrived=frozenset("ab"), overdue=True)) is Event.SHORT
    assert decide(replace(start, arrived=frozenset("ab"), overdue=True, need=2)) is Event.COMPLETE
    # An answer that came before its site was lost counts.
    assert decide(replace(start, arrived=asked, lost=frozenset("a"))) is Event.COMPLETE
