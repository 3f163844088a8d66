"""`fedseg predict`: what it prints, and how it ends."""

from __future__ import annotations

import json
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedseg.labels import FETA
from fedseg.store.checkpoints import save_model
from tests.cli.conftest import Command
from tests.conftest import Save, tiny_head
from tests.runtime.test_prediction import CARD

STAYS = "not private: it stays at the site, never hand it on"

MakeBids = Callable[..., Path]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model file."""
    return _model(tmp_path_factory.mktemp("model") / "model.safetensors")


def _model(path: Path, **changed: Any) -> Path:
    from fedseg.training.network import architecture, arrays, build_network

    card = replace(CARD, architecture=architecture("small", 8), **changed)
    save_model(path, arrays(build_network("small", 8, 0)), card)
    return path


def test_the_json_has_everything_about_each_scan(
    fedseg: Command,
    make_bids: MakeBids,
    model: Path,
    tmp_path: Path,
) -> None:
    root, out = make_bids(2), tmp_path / "out"
    answer = fedseg("predict", model, root, "--out", out, "--brain-mask", "--probseg", "--uncertainty", "--json")
    assert answer.code == 0, answer.err
    document = json.loads(answer.out)
    assert set(document) == {"models", "options", "segmented", "failed", "use"} and document["failed"] == []
    assert document["options"] == {"cleanup": True, "mirror": False, "one_pass": False, "precision": "auto"}
    assert [each["study"] for each in document["models"]] == ["tiny"]
    first = document["segmented"][0]
    for kind in ("scan", "segmentation", "brain_mask", "probseg", "uncertainty_map"):
        assert Path(first[kind]).is_file()
    volumes = first["volumes_ml"]
    assert set(volumes) == set(FETA.tissues) and 0 < first["uncertainty"] <= 1
    fluid = volumes["external_csf"] + volumes["ventricles"]
    assert first["brain_tissue_ml"] == pytest.approx(sum(volumes.values()) - fluid)
    assert document["models"][0]["privacy"] == {"mode": "off"} and first["gestational_age_weeks"] is None
    assert set(first["cleaned"]) == {"removed_ml", "filled_ml"}
    assert {"passes", "windows", "padded", "needs_bytes", "free_bytes"} == set(first["ways"][0])
    assert {"kind", "severity", "what", "hint"} == set(first["flags"][0])


def _large(tmp_path: Path, save: Save) -> Path:
    return save(tmp_path / "large/sub-01_rec-srr_T2w.nii.gz", tiny_head((80, 80, 80))[0]).parent


def test_the_screen_has_volumes_flags_the_way_and_the_end(
    fedseg: Command,
    save: Save,
    model: Path,
    tmp_path: Path,
) -> None:
    answer = fedseg("predict", model, _large(tmp_path, save), "--out", tmp_path / "out", "--no-cleanup", "--mirror")
    assert answer.code == 0, answer.err
    for words in (
        "brain tissue mL",
        "ventricles mL",
        "without ventricles and external CSF",
        "sub-01_rec-srr",
        "uncertainty",
        "GB predicted",
        "GB free",
        f"1 scan is segmented in {tmp_path / 'out'}; dseg.tsv there names the labels. Patient data",
        "not checked of the scan, as no participants.tsv gives the gestational age",
        "Next: look at each over its scan, flagged ones first",
    ):
        assert words in answer.out
    made = tmp_path / "out/sub-01/anat/sub-01_rec-srr_seg-fedseg_dseg.nii.gz"
    assert f"itksnap -g {tmp_path / 'large/sub-01_rec-srr_T2w.nii.gz'} -s {made}" in answer.out
    assert "by overlapping windows" in answer.out and "For research use only" in answer.out
    assert "clean-up mL" not in answer.out and "Clean-up:" not in answer.out
    one_pass = fedseg("predict", model, tmp_path / "large", "--out", tmp_path / "out", "--one-pass")
    assert "in one pass each" in one_pass.out and "clean-up mL" in one_pass.out


@pytest.mark.parametrize("name", ["[bold][x]", ":brain:"])
def test_names_that_look_like_markup_are_printed_as_they_are(
    name: str, fedseg: Command, save: Save, model: Path, tmp_path: Path
) -> None:
    scan = save(tmp_path / f"{name}.nii", tiny_head()[0])
    answer = fedseg("predict", model, scan, "--out", tmp_path / "out")
    assert answer.code == 0, answer.err
    assert f"{name} " in answer.out and f": {name}: " in answer.out


def test_a_name_that_may_be_a_persons_is_warned_of_and_not_quoted(
    fedseg: Command, save: Save, model: Path, tmp_path: Path
) -> None:
    scans = [save(tmp_path / name, tiny_head()[0]) for name in ("Mueller_t2.nii", "f7_2024-05-01.nii", "scan_7.nii")]
    answer = fedseg("predict", model, *scans, "--out", tmp_path / "out", "--json")
    assert "the names of 2 of 3 scans hold a date, or a word that may be a person's name" in answer.err
    assert "rename before you hand anything on" in answer.err
    assert "Mueller" not in answer.err and "2024" not in answer.err


def test_a_model_that_must_stay_is_said_to(fedseg: Command, make_bids: MakeBids, tmp_path: Path) -> None:
    stays = _model(tmp_path / "own.safetensors", privacy={"mode": "off", "never_hand_on": STAYS})
    answer = fedseg("predict", stays, make_bids(1), "--out", tmp_path / "out")
    assert f"Note: {stays} must not be handed on: {STAYS}" in answer.err


def test_the_worst_flagged_scan_is_the_one_to_open(
    fedseg: Command, save: Save, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedseg.imaging.grid_flags import Flag
    from fedseg.runtime import batch

    def flags(*given: Any, **_: Any) -> list[Flag]:
        name = Path(given[1].source).name
        return [Flag("cut", {"a.nii": "note", "b.nii": "error", "c.nii": "warning"}[name], name)]  # type: ignore[arg-type]

    monkeypatch.setattr(batch, "flags_of", flags)
    scans = [save(tmp_path / f"{name}.nii", tiny_head()[0]) for name in "abc"]
    answer = fedseg("predict", model, *scans, "--out", tmp_path / "out")
    assert f"itksnap -g {scans[1]} " in answer.out and "3 of 3 scans are segmented" in answer.out


def test_results_are_for_their_owners_eyes(fedseg: Command, make_bids: MakeBids, model: Path, tmp_path: Path) -> None:
    above = tmp_path / "above"
    words = ("predict", model, make_bids(1), "--out", above / "out", "--brain-mask", "--probseg", "--uncertainty")
    assert fedseg(*words).code == 0
    made = [above, *above.rglob("*")]
    assert {stat.S_IMODE(path.stat().st_mode) for path in made if path.is_dir()} == {0o700}
    assert {stat.S_IMODE(path.stat().st_mode) for path in made if path.is_file()} == {0o600}
    assert len([path for path in made if path.suffix == ".gz"]) == 4


def test_a_refusal_leaves_no_folder(fedseg: Command, save: Save, model: Path, tmp_path: Path) -> None:
    out, bad = tmp_path / "above/out", tmp_path / "bad.nii"
    bad.write_bytes(b"no scan")
    refused = fedseg("predict", model, bad, "--out", out)
    refused.says(1, "this is not a readable NIfTI file")
    assert refused.out == "No scan is segmented.\n"
    fedseg("predict", bad, bad, "--out", out).says(1, "bad.nii")
    assert not (tmp_path / "above").exists()
    (tmp_path / "above").write_text("")
    scan = save(tmp_path / "7.nii", tiny_head()[0])
    fedseg("predict", model, scan, "--out", out).says(1, "a part of the path is a file, not a folder")
    fedseg("predict", model, scan, "--out", tmp_path / "above").says(1, "this is a file, not a folder", "--out")


def test_another_model_is_named_with_and(
    fedseg: Command,
    make_bids: MakeBids,
    model: Path,
    tmp_path: Path,
) -> None:
    root = make_bids(1)
    answer = fedseg("predict", model, root, "--and", model, "--out", tmp_path / "out")
    answer.says(1, "this is the same model as", "cannot be averaged", "name each model once")
    assert not (tmp_path / "out").exists()


def test_ctrl_c_ends_cleanly_and_leaves_whole_files(tmp_path: Path, save: Save, model: Path) -> None:
    for number in range(40):
        save(tmp_path / f"scans/sub-{number:02d}_T2w.nii.gz", tiny_head(seed=number)[0])
    out = tmp_path / "out"
    words = [sys.executable, "-m", "fedseg", "predict", str(model), str(tmp_path / "scans"), "--out", str(out)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 200
    while not list(out.rglob("*_dseg.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=200)
    assert process.returncode == 130, said
    assert "of 40 scans are segmented" in said and "what is there is whole" in said and "Traceback" not in said
    made = [path.name for path in out.rglob("*") if path.is_file()]
    assert all(name.endswith(("_dseg.nii.gz", ".json", "dseg.tsv")) and not name.startswith(".") for name in made)
    assert len([name for name in made if name.endswith(".nii.gz")]) < 40


def test_an_odd_cell_costs_no_more_than_what_it_says(
    fedseg: Command, make_bids: MakeBids, model: Path, tmp_path: Path
) -> None:
    rows = "sub-01\tunknown\ttest\nsub-02\t31\tholdout\n"
    root = make_bids(2, participants=f"participant_id\tgestational_age\tsplit\n{rows}")
    scan = root / "sub-01/anat/sub-01_rec-srr_T2w.nii.gz"
    answer = fedseg("predict", model, root / "sub-02", scan, "--out", tmp_path / "out", "--json")
    assert answer.code == 0, answer.err
    assert [each["gestational_age_weeks"] for each in json.loads(answer.out)["segmented"]] == [31, None]
    first = f"Warning: {root}/participants.tsv: subject '01', column gestational_age: this is not a number of weeks"
    said = " ".join(answer.err.split())
    assert f"{first} (and 1 more: `fedseg data check` lists all). What is wrong there counts as not known." in said
    assert answer.err.count("Warning: ") == 1


def test_a_sites_own_folder_is_refused_and_left_as_it_is(
    fedseg: Command, make_bids: MakeBids, model: Path, tmp_path: Path
) -> None:
    root = make_bids(1, participants="participant_id\nsub-01\n")
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    for out in (root, root / "derivatives", root / "derivatives/manual"):
        refused = fedseg("predict", model, root, "--out", out)
        refused.says(2, "segmentations go into a folder of their own", f"{root}/derivatives/fedseg")
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    assert fedseg("predict", model, root, "--out", root / "derivatives/fedseg").code == 0
