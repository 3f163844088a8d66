"""`fedseg evaluate`: one model, several compared, several data sets; what it says, writes and refuses."""

from __future__ import annotations

import csv
import json
import re
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from fedseg.labels import BRAIN_MASK, FETA, LabelScheme
from fedseg.runtime import reporting
from fedseg.runtime.scoring import Scored, score_case
from fedseg.store.checkpoints import ModelCard, load_model, save_model
from tests.cli.conftest import Command

nib: Any = nibabel

MakeBids = Callable[..., Path]
PEOPLE = "participant_id\tgestational_age\tPathology\tsplit\n"
TWO = f"{PEOPLE}sub-01\t24\tneurotypical\ttest\nsub-02\t33\tspina bifida\ttest\n"


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Untrained model files: two of the tissue task, one of the mask task."""
    folder = tmp_path_factory.mktemp("models")
    made = {"first": (FETA, 0), "second": (FETA, 1), "mask": (BRAIN_MASK, 0)}
    return {name: _model(folder / f"{name}.safetensors", *kind) for name, kind in made.items()}


def _model(path: Path, scheme: LabelScheme, seed: int) -> Path:
    from fedseg.training.network import architecture, arrays, build_network

    card = ModelCard(
        architecture=architecture("small", scheme.classes), task=scheme.name, tissues=scheme.tissues, spacing_mm=0.8,
        patch=(16, 16, 16), normalisation={"n4": False}, study="tiny", plan_hash="0" * 64, rounds=0, contributors=(),
        privacy={"mode": "off", "epsilon": None}, code_version="0",
    )  # fmt: skip
    save_model(path, arrays(build_network("small", scheme.classes, seed)), card)
    return path


def test_one_model_by_tissue_age_and_pathology_with_the_worst_named(
    fedseg: Command, make_bids: MakeBids, models: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    answer = fedseg("evaluate", models["first"], "--data", make_bids(2, participants=TWO), "--out", out)
    assert answer.code == 0, answer.err
    document = json.loads((out / "scores.json").read_text())
    worst = document["summary"]["worst"]["subject"]
    assert f"Worst subject: {worst['subject']}, mean Dice {worst['dice']:.3f}" in answer.out
    for shown in (
        "cortical grey matter",
        "24-28",
        "32-36",
        "spina bifida",
        "ASD mm",
        "NSD normalised surface Dice at 1 mm",
    ):
        assert shown in answer.out
    assert "Worst site" not in answer.out
    counted = [flag["severity"] for row in document["subjects"] for flag in row["flags"]]
    assert counted.count("error") and f"Quality flags: {counted.count('error')} error" in answer.out
    assert f"{counted.count('warning')} warnings (01, 02: the page says why)" in answer.out
    assert "Scored: the subjects of the split test, 2 subjects. For research use only." in answer.out
    assert f"Page: {out}/report.html; also scores.csv and scores.json there (patient data: keep them" in answer.out
    assert f"fedseg predict {models['first']} SCANS --out DIR" in answer.out
    assert {path.name for path in out.iterdir()} == {"report.html", "scores.csv", "scores.json"}
    # Rows are single patients.
    assert {stat.S_IMODE(path.stat().st_mode) for path in out.iterdir()} == {0o600}
    assert stat.S_IMODE(out.stat().st_mode) == 0o700
    row = document["subjects"][0]
    for kind in ("", "reference_"):
        volumes = row[f"{kind}volume_ml"]
        fluid = volumes["external_csf"] + volumes["ventricles"]
        assert row[f"{kind}brain_tissue_ml"] == pytest.approx(sum(volumes.values()) - fluid)


def test_names_in_brackets_are_printed_as_they_are(
    fedseg: Command, make_bids: MakeBids, models: dict[str, Path], tmp_path: Path
) -> None:
    both = [tmp_path / name for name in ("[b]", "[red]")]
    for path, name in zip(both, ("first", "second"), strict=True):
        path.write_bytes(models[name].read_bytes())
    people = "participant_id\tpathology\tsite\tsplit\nsub-01\t[/x]\t:brain:\ttest\nsub-02\t[dim]y\t[/i]\ttest\n"
    answer = fedseg("evaluate", *both, "--data", make_bids(2, participants=people), "--out", tmp_path / "out")
    assert answer.code == 0, answer.err
    for shown in (
        "[/x] ",
        "[dim]y ",
        ":brain: ",
        "[/i] ",
        "[red] minus [b], 2 subjects",
        "Dice [b] ",
        "HD95 mm [red] ",
    ):
        assert shown in answer.out


def test_what_must_stay_or_may_name_a_person_is_said(
    fedseg: Command, make_bids: MakeBids, models: dict[str, Path], tmp_path: Path
) -> None:
    arrays, card = load_model(models["first"])
    save_model(tmp_path / "own.safetensors", arrays, replace(card, privacy={"never_hand_on": "not private"}))
    stem, table = "sub-01/anat/sub-01_rec-srr", make_bids(1) / "pairs.csv"
    table.write_text(f"image,label,subject\n{stem}_T2w.nii.gz,derivatives/manual/{stem}_dseg.nii.gz,anna\n")
    words = ("evaluate", tmp_path / "own.safetensors", "--data", table, "--labels", "fidon", "--out", tmp_path / "out")
    answer = fedseg(*words)
    assert answer.code == 0, answer.err
    assert "Note: own.safetensors must not be handed on: not private" in answer.err
    assert "the scan's name holds a date, or a word that may be a person's name" in answer.err
    assert "anna" not in answer.err
    assert "must not be handed on: not private." in (tmp_path / "out/report.html").read_text()


def test_every_row_has_its_flags(fedseg: Command, make_bids: MakeBids, models: dict[str, Path], tmp_path: Path) -> None:
    answer = fedseg("evaluate", models["first"], "--data", make_bids(2), "--out", tmp_path / "out", "--json")
    for row in json.loads(answer.out)["subjects"]:
        assert row["flags"]
        assert all(set(flag) == {"kind", "severity", "what", "hint"} for flag in row["flags"])
        assert {flag["severity"] for flag in row["flags"]} <= {"error", "warning", "note"}


def test_two_models_are_compared_on_the_same_subjects(
    fedseg: Command, make_bids: MakeBids, models: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shown = fedseg("evaluate", models["first"], models["second"], "--data", make_bids(2), "--out", out).out
    document = json.loads((out / "scores.json").read_text())
    assert [each["model"]["file"] for each in document["models"]] == ["first.safetensors", "second.safetensors"]
    (compared,) = document["comparisons"]
    assert (compared["first"], compared["second"], compared["subjects"]) == (0, 1, 2)
    means = [each["summary"]["dice"]["mean"] for each in document["models"]]
    assert compared["metrics"]["dice"]["mean"]["difference"] == pytest.approx(means[1] - means[0])
    assert "second.safetensors minus first.safetensors, 2 subjects" in shown
    way = "higher" if means[1] > means[0] else "lower"
    assert f"Mean Dice of second.safetensors is {abs(means[1] - means[0]):.3f} {way} than that of first" in shown
    assert "chance alone could make that" in shown
    assert "with 2 subjects p cannot fall below 0.5" in shown
    with (out / "scores.csv").open() as file:
        assert {row["model"] for row in csv.DictReader(file)} == {"first.safetensors", "second.safetensors"}


def test_models_of_one_file_name_are_told_apart_by_their_folders(
    fedseg: Command, make_bids: MakeBids, models: dict[str, Path], tmp_path: Path
) -> None:
    both = [tmp_path / name / "model.safetensors" for name in ("ours", "theirs")]
    for path, name in zip(both, ("first", "second"), strict=True):
        path.parent.mkdir()
        path.write_bytes(models[name].read_bytes())
    answer = fedseg("evaluate", *both, "--data", make_bids(1), "--out", tmp_path / "out", "--json")
    named = [each["model"]["file"] for each in json.loads(answer.out)["models"]]
    assert named == ["ours/model.safetensors", "theirs/model.safetensors"]


def test_several_data_sets_are_sites_of_one_evaluation(
    fedseg: Command, make_bids: MakeBids, models: dict[str, Path], tmp_path: Path
) -> None:
    # Both have a subject 01, who is another person at each.
    data = ("--data", make_bids(2, name="leuven"), "--data", make_bids(1, name="wien"))
    out = tmp_path / "out"
    shown = fedseg("evaluate", models["first"], *data, "--out", out).out
    document = json.loads((out / "scores.json").read_text())
    people = [(row["site"], row["subject"]) for row in document["subjects"]]
    assert people == [("leuven", "01"), ("leuven", "02"), ("wien", "01")]
    by_site = document["summary"]["by_site"]
    assert {site: found["subjects"] for site, found in by_site.items()} == {"leuven": 2, "wien": 1}
    assert re.search(r"Worst site: (leuven|wien), mean Dice 0\.\d{3}", shown)
    assert re.search(r"Worst subject: 0[12] at (leuven|wien), mean Dice", shown)
    assert "Scored: all subjects, 3 subjects." in shown


def test_namesakes_of_two_sites_each_have_their_own_picture(
    fedseg: Command, make_bids: MakeBids, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []

    def page(_: object, pictures: dict[str, object]) -> str:
        given.append(len(pictures))
        return "page"

    monkeypatch.setattr(reporting, "evaluation_page", page)
    data = ("--data", make_bids(1, name="leuven"), "--data", make_bids(1, name="wien"))
    answer = fedseg(
        "evaluate", models["first"], *data, "--site", "a", "--site", "b", "--out", tmp_path / "out", "--json"
    )
    assert given == [2]
    assert [row["run"] for row in json.loads(answer.out)["subjects"]] == ["a sub-01_rec-srr", "b sub-01_rec-srr"]


def test_clean_up_is_as_in_predict_and_can_be_switched_off(
    fedseg: Command, make_bids: MakeBids, models: dict[str, Path], tmp_path: Path
) -> None:
    data = make_bids(1)
    words = ("evaluate", models["second"], "--data", data, "--out", tmp_path / "out", "--json")
    usual, raw = (json.loads(fedseg(*words, *more).out)["subjects"][0] for more in ((), ("--no-cleanup",)))
    # An untrained network scatters its classes: there is something to clean up.
    cleaned = [flag for flag in usual["flags"] if flag["what"].startswith("the clean-up")]
    assert cleaned
    assert not [flag for flag in raw["flags"] if flag["what"].startswith("the clean-up")]
    assert usual["volume_ml"] != raw["volume_ml"]


def test_volumes_of_one_scan_at_a_time_are_held(
    fedseg: Command, make_bids: MakeBids, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import weakref

    held: list[weakref.ref[object]] = []
    most: list[int] = []
    flags = reporting._flags

    def counting(segmenter: object, scored: Scored) -> object:
        held.append(weakref.ref(scored.segmentation))
        most.append(sum(each() is not None for each in held))
        return flags(segmenter, scored)  # type: ignore[arg-type]

    monkeypatch.setattr(reporting, "_flags", counting)
    fedseg("evaluate", models["first"], models["second"], "--data", make_bids(2), "--out", tmp_path / "out")
    assert most == [1] * 4


@pytest.mark.parametrize(
    ("words", "code", "parts"),
    [
        (["first", "mask"], 1, ("models of different tasks", "for brain_mask", "for feta", "models of one task")),
        (["first", "first"], 2, ("this is the same model as", "first.safetensors", "name each model once")),
        (["first", "copy"], 2, ("this is the same model as", "copy.safetensors", "name each model once")),
        (["first", "--split", "validation"], 1, ("no subject is in the split validation", "--split all")),
        (["first", "--site", "a", "--site", "b"], 2, ("1 data set and 2 times --site", "one --site for each --data")),
        (
            ["first", "--data", "other", "--labels", "fidon"],
            2,
            ("2 data sets and 1 times --labels", "in the same order"),
        ),
        (["first", "--data", "elsewhere/bids"], 2, ("two data sets are called bids", "one --site for each --data")),
        (["first", "--data", "bids", "--site", "a", "--site", "a"], 1, ("2 data sets have a subject 01 of site a",)),
        (["first", "--data", "tested"], 2, ("no test subjects and another one has", "bids", "--split all")),
        (["first", "--out", "file"], 1, ("this is a file, not a folder", "name a folder with --out")),
        (["first", "--out", "file/below"], 1, ("a part of the path is a file", "check the path")),
        (["nowhere"], 1, ("there is no such model file", "nowhere.safetensors")),
        (["first", "--federated", "study"], 2, ("--federated takes no models, data or folder",)),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_anything_is_segmented(
    fedseg: Command,
    make_bids: MakeBids,
    models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    code: int,
    parts: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reporting, "score_case", lambda *_: pytest.fail("a scan was segmented"))
    for name in ("bids", "other", "elsewhere/bids"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        make_bids(2, name=name)
    make_bids(2, name="tested", participants=TWO)
    (tmp_path / "file").write_text("something")
    arrays, card = load_model(models["first"])
    save_model(tmp_path / "copy.safetensors", arrays, replace(card, study="another name"))
    files = models | {"copy": Path("copy.safetensors")}
    named = [files.get(word, f"{word}.safetensors" if word == "nowhere" else word) for word in words]
    out = () if "--out" in words else ("--out", "out")
    fedseg("evaluate", "--data", "bids", *out, *named).says(code, *parts)
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("words", "what"),
    [([], "MODEL and --data and --out are missing"), (["model", "--data", "x"], "--out is missing")],
)
def test_what_is_missing_is_named_with_an_example(fedseg: Command, words: list[str], what: str) -> None:
    fedseg("evaluate", *words).says(2, what, "try: fedseg evaluate model.safetensors --data")


def _nan(root: Path, subject: str) -> Path:
    path = root / f"sub-{subject}/anat/sub-{subject}_rec-srr_T2w.nii.gz"
    image = nib.load(path)
    data = image.get_fdata(dtype=np.float32)
    data[0, 0, 0] = np.nan
    nib.Nifti1Image(data, image.affine).to_filename(path)
    return path


def test_a_bad_scan_stops_no_other_and_is_named_everywhere(
    fedseg: Command, make_bids: MakeBids, models: dict[str, Path], tmp_path: Path
) -> None:
    root, out = make_bids(3), tmp_path / "out"
    bad = _nan(root, "01")
    answer = fedseg("evaluate", models["first"], models["second"], "--data", root, "--out", out)
    answer.says(1, "1 of 11440 voxels are NaN or infinite", str(bad), "export the scan again")
    assert "Not scored, and in no mean: 1 scan (01: the page says why)" in answer.out
    assert "2 subjects" in answer.out
    document = json.loads((out / "scores.json").read_text())
    for each in document["models"]:
        assert [row["subject"] for row in each["subjects"]] == ["02", "03"]
        assert [(one["subject"], one["scan"]) for one in each["failed"]] == [("01", str(bad))]
        assert "NaN" in each["failed"][0]["error"]
    assert document["comparisons"][0]["subjects"] == 2
    page = (out / "report.html").read_text()
    assert "Not scored, and in no mean: 1 scan: 01 (1 of 11440 voxels are NaN or infinite)." in page


def test_a_scan_that_only_a_later_model_cannot_take_is_left_out_of_all(
    fedseg: Command, make_bids: MakeBids, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = score_case, iter(range(4))

    def scoring(*given: Any) -> Scored:
        if next(calls) == 2:
            raise MemoryError
        return real(*given)

    monkeypatch.setattr(reporting, "score_case", scoring)
    words = ("--data", make_bids(2), "--out", tmp_path / "out", "--json")
    answer = fedseg("evaluate", models["first"], models["second"], *words)
    answer.says(1, "the scan doesn't fit into memory", "sub-01_rec-srr_T2w.nii.gz")
    for each in json.loads(answer.out)["models"]:
        assert [row["subject"] for row in each["subjects"]] == ["02"]
        assert [one["subject"] for one in each["failed"]] == ["01"]


def test_where_no_scan_can_be_scored_nothing_is_written(
    fedseg: Command, make_bids: MakeBids, models: dict[str, Path], tmp_path: Path
) -> None:
    root, out = make_bids(2), tmp_path / "out"
    for subject in ("01", "02"):
        _nan(root, subject)
    answer = fedseg("evaluate", models["first"], "--data", root, "--out", out)
    answer.says(1, "none of 2 scans can be scored; the first: 1 of 11440 voxels are NaN", "sub-01_rec-srr_T2w")
    assert not out.exists()
