from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fedseg.federation.vector import Layout
from fedseg.plan.study import StudyPlan
from fedseg.runtime.preparation import first_model, trained_ranges
from fedseg.training.correction import Correction
from fedseg.training.local import LocalTrainer
from fedseg.training.network import arrays, build_network, norm_names, trained_names
from tests.training.test_local import CARD, PRIVATE, counting_entropy, make_plan, subjects

SGD = {"optimiser": "sgd", "momentum": 0.0, "learning_rate": 1e-2}
FIRST = arrays(build_network("small", 3, 0))


def plan(strategy: str = "fedavg", privacy: dict[str, Any] | None = None, **training: Any) -> StudyPlan:
    made = make_plan(privacy=privacy, augment="none", **{**SGD, **training}).model_dump()
    parameters = {"proximal": 2.0} if strategy in ("fedprox", "ditto") else {}
    return StudyPlan.model_validate(made | {"strategy": {"name": strategy, **parameters}})


def trained(study: StudyPlan, start: dict[str, Any] = FIRST, **more: Any) -> np.ndarray:
    trainer = LocalTrainer(study, "a", subjects(), architecture=CARD, noise_multiplier=1.0 if study.private else None)
    update = trainer.update(
        start, 1, entropy=counting_entropy(), on_step=lambda *_: None, should_stop=lambda: False, **more
    )
    return flat(update)


def flat(named: dict[str, Any]) -> np.ndarray:
    return np.concatenate([named[name].ravel() for name in sorted(named)])


def everywhere(value: float) -> dict[str, Any]:
    return {name: np.full_like(array, value) for name, array in FIRST.items()}


@pytest.mark.parametrize("privacy", [None, PRIVATE])
def test_a_correction_is_added_to_the_step_after_clip_and_noise(privacy: dict[str, Any] | None) -> None:
    """However large it is, it moves a step of plain SGD by rate times itself."""
    study = plan(privacy=privacy, steps=1)
    for value in (0.5, -40.0):
        moved = trained(study, correction=everywhere(value)) - trained(study)
        np.testing.assert_allclose(moved, -1e-2 * value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("privacy", [None, PRIVATE])
def test_the_pull_is_the_gradient_of_half_mu_times_the_squared_distance(privacy: dict[str, Any] | None) -> None:
    study, start = plan("ditto", steps=1), {name: value + np.float32(0.25) for name, value in FIRST.items()}
    if privacy is not None:
        study = plan(privacy=privacy, steps=1)
        study = study.model_copy(update={"strategy": plan("ditto").strategy})
    moved = trained(study, start, towards=FIRST) - trained(study, start)
    np.testing.assert_allclose(moved, -1e-2 * 2.0 * 0.25, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("privacy", [None, PRIVATE])
def test_fedprox_pulls_to_where_the_round_began_from_its_second_step_on(privacy: dict[str, Any] | None) -> None:
    one, two = plan("fedprox", privacy, steps=2), plan(privacy=privacy, steps=2)
    assert not np.array_equal(trained(one), trained(two))
    # Of one step, which a plan may not have, both make the same.
    single = [each.model_copy(update={"training": plan(steps=1).training}) for each in (one, two)]
    np.testing.assert_array_equal(trained(single[0]), trained(single[1]))


def test_fedprox_is_sgd_on_the_loss_with_its_proximal_term() -> None:
    """By automatic differentiation of the whole objective (Li et al. 2020, equation 2), three steps."""
    goal, start, mu, rate = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.3, 0.2, -0.1]), 0.7, 0.1

    def steps(pulled: bool) -> torch.Tensor:
        model = torch.nn.ParameterDict({"w": torch.nn.Parameter(start.clone())})
        optimiser = torch.optim.SGD(model.parameters(), rate)
        if not pulled:
            Correction(towards={"w": start.numpy()}, pull=mu).attach(optimiser, model)
        for _ in range(3):
            optimiser.zero_grad()
            loss = ((model["w"] - goal) ** 4).sum()
            (loss + mu / 2 * ((model["w"] - start) ** 2).sum() if pulled else loss).backward()
            optimiser.step()
        found: torch.Tensor = model["w"].detach()
        return found

    torch.testing.assert_close(steps(pulled=True), steps(pulled=False))


def test_a_parameter_without_a_gradient_is_pulled_too_and_one_that_does_not_train_is_not() -> None:
    model = torch.nn.ParameterDict({name: torch.nn.Parameter(torch.zeros(2)) for name in ("idle", "still")})
    model["still"].requires_grad_(False)
    ones = {name: np.ones(2, dtype=np.float32) for name in ("idle", "still")}
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    Correction(added=ones, towards=ones, pull=3.0).attach(optimiser, model).step()
    torch.testing.assert_close(model["idle"].detach(), torch.full((2,), -0.1 * (1 - 3)))
    assert not model["still"].any()


def test_fedavg_adds_nothing() -> None:
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], 0.1)
    Correction.of(plan(), FIRST, None, None).attach(optimiser, build_network("small", 3, 0))
    assert not optimiser._optimizer_step_pre_hooks


def test_fedbn_sends_all_but_scale_and_shift_of_the_normalisation() -> None:
    study = plan("fedbn").model_copy(update={"task": "brain_mask"})
    first = first_model(study)
    layout = Layout.of(arrays(build_network("small", 2, 0)))
    sent, norms = set(layout.names_in(first.trained or ())), set(norm_names("small", 2))
    assert sent | norms == set(trained_names("small", 2, "all")) and not sent & norms
    model = build_network("small", 2, 0)
    groups = [module for module in model.modules() if isinstance(module, torch.nn.GroupNorm)]
    assert sum(p.numel() for group in groups for p in group.parameters()) == layout.within(norms).size > 0
    few = study.model_copy(update={"training": study.training.model_copy(update={"layers": "norms"})})
    assert {name.split(".")[0] for name in layout.names_in(trained_ranges(few, layout))} == {"head"}
