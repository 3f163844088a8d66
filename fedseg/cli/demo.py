"""`fedseg demo`: a whole study on this machine, in real processes, on made-up brains."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from fedseg.errors import FedsegError, UsageError

SITES = ("site-a", "site-b", "site-c")
SUBJECTS = 10
SPACING_MM = 2.0
PRETRAINING = {"--subjects": 30, "--steps": 150, "--seed": 3}
SEED = 7
MARKER = ".fedseg-demo"
LIMIT_S = 600.0

HONEST = (
    "Eight subjects a site are few: under epsilon 8, noise drowns most of what they could teach. More subjects, "
    "or a larger budget that patients agree to, is what lets a private model learn."
)
ALONE = (
    "Alone, a site trains on its own scans and without privacy: what it would have without joining. That model stays "
    "at the site."
)


def register(app: typer.Typer) -> None:
    """Add the command to the main one."""
    app.command(epilog="Example: fedseg demo --out demo-out")(demo)


def demo(
    out: Annotated[Path, typer.Option(help="Where everything goes; an earlier demo there is replaced.")] = Path(
        "demo-out"
    ),
) -> None:
    """Run a whole study here: three sites in processes of their own, on made-up brains, with privacy on."""
    from fedseg.cli.screen import out as screen
    from fedseg.report.numbers import printed

    began = time.monotonic()
    _clear(out)
    run, study = Runner(out), out / "study"
    screen.print("1. Three made-up hospitals, other contrast, axes and label numbers at each")
    run.together([_synthesize(out / site / "data", style) for style, site in enumerate(SITES)])
    screen.print("2. A first model, from images made up of the labels of made-up brains that are nobody's")
    (out / "plan.yaml").write_text(files("fedseg.cli").joinpath("demo.yaml").read_text())
    first = out / "coordinator" / "model.safetensors"
    run.together([_pretrain(out / "plan.yaml", first.parent)])
    screen.print("3. The coordinator makes a study and an invite for each hospital")
    address = f"localhost:{_free_port()}"
    create = ["study", "create", str(study), "--plan", str(out / "plan.yaml"), "--address", address]
    run.together([[*create, "--init", str(first)]])
    invites = run.together([["study", "invite", str(study), site] for site in SITES])
    screen.print("4. The server and the three sites, each a process of its own")
    _federate(run, study, dict(zip(SITES, invites, strict=True)))
    screen.print("5. How good is the model on subjects that nobody trained on, and did joining help?")
    run.together([_baseline(out / site / "state", first) for site in SITES])
    _print_scores(_scores(out, first))
    screen.print("6. What was promised to patients, and was it kept?")
    run.together([["privacy-report", str(study), "--html", str(out / "privacy.html")]], show=True)
    reports = run.together([["privacy-report", str(out / site / "state"), "--json"] for site in SITES])
    for site, report in zip(SITES, reports, strict=True):
        row = json.loads(report)["sites"][0]
        kept = "intact" if row["ledger_intact"] else "BROKEN"
        screen.print(f"   {site}: ledger {kept}, epsilon {printed(row['epsilon'])} of {row['budget_epsilon']:g}")
    screen.print("7. Do the logs of the server and the sites agree on who contributed to what?")
    logs = [str(study), *(str(out / site / "state") for site in SITES)]
    audit = json.loads(run.together([["audit", "verify", *logs, "--json"]])[0])
    screen.print(f"   {len(audit['parties'])} logs, {len(audit['rounds'])} rounds: nothing contradicts")
    screen.print(f"Done in {time.monotonic() - began:.0f} s. Look at:")
    for path in (study / "model.safetensors", *(_page(out, site) for site in SITES), out / "privacy.html"):
        screen.print(f"  {path}", markup=False)
    screen.print("Next: a real study, as in README.md")


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
        shown = " ".join(quote(part) if len(part) < 80 else f"{part[:16]}..." for part in command)
        typer.echo(f"   $ fedseg {shown}")
        with log.open("a") as file:
            file.write(f"$ fedseg {shown}\n")
        return subprocess.Popen(  # noqa: S603  # this very program
            [sys.executable, "-m", "fedseg", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # An earlier demo elsewhere, on the same made-up scans, is not this demo's past.
            env={**os.environ, "HOME": str(self.out.resolve())},
        )


def _clear(out: Path) -> None:
    from fedseg.store.files import storage_errors

    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / MARKER).is_file())):
        raise UsageError("this folder holds something else than a demo", where=str(out), hint="name another with --out")
    with storage_errors(out):
        if out.exists():
            shutil.rmtree(out)
        out.mkdir(parents=True)
        (out / MARKER).touch()


def _synthesize(data: Path, style: int) -> list[str]:
    options = {"--subjects": SUBJECTS, "--seed": SEED + style, "--site-style": style, "--spacing-mm": SPACING_MM}
    return ["data", "synthesize", str(data), *(str(word) for pair in options.items() for word in pair)]


def _pretrain(plan: Path, out: Path) -> list[str]:
    options = {"--plan": plan, "--out": out, **PRETRAINING}
    return ["pretrain", *(str(word) for pair in options.items() for word in pair)]


def _baseline(state: Path, first: Path) -> list[str]:
    return ["client", "baseline", "--state", str(state), "--init", str(first), "--json"]


def _free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _federate(run: Runner, study: Path, invites: dict[str, str]) -> None:
    """Server and sites until the study is complete; prints what the server says."""
    out = study.parent
    port = (study / "address").read_text().rpartition(":")[2]
    server = run.start(["server", "start", str(study), "--bind", f"127.0.0.1:{port}"], out / "demo.log")
    sites = []
    for site, invite in invites.items():
        folders = {"--data": out / site / "data", "--state": out / site / "state", "--ledger": out / site / "ledger"}
        command = ["client", "join", invite, *(str(word) for pair in folders.items() for word in pair), "--yes"]
        sites.append((site, run.start(command, out / "demo.log")))
    clients = [process for _, process in sites]
    with _all_ended([server, *clients]):
        threading.Thread(target=_stop_where_one_failed, args=(server, clients), daemon=True).start()
        if _all_enrolled(study, [server, *clients]):
            _compare_rosters(run, study)
        for line in server.stderr or ():
            typer.echo(f"   server: {line.rstrip()}")
        for name, process in [*sites, ("server", server)]:
            _, trouble = process.communicate(timeout=LIMIT_S)
            if process.returncode != 0:
                raise FedsegError(f"{name} failed: {trouble.strip()}", where=str(out))


def _all_enrolled(study: Path, processes: Sequence[subprocess.Popen[str]]) -> bool:
    """Wait until all sites have enrolled; False where a process has ended before."""
    from fedseg.runtime.study import StudyFolder

    folder = StudyFolder.open(study)
    while set(folder.enrolled().keys) != set(SITES):
        if any(process.poll() is not None for process in processes):
            return False
        time.sleep(0.2)
    return True


def _compare_rosters(run: Runner, study: Path) -> None:
    """What the coordinator and the sites' operators do in a call: everybody sees the same words, or nothing is sent."""
    from fedseg.cli.screen import out
    from fedseg.runtime.study import StudyFolder

    out.print("   Each site waits until its operator has compared the words of the roster with the others, in a call:")
    run.together([["study", "roster", str(study)]], show=True)
    out.print("   Here they are the same at all three, and each site approves them:")
    fingerprint = StudyFolder.open(study).roster().fingerprint.hex()
    approve = ["client", "approve-roster", "--fingerprint", fingerprint, "--state"]
    run.together([[*approve, str(study.parent / site / "state")] for site in SITES])


def _stop_where_one_failed(server: subprocess.Popen[str], clients: Sequence[subprocess.Popen[str]]) -> None:
    """A server waits for every site of its plan; nobody shall wait for one that has failed."""
    while server.poll() is None:
        if any(client.poll() for client in clients):
            server.terminate()
            return
        time.sleep(0.5)


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


def _page(out: Path, site: str) -> Path:
    return out / "evaluation" / site / "report.html"


def _scores(out: Path, first: Path) -> dict[str, dict[str, float]]:
    """Mean Dice on each site's test subjects: of the first model, the study's, and each site's baseline."""
    from fedseg.runtime.alone import BASELINE
    from fedseg.runtime.study import StudyFolder

    model = StudyFolder.open(out / "study").model
    models = {"first model": first}
    models |= {f"{site} alone": out / site / "state" / "baseline" / BASELINE for site in SITES}
    scores = {name: {site: _dice(each, out / site / "data", site) for site in SITES} for name, each in models.items()}
    scores["trained together"] = {
        site: _write_page(model, out / site / "data", _page(out, site).parent, site) for site in SITES
    }
    (out / "scores.json").write_text(json.dumps(scores, indent=1))
    return scores


def _dice(model: Path, data: Path, site: str) -> float:
    from fedseg.metrics.summary import summarise
    from fedseg.runtime.prediction import Segmenter
    from fedseg.runtime.scoring import evaluate, evaluation_data

    segmenter = Segmenter([model])
    dataset, split = evaluation_data(data, segmenter.scheme, None, "test")
    scored = [each.scores for each in evaluate(segmenter, dataset, split, site, lambda _done, _of: None)]
    return float(summarise(scored)["dice"]["mean"])


def _write_page(model: Path, data: Path, out: Path, site: str) -> float:
    """The evaluation that `fedseg evaluate` writes; its mean Dice."""
    from fedseg.runtime.reporting import write_evaluation
    from fedseg.runtime.scoring import Source

    document = write_evaluation([model], [Source(data, site=site)], out, split="test")
    return float(document["summary"]["dice"]["mean"])


def _print_scores(scores: dict[str, dict[str, float]]) -> None:
    from rich.table import Table

    from fedseg.cli.screen import out

    table = Table("model", *(f"Dice at {site}" for site in SITES), "mean")
    means = {name: sum(row.values()) / len(row) for name, row in scores.items()}
    for name, row in scores.items():
        table.add_row(name, *(f"{row[site]:.3f}" for site in SITES), f"{means[name]:.3f}")
    out.print(table)
    gain = means["trained together"] - means["first model"]
    out.print(f"Training together moved the first model's mean Dice by {gain:+.3f}. {HONEST}")
    alone, together = sum(scores[f"{site} alone"][site] for site in SITES) / len(SITES), means["trained together"]
    helped = "helped" if together > alone else "did not help"
    out.print(
        f"Each at home, the sites alone have {alone:.3f}, the study {together:.3f}: here joining {helped}. {ALONE}"
    )
