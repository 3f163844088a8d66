"""`fedseg predict`: what it prints, and how it ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fedseg.labels import FETA
from fedseg.store.checkpoints import save_model
from tests.cli.conftest import Command
from tests.conftest import Save, tiny_head
from tests.runtime.test_prediction import CARD

MakeBids = Callable[..., Path]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model file."""
    from fedseg.training.network import architecture, arrays, build_network

    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_model(path, arrays(build_network("small", 8, 0)), replace(CARD, architecture=architecture("small", 8)))
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
    assert document["options"] == {"cleanup": True, "mirror": False, "one_pass": False}
    assert [each["study"] for each in document["models"]] == ["tiny"]
    first = document["segmented"][0]
    for kind in ("scan", "segmentation", "brain_mask", "probseg", "uncertainty_map"):
        assert Path(first[kind]).is_file()
    assert set(first["volumes_ml"]) == set(FETA.tissues) and 0 < first["uncertainty"] <= 1
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
    for words in ("brain mL", "sub-01_rec-srr", "uncertainty", "GB predicted", "GB free", "1 of 1 scans are segmented"):
        assert words in answer.out
    assert "by overlapping windows" in answer.out and "For research use only" in answer.out
    assert "removed mL" not in answer.out
    one_pass = fedseg("predict", model, tmp_path / "large", "--out", tmp_path / "out", "--one-pass")
    assert "in one pass each" in one_pass.out and "removed mL" in one_pass.out


def test_names_in_brackets_are_printed_as_they_are(fedseg: Command, save: Save, model: Path, tmp_path: Path) -> None:
    scan = save(tmp_path / "[bold][x].nii", tiny_head()[0])
    answer = fedseg("predict", model, scan, "--out", tmp_path / "out")
    assert answer.code == 0, answer.err
    assert "[bold][x] " in answer.out and ": [bold][x]: " in answer.out


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
