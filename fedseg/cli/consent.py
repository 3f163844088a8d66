"""What a hospital agrees to when it joins a study: one table, and the question."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING

import typer

from fedseg.errors import Interrupted, PolicyError, UsageError

if TYPE_CHECKING:
    from fedseg.imaging.bids import Dataset
    from fedseg.plan.manifest import Manifest
    from fedseg.runtime.site_folder import Membership


def consent(manifest: Manifest, member: Membership, dataset: Dataset, yes: bool) -> None:
    """Show what will happen, and ask."""
    from rich.table import Table
    from rich.text import Text

    from fedseg.cli.screen import err
    from fedseg.cli.study import privacy_line
    from fedseg.imaging.bids import SPLITS

    plan = manifest.plan
    table = Table(show_header=False, box=None, title=Text(f"Study: {plan.name}"), title_justify="left")
    counts = {split: len(dataset.subjects(split)) for split in SPLITS}
    for what, value in {
        "plan hash": manifest.plan_hash,
        "server": member.address,
        "this site": member.site,
        "all sites": ", ".join(plan.site_names),
        "trains on": f"{counts['train']} here; {counts['validation']} validation, {counts['test']} test stay out",
        **({"scores on": f"{counts['validation']} validation"} if plan.aggregation.rollback is not None else {}),
        **({"evaluates on": _evaluation_line(manifest, counts["test"])} if plan.evaluation.federated else {}),
        "work": f"{plan.schedule.rounds} rounds of {plan.training.steps} steps",
        "starts from": starting_line(manifest),
        "trains": training_line(manifest),
        **({"strategy": strategy_line(manifest)} if plan.strategy.name != "fedavg" else {}),
        "privacy": privacy_line(manifest),
        **({"trust": _trust_line(manifest)} if plan.distributed else {}),
        "aggregation": _aggregation_line(manifest),
        "leaves here": _leaving_line(manifest),
        "ledger": member.ledger if plan.private else "none: privacy is off",
    }.items():
        # Text, not markup: what a plan says is the coordinator's.
        table.add_row(what, Text(value))
    err.print(table)
    if manifest.quorum == 2 and plan.aggregation.mode == "secure":
        err.print("A round may end with two contributors, who could each read the other's update.")
    if not yes:
        _ask_to_take_part("Take part?")


def consent_to_extension(agreed: Manifest, manifest: Manifest, member: Membership, yes: bool) -> None:
    """Show what an extension changes, and ask."""
    from rich.table import Table
    from rich.text import Text

    from fedseg.cli.screen import err

    table = Table(
        "", "as agreed", "from here on", box=None, title_justify="left",
        title=Text(f"The coordinator has extended the study {manifest.plan.name}"),
    )  # fmt: skip
    for what, before, after in changes(agreed, manifest):
        table.add_row(what, Text(before), Text(after))
    err.print(table)
    beside = " beside those scores" if manifest.plan.evaluation.federated > agreed.plan.evaluation.federated else ""
    err.print(
        f"Unchanged: the server ({member.address}), the sites ({', '.join(manifest.plan.site_names)}), the task, what "
        f"trains and from where, how updates are joined, and what leaves here{beside}. Rounds so far stay as they were "
        "charged.",
        markup=False,
    )
    if not yes:
        _ask_to_take_part("Go on under the extended plan?")


def changes(agreed: Manifest, manifest: Manifest) -> list[tuple[str, str, str]]:
    """What an extension changes: a name, as agreed, from here on. Both versions are of one study."""
    from fedseg.privacy.accounting import epsilon
    from fedseg.runtime.resolution import past_events

    old, new = agreed.plan, manifest.plan
    begun = manifest.parent.last_round if manifest.parent else 0
    rows = [
        ("plan hash", agreed.plan_hash[:16], manifest.plan_hash[:16]),
        ("rounds", f"{old.schedule.rounds}", f"{new.schedule.rounds}, of which {begun} were begun"),
    ]
    if new.evaluation.federated and not old.evaluation.federated:
        rows += [("evaluates on", "no subject", _evaluation_line(manifest, None))]
    if new.private:
        spent = epsilon(past_events(manifest.parent), new.privacy.delta)
        rows += [
            ("reserve rounds", f"{old.privacy.reserve_rounds}", f"{new.privacy.reserve_rounds}"),
            (
                "budget",
                f"epsilon {old.privacy.epsilon:g} at delta {old.privacy.delta:g}",
                f"epsilon {new.privacy.epsilon:g} at delta {new.privacy.delta:g} for all rounds together; those begun "
                f"cost at most {math.ceil(spent * 1000) / 1000:.3f}",
            ),
            ("noise multiplier", f"{agreed.noise_multiplier:g}", f"{manifest.noise_multiplier:g}"),
        ]
    return rows


def _evaluation_line(manifest: Manifest, subjects: int | None) -> str:
    """Who is scored at the end, and who can know what of it."""
    who = "the test subjects" if subjects is None else f"{subjects} test"
    if manifest.plan.aggregation.mode != "secure":
        return f"{who}, at the end; PLAIN: the server sees how many they are, and their mean scores"
    return (
        f"{who}, at the end: their number and scores, added up over at least {manifest.quorum} sites, are published; "
        "if all others collude, or have none, they know this site's"
    )


def _ask_to_take_part(question: str) -> None:
    if not sys.stdin.isatty():
        hint = "add --yes if this is agreed: fedseg client join --state DIR --yes"
        raise UsageError("nobody can be asked: there is no terminal", hint=hint)
    try:
        agreed = typer.confirm(question, err=True)
    except typer.Abort:
        raise Interrupted("stopped before anything was computed or sent", hint="run the same command again") from None
    if not agreed:
        raise PolicyError(
            "not agreed: nothing was computed or sent", hint="to be asked again: fedseg client join --state DIR"
        )


def _aggregation_line(manifest: Manifest) -> str:
    from fedseg.runtime.session import thresholds_of

    plan = manifest.plan
    if plan.aggregation.mode != "secure":
        return f"PLAIN ({plan.aggregation.rule}): the server sees this site's updates"
    numbers = thresholds_of(plan, manifest.quorum)
    helpers = {0: "no site helps", 1: "at most one site helps"}.get(numbers.c, f"at most {numbers.c} sites help")
    weights = {name: site.weight for name, site in plan.sites.items()}
    uneven = f"; weights {weights}" if len(set(weights.values())) > 1 else ""
    return (
        f"secure while {helpers} the server (c = {numbers.c}): it sees only sums over at least {manifest.quorum} of "
        f"{len(plan.sites)} sites, and {numbers.t} must agree before a mask comes off (t = {numbers.t}){uneven}"
    )


def starting_line(manifest: Manifest) -> str:
    """What round 1 starts from, and whether somebody's privacy is at stake in it."""
    if manifest.init is None:
        return "weights drawn from the plan's seed: nobody's data is in them"
    return f"model {manifest.init.model_hash[:16]}, trained on {manifest.init.trained_on}"


def training_line(manifest: Manifest) -> str:
    """Which of the network's parameters train."""
    layers = {"all": "all layers", "head": "the head alone", "norms": "the normalisation layers alone"}
    named = layers.get(manifest.plan.training.layers, f"the {manifest.plan.training.layers} alone")
    together = " with the other sites" if manifest.plan.strategy.name == "fedbn" else ""
    return f"{named}: {manifest.dimension:,} of {manifest.parameters:,} parameters{together}"


def strategy_line(manifest: Manifest) -> str:
    """How rounds move the study where it isn't FedAvg, and what of training stays at a site."""
    chosen = manifest.plan.strategy
    lines = {
        "fedprox": f"fedprox: training is pulled to each round's first model (mu {chosen.proximal})",
        "scaffold": "scaffold: sites correct the drift of their training; this site's correction stays here",
        "fedbn": "fedbn: scale and shift of normalisation stay here, in a personal model that is never sent",
        "ditto": f"ditto: a personal model is trained here beside the shared one (lambda {chosen.proximal}), in as "
        "many steps again; it is never sent",
    }
    return lines.get(chosen.name, f"{chosen.name}: an optimiser at the server takes the mean update")


def _trust_line(manifest: Manifest) -> str:
    """Whom a site relies on where every site adds a share of one noise."""
    from fedseg.runtime.privacy_trust import Shares

    shares = Shares.of(manifest)
    if shares is None:
        return "DISTRIBUTED NOISE: two contributors may end a round, so this site's own share is the whole noise"
    return (
        "DISTRIBUTED NOISE: this site's own share does not protect its subjects by itself; epsilon holds as long as "
        f"{shares.condition}. {shares.beyond}"
    )


def _leaving_line(manifest: Manifest) -> str:
    from fedseg.runtime.session import encoding_of

    plan = manifest.plan
    secure = plan.aggregation.mode == "secure"
    score = ""
    if plan.aggregation.rollback is not None:
        score = "; a mean validation Dice" + (", only inside the sum" if secure else "")
    size = 4 * encoding_of(manifest).length / 1e6
    what = "noised sum of gradients" if plan.distributed else "update"
    if plan.evaluation.federated:
        score += "; at the end, how many test subjects, and their scores" + (", only inside a sum" if secure else "")
    counts = "; how much of the ledger's budget is used" if plan.private else ""
    return (
        f"one {'masked ' if secure else ''}{what} of {size:.1f} MB a round; no scan, label, id or count{score}{counts}"
    )
