"""What distributed noise promises beyond what its sentence allows for, and when that sentence is true."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedseg.plan.manifest import Manifest
from fedseg.plan.study import parse_plan
from fedseg.privacy.accounting import epsilon
from fedseg.report.numbers import printed
from fedseg.runtime.privacy_trust import Shares, aggregation
from fedseg.runtime.privacy_words import claim, notes, risks
from fedseg.runtime.resolution import FirstModel, events_of, resolve
from fedseg.runtime.session import noise_share, thresholds_of
from tests.runtime import toy
from tests.runtime.private import private_manifest

ROOT = Path(__file__).resolve().parents[2]
ATLAS = (ROOT / "sample_configs" / "atlas-private.yaml").read_text()
SITES = "site-crl: {public_subjects: 8}\n  site-wu: {public_subjects: 6}\n  site-sba: {public_subjects: 8}"
NORMS = FirstModel(np.zeros(664, np.float32), {"preset": "toy"})


def atlas(sites: int, more: str = "") -> Manifest:
    """The sample plan with so many sites, on a network that is as large as what it trains."""
    assert SITES in ATLAS
    text = ATLAS.replace(SITES, "\n  ".join(f"s{number}: {{public_subjects: 8}}" for number in range(sites)))
    text = text.replace("layers: norms", "layers: all").replace("mode: secure", f"mode: secure{more}")
    return resolve(parse_plan(text, "atlas.yaml"), NORMS, study="ab" * 16)


@pytest.mark.parametrize(
    ("sites", "tolerated", "one_more", "who"),
    [
        (3, 1, 12.17, "at most 1 of the other contributors of a sum pools what it knows or leaves out its noise"),
        (4, 1, 12.17, "at most 1 of the other contributors of a sum pools what it knows, with or without the server"),
        (8, 2, 9.64, "at most 2 of the other contributors of a sum pool what they know, with or without the server"),
    ],
)
def test_the_claim_says_how_many_sites_it_withstands_and_what_one_more_leaves(
    sites: int, tolerated: int, one_more: float, who: str
) -> None:
    manifest = atlas(sites)
    shares, share = Shares.of(manifest), noise_share(manifest)
    assert shares is not None
    assert share is not None
    limits = thresholds_of(manifest.plan, manifest.quorum)
    assert shares.tolerated == tolerated == max(limits.c, 1)
    # The noise that is left: of the fewest in a sum, all but those who pool it, the site itself among them.
    left = limits.quorum - (tolerated + 1)
    sigma = manifest.noise_multiplier
    assert sigma is not None
    weaker = [event._replace(noise_multiplier=sigma * (left / share.honest) ** 0.5) for event in events_of(manifest)]
    assert shares.one_more == epsilon(weaker, 1e-5) > 8
    assert shares.one_more == pytest.approx(one_more, abs=0.01)
    said = claim(manifest, "site s0", 7.5, shares)
    assert f"allows, as long as {who}" in said
    assert f"Where {tolerated + 1} of them do, it is epsilon {printed(shares.one_more)}" in shares.beyond
    assert f"one site's own share promises epsilon {printed(shares.alone)}" in shares.beyond
    assert shares.beyond in notes([manifest], "site", shares)
    assert shares.condition in risks(manifest, shares)[0]
    assert shares.condition in (aggregation(manifest, shares).trust_with_masks or "")


def test_where_no_site_may_help_the_server_the_sentence_says_so() -> None:
    three, four = Shares.of(atlas(3)), Shares.of(atlas(4))
    assert three is not None
    assert four is not None
    assert three.condition.endswith("or leaves out its noise, and no site helps the server")
    assert "where the server has the help of a single site, masks may come off" in three.beyond
    assert four.condition.endswith("or leaves out its noise")
    assert "the help of more than 1 of the sites" in four.beyond


def test_more_than_one_history_counts_as_its_worst() -> None:
    manifest = atlas(8)
    (event,) = events_of(manifest)
    once, half = (event,), (event._replace(steps=event.steps // 2),)
    assert Shares.of(manifest, [half, once, ()]) == Shares.of(manifest, [once]) == Shares.of(manifest)
    smaller, whole = Shares.of(manifest, [half]), Shares.of(manifest)
    assert smaller is not None
    assert whole is not None
    assert smaller.alone < whole.alone


def test_a_share_that_is_the_whole_noise_hangs_on_nobody() -> None:
    two = atlas(3, '\n  quorum: 2\n  accept_two_contributors: "the hospitals already share these scans"')
    assert Shares.of(two) is None
    assert "as long as" not in claim(two, "site s0", 7.5, None)
    assert Shares.of(private_manifest()) is None
    assert Shares.of(toy.manifest(toy.plan())) is None
