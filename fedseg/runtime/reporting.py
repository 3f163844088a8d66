"""An evaluation on disk: JSON, CSV, and one HTML page with pictures of each scan.

Of each scan no more is kept than its scores, its flags and a compressed picture; volumes are let go one after another.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from fedseg.errors import StorageError
from fedseg.imaging.flags import flags_of
from fedseg.metrics.comparison import compare
from fedseg.metrics.scores import SubjectScores
from fedseg.metrics.summary import to_json
from fedseg.report.figures import Picture, overlay
from fedseg.report.html import evaluation_csv, evaluation_page, row_name
from fedseg.runtime.prediction import OnCase, Options, Segmenter
from fedseg.runtime.scoring import Part, Scored, Source, describe_model, evaluate_part, parts_of, segmenters_of
from fedseg.store.files import storage_errors, write_atomic

PAGE, TABLE, DOCUMENT = "report.html", "scores.csv", "scores.json"


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

    Args:
        models: Model files of one task; each later one is compared with the first.
        sources: The data sets.
        out: Made where it is missing.
        split: Whom to score; None: test subjects where there are any, else all.
        options: How to segment; None: as `fedseg predict` does unless told otherwise.
        on_case: Told of progress, in scans of all models together.

    Returns:
        The document of `evaluate --json`. Of one model: `model`, `split`, `subjects` (each with `flags`), `summary`. Of
        several: `models`, a list of these, and `comparisons`, each with the places of its models, `first` and `second`.

    Raises:
        FedsegError: if the models or the data cannot be used, or `out` cannot be written: where that can be known,
            before anything is segmented.
    """
    _require_writable(out)
    segmenters = segmenters_of(models, options or Options())
    parts = parts_of(sources, segmenters[0].scheme, split)
    done, of = count(1), len(models) * sum(len(part.cases) for part in parts)
    kept = [
        _keep(segmenter, parts, pictures=number == 0, on_scan=lambda: on_case(next(done), of))
        for number, segmenter in enumerate(segmenters)
    ]
    names = _names(models)
    documents = [
        _document(describe_model(path, segmenter.card) | {"file": name}, parts[0].split, each)
        for path, name, segmenter, each in zip(models, names, segmenters, kept, strict=True)
    ]
    several = len(documents) > 1
    document = _compared(documents, kept) if several else documents[0]
    rows = [f"{'0:' if several else ''}{row_name(row)}" for row in documents[0]["subjects"]]
    pictures = dict(zip(rows, kept[0].pictures, strict=True))
    write_atomic(out / DOCUMENT, json.dumps(document, indent=1, allow_nan=False).encode())
    write_atomic(out / TABLE, evaluation_csv(document).encode())
    write_atomic(out / PAGE, evaluation_page(document, pictures).encode())
    return document


@dataclass(frozen=True)
class _Kept:
    """What is kept of the scans that one model has segmented, in their order; pictures of the first model's alone."""

    scores: list[SubjectScores] = field(default_factory=list)
    flags: list[list[dict[str, Any]]] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)


def _keep(segmenter: Segmenter, parts: Sequence[Part], *, pictures: bool, on_scan: Callable[[], None]) -> _Kept:
    kept = _Kept()
    for part in parts:
        for scored in evaluate_part(segmenter, part, lambda _done, _of: None):
            kept.scores.append(scored.scores)
            kept.flags.append(_flags(segmenter, scored))
            if pictures:
                kept.pictures.append(_picture(segmenter, scored))
            # Else these volumes would stay in memory while the next ones are made.
            del scored
            on_scan()
    return kept


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


def _document(model: dict[str, Any], split: str, kept: _Kept) -> dict[str, Any]:
    document = to_json(model, kept.scores) | {"split": split}
    for row, flags in zip(document["subjects"], kept.flags, strict=True):
        row["flags"] = flags
    return document


def _compared(documents: list[dict[str, Any]], kept: Sequence[_Kept]) -> dict[str, Any]:
    comparisons = [
        {"first": 0, "second": number, **compare(kept[0].scores, kept[number].scores).to_json()}
        for number in range(1, len(kept))
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


def _require_writable(out: Path) -> None:
    """Refuse a folder for the results that cannot hold them, before the hours of work.

    Raises:
        StorageError: saying why.
    """
    if out.exists() and not out.is_dir():
        raise StorageError("this is a file, not a folder", where=str(out), hint="name a folder with --out")
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    trial = out / ".fedseg-trial"
    write_atomic(trial, b"")
    with storage_errors(trial):
        trial.unlink()
