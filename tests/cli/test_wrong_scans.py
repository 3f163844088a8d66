"""Wrong scans: what `data check`, `evaluate`, `predict` and `client join` say of them, and with which exit code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from fedseg.federation.vector import model_hash
from fedseg.labels import scheme
from fedseg.metrics.scores import METRICS
from fedseg.store.checkpoints import ModelCard, save_model
from tests.cli.conftest import Command
from tests.conftest import FIDON_TSV, Save, tiny_head

nib: Any = nibabel  # only half of it is typed

MakeBids = Callable[..., Path]
Spoil = Callable[[Path, Save], Path]

IMAGE = "sub-01/anat/sub-01_rec-srr_T2w.nii.gz"
LABELS = "derivatives/manual/sub-01/anat/sub-01_rec-srr_dseg.nii.gz"
ROOT = Path(__file__).resolve().parents[2]


def _no_labels(root: Path, save: Save) -> Path:
    (root / LABELS).unlink()
    return root / IMAGE


def _other_shape(root: Path, save: Save) -> Path:
    return save(root / LABELS, tiny_head((20, 26, 20), seed=1)[1])


def _other_affine(root: Path, save: Save) -> Path:
    return save(root / LABELS, tiny_head(seed=1)[1], np.diag([-0.8, 0.8, 0.8, 1.0]))


def _index_not_listed(root: Path, save: Save) -> Path:
    labels = tiny_head(seed=1)[1]
    labels[10, 10, 10] = 99
    return save(root / LABELS, labels)


def _name_not_known(root: Path, save: Save) -> Path:
    table = root / "derivatives/manual/dseg.tsv"
    table.write_text(FIDON_TSV.replace("cerebellum", "cerebelum"))
    return table


def _cut_short(root: Path, save: Save) -> Path:
    path = root / IMAGE
    path.write_bytes(path.read_bytes()[:-2000])
    return path


def _four_dimensions(root: Path, save: Save) -> Path:
    return save(root / IMAGE, np.stack([tiny_head(seed=1)[0]] * 2, axis=3))


def _nan(root: Path, save: Save) -> Path:
    image = tiny_head(seed=1)[0]
    image[3, 3, 3] = np.nan
    return save(root / IMAGE, image)


def _empty_label(root: Path, save: Save) -> Path:
    return save(root / LABELS, np.zeros((22, 26, 20), np.uint8))


def _stack(root: Path, save: Save) -> Path:
    save(root / LABELS, tiny_head(seed=1)[1], np.diag([0.8, 0.8, 4.0, 1.0]))
    return save(root / IMAGE, tiny_head(seed=1)[0], np.diag([0.8, 0.8, 4.0, 1.0]))


SPOILED: dict[str, tuple[Spoil, str, str]] = {
    "no labels": (_no_labels, "this scan has no labels (_dseg)", "derivatives/*/"),
    "other shape": (_other_shape, "image and labels differ in shape", "nearest neighbour"),
    "other affine": (_other_affine, "image and labels differ in affine", "look at both in a viewer"),
    "index not in dseg.tsv": (_index_not_listed, "label index 99 is not in the label table", "add it to dseg.tsv"),
    "name not known": (_name_not_known, "label names that are not known: 3 ", "cerebellum"),
    "cut short": (_cut_short, "the voxels cannot be read to the end", "copy or export it again"),
    "4D": (_four_dimensions, "the image is 4D, 22 x 26 x 20 x 2", "split series"),
    "NaN": (_nan, "1 of 11440 voxels are NaN or infinite", "export the scan again"),
    "empty label": (_empty_label, "the label map is empty", "label it or leave it out"),
    "thick slices": (_stack, "this is a raw stack of thick slices (0.8 x 0.8 x 4 mm)", "NeSVoR, SVRTK, NiftyMIC"),
}


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model file of the tissue task."""
    from fedseg.training.network import architecture, arrays, build_network

    tissues = scheme("feta").tissues
    weights = arrays(build_network("small", len(tissues) + 1, 0))
    card = ModelCard(
        architecture=architecture("small", len(tissues) + 1), task="feta", tissues=tissues, spacing_mm=0.8,
        patch=(16, 16, 16), normalisation={"n4": False}, study="none", plan_hash="0" * 64, rounds=0, contributors=(),
        privacy={"mode": "off", "epsilon": None}, code_version="0",
    )  # fmt: skip
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    assert len(save_model(path, weights, card).model_hash) == len(model_hash(np.zeros(1, np.float32)))
    return path


@pytest.mark.parametrize("name", SPOILED)
def test_data_check_lists_what_is_wrong_with_which_file(
    name: str, fedseg: Command, make_bids: MakeBids, save: Save, plan_file: Path
) -> None:
    spoil, what, hint = SPOILED[name]
    root = make_bids(2)
    where = spoil(root, save)
    answer = fedseg("data", "check", root, "--plan", plan_file, "--json")
    assert answer.code == 1
    document = json.loads(answer.out)
    assert document["usable"] is False
    errors = [each for each in document["findings"] if each["severity"] == "error"]
    found = [each for each in errors if what in each["what"]]
    assert found, errors
    assert found[0]["file"] == str(where)
    assert hint in found[0]["hint"]
    shown = fedseg("data", "check", root, "--plan", plan_file)
    assert shown.code == 1
    assert "these scans would be refused" in shown.out
    assert "error" in shown.out


@pytest.mark.parametrize("name", SPOILED)
def test_evaluate_refuses_it_with_file_and_hint(
    name: str, fedseg: Command, make_bids: MakeBids, save: Save, model: Path, tmp_path: Path
) -> None:
    spoil, what, hint = SPOILED[name]
    root = make_bids(1)
    where = spoil(root, save)
    answer = fedseg("evaluate", model, "--data", root, "--out", tmp_path / "out", "--json")
    answer.says(1, what, f"where: {where}", hint)
    assert answer.out == ""
    assert not (tmp_path / "out" / "scores.json").exists()


def test_no_such_folder(fedseg: Command, plan_file: Path, model: Path, tmp_path: Path) -> None:
    for words in (
        ("data", "check", tmp_path / "nowhere", "--plan", plan_file),
        ("evaluate", model, "--data", tmp_path / "nowhere", "--out", tmp_path / "out"),
    ):
        fedseg(*words).says(1, "there is no such folder", str(tmp_path / "nowhere"), "check the path")
    answer = fedseg("predict", model, tmp_path / "nowhere", "--out", tmp_path / "out")
    answer.says(1, "there is no such file or folder", str(tmp_path / "nowhere"), "check the path")


def test_a_folder_without_a_scan(fedseg: Command, plan_file: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    answer = fedseg("data", "check", tmp_path / "empty", "--plan", plan_file)
    answer.says(1, "no scan in this folder", str(tmp_path / "empty"), "sub-X/anat/sub-X_T2w.nii.gz")
    answer = fedseg("predict", model, tmp_path / "empty", "--out", tmp_path / "out")
    answer.says(1, "the folder holds no scan", str(tmp_path / "empty"), "*.nii[.gz]")


def test_two_subjects_with_one_id(
    fedseg: Command, make_bids: MakeBids, save: Save, plan_file: Path, tmp_path: Path
) -> None:
    root = make_bids(1)
    save(root / "sub-A1/anat/sub-A1_T2w.nii.gz", tiny_head(seed=5)[0])
    save(root / "sub-a1/anat/sub-a1_T2w.nii.gz", tiny_head(seed=6)[0])
    answer = fedseg("data", "check", root, "--plan", plan_file, "--json")
    found = {each["what"]: each for each in json.loads(answer.out)["findings"]}
    twice = found["two subjects with one id: 'A1' and 'a1'"]
    assert (answer.code, twice["severity"], twice["file"], twice["hint"]) == (1, "error", str(root), "rename one")


def test_predict_goes_on_after_a_bad_scan_and_says_which(
    fedseg: Command, make_bids: MakeBids, save: Save, model: Path, tmp_path: Path
) -> None:
    root = make_bids(2)
    bad = _nan(root, save)
    answer = fedseg("predict", model, root, "--out", tmp_path / "out")
    answer.says(1, "1 of 11440 voxels are NaN or infinite", f"where: {bad}", "export the scan again")
    assert "1 of 2 scans are segmented" in answer.out
    written = sorted(path.name for path in (tmp_path / "out").rglob("*.nii.gz"))
    assert written == ["sub-02_rec-srr_seg-fedseg_dseg.nii.gz"]


def test_predict_refuses_a_thick_slice_stack(fedseg: Command, save: Save, model: Path, tmp_path: Path) -> None:
    path = save(tmp_path / "stack_T2w.nii.gz", tiny_head()[0], np.diag([0.8, 0.8, 4.0, 1.0]))
    answer = fedseg("predict", model, path, "--out", tmp_path / "out")
    answer.says(1, "raw stack of thick slices", f"where: {path}", "NeSVoR, SVRTK, NiftyMIC or MIAL SRTK")


@pytest.mark.realdata
def test_the_raw_stacks_of_site_chuv_are_named_with_the_tools_that_reconstruct(
    fedseg: Command, real_data: Path, plan_file: Path
) -> None:
    answer = fedseg("data", "check", real_data / "site-chuv", "--plan", plan_file, "--json")
    assert answer.code == 1
    errors = [each for each in json.loads(answer.out)["findings"] if each["severity"] == "error"]
    stacks = [each for each in errors if "raw stack of thick slices" in each["what"]]
    scans = sorted(str(path) for path in (real_data / "site-chuv").glob("sub-*/anat/*_T2w.nii.gz"))
    assert sorted(each["file"] for each in stacks) == scans
    assert all("NeSVoR, SVRTK, NiftyMIC or MIAL SRTK" in each["hint"] for each in stacks)


@pytest.mark.parametrize("kept", [0, 5, 200, -1000, -1])
def test_a_model_file_cut_short(kept: int, fedseg: Command, make_bids: MakeBids, model: Path, tmp_path: Path) -> None:
    root, short = make_bids(1), tmp_path / "short.safetensors"
    short.write_bytes(model.read_bytes()[:kept])
    image = root / IMAGE
    for words in (
        ("predict", short, image, "--out", tmp_path / "out"),
        ("evaluate", short, "--data", root, "--out", tmp_path / "out"),
    ):
        answer = fedseg(*words)
        answer.says(1, "the model file is cut short", f"where: {short}", "copy it again from where it was written")


def test_a_model_file_that_is_none(fedseg: Command, make_bids: MakeBids, tmp_path: Path) -> None:
    image = make_bids(1) / IMAGE
    fedseg("predict", image, image, "--out", tmp_path / "out").says(1, "this is not a safetensors file", str(image))
    missing = tmp_path / "none.safetensors"
    fedseg("predict", missing, image, "--out", tmp_path / "out").says(1, "there is no such model file", str(missing))


def test_evaluate_json_is_one_document_with_the_keys_that_were_promised(
    fedseg: Command, make_bids: MakeBids, save: Save, model: Path, tmp_path: Path
) -> None:
    root = make_bids(2, participants="participant_id\tsite\tage\nsub-01\tleuven\t\nsub-02\t\t\n")
    empty = tiny_head(seed=1)[1]
    empty[empty == 3] = 2
    save(root / LABELS, empty)
    answer = fedseg("evaluate", model, "--data", root, "--out", tmp_path / "out", "--site", "elsewhere", "--json")
    assert answer.code == 0, answer.err
    document = json.loads(answer.out)
    assert {"model", "subjects", "summary"} <= set(document)
    tissues = set(scheme("feta").tissues)
    numbers = {*METRICS, "reference_volume_ml"}
    for row in document["subjects"]:
        assert {"subject", "site", "gestational_age_weeks", "pathology", *numbers} <= set(row)
        assert all(set(row[metric]) == tissues for metric in numbers)
    assert {row["subject"]: row["site"] for row in document["subjects"]} == {"01": "leuven", "02": "elsewhere"}
    summary = document["summary"]
    assert {*METRICS, "by_site", "by_pathology", "by_age", "intervals", "worst", "missing"} <= set(summary)
    assert set(summary["dice"]) == {"mean", *tissues}
    assert set(summary["by_site"]) == {"leuven", "elsewhere"}
    first = document["subjects"][0]
    truth_empty, found_ml = first["dice"]["cerebellum"], first["volume_ml"]["cerebellum"]
    expected = (0.0, None) if found_ml > 0 else (1.0, 0.0)
    assert (truth_empty, first["hd95_mm"]["cerebellum"]) == expected
    means = [np.mean(list(row["dice"].values())) for row in document["subjects"]]
    assert summary["dice"]["mean"] == pytest.approx(np.mean(means))
    for name in ("report.html", "scores.csv", "scores.json"):
        assert (tmp_path / "out" / name).stat().st_size > 0
    assert json.loads((tmp_path / "out" / "scores.json").read_text()) == document


def test_evaluate_without_a_site_says_null(fedseg: Command, make_bids: MakeBids, model: Path, tmp_path: Path) -> None:
    answer = fedseg("evaluate", model, "--data", make_bids(1), "--out", tmp_path / "out", "--json")
    assert [row["site"] for row in json.loads(answer.out)["subjects"]] == [None]


def test_data_check_json_of_good_scans(fedseg: Command, make_bids: MakeBids, plan_file: Path) -> None:
    answer = fedseg("data", "check", make_bids(3), "--plan", plan_file, "--json")
    assert answer.code == 0, answer.out
    document = json.loads(answer.out)
    assert document["usable"] is True
    assert document["subjects"] == {"train": 3, "validation": 0, "test": 0}
    assert all(each["severity"] in ("warning", "note") for each in document["findings"])


def test_a_prediction_lies_on_the_scans_own_grid(
    fedseg: Command, make_bids: MakeBids, model: Path, tmp_path: Path
) -> None:
    root = make_bids(1)
    answer = fedseg("predict", model, root, "--out", tmp_path / "out")
    assert answer.code == 0, answer.err
    made = tmp_path / "out/sub-01/anat/sub-01_rec-srr_seg-fedseg_dseg.nii.gz"
    image, labels = nib.load(root / IMAGE), nib.load(made)
    assert image.shape == labels.shape
    assert np.array_equal(image.affine, labels.affine)
    assert (tmp_path / "out" / "dseg.tsv").is_file()
