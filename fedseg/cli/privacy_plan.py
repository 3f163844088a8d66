"""`fedseg privacy-plan`: what a privacy budget costs in noise, and whether that can work, before anyone trains."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fedseg.errors import PlanError, UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from fedseg.document import Document
    from fedseg.plan.study import StudyPlan
    from fedseg.privacy.planning import Scenario

LAYERS = ("all", "decoder", "head", "norms")
VERDICTS = {
    "workable": "By its noise, this can work: the noise ratio of the federation is at most 1.",
    "doubtful": "Doubtful: the noise ratio of the federation is above 1. Expect worse models than without privacy.",
    "hopeless": "From scratch this will not learn: the noise ratio of the federation is above 5.",
}
FROZEN = (
    "The layers that do not train stay as the first model has them: it must be a pretrained one (fedseg pretrain, then "
    "fedseg study create --init)."
)
PRETRAIN = (
    "Start from a pretrained model (fedseg pretrain, then fedseg study create --init). The ratio stays what it is, but "
    "noise then has to spare what the model knows instead of letting it learn everything."
)

ACCOUNTANTS = {"PLD": "privacy loss distributions (PLD)", "RDP": "Renyi differential privacy (RDP)"}
FEWER = 4
"""How much shorter a study is that is proposed for comparison."""

Facts = dict[str, Any]


def register(app: typer.Typer) -> None:
    """Add the command to the main one."""
    app.command(
        "privacy-plan",
        epilog="Example: fedseg privacy-plan --epsilon 8 --subjects 80 --sites 8 --rounds 100 --mode distributed",
    )(privacy_plan)


def privacy_plan(
    plan: Annotated[
        Path | None, typer.Argument(metavar="[PLAN.yaml]", help="The study plan. Without it, the options describe one.")
    ] = None,
    epsilon: Annotated[float | None, typer.Option(help="The budget of each subject, over the whole study.")] = None,
    delta: Annotated[float | None, typer.Option(help="Of that budget; 1e-5 unless given.")] = None,
    subjects: Annotated[int | None, typer.Option(help="Subjects at each site.")] = None,
    sites: Annotated[int | None, typer.Option(help="Number of sites; 3 unless given.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds of the study.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps a round; 10 unless given, distributed 1.")] = None,
    rate: Annotated[
        float | None,
        typer.Option(help="Chance that a subject is drawn for a step; 0.5 unless given, distributed 1."),
    ] = None,
    mode: Annotated[
        Literal["local", "distributed"] | None, typer.Option(help="Whose noise protects a subject; local unless given.")
    ] = None,
    network: Annotated[
        Literal["small", "base", "lean"] | None, typer.Option(help="Its size; lean unless given.")
    ] = None,
    layers: Annotated[
        Literal["all", "decoder", "head", "norms"] | None, typer.Option(help="Layers that train; all unless given.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Say before anyone trains how much noise a privacy budget needs, and whether a model can learn under it."""
    from fedseg.cli.files import load_plan

    options = {
        "epsilon": epsilon,
        "delta": delta,
        "subjects": subjects,
        "sites": sites,
        "rounds": rounds,
        "steps": steps,
        "rate": rate,
        "mode": mode,
        "network": network,
        "layers": layers,
    }
    given = {name: value for name, value in options.items() if value is not None}
    if plan is not None and given:
        raise UsageError(
            f"a plan and --{next(iter(given))} were both given", hint="name a plan, or describe one with options"
        )
    facts = gather(load_plan(plan)) if plan is not None else _of_options(given)
    if as_json:
        typer.echo(json.dumps(facts, allow_nan=False))
    else:
        show(facts)


def _of_options(given: Mapping[str, Any]) -> Facts:
    """The facts of a plan that options describe; errors name no line of it.

    Raises:
        UsageError: An option is missing, or what they describe is no plan.
    """
    missing = [f"--{name}" for name in ("epsilon", "subjects", "rounds") if name not in given]
    if missing:
        raise UsageError(
            f"without a plan, {', '.join(missing)} must be given",
            hint="or name a plan: fedseg privacy-plan sample_configs/atlas-private.yaml",
        )
    from fedseg.plan.study import parse_plan

    try:
        return gather(parse_plan(json.dumps(_described(given)), "the options"))
    except PlanError as error:
        raise UsageError(error.what, hint=error.hint) from None


def _described(given: Mapping[str, Any]) -> dict[str, Any]:
    mode, count = given.get("mode", "local"), given.get("sites", 3)
    privacy = {"mode": mode, "epsilon": given["epsilon"], "delta": given.get("delta", 1e-5)}
    steps = given.get("steps", 1 if mode == "distributed" else 10)
    return {
        "name": "described by options",
        "network": {"preset": given.get("network", "lean")},
        "training": {"steps": steps, "optimiser": "sgd", "layers": given.get("layers", "all")},
        "privacy": privacy | ({"sampling_rate": given["rate"]} if "rate" in given else {}),
        "aggregation": {"mode": "plain" if count < 3 and mode == "local" else "secure"},
        "schedule": {"rounds": given["rounds"]},
        "sites": {f"site-{number}": {"public_subjects": given["subjects"]} for number in range(1, count + 1)},
    }


def gather(document: Document[StudyPlan]) -> Facts:
    """All that can be said of a plan's budget before anyone trains.

    Raises:
        PlanError: The plan has no budget, or one that cannot be kept; names its line.
    """
    from fedseg.cli.privacy_choices import alternatives
    from fedseg.privacy.planning import EASY, HARD, REASON, forecast, spending

    plan = document.content
    if not plan.private:
        raise PlanError(
            "privacy.mode: this plan has no privacy, so there is nothing to spread over its rounds",
            where=document.where("privacy", "mode"),
            hint="mode local or distributed, and an epsilon",
        )
    scenario, parameters = scenario_of(document), _parameters(plan)
    dimension = parameters[plan.training.layers]
    try:
        chosen, spent = forecast(scenario, dimension), spending(scenario, dimension)
    except PlanError as error:
        where = document.where(*(error.where or "privacy.epsilon").split("."))
        raise PlanError(error.what, where=where, hint=error.hint) from None
    facts: Facts = {
        "privacy": plan.privacy.mode,
        "network": plan.network.preset,
        "layers": plan.training.layers,
        "epsilon": scenario.epsilon,
        "delta": scenario.delta,
        "sites": {name: site.public_subjects for name, site in plan.sites.items()},
        "honest_others": scenario.honest,
        "rounds": scenario.rounds,
        "reserve_rounds": scenario.reserve,
        "steps": scenario.steps,
        "sampling_rate": scenario.rate,
        **asdict(chosen),
        "verdict": chosen.verdict,
        "thresholds": {"workable": EASY, "doubtful": HARD, "reason": REASON},
        "spending": asdict(spent),
        "alternatives": alternatives(plan, scenario, parameters),
    }
    return facts | {"advice": _advice(facts, scenario)}


def scenario_of(document: Document[StudyPlan]) -> Scenario:
    """A plan's budget and what it is spread over.

    Raises:
        PlanError: Delta is above a site's cap, or the sites cannot aggregate; names the line.
    """
    from fedseg.privacy.distributed import honest_others
    from fedseg.privacy.planning import Scenario, check_delta
    from fedseg.runtime.session import at_plan_line, check_aggregation, thresholds_of

    plan, quorum = document.content, check_aggregation(document)
    privacy, limits = plan.privacy, thresholds_of(plan, quorum)
    with at_plan_line(document):
        check_delta(privacy.delta, {name: site.public_subjects for name, site in plan.sites.items()})
    return Scenario(
        mode="distributed" if plan.distributed else "local",
        epsilon=privacy.epsilon or 0.0,
        delta=privacy.delta,
        rate=privacy.sampling_rate,
        steps=plan.training.steps,
        rounds=plan.schedule.rounds,
        reserve=privacy.reserve_rounds,
        subjects=tuple(site.public_subjects for site in plan.sites.values()),
        honest=honest_others(limits.quorum, limits.c) if limits.secure else None,
        max_grad_norm=privacy.max_grad_norm,
    )


def _parameters(plan: StudyPlan) -> dict[str, int]:
    """How many parameters train, for each choice of layers."""
    from fedseg.labels import scheme
    from fedseg.training.network import trained_parameters

    classes = scheme(plan.task).classes
    return {layers: trained_parameters(plan.network.preset, classes, layers) for layers in LAYERS}


def _advice(facts: Facts, scenario: Scenario) -> list[str]:
    """What a plan needs beside its budget, and what would bring the noise ratio down, and to where."""
    said = [] if facts["layers"] == "all" else [FROZEN]
    if facts["verdict"] == "workable":
        return said
    return [
        *said,
        *([PRETRAIN] if facts["layers"] == "all" else []),
        *_other_choices(facts, scenario),
        *_other_schedules(facts, scenario),
        f"Find more subjects: a ratio of 1 takes {facts['subjects_needed']:,} at all sites together; "
        f"the plan has {sum(scenario.subjects):,}.",
    ]


def _other_choices(facts: Facts, scenario: Scenario) -> list[str]:
    rows = {(row["layers"], row["privacy"]): row for row in facts["alternatives"] if "refused" not in row}
    said = []
    fewest = min((row for (_, mode), row in rows.items() if mode == scenario.mode), key=lambda row: row["dimension"])
    if fewest["dimension"] < facts["dimension"]:
        said.append(f"Train fewer layers: ratio {fewest['federation']:.3g} with training.layers: {fewest['layers']}.")
    pooled = rows.get((facts["layers"], "distributed"))
    if scenario.mode == "local" and pooled is not None and pooled["federation"] < facts["federation"]:
        said.append(
            f"Distribute the noise: ratio {pooled['federation']:.3g} with privacy.mode: distributed. A round is then "
            f"one step of all sites, and that takes trust in at least {(scenario.honest or 1) - 1} of the other "
            "contributors of every sum: that they add their share of the noise and tell it to nobody."
        )
    return said


def _other_schedules(facts: Facts, scenario: Scenario) -> list[str]:
    from fedseg.privacy.planning import forecast

    said = []
    if scenario.rate < 1:
        full = forecast(replace(scenario, rate=1.0), facts["dimension"])
        said.append(f"Draw more subjects a step: ratio {full.federation:.3g} with privacy.sampling_rate: 1.")
    if scenario.rounds >= FEWER:
        short = replace(scenario, rounds=scenario.rounds // FEWER)
        ratio = forecast(short, facts["dimension"]).federation
        said.append(f"Take fewer steps: ratio {ratio:.3g} with schedule.rounds: {short.rounds}.")
    return said


def show(facts: Facts) -> None:
    """Print the facts for a person."""
    from fedseg.cli.paragraphs import say
    from fedseg.cli.screen import out

    say(*_summary(facts))
    out.print("")
    say(VERDICTS[facts["verdict"]], facts["thresholds"]["reason"], *(f"- {each}" for each in facts["advice"]))
    out.print("\nNoise ratio of a step of the federation, by the layers that train:")
    out.print(_table(facts))
    say(_footnote(facts))


def _summary(facts: Facts) -> list[str]:
    from fedseg.report.numbers import printed

    spent, sites, rounds, reserve = facts["spending"], facts["sites"], facts["rounds"], facts["reserve_rounds"]
    smallest = min(sites, key=lambda name: sites[name])
    kept = f"; {printed(spent['reserve'])} with the reserve" if reserve else ""
    return [
        f"Budget: epsilon {facts['epsilon']:g} at delta {facts['delta']:g} for each subject (a pregnancy), over "
        f"{rounds} rounds{f' and {reserve} in reserve' if reserve else ''}, {_steps(facts['steps'])} each at "
        f"sampling rate {facts['sampling_rate']:g}.",
        f"Sites: {len(sites)} with {sum(sites.values()):,} subjects; the smallest is {smallest} with "
        f"{sites[smallest]:,}.",
        f"Noise multiplier: {facts['noise_multiplier']:g}, {facts['privacy']} noise; epsilon is reckoned by "
        f"{ACCOUNTANTS[spent['accountant']]}.",
        f"Epsilon: {printed(spent['first'])} after round 1; {printed(spent['schedule'])} after round {rounds}, of "
        f"which the last adds {printed(spent['last'])}{kept}.",
        f"Noise ratio of one step, {facts['network']} network, layers {facts['layers']} "
        f"({facts['dimension']:,} parameters): {_ratios(facts, smallest)}.",
    ]


def _steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count} steps"


def _ratios(facts: Facts, smallest: str) -> str:
    if facts["smallest_site"] is None:
        return f"{facts['federation']:.3g} for the pooled step of all {len(facts['sites'])} sites"
    return (
        f"{facts['smallest_site']:.3g} at {smallest}, {facts['federation']:.3g} for the mean of all "
        f"{len(facts['sites'])} sites"
    )


def _table(facts: Facts) -> Table:
    from rich.table import Column, Table

    modes = sorted({row["privacy"] for row in facts["alternatives"]}, reverse=True)
    names = ("parameters", *(f"{mode} noise" for mode in modes))
    table = Table("layers", *(Column(name, justify="right") for name in names))
    for layers in LAYERS:
        rows = {row["privacy"]: row for row in facts["alternatives"] if row["layers"] == layers}
        ratios = ("refused" if "refused" in rows[mode] else f"{rows[mode]['federation']:.3g}" for mode in modes)
        table.add_row(layers, f"{rows[modes[0]]['dimension']:,}", *ratios)
    return table


def _footnote(facts: Facts) -> str:
    """What the columns of the table stand for."""
    first = {row["privacy"]: row for row in facts["alternatives"] if row["layers"] == LAYERS[0]}
    words = "; ".join(
        f"{mode}: {_steps(row['steps'])} a round at sampling rate {row['sampling_rate']:g}"
        for mode, row in first.items()
    )
    if "distributed" in first:
        return f"{words}."
    return f"{words}. Noise can be distributed over three or more sites that aggregate securely."
