"""Names that may be a person's."""

from __future__ import annotations

import pytest

from fedseg.runtime.naming import may_name_a_person, naming_warning


@pytest.mark.parametrize(
    ("file", "subject", "odd"),
    [
        ("sub-01_rec-srr_T2w.nii.gz", None, False),
        ("sub-anna_T2w.nii.gz", None, True),
        ("sub-01_acq-19850312_T2w.nii.gz", None, True),
        ("Mueller_Anna.nii.gz", None, True),
        ("fetus3_t2.nii", None, False),
        ("brain.nii.gz", None, False),
        ("scan-Li.nii", None, False),
        ("haste_cor_M\u00fcller.nii", None, True),
        ("MUELLER^ANNA_7.nii", None, True),
        ("t2.nii", "anna", True),
        ("a sub-01_rec-srr", "01", False),
    ],
)
def test_a_date_or_a_word_without_a_digit_may_name_a_person(file: str, subject: str | None, odd: bool) -> None:
    assert may_name_a_person(file, subject) is odd


def test_the_warning_counts_and_quotes_nothing() -> None:
    assert naming_warning([("scan7.nii", None)]) is None
    one, many = naming_warning([("anna.nii", None)]), naming_warning([("anna.nii", None), ("s7.nii", None)])
    assert one is not None and one.startswith("the scan's name holds a date, or a word that may be a person's name")
    assert many is not None and many.startswith("the names of 1 of 2 scans hold a date")
    assert "anna" not in one + many
