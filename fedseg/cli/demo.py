"""`fedseg demo`: a whole study on this machine, in real processes, on made-up brains."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from fedseg.errors import FedsegError, UsageError

SITES = ("site-a", "site-b", "site-c")
SUBJECTS = 10
SPACING_MM = 1.6
SEED = 7
MARKER = ".fedseg-demo"
LIMIT_S = 600.0


def register(app: typer.Typer) -> None:
    """Add the command to the main one."""
    app.command(epilog="Example: fedseg demo --out demo-out")(demo)


def demo(
    out: Annotated[Path, typer.Option(help="Where everything goes; an earlier demo there is replaced.")] = Path(
        "demo-out"
    ),
    plan: Annotated[Path | None, typer.Option(help="Another plan for the sites site-a, site-b and site-c.")] = None,
) -> None:
    """Run a whole study here: three sites in processes of their own, made-up brains, privacy and secure aggregation on."""
    from fedseg.cli.screen import out as screen

    began = time.monotonic()
    _clear(out)
    run = Runner(out)
    plan_file = _plan_file(out, plan)
    screen.print("1. Three made-up hospitals: other contrast, axes and label numbers at each")
    commands = [_synthesize(out, site, style) for style, site in enumerate(SITES)]
    run.together(commands)
    screen.print("2. The coordinator makes a study and an invite for each hospital")
    address = f"localhost:{_free_port()}"
    study = out / "study"
    run.together([["study", "create", str(study), "--plan", str(plan_file), "--address", address]])
    invites = run.together([["study", "invite", str(study), site] for site in SITES])
    screen.print("3. The server and the three sites, each a process of its own")
    _federate(run, out, study, dict(zip(SITES, invites, strict=True)))
    screen.print("4. How good is the model, and did joining help?")
    scores = _scores(run, out, study)
    _print_scores(scores)
    screen.print("5. What was promised to patients, and was it kept?")
    run.together([["privacy-report", str(study), "--html", str(out / "privacy.html")]], show=True)
    screen.print(f"\nDone in {time.monotonic() - began:.0f} s. Look at:")
    for path in (
        study / "model.safetensors",
        *(out / "evaluation" / site / "report.html" for site in SITES),
        out / "privacy.html",
    ):
        screen.print(f"  {path}", markup=False)
    screen.print('Next: README.md, "A real study"')


@dataclass(frozen=True)
class Runner:
    """Runs `fedseg` commands in processes of their own, and says so."""

    out: Path

    def together(self, commands: Sequence[list[str]], *, show: bool = False) -> list[str]:
        """Run commands at the same time; their standard outputs, stripped.

        Raises:
            FedsegError: with the standard error of the first that failed.
        """
        running = [self.start(command, self.out / "demo.log") for command in commands]
        answers = []
        for command, process in zip(commands, running, strict=True):
            answer, trouble = process.communicate(timeout=LIMIT_S)
            if process.returncode != 0:
                raise FedsegError(f"fedseg {command[0]} {command[1]} failed: {trouble.strip()}", where=str(self.out))
            answers.append(answer.strip())
            if show:
                typer.echo(answer)
        return answers

    def start(self, command: list[str], log: Path) -> subprocess.Popen[str]:
        """Start a command."""
        shown = " ".join(part if len(part) < 80 else f"{part[:16]}..." for part in command)
        typer.echo(f"   $ fedseg {shown}")
        with log.open("a") as file:
            file.write(f"$ fedseg {shown}\n")
        return subprocess.Popen(  # noqa: S603  # this very program
            [sys.executable, "-m", "fedseg", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )


def _clear(out: Path) -> None:
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / MARKER).is_file())):
        raise UsageError("this folder holds something else than a demo", where=str(out), hint="name another with --out")
    if out.exists():
        shutil.rmtree(out)
    out.mkdir(parents=True)
    (out / MARKER).touch()


def _plan_file(out: Path, plan: Path | None) -> Path:
    from importlib.resources import files

    text = plan.read_text() if plan is not None else files("fedseg.cli").joinpath("demo.yaml").read_text()
    (out / "plan.yaml").write_text(text)
    return out / "plan.yaml"


def _synthesize(out: Path, site: str, style: int) -> list[str]:
    options = {"--subjects": SUBJECTS, "--seed": SEED + style, "--site-style": style, "--spacing-mm": SPACING_MM}
    return ["data", "synthesize", str(out / site / "data"), *(str(word) for pair in options.items() for word in pair)]


def _free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _federate(run: Runner, out: Path, study: Path, invites: dict[str, str]) -> None:
    """Server and sites until the study is complete; prints what the server says."""
    port = (study / "address").read_text().rpartition(":")[2]
    server = run.start(["server", "start", str(study), "--bind", f"127.0.0.1:{port}"], out / "demo.log")
    sites = []
    for site, invite in invites.items():
        folders = {"--data": out / site / "data", "--state": out / site / "state", "--ledger": out / site / "ledger"}
        command = ["client", "join", invite, *(str(word) for pair in folders.items() for word in pair), "--yes"]
        sites.append((site, run.start(command, out / "demo.log")))
    with _all_ended([server, *(process for _, process in sites)]):
        for line in server.stderr or ():
            typer.echo(f"   server: {line.rstrip()}")
        for name, process in [("server", server), *sites]:
            _, trouble = process.communicate(timeout=LIMIT_S)
            if process.returncode != 0:
                raise FedsegError(f"{name} failed: {trouble.strip()}", where=str(out))


@contextlib.contextmanager
def _all_ended(processes: Sequence[subprocess.Popen[str]]) -> Iterator[None]:
    """Leave no process behind, whatever happens."""
    try:
        yield
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()
        for process in processes:
            process.wait(timeout=30)


def _scores(run: Runner, out: Path, study: Path) -> dict[str, dict[str, float]]:
    """Mean Dice on each site's test subjects, of the global model and of a model that each site trained alone."""
    from fedseg.runtime.alone import write_own_model
    from fedseg.runtime.study import StudyFolder

    folder = StudyFolder.open(study)
    models = {"together": study / "model.safetensors"}
    for site in SITES:
        typer.echo(f"   {site} trains a model alone, under the same plan")
        models[f"{site} alone"] = write_own_model(folder, site, out / site / "data", out / site / "alone")
    names = list(models)
    scores: dict[str, dict[str, float]] = {name: {} for name in names}
    for site in SITES:
        for name in names:
            where = out / "evaluation" / (site if name == "together" else f"{site}-by-{name.split()[0]}")
            scores[name][site] = _evaluate(models[name], out / site / "data", where, site)
    return scores


def _evaluate(model: Path, data: Path, out: Path, site: str) -> float:
    from fedseg.runtime.reporting import write_evaluation

    document: dict[str, Any] = write_evaluation(
        model, data, out, labels=None, split=None, site=site, on_case=lambda _done, _of: None
    )
    return float(document["summary"]["dice"]["mean"])


def _print_scores(scores: dict[str, dict[str, float]]) -> None:
    from rich.table import Table

    from fedseg.cli.screen import out

    table = Table("model", *(f"Dice at {site}" for site in SITES), "mean")
    for name, row in scores.items():
        mean = sum(row.values()) / len(row)
        table.add_row(name, *(f"{row[site]:.3f}" for site in SITES), f"{mean:.3f}")
    out.print(table)
    out.print(json.dumps(scores), style="dim", markup=False)
