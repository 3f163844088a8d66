"""What one round of private training costs, written down before it starts.

Epsilon is never stored: it is derived from these charges (`accounting`), which it sees as `Event`s.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import NamedTuple

from fedseg.errors import LedgerError

_SUBJECT_KEY = re.compile(r"[0-9a-f]{64}")
_COUNTS = {"round": 0, "attempt": 0, "steps": 1, "public_subjects": 1}
_NAMES = ("study", "plan_hash", "site", "model_hash", "code_version")
_MECHANISMS = ("gaussian", "skellam")
_MOST_SENSITIVE = 2.0**53


@dataclass(frozen=True)
class SkellamNoise:
    """What the noise of one step's pooled integer sum hides.

    Args:
        sensitivity: D2 = S C, the L2 norm of one subject's integer vector at most. Above 0, at most 2^53.
        dimension: d, coordinates of that vector, at least 1.

    Raises:
        LedgerError: One of them is out of range.
    """

    sensitivity: float
    dimension: int

    def __post_init__(self) -> None:
        """Refuse what hides nothing."""
        _check_positive("sensitivity", self.sensitivity)
        if self.sensitivity > _MOST_SENSITIVE:
            raise LedgerError(f"a charge's sensitivity must be at most 2^53, not {self.sensitivity:g}")
        _check_count("dimension", self.dimension, 1)

    @property
    def l1(self) -> float:
        """D1: no vector of d integers with an L2 norm of at most D2 has a larger L1 norm.

        sqrt(d) D2 by Cauchy-Schwarz, and D2^2 because |x| <= x^2 for an integer.
        """
        return min(math.sqrt(self.dimension) * self.sensitivity, self.sensitivity**2)


class Event(NamedTuple):
    """Some equal steps, all that an accountant needs to know of them.

    Attributes:
        noise_multiplier: sigma. Gaussian: the noise's standard deviation over the clip C. Skellam: its variance is
            mu = sigma^2 D2^2, counting what the honest others add and nothing else.
        sampling_rate: q, the Poisson rate of each step.
        steps: How many.
        skellam: None for Gaussian noise.
    """

    noise_multiplier: float
    sampling_rate: float
    steps: int
    skellam: SkellamNoise | None = None


@dataclass(frozen=True)
class RoundCharge:
    """One attempt at one round: `steps` Poisson-subsampled mechanisms on each subject of the sampling frame.

    Args:
        study: Identifier of the study.
        plan_hash: SHA-256 of the resolved plan.
        site: The site's name in the study.
        round: Round number, from 0 or 1 as the study counts.
        attempt: Which attempt at that round; computing again is a new attempt and a new charge.
        model_hash: SHA-256 of the model that the round starts from.
        code_version: The version of fedseg that trains it.
        noise_multiplier: sigma, as in `Event`. Above 0.
        sampling_rate: q, the Poisson rate of each step, in (0, 1].
        steps: Steps of the round, T.
        public_subjects: N0, the plan's public constant for this site (not the true number).
        max_grad_norm: C, the L2 bound of one subject's gradient.
        subjects: Keyed hashes (64 hex digits) of every subject in the sampling frame, drawn or not; kept sorted.
        unit: What one row of the guarantee is; only `subject` is known.
        mechanism: `gaussian` or `skellam`; an unknown one is refused rather than composed wrongly.
        sensitivity: D2 of `SkellamNoise`; 0 for `gaussian`.
        dimension: d of `SkellamNoise`; 0 for `gaussian`.

    Raises:
        LedgerError: A value is of the wrong type or outside its range, or a subject is listed twice.
    """

    study: str
    plan_hash: str
    site: str
    round: int
    attempt: int
    model_hash: str
    code_version: str
    noise_multiplier: float
    sampling_rate: float
    steps: int
    public_subjects: int
    max_grad_norm: float
    unit: str = "subject"
    mechanism: str = "gaussian"
    sensitivity: float = 0.0
    dimension: int = 0
    subjects: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what could not be composed; sort the subjects."""
        for name in _NAMES:
            _check_name(name, getattr(self, name))
        for name, least in _COUNTS.items():
            _check_count(name, getattr(self, name), least)
        for name in ("noise_multiplier", "sampling_rate", "max_grad_norm"):
            _check_positive(name, getattr(self, name))
        if self.sampling_rate > 1:
            raise LedgerError(f"a charge's sampling_rate must be at most 1, not {self.sampling_rate}")
        _check_mechanism(self)
        object.__setattr__(self, "subjects", _checked_subjects(self.subjects))

    @property
    def key(self) -> tuple[str, int, int]:
        """What may be charged once only: study, round and attempt."""
        return self.study, self.round, self.attempt

    @property
    def event(self) -> Event:
        """The charge as an accountant sees it."""
        noise = SkellamNoise(float(self.sensitivity), self.dimension) if self.mechanism == "skellam" else None
        return Event(float(self.noise_multiplier), float(self.sampling_rate), self.steps, noise)

    def to_json(self) -> dict[str, object]:
        """Plain JSON values, one for each field."""
        values: dict[str, object] = {item.name: getattr(self, item.name) for item in fields(self)}
        values["subjects"] = list(self.subjects)
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> RoundCharge:
        """The charge that `to_json` wrote.

        Raises:
            LedgerError: A field is missing, unknown or of the wrong type.
        """
        names = {item.name for item in fields(cls)}
        if missing := sorted(names - set(values)):
            raise LedgerError(f"a charge lacks {', '.join(missing)}")
        if unknown := sorted(set(values) - names):
            raise LedgerError(f"a charge has unknown fields: {', '.join(unknown)}")
        if not isinstance(values["subjects"], list):
            raise LedgerError("a charge's subjects must be a list")
        return cls(**{**values, "subjects": tuple(values["subjects"])})  # type: ignore[arg-type]  # __post_init__ checks


def _check_mechanism(charge: RoundCharge) -> None:
    if charge.unit != "subject" or charge.mechanism not in _MECHANISMS:
        raise LedgerError(
            f"a charge of unit {charge.unit!r} and mechanism {charge.mechanism!r} cannot be composed here"
        )
    if charge.mechanism == "skellam":
        SkellamNoise(charge.sensitivity, charge.dimension)
    elif (charge.sensitivity, charge.dimension) != (0, 0):
        raise LedgerError("a charge of mechanism 'gaussian' has no sensitivity and no dimension: both must be 0")


def _check_name(name: str, value: object) -> None:
    if not isinstance(value, str) or not value or len(value) > 256:
        raise LedgerError(f"a charge's {name} must be a text of 1 to 256 characters, not {value!r}")


def _check_count(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise LedgerError(f"a charge's {name} must be a whole number of at least {least}, not {value!r}")


def _check_positive(name: str, value: object) -> None:
    real = isinstance(value, int | float) and not isinstance(value, bool)
    if not (real and math.isfinite(value) and value > 0):  # type: ignore[arg-type,operator]  # checked by `real`
        raise LedgerError(f"a charge's {name} must be a finite number above 0, not {value!r}")


def _checked_subjects(subjects: tuple[str, ...]) -> tuple[str, ...]:
    for subject in subjects:
        if not isinstance(subject, str) or not _SUBJECT_KEY.fullmatch(subject):
            raise LedgerError("a charge names its subjects by keyed hashes of 64 hex digits, never by their own names")
    if not subjects:
        raise LedgerError("a charge must name every subject in the sampling frame; it names none")
    if len(set(subjects)) != len(subjects):
        raise LedgerError("a charge names one subject twice")
    return tuple(sorted(subjects))
