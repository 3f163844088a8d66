"""`fedseg server`: run a study's aggregation server."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fedseg.runtime.study import StudyFolder

app = typer.Typer(help="For the coordinator: run the aggregation server.", no_args_is_help=True)


@app.callback()
def _server() -> None:
    pass


@app.command(epilog="Example: fedseg server start my-study --bind 0.0.0.0:8443")
def start(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The study's folder.")],
    bind: Annotated[
        str | None, typer.Option(help="HOST:PORT to listen on; by default the study's port on all addresses.")
    ] = None,
    evaluate: Annotated[
        bool,
        typer.Option("--evaluate", help="Of a complete study: have the sites evaluate its model, as its plan allows."),
    ] = False,
) -> None:
    """Run the server until the study is complete; start it again to go on after a stop."""
    from fedseg.cli.screen import Screen, out, stopping
    from fedseg.errors import BelowQuorum, Interrupted
    from fedseg.rpc.addresses import split_address
    from fedseg.runtime.course import StudyState
    from fedseg.runtime.model_file import write_model
    from fedseg.runtime.preparation import layout_of
    from fedseg.runtime.serve import serve
    from fedseg.runtime.study import StudyFolder
    from fedseg.store.files import exclusive

    study = StudyFolder.open(folder)
    manifest = study.manifest
    address = bind or f"0.0.0.0:{split_address(study.address)[1]}"
    if not address.endswith(":0"):
        split_address(address)
    again = f"go on with: fedseg server start {quote(str(folder))}" + (" --evaluate" if evaluate else "")
    with exclusive(folder), stopping() as stop, Screen(study.log) as screen:
        coordinator = serve(study, address, notify=screen, stop=stop, evaluate=evaluate)
    if coordinator.state is not StudyState.COMPLETE:
        if stop.is_set():
            raise Interrupted("the server was stopped; closed rounds are kept", where=str(folder), hint=again)
        raise BelowQuorum(f"the study is paused: {coordinator.reason}", where=str(folder), hint=again)
    write_model(study.model, manifest, layout_of(manifest), coordinator.weights, coordinator.history)
    rounds = len(coordinator.history)
    out.print(f"The study is complete: {rounds} of {manifest.plan.schedule.rounds} rounds closed.")
    out.print(f"  model    {study.model}", markup=False)
    out.print(f"  log      {study.log}", markup=False)
    late = coordinator.without_model()
    if late:
        again = f"fedseg server start {quote(str(folder))}"
        out.print(f"  {', '.join(late)} have not fetched it; to hand it out: {again}", markup=False)
    _print_evaluation(study, evaluate)
    out.print("Next:", markup=False)
    out.print(f"  fedseg evaluate {quote(str(study.model))} --data BIDS_DIR --out DIR", markup=False)
    out.print(f"  fedseg privacy-report {quote(str(folder))}", markup=False)
    out.print(f"  fedseg audit verify {quote(str(folder))}", markup=False)


def _print_evaluation(study: StudyFolder, asked: bool) -> None:
    """What the sites have said of the model, in a study whose plan has them say it."""
    from fedseg.cli.federated_evaluation import sentence
    from fedseg.cli.screen import out
    from fedseg.runtime.evaluations import newest_of

    manifest, book = study.manifest, study.db.rounds()
    if not manifest.plan.evaluation.federated:
        return
    found = newest_of(manifest, book, study.enrolled().server_key)
    if found is not None:
        out.print(f"  {sentence(found)}", markup=False)
        out.print(f"  see it by tissue: fedseg evaluate --federated {quote(str(study.root))}", markup=False)
        return
    why = "no evaluation could be closed; the log says why" if asked else "its evaluation could not be closed"
    out.print(f"  {why}. To try again: fedseg server start {quote(str(study.root))} --evaluate", markup=False)
