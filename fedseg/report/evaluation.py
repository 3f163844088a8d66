"""An evaluation as a page says it: sentences, tables and rows, of the document of `fedseg evaluate --json`."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedseg.labels import abbreviation, color, display_name
from fedseg.report.metric_words import METRICS, printed
from fedseg.report.tables import Group, Table, grouped, interval, mean_scores, own_scores
from fedseg.report.volumes import brain_tissue_ml

Document = Mapping[str, Any]

_LONG = 100
_MOST_WORDS = 400
_SEVERITIES = ("error", "warning", "note")
_GROUPS = {"by_site": "site", "by_pathology": "pathology", "by_age": "gestational age, weeks"}
_HEADLINES = (("dice", "mean Dice"), ("hd95_mm", "mean HD95, mm"), ("volume_similarity", "mean volume similarity"))


@dataclass(frozen=True)
class Row:
    """One scan.

    Args:
        name: Its run where the subject has several, else the subject.
        facts: Site, age, pathology and volume of brain tissue in one line.
        dice: Mean over tissues, as text.
        scores: Its metrics by tissue, and the reference's volumes.
        flags: (severity, what, hint), the worst first; None where nobody looked.
    """

    name: str
    facts: str
    dice: str
    scores: Table
    flags: tuple[tuple[str, str, str], ...] | None


@dataclass(frozen=True)
class Part:
    """All that is said of one model, without its plots and pictures.

    Args:
        name: Of the model, for headings.
        sentences: The result in words.
        tiles: (number, interval, what it is).
        scores: Means by metric and tissue, with their intervals.
        groups: By site, pathology and age, where there are several.
        notes: How the numbers came about, and what is missing.
        legend: (name, abbreviation, colour) of each tissue.
        flagged: (scan, severity, what) of every error and warning; None where nobody looked.
        rows: The scans, worst first.
        model: (name, text, whether it is long) of what the document says of the model.
    """

    name: str
    sentences: tuple[str, ...]
    tiles: tuple[tuple[str, str, str], ...]
    scores: Table
    groups: tuple[Group, ...]
    notes: tuple[str, ...]
    legend: tuple[tuple[str, str, str], ...]
    flagged: tuple[tuple[str, str, str], ...] | None
    rows: tuple[Row, ...] = field(repr=False)
    model: tuple[tuple[str, str, bool], ...]


def row_name(row: Mapping[str, Any]) -> str:
    """What a scan is called: its run where the subject has several, else the subject."""
    return str(row.get("run") or row["subject"])


def worst_first(document: Document) -> list[Mapping[str, Any]]:
    """The scans by mean Dice, the lowest first; none counts as 0."""
    return sorted(document["subjects"], key=lambda row: (mean_of(row, "dice") or 0.0, row_name(row)))


def mean_of(row: Mapping[str, Any], metric: str) -> float | None:
    """A scan's mean over the tissues that have the value; None without one."""
    present = [value for value in row[metric].values() if value is not None]
    return math.fsum(present) / len(present) if present else None


def tissues_of(document: Document) -> list[str]:
    """Names of the tissues, in the scheme's order."""
    return [name for name in document["summary"]["dice"] if name != "mean"]


def model_name(document: Document) -> str:
    """What a model is called: its file, else its study."""
    model = document["model"]
    return str(model.get("file") or model.get("study") or "this model")


def never_hand_on(model: Mapping[str, Any]) -> str:
    """Why a model must not be handed on, as its file says; empty where it does not say that.

    Args:
        model: What a document says of the model; its `privacy` is read.
    """
    why = model.get("privacy", {}).get("never_hand_on", "")
    return "".join(letter for letter in str(why)[:_MOST_WORDS] if letter.isprintable())


def part(document: Document) -> Part:
    """Everything that the page says of one model."""
    rows = worst_first(document)
    tissues = tissues_of(document)
    summary = document["summary"]
    flags = [(row_name(row), flag) for row in rows for flag in row.get("flags") or ()]
    serious = [(name, flag["severity"], flag["what"]) for name, flag in flags if flag["severity"] != "note"]
    looked = any("flags" in row for row in rows)
    return Part(
        name=model_name(document),
        sentences=tuple(_sentences(document, rows)),
        tiles=tuple(_tiles(summary)),
        scores=mean_scores(summary, tissues),
        groups=tuple(
            grouped(title, summary[key], tissues) for key, title in _GROUPS.items() if len(summary.get(key, ())) > 1
        ),
        notes=tuple(_notes(summary)),
        legend=tuple((display_name(tissue), abbreviation(tissue), color(tissue)) for tissue in tissues),
        flagged=tuple(sorted(serious, key=lambda each: _SEVERITIES.index(each[1]))) if looked else None,
        rows=tuple(_row(row, tissues) for row in rows),
        model=tuple(_model_lines(document["model"])),
    )


def _sentences(document: Document, rows: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    """Who was scored, how well, where it is worst, what the flags say."""
    summary = document["summary"]
    if rows:
        dice, distance = (_mean_in_words(summary, metric) for metric in ("dice", "hd95_mm"))
        yield f"Mean Dice {dice}; mean HD95 {distance}."
    yield _scored(document.get("split"), rows)
    if failed := document.get("failed"):
        said = "; ".join(f"{row_name(each)} ({each['error']})" for each in failed)
        yield f"Not scored, and in no mean: {_several(len(failed), 'scan')}: {said}."
    if why := never_hand_on(document["model"]):
        yield f"This model must not be handed on: {why}."
    if not rows:
        return
    yield _worst(summary["worst"])
    if any("flags" in row for row in rows):
        counts = Counter(flag["severity"] for row in rows for flag in row.get("flags") or ())
        found = ", ".join(_several(counts[each], each) for each in _SEVERITIES)
        yield f"Quality flags: {found}."
    else:
        yield "Quality flags: nobody looked for any."


def _scored(split: str | None, rows: Sequence[Mapping[str, Any]]) -> str:
    subjects = {(row["site"], row["subject"]) for row in rows}
    sites = sorted({row["site"] for row in rows if row["site"] is not None})
    scans = f" ({len(rows)} scans)" if len(rows) != len(subjects) else ""
    where = f" of {_several(len(sites), 'site')} ({', '.join(sites)})" if sites else ""
    weeks = [row["gestational_age_weeks"] for row in rows if row["gestational_age_weeks"] is not None]
    aged = f", {min(weeks):g} to {max(weeks):g} weeks of gestation" if weeks else ""
    unaged = f" (age of {_several(len(rows) - len(weeks), 'scan')} unknown)" if weeks and len(weeks) < len(rows) else ""
    which = {None: "", "all": "; all subjects were scored"}.get(split, f"; scored: the subjects of the split {split}")
    return f"{_several(len(subjects), 'subject')}{scans}{where}{aged}{unaged}{which}."


def _worst(worst: Mapping[str, Any]) -> str:
    subject, site = worst["subject"], worst["site"]
    found = []
    if subject is not None:
        at = f" of {subject['site']}" if subject["site"] else ""
        found.append(f"Worst subject: {subject['subject']}{at}, mean Dice {printed(subject['dice'], 3)}.")
    if site is not None:
        found.append(f"Worst site: {site['site']}, mean Dice {printed(site['dice'], 3)}.")
    return " ".join(found)


def _several(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _mean_in_words(summary: Mapping[str, Any], metric: str) -> str:
    decimals = METRICS[metric].decimals
    found = summary["intervals"][metric]["mean"]
    unit = " mm" if metric.endswith("_mm") else ""
    within = f" (95% interval {interval(found, decimals)})" if found else ""
    return f"{printed(summary[metric]['mean'], decimals)}{unit}{within}"


def _tiles(summary: Mapping[str, Any]) -> Iterable[tuple[str, str, str]]:
    for metric, what in _HEADLINES:
        decimals = METRICS[metric].decimals
        mean, found = summary[metric]["mean"], summary["intervals"][metric].get("mean")
        yield printed(mean, decimals), interval(found, decimals), what


def _notes(summary: Mapping[str, Any]) -> Iterable[str]:
    yield "Means are over subjects, each with the mean of its scans."
    how = summary["bootstrap"]
    if any(found for column in summary["intervals"].values() for found in column.values()):
        yield f"Intervals: {how['method']}, {how['resamples']} resamples, seed {how['seed']}."
    else:
        yield "There is no interval with fewer than three subjects."
    missing = [
        f"{METRICS[metric].short} of {display_name(tissue)}: {count}"
        for metric, counts in summary["missing"].items()
        for tissue, count in counts.items()
        if count
    ]
    yield f"Values left out of the means: {'; '.join(missing)}." if missing else "No value is missing."


def _row(row: Mapping[str, Any], tissues: Sequence[str]) -> Row:
    facts = [row["site"], _weeks(row["gestational_age_weeks"]), row["pathology"], _brain_tissue(row)]
    flags = row.get("flags")
    return Row(
        name=row_name(row),
        facts=", ".join(str(fact) for fact in facts if fact is not None),
        dice=printed(mean_of(row, "dice"), 3),
        scores=own_scores(row_name(row), row, tissues),
        flags=None if flags is None else tuple(sorted(map(_flag, flags), key=lambda each: _SEVERITIES.index(each[0]))),
    )


def _flag(flag: Mapping[str, Any]) -> tuple[str, str, str]:
    return str(flag["severity"]), str(flag["what"]), str(flag.get("hint") or "")


def _brain_tissue(row: Mapping[str, Any]) -> str | None:
    found, reference = brain_tissue_ml(row["volume_ml"]), brain_tissue_ml(row["reference_volume_ml"])
    if found is None or reference is None:
        return None
    return f"brain tissue {found:.1f} mL (reference {reference:.1f} mL)"


def _weeks(age: float | None) -> str | None:
    return None if age is None else f"{age:g} weeks"


def _model_lines(model: Mapping[str, Any]) -> Iterable[tuple[str, str, bool]]:
    for name, value in model.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        yield name.replace("_", " "), text, len(text) > _LONG
