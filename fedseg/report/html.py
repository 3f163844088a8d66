"""Pages that open offline: everything inline, nothing loaded, nothing run; and the same scores as CSV."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Any

from fedseg import __version__
from fedseg.report import brains
from fedseg.report.curves import svg
from fedseg.report.evaluation import (
    Document,
    Row,
    model_name,
    part,
    row_name,
    tissues_of,
    worst_first,
)
from fedseg.report.evaluation_plots import age_plots, box_plots, growth_plots, paired_plot
from fedseg.report.facts import PrivacyReport
from fedseg.report.figures import CAPTION, ERRORS, Picture
from fedseg.report.metric_words import METRICS, printed
from fedseg.report.page import template
from fedseg.report.privacy_sections import headline, sections
from fedseg.report.tables import differences
from fedseg.report.volumes import BRAIN_TISSUE, tells_fluid

__all__ = ["evaluation_csv", "evaluation_page", "privacy_page", "row_name"]


def evaluation_page(data: Document, pictures: Mapping[str, Picture]) -> str:
    """One HTML page of an evaluation.

    Args:
        data: The document of `fedseg evaluate --json`: of one model, or of several under `models` with their
            `comparisons`, each with the places `first` and `second` of its models and what
            `metrics.comparison.Comparison.to_json` says.
        pictures: By `row_name` of the scan; of several models by `number:row_name`, the model's place first. A scan
            without one gets none.

    Returns:
        A page that loads nothing: pictures and style are inside, and its content policy forbids the rest.
    """
    documents = data.get("models", [data])
    several = len(documents) > 1
    return template("evaluation.html.j2").render(
        study=" and ".join(dict.fromkeys(map(_study, documents))),
        models=[
            _model(document, number, pictures, f"{number}:" if several else "")
            for number, document in enumerate(documents)
        ],
        comparisons=[_comparison(each, documents, number) for number, each in enumerate(data.get("comparisons", ()))],
        metrics=METRICS,
        caption=CAPTION,
        tissue_words=BRAIN_TISSUE if tells_fluid(tissues_of(documents[0])) else "",
        version=__version__,
    )


def evaluation_csv(data: Document) -> str:
    """The scores as CSV, one line for each scan and tissue; a missing value is an empty cell.

    Of several models, the first column says which.
    """
    text = StringIO()
    facts = ("subject", "run", "site", "gestational_age_weeks", "pathology")
    values = (*METRICS, "reference_volume_ml")
    writer = csv.writer(text, lineterminator="\n")
    several = "models" in data
    writer.writerow([*(["model"] if several else []), *facts, "tissue", *values])
    for document in data.get("models", [data]):
        name = [model_name(document)] if several else []
        for row in document["subjects"]:
            for tissue in row["dice"]:
                known = [row.get(fact) for fact in facts]
                writer.writerow([*name, *known, tissue, *(row[metric][tissue] for metric in values)])
    return text.getvalue()


def privacy_page(report: PrivacyReport) -> str:
    """One HTML page of a privacy report, for the annex of a data protection impact assessment.

    Everything is inside: the curves are SVG, nothing is loaded and nothing runs.
    """
    return template("privacy.html.j2").render(
        study=report.study,
        headline=headline(report),
        sections=[(section, svg(section.chart) if section.chart else None) for section in sections(report)],
    )


def _study(document: Document) -> str:
    return str(document["model"].get("study") or model_name(document))


def _model(document: Document, number: int, pictures: Mapping[str, Picture], prefix: str) -> dict[str, Any]:
    """One model's sentences, tables, plots and pictures."""
    said, rows, tissues, name = part(document), worst_first(document), tissues_of(document), f"m{number}"
    kinds = dict(list(ERRORS.items())[: 2 if len(tissues) == 1 else None])  # one tissue is taken for no other
    return {
        "said": said,
        "boxes": box_plots(rows, tissues, name),
        "ages": age_plots(rows, name),
        "growth": growth_plots(rows, tissues, name),
        "kinds": kinds,
        "pictures": any(prefix + row.name in pictures for row in said.rows),
        "rows": [
            (row, _views(row, pictures.get(prefix + row.name), kinds, f"{name}-s{place}"))
            for place, row in enumerate(said.rows)
        ],
    }


def _views(row: Row, picture: Picture | None, kinds: Mapping[str, str], name: str) -> dict[str, Any] | None:
    """A scan's pictures with their captions, and the volume of each kind of error."""
    if picture is None:
        return None
    return {
        "views": [
            (brains.svg(view, f"{name}-v{place}", _seen(row, view.name, picture)), _caption(view.name, view.place_mm))
            for place, view in enumerate(picture.views)
        ],
        "errors": None
        if picture.errors_ml is None
        else [(kind, colour, printed(picture.errors_ml[kind], 1)) for kind, colour in kinds.items()],
    }


def _seen(row: Row, view: str, picture: Picture) -> str:
    """What a reader who does not see the picture is told."""
    wrong = ", ".join(f"{kind} {volume:.1f} mL" for kind, volume in (picture.errors_ml or {}).items())
    return f"{row.name}, {view.lower()}: scan and outlines" + (f"; voxels that differ: {wrong}." if wrong else ".")


def _caption(name: str, place_mm: Sequence[float]) -> str:
    right, anterior, superior = (printed(each, 0).replace("-", "\N{MINUS SIGN}") for each in place_mm)
    return f"{name} (R {right}, A {anterior}, S {superior} mm)"


def _comparison(comparison: Mapping[str, Any], documents: Sequence[Document], number: int) -> dict[str, Any]:
    """Two models' difference as table and plot."""
    first, second = documents[comparison["first"]], documents[comparison["second"]]
    names = model_name(first), model_name(second)
    return {
        "names": names,
        "subjects": comparison["subjects"],
        "test": comparison["test"],
        "notes": comparison["notes"],
        "table": differences(comparison),
        "plot": paired_plot(first, second, names, f"c{number}"),
    }
