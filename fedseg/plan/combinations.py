"""Which choices of a plan go together: each that doesn't is refused with the key to change, why, and what to write."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, get_args

from fedseg.document import Impossible
from fedseg.plan.sections import STRATEGY_DEFAULTS, Rule, Strategy, StrategyName

if TYPE_CHECKING:
    from fedseg.plan.study import StudyPlan


def check_combinations(plan: StudyPlan) -> None:
    """Refuse a plan whose choices don't go together.

    Raises:
        Impossible: with the key that has to change, why, and what to write.
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
    for name, site in plan.sites.items():
        if site.weight != 1:
            why = f"every weight is 1 in a private study, and that of {name} is {site.weight}"
            raise Impossible(why, f"sites.{name}.weight", hint="remove the line")
    noised = "they would have to be noised and charged to every hospital's ledger, which is not offered"
    if plan.aggregation.rollback is not None:
        why = f"a private study has no validation scores: {noised}"
        raise Impossible(why, "aggregation.rollback", hint="remove the line")
    if plan.evaluation.federated:
        raise Impossible(
            f"a private study publishes no scores: {noised}",
            "evaluation.federated",
            hint="remove the line, and have each site score the model on its own subjects with fedseg evaluate",
        )


def _check_distributed(plan: StudyPlan) -> None:
    training, aggregation = plan.training, plan.aggregation
    wrong = {
        "training.steps": (training.steps != 1, "each round is one pooled step", "set training.steps to 1"),
        "training.optimiser": (
            training.optimiser != "sgd",
            "the pooled gradient moves the model by SGD, at the server and at every site alike",
            "set training.optimiser to sgd",
        ),
        "training.weight_decay": (training.weight_decay > 0, "the pooled step takes none", "remove the line"),
        "aggregation.mode": (
            aggregation.mode != "secure",
            "one site's share of the noise protects nobody by itself",
            "set aggregation.mode to secure",
        ),
    }
    for key, (refused, why, hint) in wrong.items():
        if refused:
            raise Impossible(f"privacy.mode is distributed: {why}", key, "privacy.mode", hint=hint)


def _check_rule(plan: StudyPlan) -> None:
    aggregation = plan.aggregation
    rule, liars, takes_liars = aggregation.rule, aggregation.liars, aggregation.rule in ("trimmed_mean", "multi_krum")
    if liars is not None and not takes_liars:
        why = f"{rule} takes no number of liars; trimmed_mean and multi_krum do"
        raise Impossible(why, "aggregation.liars", hint="remove the line, or choose such a rule")
    if rule == "mean":
        return
    if aggregation.mode == "secure":
        raise Impossible(
            f"the server would need every site's own update for {rule}, and secure aggregation keeps it from that",
            "aggregation.rule",
            hint="use mean; or mode: plain, where every site's policy allows it",
        )
    if len({site.weight for site in plan.sites.values()}) > 1:
        why = f"{rule} counts every site alike, and the sites have several weights"
        raise Impossible(why, "aggregation.rule", hint="give all sites one weight, or use mean")
    _check_liars(rule, liars, aggregation.quorum or len(plan.sites), needed=takes_liars)


def _check_liars(rule: Rule, liars: int | None, quorum: int, *, needed: bool) -> None:
    most = most_liars(rule, quorum)
    if most < 1:
        least = 5 if rule == "multi_krum" else 3
        why = f"{rule} needs a quorum of {least} or more, this plan's is {quorum}"
        raise Impossible(why, "aggregation.rule", hint=f"more sites, or quorum: {least} where there are as many")
    if needed and liars is None:
        why = f"{rule} needs aggregation.liars, how many sites may lie"
        raise Impossible(why, "aggregation.rule", hint=f"set it to {_up_to(most)} here")
    if liars is not None and liars > most:
        why = f"{rule} over a quorum of {quorum} withstands at most {most}, not {liars}"
        raise Impossible(why, "aggregation.liars", hint=f"set it to {_up_to(most)}, or take more sites")


def _up_to(most: int) -> str:
    return "1" if most == 1 else f"1 to {most}"


class _Refusal(NamedTuple):
    """What strategies cannot do, the key of the plan that asks for it, why, and what to write instead."""

    names: tuple[StrategyName, ...]
    key: str
    asked: Callable[[StudyPlan], bool]
    why: str
    hint: str


_OPTIMISERS: tuple[StrategyName, ...] = ("fedavgm", "fedadam", "fedyogi")
_SGD = "the correction is the mean gradient of a round, which only plain SGD steps leave in the update"
_REFUSALS = (
    _Refusal(
        ("fedprox", "scaffold", "fedbn", "ditto"),
        "strategy.name",
        lambda plan: plan.distributed,
        "privacy.mode is distributed: each round is one pooled step, and no site trains a model that could drift or "
        "stay",
        "use fedavg, fedavgm, fedadam or fedyogi; or privacy.mode: local",
    ),
    _Refusal(
        ("ditto",),
        "strategy.name",
        lambda plan: plan.private,
        "a personal model is trained on patients outside the steps that the privacy ledger charges",
        "use fedbn, whose local part comes of the charged steps",
    ),
    _Refusal(
        ("fedprox",),
        "training.steps",
        lambda plan: plan.training.steps == 1,
        "with one step a round a site never leaves the model that it is pulled to",
        "set training.steps to 2 or more, or use fedavg",
    ),
    _Refusal(
        _OPTIMISERS,
        "training.momentum",
        lambda plan: plan.distributed and plan.training.momentum > 0,
        "the server's optimiser has a momentum of its own, strategy.server_momentum",
        "set training.momentum to 0",
    ),
    _Refusal(
        ("scaffold",),
        "training.optimiser",
        lambda plan: plan.training.optimiser != "sgd",
        _SGD,
        "set training.optimiser to sgd",
    ),
    _Refusal(
        ("scaffold",), "training.momentum", lambda plan: plan.training.momentum > 0, _SGD, "set training.momentum to 0"
    ),
    _Refusal(
        ("scaffold",),
        "aggregation.rule",
        lambda plan: plan.aggregation.rule != "mean",
        "the correction follows from the mean of all updates, and a rule that leaves some out gives another number",
        "use mean, or another strategy",
    ),
    _Refusal(
        ("scaffold",),
        "aggregation.quorum",
        lambda plan: _fewest(plan) != len(plan.sites),
        "the corrections add up to nothing only while every site knows whether its update was in the sum, which one "
        "that was lost cannot know",
        "set aggregation.quorum to the number of sites",
    ),
    _Refusal(
        ("scaffold", "fedbn"),
        "aggregation.rollback",
        lambda plan: plan.aggregation.rollback is not None,
        "what stays at the sites would not go back with the model",
        "remove the line, or use fedavg",
    ),
    _Refusal(
        ("fedbn",),
        "training.layers",
        lambda plan: plan.training.layers == "head",
        "the head has no normalisation that could stay at a site",
        "use fedavg, or other layers",
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
            why = f"strategy {chosen.name}: {refusal.why}"
            raise Impossible(why, refusal.key, "strategy.name", hint=refusal.hint)


def _check_parameters(chosen: Strategy) -> None:
    own = STRATEGY_DEFAULTS.get(chosen.name, {})
    for name in list(Strategy.model_fields)[1:]:
        key, given = f"strategy.{name}", getattr(chosen, name) is not None
        if given and name not in own:
            having = [other for other in get_args(StrategyName) if name in STRATEGY_DEFAULTS.get(other, {})]
            hint = f"remove the line; {chosen.name} takes {', '.join(own) or 'no numbers'}"
            raise Impossible(f"{chosen.name} has none; {' and '.join(having)} do", key, hint=hint)
        if not given and name in own:
            raise Impossible(f"{chosen.name} needs a number", key, hint=f"{own[name]:g} is usual")
