"""The privacy audit: does the engine keep what it claims, what does a gradient give away, whom does a model remember?

`audit.json`, which the privacy report shows, holds nothing that was computed on real subjects:

    kind                   "fedseg privacy audit 1"
    code_version           of the engine that was audited
    plan_hash              of the study that was audited; null for a plan that is no study, and for the usual constants
    mode                   "local" or "distributed"
    noise_multiplier, sampling_rate, max_grad_norm, steps, honest
                           what the engine was given; honest is null in local mode; steps are those of a run of canaries
    claimed_epsilon, delta what the accountant says of these steps
    lower_bound            epsilon is at least this, whatever the mechanism; 0 where nothing was proven
    lower_bound_gaussian   epsilon is at least this, if the noise is Gaussian
    largest_provable       what lower_bound could have been at most with so many trials
    confidence             of each bound
    trials                 canaries, in or out by a fair coin each
    false_alarm            chance, at most, that an honest engine fails a probe
    probes                 [{"name", "passed", "detail"}]
    verdict                "consistent" or "CAUGHT"
    inversion              {"noise_multiplier", "labels_alone", "attempts": [{"name", "correlation", "psnr_db"}]}: of a
                           made-up patch; correlations inside the head, of the labels alone and of each reconstruction
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedseg import __version__
from fedseg.document import Document
from fedseg.errors import DataError, UsageError
from fedseg.imaging.bids import load_dataset
from fedseg.imaging.cache import prepare_case
from fedseg.imaging.dataset import Case
from fedseg.labels import scheme
from fedseg.plan.manifest import Manifest
from fedseg.plan.study import StudyPlan, parse_plan
from fedseg.privacy.accounting import epsilon
from fedseg.privacy.auditing import Probe, largest_provable, mechanism_bound, one_run_bound
from fedseg.report.png import encode_rgb
from fedseg.runtime import path_probes
from fedseg.runtime.prediction import load_network
from fedseg.runtime.preparation import first_model
from fedseg.runtime.resolution import resolve
from fedseg.runtime.session import noise_share
from fedseg.runtime.site_folder import SiteFolder
from fedseg.runtime.study import StudyFolder
from fedseg.store.files import storage_errors, write_atomic
from fedseg.training import canaries, probes
from fedseg.training.canaries import Claim
from fedseg.training.inversion import Inversion, demonstrate
from fedseg.training.membership import Membership, membership, subject_loss_of

KIND = "fedseg privacy audit 1"
REPORT, PICTURE = "audit.json", "inversion.png"
CONFIDENCE = 0.95
FEWEST, MOST = 100, 50_000
"""Canaries in an audit."""

Entropy = Callable[[int], bytes]
OnPart = Callable[[str, int, int], None]
"""Called with what is being done, and how far it is: (done, in all)."""

USUAL = """
name: the usual constants
network: {preset: small}
privacy: {mode: local, epsilon: 8}
schedule: {rounds: 6}
sites: {a: {}, b: {}, c: {}}
"""

_MOST_STEPS = 64
_ZOOM = 10
_GAP = 8


@dataclass(frozen=True)
class Audited:
    """What is audited.

    Attributes:
        manifest: Whose constants go the whole path to the engine.
        site: Whose rounds are charged and trained.
        plan_hash: Of the study; None where there is none.
    """

    manifest: Manifest
    site: str
    plan_hash: str | None = None


@dataclass(frozen=True)
class Audit:
    """Everything that does not concern real subjects; fields as in `audit.json`."""

    plan_hash: str | None
    claim: Claim
    delta: float
    trials: int
    claimed: float
    lower_bound: float
    lower_bound_gaussian: float
    largest_provable: float
    probes: tuple[Probe, ...]
    inversion: Inversion

    @property
    def caught(self) -> bool:
        """Whether an answer of the engine's cannot be an honest one's, or can hardly be."""
        return not all(probe.passed for probe in self.probes)

    def to_json(self) -> dict[str, Any]:
        """The document of `audit.json`."""
        claim = asdict(self.claim)
        attempts = [
            {"name": each.name, "correlation": each.correlation, "psnr_db": each.psnr_db}
            for each in self.inversion.attempts
        ]
        return {
            "kind": KIND,
            "code_version": __version__,
            "plan_hash": self.plan_hash,
            "mode": "local" if self.claim.honest is None else "distributed",
            **{name: claim[name] for name in ("noise_multiplier", "sampling_rate", "max_grad_norm", "steps", "honest")},
            "claimed_epsilon": self.claimed,
            "delta": self.delta,
            "lower_bound": self.lower_bound,
            "lower_bound_gaussian": self.lower_bound_gaussian,
            "largest_provable": self.largest_provable,
            "confidence": CONFIDENCE,
            "trials": self.trials,
            "false_alarm": probes.ALARM,
            "probes": [asdict(probe) for probe in self.probes],
            "verdict": "CAUGHT" if self.caught else "consistent",
            "inversion": {
                "noise_multiplier": self.inversion.noise_multiplier,
                "labels_alone": self.inversion.labels_alone,
                "attempts": attempts,
            },
        }


def audit_engine(audited: Audited, trials: int, entropy: Entropy, on_part: OnPart) -> Audit:
    """Ask the real engine, and the path that leads a study to it, everything; on made-up subjects only.

    Args:
        audited: What they are said to do.
        trials: Canaries, `FEWEST` to `MOST`.
        entropy: `os.urandom`.
        on_part: Told of progress.

    Raises:
        UsageError: Too few or too many trials, or privacy is off.
    """
    if not FEWEST <= trials <= MOST:
        raise UsageError(f"{trials} canaries", where="--trials", hint=f"choose {FEWEST} to {MOST}")
    claim, delta = claim_of(audited.manifest)
    claimed = epsilon([claim.event], delta)
    game = canaries.play(claim, trials, entropy, lambda done, of: on_part("hiding canaries", done, of))
    asked = [
        *_said(
            on_part,
            "asking the engine",
            [
                lambda: probes.noise(claim, entropy),
                lambda: (probes.one_subject(claim, entropy),),
                lambda: (probes.patches(claim, entropy),),
                lambda: (probes.divisor(claim, entropy),),
            ],
        ),
        *path_probes.path(
            audited.manifest, audited.site, entropy, lambda done, of: on_part("training made-up rounds", done, of)
        ),
        probes.sampling(claim, game),
        *probes.canaries(claim, game),
    ]
    return Audit(
        plan_hash=audited.plan_hash,
        claim=claim,
        delta=delta,
        trials=trials,
        claimed=claimed,
        lower_bound=one_run_bound(game.scores, game.present, delta, CONFIDENCE),
        lower_bound_gaussian=mechanism_bound(game.rates, claim.gaussian, delta, CONFIDENCE),
        largest_provable=largest_provable(trials, delta, CONFIDENCE),
        probes=tuple(asked),
        inversion=demonstrate(
            claim.noise_multiplier, entropy, lambda done, of: on_part("inverting a made-up gradient", done, of)
        ),
    )


def of_folder(folder: Path) -> Audited:
    """The study of a site's state folder, at that site; or of a study's folder, at its first site.

    Raises:
        UsageError: It is neither, or the site has not accepted a study.
    """
    if SiteFolder(folder).enrolled:
        site = SiteFolder.open(folder)
        if (manifest := site.manifest) is None:
            raise UsageError(
                "this site has not accepted a study yet", where=str(folder), hint="fedseg client join --state DIR"
            )
        return Audited(manifest, site.membership.site, manifest.plan_hash)
    if not (folder / "manifest.json").is_file():
        raise UsageError("this folder is neither a site's state nor a study", where=str(folder), hint="check the path")
    manifest = StudyFolder.open(folder).manifest
    return Audited(manifest, manifest.plan.site_names[0], manifest.plan_hash)


def of_plan(document: Document[StudyPlan]) -> Audited:
    """A plan, as a study of it would be.

    Raises:
        PlanError: The plan is impossible.
    """
    manifest = resolve(document, first_model(document.content), study="0" * 32)
    return Audited(manifest, manifest.plan.site_names[0])


def of_usual() -> Audited:
    """Three sites, epsilon 8 and every other constant that shapes privacy as a plan has it that names none."""
    return of_plan(parse_plan(USUAL, "the usual constants"))


def claim_of(manifest: Manifest) -> tuple[Claim, float]:
    """What the engine is said to do in each step of a study, and its delta.

    The audit takes about (sigma / q)^2 steps, 4 to 64: fewer would hide canaries of a high noise multiplier from an
    honest auditor too, and more would take long. The whole study's steps are the accountant's business.

    Raises:
        UsageError: Its privacy is off.
    """
    plan, sigma = manifest.plan, manifest.noise_multiplier
    if sigma is None:
        raise UsageError(
            "privacy is off in this study: it promises nothing that an audit could refute",
            where=f"study {plan.name!r}",
            hint="without --plan and --study, the engine is audited with usual constants",
        )
    share, rate = noise_share(manifest), plan.privacy.sampling_rate
    claim = Claim(
        noise_multiplier=sigma,
        sampling_rate=rate,
        max_grad_norm=plan.privacy.max_grad_norm,
        public_subjects=min(site.public_subjects for site in plan.sites.values()),
        steps=min(_MOST_STEPS, max(4, round((sigma / rate) ** 2))),
        honest=share.honest if share else None,
    )
    return claim, plan.privacy.delta


def membership_test(model: Path, data: Path, labels: str | None, on_part: OnPart) -> Membership:
    """Whether a model's losses tell the units of privacy of the split train from those of the other splits.

    Nothing is written, and nothing but counts and rates is returned.

    Raises:
        ModelError: The model can't be used.
        DataError: The data set can't be used, or has too few subjects in one of the groups.
    """
    network, card = load_network(model)
    dataset, n4 = load_dataset(data, labels=labels, scheme=scheme(card.task)), bool(card.normalisation["n4"])
    groups = [
        list(dataset.units("train").values()),
        [*dataset.units("validation").values(), *dataset.units("test").values()],
    ]
    if min(map(len, groups)) < 2:
        raise DataError(
            "too few subjects for a membership test: at least two that the model was trained on and two that it never "
            "saw are needed",
            where=str(data),
            hint="see the column split of participants.tsv",
        )

    def losses(group: list[tuple[Case, ...]], before: int) -> Iterator[float]:
        for done, cases in enumerate(group, before + 1):
            volumes = [prepare_case(dataset, case, spacing_mm=card.spacing_mm, n4=n4) for case in cases]
            yield subject_loss_of(network, volumes, card.patch)
            on_part("reckoning losses", done, sum(map(len, groups)))

    members = np.array(list(losses(groups[0], 0)))
    others = np.array(list(losses(groups[1], len(groups[0]))))
    return membership(members, others, confidence=CONFIDENCE)


def write_audit(audit: Audit, out: Path) -> None:
    """Write `audit.json` and `inversion.png`; files of an earlier audit there are replaced.

    Raises:
        StorageError: The folder can't be written.
    """
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / REPORT, json.dumps(audit.to_json(), indent=1, allow_nan=False).encode() + b"\n", 0o644)
    write_atomic(out / PICTURE, picture(audit.inversion), 0o644)


def picture(inversion: Inversion) -> bytes:
    """A PNG of the demonstration: one row each for the original and the attempts, three planes side by side."""
    volumes = [inversion.original, *(attempt.image for attempt in inversion.attempts)]
    low, high = np.percentile(inversion.original, [15, 99])
    rows = [_row(np.clip((volume - low) / (high - low), 0, 1)) for volume in volumes]
    width = rows[0].shape[1]
    gap = np.full((_GAP, width), 255, dtype=np.uint8)
    sheet = np.concatenate([part for row in rows for part in (row, gap)][:-1])
    return encode_rgb(np.repeat(sheet[:, :, None], 3, axis=2))


def _row(volume: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """The three middle planes, enlarged, with a white gap between them."""
    x, y, z = (side // 2 for side in volume.shape)
    planes = [np.rot90(plane) for plane in (volume[:, :, z], volume[:, y, :], volume[x, :, :])]
    shades = [np.kron((255 * plane).astype(np.uint8), np.ones((_ZOOM, _ZOOM), np.uint8)) for plane in planes]
    gap = np.full((shades[0].shape[0], _GAP), 255, dtype=np.uint8)
    return np.concatenate([shades[0], gap, shades[1], gap, shades[2]], axis=1)


def _said(on_part: OnPart, what: str, questions: list[Callable[[], tuple[Probe, ...]]]) -> Iterator[Probe]:
    for done, ask in enumerate(questions, 1):
        yield from ask()
        on_part(what, done, len(questions))
