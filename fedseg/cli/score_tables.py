"""What `fedseg evaluate` shows on the screen: tables of scores, and sentences about them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Column, Table

from fedseg.labels import display_name
from fedseg.report.evaluation import row_name

DECIMALS = {"dice": 3, "hd95_mm": 2, "volume_similarity": 3, "euler_difference": 1, "asd_mm": 2, "nsd": 3}
HEADINGS = {
    "dice": "Dice",
    "hd95_mm": "HD95 mm",
    "volume_similarity": "volume similarity",
    "euler_difference": "Euler difference",
    "asd_mm": "ASD mm",
    "nsd": "NSD at 1 mm",
}
"""Metrics in the order in which they are shown; `fedseg.metrics` defines them."""

SHORT = {"volume_similarity": "VS", "euler_difference": "Euler", "asd_mm": "ASD mm", "nsd": "NSD"}
CAPTION = (
    "VS volume similarity; Euler difference of Euler characteristics; ASD average surface distance; NSD normalised "
    "surface Dice at 1 mm; lacking: scans without HD95 and ASD, as one of the two masks is empty"
)
"""What the headings of `tissues` stand for."""

GROUPS = {"by_site": "site", "by_age": "weeks", "by_pathology": "pathology"}
ALPHA = 0.05
SERIOUS = ("error", "warning")
NAMED = 5


def tissues(summary: Mapping[str, Any]) -> Table:
    """One model's means by tissue, with the 95 % interval of Dice."""
    short = [SHORT.get(metric, heading) for metric, heading in HEADINGS.items()]
    table = Table("tissue", short[0], "95 %", *short[1:], "lacking")
    table.columns[0].no_wrap = True
    for tissue in summary["dice"]:
        values = [_number(summary[metric][tissue], DECIMALS[metric]) for metric in HEADINGS]
        interval = _interval(summary["intervals"]["dice"][tissue], 3)
        missing = str(summary["missing"]["hd95_mm"].get(tissue, ""))
        table.add_row(_name(tissue), values[0], interval, *values[1:], missing, style=_style(tissue))
    return table


def groups(documents: Sequence[Mapping[str, Any]]) -> Iterator[Table]:
    """Mean Dice and HD95 of every model by site, age and pathology, each where there are two groups or more."""
    for key, heading in GROUPS.items():
        first = documents[0]["summary"][key]
        if len(first) < 2:
            continue
        shared = [f" {document['model']['file']}" if len(documents) > 1 else "" for document in documents]
        columns = [f"{HEADINGS[metric]}{escape(name)}" for name in shared for metric in ("dice", "hd95_mm")]
        table = Table(heading, "subjects", *(Column(column, overflow="fold") for column in columns))
        for group, means in first.items():
            values = [
                _number(document["summary"][key][group][metric]["mean"], DECIMALS[metric])
                for document in documents
                for metric in ("dice", "hd95_mm")
            ]
            table.add_row(escape(group), str(means["subjects"]), *values)
        yield table


def worst(document: Mapping[str, Any], *, named: bool) -> Iterator[str]:
    """The subject and the site on which a model does worst."""
    found, model = document["summary"]["worst"], f" of {document['model']['file']}" if named else ""
    if found["subject"] is not None:
        subject = found["subject"]
        site = f" at {subject['site']}" if subject["site"] else ""
        yield f"Worst subject{model}: {subject['subject']}{site}, mean Dice {subject['dice']:.3f}"
    if found["site"] is not None:
        yield f"Worst site{model}: {found['site']['site']}, mean Dice {found['site']['dice']:.3f}"


def flagged(document: Mapping[str, Any], *, named: bool) -> str:
    """How many quality flags there are, and which scans have errors or warnings."""
    rows = document["subjects"]
    severities = Counter(flag["severity"] for row in rows for flag in row["flags"])
    counts = ", ".join(f"{severities[each]} {each}{'' if severities[each] == 1 else 's'}" for each in SERIOUS)
    scans = [row_name(row) for row in rows if any(flag["severity"] in SERIOUS for flag in row["flags"])]
    more = f" and {len(scans) - NAMED} more" if len(scans) > NAMED else ""
    which = f" ({', '.join(scans[:NAMED])}{more}: the page says why)" if scans else ""
    model = f" of {document['model']['file']}" if named else ""
    return f"Quality flags{model}: {counts}{which}"


def scored(document: Mapping[str, Any]) -> Iterator[str]:
    """Who was scored, and which scans could not be."""
    split = document["split"]
    who = "all subjects" if split == "all" else f"the subjects of the split {split}"
    yield f"Scored: {who}, {_subjects(document)}. For research use only."
    if names := [row_name(each) for each in document["failed"]]:
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        scans = "1 scan" if len(names) == 1 else f"{len(names)} scans"
        yield f"Not scored, and in no mean: {scans} ({', '.join(names[:NAMED])}{more}: the page says why)"


def comparison(compared: Mapping[str, Any], first: str, second: str) -> Table:
    """Two models on the same subjects: each metric's mean, then Dice by tissue."""
    title = f"{second} minus {first}, {compared['subjects']} subjects"
    table = Table("metric", "difference", "95 %", "p; of tissues p_holm", title=escape(title), title_justify="left")
    metrics = compared["metrics"]
    for metric, heading in HEADINGS.items():
        table.add_row(heading, *_tested(metrics[metric]["mean"], DECIMALS[metric], "p"), style="bold")
    for tissue, found in metrics["dice"].items():
        if tissue != "mean":
            table.add_row(f"  Dice, {display_name(tissue)}", *_tested(found, 3, "p_holm"))
    return table


def verdict(compared: Mapping[str, Any], first: str, second: str) -> Iterator[str]:
    """What the comparison says, in a sentence, and what to know before believing it."""
    found = compared["metrics"]["dice"]["mean"]
    if found["difference"]:
        way = "higher" if found["difference"] > 0 else "lower"
        says = "chance alone rarely makes such a difference" if found["p"] < ALPHA else "chance alone could make that"
        yield (
            f"Mean Dice of {second} is {abs(found['difference']):.3f} {way} than that of {first} "
            f"(p = {_p(found['p'])}): {says}"
        )
    yield from (f"Note: {note}" for note in compared["notes"])


def _subjects(document: Mapping[str, Any]) -> str:
    rows = document["subjects"]
    people = len({(row["site"], row["subject"]) for row in rows})
    return f"{people} subjects" if people == len(rows) else f"{people} subjects, {len(rows)} scans"


def _tested(found: Mapping[str, Any], decimals: int, p: str) -> list[str]:
    difference = "-" if found["difference"] is None else f"{found['difference']:+.{decimals}f}"
    return [difference, _interval(found["interval"], decimals, signed=True), _p(found[p])]


def _p(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"


def _number(value: float | None, decimals: int) -> str:
    return "-" if value is None else f"{value:.{decimals}f}"


def _interval(ends: Sequence[float] | None, decimals: int, *, signed: bool = False) -> str:
    sign = "+" if signed else ""
    return "-" if ends is None else " \N{EN DASH} ".join(f"{end:{sign}.{decimals}f}" for end in ends)


def _name(tissue: str) -> str:
    return "mean" if tissue == "mean" else display_name(tissue)


def _style(tissue: str) -> str | None:
    return "bold" if tissue == "mean" else None
