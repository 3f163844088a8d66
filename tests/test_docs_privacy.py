"""docs/privacy.md against the code: every number in its tables. Commands, tests and files: `test_docs`."""

from __future__ import annotations

import importlib
import json
import math
from dataclasses import fields
from functools import cache
from statistics import NormalDist

import pytest

from fedseg.federation.outgoing import leaving
from fedseg.federation.staying import STAYING
from fedseg.labels import scheme
from fedseg.policy import PRIVACY_KEYS, SitePolicy
from fedseg.privacy.accounting import attacker_curve, epsilon
from fedseg.privacy.calibration import noise_multiplier
from fedseg.privacy.distributed import honest_others
from fedseg.privacy.events import Event
from fedseg.privacy.planning import site_ratio
from fedseg.report.facts import SCHEMA_VERSION, PrivacyReport
from fedseg.runtime.privacy_trust import Shares
from fedseg.secagg.thresholds import Thresholds
from tests.report.documents import privacy
from tests.runtime.private import private_plan
from tests.runtime.test_privacy_trust import atlas
from tests.test_docs import PRIVACY, Row, rows

EPSILON, DELTA, STEPS, SUBJECTS = 8.0, 1e-5, 100, 80


def table(*header: str) -> list[Row]:
    return rows(*header, path=PRIVACY)


def prose() -> str:
    """The document with its lines joined."""
    return " ".join(PRIVACY.read_text().split())


@cache
def full_batches(budget: float) -> float:
    """The noise multiplier of 100 steps over everybody."""
    return noise_multiplier(budget, DELTA, 1.0, STEPS)


def test_what_an_attacker_gains() -> None:
    wrong = ("0.1%", "1%", "10%")
    found = table("epsilon", *(f"wrong about {each}, right about" for each in wrong))
    assert [row[0] for row in found] == ["1", "2", "4", "8", "16"]
    for budget, *right in found:
        event = Event(full_batches(float(budget)), 1.0, STEPS)
        best = attacker_curve([event], [float(each.rstrip("%")) / 100 for each in wrong])
        assert right == [f"{math.ceil(1000 * each) / 10:.1f}%" for each in best]


def test_the_chance_that_the_loss_passes_epsilon() -> None:
    shift = math.sqrt(STEPS) / full_batches(EPSILON)
    passes = NormalDist().cdf(shift / 2 - EPSILON / shift)
    assert f"that is {passes:.1e} at epsilon 8 and delta 1e-5".replace("e-0", "e-") in prose()


def test_what_one_site_more_costs_in_the_sample_plan() -> None:
    shares = Shares.of(atlas(3))
    assert shares is not None
    assert f"{shares.one_more:.2f} instead of 8 for [atlas-private.yaml]" in prose()


def test_the_keys_of_the_policy_and_their_defaults() -> None:
    defaults = SitePolicy().model_dump()
    found = table("key of the policy", "default", "what it limits")
    assert [row[0].strip("`") for row in found] == [key for key in defaults if key in PRIVACY_KEYS]
    for key, default, _ in found:
        value = defaults[key.strip("`")]
        spelled = "unset" if value is None else str(value).lower() if isinstance(value, bool) else f"{value:g}"
        assert default.strip("`") == spelled, key


def test_the_noise_ratios() -> None:
    from fedseg.training.network import trained_parameters

    sigma = full_batches(EPSILON)
    for network, layers, parameters, ratio in table("network", "layers that train", "parameters d", "noise ratio"):
        dimension = trained_parameters(network, scheme("feta").classes, layers)
        assert parameters == f"{dimension:,}"
        assert ratio == f"{site_ratio(sigma, 1.0, dimension, SUBJECTS):.3g}"


def test_the_gain_of_distributed_noise() -> None:
    for n, *rest in table("n", "c", "fewest in a sum", "h", "noise lower by"):
        of = Thresholds.of(int(n))
        honest = honest_others(of.quorum, of.c)
        assert rest == [str(of.c), str(of.quorum), str(honest), f"{math.sqrt(honest):.2f}"]


def test_golden_values() -> None:
    found = table("q", "sigma", "steps", "delta", "epsilon")
    assert len(found) == 5
    for rate, sigma, steps, delta, spent in found:
        assert spent == f"{epsilon([Event(float(sigma), float(rate), int(steps))], float(delta)):.3f}"


def test_the_numbers_of_the_code() -> None:
    for _, value, place in table("number", "value", "in the code"):
        path, _, name = place.strip("`").partition(": ")
        module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
        base, _, power = value.replace(",", "").partition("^")
        assert float(base) ** int(power or 1) == getattr(module, name), place


def test_every_key_of_the_report_is_explained() -> None:
    found = [row[0].strip("`") for row in table("key", "holds", "NIST SP 800-226", "OpenDP registry")]
    assert sorted(found) == sorted(each.name for each in fields(PrivacyReport))
    assert set(json.loads(json.dumps(privacy().to_json()))) == {*found, "schema_version"}
    assert f"`schema_version` is {SCHEMA_VERSION}." in PRIVACY.read_text()


def test_what_stays_is_in_the_table() -> None:
    found = [row[0].strip("`") for row in table("what stays", "what it is", "how long")]
    assert found == list(dict.fromkeys(each.name for each in STAYING))


def test_what_is_declared() -> None:
    declared = [each.name for each in leaving(private_plan().content) if each.classification == "declared"]
    assert [row[0].strip("`") for row in table("field", "what")] == declared


@pytest.mark.parametrize("heading", ["For the officer", "For the researcher", "For the cryptographer"])
def test_each_reader_has_a_heading(heading: str) -> None:
    assert f"\n## {heading}\n" in PRIVACY.read_text()
