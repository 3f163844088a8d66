"""What a hospital agrees to when it joins a study: one table, and the question."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import typer

from fedseg.errors import Interrupted, PolicyError, UsageError

if TYPE_CHECKING:
    from fedseg.imaging.bids import Dataset
    from fedseg.plan import Manifest
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
        "work": f"{plan.schedule.rounds} rounds of {plan.training.steps} steps; {manifest.parameters:,} parameters",
        "privacy": privacy_line(manifest),
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
        _ask_to_take_part()


def _ask_to_take_part() -> None:
    if not sys.stdin.isatty():
        hint = "add --yes if this is agreed: fedseg client join --state DIR --yes"
        raise UsageError("nobody can be asked: there is no terminal", hint=hint)
    try:
        agreed = typer.confirm("Take part?", err=True)
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


def _leaving_line(manifest: Manifest) -> str:
    from fedseg.runtime.session import encoding_of

    plan = manifest.plan
    secure = plan.aggregation.mode == "secure"
    score = ""
    if plan.aggregation.rollback is not None:
        score = "; a mean validation Dice" + (", only inside the sum" if secure else "")
    size = 4 * encoding_of(manifest).length / 1e6
    return f"one {'masked ' if secure else ''}update of {size:.1f} MB a round; no scan, label, id or count{score}"
