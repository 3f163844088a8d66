"""Which choices of a plan go together: each that doesn't is refused with the key to change, and why."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, get_args

from fedseg.plan.sections import STRATEGY_DEFAULTS, Rule, Strategy, StrategyName

if TYPE_CHECKING:
    from fedseg.plan.study import StudyPlan


def check_combinations(plan: StudyPlan) -> None:
    """Refuse a plan whose choices don't go together.

    Raises:
        ValueError: with the key that has to change, first, and why.
    """
    if plan.private:
        _check_private(plan)
    _check_rule(plan)
    if plan.distributed:
        _check_distributed(plan)
    _check_strategy(plan)


def most_liars(rule: Rule, contributors: int) -> int:
    """The most lying sites that a rule over so many contributors is built for; below 1 where it is built for none.

    Fewer than half of the contributors for `median` and `trimmed_mean` (Yin et al. 2018); (contributors - 3) / 2 for
    `multi_krum` (Blanchard et al. 2017: n >= 2 f + 3); none for `mean`.
    """
    if rule == "mean":
        return 0
    return (contributors - (3 if rule == "multi_krum" else 1)) // 2


def _check_private(plan: StudyPlan) -> None:
    if any(site.weight != 1 for site in plan.sites.values()):
        raise ValueError("sites: every weight is 1 in a private study")
    if plan.aggregation.rollback is not None:
        raise ValueError(
            "aggregation.rollback: a private study has no validation scores: they would have to be noised and "
            "charged to every hospital's ledger, which is not offered; remove the line"
        )
    if plan.evaluation.federated:
        raise ValueError(
            "evaluation.federated: a private study publishes no scores: they would have to be noised and charged "
            "to every hospital's ledger, which is not offered; remove the line, and have each site score the model "
            "on its own subjects with fedseg evaluate"
        )


def _check_distributed(plan: StudyPlan) -> None:
    training, aggregation = plan.training, plan.aggregation
    wrong = {
        "training.steps": (training.steps != 1, "each round is one pooled step: set training.steps to 1"),
        "training.optimiser": (
            training.optimiser != "sgd",
            "the pooled gradient moves the model by SGD, at the server and at every site alike: set it to sgd",
        ),
        "training.weight_decay": (training.weight_decay > 0, "the pooled step takes none: remove the line"),
        "aggregation.mode": (
            aggregation.mode != "secure",
            "one site's share of the noise protects nobody by itself: set it to secure",
        ),
    }
    for key, (refused, why) in wrong.items():
        if refused:
            raise ValueError(f"{key}: privacy.mode is distributed: {why}")


def _check_rule(plan: StudyPlan) -> None:
    aggregation = plan.aggregation
    rule, liars, takes_liars = aggregation.rule, aggregation.liars, aggregation.rule in ("trimmed_mean", "multi_krum")
    if liars is not None and not takes_liars:
        raise ValueError(f"aggregation.liars: {rule} takes no number of liars; trimmed_mean and multi_krum do")
    if rule == "mean":
        return
    if aggregation.mode == "secure":
        raise ValueError(
            f"aggregation.rule: the server would need every site's own update for {rule}, and secure aggregation keeps "
            "it from that; use mean, or mode: plain where every site's policy allows it"
        )
    if len({site.weight for site in plan.sites.values()}) > 1:
        raise ValueError(f"aggregation.rule: {rule} counts every site alike: give all sites one weight")
    _check_liars(rule, liars, aggregation.quorum or len(plan.sites), needed=takes_liars)


def _check_liars(rule: Rule, liars: int | None, quorum: int, *, needed: bool) -> None:
    most = most_liars(rule, quorum)
    if most < 1:
        least = 5 if rule == "multi_krum" else 3
        raise ValueError(f"aggregation.rule: {rule} needs a quorum of {least} or more, this plan's is {quorum}")
    if needed and liars is None:
        raise ValueError(f"aggregation.rule: {rule} needs aggregation.liars, how many sites may lie: 1 to {most} here")
    if liars is not None and liars > most:
        raise ValueError(f"aggregation.liars: {rule} over a quorum of {quorum} withstands at most {most}, not {liars}")


class _Refusal(NamedTuple):
    """What strategies cannot do, the key of the plan that asks for it, and why."""

    names: tuple[StrategyName, ...]
    key: str
    asked: Callable[[StudyPlan], bool]
    why: str


_OPTIMISERS: tuple[StrategyName, ...] = ("fedavgm", "fedadam", "fedyogi")
_SGD = "the correction is the mean gradient of a round, which only plain SGD steps leave in the update: set "
_REFUSALS = (
    _Refusal(
        ("fedprox", "scaffold", "fedbn", "ditto"),
        "strategy.name",
        lambda plan: plan.distributed,
        "privacy.mode is distributed: each round is one pooled step, and no site trains a model that could drift or "
        "stay; use fedavg, fedavgm, fedadam or fedyogi",
    ),
    _Refusal(
        ("ditto",),
        "strategy.name",
        lambda plan: plan.private,
        "a personal model is trained on patients outside the steps that the privacy ledger charges; use fedbn, whose "
        "local part comes of the charged steps",
    ),
    _Refusal(
        ("fedprox",),
        "training.steps",
        lambda plan: plan.training.steps == 1,
        "with one step a round a site never leaves the model that it is pulled to: take more steps, or fedavg",
    ),
    _Refusal(
        _OPTIMISERS,
        "training.momentum",
        lambda plan: plan.distributed and plan.training.momentum > 0,
        "the server's optimiser has a momentum of its own, strategy.server_momentum: set it to 0",
    ),
    _Refusal(("scaffold",), "training.optimiser", lambda plan: plan.training.optimiser != "sgd", f"{_SGD}it to sgd"),
    _Refusal(("scaffold",), "training.momentum", lambda plan: plan.training.momentum > 0, f"{_SGD}it to 0"),
    _Refusal(
        ("scaffold",),
        "aggregation.rule",
        lambda plan: plan.aggregation.rule != "mean",
        "the correction follows from the mean of all updates, and a rule that leaves some out gives another number",
    ),
    _Refusal(
        ("scaffold",),
        "aggregation.quorum",
        lambda plan: _fewest(plan) != len(plan.sites),
        "the corrections add up to nothing only while every site knows whether its update was in the sum, which one "
        "that was lost cannot know: set it to the number of sites",
    ),
    _Refusal(
        ("scaffold", "fedbn"),
        "aggregation.rollback",
        lambda plan: plan.aggregation.rollback is not None,
        "what stays at the sites would not go back with the model: remove the line",
    ),
    _Refusal(
        ("fedbn",),
        "training.layers",
        lambda plan: plan.training.layers == "head",
        "the head has no normalisation that could stay at a site: use fedavg, or other layers",
    ),
)


def _fewest(plan: StudyPlan) -> int | None:
    """The quorum where the plan alone decides it."""
    return plan.aggregation.quorum or (len(plan.sites) if plan.aggregation.mode == "plain" else None)


def _check_strategy(plan: StudyPlan) -> None:
    chosen = plan.strategy
    _check_parameters(chosen)
    for refusal in _REFUSALS:
        if chosen.name in refusal.names and refusal.asked(plan):
            raise ValueError(f"{refusal.key}: strategy {chosen.name}: {refusal.why}")


def _check_parameters(chosen: Strategy) -> None:
    own = STRATEGY_DEFAULTS.get(chosen.name, {})
    for name in list(Strategy.model_fields)[1:]:
        given = getattr(chosen, name) is not None
        if given and name not in own:
            having = [other for other in get_args(StrategyName) if name in STRATEGY_DEFAULTS.get(other, {})]
            raise ValueError(f"strategy.{name}: {chosen.name} has none; {' and '.join(having)} do")
        if not given and name in own:
            raise ValueError(f"strategy.{name}: {chosen.name} needs a number; {own[name]:g} is usual")
