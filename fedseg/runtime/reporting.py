"""An evaluation on disk: JSON, CSV, and one HTML page with a picture for each scan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedseg.errors import StorageError
from fedseg.metrics.summary import to_json
from fedseg.report.figures import overlay_png
from fedseg.report.html import evaluation_csv, evaluation_page
from fedseg.runtime.segmentation import OnCase, Segmenter, describe_model, evaluate, evaluation_data
from fedseg.store.files import storage_errors, write_atomic


def write_evaluation(
    model: Path,
    data: Path,
    out: Path,
    *,
    labels: str | None,
    split: str | None,
    site: str | None,
    on_case: OnCase,
) -> dict[str, Any]:
    """Score a model and write `report.html`, `scores.csv` and `scores.json` into `out`.

    Returns:
        The document of `evaluate --json`.

    Raises:
        FedsegError: if the model or the data cannot be used, or `out` cannot be written.
    """
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        if not out.is_dir():
            raise StorageError("this is a file, not a folder", where=str(out))
    segmenter = Segmenter(model)
    dataset, chosen = evaluation_data(data, segmenter.scheme, labels, split)
    scores, pictures = [], {}
    for scored in evaluate(segmenter, dataset, chosen, site, on_case):
        scores.append(scored.scores)
        key = scored.scores.run or scored.scores.subject
        pictures[key] = overlay_png(
            scored.image, scored.truth, scored.predicted, scored.affine, segmenter.scheme.tissues
        )
    document = to_json(describe_model(model, segmenter.card), scores) | {"split": chosen}
    write_atomic(out / "scores.json", json.dumps(document, indent=1, allow_nan=False).encode())
    write_atomic(out / "scores.csv", evaluation_csv(document).encode())
    write_atomic(out / "report.html", evaluation_page(document, pictures).encode())
    return document
