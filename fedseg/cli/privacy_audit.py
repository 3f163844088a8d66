"""`fedseg privacy-audit`: an audit that would catch us lying."""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedseg.errors import EXIT_FAILED, UsageError

if TYPE_CHECKING:
    from fedseg.runtime.privacy_audit import Audit, Audited
    from fedseg.training.membership import Membership

STAYS = "Stays here: computed on this site's own subjects, written to no file. Do not pass it on."
CONSISTENT = (
    "Consistent: nothing contradicts what is claimed. What this means: an engine with half the noise, no clip, a clip "
    "after the mean, patches counted as subjects, a repeated seed or a divisor that counts the batch would have been "
    "caught here; so would rounds that are charged, or trained, with other noise, rate, clip or steps than the plan's. "
    "What it does not mean: an audit can refute a claim and never prove one. The lower bound is not the "
    "risk; the claimed epsilon is, and it rests on the accountant's arithmetic."
)
CAUGHT = "CAUGHT: this engine does not do what it claims. Do not train with it, and do not trust its epsilon."


def register(app: typer.Typer) -> None:
    """Add the command to the main one."""
    app.command("privacy-audit", epilog="Example: fedseg privacy-audit --plan plan.yaml --out audit")(privacy_audit)


def privacy_audit(
    plan: Annotated[Path | None, typer.Option(help="Audit the engine with this plan's noise, rate and clip.")] = None,
    study: Annotated[
        Path | None, typer.Option("--study", "--state", help="The same for a study's folder or a site's state folder.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="Also test whether this model's losses tell who it was trained on.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="The BIDS folder for that: split train against validation and test.")
    ] = None,
    labels: Annotated[str | None, typer.Option(help="Where the data set has no dseg.tsv: as for evaluate.")] = None,
    trials: Annotated[int, typer.Option(help="Canaries: more can prove a larger epsilon.")] = 2000,
    out: Annotated[Path | None, typer.Option(help="Write audit.json and inversion.png to this folder.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Look for lies of the privacy engine and of the path to it: canaries, probes, a gradient inversion; all made up.

    Exit code 1 where a probe caught something. With --model and --data a membership test on real subjects is added,
    which is shown on this screen and written to no file.
    """
    from fedseg.cli.screen import Screen
    from fedseg.runtime.privacy_audit import audit_engine, membership_test, write_audit

    if (model is None) != (data is None):
        raise UsageError("a membership test needs a model and a data set", hint="give both --model and --data")
    audited = _audited(plan, study)
    with Screen(None) as screen:
        audit = audit_engine(audited, trials, secrets.token_bytes, screen.bar)
        found = membership_test(model, data, labels, screen.bar) if model and data else None
    if out is not None:
        write_audit(audit, out)
    if as_json:
        private = {}
        if found is not None:
            private["membership"] = {"stays_here": STAYS, "told_apart": found.told_apart, **asdict(found)}
        typer.echo(json.dumps(audit.to_json() | private, allow_nan=False))
    else:
        _show(audit, found, out)
    if audit.caught:
        raise typer.Exit(EXIT_FAILED)


def _audited(plan: Path | None, study: Path | None) -> Audited:
    from fedseg.cli.files import load_plan
    from fedseg.runtime.privacy_audit import of_folder, of_plan, of_usual

    if plan is not None and study is not None:
        raise UsageError("a plan and a study are given", hint="give one of --plan and --study")
    if plan is not None:
        return of_plan(load_plan(plan))
    return of_usual() if study is None else of_folder(study)


def _show(audit: Audit, found: Membership | None, out: Path | None) -> None:
    from rich.table import Table

    from fedseg.cli.paragraphs import say
    from fedseg.cli.screen import out as screen

    table = Table("probe", "answer", "numbers")
    for probe in audit.probes:
        table.add_row(probe.name, "as claimed" if probe.passed else "CAUGHT", probe.detail)
    screen.print(table)
    say(*_bounds(audit), CAUGHT if audit.caught else CONSISTENT)
    say(*_inversion(audit), *(_membership(found) if found else ()))
    if out is not None:
        screen.print(f"Written: {out / 'audit.json'} and {out / 'inversion.png'}", markup=False)


def _bounds(audit: Audit) -> list[str]:
    from fedseg.report.numbers import printed

    claim = audit.claim
    noise = "" if claim.honest is None else f", shared by {claim.honest} sites"
    lines = [
        f"Claimed: epsilon {printed(audit.claimed)} at delta {audit.delta:g} for the {claim.steps} steps that were "
        f"audited, of noise multiplier {claim.noise_multiplier:g}{noise}, sampling rate {claim.sampling_rate:g}. It is "
        "of these steps alone; what a study spends stands in its report.",
        f"Proven with 95% confidence: epsilon is at least {audit.lower_bound:.3f}, whatever the mechanism; at least "
        f"{audit.lower_bound_gaussian:.3f}, if its noise is Gaussian. With {audit.trials} canaries no more than "
        f"{audit.largest_provable:.3f} could have been proven of any mechanism.",
    ]
    if max(audit.lower_bound, audit.lower_bound_gaussian) > audit.claimed:
        lines.append("A bound lies above the claim: by chance one in twenty may, for an honest engine. Audit again.")
    if audit.claimed > audit.largest_provable:
        lines.append("The claim is larger than that, so the first bound could not have refuted it: raise --trials.")
    return lines


def _inversion(audit: Audit) -> list[str]:
    attempts = audit.inversion.attempts
    told = "; ".join(f"{each.name} {each.correlation:.2f} ({each.psnr_db:.1f} dB)" for each in attempts)
    return [
        "Gradient inversion of one made-up patch (untrained network, labels known to the attacker). Correlation of the "
        f"reconstruction with the original inside the head: {told}; the labels alone give "
        f"{audit.inversion.labels_alone:.2f}.",
        "Clipping alone hides nothing, as it only shortens the gradient. That this one attack fails on a noised "
        "gradient is an illustration and no proof.",
    ]


def _membership(found: Membership) -> list[str]:
    low, high = found.auc_interval
    least, most = found.advantage_interval
    tail = found.tpr_at_1_percent
    at_tail = "too few never-seen subjects to measure" if tail is None else f"{tail:.3f}"
    verdict = (
        "The losses DO tell members from others better than chance: this model remembers whom it was trained on."
        if found.told_apart
        else "The losses tell members from others no better than chance explains. A better attack might do better."
    )
    return [
        f"\n{STAYS}",
        f"Membership test by a threshold on the loss, {found.members} units of privacy (subjects, or all subjects with "
        f"one subject_key) of the split train against {found.others} of the others. Area under the curve "
        f"{found.auc:.3f} (95% interval {low:.3f} to {high:.3f}, p = {found.p_value:.2g}); advantage at the best "
        f"threshold {found.advantage:.3f} ({least:.3f} to {most:.3f}); true positives at 1% false positives: "
        f"{at_tail}.",
        verdict,
        "It is only a test if the model was trained on exactly these units of the split train.",
    ]
