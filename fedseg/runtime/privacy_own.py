"""What a hospital's own screen shows of its subjects, and no document does.

All of it may depend on whether one subject is there: in two studies, or under two ids.
"""

from __future__ import annotations

from fedseg.errors import LedgerError
from fedseg.policy import SitePolicy, parse_policy
from fedseg.privacy.accounting import histories
from fedseg.privacy.ledger import Ledger
from fedseg.report.own_figures import Lifetime, OwnFigures
from fedseg.runtime.privacy_history import at_one_percent, attack_rates, largest_epsilon
from fedseg.runtime.privacy_site import accepted, open_ledger
from fedseg.runtime.site_folder import SiteFolder


def own_figures(folder: SiteFolder) -> OwnFigures | None:
    """Those of a site; None where its study has no privacy, or its ledger cannot be read.

    Raises:
        LedgerError: The site has accepted no study.
    """
    manifest = accepted(folder)
    if not manifest.plan.private:
        return None
    try:
        ledger = open_ledger(folder)
    except LedgerError:
        return None
    charges, delta = ledger.charges(manifest.study), manifest.plan.privacy.delta
    spent = tuple(histories(charges, ledger.groups).values())
    text = folder.membership.policy
    policy = SitePolicy() if text is None else parse_policy(text, "this hospital's policy").content
    return OwnFigures(
        subjects=len({ledger.groups.get(key, key) for key in charges[-1].subjects}) if charges else 0,
        epsilon=largest_epsilon(spent, delta),
        attacker_at_1_percent=at_one_percent(attack_rates(spent)),
        lifetime=_lifetime(ledger, delta, policy),
        other_studies=len({charge.study for charge in ledger.charged} - {manifest.study}),
    )


def _lifetime(ledger: Ledger, delta: float, policy: SitePolicy) -> tuple[Lifetime, ...]:
    allowed = Lifetime(
        policy.lifetime_delta, "policy", ledger.epsilon(None, policy.lifetime_delta), policy.lifetime_epsilon
    )
    if delta == policy.lifetime_delta:
        return (allowed,)
    return Lifetime(delta, "plan", ledger.epsilon(None, delta), None), allowed
