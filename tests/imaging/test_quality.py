"""The whole data check over data sets: every trap, by what a person reads."""

from __future__ import annotations

import gzip
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from fedseg.errors import DataError
from fedseg.imaging import transforms
from fedseg.imaging.bids import load_dataset
from fedseg.imaging.label_tables import TABLES
from fedseg.imaging.quality.check import check
from fedseg.imaging.quality.finding import Finding, counts
from fedseg.imaging.quality.identifying import check_columns
from fedseg.labels import BRAIN_MASK, FETA, LabelScheme
from tests.conftest import tiny_head

nib: Any = nibabel
Make = Callable[..., Path]
SHAPE = (44, 52, 40)
AFFINE = np.diag([1.4, 1.4, 1.4, 1.0])
IMAGE = "sub-{0:02d}/anat/sub-{0:02d}_rec-srr_T2w.nii.gz"
LABELS = "derivatives/manual/sub-{0:02d}/anat/sub-{0:02d}_rec-srr_dseg.nii.gz"


def head(seed: int = 1) -> tuple[NDArray[Any], NDArray[Any]]:
    """A head of 76 mL, with shades of its own."""
    image, labels = tiny_head(SHAPE, seed=seed)
    shades = ndimage.zoom(
        np.random.default_rng(seed).uniform(0.8, 1.2, (4, 4, 4)), [size / 4 for size in SHAPE], order=1
    )
    labels[20 + seed % 9, 26, 20] = 6
    return (image * shades).astype(np.float32), labels


class Site:
    """A BIDS folder of heads that have nothing wrong, to be spoiled."""

    def __init__(self, root: Path, save: Make, subjects: int) -> None:
        self.root, self._save = root, save
        root.mkdir()
        for number in range(1, subjects + 1):
            image, labels = head(number)
            self.image(number, image)
            self.labels(number, labels)
        self.table("fidon")
        self.people("".join(f"sub-{number:02d}\t28\ttrain\n" for number in range(1, subjects + 1)))

    def image(self, number: int, data: Any, affine: Any = AFFINE, **settings: Any) -> Path:
        return self._save(self.root / IMAGE.format(number), data, affine, **settings)

    def labels(self, number: int, data: Any, affine: Any = AFFINE, **settings: Any) -> Path:
        return self._save(self.root / LABELS.format(number), data, affine, **settings)

    def table(self, name: str) -> None:
        rows = "".join(f"{index}\t{each}\n" for index, each in TABLES[name].items())
        (self.root / "derivatives/manual/dseg.tsv").write_text(f"index\tname\n{rows}")

    def people(self, rows: str, header: str = "participant_id\tgestational_age\tsplit") -> None:
        (self.root / "participants.tsv").write_text(f"{header}\n{rows}")

    def header(self, number: int, change: Callable[[Any], None]) -> None:
        """Change the header of a scan on disk."""
        path = self.root / IMAGE.format(number)
        image = nib.load(path)
        image = nib.Nifti1Image(np.asarray(image.dataobj), None, image.header)
        change(image.header)
        path.write_bytes(gzip.compress(image.to_bytes(), 1, mtime=0))

    def found(self, scheme: LabelScheme = FETA) -> list[Finding]:
        return check(load_dataset(self.root, scheme=scheme, strict=False), scheme=scheme, spacing_mm=1.6)

    def one(self, kind: str, scheme: LabelScheme = FETA) -> Finding:
        """The only finding there is, which must be of this kind."""
        found = self.found(scheme)
        assert [each.kind for each in found] == [kind], found
        return found[0]

    def of(self, kind: str, scheme: LabelScheme = FETA) -> Finding:
        """The first finding of this kind."""
        found = {each.kind: each for each in reversed(self.found(scheme))}
        assert kind in found, found
        return found[kind]


@pytest.fixture
def site(tmp_path: Path, save: Make) -> Callable[..., Site]:
    return lambda subjects=1: Site(tmp_path / "site", save, subjects)


MakeSite = Callable[..., Site]


def test_good_data_has_no_findings(site: MakeSite) -> None:
    assert site(2).found() == []


def test_good_masks_have_no_findings(site: MakeSite) -> None:
    assert site().found(BRAIN_MASK) == []


def test_every_fault_is_listed_and_none_stops_the_rest(site: MakeSite) -> None:
    bad = site(6)
    image, labels = head()
    path = bad.root / IMAGE.format(1)
    path.write_bytes(path.read_bytes()[:3000])
    bad.image(2, np.where(image > 1000, np.nan, image))
    bad.labels(3, labels[:, :, :-2])
    both = labels.copy()
    both[22, 26, 20] = 77
    bad.labels(4, both, np.diag([-1.4, 1.4, 1.4, 1]))
    bad.labels(5, np.zeros_like(labels))
    (bad.root / LABELS.format(6)).unlink()
    found = [(each.subject, each.kind, each.what, each.hint) for each in bad.found() if each.severity == "error"]
    text = {(subject, kind): f"{what}: {hint}" for subject, kind, what, hint in found}
    assert text.keys() == {
        *(("01", "unreadable"), ("02", "unreadable"), ("03", "other-grid"), ("04", "other-grid")),
        *(("04", "label-values"), ("05", "label-values"), ("06", "files")),
    }
    assert "cannot be read to the end: the file is cut short or damaged" in text["01", "unreadable"]
    assert "NaN or infinite: export the scan again, or put a number there (0)" in text["02", "unreadable"]
    assert "differ in shape" in text["03", "other-grid"]
    assert "differ in affine" in text["04", "other-grid"]
    assert "label index 77 is not in the label table" in text["04", "label-values"]
    assert "empty" in text["05", "label-values"]
    assert "no labels" in text["06", "files"]


def test_fault_of_the_table_is_said_of_each_scan_in_the_same_words(site: MakeSite) -> None:
    bad = site(2)
    table = bad.root / "derivatives/manual/dseg.tsv"
    table.write_text(table.read_text().replace("brainstem", "brainsteem"))
    found = bad.found()
    assert len({each.what for each in found}) == 1
    assert {each.kind for each in found} == {"label-table"}
    assert "brainsteem" in found[0].what


def _far_island(labels: NDArray[Any]) -> NDArray[Any]:
    labels[:4, :4, :4] = 1
    labels[0] = labels[:, 0] = labels[:, :, 0] = 0
    labels[1:4, 1:6, 1:8] = 1
    return labels


LABEL_FAULTS: dict[str, tuple[Callable[[NDArray[Any]], Any], str, str, str]] = {
    "missing": (lambda it: np.where(it == 7, 0, it), "missing-tissue", "no voxel of brainstem", "some pathologies"),
    "little": (
        lambda it: np.where((it == 3) & (np.arange(it.size).reshape(it.shape) % 29 > 0), 1, it),
        *("tissue-share", "implausibly little cerebellum", "is the label table right?"),
    ),
    "island": (_far_island, "pieces", "labelled pieces apart from the brain", "remove what is not brain"),
    "edge": (lambda it: np.where(np.indices(it.shape)[2] == 0, 1, it), "edge", "edge of the field of view", "cut off"),
    "everything": (lambda it: np.where(it == 0, 1, it), "everything", "labels cover nearly everything", "nothing is"),
    "probabilities": (
        lambda it: (it / 8).astype(np.float32),
        *("labels-unreadable", "label values must be whole numbers", "threshold a mask at 0.5"),
    ),
    "interpolated": (
        lambda it: (it * 0.9).astype(np.float32),
        *("labels-unreadable", "label values must be whole numbers", "nearest neighbour"),
    ),
    "NaN": (
        lambda it: np.where(it == 0, np.nan, it).astype(np.float32),
        *("labels-unreadable", "label values must be whole numbers", "write 0 where nothing is labelled"),
    ),
    "negative": (lambda it: it.astype(np.int16) - 1, "labels-unreadable", "label values run from -1 to", ""),
    "shifted": (lambda it: np.roll(it, 14, axis=1), "outside", "labels lie on the background", "shifted?"),
    "upside down": (lambda it: it[:, ::-1, ::-1], "upright", "the brain is not upright", "header's axes are wrong"),
}


@pytest.mark.parametrize("fault", LABEL_FAULTS)
def test_labels(fault: str, site: MakeSite) -> None:
    spoil, kind, what, hint = LABEL_FAULTS[fault]
    bad = site()
    path = bad.labels(1, spoil(head()[1]))
    found = bad.of(kind)
    assert what in found.what
    assert hint in found.hint
    assert (found.subject, found.scan, found.file) == ("01", "sub-01_rec-srr", str(path))


def test_an_island_is_given_in_millilitres_and_millimetres(site: MakeSite) -> None:
    bad = site()
    bad.labels(1, _far_island(head()[1]))
    assert bad.of("pieces").detail == "1 of them, 0.29 mL, up to 25 mm away"


def test_volume_in_the_wrong_unit(site: MakeSite) -> None:
    bad = site()
    half = np.diag([0.7, 0.7, 0.7, 1])
    image, labels = head()
    bad.image(1, image, half)
    bad.labels(1, labels, half)
    found = bad.one("volume")
    assert found.detail == "9.44 mL"
    assert "15 to 700 mL: is the voxel size right?" in found.hint


def test_labels_outside_the_foreground(site: MakeSite) -> None:
    bad = site()
    image, labels = (np.pad(part, ((0, 0), (0, 0), (0, 40))) for part in head())
    bad.image(1, image)
    bad.labels(1, np.maximum(labels, np.roll(labels, 38, axis=2)))
    found = bad.of("crop")
    assert found.what == "labels lie outside the foreground"
    assert found.detail == "only 50% of the labels lie in the foreground"


def test_scan_and_labels_exchanged(site: MakeSite) -> None:
    bad = site()
    image, labels = head()
    bad.image(1, labels)
    bad.labels(1, image.astype(np.int16))
    assert "a label map under the name of the scan?" in bad.of("few-values").hint
    assert "the scan under the name of the label map?" in bad.of("many-labels").hint
    assert "and " in bad.of("label-values").what
    assert len(bad.of("label-values").what) < 200


def test_named_sides_must_lie_on_their_sides(site: MakeSite) -> None:
    bad = site()
    bad.table("bounti")
    labels = np.array([0, 5, 7, 11, 1, 3, 14, 10, 5], np.uint8)[head()[1]]
    right = np.indices(SHAPE)[0] >= SHAPE[0] // 2
    paired = right & np.isin(labels, (1, 3, 5, 7, 11, 14))
    bad.labels(1, labels + paired)
    assert bad.found() == []
    bad.labels(1, (labels + paired)[::-1])
    found = bad.one("sides")
    assert found.what == "labels named left lie on the right"


def test_contrast_that_is_not_t2(site: MakeSite) -> None:
    bad = site()
    image, _ = head()
    bad.image(1, np.where(image > 0, 2300 - image, 0).astype(np.float32))
    assert bad.one("contrast").what == "fluid is not brighter than the cortex"


@pytest.mark.parametrize(
    ("spoil", "kind", "severity", "text"),
    [
        (lambda it: it + 5, "background", "note", "5"),
        (lambda it: np.where(it == 0, np.float32(1e-8), it), "background", "note", "1e-08"),
        (lambda it: it - 1000, "background", "note", "-1e+03"),
        (lambda it: np.where(it > 0, (it - 900) / 400, 0), "background-inside", "warning", "background 0"),
        (lambda it: it + np.abs(np.random.default_rng(0).normal(0, 40, it.shape)), "background-noise", "warning", ""),
        (lambda it: np.minimum(it, 1500), "saturation", "warning", "% of them"),
        (lambda it: np.where(np.arange(it.size).reshape(it.shape) == 40000, 60000, it), "outliers", "note", "times"),
        (lambda it: it * 0, "unreadable", "error", ""),
    ],
)
def test_grey_values(spoil: Callable[[Any], Any], kind: str, severity: str, text: str, site: MakeSite) -> None:
    bad = site()
    bad.image(1, spoil(head()[0]).astype(np.float32))
    found = bad.of(kind)
    assert found.severity == severity
    assert text in found.detail


def test_integers_that_wrapped_around(site: MakeSite) -> None:
    bad = site()
    image = (head()[0] * 20.4).astype(np.int64)
    bad.image(1, image.astype(np.uint16).astype(np.int16))
    assert "values beyond what int16 holds have wrapped around" in bad.of("overflow").hint


def test_a_negative_slope(site: MakeSite) -> None:
    bad = site()
    path = bad.root / IMAGE.format(1)
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[112:120] = struct.pack("<ff", -1.0, 0.0)
    path.write_bytes(gzip.compress(bytes(content), 1))
    assert "by a negative factor" in bad.of("scaling").what


def test_scaled_label_numbers(site: MakeSite) -> None:
    bad = site()
    path = bad.root / LABELS.format(1)
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[112:120] = struct.pack("<ff", 2.0, 0.0)
    path.write_bytes(gzip.compress(bytes(content), 1))
    found = bad.of("label-scaling")
    assert (found.what, found.detail) == ("the header scales the label numbers", "by 2")


def _turned(radians: float) -> NDArray[np.float64]:
    affine = AFFINE.copy()
    cosine, sine = np.cos(radians), np.sin(radians)
    affine[:2, :2] = 1.4 * np.array([[cosine, -sine], [sine, cosine]])
    return affine


def _sheared() -> NDArray[np.float64]:
    affine = AFFINE.copy()
    affine[0, 1] = 0.1
    return affine


@pytest.mark.parametrize(
    ("affine", "kind", "severity", "detail"),
    [
        (_turned(0.6), "oblique", "warning", "by 34 degrees"),
        (_sheared(), "shear", "warning", "off by 4.1 degrees"),
        (np.diag([-1.4, 1.4, 1.4, 1]), "left-handed", "note", "LAS"),
        (np.diag([1.4, 1.4, 1.8, 1]), "anisotropy", "warning", "1.4 x 1.4 x 1.8 mm"),
        (np.diag([1.8, 1.8, 1.8, 1]), "spacing", "warning", "1.8 x 1.8 x 1.8 mm"),
        (np.diag([1.4e-3, 1.4e-3, 1.4e-3, 1]), "grid", "error", ""),
    ],
)
def test_axes_and_spacing(affine: NDArray[np.float64], kind: str, severity: str, detail: str, site: MakeSite) -> None:
    bad = site()
    image, labels = head()
    bad.image(1, image, affine)
    bad.labels(1, labels, affine)
    found = bad.of(kind)
    assert (found.severity, found.detail) == (severity, detail)


def test_stacks_of_thick_slices(site: MakeSite) -> None:
    stack = site()
    thick = np.diag([1.4, 1.4, 3.3, 1])
    image, labels = head()
    stack.image(1, image, thick)
    stack.labels(1, labels, thick)
    assert "raw stack of thick slices" in stack.of("thick-slices").what
    assert stack.of("thick-slices").severity == "error"
    assert stack.one("anisotropy", BRAIN_MASK).severity == "note"


def test_forms(site: MakeSite) -> None:
    bad = site(4)
    image, _ = head()
    bad.image(1, image, qform=0, sform=0)
    bad.header(2, lambda header: header.set_qform(np.diag([-1.4, 1.4, 1.4, 1]), 1))
    bad.header(3, lambda header: header.__setitem__("pixdim", [1, 2, 2, 2, 0, 0, 0, 0]))
    bad.header(4, lambda header: header.set_xyzt_units(1))
    found = {(each.subject, each.kind): each for each in bad.found()}
    assert "neither qform nor sform is set" in found["01", "unreadable"].what
    assert found["02", "forms"].what == "qform and sform place the scan differently"
    assert found["03", "pixdim"].detail == "pixdim 2 x 2 x 2 mm, affine 1.4 x 1.4 x 1.4 mm"
    assert found["04", "unit"].what == "the header gives lengths in metres"


def test_more_dimensions_and_channels(site: MakeSite) -> None:
    bad = site(3)
    image, _ = head()
    bad.image(1, np.stack([image] * 2, axis=3))
    bad.image(2, image[..., None])
    colour = np.zeros(SHAPE, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    path = bad.root / IMAGE.format(3)
    picture = nib.Nifti1Image(colour, AFFINE)
    path.write_bytes(gzip.compress(picture.to_bytes(), 1))
    found = {each.subject: each.what for each in bad.found()}
    assert "the image is 4D" in found["01"]
    assert "02" not in found
    assert "are not grey values" in found["03"]


def test_ages(site: MakeSite) -> None:
    bad = site(4)
    bad.people("sub-01\t180\ttrain\nsub-02\t3\ttrain\nsub-03\t\ttrain\nsub-04\t25+3\ttrain\nsub-05\t30\ttrain\n")
    found = {(each.subject, each.kind): each for each in bad.found()}
    assert found.keys() == {("01", "age"), ("02", "age"), ("03", "no-age"), ("05", "absent")}
    assert found["01", "age"].detail == "in days"
    assert found["02", "age"].detail == "out of range"
    assert "180" not in repr(found)
    assert found["01", "age"].hint == "it looks like days: divide by 7"
    assert "expected 18 to 40" in found["02", "age"].hint
    assert "column gestational_age" in found["03", "no-age"].hint


def test_an_age_in_a_column_that_is_not_read(site: MakeSite) -> None:
    bad = site()
    bad.people("sub-01\t28\n", header="participant_id\tage")
    assert bad.of("age-column").what == "the column age is not read as gestational age"


def test_nobody_trains(site: MakeSite) -> None:
    bad = site()
    bad.people("sub-01\t28\ttest\n")
    assert bad.one("no-training").what == "no subject is in the training split"


def test_mixed_axes(site: MakeSite) -> None:
    mixed = site(3)
    image, labels = head(3)
    mixed.image(3, image[::-1], np.diag([-1.4, 1.4, 1.4, 1]))
    mixed.labels(3, labels[::-1], np.diag([-1.4, 1.4, 1.4, 1]))
    assert mixed.of("axes").detail == "RAS (2), LAS (1)"


def test_one_scan_under_two_ids(site: MakeSite) -> None:
    twice = site(3)
    image, _ = head(1)
    twice.image(2, image.transpose(1, 0, 2)[:, ::-1].astype(np.float64).copy(), AFFINE[:, [1, 0, 2, 3]])
    (twice.root / LABELS.format(2)).unlink()
    found = twice.of("copy")
    assert (found.severity, found.subject, found.detail) == ("warning", "02", "as sub-01_rec-srr")
    assert found.what == "the same scan under two ids"
    twice.people("sub-01\t28\ttrain\nsub-02\t28\ttest\nsub-03\t28\ttrain\n")
    found = twice.of("copy")
    assert (found.severity, found.what) == ("error", "the same scan under two ids in two splits")
    assert "training and test would share it" in found.hint
    header = "participant_id\tgestational_age\tsplit\tsubject_key"
    twice.people("sub-01\t28\ttrain\tk\nsub-02\t28\ttrain\tk\nsub-03\t28\ttrain\t\n", header)
    assert twice.of("copy").what == "the same scan twice in one subject"


def test_one_scan_in_two_sessions(site: MakeSite, save: Make) -> None:
    twice = site()
    image, labels = head(1)
    for session in ("a", "b"):
        stem = f"sub-02/ses-{session}/anat/sub-02_ses-{session}"
        save(twice.root / f"{stem}_T2w.nii.gz", head(2)[0], AFFINE)
        save(twice.root / "derivatives/manual" / f"{stem}_dseg.nii.gz", labels, AFFINE)
    assert image.shape == SHAPE
    found = twice.of("copy")
    assert (found.scan, found.detail) == ("sub-02_ses-b", "as sub-02_ses-a")
    assert found.what == "the same scan twice in one subject"


def test_one_scan_exported_twice_in_two_ways(site: MakeSite) -> None:
    twice = site(3)
    image, labels = head(1)
    twice.image(2, (np.pad(image, 3) * 0.37 + 4).astype(np.float32))
    twice.labels(2, np.pad(labels, 3))
    found = twice.of("near-copy")
    assert (found.what, found.subject, found.detail) == (
        "nearly the same scan under two ids",
        "02",
        "as sub-01_rec-srr",
    )
    assert [each.subject for each in twice.found() if each.kind == "near-copy"] == ["02"]


def test_one_label_map_on_two_scans(site: MakeSite) -> None:
    twice = site(2)
    shutil.copy(twice.root / LABELS.format(1), twice.root / LABELS.format(2))
    found = twice.one("label-copy")
    assert (found.what, found.subject) == ("the same label map on two scans", "02")


def test_grey_values_on_another_scale(site: MakeSite) -> None:
    mixed = site(3)
    mixed.image(3, head(3)[0] * 100)
    found = mixed.one("scale")
    assert (found.severity, found.subject, found.detail) == ("note", "03", "99.3 times the others")


def test_identifying_fields_are_named_and_never_quoted(site: MakeSite) -> None:
    told = site(2)
    secrets = ("Muster", "19870314", "Spital", "1987-03-14", "Zimmer")
    told.header(1, lambda header: header.__setitem__("descrip", b"Muster Zimmer 7"))
    told.header(2, lambda header: header.extensions.append(nib.nifti1.Nifti1Extension(6, b"Muster")))
    sidecar = {
        "PatientName": "Muster^Anna",
        "PatientSex": "",
        "EchoTime": 0.09,
        "PatientPosition": "HFS",
        "global": {"const": {"InstitutionName": "Spital", "ProtocolName": "seen 1987-03-14"}},
        "ConsistencyInfo": "N4_VE11A_LATEST_20140830",
    }
    (told.root / IMAGE.format(1).replace(".nii.gz", ".json")).write_text(json.dumps(sidecar))
    header = "participant_id\tgestational_age\tmother_name\tremark\tbirth_date"
    told.people("sub-01\t28\tMuster\tseen 14.03.1987\tn/a\nsub-02\t28\tMuster\t\tn/a\n", header)
    (told.root / "sub-02/sub-02_scans.tsv").write_text("filename\tacq_time\nx\t1987-03-14T10:00:00\n")
    found = told.found()
    text = {each.kind + each.subject: each.what for each in found}
    assert text["header-text01"] == "text in the header: descrip"
    assert text["header-text02"] == "text in the header: extension 6 (comment)"
    assert text["sidecar01"] == (
        "identifying fields in the sidecar: PatientName, global.const.InstitutionName, global.const.ProtocolName"
    )
    columns = {each.what for each in found if each.kind == "table-columns"}
    assert columns == {"identifying columns: mother_name, remark", "identifying columns: acq_time"}
    said = repr(found)
    assert not [secret for secret in secrets if secret in said]
    assert {each.severity for each in found} == {"warning"}


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"Contacts": {"Doe^Jane": {"PatientBirthDate": "1988"}}}, "(a field).(a field).PatientBirthDate"),
        ({"global": {"DoeJane": "seen 1988-03-02"}}, "global.(a field)"),
        ({"DoeJaneBirthDate": "1988"}, "(a field)"),
        ({"Doe^Jane": {"EchoTime": 1}}, "(a field).(a field)"),
        ({"Jane": [{"PatientName": "x"}, {"StudyDate": "1988"}]}, "(a field).PatientName, (a field).StudyDate"),
        ({"PatientName.Jane": {"AccessionNumber": 7}}, "(a field).AccessionNumber"),
        ({"SOPInstanceUID": "1.2", "DeviceSerialNumber": "7"}, "DeviceSerialNumber, SOPInstanceUID"),
    ],
)
def test_names_of_sidecar_fields_that_may_be_data_are_not_shown(document: Any, said: str, site: MakeSite) -> None:
    told = site()
    (told.root / IMAGE.format(1).replace(".nii.gz", ".json")).write_text(json.dumps(document))
    assert told.one("sidecar").what == f"identifying fields in the sidecar: {said}"


def test_names_of_columns_that_may_be_data_are_not_shown(site: MakeSite) -> None:
    told = site()
    (told.root / "sub-01/sub-01_scans.tsv").write_text("a.nii\tJane Doe\t1988-03-02\nb.nii\tDoe^Mia\t1990-03-02\n")
    assert told.one("table-columns").what == "identifying columns: (a field)"
    told.people("sub-02\t28\t02.03.1988\tDoe^Jane\n", header="sub-01\t28\t1988-03-02\tJane Doe")
    found = told.found()
    assert {each.what for each in found} >= {"there is no column participant_id", "identifying columns: (a field)"}
    assert "doe" not in repr(found).lower()
    assert "1988" not in repr(found)


@pytest.mark.parametrize(
    "column",
    [
        *("surname", "mother_initials", "dob", "birthdate", "date_of_birth", "mrn", "nhs", "ssn", "email", "postcode"),
        *("accession_number", "datetime", "hospital_id", "patient_id", "acq_time", "maternal_name", "scan_date"),
    ],
)
def test_columns_that_identify_by_their_name_are_named(column: str) -> None:
    (remark,) = check_columns({column: ["x"]})
    assert remark.what == f"identifying columns: {column}"


def test_a_bad_cell_is_one_finding_among_others(site: MakeSite) -> None:
    bad = site(2)
    bad.people("sub-01\tJane Doe 1988-03-02\ttrain\nsub-02\t28\tJane Doe\n")
    bad.labels(2, np.zeros_like(head()[1]))
    found = bad.found()
    assert [(each.kind, each.severity, each.what) for each in found] == [
        ("files", "error", "subject '01', column gestational_age: this is not a number of weeks"),
        ("files", "error", "subject '02', column split: this is not a split"),
        ("label-values", "error", "the label map is empty: every voxel is background"),
        ("table-columns", "warning", "identifying columns: gestational_age"),
        ("no-age", "note", "no gestational age"),
    ]
    assert found[0].file == str(bad.root / "participants.tsv")
    assert "Doe" not in repr(found)


def test_bias_fields_are_taken_out_where_the_plan_says_so(site: MakeSite, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Any:
        raise DataError("no field can be fitted")

    monkeypatch.setattr(transforms, "without_bias", refuse)
    dataset = load_dataset(site().root, scheme=FETA, strict=False)
    assert check(dataset, scheme=FETA, spacing_mm=1.6) == []
    (found,) = check(dataset, scheme=FETA, spacing_mm=1.6, n4=True)
    assert (found.kind, found.what) == ("grid", "no field can be fitted")


def test_a_sidecar_that_is_not_json(site: MakeSite) -> None:
    bad = site()
    (bad.root / IMAGE.format(1).replace(".nii.gz", ".json")).write_text("{")
    assert bad.one("sidecar-unreadable").what == "the sidecar is not JSON that can be read"


def test_the_name_that_gzip_keeps(site: MakeSite) -> None:
    bad = site()
    path = bad.root / IMAGE.format(1)
    content = gzip.decompress(path.read_bytes())
    with path.open("wb") as file, gzip.GzipFile("muster_anna.nii", "wb", 1, file) as packed:
        packed.write(content)
    assert bad.one("header-text").what == "text in the header: gzip file name"
    with path.open("wb") as file, gzip.GzipFile(path.name, "wb", 1, file) as packed:
        packed.write(content)
    assert bad.found() == []


def test_names_and_dates_in_file_names(tmp_path: Path, save: Make) -> None:
    for name in ("anna", "p20230412"):
        image, labels = head(len(name))
        save(tmp_path / f"{name}.nii.gz", image, AFFINE)
        save(tmp_path / f"{name}_labels.nii.gz", labels, AFFINE)
    rows = "anna.nii.gz,anna_labels.nii.gz,28\np20230412.nii.gz,p20230412_labels.nii.gz,28\n"
    (tmp_path / "pairs.csv").write_text(f"image,label,ga\n{rows}")
    dataset = load_dataset(tmp_path / "pairs.csv", labels="fidon", scheme=FETA, strict=False)
    found = {each.kind: each for each in check(dataset, scheme=FETA, spacing_mm=1.6)}
    assert found["name-letters"].what == "the subject's id has no digit"
    assert found["name-date"].what == "the subject's id or the file's name holds a date or a name"


def test_counts_tell_nothing_but_numbers(site: MakeSite) -> None:
    bad = site(3)
    for number in (1, 2):
        bad.image(number, head(number)[0][:, :, :-1])
    bad.people("sub-01\t180\ttrain\nsub-02\t28\ttrain\nsub-03\t28\ttrain\n")
    assert counts(bad.found()) == {"error/other-grid": 2, "warning/age": 1}


def test_each_scan_is_told_while_it_is_in_memory(site: MakeSite) -> None:
    bad = site(2)
    (bad.root / LABELS.format(2)).unlink()
    told = []
    check(
        load_dataset(bad.root, scheme=FETA, strict=False),
        scheme=FETA,
        spacing_mm=1.6,
        on_scan=lambda scan, found, done, of: told.append((scan.case.name, scan.classes is None, len(found), done, of)),
    )
    assert told == [("sub-01_rec-srr", False, 0, 1, 2), ("sub-02_rec-srr", True, 0, 2, 2)]
