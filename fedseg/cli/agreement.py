"""What a hospital checks before it takes part: the server's plan, its own policy, and what an extension leaves out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fedseg.errors import PlanError, Unreachable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedseg.plan.manifest import Manifest
    from fedseg.privacy.events import RoundCharge
    from fedseg.runtime.site_folder import Membership, SiteFolder


def agree(folder: SiteFolder, member: Membership) -> list[Manifest]:
    """The server's plan, accepted by the hospital's policy: what was accepted before, or an extension of it.

    Returns:
        Versions of the plan, the last of them the server's newest: that one alone, or, where this site agreed to an
        earlier one, all that follow it.

    Raises:
        PlanError: It is another plan, or contradicts itself or this site's own ledger and log.
        PolicyError: The policy does not allow it; what was agreed to is held against it before the server is asked.
    """
    from fedseg.plan.manifest import Manifest
    from fedseg.runtime.extension import following
    from fedseg.runtime.resolution import check_manifest

    agreed = folder.manifest
    if agreed is not None:
        _check_policy(member, agreed)
    with folder.connect() as remote:
        newest = remote.manifest()
        manifest = Manifest.from_json(newest)
        versions = [manifest]
        if agreed is not None and agreed.plan_hash != manifest.plan_hash:
            versions = following(agreed, newest, remote.manifest)
    if member.site not in manifest.plan.sites:
        raise PlanError(f"the plan does not name this site, {member.site}", hint="talk to the coordinator")
    check_manifest(manifest)
    _check_past(folder, member, versions)
    _check_policy(member, manifest)
    return versions


def goes_on(folder: SiteFolder) -> bool:
    """Whether the server goes on: under another plan than that of the model here, or by evaluating that model.

    Raises:
        Unreachable: It can't be asked.
    """
    from fedseg.federation.exchange import Finished, Paused
    from fedseg.plan.manifest import Manifest

    agreed = folder.manifest
    try:
        with folder.connect() as remote:
            newest = Manifest.from_json(remote.manifest())
            if newest == agreed and newest.plan.evaluation.federated:
                return not isinstance(remote.poll(None), Finished | Paused)
    except Unreachable as error:
        raise Unreachable(
            f"the server cannot be asked whether the study goes on: {error.what}",
            where=error.where,
            hint=f"the model of the study as it was complete is {folder.model}; to ask again: "
            "fedseg client join --state DIR",
        ) from error
    return agreed is not None and newest.plan_hash != agreed.plan_hash


def _check_past(folder: SiteFolder, member: Membership, versions: Sequence[Manifest]) -> None:
    from fedseg.runtime.extension import check_covered

    agreed, newest = folder.manifest, versions[-1]
    if newest.parent is not None:
        charges = _charges(member, newest)
        known = 0 if agreed is not None and agreed.plan_hash == newest.plan_hash else folder.newest_round
        for version in versions:
            check_covered(version, charges, known)


def _charges(member: Membership, manifest: Manifest) -> Sequence[RoundCharge]:
    from fedseg.runtime.hospital import Hospital

    if not manifest.plan.private:
        return ()
    ledger = Hospital(Path(member.data), Path.home()).begun_ledger(Path(member.ledger))
    return () if ledger is None else ledger.ledger.charges(manifest.study)


def _check_policy(member: Membership, manifest: Manifest) -> None:
    from fedseg.cli.files import load_policy
    from fedseg.policy import accept
    from fedseg.runtime.session import thresholds_of
    from fedseg.secagg.thresholds import Thresholds

    plan = manifest.plan
    numbers = thresholds_of(plan, manifest.quorum)
    usual = Thresholds.of(len(plan.sites)).c if numbers.secure else 0
    accept(load_policy(member.policy, member.policy_file or "this hospital's policy"), manifest, numbers.c, usual)
