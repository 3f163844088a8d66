"""A toy study with privacy on."""

from __future__ import annotations

from pathlib import Path

from fedseg.document import Document
from fedseg.federation.vector import Weights
from fedseg.plan.manifest import Manifest
from fedseg.plan.study import StudyPlan, parse_plan
from fedseg.runtime.resolution import FirstModel, resolve
from fedseg.store.privacy_ledger import LEDGER, HospitalLedger
from tests.runtime.toy import INITIAL

PLAN = """\
name: toy
seed: 7
training: {optimiser: OPTIMISER}
privacy:
  mode: local
  epsilon: 8
  delta: DELTA
  sampling_rate: 0.5
  reserve_rounds: RESERVE
aggregation:
  mode: secure
  clip: CLIP
schedule: {rounds: ROUNDS, deadline_s: 20, absent_after_s: 5}
sites: {a: {}, b: {}, c: {}}
"""


def private_plan(
    *, rounds: int = 2, reserve: int = 1, delta: str = "1e-5", clip: float = 64.0, optimiser: str = "adam"
) -> Document[StudyPlan]:
    values = {"OPTIMISER": optimiser, "DELTA": delta, "RESERVE": reserve, "CLIP": clip, "ROUNDS": rounds}
    text = PLAN
    for name, value in values.items():
        text = text.replace(name, str(value))
    return parse_plan(text, "private.yaml")


def ledger_at(folder: Path) -> HospitalLedger:
    """The ledger in a folder, begun where there is none."""
    return HospitalLedger.open(folder) if (folder / LEDGER).is_file() else HospitalLedger.create(folder)


def private_manifest(*, rounds: int = 2, reserve: int = 1, weights: Weights = INITIAL) -> Manifest:
    plan = private_plan(rounds=rounds, reserve=reserve)
    return resolve(plan, FirstModel(weights, {"preset": "toy"}), study="ab" * 16)
