"""Model files at work: ensembles, clean-up, options, many scans, and the files that come out."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from fedseg.errors import DataError, Interrupted, ModelError, StorageError
from fedseg.imaging.nifti import read_image
from fedseg.imaging.transforms import restore
from fedseg.labels import BRAIN_MASK, FETA
from fedseg.report.volumes import brain_tissue_ml
from fedseg.runtime import batch as batches
from fedseg.runtime.batch import predict
from fedseg.runtime.derivatives import Outputs
from fedseg.runtime.prediction import Options, Segmenter
from fedseg.runtime.scans import Scan, find_scans
from fedseg.store.checkpoints import ModelCard, save_model
from tests.conftest import Save, tiny_head

nib: Any = nibabel

MakeBids = Callable[..., Path]
MakeModel = Callable[..., Path]

CARD = ModelCard(
    architecture={}, task="feta", tissues=FETA.tissues, spacing_mm=2.0, patch=(16, 16, 16), normalisation={"n4": False},
    study="tiny", plan_hash="0" * 64, rounds=0, contributors=(), privacy={"mode": "off"}, code_version="0",
)  # fmt: skip
ALL = Outputs(probseg=True, uncertainty=True, brain_mask=True)
LIP = np.array([[-0.8, 0, 0, 5], [0, 0, 0.8, -3], [0, -0.8, 0, 7], [0, 0, 0, 1.0]])


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> MakeModel:
    """`make_model(seed, classes, field=value...)`: an untrained model file."""
    from fedseg.training.network import architecture, arrays, build_network

    def make(seed: int = 0, classes: int | None = None, **changed: Any) -> Path:
        card = replace(CARD, **changed)
        classes = classes or len(card.tissues) + 1
        card = replace(card, architecture=architecture("small", classes))
        path = tmp_path_factory.mktemp("model") / "model.safetensors"
        save_model(path, arrays(build_network("small", classes, seed)), card)
        return path

    return make


@pytest.fixture(scope="session")
def model(make_model: MakeModel) -> Path:
    return make_model()


@pytest.fixture
def scan(tmp_path: Path, save: Save) -> Path:
    return save(tmp_path / "sub-7_rec-srr_T2w.nii.gz", tiny_head()[0])


def test_several_models_are_the_mean_of_their_probabilities(make_model: MakeModel, scan: Path) -> None:
    paths, image = [make_model(1), make_model(2, patch=(24, 24, 24))], read_image(scan)
    each = [Segmenter([path], Options(cleanup=False))(image) for path in paths]
    both = Segmenter(paths, Options(cleanup=False))(image)
    np.testing.assert_allclose(both.probabilities, (each[0].probabilities + each[1].probabilities) / 2, atol=1e-6)
    np.testing.assert_array_equal(both.labels, restore(both.probabilities, both.geometry))
    assert [way.padded for way in both.ways] == [each[0].ways[0].padded, each[1].ways[0].padded]
    assert 0 < both.uncertainty <= 1


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"task": "brain_mask", "tissues": BRAIN_MASK.tissues}, r"is for brain_mask \(1 tissues\), .* for feta"),
        ({"spacing_mm": 1.5}, r"works at 1.5 mm, .* at 2 mm.*second resampling"),
        ({"normalisation": {"n4": True}}, "bias fields taken out"),
        ({}, "same model as .*name each model once"),
    ],
)
def test_models_that_do_not_go_together_are_refused(
    make_model: MakeModel, model: Path, changed: dict[str, Any], words: str
) -> None:
    other = make_model(1 if changed else 0, **changed)
    with pytest.raises(ModelError, match=words) as refused:
        Segmenter([model, other])
    assert refused.value.where == str(other)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"patch": (33, 32, 32)}, r"patch is \[33, 32, 32\]; each side must be a multiple of 8 .*small.*fedseg wrote"),
        ({"task": "nope"}, r"for the task 'nope', which this version does not know \(known: feta, brain_mask"),
        (
            {"tissues": ("a", "b")},
            r"the model's 2 tissues are not those of the task feta \(this version's are external",
        ),
        ({"classes": 2}, "network has 2 classes, its description 7 tissues and .*fedseg wrote"),
        ({"normalisation": {"n4": "no"}}, r"neither true nor false of n4 \(its description is damaged or made up"),
        ({"normalisation": {}}, r"neither true nor false of n4 \(its description is damaged or made up"),
    ],
)
def test_a_description_that_fedseg_would_not_write_is_refused(
    make_model: MakeModel, changed: dict[str, Any], words: str
) -> None:
    path = make_model(**changed)
    with pytest.raises(ModelError, match=words) as refused:
        Segmenter([path])
    assert refused.value.where == str(path)


def test_n4_of_the_model_file_reaches_the_preparation(
    make_model: MakeModel, scan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    real = Segmenter.prepare.__globals__["prepare"]

    def noting(*given: Any, n4: bool, **more: Any) -> Any:
        asked.append(n4)
        return real(*given, n4=False, **more)

    monkeypatch.setattr("fedseg.runtime.prediction.prepare", noting)
    for n4 in (False, True):
        Segmenter([make_model(0, normalisation={"n4": n4})]).prepare(read_image(scan))
    assert asked == [False, True]


def test_clean_up_is_switchable_and_says_what_it_did(model: Path, scan: Path) -> None:
    image = read_image(scan)
    on, off = Segmenter([model])(image), Segmenter([model], Options(cleanup=False))(image)
    np.testing.assert_array_equal(off.labels, restore(off.probabilities, off.geometry))
    assert (off.cleaned.removed_ml, off.cleaned.filled_ml) == (0, 0)
    voxels = (np.count_nonzero(on.labels) - np.count_nonzero(off.labels)) * 0.8**3 / 1000
    assert on.cleaned.filled_ml - on.cleaned.removed_ml == pytest.approx(voxels, abs=1e-6)


def test_mirroring_segments_a_mirrored_scan_mirrored(model: Path, tmp_path: Path, save: Save) -> None:
    data = tiny_head()[0]
    data[:9, 3:6, 4:9] *= 2
    mirror = Segmenter([model], Options(mirror=True, cleanup=False))
    there = mirror(read_image(save(tmp_path / "a.nii", data)))
    back = mirror(read_image(save(tmp_path / "b.nii", np.ascontiguousarray(data[::-1]))))
    np.testing.assert_allclose(back.probabilities, there.probabilities[:, ::-1], atol=0.02)
    plain = Segmenter([model], Options(cleanup=False))(read_image(tmp_path / "a.nii"))
    assert np.abs(plain.probabilities - there.probabilities).max() > 1e-3


@pytest.mark.parametrize("name", ["sub-7_T2w.nii.gz", "sub-7_T2w.nii"])
@pytest.mark.parametrize("forms", [{"qform": 1, "sform": 0}, {"qform": 0, "sform": 2}, {"qform": 2, "sform": 4}])
def test_results_lie_on_the_scans_grid_with_its_form_codes(
    name: str, forms: dict[str, int], model: Path, tmp_path: Path, save: Save
) -> None:
    path = save(tmp_path / name, tiny_head()[0], LIP, **forms)
    result = predict(Segmenter([model]), find_scans([path]), tmp_path / "out", ALL)
    (done,) = result.done
    assert {kind: file.name for kind, file in done.files.items()} == {
        "segmentation": "sub-7_seg-fedseg_dseg.nii.gz",
        "brain_mask": "sub-7_desc-brain_mask.nii.gz",
        "probseg": "sub-7_seg-fedseg_probseg.nii.gz",
        "uncertainty": "sub-7_seg-fedseg_uncertainty.nii.gz",
    }
    source, opened = nib.load(path), {kind: nib.load(file) for kind, file in done.files.items()}
    for made in opened.values():
        assert made.shape[:3] == source.shape and made.get_data_dtype() == np.uint8
        np.testing.assert_array_equal(made.affine, source.affine)
        assert (int(made.header["qform_code"]), int(made.header["sform_code"])) == (forms["qform"], forms["sform"])
    labels, chances = opened["segmentation"].get_fdata(), opened["probseg"].get_fdata()
    assert chances.shape[3] == 8
    np.testing.assert_allclose(chances.sum(3), 1, atol=8 / 255)
    np.testing.assert_array_equal(opened["brain_mask"].get_fdata(), labels > 0)
    assert 0 <= opened["uncertainty"].get_fdata().min() < opened["uncertainty"].get_fdata().max() <= 1
    assert sum(done.volumes_ml.values()) == pytest.approx(np.count_nonzero(labels) * 0.8**3 / 1000)


def test_a_folder_of_results_says_what_it_is(model: Path, make_bids: MakeBids, tmp_path: Path) -> None:
    ages = "participant_id\tgestational_age\nsub-01\t24\nsub-02\tn/a\n"
    root = make_bids(2, participants=ages)
    scans = find_scans([root])
    assert [scan.gestational_age_weeks for scan in scans] == [24, None]
    predict(Segmenter([model]), scans, tmp_path / "out", ALL)
    about = json.loads((tmp_path / "out/dataset_description.json").read_text())
    assert about["DatasetType"] == "derivative" and "for research use only" in about["Name"]
    assert about["DatasetLinks"] == {"raw": "../bids"}
    assert about["GeneratedBy"][0]["Name"] == "fedseg" and "study tiny" in about["GeneratedBy"][0]["Description"]
    assert (tmp_path / "out/dseg.tsv").read_text().startswith("index\tname\tabbreviation")
    stem = tmp_path / "out/sub-01/anat/sub-01_rec-srr"
    sidecar = json.loads(Path(f"{stem}_seg-fedseg_dseg.json").read_text())
    assert sidecar["Sources"] == ["bids:raw:sub-01/anat/sub-01_rec-srr_T2w.nii.gz"]
    assert set(sidecar["VolumesML"]) == set(FETA.tissues) and {"Uncertainty", "CleanUp", "Flags"} <= set(sidecar)
    assert sidecar["BrainTissueML"] == brain_tissue_ml(sidecar["VolumesML"])
    assert sidecar["Models"] == [{"Study": "tiny", "ModelHash": Segmenter([model]).card.model_hash}]
    labels = json.loads(Path(f"{stem}_seg-fedseg_probseg.json").read_text())["LabelMap"]
    assert labels[:3] == ["BG", "eCSF", "CGM"] and len(labels) == 8
    assert json.loads(Path(f"{stem}_desc-brain_mask.json").read_text())["Type"] == "Brain"
    assert "research" in json.loads(Path(f"{stem}_seg-fedseg_uncertainty.json").read_text())["Description"]
    assert str(tmp_path) not in "".join(path.read_text() for path in (tmp_path / "out").rglob("*.json"))


def test_the_brain_mask_task_takes_thick_slices_and_writes_a_mask(
    make_model: MakeModel, tmp_path: Path, save: Save
) -> None:
    irp = np.array([[0, 1.1, 0, 0], [0, 0, 3.3, 0], [-1.1, 0, 0, 0], [0, 0, 0, 1.0]])
    path = save(tmp_path / "sub-1_run-3_T2w.nii.gz", tiny_head((40, 36, 12))[0], irp, qform=1, sform=0)
    segmenter = Segmenter([make_model(task="brain_mask", tissues=BRAIN_MASK.tissues)])
    (done,) = predict(segmenter, find_scans([path]), tmp_path / "out", Outputs(brain_mask=True)).done
    assert [file.name for file in done.files.values()] == ["sub-1_run-3_desc-brain_mask.nii.gz"]
    made = nib.load(done.files["segmentation"])
    assert made.shape == (40, 36, 12) and np.array_equal(made.affine, nib.load(path).affine)
    assert set(np.unique(made.get_fdata())) <= {0, 1}
    assert not (tmp_path / "out/dseg.tsv").exists()


def test_one_bad_scan_stops_no_other_and_leaves_no_file(model: Path, make_bids: MakeBids, tmp_path: Path) -> None:
    root = make_bids(3)
    bad = root / "sub-02/anat/sub-02_rec-srr_T2w.nii.gz"
    bad.write_bytes(bad.read_bytes()[:-3000])
    told = []
    result = predict(
        Segmenter([model]), find_scans([root]), tmp_path / "out", on_case=lambda done, of: told.append((done, of))
    )
    assert [each.scan.image.name[:6] for each in result.done] == ["sub-01", "sub-03"]
    ((scan, error),) = result.failed
    assert scan.image == bad and "cannot be read to the end" in error.what
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert not list((tmp_path / "out").rglob("sub-02*.*"))


def _no_memory_on_a_cpu() -> object:
    return torch.zeros(2**48)


def _no_memory_for_numpy() -> object:
    raise MemoryError


@pytest.mark.parametrize("step", ["prepare", "segment"])
@pytest.mark.parametrize("fail", [_no_memory_on_a_cpu, _no_memory_for_numpy])
def test_a_scan_that_does_not_fit_into_memory_is_one_failed_scan(
    step: str,
    fail: Callable[[], object],
    model: Path,
    make_bids: MakeBids,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    segmenter, scans, calls = Segmenter([model]), find_scans([make_bids(3)]), iter(range(3))
    real = getattr(segmenter, step)
    monkeypatch.setattr(segmenter, step, lambda *given: fail() if next(calls) == 1 else real(*given))
    result = predict(segmenter, scans, tmp_path / "out")
    assert [each.scan for each in result.done] == [scans[0], scans[2]]
    ((scan, error),) = result.failed
    assert (scan, error.where) == (scans[1], str(scans[1].image))
    assert "the scan doesn't fit into memory (close other programs, crop it to the head" in str(error)


def test_another_failure_of_the_network_ends_all(
    model: Path, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segmenter = Segmenter([model])
    monkeypatch.setattr(segmenter, "segment", lambda *_: torch.zeros(2) + torch.zeros(3))
    with pytest.raises(RuntimeError, match="size of tensor"):
        predict(segmenter, find_scans([scan]), tmp_path / "out")


def test_where_every_scan_is_bad_nothing_is_described(model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.nii").write_bytes(b"no scan")
    result = predict(Segmenter([model]), find_scans([tmp_path / "a.nii"]), tmp_path / "out")
    assert not result.done and not (tmp_path / "out").exists()


def test_the_next_scan_is_read_while_one_is_segmented_and_no_more(
    model: Path, make_bids: MakeBids, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans, read, second = find_scans([make_bids(4)]), [], threading.Event()

    def reading(path: Path) -> Any:
        read.append((path.name[:6], threading.current_thread().name))
        if len(read) == 2:
            second.set()
        return read_image(path)

    monkeypatch.setattr(batches, "read_image", reading)
    segmenter, at_work = Segmenter([model]), []
    real = segmenter.segment

    def segment(prepared: Any) -> Any:
        assert second.wait(timeout=20), "the next scan is read meanwhile"
        at_work.append(len(read))
        return real(prepared)

    monkeypatch.setattr(segmenter, "segment", segment)
    predict(segmenter, scans, tmp_path / "out")
    assert [name for name, _ in read] == ["sub-01", "sub-02", "sub-03", "sub-04"]
    assert all(thread.startswith("read-ahead") for _, thread in read)
    assert all(ahead <= done + 2 for done, ahead in enumerate(at_work))


def test_a_stop_keeps_what_is_whole_and_says_so(model: Path, make_bids: MakeBids, tmp_path: Path) -> None:
    scans, out, stop = find_scans([make_bids(3)]), tmp_path / "out", threading.Event()
    with pytest.raises(Interrupted, match=r"1 of 3 scans are segmented in .*what is there is whole"):
        predict(Segmenter([model]), scans, out, on_case=lambda *_: stop.set(), should_stop=stop.is_set)
    assert [path.name for path in out.rglob("*_dseg.nii.gz")] == ["sub-01_rec-srr_seg-fedseg_dseg.nii.gz"]
    assert not any(thread.name.startswith("read-ahead") for thread in threading.enumerate())


def test_ctrl_c_while_a_file_is_written_leaves_no_half_file(
    model: Path, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segmenter, scans, out = Segmenter([model]), find_scans([scan]), tmp_path / "out"
    predict(segmenter, scans, out)
    whole = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        predict(segmenter, scans, out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == whole


def test_what_is_there_is_replaced_and_the_same_bytes_come_again(model: Path, scan: Path, tmp_path: Path) -> None:
    segmenter, scans, out = Segmenter([model]), find_scans([scan]), tmp_path / "out"
    predict(segmenter, scans, out)
    (target,) = out.rglob("*_dseg.nii.gz")
    first = target.read_bytes()
    target.write_bytes(b"something else")
    predict(segmenter, scans, out)
    assert target.read_bytes() == first


def test_an_output_that_cannot_be_a_folder(model: Path, scan: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="this is a file, not a folder"):
        predict(Segmenter([model]), find_scans([scan]), tmp_path / "file")


def test_scans_are_found_by_name_in_folders_and_in_trees(tmp_path: Path, make_bids: MakeBids, save: Save) -> None:
    root = make_bids(1)
    save(root / "sub-02/ses-1/anat/sub-02_ses-1_T2w.nii", tiny_head()[0])
    plain = save(tmp_path / "plain/b.nii", tiny_head()[0]).parent
    save(plain / "a.nii.gz", tiny_head()[0])
    save(plain / "a_seg-fedseg_dseg.nii.gz", tiny_head()[1])
    save(plain / "a_desc-brain_mask.nii.gz", tiny_head()[1])
    found = find_scans([root, plain])
    assert [str(each.name) for each in found] == [
        "sub-01/anat/sub-01_rec-srr",
        "sub-02/ses-1/anat/sub-02_ses-1",
        "a",
        "b",
    ]
    assert [each.root for each in found] == [root, root, plain, plain]
    assert find_scans([plain / "a.nii.gz"]) == [Scan(plain / "a.nii.gz", Path("a"))]


@pytest.mark.parametrize(
    ("given", "source"),
    [
        ("sub-02/anat/sub-02_rec-srr_T2w.nii.gz", "sub-02/anat/sub-02_rec-srr_T2w.nii.gz"),
        ("sub-02", "sub-02/anat/sub-02_rec-srr_T2w.nii.gz"),
        ("sub-01/../sub-02/anat", "sub-02/anat/sub-02_rec-srr_T2w.nii.gz"),
        ("derivatives/svr", "derivatives/svr/sub-02/ses-1/anat/sub-02_ses-1_T2w.nii.gz"),
    ],
)
def test_any_part_of_a_tree_has_the_ages_of_the_tree(
    given: str,
    source: str,
    make_bids: MakeBids,
    save: Save,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = make_bids(2, participants="participant_id\tgestational_age\nsub-01\t24\nsub-02\t27\n")
    save(root / "derivatives/svr/sub-02/ses-1/anat/sub-02_ses-1_T2w.nii.gz", tiny_head()[0])
    (root / "derivatives/svr/dataset_description.json").write_text("{}")
    monkeypatch.chdir(root)
    scans = find_scans([Path(given)])
    assert [(scan.gestational_age_weeks, scan.root) for scan in scans] == [(27, root)]
    (done,) = predict(Segmenter([model]), scans, tmp_path / "out").done
    sidecar = json.loads(Path(str(done.files["segmentation"]).replace(".nii.gz", ".json")).read_text())
    assert sidecar["Sources"] == [f"bids:raw:{source}"]


def test_a_list_of_subjects_above_no_tree_gives_no_age(tmp_path: Path, save: Save) -> None:
    (tmp_path / "participants.tsv").write_text("participant_id\tgestational_age\nsub-01\t24\n")
    for scan in ("sub-01_T2w.nii", "mine/sub-01/anat/sub-01_T2w.nii"):
        save(tmp_path / scan, tiny_head()[0])
        (found,) = find_scans([tmp_path / scan])
        assert found.gestational_age_weeks is None and found.root is None


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("x.txt",), "this is no NIfTI file"),
        (("nowhere.nii",), "there is no such file or folder"),
        (("a.nii", "a.nii.gz"), r"two inputs would both be written to a_seg-fedseg\*"),
        (("empty",), "the folder holds no scan"),
    ],
)
def test_inputs_that_cannot_be_segmented(names: tuple[str, ...], words: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("x.txt", "a.nii", "a.nii.gz"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=words):
        find_scans([tmp_path / name for name in names])


def test_a_tree_is_searched_as_a_data_set_is(make_bids: MakeBids, save: Save, tmp_path: Path) -> None:
    root = make_bids(1)
    stem = "sub-01/anat/sub-01_rec-srr_T2w.nii.gz"
    save(root / "sourcedata" / stem, tiny_head()[0])
    (root / "sub-01/anat/._sub-01_rec-srr_T2w.nii.gz").write_bytes(b"\0")
    (root / "sub-02").symlink_to(save(tmp_path / "store/anat/sub-02_T2w.nii", tiny_head()[0]).parents[1])
    assert [str(each.name) for each in find_scans([root])] == ["sub-01/anat/sub-01_rec-srr", "sub-02/anat/sub-02"]
    assert [each.image for each in find_scans([root / "sourcedata"])] == [root / "sourcedata" / stem]
    plain = save(tmp_path / "plain/a.nii", tiny_head()[0]).parent
    (plain / "._a.nii").write_bytes(b"\0")
    assert [each.image.name for each in find_scans([plain])] == ["a.nii"]


def test_each_session_has_its_own_age(make_bids: MakeBids, save: Save) -> None:
    rows = "participant_id\tsession_id\tgestational_age\nsub-01\tses-1\t22\nsub-01\tses-2\t34\n"
    root = make_bids(0, tsv=None, participants=rows)
    for session in "123":
        save(root / f"sub-01/ses-{session}/anat/sub-01_ses-{session}_T2w.nii", tiny_head()[0])
    assert [each.gestational_age_weeks for each in find_scans([root])] == [22, 34, None]


def test_a_result_has_one_desc(tmp_path: Path, save: Save) -> None:
    scan = save(tmp_path / "sub-01_desc-preproc_T2w.nii.gz", tiny_head()[0])
    assert [str(each.name) for each in find_scans([scan])] == ["sub-01/anat/sub-01"]


def test_volumes_of_sheared_voxels_are_what_they_enclose(model: Path, tmp_path: Path, save: Save) -> None:
    angle = np.radians(15)
    sheared = np.diag([0.8, 0.8, 0.8, 1.0])
    sheared[:3, 1] = 0.8 * np.array([np.sin(angle), np.cos(angle), 0])
    scan = save(tmp_path / "7.nii", tiny_head()[0], sheared)
    (done,) = predict(Segmenter([model]), find_scans([scan]), tmp_path / "out").done
    voxels = np.count_nonzero(nib.load(done.files["segmentation"]).get_fdata())
    assert sum(done.volumes_ml.values()) == pytest.approx(voxels * 0.8**3 * np.cos(angle) / 1000, rel=1e-5)
