"""The data check on a screen: a bar while it reads, one row a kind of finding, a contact sheet."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

import typer

from fedseg.errors import DataError, UsageError

if TYPE_CHECKING:
    from fedseg.imaging.dataset import Dataset
    from fedseg.imaging.quality.finding import Finding
    from fedseg.imaging.quality.scan import Scan
    from fedseg.plan.sections import Image
    from fedseg.report.contact_sheet import ContactSheet

_COLOURS = {"error": "red", "warning": "yellow", "note": "dim"}
_NAMED = 3


@dataclass(frozen=True)
class Checked:
    """What a data check found.

    Args:
        data: What was checked.
        plan: The plan that it was checked against, or None.
        task: The task's name.
        subjects: How many stand in each split; as in ledger and report a pregnancy is one, under however many ids.
        findings: Errors first.
        picture: Where the contact sheet is, or None.
        ids: How many ids they have.
        labels: What was given with --labels.
    """

    data: Path
    plan: Path | None
    task: str
    subjects: dict[str, int]
    findings: Sequence[Finding]
    picture: Path | None = None
    ids: int = 0
    labels: str | None = None

    @property
    def errors(self) -> list[Finding]:
        """What training would be refused for."""
        return self.of("error")

    def of(self, severity: str) -> list[Finding]:
        """Findings of one severity."""
        return [finding for finding in self.findings if finding.severity == severity]


def checked(
    data: Path, *, plan: Path | None, task: str | None, labels: str | None, picture: Path | None, as_json: bool
) -> Checked:
    """Run the check, with a bar, and write the contact sheet where one is wanted.

    Raises:
        UsageError: The task is not the plan's, or the picture's name does not end in .html.
        DataError: The folder holds no data set; with `as_json` that is a finding too.
    """
    from fedseg.imaging.bids import load_dataset
    from fedseg.imaging.dataset import SPLITS
    from fedseg.imaging.quality.finding import finding, refused
    from fedseg.labels import scheme

    if picture is not None and picture.suffix.lower() not in (".html", ".htm"):
        raise UsageError("a contact sheet is a page: give a name that ends in .html", where=str(picture))
    task, image = _task(plan, task)
    try:
        dataset = load_dataset(data, labels=labels, scheme=scheme(task), strict=False)
    except DataError as error:
        if not as_json:
            raise
        found = finding(refused("files", error), file=error.where or str(data))
        return Checked(data, plan, task, dict.fromkeys(SPLITS, 0), (found,))
    counts = {split: len(dataset.units(split)) for split in SPLITS}
    findings = _run(dataset, image, picture)
    return Checked(data, plan, task, counts, findings, picture, len(dataset.subjects()), labels)


def _task(plan: Path | None, task: str | None) -> tuple[str, Image]:
    """The task's name, and how scans are brought to the network: the plan's, else what plans have by default."""
    from fedseg.cli.files import load_plan
    from fedseg.plan.sections import Image

    if plan is None:
        return task or "feta", Image()
    content = load_plan(plan).content
    if task not in (None, content.task):
        raise UsageError(f"the plan's task is {content.task}, not {task}", where=str(plan), hint="leave out --task")
    return content.task, content.image


def _run(dataset: Dataset, image: Image, picture: Path | None) -> list[Finding]:
    from fedseg.cli.screen import Screen
    from fedseg.imaging.nifti import write_whole
    from fedseg.imaging.quality.check import check

    with Screen(None) as screen:
        sheet = _sheet(dataset, picture)

        def on_scan(scan: Scan, found: list[Finding], done: int, of: int) -> None:
            screen.bar("checking scans", done, of)
            if sheet is not None:
                sheet.add(scan, found)

        findings = check(dataset, scheme=dataset.scheme, spacing_mm=image.spacing_mm, n4=image.n4, on_scan=on_scan)
    if picture is not None and sheet is not None:
        write_whole(picture, sheet.html().encode())
    return findings


def _sheet(dataset: Dataset, picture: Path | None) -> ContactSheet | None:
    """An empty contact sheet where one is wanted; drawing needs what takes a second to load."""
    if picture is None:
        return None
    from fedseg.report.contact_sheet import ContactSheet

    return ContactSheet(dataset.root.name, dataset.scheme)


def print_document(result: Checked) -> None:
    """One JSON document."""
    from fedseg.imaging.quality.finding import counts

    document = {
        "usable": not result.errors,
        "task": result.task,
        "subjects": result.subjects,
        "counts": counts(result.findings),
        "findings": [asdict(each) for each in result.findings],
    }
    typer.echo(json.dumps(document))


def print_findings(result: Checked) -> None:
    """A table with one row for each kind of finding, then the verdict and what is next."""
    from fedseg.cli.screen import out

    _print_table(result)
    numbers = ", ".join(f"{count} {split}" for split, count in result.subjects.items())
    ids = f" under {result.ids} ids" if result.ids > sum(result.subjects.values()) else ""
    errors, others = _several(result, "error"), f"{_several(result, 'warning')}, {_several(result, 'note')}"
    verdict = f"{errors}: these scans would be refused" if result.errors else "These scans would do"
    out.print(f"{verdict} for the task {result.task} ({numbers} subjects{ids}, {others}).", markup=False)
    if result.picture is not None:
        out.print(f"Contact sheet: {result.picture} (patient data: readable by you only; keep it here)", markup=False)
    out.print(_next(result), markup=False)


def _several(result: Checked, severity: str) -> str:
    count = len(result.of(severity))
    return f"{count} {severity}{'' if count == 1 else 's'}"


def _next(result: Checked) -> str:
    """What a person does after this."""
    labels = "" if result.labels is None else f" --labels {quote(result.labels)}"
    data = f"{quote(str(result.data))}{labels}"
    stacks = [each for each in result.errors if each.kind == "thick-slices"]
    if stacks and result.plan is None and result.task == "feta":
        return (
            f"Next: reconstruct the stacks, or check them for brain masks: fedseg data check {data} --task brain_mask"
        )
    if result.errors:
        return "Next: mend what is wrong, or leave those scans out, and check again; --json lists every file"
    if result.picture is None and result.of("warning"):
        about = f"--task {result.task}" if result.plan is None else f"--plan {quote(str(result.plan))}"
        return f"Next: look at the scans: fedseg data check {data} {about} --picture sheet.html"
    return f"Next: fedseg client join INVITE --data {data} --state STATE"


def _print_table(result: Checked) -> None:
    from rich.markup import escape
    from rich.table import Column, Table

    from fedseg.cli.screen import out

    if not result.findings:
        return
    table = Table("severity", Column("what", overflow="fold"), Column("scans", overflow="fold"))
    for rows in _grouped(result.findings):
        first = rows[0]
        colour = _COLOURS[first.severity]
        hint = f"\n[dim]{escape(first.hint)}[/]" if first.hint else ""
        who = escape(_who(rows, result.data))
        table.add_row(f"[{colour}]{first.severity}[/]", f"{escape(first.what)}{hint}", who)
    out.print(table)


def _grouped(findings: Sequence[Finding]) -> list[list[Finding]]:
    """Findings that say the same, in their order."""
    groups: dict[tuple[str, ...], list[Finding]] = {}
    for each in findings:
        groups.setdefault((each.severity, each.kind, each.what, each.hint), []).append(each)
    return list(groups.values())


def _who(rows: Sequence[Finding], data: Path) -> str:
    """How many scans, the first few by name with their figures; of one its file."""
    if len(rows) == 1:
        parts = (rows[0].detail, rows[0].file.removeprefix(f"{data}/"))
        return "\n".join(part for part in parts if part)
    named = dict.fromkeys(f"{each.scan or Path(each.file).name}: {each.detail}".removesuffix(": ") for each in rows)
    more = [f"and {len(named) - _NAMED} more"] if len(named) > _NAMED else []
    count = len({each.scan or each.file for each in rows})
    return "\n".join([f"{count} scans" if count > 1 else "1 scan", *list(named)[:_NAMED], *more])
