"""The manifest: a resolved plan, with its defaults filled in, its noise calibrated and its first weights hashed.

The SHA-256 of its canonical JSON is the *plan hash* that every site shows, checks and agrees to.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from fedseg.document import Section
from fedseg.errors import PlanError
from fedseg.plan.sections import Digest, PositiveFloat, PositiveInt, Printable
from fedseg.plan.study import StudyPlan


class Init(Section):
    """The model file that round 1 starts from, where it isn't made from the plan's seed.

    Attributes:
        model_hash: Of its weights.
        trained_on: What it was trained on, in the words of the file: whether anyone's privacy is at stake in it.
        protection: What protects whom it was trained on: they are `public`, or made up; an epsilon bounds it
            (`privacy`); or nothing does, or the file says nothing of it (`none`).
    """

    model_hash: Digest
    protection: Literal["public", "privacy", "none"] = "none"
    trained_on: Annotated[str, Field(min_length=1, max_length=2000), Printable]


class Spent(Section):
    """Rounds of one mechanism that earlier versions of the plan may have cost each subject."""

    noise_multiplier: PositiveFloat
    sampling_rate: Annotated[float, Field(gt=0, le=1)]
    steps: PositiveInt
    sensitivity: Annotated[float, Field(ge=0)] = 0.0
    dimension: Annotated[int, Field(ge=0)] = 0


class Parent(Section):
    """The version of the plan that this one extends.

    Attributes:
        plan_hash: Its hash.
        last_round: The newest round that was begun under it, closed or not.
        spent: What it and its own parents cost each subject at most.
    """

    plan_hash: Digest
    last_round: Annotated[int, Field(ge=0)]
    spent: tuple[Spent, ...]


class Manifest(Section):
    """A resolved plan: nothing is left to a default, and nothing in it changes during a study.

    Attributes:
        study: Random identifier of the study (32 hex digits).
        plan: The plan, defaults filled in.
        quorum: The fewest contributors of a round.
        noise_multiplier: Calibrated from budget, rate, steps and rounds (reserve included); None without privacy.
        architecture: What rebuilds the network, as the model file says it.
        parameters: Number of the network's parameters, P.
        trained: Ranges [start, stop) of those that train, in the flat vector; ascending, with gaps between them.
        initial_model: SHA-256 of the state that round 1 starts from.
        init: Where its weights come from; None: from the plan's seed.
        parent: The version that this one extends; None for a first version.
        code_version: The version that resolved the plan.
    """

    schema_version: Literal[1] = 1
    study: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    plan: StudyPlan
    quorum: PositiveInt
    noise_multiplier: PositiveFloat | None
    architecture: dict[str, str | int | list[int]]
    parameters: Annotated[int, Field(ge=1, le=2**28)]
    trained: Annotated[tuple[tuple[int, int], ...], Field(min_length=1, max_length=10_000)]
    initial_model: Digest
    init: Init | None = None
    parent: Parent | None = None
    code_version: str

    @model_validator(mode="after")
    def _ranges(self) -> Manifest:
        last = -1
        for start, stop in self.trained:
            if not last < start < stop <= self.parameters:
                raise ValueError("trained: ranges must ascend, with gaps between them, within the parameters")
            last = stop
        return self

    @property
    def unprotected_start(self) -> bool:
        """Whether private training starts from a model that no epsilon bounds."""
        return self.plan.private and self.init is not None and self.init.protection == "none"

    @property
    def dimension(self) -> int:
        """Number of parameters that train, d: what an update holds."""
        return sum(stop - start for start, stop in self.trained)

    def to_json(self) -> bytes:
        """Canonical JSON: sorted keys, no white space, UTF-8."""
        data = self.model_dump(mode="json")
        return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()

    @property
    def plan_hash(self) -> str:
        """SHA-256 of the canonical JSON, in hex: what sites agree to."""
        return hashlib.sha256(self.to_json()).hexdigest()

    @classmethod
    def from_json(cls, data: bytes) -> Manifest:
        """Read a manifest that arrived from elsewhere.

        Raises:
            PlanError: if it is not canonical, or not a manifest of this version.
        """
        try:
            manifest = cls.model_validate_json(data)
        except ValidationError as failure:
            first = failure.errors()[0]
            # The names of fields are the server's words: nothing in them may move a cursor.
            at = ascii(".".join(str(part) for part in first["loc"]))[1:-1][:100]
            raise PlanError(
                f"the study's manifest cannot be read: {at}: {first['msg'][:200]}", hint="use the coordinator's version"
            ) from None
        if manifest.to_json() != data:
            raise PlanError("the study's manifest is not in canonical form")
        return manifest
