"""What the file of a study's model says of its images."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedseg.imaging.made_up_fingerprint import T2_MADE_UP
from fedseg.plan.study import parse_plan
from fedseg.runtime.model_file import write_model
from fedseg.runtime.preparation import first_model, layout_of
from fedseg.runtime.resolution import resolve
from fedseg.store.checkpoints import load_model

PLAN = """
name: small
privacy: {{mode: 'off'}}
image: {{spacing_mm: 4.0, patch: [16, 16, 16], n4: {n4}}}
network: {{preset: small}}
schedule: {{rounds: 1}}
aggregation: {{mode: plain}}
sites: {{a: {{}}}}
"""


@pytest.mark.parametrize("n4", [False, True])
def test_it_has_the_made_up_fingerprint_and_the_plans_n4(tmp_path: Path, n4: bool) -> None:
    document = parse_plan(PLAN.format(n4=str(n4).lower()), "test")
    manifest = resolve(document, first_model(document.content), study="ab" * 16)
    write_model(tmp_path / "m.safetensors", manifest, layout_of(manifest), first_model(manifest.plan).weights, ())
    card = load_model(tmp_path / "m.safetensors")[1]
    assert card.fingerprint == T2_MADE_UP
    assert card.normalisation["n4"] is n4
