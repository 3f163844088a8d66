"""`fedseg`: the commands, and the only place that prints an error.

Commands import what they need when they run, so that `fedseg --help` answers at once.
"""

from __future__ import annotations

import inspect
import os
import sys
from typing import Annotated

# gRPC writes its own log lines to stderr, where the screen is.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import typer
from rich.console import Console
from rich.markup import escape

from fedseg import __version__
from fedseg.cli import (
    audit,
    client,
    data,
    demo,
    evaluate,
    predict,
    pretrain,
    privacy,
    privacy_audit,
    privacy_plan,
    server,
    study,
    study_status,
)
from fedseg.cli.event_lines import in_words
from fedseg.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_PAUSED, FedsegError, Interrupted, UsageError

EPILOG = (
    "Exit codes: 0 done, 1 failed, 2 wrong use, 3 paused below quorum, 130 interrupted. "
    "Start with: fedseg demo. For research use only."
)

app = typer.Typer(
    name="fedseg",
    help="Hospitals train one fetal brain MRI segmentation model together; no scan leaves its hospital.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(study.app, name="study")
app.add_typer(server.app, name="server")
app.add_typer(client.app, name="client")
app.add_typer(data.app, name="data")
app.add_typer(audit.app, name="audit")
predict.register(app)
evaluate.register(app)
pretrain.register(app)
privacy_plan.register(app)
privacy.register(app)
privacy_audit.register(app)
demo.register(app)
study_status.register(study.app)


def _join_lines(group: typer.Typer) -> None:
    """Break the help of all commands where the terminal ends: typer keeps a docstring's own breaks after its first."""
    for command in group.registered_commands:
        paragraphs = inspect.cleandoc(inspect.getdoc(command.callback) or "").split("\n\n")
        command.help = "\n\n".join(" ".join(each.split()) for each in paragraphs)
    for inner in group.registered_groups:
        if inner.typer_instance is not None:
            _join_lines(inner.typer_instance)


_join_lines(app)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fedseg {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def show(error: FedsegError) -> None:
    """Print an error: what, where, what to do."""
    console = Console(stderr=True, highlight=False, emoji=False)
    stopped = error.exit_code in (EXIT_PAUSED, EXIT_INTERRUPTED)
    label = "[bold yellow]Stopped:[/]" if stopped else "[bold red]Error:[/]"
    console.print(f"{label} {escape(in_words(error.what))}", soft_wrap=True)
    if error.where:
        console.print(f"  [dim]where:[/] {escape(error.where)}", soft_wrap=True)
    if error.hint:
        console.print(f"  [dim]hint:[/]  {escape(error.hint)}", soft_wrap=True)


def run() -> None:
    """Run the command line and exit with its code."""
    try:
        if sys.platform == "win32":
            raise UsageError("fedseg does not run on native Windows", hint="use WSL2 (Windows Subsystem for Linux)")
        app()  # answers wrong use itself, with exit code 2
    except FedsegError as error:
        show(error)
        sys.exit(error.exit_code)
    except OSError as error:
        show(FedsegError(error.strerror or str(error), where=error.filename and str(error.filename)))
        sys.exit(EXIT_FAILED)
    except SystemExit as ended:
        if ended.code == EXIT_INTERRUPTED:
            show(Interrupted("interrupted; nothing is left half-written", hint="run the same command again"))
        raise
    except KeyboardInterrupt:
        show(Interrupted("interrupted at once", hint="run the same command again"))
        sys.exit(EXIT_INTERRUPTED)
