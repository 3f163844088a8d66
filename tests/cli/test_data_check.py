"""`fedseg data check` as a person runs it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import Command
from tests.conftest import tiny_head

Make = Callable[..., Path]


def test_without_a_plan_the_task_is_tissues(fedseg: Command, make_bids: Make) -> None:
    root = make_bids(2)
    answer = fedseg("data", "check", root)
    assert answer.code == 0
    assert "These scans would do for the task feta (2 train, 0 validation, 0 test subjects" in answer.out
    assert f"Next: look at the scans: fedseg data check {root} --task feta --picture sheet.html" in answer.out


def test_the_next_step_reads_label_numbers_as_this_one_did(fedseg: Command, make_bids: Make) -> None:
    root = make_bids(2, tsv=None)
    answer = fedseg("data", "check", root, "--labels", "fidon")
    assert (
        f"Next: look at the scans: fedseg data check {root} --labels fidon --task feta --picture sheet.html"
        in answer.out
    )
    answer = fedseg("data", "check", root, "--labels", "fidon", "--picture", root.parent / "sheet.html")
    assert f"Next: fedseg client join INVITE --data {root} --labels fidon --state STATE" in answer.out


def test_the_task_can_be_named(fedseg: Command, make_bids: Make, plan_file: Path) -> None:
    root = make_bids(1, masks=True)
    assert "for the task brain_mask" in fedseg("data", "check", root, "--task", "brain_mask").out
    assert fedseg("data", "check", root, "--task", "feta", "--plan", plan_file).code == 0
    answer = fedseg("data", "check", root, "--task", "brain_mask", "--plan", plan_file)
    answer.says(2, "the plan's task is feta, not brain_mask", str(plan_file), "leave out --task")
    fedseg("data", "check", root, "--task", "tissue").says(1, "there is no label scheme 'tissue'")


def test_what_many_scans_share_is_one_row(fedseg: Command, make_bids: Make) -> None:
    answer = fedseg("data", "check", make_bids(5))
    rows = [line for line in answer.out.splitlines() if "the labelled volume is not that of a fetal brain" in line]
    assert len(rows) == 1
    assert "5 scans" in rows[0]
    assert "sub-01_rec-srr: 1." in answer.out
    assert "and 2 more" in answer.out
    assert "sub-05" not in answer.out


def test_the_document(fedseg: Command, make_bids: Make) -> None:
    root = make_bids(2, participants="participant_id\tgestational_age\nsub-01\t28\nsub-02\t180\n")
    document = json.loads(fedseg("data", "check", root, "--json").out)
    assert set(document) == {"usable", "task", "subjects", "counts", "findings"}
    assert (document["usable"], document["task"]) == (True, "feta")
    assert document["counts"]["warning/age"] == 1
    (age,) = [each for each in document["findings"] if each["kind"] == "age"]
    assert set(age) == {"kind", "severity", "what", "hint", "detail", "subject", "scan", "file"}
    assert (age["subject"], age["detail"]) == ("02", "in days")
    assert "180" not in json.dumps(document)
    told = json.dumps(document["counts"])
    assert "sub-" not in told
    assert str(root) not in told


def test_a_fault_of_the_table_is_in_the_document_too(fedseg: Command, make_bids: Make) -> None:
    root = make_bids(1, participants="participant_id\tsplit\nsub-01\ttrain\nsub-01\ttest\n")
    answer = fedseg("data", "check", root, "--json")
    assert answer.code == 1
    document = json.loads(answer.out)
    assert document["usable"] is False
    assert document["counts"]["error/files"] == 1
    assert document["findings"][0]["what"] == "two subjects with one id: '01' has two rows"


def test_a_folder_without_scans(fedseg: Command, tmp_path: Path) -> None:
    fedseg("data", "check", tmp_path).says(1, "no scan in this folder", str(tmp_path))
    document = json.loads(fedseg("data", "check", tmp_path, "--json").out)
    assert (document["usable"], document["findings"][0]["what"]) == (False, "no scan in this folder")


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ("sub-01\ta\ttrain\tk\nsub-01\tb\ttest\tk\n", "subject '01' stands in two splits"),
        ("sub-01\t\ttrain\tk\nsub-02\t\ttest\tk\n", "'01' and '02' have one subject_key and stand in two splits"),
    ],
)
def test_one_subject_in_two_splits(rows: str, what: str, fedseg: Command, make_bids: Make) -> None:
    root = make_bids(2, participants=f"participant_id\tsession_id\tsplit\tsubject_key\n{rows}")
    answer = fedseg("data", "check", root)
    assert answer.code == 1
    assert what in _column(answer.out)
    assert "participants.tsv" in answer.out


def test_a_shifted_column_is_said_beside_all_else_and_not_quoted(fedseg: Command, make_bids: Make) -> None:
    root = make_bids(2, participants="participant_id\tgestational_age\nsub-01\tJane Doe 1988-03-02\nsub-02\t28\n")
    (root / "sub-02/anat/sub-02_rec-srr_T2w.nii.gz").write_bytes(b"no scan")
    table, document = fedseg("data", "check", root), fedseg("data", "check", root, "--json")
    for answer, said in ((table, _column(table.out)), (document, document.out)):
        assert answer.code == 1
        assert "subject '01', column gestational_age: this is not a number of weeks" in said
        assert "this is not a readable NIfTI file" in said
        assert "Doe" not in answer.out + answer.err
        assert "1988" not in answer.out + answer.err


def _column(shown: str) -> str:
    return " ".join(line.split("│")[2].strip() for line in shown.splitlines() if "│" in line)


def test_the_plan_says_whether_bias_fields_are_taken_out(
    fedseg: Command, make_bids: Make, plan_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedseg.cli.data import require_usable
    from fedseg.errors import DataError
    from fedseg.imaging import transforms
    from fedseg.imaging.bids import load_dataset
    from fedseg.labels import FETA
    from fedseg.plan.study import parse_plan

    def refuse(*_: object) -> None:
        raise DataError("no field can be fitted")

    monkeypatch.setattr(transforms, "without_bias", refuse)
    root = make_bids(1)
    assert fedseg("data", "check", root, "--plan", plan_file).code == 0
    plan_file.write_text(plan_file.read_text().replace("image: {", "image: {n4: true, "))
    answer = fedseg("data", "check", root, "--plan", plan_file)
    assert (answer.code, "no field can be fitted" in answer.out) == (1, True)
    with pytest.raises(DataError, match="no field can be fitted"):
        require_usable(load_dataset(root, scheme=FETA), parse_plan(plan_file.read_text(), "plan").content)


def test_the_contact_sheet(fedseg: Command, make_bids: Make, tmp_path: Path) -> None:
    root, sheet = make_bids(2), tmp_path / "sheet.html"
    (root / "sub-02/anat/sub-02_rec-srr_T2w.nii.gz").write_bytes(b"no scan")
    answer = fedseg("data", "check", root, "--picture", sheet)
    assert answer.code == 1
    assert f"Contact sheet: {sheet} (patient data: readable by you only; keep it here)" in answer.out
    assert "Next: mend what is wrong, or leave those scans out, and check again" in answer.out
    assert sheet.stat().st_mode & 0o777 == 0o600
    page = sheet.read_text()
    assert page.count("data:image/png;base64,") == 1
    assert page.index("sub-02_rec-srr") < page.index("sub-01_rec-srr")
    answer = fedseg("data", "check", root, "--picture", tmp_path / "sheet.jpg")
    answer.says(2, "a contact sheet is a page", str(tmp_path / "sheet.jpg"), "ends in .html")


def test_stacks_are_pointed_to_the_other_task(fedseg: Command, make_bids: Make, save: Make) -> None:
    root = make_bids(1, masks=True)
    for path in root.rglob("*.nii.gz"):
        data = tiny_head(seed=1)[0 if "T2w" in path.name else 1]
        save(path, data, np.diag([0.8, 0.8, 4.0, 1.0]))
    answer = fedseg("data", "check", root)
    assert answer.code == 1
    assert f"check them for brain masks: fedseg data check {root} --task brain_mask" in answer.out
    assert fedseg("data", "check", root, "--task", "brain_mask").code == 0


def test_joining_stops_at_an_error_and_names_it(fedseg: Command, make_bids: Make) -> None:
    from fedseg.cli.data import require_usable
    from fedseg.errors import DataError
    from fedseg.imaging.bids import load_dataset
    from fedseg.labels import FETA
    from fedseg.plan.study import parse_plan
    from tests.cli.conftest import PLAN

    plan = parse_plan(PLAN, "plan").content
    root = make_bids(3)
    require_usable(load_dataset(root, scheme=FETA), plan)
    for number in (1, 2):
        (root / f"sub-0{number}/anat/sub-0{number}_rec-srr_T2w.nii.gz").write_bytes(b"no scan")
    with pytest.raises(DataError, match="not a readable NIfTI file") as caught:
        require_usable(load_dataset(root, scheme=FETA, strict=False), plan)
    assert "more: fedseg data check" in caught.value.what
