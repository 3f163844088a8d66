"""The path from a manifest to the engine: an honest one passes, each lie on the way is caught by the probe for it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from fedseg.plan.manifest import Manifest, Parent, Spent
from fedseg.plan.study import parse_plan
from fedseg.privacy import distributed
from fedseg.runtime import path_probes
from fedseg.runtime.charging import StudyCharger
from fedseg.runtime.path_probes import CHARGE, CLIP, FRESH, NOISE, SAMPLING, STEPS, path
from fedseg.runtime.preparation import first_model
from fedseg.runtime.resolution import resolve
from fedseg.training import dpsgd
from fedseg.training.canaries import replayed
from fedseg.training.listening import listening
from fedseg.training.local import LocalTrainer
from fedseg.training.network import build_network

PLAN = """
name: path
network: {preset: small}
training: {steps: STEPS, optimiser: OPTIMISER, threads: 1, precision: float32}
privacy: {mode: MODE, epsilon: 8, max_grad_norm: 0.5, sampling_rate: 0.4}
schedule: {rounds: 4}
sites: {a: {public_subjects: 20}, b: {}, c: {}, d: {}}
"""

Patch = pytest.MonkeyPatch
Mutation = Callable[[Patch], None]


def manifest_of(mode: str, steps: int, optimiser: str, parent: Parent | None = None) -> Manifest:
    text = PLAN.replace("MODE", mode).replace("STEPS", str(steps)).replace("OPTIMISER", optimiser)
    document = parse_plan(text, "path.yaml")
    return resolve(document, first_model(document.content), study="ab" * 16, parent=parent)


@pytest.fixture(scope="module")
def local() -> Manifest:
    return manifest_of("local", 2, "adam")


@pytest.fixture(scope="module")
def shared() -> Manifest:
    return manifest_of("distributed", 1, "sgd")


@pytest.fixture(autouse=True)
def _short(monkeypatch: Patch) -> None:
    monkeypatch.setattr(path_probes, "_DRAWN", 30)


def caught(manifest: Manifest, monkeypatch: Patch, by: set[str]) -> set[str]:
    if SAMPLING not in by:
        monkeypatch.setattr(path_probes, "_DRAWN", 8)
    found = path(manifest, "a", replayed(b"path"), lambda _done, _of: None)
    return {probe.name for probe in found if not probe.passed}


def in_the_trainer(patch: Patch, **changes: Callable[[Any], Any]) -> None:
    """The trainer hands the engine other constants than it was given; the engine itself is honest."""
    for method, engine in (("_private_steps", "private_steps"), ("gradient_sum", "private_sum")):
        patch.setattr(LocalTrainer, method, lying(getattr(LocalTrainer, method), engine, changes))


def lying(method: Callable[..., Any], name: str, changes: dict[str, Callable[[Any], Any]]) -> Callable[..., Any]:
    honest = getattr(dpsgd, name)

    def engine(*words: Any, **names: Any) -> Any:
        told = {key: change(names[key]) for key, change in changes.items() if key in names}
        return honest(*words, **{**names, **told})

    def lie(*words: Any, **names: Any) -> Any:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(dpsgd, name, engine)
            return method(*words, **names)

    return lie


def charging(patch: Patch, **changes: Callable[[Any], Any]) -> None:
    honest = StudyCharger._charge_of

    def charge_of(self: StudyCharger, *words: Any) -> Any:
        charge = honest(self, *words)
        changed: dict[str, Any] = {name: change(getattr(charge, name)) for name, change in changes.items()}
        return replace(charge, **changed)

    patch.setattr(StudyCharger, "_charge_of", charge_of)


def a_tenth(value: float) -> float:
    return value / 10


def twice(value: Any) -> Any:
    return 2 * value


def a_tenth_of_the_noise(patch: Patch) -> None:
    in_the_trainer(patch, noise_multiplier=a_tenth)


def a_trainer_made_with_less_noise(patch: Patch) -> None:
    honest = LocalTrainer.__init__

    def made(self: LocalTrainer, *words: Any, noise_multiplier: float, **names: Any) -> None:
        honest(self, *words, noise_multiplier=noise_multiplier / 2, **names)

    patch.setattr(LocalTrainer, "__init__", made)


def twice_the_rate(patch: Patch) -> None:
    in_the_trainer(patch, sampling_rate=twice)


def twice_the_rate_at_the_same_divisor(patch: Patch) -> None:
    in_the_trainer(patch, sampling_rate=twice, public_subjects=lambda count: count // 2)


def one_step_more(patch: Patch) -> None:
    in_the_trainer(patch, steps=lambda steps: steps + 1)


def a_larger_clip_and_less_noise(patch: Patch) -> None:
    in_the_trainer(patch, noise_multiplier=a_tenth, max_grad_norm=lambda bound: 10 * bound)


def a_smaller_divisor_and_less_noise(patch: Patch) -> None:
    in_the_trainer(patch, noise_multiplier=a_tenth, public_subjects=lambda count: count // 10)


def the_same_entropy_in_every_round(patch: Patch) -> None:
    in_the_trainer(patch, entropy=lambda _: replayed(b"round"))


def patches_as_subjects(patch: Patch) -> None:
    honest = LocalTrainer._private_losses
    patch.setattr(
        LocalTrainer, "_private_losses", lambda self, entropy: [loss for loss in honest(self, entropy) for _ in "12"]
    )


def a_share_for_too_many_honest(patch: Patch) -> None:
    honest = distributed.honest_others
    patch.setattr("fedseg.runtime.session.honest_others", lambda quorum, collusion: honest(quorum, collusion) + 1)


def a_share_made_smaller(patch: Patch) -> None:
    in_the_trainer(patch, share=lambda share: replace(share, honest=2 * share.honest))


def a_share_of_a_larger_clip(patch: Patch) -> None:
    in_the_trainer(
        patch,
        share=lambda share: replace(
            share, max_grad_norm=2 * share.max_grad_norm, noise_multiplier=share.noise_multiplier / 2
        ),
    )


def a_charge_of_more_noise(patch: Patch) -> None:
    charging(patch, noise_multiplier=lambda sigma: 1.25 * sigma)


def a_charge_of_no_noise_to_speak_of(patch: Patch) -> None:
    charging(patch, noise_multiplier=a_tenth)


def a_charge_of_one_step_less(patch: Patch) -> None:
    charging(patch, steps=lambda steps: steps - 1)


def a_charge_of_a_larger_sensitivity(patch: Patch) -> None:
    charging(patch, sensitivity=twice)


def test_an_honest_path_passes(local: Manifest, shared: Manifest) -> None:
    said: list[tuple[int, int]] = []
    for manifest in (local, shared):
        found = path(manifest, "a", os.urandom, lambda done, of: said.append((done, of)))
        assert [probe.name for probe in found] == [CHARGE, STEPS, NOISE, FRESH, SAMPLING, CLIP]
        assert all(probe.passed for probe in found), found
        assert all(probe.detail.isprintable() for probe in found)
    assert said == [(1, 4), (2, 4), (3, 4), (4, 4), (1, 2), (2, 2)]


@pytest.mark.parametrize(
    ("mutate", "by"),
    [
        (a_tenth_of_the_noise, {NOISE}),
        (a_trainer_made_with_less_noise, {NOISE}),
        (twice_the_rate, {SAMPLING, NOISE}),
        (twice_the_rate_at_the_same_divisor, {SAMPLING}),
        (one_step_more, {STEPS}),
        (a_larger_clip_and_less_noise, {CLIP}),
        (a_smaller_divisor_and_less_noise, {CLIP}),
        (the_same_entropy_in_every_round, {FRESH}),
        (patches_as_subjects, {SAMPLING, CLIP}),
        (a_charge_of_more_noise, {CHARGE, NOISE}),
        (a_charge_of_no_noise_to_speak_of, {CHARGE}),
        (a_charge_of_one_step_less, {CHARGE, STEPS}),
    ],
)
def test_a_lie_is_caught(mutate: Mutation, by: set[str], local: Manifest, monkeypatch: Patch) -> None:
    mutate(monkeypatch)
    assert by <= caught(local, monkeypatch, by)


@pytest.mark.parametrize(
    ("mutate", "by"),
    [
        (twice_the_rate, {SAMPLING}),
        (a_share_for_too_many_honest, {CHARGE, NOISE}),
        (a_share_made_smaller, {NOISE}),
        (a_share_of_a_larger_clip, {CLIP}),
        (a_charge_of_more_noise, {CHARGE, NOISE}),
        (a_charge_of_a_larger_sensitivity, {NOISE}),
    ],
)
def test_a_lie_about_shared_noise_is_caught(
    mutate: Mutation, by: set[str], shared: Manifest, monkeypatch: Patch
) -> None:
    mutate(monkeypatch)
    assert by <= caught(shared, monkeypatch, by)


def test_a_trainer_without_steps_is_asked_no_more(local: Manifest, monkeypatch: Patch) -> None:
    in_the_trainer(monkeypatch, steps=lambda _: 0)
    assert caught(local, monkeypatch, set()) == {STEPS, CLIP}


def test_a_manifest_that_does_not_keep_its_budget(local: Manifest) -> None:
    assert local.noise_multiplier is not None
    spendthrift = local.model_copy(update={"noise_multiplier": 0.9 * local.noise_multiplier})
    found = {probe.name: probe for probe in path(spendthrift, "a", os.urandom, lambda _done, _of: None)}
    assert not found[CHARGE].passed
    assert "of 8" in found[CHARGE].detail
    assert all(probe.passed for name, probe in found.items() if name != CHARGE)


def test_an_extension_is_held_against_what_was_spent_before(monkeypatch: Patch) -> None:
    spent = Spent(noise_multiplier=2.0, sampling_rate=0.4, steps=4)
    extension = manifest_of("local", 2, "adam", Parent(plan_hash="cd" * 32, last_round=2, spent=(spent,)))
    assert caught(extension, monkeypatch, set()) == set()
    more = Parent(plan_hash="cd" * 32, last_round=2, spent=(spent.model_copy(update={"noise_multiplier": 1.0}),))
    forgetful = extension.model_copy(update={"parent": more})
    assert not path_probes._planned(forgetful, path_probes._charge(forgetful, "a")).passed


def test_every_pass_and_step_is_heard_while_listening_and_none_after() -> None:
    heard: list[str] = []
    model = build_network("small", 2, 0)
    optimizer = torch.optim.SGD(model.head.parameters(), lr=0.0)
    with listening(lambda: heard.append("pass"), lambda parts: heard.extend(str(part.size) for part in parts)):
        model(torch.zeros(1, 1, 8, 8, 8))
        optimizer.step()
    assert heard == ["pass", "16", "2"]
    model(torch.zeros(1, 1, 8, 8, 8))
    optimizer.step()
    assert heard == ["pass", "16", "2"]
