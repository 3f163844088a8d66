"""The sections of a study plan: what each key means, its range, and what it is where the plan leaves it out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from fedseg.document import Section

MAX_SITES = 100
DAY_S = 86_400.0
SITE_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")


def _site_name(name: str) -> str:
    if not SITE_NAME.fullmatch(name):
        raise ValueError(f"a site's name is 1 to 32 of a-z, 0-9 and '-', not {name!r}")
    return name


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("only printable characters, on one line")
    return text


SiteName = Annotated[str, AfterValidator(_site_name)]
Printable = AfterValidator(_printable)
PositiveInt = Annotated[int, Field(ge=1)]
Side = Annotated[int, Field(ge=8, le=256)]
Spacing = Annotated[float, Field(ge=0.3, le=4.0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Rule = Literal["mean", "median", "trimmed_mean", "multi_krum"]
Layers = Literal["all", "decoder", "head", "norms"]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
RATES = {"off": 0.5, "local": 0.5, "distributed": 1.0}
StrategyName = Literal["fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "scaffold", "fedbn", "ditto"]
_ADAPTIVE = {"server_rate": 0.01, "server_momentum": 0.9, "beta2": 0.99, "tau": 1e-3}
STRATEGY_DEFAULTS: Mapping[str, Mapping[str, float]] = {
    "fedprox": {"proximal": 0.01},
    "fedavgm": {"server_rate": 1.0, "server_momentum": 0.9},
    "fedadam": _ADAPTIVE,
    "fedyogi": _ADAPTIVE,
    "ditto": {"proximal": 0.1},
}
"""The parameters of each strategy, with what they are where the plan leaves them out; the others have none."""


class Image(Section):
    """How scans are brought to the network.

    Attributes:
        spacing_mm: Voxel size of the network's grid; 0.5 is that of most of FeTA's scans.
        patch: Voxels that a training step sees at once.
        n4: Whether slow changes of brightness across a scan are taken out first (N4, Tustison et al. 2010).
    """

    spacing_mm: Spacing = 0.8
    patch: tuple[Side, Side, Side] = (96, 96, 96)
    n4: bool = False


class Network(Section):
    """The network's preset: `small` (channels 8 to 64), `base` (16 to 256, 4.8M parameters), or `lean`.

    `lean` is `base` without the convolutions at full resolution: a training step takes half the time.
    """

    preset: Literal["small", "base", "lean"] = "lean"


class Training(Section):
    """What a site does in one round.

    Attributes:
        steps: Optimiser steps a round (T of the privacy accounting).
        patches_per_subject: K, patches of one subject in one forward and backward pass.
        subjects_per_step: Subjects in a step where privacy is off; private steps draw theirs by Poisson sampling.
        precision: `auto` is bf16 where the processor computes it natively, else float32.
        threads: CPU threads a site may use; unset: all that it is given.
        augment: How much patches are varied (`training.augmentation`).
        made_up: The chance that a subject's patches are cut from an image made up from its label map, with a contrast,
            shape and resolution of its own (`imaging.generation`).
        layers: Which layers train; the others stay as the first model has them (`training.network`).
        average: Decay of a moving average of the weights over rounds, which is then what the study releases; unset:
            the last model is.
    """

    steps: Annotated[int, Field(ge=1, le=10_000)] = 10
    patches_per_subject: Annotated[int, Field(ge=1, le=64)] = 2
    subjects_per_step: Annotated[int, Field(ge=1, le=64)] = 1
    optimiser: Literal["adam", "sgd"] = "adam"
    learning_rate: PositiveFloat = 1e-3
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    precision: Literal["auto", "float32", "bf16"] = "auto"
    threads: Annotated[int, Field(ge=1, le=256)] | None = None
    augment: Literal["none", "light", "strong"] = "light"
    made_up: Annotated[float, Field(ge=0, lt=1)] = 0.0
    layers: Layers = "all"
    average: Annotated[float, Field(gt=0, lt=1)] | None = None


class Privacy(Section):
    """Subject-level differential privacy, or its absence.

    Attributes:
        mode: `off`; `local` (each site's noise protects its own subjects against everyone); or `distributed` (each
            round is one pooled step, to whose noise every site adds a share: less noise, and trust in the other sites).
        epsilon: The study's budget for each subject.
        delta: At most min(1e-3, 1 / (10 public_subjects)) at every site.
        max_grad_norm: C, the bound on one subject's gradient.
        sampling_rate: q, the chance that a subject is drawn for a step; unset: 0.5, in distributed mode 1.
        reserve_rounds: Rounds beyond the schedule that the noise is calibrated for, so that a crash ends no study.
    """

    mode: Literal["off", "local", "distributed"]
    epsilon: PositiveFloat | None = None
    delta: Annotated[float, Field(gt=0, le=1e-3)] = 1e-5
    max_grad_norm: PositiveFloat = 1.0
    sampling_rate: Annotated[float, Field(gt=0, le=1)] = 0.5
    reserve_rounds: Annotated[int, Field(ge=0, le=1000)] = 0

    @model_validator(mode="before")
    @classmethod
    def _usual_rate(cls, given: Any) -> Any:
        if isinstance(given, dict) and "sampling_rate" not in given:
            return {**given, "sampling_rate": RATES.get(given.get("mode", ""), 0.5)}
        return given

    @model_validator(mode="after")
    def _budget(self) -> Privacy:
        if self.mode != "off" and self.epsilon is None:
            raise ValueError(f"mode {self.mode} needs a budget: set epsilon (8 is a common choice)")
        if self.mode == "off" and self.epsilon is not None:
            raise ValueError("epsilon is set but mode is off: no budget would be kept; remove epsilon or use local")
        return self


class Rollback(Section):
    """When to go back to the best model: a liar, or a learning rate, has ruined the newer ones.

    Attributes:
        drop: How far the mean validation Dice (0 to 1) of a model may lie below that of the best so far.
    """

    drop: Annotated[float, Field(gt=0, lt=1)]


class Aggregation(Section):
    """How updates are joined.

    Attributes:
        mode: `secure` (the server sees only sums) or `plain` (the server sees every update).
        rule: `mean`, or a rule that holds when some sites lie (`federation.robust`), which only plain mode can have.
        liars: f, the number of lying sites that `trimmed_mean` and `multi_krum` are built for; they need it.
        rollback: Securely summed validation Dice, and a way back to the best model; unset: no score is computed.
        quorum: The fewest contributors of a round; unset: the least that secure aggregation allows, or in plain mode
            all sites.
        collusion: c, how many sites may collude with the server; unset: ceil(n/3) - 1.
        ring: Bits of the ring that updates are summed in.
        clip: L2 bound of one site's update; a longer one is shortened to it.
        accept_two_contributors: A sentence that says why two contributors, who can each read the other's update,
            are acceptable; without it a quorum of two is refused.
    """

    mode: Literal["secure", "plain"] = "secure"
    rule: Rule = "mean"
    liars: PositiveInt | None = None
    rollback: Rollback | None = None
    quorum: PositiveInt | None = None
    collusion: Annotated[int, Field(ge=0)] | None = None
    ring: Literal[32] = 32
    clip: PositiveFloat = 64.0
    accept_two_contributors: Annotated[str, Field(min_length=20, max_length=1000), Printable] | None = None


class Evaluation(Section):
    """Whether the study says by itself how good its model is.

    Attributes:
        federated: After the last round each site scores the model on its own kept-back subjects (the split `test`), and
            the sums over all sites are published, with one more session of the aggregation that the rounds had.
    """

    federated: bool = False


class Strategy(Section):
    """How a round's mean moves the study, and what of a site's training stays there (`federation.strategy`).

    Attributes:
        name: `fedavg`; `fedprox` (McMahan et al. 2017 and Li et al. 2020); `fedavgm`, `fedadam`, `fedyogi` (an
            optimiser takes the mean update: Hsu et al. 2019, Reddi et al. 2021); `scaffold` (sites correct their drift:
            Karimireddy et al. 2020); `fedbn` (scale and shift of normalisation stay at each site: Li et al. 2021); or
            `ditto` (each site also trains a model of its own: Li et al. 2021).
        proximal: Pull towards the round's first model: mu of FedProx, lambda of Ditto.
        server_rate: Learning rate of the server's optimiser.
        server_momentum: Its momentum, beta 1.
        beta2: Decay of its squared updates.
        tau: What is added to their root: the larger, the less a step adapts to each weight.
    """

    name: StrategyName = "fedavg"
    proximal: Annotated[float, Field(gt=0, le=100)] | None = None
    server_rate: Annotated[float, Field(gt=0, le=100)] | None = None
    server_momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    beta2: Annotated[float, Field(ge=0, lt=1)] | None = None
    tau: Annotated[float, Field(gt=0, le=100)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _usual(cls, given: Any) -> Any:
        if isinstance(given, dict):
            return {**STRATEGY_DEFAULTS.get(str(given.get("name", "fedavg")), {}), **given}
        return given


class Schedule(Section):
    """When rounds begin and end.

    Attributes:
        rounds: Rounds of the study.
        deadline_s: Seconds that a phase of a round waits for a site that is at work.
        absent_after_s: Seconds without a sign of life after which a site counts as absent.
    """

    rounds: Annotated[int, Field(ge=1, le=10_000)]
    deadline_s: Annotated[float, Field(ge=1, le=30 * DAY_S)] = 1800.0
    absent_after_s: Annotated[float, Field(ge=1, le=DAY_S)] = 30.0


class Site(Section):
    """One hospital in the plan: public constants, never counts of its real subjects.

    Attributes:
        weight: Its constant weight in the mean; 1 in private studies.
        public_subjects: N0, a public, rounded number of subjects; the divisor of private steps.
    """

    weight: Annotated[int, Field(ge=1, le=1000)] = 1
    public_subjects: PositiveInt = 10
