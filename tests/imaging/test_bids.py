from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedseg.errors import DataError
from fedseg.imaging.bids import load_dataset
from fedseg.imaging.folders import entities, niftis_below
from fedseg.imaging.participants import read_participants
from fedseg.imaging.synthesis import synthesize
from fedseg.labels import BRAIN_MASK, FETA, dseg_tsv
from tests.conftest import FIDON_TSV, tiny_head

Make = Callable[..., Path]


def _refused(root: Path, **settings: object) -> str:
    with pytest.raises(DataError) as caught:
        load_dataset(root, **{"scheme": FETA, **settings})  # type: ignore[arg-type]
    return str(caught.value)


def test_reads_cases_labels_table_and_participants(make_bids: Make) -> None:
    participants = "participant_id\tGestational age\tPathology\tsite\tsplit\nsub-01\t24.5\tspina bifida\tghent\ttest\n"
    root = make_bids(2, masks=True, participants=participants + "sub-02\t25+3\tn/a\t\tvalidation\nsub-09\t30\t\t\t\n")
    dataset = load_dataset(root, scheme=FETA)
    first, second = dataset.cases
    assert (first.subject, first.name, first.site, first.pathology) == ("01", "sub-01_rec-srr", "ghent", "spina bifida")
    assert first.gestational_age_weeks == 24.5
    assert second.gestational_age_weeks == pytest.approx(25 + 3 / 7)
    assert (second.site, second.pathology, second.split) == (None, None, "validation")
    assert first.labels == root / "derivatives/manual/sub-01/anat/sub-01_rec-srr_dseg.nii.gz"
    assert first.mask == root / "derivatives/manual/sub-01/anat/sub-01_rec-srr_desc-brain_mask.nii.gz"
    assert dataset.class_map(first) == {0: 0, 1: 3, 2: 4, 3: 5, 4: 1, 5: 2, 6: 6, 7: 7, 8: 3}
    assert list(dataset.subjects("test")) == ["01"]
    assert list(dataset.subjects("train")) == []
    assert list(dataset.subjects()) == ["01", "02"]
    assert dataset.absent == ("09",)


def test_all_train_by_default_and_other_spelling(make_bids: Make) -> None:
    dataset = load_dataset(make_bids(2, participants="participant_id\tgestational_age\n01\t24w3d\n"), scheme=FETA)
    assert {case.split for case in dataset.cases} == {"train"}
    assert dataset.cases[0].gestational_age_weeks == pytest.approx(24 + 3 / 7)


def test_labels_beside_the_scan_with_the_table_at_the_root(make_bids: Make) -> None:
    root = make_bids(1)
    labels = root / "derivatives/manual/sub-01/anat/sub-01_rec-srr_dseg.nii.gz"
    labels.rename(root / "sub-01/anat/sub-01_rec-srr_dseg.nii.gz")
    (root / "derivatives/manual/dseg.tsv").rename(root / "dseg.tsv")
    dataset = load_dataset(root, scheme=FETA)
    assert dataset.cases[0].labels == root / "sub-01/anat/sub-01_rec-srr_dseg.nii.gz"
    assert dataset.cases[0].table is not None
    assert dataset.cases[0].table.source == str(root / "dseg.tsv")


def test_sessions_and_runs_are_one_subject(make_bids: Make, save: Make) -> None:
    root = make_bids(1)
    image, labels = tiny_head()
    for stem in ("ses-a/anat/sub-01_ses-a_run-1", "ses-a/anat/sub-01_ses-a_run-2"):
        save(root / f"sub-01/{stem}_T2w.nii.gz", image)
        save(root / f"derivatives/manual/sub-01/{stem}_desc-expert_dseg.nii.gz", labels)
    dataset = load_dataset(root, scheme=FETA)
    assert [(case.session, case.run) for case in dataset.cases] == [(None, None), ("a", "1"), ("a", "2")]
    assert {key: len(cases) for key, cases in dataset.subjects("train").items()} == {"01": 3}
    assert [case.labels is not None and f"run-{case.run}" in case.labels.name for case in dataset.cases[1:]] == [
        True
    ] * 2


def test_own_results_are_never_truth(make_bids: Make) -> None:
    root = make_bids(1)
    own = root / "derivatives/fedseg/sub-01/anat"
    own.mkdir(parents=True)
    source = root / "derivatives/manual/sub-01/anat/sub-01_rec-srr_dseg.nii.gz"
    shutil.copy(source, own / "sub-01_rec-srr_dseg.nii.gz")
    shutil.copy(source, source.with_name("sub-01_rec-srr_seg-fedseg_dseg.nii.gz"))
    assert load_dataset(root, scheme=FETA).cases[0].labels == source
    shutil.rmtree(root / "derivatives/manual")
    assert "this scan has no labels (_dseg)" in _refused(root)


def test_two_label_maps_for_one_scan(make_bids: Make) -> None:
    root = make_bids(1)
    shutil.copytree(root / "derivatives/manual", root / "derivatives/other")
    assert "2 files could be its dseg: derivatives/manual/sub-01/anat" in _refused(root)
    assert load_dataset(root, scheme=FETA, require_labels=False).cases[0].labels is None


def test_masks(make_bids: Make) -> None:
    root = make_bids(1, masks=True)
    dataset = load_dataset(root, scheme=BRAIN_MASK)
    assert dataset.target(dataset.cases[0]) == dataset.cases[0].mask
    assert dataset.class_map(dataset.cases[0]) is None
    without = load_dataset(make_bids(1, name="other"), scheme=BRAIN_MASK)
    assert without.target(without.cases[0]) == without.cases[0].labels
    assert without.class_map(without.cases[0]) == {0: 0} | dict.fromkeys(range(1, 9), 1)


def test_label_tables_by_name_and_file(make_bids: Make, tmp_path: Path) -> None:
    root = make_bids(1, tsv=None)
    message = _refused(root)
    assert "no dseg.tsv says what the label numbers mean" in message
    assert "--labels feta|fidon|drawem|bounti|FILE" in message
    named = load_dataset(root, scheme=FETA, labels="fidon")
    assert named.class_map(named.cases[0]) == {0: 0, 1: 3, 2: 4, 3: 5, 4: 1, 5: 2, 6: 6, 7: 7, 8: 3}
    (tmp_path / "table.csv").write_text(FIDON_TSV.replace("\t", ","))
    by_file = load_dataset(root, scheme=FETA, labels=str(tmp_path / "table.csv"))
    assert by_file.class_map(by_file.cases[0]) == {0: 0, 1: 3, 2: 4, 3: 5, 4: 1, 5: 2, 6: 6, 7: 7, 8: 3}
    assert "did you mean 'fidon'?" in _refused(root, labels="fidonn")
    assert "there is no such label table" in _refused(root, labels="nowhere/table.tsv")


def test_unknown_name_in_dseg_tsv_names_the_file(make_bids: Make) -> None:
    root = make_bids(1, tsv=FIDON_TSV.replace("cerebellum", "cerebelllum"))
    assert _refused(root).startswith(f"{root}/derivatives/manual/dseg.tsv: label names that are not known")


def test_no_such_folder(tmp_path: Path) -> None:
    assert _refused(tmp_path / "nothing") == f"{tmp_path}/nothing: there is no such folder (check the path)"


def test_folder_without_scan(tmp_path: Path) -> None:
    message = _refused(tmp_path)
    assert "no scan in this folder" in message
    assert "sub-X/anat/sub-X_T2w.nii.gz" in message
    (tmp_path / "file.txt").write_text("")
    assert "this is a file, not a folder or a .csv of pairs" in _refused(tmp_path / "file.txt")


def test_scan_without_labels_says_how_many_more(make_bids: Make) -> None:
    root = make_bids(3, labels=False)
    message = _refused(root)
    assert message.startswith(f"{root}/sub-01/anat/sub-01_rec-srr_T2w.nii.gz: this scan has no labels (_dseg)")
    assert "2 more of these: `fedseg data check` lists all" in message
    assert "no brain mask (_desc-brain_mask) or labels" in _refused(root, scheme=BRAIN_MASK)
    assert len(load_dataset(root, scheme=FETA, require_labels=False).cases) == 3
    assert len(load_dataset(root, scheme=FETA, strict=False).problems) == 3


def test_two_subjects_with_one_id(make_bids: Make) -> None:
    rows = "participant_id\tsite\nsub-01\ta\n01\tb\n"
    assert "two subjects with one id: '01' has two rows" in _refused(make_bids(1, participants=rows))
    rows = "participant_id\nsub-A1\nsub-a1\n"
    assert "two subjects with one id: 'A1' and 'a1'" in _refused(make_bids(1, participants=rows, name="case"))
    sessions = "participant_id\tsession_id\nsub-01\t1\nsub-01\t2\n"
    assert len(load_dataset(make_bids(1, participants=sessions, name="sessions"), scheme=FETA).cases) == 1


def test_file_in_another_subjects_folder(make_bids: Make) -> None:
    root = make_bids(2)
    (root / "sub-01/anat/sub-01_rec-srr_T2w.nii.gz").rename(root / "sub-02/anat/sub-01_rec-srr_T2w.nii.gz")
    assert "named for subject '01' and lies in the folder of '02'" in _refused(root)


def test_thick_stack_is_named_with_tools(make_bids: Make, save: Make) -> None:
    root = make_bids(1)
    stack = np.random.default_rng(0).integers(0, 500, (16, 16, 6)).astype(np.int16)
    save(root / "sub-02/anat/sub-02_run-1_T2w.nii.gz", stack, np.diag([1.1, 1.1, 3.3, 1]))
    message = _refused(root)
    assert message.startswith(f"{root}/sub-02/anat/sub-02_run-1_T2w.nii.gz: this is a raw stack of thick slices")
    assert all(tool in message for tool in ("NeSVoR", "SVRTK", "NiftyMIC", "MIAL SRTK"))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("subject\tage\n01\t3\n", "there is no column participant_id"),
        ("participant_id\tsplit\nsub-01\tholdout\n", "'holdout' is not a split (one of train, validation, test)"),
        (
            "participant_id\tgestational_age\nsub-01\t3 m\n",
            "'01', column gestational_age: this is not a number of weeks",
        ),
        (
            "participant_id\tsession_id\tsplit\nsub-01\t1\ttest\nsub-01\t2\ttrain\n",
            "subject '01' stands in two splits",
        ),
        (
            "participant_id\tsession_id\tsubject_key\nsub-01\t1\tP1\nsub-01\t2\tP2\n",
            "subject '01' stands under two subject_keys (write the same subject_key into all its rows)",
        ),
        (
            "participant_id\tsubject_key\tsplit\nsub-01\tP1\ttest\nsub-02\tP1\ttrain\n",
            "subjects '01' and '02' have one subject_key and stand in two splits (a pregnancy has one)",
        ),
        (
            "participant_id\tsubject_key\nsub-07\t01\n",
            "the subject_key of subject '07' is the id of subject '01', which has none (give that one a subject_key",
        ),
        (
            "participant_id\tsubject_key\nsub-01\tP1\nsub-02\tp1\n",
            "two subject_keys that read alike: those of subjects '01' and '02'",
        ),
    ],
)
def test_bad_participants(make_bids: Make, table: str, message: str) -> None:
    assert message in _refused(make_bids(1, participants=table))


def test_ids_of_one_pregnancy_are_one_unit(make_bids: Make) -> None:
    table = "participant_id\tsubject_key\tsplit\nsub-01\tP1\t\nsub-02\tP1\t\nsub-03\tn/a\t\nsub-04\t04\ttest\n"
    dataset = load_dataset(make_bids(5, participants=table), scheme=FETA)
    names = {unit: [case.subject for case in cases] for unit, cases in dataset.units("train").items()}
    assert names == {"03": ["03"], "05": ["05"], "P1": ["01", "02"]}
    assert list(dataset.units()) == ["03", "04", "05", "P1"]
    assert list(dataset.subjects("train")) == ["01", "02", "03", "05"]
    assert [case.subject_key for case in dataset.cases] == ["P1", "P1", None, "04", None]


def test_a_unit_holds_all_sessions_of_all_its_ids(make_bids: Make, save: Make) -> None:
    root = make_bids(2, participants="participant_id\tsubject_key\nsub-01\tP1\nsub-02\tP1\n")
    image, labels = tiny_head()
    save(root / "sub-01/ses-2/anat/sub-01_ses-2_T2w.nii.gz", image)
    save(root / "sub-01/ses-2/anat/sub-01_ses-2_dseg.nii.gz", labels)
    (root / "dseg.tsv").write_text(FIDON_TSV)
    (cases,) = load_dataset(root, scheme=FETA).units("train").values()
    assert {(case.subject, case.session) for case in cases} == {("01", None), ("01", "2"), ("02", None)}


JANE = "Jane Doe 1988-03-02"


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        ("gestational_age", JANE, "subject '01', column gestational_age: this is not a number of weeks (25.4, 25+3"),
        ("GA", JANE, "subject '01', column ga: this is not a number of weeks"),
        ("split", JANE, "subject '01', column split: this is not a split (one of train"),
        ("split", "a" * 21, "subject '01', column split: this is not a split"),
        ("split\tsubject_key", f"test\t{JANE}\nsub-02\ttrain\t{JANE}", "'01' and '02' have one subject_key"),
        ("subject_key", f"{JANE}\nsub-02\t{JANE.upper()}", "those of subjects '01' and '02'"),
        ("subject_key\tsession_id", f"P\t1\nsub-01\t{JANE}\t2", "subject '01' stands under two subject_keys"),
    ],
)
def test_a_cell_that_may_name_a_person_is_not_quoted(make_bids: Make, header: str, row: str, message: str) -> None:
    root = make_bids(1, participants=f"participant_id\t{header}\nsub-01\t{row}\n")
    said = _refused(root)
    assert message in said
    assert "doe" not in said.lower()
    assert "aaa" not in said
    (told,) = load_dataset(root, scheme=FETA, strict=False).problems
    assert str(told) == said


def test_what_is_wrong_in_a_table_does_not_end_a_survey(make_bids: Make) -> None:
    rows = f"sub-01\t{JANE}\ttest\nsub-01\t30\ttest\nsub-02\t31\t{JANE}\nsub-03\t32\tvalidation\n"
    root = make_bids(3, participants=f"participant_id\tgestational_age\tsplit\n{rows}")
    (root / "sub-03/anat/sub-03_rec-srr_T2w.nii.gz").write_bytes(b"no scan")
    dataset = load_dataset(root, scheme=FETA, strict=False)
    assert [(case.gestational_age_weeks, case.split) for case in dataset.cases] == [
        *((None, "test"), (31.0, "train"), (32.0, "validation"))
    ]
    assert [each.what for each in dataset.problems] == [
        "subject '01', column gestational_age: this is not a number of weeks",
        "two subjects with one id: '01' has two rows",
        "subject '02', column split: this is not a split",
        "this is not a readable NIfTI file",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"sub-01\t{JANE}\n".encode() * 2, "there is no column participant_id"),
        (b"participant_id\tPathology\nsub-01\tL\xe4sion\n", "the table cannot be read as UTF-8 text"),
    ],
)
def test_a_table_that_cannot_be_used_does_not_end_a_survey(make_bids: Make, content: bytes, message: str) -> None:
    root = make_bids(2)
    (root / "participants.tsv").write_bytes(content)
    dataset = load_dataset(root, scheme=FETA, strict=False)
    assert [each.what for each in dataset.problems] == [message]
    assert len(dataset.cases) == 2


def test_table_that_is_not_text(make_bids: Make) -> None:
    root = make_bids(1)
    (root / "participants.tsv").write_bytes(b"participant_id\tPathology\nsub-01\tL\xe4sion\n")
    assert "cannot be read as UTF-8 text" in _refused(root)


class TestPairs:
    """The CSV of pairs."""

    @pytest.fixture
    def folder(self, tmp_path: Path, save: Make) -> Path:
        image, labels = tiny_head()
        for name in ("anna", "berta"):
            save(tmp_path / name / "image.nii.gz", image)
            save(tmp_path / name / "label.nii.gz", labels)
        (tmp_path / "dseg.tsv").write_text(FIDON_TSV)
        return tmp_path

    def write(self, folder: Path, text: str) -> Path:
        (folder / "pairs.csv").write_text(text)
        return folder / "pairs.csv"

    def test_folders_name_subjects(self, folder: Path) -> None:
        rows = "image,label\nanna/image.nii.gz,anna/label.nii.gz\nberta/image.nii.gz,berta/label.nii.gz\n"
        dataset = load_dataset(self.write(folder, rows), scheme=FETA)
        assert [case.subject for case in dataset.cases] == ["anna", "berta"]
        assert dataset.root == folder
        assert dataset.class_map(dataset.cases[0]) is not None

    def test_columns(self, folder: Path) -> None:
        rows = "image,label,subject,session,run,site,Gestational age,Pathology,split\n"
        rows += "anna/image.nii.gz,anna/label.nii.gz,7,1,1,ghent,30,none,test\n"
        rows += "berta/image.nii.gz,berta/label.nii.gz,7,2,1,ghent,31.5,spina bifida,test\n"
        dataset = load_dataset(self.write(folder, rows), scheme=FETA)
        assert len(dataset.subjects("test")["7"]) == 2
        second = dataset.cases[1]
        assert (second.session, second.site, second.gestational_age_weeks) == ("2", "ghent", 31.5)
        assert second.pathology == "spina bifida"

    def test_twins(self, folder: Path) -> None:
        rows = (
            "image,label,subject_key\nanna/image.nii.gz,anna/label.nii.gz,P\nberta/image.nii.gz,berta/label.nii.gz,P\n"
        )
        dataset = load_dataset(self.write(folder, rows), scheme=FETA)
        assert [case.subject for case in dataset.units("train")["P"]] == ["anna", "berta"]

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ("image,label\n", "no scan in this table"),
            ("scan,label\na,b\n", "row 1 below the header has no image"),
            ("image,label\nclara/image.nii.gz,\n", "there is no such file: clara/image.nii.gz"),
            ("image,label\nanna/image.nii.gz,\n", "this scan has no labels"),
            ("image\nanna/image.nii.gz\nanna/image.nii.gz\n", "two rows name one image"),
            (
                "image,subject,split\nanna/image.nii.gz,1,train\nberta/image.nii.gz,1,test\n",
                "subject '1' stands in two splits",
            ),
            (
                "image,subject,subject_key,split\nanna/image.nii.gz,1,P,train\nberta/image.nii.gz,2,P,test\n",
                "subjects '1' and '2' have one subject_key and stand in two splits",
            ),
            (
                "image,subject,subject_key\nanna/image.nii.gz,1,2\nberta/image.nii.gz,2,\n",
                "the subject_key of subject '1' is the id of subject '2', which has none",
            ),
        ],
    )
    def test_refuses(self, folder: Path, rows: str, message: str) -> None:
        assert message in _refused(self.write(folder, rows))

    def test_cells_that_are_no_file_are_not_quoted_and_do_not_end_a_survey(self, folder: Path) -> None:
        rows = f"{JANE},anna/label.nii.gz,,\n,x,,\nanna/image.nii.gz,{JANE},,twenty\nberta/image.nii.gz,,a.nii,31\n"
        pairs = self.write(folder, f"image,label,mask,ga\n{rows}")
        said = _refused(pairs)
        assert "row 1 below the header, column image: there is no such file (paths are relative" in said
        assert "Doe" not in said
        dataset = load_dataset(pairs, scheme=FETA, strict=False)
        assert [(case.subject, case.gestational_age_weeks) for case in dataset.cases] == [("anna", None), ("berta", 31)]
        assert [each.what for each in dataset.problems] == [
            "row 1 below the header, column image: there is no such file",
            "row 2 below the header has no image",
            "row 2 below the header, column label: there is no such file",
            "row 3 below the header, column label: there is no such file",
            "subject 'anna', column ga: this is not a number of weeks",
            "row 4 below the header, column mask: there is no such file: a.nii",
            "this scan has no labels (_dseg)",
            "this scan has no labels (_dseg)",
        ]

    def test_a_survey_of_rows_none_of_which_can_be_used(self, folder: Path) -> None:
        dataset = load_dataset(self.write(folder, "scan\na\n"), scheme=FETA, strict=False)
        assert [each.what for each in dataset.problems] == ["row 1 below the header has no image"]
        assert dataset.cases == ()

    def test_two_scans_that_only_a_name_makes_one_subject(self, folder: Path) -> None:
        (folder / "other").mkdir()
        shutil.copytree(folder / "anna", folder / "other/anna")
        rows = "image,label\nanna/image.nii.gz,anna/label.nii.gz\nother/anna/image.nii.gz,other/anna/label.nii.gz\n"
        message = _refused(self.write(folder, rows))
        assert "two subjects with one id: two scans would both be subject 'anna'" in message
        assert "add a column subject" in message


def test_entities() -> None:
    assert entities(Path("x/sub-01_run-1_T2w_desc-brain_mask.nii.gz")) == {"sub": "01", "run": "1", "desc": "brain"}


def test_a_session_has_its_own_age_and_no_other_sessions(make_bids: Make, save: Make) -> None:
    rows = "sub-01\tses-1\t22\ttest\nsub-01\t2\t34\ttest\nsub-02\tn/a\t25\t\n"
    root = make_bids(0, tsv=None, participants=f"participant_id\tsession_id\tgestational_age\tsplit\n{rows}")
    for subject, session in (("01", "1"), ("01", "2"), ("01", "3"), ("02", "1")):
        stem = f"sub-{subject}/ses-{session}/anat/sub-{subject}_ses-{session}"
        for suffix, data in zip(("T2w", "dseg"), tiny_head(), strict=True):
            save(root / f"{stem}_{suffix}.nii.gz", data)
    (root / "dseg.tsv").write_text(FIDON_TSV)
    cases = load_dataset(root, scheme=FETA).cases
    assert [(case.subject, case.session, case.gestational_age_weeks) for case in cases] == [
        *(("01", "1", 22), ("01", "2", 34), ("01", "3", None), ("02", "1", 25))
    ]
    assert [case.split for case in cases] == ["test", "test", "test", "train"]


def test_a_sessions_table_lies_over_the_participants(make_bids: Make) -> None:
    root = make_bids(1, participants="participant_id\tpathology\tga\tsplit\nsub-01\tnone\t30\ttest\n")
    table = root / "sub-01/sub-01_sessions.tsv"
    table.write_text("session_id\tgestational_age\nses-1\t22\nses-2\tn/a\n")
    people = read_participants(root / "participants.tsv")
    known = {session: people.of("01", session) for session in ("1", "2", "3", None)}
    assert {session: each.gestational_age_weeks for session, each in known.items()} == {
        **{"1": 22, "2": None, "3": 30, None: 30}
    }
    assert {(each.pathology, each.split) for each in known.values()} == {("none", "test")}
    table.write_text("session_id\tsplit\nses-1\ttrain\n")
    assert "subject '01' stands in two splits" in _refused(root)
    table.write_text("session_id\tga\n1\t22\nses-1\t23\n")
    assert "subject '01' has two rows for one session (remove one)" in _refused(root)
    table.write_text("session\tga\n1\t22\n")
    assert "there is no column session_id" in _refused(root)


def test_no_pathology_is_not_an_unknown_one(make_bids: Make) -> None:
    rows = "participant_id\tpathology\tgestational_age\nsub-01\tNone\tnone\nsub-02\tn/a\t24\n"
    cases = load_dataset(make_bids(2, participants=rows), scheme=FETA).cases
    assert [(case.pathology, case.gestational_age_weeks) for case in cases] == [("None", None), (None, 24)]


def _two_scans(make_bids: Make, save: Make) -> Path:
    root = make_bids(0, tsv=None)
    for stem in ("sub-01", "sub-01_rec-srr"):
        save(root / f"sub-01/anat/{stem}_T2w.nii.gz", tiny_head()[0])
    save(root / "sub-01/anat/sub-01_rec-srr_desc-expert_dseg.nii.gz", tiny_head()[1])
    (root / "dseg.tsv").write_text(FIDON_TSV)
    return root


def test_labels_of_one_scan_are_not_given_to_another(make_bids: Make, save: Make) -> None:
    root = _two_scans(make_bids, save)
    plain, rec = load_dataset(root, scheme=FETA, require_labels=False).cases
    assert plain.labels is None and rec.labels is not None
    (root / "sub-01/anat/sub-01_rec-srr_T2w.nii.gz").unlink()
    (only,) = load_dataset(root, scheme=FETA).cases
    assert only.labels is not None


def test_labels_of_another_reconstruction_are_nobodys(make_bids: Make, save: Make) -> None:
    root = make_bids(1)
    labels = root / "derivatives/manual/sub-01/anat/sub-01_rec-srr_dseg.nii.gz"
    labels.rename(labels.with_name("sub-01_rec-other_dseg.nii.gz"))
    assert "this scan has no labels" in _refused(root)


def test_own_results_are_known_by_their_description_wherever_they_lie(make_bids: Make) -> None:
    root = make_bids(1)
    own = root / "derivatives/segmented"
    shutil.copytree(root / "derivatives/manual", own)
    dseg = own / "sub-01/anat/sub-01_rec-srr_dseg.nii.gz"
    dseg.rename(dseg.with_name("sub-01_rec-srr_desc-brain_mask.nii.gz"))
    about = own / "dataset_description.json"
    about.write_text(json.dumps({"GeneratedBy": [{"Name": "other"}]}))
    (case,) = load_dataset(root, scheme=BRAIN_MASK).cases
    assert case.mask is not None
    about.write_text(json.dumps({"GeneratedBy": [{"Name": "other"}, {"Name": "fedseg"}]}))
    dataset = load_dataset(root, scheme=BRAIN_MASK)
    assert dataset.cases[0].mask is None
    assert dataset.target(dataset.cases[0]) == root / "derivatives/manual/sub-01/anat/sub-01_rec-srr_dseg.nii.gz"


def test_a_made_up_data_set_is_no_result(tmp_path: Path) -> None:
    root = tmp_path / "made-up"
    synthesize(root, subjects=1, seed=1, site_style=0, spacing_mm=2.0)
    (case,) = load_dataset(root, scheme=FETA).cases
    assert case.labels is not None and case.table is not None


@pytest.mark.parametrize("where", [".", "derivatives"])
def test_a_table_of_our_results_says_nothing_of_a_sites_labels(make_bids: Make, where: str) -> None:
    root = make_bids(1, tsv=None)
    (root / "dseg.tsv").write_text(FIDON_TSV)
    before = load_dataset(root, scheme=FETA)
    (root / where / "dataset_description.json").write_text(json.dumps({"GeneratedBy": [{"Name": "fedseg"}]}))
    (root / where / "dseg.tsv").write_text(dseg_tsv(FETA))
    (root / "derivatives/manual/dataset_description.json").write_text("{}")
    if where == ".":
        assert "no dseg.tsv says what the label numbers mean" in _refused(root)
        return
    after = load_dataset(root, scheme=FETA)
    assert after.class_map(after.cases[0]) == before.class_map(before.cases[0])


def test_hidden_files_raw_data_and_links(make_bids: Make, tmp_path: Path) -> None:
    root = make_bids(1)
    image = root / "sub-01/anat/sub-01_rec-srr_T2w.nii.gz"
    labels = root / "derivatives/manual/sub-01/anat/sub-01_rec-srr_dseg.nii.gz"
    for path in (image, labels):
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7")
    shutil.copytree(root / "sub-01", root / "sourcedata/sub-01")
    shutil.copytree(root / "sub-01", tmp_path / "store/sub-02")
    (tmp_path / "store/sub-02/anat/sub-01_rec-srr_T2w.nii.gz").rename(
        tmp_path / "store/sub-02/anat/sub-02_rec-srr_T2w.nii.gz"
    )
    (root / "sub-02").symlink_to(tmp_path / "store/sub-02")
    (root / "sub-02/anat/loop").symlink_to(tmp_path / "store")
    expected = [image, root / "sub-02/anat/sub-02_rec-srr_T2w.nii.gz"]
    dataset = load_dataset(root, scheme=FETA, require_labels=False)
    assert [case.image for case in dataset.cases] == expected
    assert dataset.cases[0].labels == labels
    assert niftis_below(root, "T2w") == expected
