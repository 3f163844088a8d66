from __future__ import annotations

import pytest

from fedseg.errors import PlanError
from fedseg.plan.manifest import Manifest
from fedseg.plan.sections import STRATEGY_DEFAULTS
from fedseg.plan.study import StudyPlan, parse_plan
from tests.runtime import toy

OFF = "{mode: 'off'}"
LOCAL = "{mode: local, epsilon: 8}"
DISTRIBUTED = "{mode: distributed, epsilon: 8}"
SGD = "{optimiser: sgd, momentum: 0.0}"
ONE_STEP = "{steps: 1, optimiser: sgd, momentum: 0.0}"


def text(
    strategy: str, *, privacy: str = OFF, training: str = "{steps: 5}", aggregation: str = "{}", sites: str = "abc"
) -> str:
    return (
        f"name: x\nprivacy: {privacy}\ntraining: {training}\naggregation: {aggregation}\n"
        f"strategy:\n  {strategy}\nschedule: {{rounds: 2}}\nsites: {{{', '.join(f'{site}: {{}}' for site in sites)}}}\n"
    )


def plan(strategy: str, **named: str) -> StudyPlan:
    return parse_plan(text(strategy, **named), "plan.yaml").content


def refusal(strategy: str, **named: str) -> str:
    with pytest.raises(PlanError) as caught:
        parse_plan(text(strategy, **named), "plan.yaml")
    return str(caught.value)


def test_fedavg_is_what_a_plan_without_a_strategy_has() -> None:
    assert toy.plan().content.strategy == plan("name: fedavg").strategy
    assert set(plan("name: fedavg").strategy.model_dump(exclude={"name"}).values()) == {None}


@pytest.mark.parametrize("name", ["fedprox", "fedavgm", "fedadam", "fedyogi", "ditto"])
def test_nothing_is_left_to_a_default(name: str) -> None:
    chosen = plan(f"name: {name}").strategy
    given = {key: value for key, value in chosen.model_dump(exclude={"name"}).items() if value is not None}
    assert given == STRATEGY_DEFAULTS[name]
    manifest = toy.manifest(toy.plan()).model_copy(update={"plan": plan(f"name: {name}")})
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert manifest.plan_hash != toy.manifest(toy.plan()).plan_hash


@pytest.mark.parametrize(
    ("strategy", "says"),
    [
        (
            "tau: 1e-3",
            "plan.yaml:6: strategy.tau: fedavg has none; fedadam and fedyogi do (remove the line; fedavg takes no",
        ),
        (
            "{name: fedavgm, proximal: 0.1}",
            "strategy.proximal: fedavgm has none; fedprox and ditto do (remove the line; fedavgm takes server_rate, s",
        ),
        ("{name: scaffold, server_rate: 1.0}", "strategy.server_rate: scaffold has none; fedavgm and fedadam and"),
        ("{name: fedprox, proximal: null}", "strategy.proximal: fedprox needs a number (0.01 is usual)"),
        ("name: fedadan", "strategy.name: input should be 'fedavg', 'fedprox'"),
        ("name: [fedavg]", "strategy.name: "),
        ("{name: fedprox, proximal: 0.0}", "strategy.proximal: input should be greater than 0"),
        ("{name: fedavgm, server_momentum: 1.0}", "strategy.server_momentum: input should be less than 1"),
        ("mu: 0.1", "unknown key strategy.mu"),
    ],
)
def test_a_parameter_that_a_strategy_has_none_of_is_refused(strategy: str, says: str) -> None:
    assert says in refusal(strategy)


def test_what_each_strategy_goes_with() -> None:
    for name in ("fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "fedbn", "ditto"):
        assert plan(f"name: {name}", aggregation="{rollback: {drop: 0.1}}" if name != "fedbn" else "{}")
        assert plan(f"name: {name}", aggregation="{mode: plain, rule: median}")
    assert plan("name: scaffold", training=SGD, aggregation="{quorum: 3}")
    assert plan("name: scaffold", training=SGD, aggregation="{mode: plain}")
    for name in ("fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "fedbn"):
        assert plan(f"name: {name}", privacy=LOCAL).strategy.name == name
    assert plan("name: scaffold", privacy=LOCAL, training=SGD, aggregation="{quorum: 3}")
    for name in ("fedavg", "fedavgm", "fedadam", "fedyogi"):
        assert plan(f"name: {name}", privacy=DISTRIBUTED, training=ONE_STEP).strategy.name == name


@pytest.mark.parametrize("name", ["fedprox", "scaffold", "fedbn", "ditto"])
def test_one_pooled_step_leaves_a_site_nothing_of_its_own(name: str) -> None:
    assert (
        f"plan.yaml:6: strategy.name: strategy {name}: privacy.mode is distributed: each round is one pooled step, and "
        "no site trains a model that could drift or stay (use fedavg, fedavgm, fedadam or fedyogi; or privacy.mode: "
        "local)"
    ) in refusal(f"name: {name}", privacy=DISTRIBUTED, training=ONE_STEP)


@pytest.mark.parametrize(
    ("name", "named", "says"),
    [
        (
            "ditto",
            {"privacy": LOCAL},
            "plan.yaml:6: strategy.name: strategy ditto: a personal model is trained on patients outside the steps "
            "that the privacy ledger charges (use fedbn, whose local part comes of the charged steps)",
        ),
        (
            "fedprox",
            {"training": "{steps: 1}"},
            "plan.yaml:3: training.steps: strategy fedprox: with one step a round a site never leaves the model that "
            "it is pulled to (set training.steps to 2 or more, or use fedavg)",
        ),
        (
            "fedyogi",
            {"privacy": DISTRIBUTED, "training": "{steps: 1, optimiser: sgd}"},
            "plan.yaml:3: training.momentum: strategy fedyogi: the server's optimiser has a momentum of its own, "
            "strategy.server_momentum (set training.momentum to 0)",
        ),
        (
            "scaffold",
            {},
            "plan.yaml:3: training.optimiser: strategy scaffold: the correction is the mean gradient of a round, which "
            "only plain SGD steps leave in the update (set training.optimiser to sgd)",
        ),
        ("scaffold", {"training": "{optimiser: sgd}"}, "plan.yaml:3: training.momentum: strategy scaffold: the corr"),
        (
            "scaffold",
            {"training": SGD},
            "plan.yaml:4: aggregation.quorum: strategy scaffold: the corrections add up to nothing only while every "
            "site knows whether its update was in the sum, which one that was lost cannot know (set "
            "aggregation.quorum to the number of sites)",
        ),
        ("scaffold", {"training": SGD, "aggregation": "{quorum: 3}", "sites": "abcd"}, "aggregation.quorum: strategy"),
        (
            "scaffold",
            {"training": SGD, "aggregation": "{mode: plain, rule: median}"},
            "plan.yaml:4: aggregation.rule: strategy scaffold: the correction follows from the mean of all updates, "
            "and a rule that leaves some out gives another number (use mean, or another strategy)",
        ),
        (
            "scaffold",
            {"training": SGD, "aggregation": "{quorum: 3, rollback: {drop: 0.1}}"},
            "aggregation.rollback: strategy scaffold: what stays at the sites would not go back with the model "
            "(remove the line, or use fedavg)",
        ),
        ("fedbn", {"aggregation": "{rollback: {drop: 0.1}}"}, "aggregation.rollback: strategy fedbn: what stays at"),
        (
            "fedbn",
            {"training": "{layers: head}"},
            "plan.yaml:3: training.layers: strategy fedbn: the head has no normalisation that could stay at a site "
            "(use fedavg, or other layers)",
        ),
    ],
)
def test_what_a_strategy_cannot_do_is_refused_with_the_reason(name: str, named: dict[str, str], says: str) -> None:
    assert says in refusal(f"name: {name}", **named)


def test_a_key_that_is_not_written_is_answered_at_the_line_that_asks_for_it() -> None:
    short = "name: x\nprivacy: {mode: 'off'}\nschedule: {rounds: 2}\nsites: {a: {}, b: {}, c: {}}\nstrategy:\n  "
    with pytest.raises(PlanError) as caught:
        parse_plan(f"{short}name: scaffold\n", "plan.yaml")
    assert caught.value.where == "plan.yaml:6"
    assert caught.value.hint == "set training.optimiser to sgd"
    assert caught.value.what.startswith("training.optimiser: strategy scaffold: the correction")
    with pytest.raises(PlanError) as caught:
        parse_plan(f"{short}name: scaffold\ntraining: {{steps: 3}}\n", "plan.yaml")
    assert caught.value.where == "plan.yaml:7"
