"""The `audit.json` of `fedseg privacy-audit` (`runtime.privacy_audit`) as a privacy report shows it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationError

from fedseg.document import Section
from fedseg.errors import DataError, UsageError
from fedseg.plan.manifest import Manifest
from fedseg.plan.sections import Digest
from fedseg.report.audit_facts import Audit, Inversion, Probe
from fedseg.runtime.session import noise_share
from fedseg.store.files import storage_errors

_MOST_BYTES = 1 << 20
_AGAIN = "audit this study: fedseg privacy-audit --study DIR"


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("only printable characters, on one line")
    return text


_Text = Annotated[str, Field(max_length=1000), AfterValidator(_printable)]
_AtLeast0 = Annotated[float, Field(ge=0)]


class _ProbeEntry(Section):
    name: _Text
    passed: bool
    detail: _Text


class _Attempt(Section):
    name: _Text
    correlation: float
    psnr_db: float


class _Demonstration(Section):
    noise_multiplier: _AtLeast0
    labels_alone: float
    attempts: Annotated[tuple[_Attempt, ...], Field(max_length=100)]


class _File(Section):
    kind: Literal["fedseg privacy audit 1"]
    code_version: _Text
    plan_hash: Digest | None
    mode: Literal["local", "distributed"]
    noise_multiplier: _AtLeast0
    sampling_rate: _AtLeast0
    max_grad_norm: _AtLeast0
    steps: Annotated[int, Field(ge=1)]
    honest: Annotated[int, Field(ge=1)] | None
    claimed_epsilon: _AtLeast0
    delta: _AtLeast0
    lower_bound: _AtLeast0
    lower_bound_gaussian: _AtLeast0
    largest_provable: _AtLeast0
    confidence: _AtLeast0
    trials: Annotated[int, Field(ge=1)]
    false_alarm: _AtLeast0
    probes: Annotated[tuple[_ProbeEntry, ...], Field(min_length=1, max_length=1000)]
    verdict: Literal["consistent", "CAUGHT"]
    inversion: _Demonstration


def load_audit(path: Path, manifest: Manifest) -> Audit:
    """Read an audit and check that it is of this study, or of a plan that is no study but has its mechanism.

    Raises:
        StorageError: The file cannot be read.
        DataError: It is no audit.
        UsageError: It is of another study, of another version of its plan, or of another mechanism.
    """
    with storage_errors(path), path.open("rb") as file:
        data = file.read(_MOST_BYTES)
    try:
        found = _File.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        field = ascii(".".join(str(part) for part in first["loc"]))[1:-1][:100]
        raise DataError(
            f"this is no audit of fedseg's: {field or 'the document'}: {first['msg'][:200]}",
            where=str(path),
            hint="name the audit.json that fedseg privacy-audit wrote",
        ) from None
    if found.plan_hash not in (None, manifest.plan_hash):
        raise UsageError(
            f"this audit is of another study, or of another version of its plan: of {str(found.plan_hash)[:16]}..., "
            f"not {manifest.plan_hash[:16]}...",
            where=str(path),
            hint=_AGAIN,
        )
    _check_same(found, manifest, str(path))
    return _as_facts(found)


def _check_same(found: _File, manifest: Manifest, where: str) -> None:
    plan, share = manifest.plan, noise_share(manifest)
    compared = {
        "mode": (found.mode, plan.privacy.mode),
        "noise multiplier": (found.noise_multiplier, manifest.noise_multiplier),
        "sampling rate": (found.sampling_rate, plan.privacy.sampling_rate),
        "clip": (found.max_grad_norm, plan.privacy.max_grad_norm),
        "number of honest others": (found.honest, share.honest if share else None),
    }
    for name, (theirs, ours) in compared.items():
        if theirs != ours:
            raise UsageError(
                f"this audit is of another mechanism: its {name} is {_shown(theirs)}, the study's is {_shown(ours)}",
                where=where,
                hint=_AGAIN,
            )


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _as_facts(found: _File) -> Audit:
    return Audit(
        statement=(
            "The real engine with this study's noise, rate and clip, asked about made-up subjects. Passing proves no "
            "privacy: no audit can refute a claim that is above the most that it could have proven."
        ),
        given=True,
        code_version=found.code_version,
        passed=found.verdict == "consistent" and all(probe.passed for probe in found.probes),
        claimed_epsilon=found.claimed_epsilon,
        lower_bound=found.lower_bound,
        lower_bound_gaussian=found.lower_bound_gaussian,
        largest_provable=found.largest_provable,
        confidence=found.confidence,
        trials=found.trials,
        steps=found.steps,
        probes=tuple(Probe(each.name, each.passed, each.detail) for each in found.probes),
        inversion=tuple(Inversion(each.name, each.correlation, each.psnr_db) for each in found.inversion.attempts),
    )
