"""What a hospital reads of a strategy, and the file that stays with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedseg.cli.client import _print_end
from fedseg.cli.plan_lines import strategy_line, training_line
from fedseg.plan.manifest import Manifest
from fedseg.runtime.model_file import privacy_claim
from fedseg.runtime.personal_model import NEVER, write_personal
from fedseg.runtime.site_folder import Membership, SiteFolder
from fedseg.store.checkpoints import load_model
from tests.runtime import toy
from tests.runtime.private import private_manifest
from tests.runtime.quadratics import manifest

HISTORY = ((1, ("a", "b", "c")), (2, ("a", "b", "c")))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("fedprox", "fedprox: training is pulled to each round's first model (mu 0.01)"),
        ("fedavg", "fedavg: the mean of the sites' updates is added to the model"),
        (
            "fedavgm",
            "fedavgm: an optimiser at the server takes the mean update (server_rate 1, server_momentum 0.9)",
        ),
        (
            "fedyogi",
            "fedyogi: an optimiser at the server takes the mean update (server_rate 0.01, server_momentum 0.9, beta2 "
            "0.99, tau 0.001)",
        ),
        ("scaffold", "scaffold: sites correct the drift of their training; this site's correction stays here"),
        ("fedbn", "fedbn: scale and shift of normalisation stay here, in a personal model that is never sent"),
        (
            "ditto",
            "ditto: a personal model is trained here beside the shared one (lambda 0.1), in as many steps again; it is "
            "never sent",
        ),
    ],
)
def test_a_strategy_is_said_before_anyone_agrees(name: str, says: str) -> None:
    assert strategy_line(manifest(f"name: {name}")) == says


def test_what_stays_at_home_is_not_counted_as_sent() -> None:
    assert training_line(manifest("name: fedbn")) == (
        "all layers; with the other sites all but normalisation: 990 of 1,000 parameters"
    )
    assert training_line(of_layers(manifest("name: fedbn"), "norms")) == (
        "the normalisation layers and the head; with the other sites the head alone: 990 of 1,000 parameters"
    )
    assert training_line(of_layers(manifest("name: fedbn"), "decoder")) == (
        "the decoder alone; with the other sites all of it but normalisation: 990 of 1,000 parameters"
    )
    assert training_line(of_layers(manifest("name: fedavg"), "norms")) == (
        "the normalisation layers and the head: 1,000 of 1,000 parameters"
    )
    assert training_line(manifest("name: ditto")) == "all layers: 1,000 of 1,000 parameters"


def of_layers(study: Manifest, layers: str) -> Manifest:
    training = study.plan.training.model_copy(update={"layers": layers})
    return study.model_copy(update={"plan": study.plan.model_copy(update={"training": training})})


def written(study: Manifest, path: Path) -> Path:
    weights = np.arange(toy.SIZE, dtype=np.float32)
    return write_personal(path / "model-personal.safetensors", study, toy.LAYOUT, weights, HISTORY, "a")


def test_a_personal_model_names_its_site_and_stays_with_its_owner(tmp_path: Path) -> None:
    path = written(manifest("name: ditto"), tmp_path)
    named, card = load_model(path)
    np.testing.assert_array_equal(toy.LAYOUT.flatten(named), np.arange(toy.SIZE, dtype=np.float32))
    assert (card.study, card.contributors) == ("quadratics: a", HISTORY)
    assert card.privacy == {"mode": "off", "epsilon": None, "never_hand_on": NEVER}
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_in_a_private_study_its_local_part_was_charged_as_the_rest(tmp_path: Path) -> None:
    study = private_manifest()
    assert load_model(written(study, tmp_path))[1].privacy == privacy_claim(study)


def test_the_end_names_the_personal_model_where_there_is_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = SiteFolder(tmp_path)
    folder.remember(Membership("lab.example.org:8443", "a", "/data", None, "/ledger", None))
    _print_end(folder, "The study is complete.")
    said = capsys.readouterr().out
    assert "personal" not in said
    assert f"fedseg evaluate {folder.model} --data /data --out DIR" in said
    folder.remember(replace(folder.membership, labels="my labels.tsv"))
    assert written(manifest("name: ditto"), tmp_path) == folder.personal
    _print_end(folder, "The study is complete.")
    said = " ".join(capsys.readouterr().out.split())
    assert f"fedseg evaluate {folder.model} {folder.personal} --data /data --labels 'my labels.tsv' --out DIR" in said
    assert f"personal {folder.personal} (this site's own: it was never sent)" in said.replace("- ", "-")
