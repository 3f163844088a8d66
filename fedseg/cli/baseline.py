"""`fedseg client baseline`: a hospital's own model, to see whether joining helped."""

from __future__ import annotations

import json
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from fedseg.errors import UsageError

if TYPE_CHECKING:
    from fedseg.imaging.dataset import Dataset
    from fedseg.plan.manifest import Manifest
    from fedseg.runtime.site_folder import SiteFolder


def register(app: typer.Typer) -> None:
    """Add the command to `fedseg client`."""
    app.command(
        epilog="Example: fedseg client baseline --state ~/fedseg-study. Then: fedseg evaluate "
        "~/fedseg-study/model.safetensors ~/fedseg-study/baseline/baseline.safetensors --data /data/fetal --out joined"
    )(baseline)


def baseline(
    state: Annotated[Path, typer.Option(help="This site's folder for the study.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the model; by default `baseline` in --state.")] = None,
    init: Annotated[
        Path | None, typer.Option(help="The model file that the study started from, where it started from one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Train this site's own model, on its own scans alone: did joining help?

    Same network, preparation, first model and effort as the study's. It is trained as where nothing leaves the house:
    without privacy, so no budget is spent, and the model must stay here. Neither the study's end nor its server is
    waited for. Stop it with Ctrl-C; the same command goes on. For research use only.
    """
    from fedseg.runtime.alone import BASELINE
    from fedseg.runtime.disk_memory import remove_prepared
    from fedseg.runtime.site_folder import SiteFolder

    folder = SiteFolder.open(state)
    manifest = folder.manifest
    if manifest is None:
        raise UsageError(
            "this site has agreed to no plan yet, so there is none to train with",
            where=str(state),
            hint=f"join first: fedseg client join --state {quote(str(state))}",
        )
    place = folder.root / "baseline" if out is None else out
    dataset, there = _data(folder, manifest), (place / BASELINE).exists()
    model = place / BASELINE if there else _train(folder, manifest, dataset, place, init)
    if folder.model.is_file():
        remove_prepared(folder.cache)
    if as_json:
        typer.echo(json.dumps(_facts(folder, manifest, model, trained=not there)))
    else:
        _show(folder, manifest, dataset, model, there=there)


def _data(folder: SiteFolder, manifest: Manifest) -> Dataset:
    from fedseg.cli.data import require_usable
    from fedseg.runtime.preparation import training_data

    member = folder.membership
    dataset = training_data(Path(member.data), manifest.plan, member.labels)
    require_usable(dataset, manifest.plan)
    return dataset


def _train(folder: SiteFolder, manifest: Manifest, dataset: Dataset, out: Path, init: Path | None) -> Path:
    from fedseg.cli.screen import Screen, stopping
    from fedseg.runtime.alone import first_weights, write_baseline
    from fedseg.runtime.preparation import prepare_training
    from fedseg.store.files import storage_errors

    first = first_weights(manifest, init)
    with storage_errors(out):
        out.mkdir(mode=0o700, parents=True, exist_ok=True)
    with stopping() as stop, Screen(None) as screen:
        subjects = prepare_training(
            dataset, manifest.plan, folder.cache, lambda done, of: screen.bar("preparing scans", done, of)
        )
        return write_baseline(
            manifest,
            folder.membership.site,
            subjects,
            first,
            out,
            on_step=lambda done, of: screen.bar("training alone", done, of),
            should_stop=stop.is_set,
        )


def _facts(folder: SiteFolder, manifest: Manifest, model: Path, *, trained: bool) -> dict[str, object]:
    from fedseg.runtime.alone import NEVER, own_manifest
    from fedseg.store.checkpoints import load_model

    _, card = load_model(model)
    plan = own_manifest(manifest, [folder.membership.site]).plan
    return {
        "model": str(model),
        "model_hash": card.model_hash,
        "trained": trained,
        "steps": plan.schedule.rounds * plan.training.steps,
        "privacy": NEVER,
    }


def _show(folder: SiteFolder, manifest: Manifest, dataset: Dataset, model: Path, *, there: bool) -> None:
    from fedseg.cli.screen import out
    from fedseg.runtime.alone import own_manifest

    member = folder.membership
    plan = own_manifest(manifest, [member.site]).plan
    steps = f"{plan.schedule.rounds * plan.training.steps} steps"
    said = (
        f"The baseline is there already; to train it anew, remove it: {model}"
        if there
        else f"Trained on this site's scans alone, {steps}: {model}"
    )
    out.print(said, markup=False)
    out.print("It is NOT private: it may give away the scans it was trained on. Keep it here, hand it to nobody.")
    if not dataset.subjects("test"):
        out.print(
            "This site keeps no test subject back: both models would be scored on subjects that they were trained on, "
            "and the answer would mean little (column split of participants.tsv)"
        )
    labels = "" if member.labels is None else f" --labels {quote(member.labels)}"
    out.print(
        "Next, did joining help?" if folder.model.is_file() else "Next, once the study is complete, did joining help?"
    )
    models = f"{quote(str(folder.model))} {quote(str(model))}"
    out.print(f"  fedseg evaluate {models} --data {quote(member.data)}{labels} --out DIR", markup=False)
    out.print("For research use only.")
