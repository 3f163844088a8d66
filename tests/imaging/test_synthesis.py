"""Made-up brains: do they grow, fold and vary as they should, and is what is written what a site would send?"""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from fedseg.errors import StorageError, UsageError
from fedseg.imaging.label_tables import class_map, parse_dseg_tsv
from fedseg.imaging.synthesis import NEUROTYPICAL, VENTRICULOMEGALY, make_subject, synthesize
from fedseg.imaging.synthesis_contrast import style_of_site
from fedseg.labels import FETA

nib: Any = nibabel
COARSE_MM = 2.0
CORTEX, WHITE_MATTER, VENTRICLES, CEREBELLUM = 2, 3, 4, 5

Made = tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.float64]]


@cache
def made(
    weeks: float, seed: int = 0, pathology: str = NEUROTYPICAL, style: int = 0, spacing_mm: float = COARSE_MM
) -> Made:
    rng = np.random.default_rng([seed, style])
    return make_subject(rng, weeks=weeks, pathology=pathology, style=style_of_site(style), spacing_mm=spacing_mm)


def volumes_ml(labels: NDArray[np.uint8], spacing_mm: float = COARSE_MM) -> NDArray[np.float64]:
    """Volume of each of the seven tissues."""
    counts: NDArray[np.int64] = np.bincount(labels.ravel(), minlength=8)[1:]
    return counts * spacing_mm**3 / 1000


def folding(labels: NDArray[np.uint8]) -> float:
    """Area of the cortex's outside over volume to the two thirds: no unit, so that size alone changes nothing."""
    cerebrum = np.isin(labels, (2, 3, 4, 6))
    faces = sum(int(np.diff(cerebrum.astype(np.int8), axis=axis).astype(bool).sum()) for axis in range(3))
    return float(faces / cerebrum.sum() ** (2 / 3))


def dice_by_value_alone(image: NDArray[np.float32], labels: NDArray[np.uint8], *, with_priors: bool) -> float:
    """Mean Dice of the best guess from one voxel's value, its histograms learnt on the very scan they are tried on."""
    cuts = np.quantile(image[labels > 0], np.linspace(0, 1, 65)[1:-1])
    bins = np.searchsorted(cuts, image)
    counts = np.stack([np.bincount(bins[labels == tissue], minlength=64) for tissue in range(8)]).astype(float)
    if not with_priors:
        counts /= counts.sum(axis=1, keepdims=True)
    guess = counts.argmax(axis=0)[bins]
    scores = [2 * np.sum((guess == t) & (labels == t)) / np.sum((guess == t) * 1 + (labels == t)) for t in range(1, 8)]
    return float(np.mean(scores))


@pytest.mark.parametrize("weeks", [20.0, 29.0, 38.0])
@pytest.mark.parametrize("pathology", [NEUROTYPICAL, VENTRICULOMEGALY])
@pytest.mark.parametrize("style", [0, 1, 2, 5])
def test_every_head_has_all_seven_tissues(weeks: float, pathology: str, style: int) -> None:
    image, labels, _ = made(weeks, pathology=pathology, style=style)
    assert image.dtype == np.float32 and labels.dtype == np.uint8 and image.shape == labels.shape
    assert np.isfinite(image).all()
    assert (volumes_ml(labels) > 0.5).all() and labels.max() == len(FETA.tissues)
    edges = [np.take(labels, end, axis) for axis in range(3) for end in (0, -1)]
    assert not any(edge.any() for edge in edges), "the head touches the edge of its field of view"


def test_sizes_follow_gestational_age() -> None:
    by_age = {
        weeks: np.mean([volumes_ml(made(weeks, seed)[1]) for seed in range(4)], axis=0)
        for weeks in (20.0, 26.0, 32.0, 38.0)
    }
    table = np.stack(list(by_age.values()))
    assert (np.diff(table, axis=0) > 0).all(), "a tissue shrank with age on average"
    assert 35 < by_age[20.0][1:].sum() < 75
    assert 260 < by_age[38.0][1:].sum() < 430


def test_the_cortex_folds_with_age_beyond_mere_growth() -> None:
    smooth, middle, folded = (
        np.mean([folding(made(weeks, seed, spacing_mm=1.2)[1]) for seed in range(2)]) for weeks in (22.0, 29.0, 36.0)
    )
    assert smooth * 1.1 < middle < folded
    assert folded > 1.4 * smooth


def test_ventriculomegaly_enlarges_the_ventricles_alone() -> None:
    for weeks in (22.0, 35.0):
        typical, ill = (volumes_ml(made(weeks, 3, which)[1]) for which in (NEUROTYPICAL, VENTRICULOMEGALY))
        assert ill[VENTRICLES - 1] > 2 * typical[VENTRICLES - 1]
        assert ill.sum() == pytest.approx(typical.sum(), rel=0.25)


@pytest.mark.parametrize("style", [0, 1, 2, 7])
def test_a_voxels_value_alone_does_not_tell_its_tissue(style: int) -> None:
    image, labels, _ = made(32.0, style=style, spacing_mm=1.2)
    assert dice_by_value_alone(image, labels, with_priors=True) < 0.45
    assert dice_by_value_alone(image, labels, with_priors=False) < 0.45


@pytest.mark.parametrize("style", [0, 1, 2])
def test_tissues_can_be_seen(style: int) -> None:
    image, labels, _ = made(32.0, style=style, spacing_mm=1.2)
    mean = [float(image[labels == tissue].mean()) for tissue in range(8)]
    assert mean[CORTEX] < mean[WHITE_MATTER] < 0.9 * mean[VENTRICLES]
    assert mean[0] < 0.5 * mean[CORTEX]


@pytest.mark.parametrize(("style", "axes"), [(0, "RAS"), (1, "LIP"), (2, "LAS")])
def test_the_affine_places_the_anatomy_whatever_the_axes(style: int, axes: str) -> None:
    _, labels, affine = made(30.0, style=style)
    assert "".join(nib.aff2axcodes(affine)) == axes
    brain, cerebellum = (
        nib.affines.apply_affine(affine, np.argwhere(mask)).mean(axis=0)
        for mask in (labels == WHITE_MATTER, labels == CEREBELLUM)
    )
    right, front, up = cerebellum - brain
    assert abs(right) < 5 and front < -8 and up < -12


def test_intensity_scales_differ_by_a_factor_of_a_hundred() -> None:
    bright = [float(np.percentile(made(30.0, style=style)[0], 99)) for style in (1, 2)]
    assert 30 < bright[0] / bright[1] < 300


def test_one_seed_gives_one_head_at_every_spacing() -> None:
    coarse, fine = (volumes_ml(made(30.0, 5, spacing_mm=mm)[1], mm) for mm in (1.6, 1.0))
    assert coarse == pytest.approx(fine, rel=0.06)


def test_every_style_can_be_drawn() -> None:
    styles = [style_of_site(index) for index in range(100)]
    assert all(nib.orientations.axcodes2ornt(style.axes).shape == (3, 2) for style in styles)
    assert len({style.scale for style in styles}) == 100
    assert style_of_site(42) == style_of_site(42)


@pytest.fixture(scope="module")
def fidon_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made-up") / "site"
    synthesize(out, subjects=5, seed=11, site_style=1, spacing_mm=COARSE_MM)
    return out


def participants(root: Path) -> list[dict[str, str]]:
    with (root / "participants.tsv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_a_data_set_is_whole_and_readable(fidon_site: Path) -> None:
    manual = fidon_site / "derivatives" / "manual"
    table = parse_dseg_tsv((manual / "dseg.tsv").read_text(encoding="utf-8"), "dseg.tsv")
    classes = class_map(table, FETA, "dseg.tsv")
    for row in participants(fidon_site):
        name = row["participant_id"]
        scan = nib.load(fidon_site / name / "anat" / f"{name}_rec-srr_T2w.nii.gz")
        truth = nib.load(manual / name / "anat" / f"{name}_rec-srr_dseg.nii.gz")
        mask = nib.load(manual / name / "anat" / f"{name}_rec-srr_desc-brain_mask.nii.gz")
        numbers = np.asarray(truth.dataobj)
        assert scan.get_data_dtype() == np.int16 and truth.get_data_dtype() == np.uint8
        assert scan.shape == truth.shape == mask.shape
        assert np.array_equal(scan.affine, truth.affine)
        assert (int(scan.header["qform_code"]), int(scan.header["sform_code"])) == (1, 0)
        assert set(np.unique(numbers)) == set(range(9)), "Fidon's numbers, with the corpus callosum apart"
        assert {classes[int(number)] for number in np.unique(numbers)} == set(range(8))
        assert np.array_equal(np.asarray(mask.dataobj), numbers > 0)
    assert (fidon_site / "dataset_description.json").is_file() and (manual / "dataset_description.json").is_file()
    assert [path.name for path in fidon_site.parent.iterdir()] == ["site"], "something was left beside the data set"


def test_the_numbers_written_mean_the_labels_made(fidon_site: Path) -> None:
    row = participants(fidon_site)[0]
    _, labels, _ = make_subject(
        np.random.default_rng([11, 1, 0]),
        weeks=float(row["gestational_age"]),
        pathology=row["pathology"],
        style=style_of_site(1),
        spacing_mm=COARSE_MM,
    )
    manual = fidon_site / "derivatives" / "manual"
    numbers = np.asarray(nib.load(manual / "sub-001" / "anat" / "sub-001_rec-srr_dseg.nii.gz").dataobj)
    classes = class_map(parse_dseg_tsv((manual / "dseg.tsv").read_text(), "dseg.tsv"), FETA, "dseg.tsv")
    assert np.array_equal(np.vectorize(classes.__getitem__)(numbers), labels)


def test_participants_are_spread_and_split(tmp_path: Path, fidon_site: Path) -> None:
    rows = participants(fidon_site)
    assert [row["split"] for row in rows] == ["train"] * 4 + ["test"]
    assert {row["pathology"] for row in rows} == {NEUROTYPICAL, VENTRICULOMEGALY}
    weeks = [float(row["gestational_age"]) for row in rows]
    assert min(weeks) >= 20 and max(weeks) <= 38 and max(weeks) - min(weeks) > 8
    synthesize(tmp_path / "few", subjects=3, seed=1, spacing_mm=4.0)
    assert {row["split"] for row in participants(tmp_path / "few")} == {"train"}


def test_the_same_seed_writes_the_same_bytes_and_more_subjects_change_none(tmp_path: Path, fidon_site: Path) -> None:
    seen: list[int] = []
    synthesize(tmp_path / "two", subjects=2, seed=11, site_style=1, spacing_mm=COARSE_MM, on_subject=seen.append)
    assert seen == [1, 2]
    images = sorted(path.relative_to(tmp_path / "two") for path in (tmp_path / "two").rglob("*.nii.gz"))
    assert len(images) == 6
    for image in images:
        assert (tmp_path / "two" / image).read_bytes() == (fidon_site / image).read_bytes(), image


def test_another_seed_or_style_is_another_head() -> None:
    sizes = [tuple(volumes_ml(made(30.0, seed, style=style)[1])) for seed, style in ((0, 0), (1, 0), (0, 1), (0, 2))]
    assert len(set(sizes)) == 4


def test_an_empty_folder_will_do(tmp_path: Path) -> None:
    out = tmp_path / "empty"
    out.mkdir()
    synthesize(out, subjects=1, seed=0, spacing_mm=4.0)
    assert len(participants(out)) == 1


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(StorageError, match=r"the folder is not empty \(choose a new folder; nothing is overwritten\)"):
        synthesize(tmp_path, subjects=1, seed=0)
    with pytest.raises(StorageError, match="this is not a folder"):
        synthesize(tmp_path / "mine.txt", subjects=1, seed=0)
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"file/below: the made-up brains could not be written: .*room"):
        synthesize(tmp_path / "file" / "below", subjects=1, seed=0, spacing_mm=4.0)


def test_an_interruption_leaves_nothing_behind(tmp_path: Path) -> None:
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthesize(tmp_path / "site", subjects=2, seed=0, spacing_mm=4.0, on_subject=stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"subjects": 0}, r"--subjects: 0 subjects cannot be made up \(choose 1 to 999\)"),
        ({"subjects": 1000}, "1000 subjects cannot be made up"),
        ({"seed": -1}, r"--seed: the seed -1 is negative \(choose 0 or more\)"),
        ({"site_style": 100}, r"--site-style: there is no site style 100 \(choose 0 to 99\)"),
        ({"site_style": -1}, "there is no site style -1"),
        ({"spacing_mm": 0.1}, r"a spacing of 0.1 mm cannot be made up \(choose 0.4 to 4 mm\)"),
        ({"spacing_mm": float("nan")}, "a spacing of nan mm"),
    ],
)
def test_numbers_out_of_range_are_refused(tmp_path: Path, numbers: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        synthesize(tmp_path / "site", **({"subjects": 1, "seed": 0} | numbers))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("weeks", "pathology", "message"),
    [
        (15.0, NEUROTYPICAL, r"a brain of 15 weeks cannot be made up \(choose 20 to 38 gestational weeks\)"),
        (39.0, NEUROTYPICAL, "a brain of 39 weeks"),
        (30.0, "microcephaly", r"unknown pathology 'microcephaly' \(known: neurotypical, ventriculomegaly\)"),
    ],
)
def test_a_subject_that_cannot_be_made_is_refused(weeks: float, pathology: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        made(weeks, pathology=pathology)
