"""Local training: reproducible where privacy is off, through DP-SGD where it is on, stoppable between steps."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fedseg.errors import DataError, Interrupted, PlanError
from fedseg.federation.schedule import scheduled_rate
from fedseg.plan.study import StudyPlan
from fedseg.privacy.distributed import NoiseShare
from fedseg.training import dpsgd
from fedseg.training.compute import native_bf16, reproducible, training_cast
from fedseg.training.local import LocalTrainer, round_seed
from fedseg.training.losses import class_weights, subject_loss
from fedseg.training.network import architecture, arrays, build_network, trained_names, trained_parameters

CARD = architecture("small", 3)
PRIVATE = {"mode": "local", "epsilon": 8.0, "sampling_rate": 0.5, "max_grad_norm": 1.0}
POOLED = {"mode": "distributed", "epsilon": 8.0, "max_grad_norm": 1.0}


def make_plan(
    *, privacy: dict[str, Any] | None = None, patch: tuple[int, int, int] = (16, 16, 16), **training: Any
) -> StudyPlan:
    settings = {"steps": 2, "patches_per_subject": 2, "threads": 1, "learning_rate": 1e-3, "precision": "float32"}
    pooled = privacy is POOLED
    if pooled:
        settings |= {"steps": 1, "optimiser": "sgd"}
    return StudyPlan.model_validate(
        {
            "name": "tiny",
            "seed": 3,
            "image": {"patch": patch},
            "network": {"preset": "small"},
            "training": settings | training,
            "privacy": privacy or {"mode": "off"},
            "aggregation": {"mode": "secure" if pooled else "plain"},
            "schedule": {"rounds": 4},
            "sites": {"a": {}, "b": {}},
        }
    )


def subjects(count: int = 3, classes: int = 3) -> dict[str, Any]:
    """Boxes in noise, one a subject; label and brightness go together."""
    found = {}
    for index in range(count):
        rng = np.random.default_rng(index)
        labels = np.zeros((18, 20, 17), np.uint8)
        for label in range(1, classes):
            low = rng.integers(2, 9, 3)
            labels[tuple(slice(x, x + 7) for x in low)] = label
        image = (labels + 0.2 * rng.standard_normal(labels.shape)).astype(np.float32)
        found[f"sub-{index}"] = [SimpleNamespace(image=image, labels=labels, geometry=None)]
    return found


def run(
    trainer: LocalTrainer,
    round_number: int = 1,
    *,
    entropy: Callable[[int], bytes] = os.urandom,
    weights: dict[str, Any] | None = None,
) -> dict[str, Any]:
    return trainer.update(
        weights or arrays(build_network("small", 3, 0)),
        round_number,
        entropy=entropy,
        on_step=lambda done, total: None,
        should_stop=lambda: False,
    )


def counting_entropy() -> Callable[[int], bytes]:
    calls = iter(range(10**6))
    return lambda count: hashlib.shake_256(str(next(calls)).encode()).digest(count)


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in one)


def test_an_update_is_the_change_of_every_weight() -> None:
    before = arrays(build_network("small", 3, 0))
    kept = {name: value.copy() for name, value in before.items()}
    update = run(LocalTrainer(make_plan(), "a", subjects(), architecture=CARD), weights=before)
    assert list(update) == list(before) and same(before, kept)
    assert all(update[name].shape == before[name].shape and update[name].dtype == np.float32 for name in update)
    assert sum(float(np.abs(change).sum()) for change in update.values()) > 0


@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
def test_without_privacy_seed_round_and_site_decide_every_bit(optimiser: str) -> None:
    plan = make_plan(optimiser=optimiser)
    trainer = LocalTrainer(plan, "a", subjects(), architecture=CARD)
    first = run(trainer)
    assert same(first, run(trainer)), "the optimiser's state must not outlive a round"
    assert same(first, run(LocalTrainer(plan, "a", subjects(), architecture=CARD)))
    assert not same(first, run(trainer, 2))
    assert not same(first, run(LocalTrainer(plan, "b", subjects(), architecture=CARD)))


@pytest.mark.parametrize("training", [{"made_up": 0.9}, {"augment": "strong"}, {"made_up": 0.5, "augment": "strong"}])
def test_a_subjects_private_loss_is_of_that_subject_alone(training: dict[str, Any]) -> None:
    plan = make_plan(privacy=PRIVATE, steps=1, patches_per_subject=1, **training)
    frame, others = subjects(), subjects()
    others |= {"sub-1": frame["sub-2"], "sub-2": frame["sub-1"]}
    losses = []
    for data in (frame, others):
        trainer = LocalTrainer(plan, "a", data, architecture=CARD, noise_multiplier=1.0)
        trainer.model.load_state_dict(build_network("small", 3, 5).state_dict())
        first, second, _ = trainer._private_losses(bytes)
        losses.append([first().item() for _ in range(4)] + [second().item()])
    assert losses[0][:4] == losses[1][:4]
    assert losses[0][4] != losses[1][4]


def test_made_up_images_are_trained_on_and_reproducible() -> None:
    real, made = (
        LocalTrainer(make_plan(steps=3, made_up=share), "a", subjects(), architecture=CARD) for share in (0, 0.9)
    )
    assert same(run(made), run(made))
    assert not same(run(made), run(real))


def test_training_lowers_the_loss() -> None:
    data = subjects(2)
    plan = make_plan(steps=12, subjects_per_step=2, learning_rate=5e-3, augment="none")
    network = build_network("small", 3, 0)
    weights = arrays(network)
    update = run(LocalTrainer(plan, "a", data, architecture=CARD), weights=weights)
    image = torch.from_numpy(data["sub-0"][0].image[None, None, :16, :16, :16])
    labels = torch.from_numpy(data["sub-0"][0].labels[None, :16, :16, :16])
    with torch.no_grad():
        before = subject_loss(network(image), labels)
        for name, parameter in network.named_parameters():
            parameter.add_(torch.from_numpy(update[name]))
        after = subject_loss(network(image), labels)
    assert after < 0.9 * before


def test_steps_are_reported_and_the_frame_is_sorted() -> None:
    seen: list[tuple[int, int]] = []
    trainer = LocalTrainer(make_plan(steps=3), "a", dict(reversed(subjects().items())), architecture=CARD)
    trainer.update(
        arrays(build_network("small", 3, 0)),
        1,
        entropy=os.urandom,
        on_step=lambda done, total: seen.append((done, total)),
        should_stop=lambda: False,
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert trainer.subjects == ("sub-0", "sub-1", "sub-2")


@pytest.mark.parametrize("privacy", [None, PRIVATE])
def test_a_stop_between_steps_raises_and_the_trainer_stays_usable(privacy: dict[str, Any] | None) -> None:
    trainer = LocalTrainer(make_plan(privacy=privacy), "a", subjects(), architecture=CARD, noise_multiplier=1.0)
    done: list[int] = []
    with pytest.raises(Interrupted, match="stopped between two steps"):
        trainer.update(
            arrays(build_network("small", 3, 0)),
            1,
            entropy=os.urandom,
            on_step=lambda step, total: done.append(step),
            should_stop=lambda: bool(done),
        )
    assert done == [1]
    assert run(trainer)


def test_private_steps_get_the_plans_constants_and_one_loss_a_subject(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def spy(model: Any, optimizer: Any, losses: Any, **constants: Any) -> None:
        given.update(
            constants, losses=[float(loss().detach()) for loss in losses], rate=optimizer.param_groups[0]["lr"]
        )

    monkeypatch.setattr(dpsgd, "private_steps", spy)
    run(LocalTrainer(make_plan(privacy=PRIVATE), "a", subjects(5), architecture=CARD, noise_multiplier=1.5), 4)
    assert len(given["losses"]) == 5 and all(np.isfinite(given["losses"]))
    expected = {"noise_multiplier": 1.5, "max_grad_norm": 1.0, "sampling_rate": 0.5, "public_subjects": 10, "steps": 2}
    assert {name: given[name] for name in expected} == expected
    assert given["rate"] == 1e-3, "a private study has no schedule to betray"


@pytest.mark.parametrize("privacy", [None, PRIVATE])
@pytest.mark.parametrize("layers", ["decoder", "norms", "head"])
def test_only_the_layers_of_the_plan_move(layers: str, privacy: dict[str, Any] | None) -> None:
    plan = make_plan(layers=layers, privacy=privacy)
    update = run(LocalTrainer(plan, "a", subjects(), architecture=CARD, noise_multiplier=1.0))
    assert tuple(update) == trained_names("small", 3, layers)
    assert all(change.any() for name, change in update.items() if name.startswith("head"))


def test_no_loss_sees_two_subjects() -> None:
    data = subjects()
    blank = {
        name: [SimpleNamespace(image=np.full_like(each.image, 7), labels=each.labels)] for name, (each,) in data.items()
    }
    plan = make_plan(privacy=PRIVATE)

    def gradients(frame: dict[str, Any]) -> dict[str, Any]:
        trainer = LocalTrainer(plan, "a", frame, architecture=CARD, noise_multiplier=1.0)
        trainer._private_losses(counting_entropy())[1]().backward()  # type: ignore[no-untyped-call]
        return {name: p.grad for name, p in trainer.model.named_parameters()}

    alone = gradients(data)
    assert all(torch.equal(alone[name], each) for name, each in gradients(blank | {"sub-1": data["sub-1"]}).items())
    assert not all(torch.equal(alone[name], each) for name, each in gradients(data | {"sub-1": blank["sub-1"]}).items())


def pooled_share(layers: str = "all", scale: float = 2.0**16) -> NoiseShare:
    return NoiseShare(1.0, 1.0, 1, trained_parameters("small", 3, layers), scale)


def gradient_sum(
    trainer: LocalTrainer, share: NoiseShare, entropy: Callable[[int], bytes] = os.urandom, **changes: Any
) -> dict[str, Any]:
    given = {"on_step": lambda done, total: None, "should_stop": lambda: False, **changes}
    return trainer.gradient_sum(arrays(build_network("small", 3, 0)), share, entropy=entropy, **given)


@pytest.mark.parametrize("layers", ["all", "decoder", "head"])
def test_a_pooled_step_gives_integers_of_the_layers_that_train(layers: str) -> None:
    done: list[tuple[int, int]] = []
    plan = make_plan(privacy=POOLED, layers=layers)
    trainer = LocalTrainer(plan, "a", subjects(), architecture=CARD, noise_multiplier=1.0)
    sums = gradient_sum(trainer, pooled_share(layers), on_step=lambda *steps: done.append(steps))
    assert tuple(sums) == trained_names("small", 3, layers)
    assert all(each.dtype == np.int64 for each in sums.values()) and done == [(1, 1)]


def test_a_pooled_step_sums_every_subjects_clipped_gradient_and_follows_entropy() -> None:
    plan = make_plan(privacy=POOLED)
    sums = []
    for count in (3, 1):
        trainer = LocalTrainer(plan, "a", subjects(count), architecture=CARD, noise_multiplier=1.0)
        sums.append(
            np.concatenate(
                [each.ravel() for each in gradient_sum(trainer, pooled_share(), counting_entropy()).values()]
            )
        )
    again = LocalTrainer(plan, "a", subjects(3), architecture=CARD, noise_multiplier=1.0)
    assert np.array_equal(
        sums[0],
        np.concatenate([each.ravel() for each in gradient_sum(again, pooled_share(), counting_entropy()).values()]),
    )
    assert not np.array_equal(sums[0], sums[1])
    assert 0 < np.linalg.norm((sums[0] - sums[1]).astype(float)) <= 2 * pooled_share().sensitivity


def test_a_stop_in_a_pooled_step_leaves_the_trainer_usable() -> None:
    trainer = LocalTrainer(make_plan(privacy=POOLED), "a", subjects(), architecture=CARD, noise_multiplier=1.0)
    with pytest.raises(Interrupted, match="training was stopped between two steps"):
        gradient_sum(trainer, pooled_share(), should_stop=lambda: True)
    assert gradient_sum(trainer, pooled_share())


def test_a_plan_has_updates_or_gradient_sums_and_never_both() -> None:
    pooled, plain = (
        LocalTrainer(make_plan(privacy=privacy), "a", subjects(), architecture=CARD, noise_multiplier=1.0)
        for privacy in (POOLED, PRIVATE)
    )
    with pytest.raises(PlanError, match="a plan of distributed noise has no updates of single sites"):
        run(pooled)
    with pytest.raises(PlanError, match="only a plan of distributed noise has gradient sums"):
        gradient_sum(plain, pooled_share())


def test_private_training_follows_entropy_and_never_the_seed() -> None:
    trainer = LocalTrainer(make_plan(privacy=PRIVATE), "a", subjects(), architecture=CARD, noise_multiplier=1.0)
    assert same(run(trainer, entropy=counting_entropy()), run(trainer, entropy=counting_entropy()))
    assert not same(run(trainer), run(trainer))


def test_private_training_draws_its_patches_from_entropy() -> None:
    quiet = {**PRIVATE, "sampling_rate": 1.0}
    trainer = LocalTrainer(
        make_plan(privacy=quiet, optimiser="sgd"), "a", subjects(), architecture=CARD, noise_multiplier=1e-9
    )
    assert not same(run(trainer), run(trainer))


def test_the_loss_is_dice_over_all_patches_of_the_subject() -> None:
    labels = torch.zeros(2, 4, 4, 4, dtype=torch.uint8)
    labels[0, :2] = 1
    perfect = 30 * torch.stack([labels == c for c in range(2)], dim=1).float()
    assert float(subject_loss(perfect, labels)) < 1e-3
    assert float(subject_loss(-perfect, labels)) > 10
    uniform = float(subject_loss(torch.zeros(2, 2, 4, 4, 4), labels))
    dice = (2 * 0.5 * 32 + 1) / (64 + 32 + 1)
    assert uniform == pytest.approx(np.log(2) + 1 - dice, rel=1e-5)


def test_a_tissue_that_is_absent_costs_only_false_claims() -> None:
    labels = torch.zeros(1, 4, 4, 4, dtype=torch.uint8)
    silent = torch.zeros(1, 3, 4, 4, 4)
    silent[:, 0] = 30
    assert float(subject_loss(silent, labels)) < 1e-3


def test_rare_classes_weigh_more_and_the_mean_weight_is_one() -> None:
    voxels = torch.tensor([10_000.0, 100.0, 0.0, 1.0])
    weights = class_weights(voxels)
    assert float((weights * voxels).sum() / voxels.sum()) == pytest.approx(1)
    assert float(weights[1] / weights[0]) == pytest.approx(10)
    assert float(weights[2]) == 0
    assert float(weights[3] / weights[0]) == pytest.approx(np.sqrt(10_000 / 64))


def test_the_rate_falls_by_half_a_cosine() -> None:
    rates = [scheduled_rate(1.0, number, 4) for number in (1, 2, 3, 4, 5, 9)]
    assert rates[0] == 1.0 and rates[2] == pytest.approx(0.505) and rates[4] == rates[5] == pytest.approx(0.01)
    assert rates == sorted(rates, reverse=True)


def test_round_seeds_differ_by_seed_round_and_site() -> None:
    assert len({round_seed(*key) for key in [(0, 1, "a"), (1, 1, "a"), (0, 2, "a"), (0, 1, "b"), (0, 11, "a")]}) == 5


def test_threads_and_determinism_are_put_back() -> None:
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with reproducible(1):
        assert torch.get_num_threads() == 1 and torch.are_deterministic_algorithms_enabled()
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before


def test_bf16_is_for_processors_that_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for capabilities, expected in [({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"avx2": True}, False)]:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found)
        assert native_bf16(cpu) is expected


@pytest.mark.parametrize("privacy", [None, PRIVATE])
def test_bf16_trains_float32_weights(privacy: dict[str, Any] | None) -> None:
    plan = make_plan(steps=1, precision="bf16", privacy=privacy, patch=(24, 16, 16))
    trainer = LocalTrainer(plan, "a", subjects(), architecture=CARD, noise_multiplier=1.0)
    kinds: set[torch.dtype] = set()
    trainer.model.head.register_forward_hook(lambda module, given, logits: kinds.add(logits.dtype))
    trainer.model.head.weight.register_hook(lambda gradient: kinds.add(gradient.dtype))  # type: ignore[no-untyped-call]  # torch leaves it untyped
    update = run(trainer, entropy=bytes)
    assert kinds == {torch.bfloat16, torch.float32}
    assert all(np.isfinite(change).all() and change.dtype == np.float32 for change in update.values())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"site": "c"}, PlanError, r"site 'c' is not in the plan \(known: a, b\)"),
        ({"subjects": {}}, DataError, "there is no subject to train on"),
        ({"subjects": subjects(1, 5)}, DataError, "a training label 4, where the network has classes 0 to 2"),
        ({"plan": make_plan(privacy=PRIVATE)}, PlanError, "needs its calibrated noise multiplier"),
    ],
)
def test_what_cannot_train_is_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    given: dict[str, Any] = {"plan": make_plan(), "site": "a", "subjects": subjects()} | change
    with pytest.raises(error, match=message):
        LocalTrainer(**given, architecture=CARD)


@pytest.mark.parametrize("side", [8, 16, 24])
def test_bf16_gradients_are_those_of_float32_however_small_the_patch(side: int) -> None:
    network = build_network("small", 8, seed=0)
    rng = np.random.default_rng(side)
    images = torch.from_numpy(rng.standard_normal((2, 1, side, 24, 24), dtype=np.float32))
    labels = torch.from_numpy(rng.integers(0, 8, (2, side, 24, 24)))
    found = []
    for precision in ("float32", "bf16"):
        network.zero_grad()
        with training_cast(network, images, precision):
            logits = network(images)
        subject_loss(logits, labels).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        found.append(torch.cat([p.grad.ravel() for p in network.parameters() if p.grad is not None]))
    assert float((found[1] - found[0]).norm() / found[0].norm()) < 0.1
