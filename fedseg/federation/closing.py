"""What a published sum makes of a model: one function at server and sites, so that no site need believe the server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fedseg.federation.exchange import Best
from fedseg.federation.robust import stretch
from fedseg.federation.rollback import judge
from fedseg.plan.manifest import Manifest
from fedseg.secagg.encoding import Mean
from fedseg.secagg.session import Code


@dataclass(frozen=True)
class Closing:
    """The outcome of a round.

    Attributes:
        mean: The mean update (in distributed mode the mean gradient), and what the sum says of itself.
        best: The best model so far, in a study that rolls back.
        back: The mean is discarded and the next model is `best`.
    """

    mean: Mean
    best: Best | None
    back: bool


def close_round(
    manifest: Manifest,
    encoding: Code,
    total: NDArray[np.uint32],
    contributors: Sequence[str],
    *,
    base_model: str,
    best: Best | None,
) -> Closing:
    """Decode a round's sum, and judge the model that it started from.

    Args:
        manifest: The study.
        encoding: The study's.
        total: uint32[length].
        contributors: Whose updates are in it; their weights are the plan's.
        base_model: Hash of the model that the round started from.
        best: The best model before the round.

    Raises:
        ProtocolError: The sum is none that these contributors can make.
    """
    plan = manifest.plan
    rule, weights = plan.aggregation.rule, [plan.sites[site].weight for site in contributors]
    longer = 1.0 if rule == "mean" else stretch(rule, len(contributors), plan.aggregation.liars)
    mean = encoding.decode(total, weights, longer)
    if plan.distributed:
        # Constants of the plan, never the true numbers: these would tell who was drawn.
        subjects = sum(plan.sites[site].public_subjects for site in contributors)
        divisor = plan.privacy.sampling_rate * subjects
        mean = replace(mean, update=(mean.update / np.float64(divisor)).astype(np.float32), norm=mean.norm / divisor)
    rollback = plan.aggregation.rollback
    if rollback is None:
        return Closing(mean, None, back=False)
    judgement = judge(best, base_model, mean.score, rollback.drop)
    return Closing(mean, judgement.best, judgement.back)
