"""What a hospital agrees to when it joins a study: one table, and the question."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING

import typer

from fedseg.cli.plan_lines import (
    evaluation_line,
    images_line,
    privacy_line,
    starting_line,
    strategy_line,
    training_line,
)
from fedseg.errors import Interrupted, PolicyError, UsageError
from fedseg.report.numbers import printed

if TYPE_CHECKING:
    from fedseg.imaging.dataset import Dataset
    from fedseg.plan.manifest import Manifest
    from fedseg.privacy.outlook import Outlook
    from fedseg.runtime.prospects import Prospects
    from fedseg.runtime.site_folder import Membership


def consent(
    manifest: Manifest,
    member: Membership,
    dataset: Dataset,
    yes: bool,
    found: Prospects | None = None,
    question: str = "Take part?",
) -> None:
    """Show what will happen, refuse what no budget here would last for, and ask.

    Args:
        manifest: The study.
        member: This site.
        dataset: Its scans.
        yes: Whether nobody is to be asked.
        found: What the study may cost the subjects here; None where it has no privacy.
        question: What is asked.

    Raises:
        BudgetError: As `Prospects.require`.
    """
    from rich.table import Column, Table
    from rich.text import Text

    from fedseg.cli.screen import err
    from fedseg.imaging.dataset import SPLITS

    plan, folded = manifest.plan, Column(overflow="fold")
    table = Table(
        Column(no_wrap=True), folded, show_header=False, box=None, title=Text(f"Study: {plan.name}"),
        title_justify="left",
    )  # fmt: skip
    counts = {split: len(dataset.units(split)) for split in SPLITS}
    tests = len(dataset.subjects("test"))
    for what, value in {
        "plan hash": manifest.plan_hash,
        "server": member.address,
        "this site": member.site,
        "all sites": ", ".join(plan.site_names),
        "trains on": f"{_subjects(dataset)} here; {counts['validation']} validation, {counts['test']} test stay out",
        **({"scores on": f"{counts['validation']} validation"} if plan.aggregation.rollback is not None else {}),
        **({"evaluates on": evaluation_line(manifest, tests)} if plan.evaluation.federated else {}),
        "work": f"{plan.schedule.rounds} rounds of {plan.training.steps} steps",
        "starts from": starting_line(manifest),
        "trains": training_line(manifest),
        "sees": images_line(manifest),
        "strategy": strategy_line(manifest),
        "privacy": privacy_line(manifest),
        **({"lifetime": lifetime_line(found.lifetime)} if found is not None else {}),
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
    if found is not None:
        found.require()
    if not yes:
        _ask_to_take_part(question)


def consent_to_extension(
    agreed: Manifest, manifest: Manifest, member: Membership, yes: bool, found: Prospects | None = None
) -> None:
    """Show what an extension changes, and ask; `found` and what is raised as in `consent`."""
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
    if found is not None:
        err.print(f"Lifetime: {lifetime_line(found.lifetime)}", markup=False)
        found.require()
    if not yes:
        _ask_to_take_part("Go on under the extended plan?")


def changes(agreed: Manifest, manifest: Manifest) -> list[tuple[str, str, str]]:
    """What an extension changes: a name, as agreed, from here on. Both versions are of one study."""
    from fedseg.privacy.accounting import epsilon
    from fedseg.runtime.resolution import past_events

    old, new = agreed.plan, manifest.plan
    rows = [
        ("plan hash", agreed.plan_hash[:16], manifest.plan_hash[:16]),
        ("rounds", f"{old.schedule.rounds}", f"{new.schedule.rounds}{_begun(agreed, manifest)}"),
    ]
    if new.evaluation.federated and not old.evaluation.federated:
        rows += [("evaluates on", "no subject", evaluation_line(manifest))]
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


def _begun(agreed: Manifest, manifest: Manifest) -> str:
    """How far the study had come. Evaluations have numbers too: where there may be some, no count follows from them."""
    begun = manifest.parent.last_round if manifest.parent else 0
    if not agreed.plan.evaluation.federated:
        return f", of which {begun} were begun"
    return f" to be closed in all; the next has the number {begun + 1} (evaluations are numbered too, not counted)"


def lifetime_line(found: Outlook) -> str:
    """What the subjects here have spent over all studies, and would have after this one. For the site's own screen."""
    limit = "no lifetime_epsilon in the policy" if found.limit is None else f"lifetime_epsilon {found.limit:g} allowed"
    return (
        f"at most epsilon {printed(found.spent)} spent so far by any subject here, and {printed(found.after)} after "
        f"this whole study (delta {found.delta:g}); {limit}. Shown here alone: it tells of single subjects"
    )


def _subjects(dataset: Dataset) -> str:
    """How many train, as the ledger counts them: a pregnancy is one, under however many ids."""
    units, ids = len(dataset.units("train")), len(dataset.subjects("train"))
    return f"{units}" if units == ids else f"{units} subjects ({ids} ids)"


def _ask_to_take_part(question: str) -> None:
    from fedseg.cli.screen import err

    if not sys.stdin.isatty():
        hint = "add --yes if this is agreed: fedseg client join --state DIR --yes"
        raise UsageError("nobody can be asked: there is no terminal", hint=hint)
    try:
        agreed = typer.confirm(question, err=True)
    except typer.Abort:
        err.print()
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
