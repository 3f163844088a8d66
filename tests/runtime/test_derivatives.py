"""Whose folder results may go into, and what is kept of what was there."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fedseg.errors import UsageError
from fedseg.runtime.derivatives import Derivatives, Outputs
from fedseg.runtime.scans import Scan, find_scans
from fedseg.store.checkpoints import ModelCard
from tests.conftest import Save, tiny_head
from tests.runtime.test_prediction import CARD

MakeBids = Callable[..., Path]
OURS = json.dumps({"GeneratedBy": [{"Name": "fedseg"}]})
THEIRS = json.dumps({"GeneratedBy": [{"Name": "fedseg"}, {"Name": "a person"}]})


def derivatives(out: Path, scans: list[Scan], outputs: Outputs | None = None, card: ModelCard = CARD) -> Derivatives:
    return Derivatives(out, [card], scans, outputs or Outputs(uncertainty=True))


def everything(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def put(root: Path, name: str, text: str = "") -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


@pytest.mark.parametrize(
    ("there", "out", "words"),
    [
        ({"dataset_description.json": "{}"}, "", "its dataset_description.json does not say that fedseg alone made it"),
        ({"dataset_description.json": "no JSON"}, "", "does not say that fedseg alone made it"),
        ({"dataset_description.json": THEIRS}, "", "does not say that fedseg alone made it"),
        ({"dseg.tsv": ""}, "", "it has a dseg.tsv, and no dataset_description.json of fedseg"),
        ({"participants.tsv": ""}, "", "it has a participants.tsv, and no"),
        ({"sub-01/anat/x.txt": ""}, "", "it has subjects, and no dataset_description.json of fedseg"),
        ({}, "derivatives", "this folder is for the derivatives of all tools, each in its own"),
        ({"all/manual/dseg.tsv": ""}, "all", "this folder holds another data set, manual"),
        ({"dataset_description.json": OURS, "svr/participants.tsv": ""}, "", "holds another data set, svr"),
        ({"svr/dataset_description.json": "{}"}, "", "holds another data set, svr"),
        ({"7_desc-brain_mask.nii.gz": ""}, "", "7_desc-brain_mask.nii.gz is in this folder, which has no"),
    ],
)
def test_a_folder_of_somebody_else_is_refused_and_left_as_it_is(
    there: dict[str, str], out: str, words: str, tmp_path: Path, save: Save
) -> None:
    scan = save(tmp_path / "7.nii.gz", tiny_head()[0])
    site = tmp_path / "site"
    site.mkdir()
    for name, text in there.items():
        put(site, name, text)
    before = everything(site)
    with pytest.raises(UsageError) as refused:
        derivatives(site / out, find_scans([scan]), Outputs(brain_mask=True))
    assert words in refused.value.what
    good = site / "derivatives/fedseg" if out != "all" else site / "all/derivatives/fedseg"
    assert f"a folder of their own, such as {good}" in str(refused.value)
    assert everything(site) == before
    derivatives(good, find_scans([scan])).describe()


def test_a_taken_folder_of_that_name_is_not_advised(tmp_path: Path, make_bids: MakeBids) -> None:
    root = make_bids(1)
    put(root, "derivatives/fedseg/dseg.tsv")
    with pytest.raises(UsageError, match=r"such as .*/derivatives/segmentations"):
        derivatives(root / "derivatives/fedseg", find_scans([root]))


@pytest.mark.parametrize("there", [{}, {"dataset_description.json": OURS, "dseg.tsv": "", "sub-01/anat/x.txt": ""}])
def test_an_empty_folder_and_our_own_are_taken(there: dict[str, str], make_bids: MakeBids, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for name, text in there.items():
        put(out, name, text)
    derivatives(out, find_scans([make_bids(1)])).describe()
    assert (out / "dseg.tsv").read_text().startswith("index\tname")


def test_what_a_derivative_says_of_earlier_results_stays(make_bids: MakeBids, tmp_path: Path) -> None:
    out, first, second = tmp_path / "out", make_bids(1), make_bids(1, name="second")
    derivatives(out, find_scans([first])).describe()
    put(out, ".bidsignore", "*_notes.txt\n")
    other = replace(CARD, study="another")
    for _ in range(2):
        derivatives(out, find_scans([second]), card=other).describe()
    about = json.loads((out / "dataset_description.json").read_text())
    assert [each["Description"].split(",")[0] for each in about["GeneratedBy"]] == ["study tiny", "study another"]
    assert about["DatasetLinks"] == {"raw": "../bids", "raw1": "../second"}
    assert (out / ".bidsignore").read_text() == "*_notes.txt\n*_uncertainty.*\n"
    derivatives(out, find_scans([first])).describe()
    assert json.loads((out / "dataset_description.json").read_text())["DatasetLinks"] == about["DatasetLinks"]
