"""Documents for the tests of pages."""

from __future__ import annotations

from typing import Any

from fedseg.metrics.summary import SubjectScores, to_json

TISSUES = ("white_matter", "ventricles")


def scores(
    subject: str,
    *dice: float,
    site: str | None = "leuven",
    age: float | None = 24.0,
    pathology: str | None = "spina bifida",
    run: str | None = None,
    hd: float | None = 2.25,
) -> SubjectScores:
    named = dict(zip(TISSUES, dice, strict=True))
    distances = {"white_matter": 1.5, "ventricles": hd}
    volumes = {"white_matter": 81.26, "ventricles": 6.5}
    return SubjectScores(subject, site, age, pathology, named, distances, named, volumes, run)


def document(*rows: SubjectScores) -> dict[str, Any]:
    model = {"study": "atlas", "rounds": 30, "privacy": {"mode": "off", "epsilon": None}, "plan_hash": "a" * 64}
    return to_json(model, rows)


def privacy(**changes: Any) -> dict[str, Any]:
    site = {
        "site": "leuven",
        "unit": "subject",
        "epsilon": 3.0004001,
        "delta": 1e-5,
        "noise_multiplier": 1.5,
        "max_grad_norm": 1.0,
        "sampling_rate": 0.25,
        "steps": 300,
        "rounds": 30,
        "budget_epsilon": 8.0,
        "accountant": "PLD",
        "ledger_intact": True,
    }
    return {"study": "atlas", "privacy": "local", "epsilon": 3.0004001, "sites": [site], **changes}
