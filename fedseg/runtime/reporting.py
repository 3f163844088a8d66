"""An evaluation on disk: JSON, CSV, and one HTML page with pictures of each scan.

Of each scan no more is kept than its scores, its flags and a compressed picture; volumes are let go one after another.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

from fedseg.errors import DataError
from fedseg.imaging.dataset import Case
from fedseg.imaging.flags import flags_of
from fedseg.metrics.comparison import compare
from fedseg.metrics.scores import SubjectScores
from fedseg.metrics.summary import to_json
from fedseg.report.figures import Picture, overlay
from fedseg.report.html import evaluation_csv, evaluation_page, row_name
from fedseg.report.volumes import brain_tissue_ml
from fedseg.runtime.batch import too_large
from fedseg.runtime.out_folder import make_private, refuse_unwritable
from fedseg.runtime.prediction import OnCase, Options, Segmenter
from fedseg.runtime.scoring import Part, Scored, Source, describe_model, parts_of, score_case, segmenters_of
from fedseg.store.files import write_atomic

PAGE, TABLE, DOCUMENT = "report.html", "scores.csv", "scores.json"

_Todo = tuple[Part, Case, str | None]
"""A scan to score, and the name that tells it apart."""


def write_evaluation(
    models: Sequence[Path],
    sources: Sequence[Source],
    out: Path,
    *,
    split: str | None = None,
    options: Options | None = None,
    on_case: OnCase = lambda _done, _of: None,
) -> dict[str, Any]:
    """Score models and write `report.html`, `scores.csv` and `scores.json` into `out`, for their owner's eyes alone.

    A scan that one of the models cannot be scored on stops no other; it is left out of all scores.

    Args:
        models: Model files of one task; each later one is compared with the first.
        sources: The data sets.
        out: Made where it is missing, once there is something to write, and closed to others then.
        split: Whom to score; None: test subjects where there are any, else all.
        options: How to segment; None: as `fedseg predict` does unless told otherwise.
        on_case: Told of progress, in scans of all models together.

    Returns:
        The document of `evaluate --json`. Of one model: `model`, `split`, `subjects` (each with `flags` and the two
        volumes of brain tissue), `summary`, and the scans that `failed`, each with the `error`. Of several: `models`, a
        list of these, and `comparisons`, each with the places of its models, `first` and `second`.

    Raises:
        FedsegError: if the models or the data cannot be used, or `out` cannot be written: where that can be known,
            before anything is segmented. Or if no scan could be scored.
    """
    refuse_unwritable(out)
    segmenters = segmenters_of(models, options or Options())
    parts = parts_of(sources, segmenters[0].scheme, split)
    todo = [(part, *each) for part in parts for each in part.cases]
    failed: dict[int, DataError] = {}
    kept = _keep_all(segmenters, todo, failed, on_case)
    failures = [_failure(*todo[number][1:], failed[number]) for number in sorted(failed)]
    more = {"split": parts[0].split, "failed": failures}
    documents = [
        _document(describe_model(path, segmenter.card) | {"file": name}, each) | more
        for path, name, segmenter, each in zip(models, _names(models), segmenters, kept, strict=True)
    ]
    several = len(documents) > 1
    document = _compared(documents, kept) if several else documents[0]
    rows = [f"{'0:' if several else ''}{row_name(row)}" for row in documents[0]["subjects"]]
    pictures = {row: each.picture for row, each in zip(rows, kept[0], strict=True) if each.picture is not None}
    make_private(out)
    write_atomic(out / DOCUMENT, json.dumps(document, indent=1, allow_nan=False).encode())
    write_atomic(out / TABLE, evaluation_csv(document).encode())
    write_atomic(out / PAGE, evaluation_page(document, pictures).encode())
    return document


@dataclass(frozen=True)
class _Kept:
    """What is kept of a scan that a model has segmented; the picture of the first model's alone."""

    scores: SubjectScores
    flags: list[dict[str, Any]]
    picture: Picture | None


def _keep_all(
    segmenters: Sequence[Segmenter], todo: Sequence[_Todo], failed: dict[int, DataError], on_case: OnCase
) -> list[list[_Kept]]:
    """What is kept of the scans that every model could be scored on, in their order, for each model.

    Args:
        segmenters: The models.
        todo: The scans.
        failed: Where the other scans' errors go, by place in `todo`.
        on_case: Told of progress, in scans of all models together.

    Raises:
        DataError: if no scan is left.
    """
    done, of = count(1), len(segmenters) * len(todo)
    on_case(0, of)
    kept = [
        _keep(segmenter, todo, failed, pictures=number == 0, on_scan=lambda: on_case(next(done), of))
        for number, segmenter in enumerate(segmenters)
    ]
    if len(failed) == len(todo):
        first = failed[0]
        what = first.what if len(todo) == 1 else f"none of {len(todo)} scans can be scored; the first: {first.what}"
        raise DataError(what, where=first.where, hint=first.hint)
    return [[each[number] for number in sorted(each) if number not in failed] for each in kept]


def _keep(
    segmenter: Segmenter,
    todo: Sequence[_Todo],
    failed: dict[int, DataError],
    *,
    pictures: bool,
    on_scan: Callable[[], None],
) -> dict[int, _Kept]:
    """What is kept of each scan for one model; those that failed before are not tried again."""
    kept: dict[int, _Kept] = {}
    for number, (part, case, run) in enumerate(todo):
        if number not in failed:
            try:
                kept[number] = _one(segmenter, score_case(segmenter, part, case, run), pictures=pictures)
            except DataError as error:
                # Without its traceback, which would keep the scan's volumes in memory.
                failed[number] = DataError(error.what, where=error.where, hint=error.hint)
            except (MemoryError, RuntimeError) as error:
                failed[number] = too_large(case.image, error)
        on_scan()
    return kept


def _one(segmenter: Segmenter, scored: Scored, *, pictures: bool) -> _Kept:
    return _Kept(scored.scores, _flags(segmenter, scored), _picture(segmenter, scored) if pictures else None)


def _failure(case: Case, run: str | None, error: DataError) -> dict[str, Any]:
    """What the document says of a scan that could not be scored."""
    named = {} if run is None else {"run": run}
    return {"subject": case.subject, **named, "scan": str(case.image), "error": error.what, "hint": error.hint}


def _flags(segmenter: Segmenter, scored: Scored) -> list[dict[str, Any]]:
    found = flags_of(
        scored.segmentation.labels,
        scored.scan,
        segmenter.scheme,
        gestational_age_weeks=scored.case.gestational_age_weeks,
        uncertainty=scored.segmentation.uncertainty,
        fingerprint=segmenter.card.fingerprint,
        cleaned=scored.segmentation.cleaned,
    )
    return [asdict(flag) for flag in found]


def _picture(segmenter: Segmenter, scored: Scored) -> Picture:
    scan, tissues = scored.scan, segmenter.scheme.tissues
    return overlay(scan.data, scored.truth, scored.segmentation.labels, scan.affine, tissues)


def _document(model: dict[str, Any], kept: Sequence[_Kept]) -> dict[str, Any]:
    document = to_json(model, [each.scores for each in kept])
    for row, each in zip(document["subjects"], kept, strict=True):
        row["flags"] = each.flags
        row["brain_tissue_ml"] = brain_tissue_ml(row["volume_ml"])
        row["reference_brain_tissue_ml"] = brain_tissue_ml(row["reference_volume_ml"])
    return document


def _compared(documents: list[dict[str, Any]], kept: Sequence[Sequence[_Kept]]) -> dict[str, Any]:
    scores = [[each.scores for each in rows] for rows in kept]
    comparisons = [
        {"first": 0, "second": number, **compare(scores[0], scores[number]).to_json()}
        for number in range(1, len(scores))
    ]
    return {"models": documents, "comparisons": comparisons}


def _names(models: Sequence[Path]) -> list[str]:
    """What each model is called: its file's name, with as many folders before it as tell it from the others."""
    depth = 1
    while True:
        names = ["/".join(path.parts[-depth:]) for path in models]
        if len(set(names)) == len(names):
            return names
        depth += 1
