from __future__ import annotations

import pytest

from fedseg.errors import BudgetError
from fedseg.privacy.accounting import epsilon
from fedseg.privacy.events import Event
from fedseg.privacy.outlook import Outlook, look_ahead
from tests.privacy.charges import charge, key

STEP = Event(4.0, 1.0, 5)
DELTA = 1e-5


def frame(*names: str) -> list[tuple[str, ...]]:
    """A link for each text: its letters are the keys of one unit, the first the one that is charged."""
    return [tuple(key(letter) for letter in name) for name in names]


def cost(steps: int, times: int = 1) -> float:
    return epsilon([Event(4.0 / times, 1.0, steps)], DELTA)


def test_the_most_spent_subject_of_the_frame_counts_and_no_other() -> None:
    charges = [charge(1, "AB"), charge(2, "A", study="other"), charge(3, "Z", study="other"), charge(4, "Z", study="x")]
    found = look_ahead(charges, (), frame("A", "B"), [STEP], (None, DELTA))
    assert (found.spent, found.after, found.fits) == (cost(10), cost(15), True)
    assert look_ahead(charges, (), frame("B"), [STEP], (None, DELTA)).after == cost(10)
    assert look_ahead(charges, (), frame("Y"), [STEP], (None, DELTA)).spent == 0.0


def test_up_to_the_last_bit_fits_and_no_further() -> None:
    charges = [charge(1, "A")]
    for limit, fits in ((cost(10), True), (cost(10) - 1e-9, False)):
        found = look_ahead(charges, (), frame("A"), [STEP], (limit, DELTA))
        assert (found.fits, found.several_ids) == (fits, False)


def test_a_subject_that_the_hospital_knows_under_another_id_has_spent_what_that_has() -> None:
    found = look_ahead([charge(1, "A")], frame("AB"), frame("B"), [STEP], (cost(5), DELTA))
    assert (found.spent, found.after) == (cost(5), cost(10))
    assert found.several_ids


def test_a_subject_twice_in_the_frame_pays_for_both() -> None:
    found = look_ahead([], (), frame("AS", "BS", "C"), [STEP], (cost(5), DELTA))
    assert found.after == cost(5, times=2)
    assert found.several_ids
    with pytest.raises(BudgetError, match="it would fit if no subject were known under several ids") as caught:
        found.require("this study's", "call")
    assert "one subject_key" in (caught.value.hint or "")


def test_a_refusal_says_what_is_spent_what_it_would_come_to_and_what_is_allowed() -> None:
    Outlook(1.0, 20.0, DELTA, 20.0).require("ours", "call")
    Outlook(1.0, 20.0, DELTA, None).require("ours", "call")
    with pytest.raises(BudgetError) as caught:
        Outlook(1.5, 20.0001, DELTA, 20.0).require("this hospital's lifetime", "call the coordinator")
    assert caught.value.what == (
        "the whole study does not fit this hospital's lifetime privacy budget: a subject here has spent epsilon 1.500, "
        "and all rounds to come could take one to 20.001, of 20 allowed (at delta 1e-05)"
    )
    assert caught.value.hint == "nothing was charged, computed or sent; call the coordinator"


def test_an_empty_frame_costs_nothing() -> None:
    found = look_ahead([charge(1, "A")], (), [], [STEP], (0.0, DELTA))
    assert (found.spent, found.after, found.fits) == (0.0, 0.0, True)
