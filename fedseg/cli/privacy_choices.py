"""What else a private plan could be, layers and mode: what each choice costs in noise, and which cannot be."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from fedseg.errors import PlanError

if TYPE_CHECKING:
    from fedseg.plan.study import StudyPlan
    from fedseg.privacy.planning import Scenario


def alternatives(plan: StudyPlan, scenario: Scenario, parameters: Mapping[str, int]) -> list[dict[str, Any]]:
    """A row for each choice of layers and each mode that these sites could have; refused where the plan has more."""
    from fedseg.plan.sections import RATES
    from fedseg.privacy.planning import forecast

    rows = []
    for layers, dimension in parameters.items():
        for mode in ("local", "distributed") if scenario.honest else ("local",):
            other = scenario.in_mode(mode, RATES[mode])
            try:
                _require_possible(plan, layers, other)
                found = asdict(forecast(other, dimension))
            except PlanError as error:
                found = {"dimension": dimension, "refused": error.what}
            rows.append({"layers": layers, "privacy": mode, "steps": other.steps, "sampling_rate": other.rate, **found})
    return rows


def _require_possible(plan: StudyPlan, layers: str, other: Scenario) -> None:
    """Refuse what the plan could not be changed to: its strategy, say, may not go with other layers or another mode.

    Raises:
        PlanError: Saying why.
    """
    from pydantic import ValidationError

    changed = plan.model_dump(mode="json", exclude_unset=True)
    training = {"layers": layers, "steps": other.steps, **({"optimiser": "sgd"} if other.mode == "distributed" else {})}
    changed["training"] = changed.get("training", {}) | training
    changed["privacy"] |= {"mode": other.mode, "sampling_rate": other.rate}
    try:
        type(plan).model_validate_json(json.dumps(changed))
    except ValidationError as failure:
        raise PlanError(failure.errors()[0]["msg"].removeprefix("Value error, ")) from None
