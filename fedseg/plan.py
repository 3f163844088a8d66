"""The study plan: what all parties agree on, typed and frozen. A plan is data, never code.

A coordinator writes a `StudyPlan` as YAML. `fedseg study create` resolves it to a `Manifest` (defaults filled in,
noise multiplier calibrated, initial weights hashed); the SHA-256 of the manifest's canonical JSON is the *plan hash*
that every site shows, checks and agrees to.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple, get_args

from pydantic import AfterValidator, Field, ValidationError, model_validator

from fedseg import document
from fedseg.document import Document, Section
from fedseg.errors import PlanError

MAX_SITES = 100
MAX_STEPS = 200_000
MAX_PATCH_VOXELS = 2**28
DAY_S = 86_400.0
DOWNSAMPLING = {"small": 8, "base": 16, "lean": 16}
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


class StudyPlan(Section):
    """A study plan as its coordinator writes it."""

    name: Annotated[str, Field(min_length=1, max_length=100), Printable]
    task: Literal["feta", "brain_mask"] = "feta"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    image: Image = Image()
    network: Network = Network()
    training: Training = Training()
    privacy: Privacy
    aggregation: Aggregation = Aggregation()
    evaluation: Evaluation = Evaluation()
    strategy: Strategy = Strategy()
    schedule: Schedule
    sites: Annotated[dict[SiteName, Site], Field(min_length=1, max_length=MAX_SITES)]

    @model_validator(mode="after")
    def _possible(self) -> StudyPlan:
        factor = DOWNSAMPLING[self.network.preset]
        if any(side % factor for side in self.image.patch):
            raise ValueError(
                f"image.patch: each side must be a multiple of {factor} for the {self.network.preset} network, "
                f"not {list(self.image.patch)}"
            )
        if self.training.steps * (self.schedule.rounds + self.privacy.reserve_rounds) > MAX_STEPS:
            raise ValueError(f"training.steps: more than {MAX_STEPS} steps in all rounds together")
        batch = self.training.subjects_per_step * self.training.patches_per_subject
        if math.prod(self.image.patch) * batch > MAX_PATCH_VOXELS:
            raise ValueError("image.patch: patches_per_subject and subjects_per_step make too large a batch of it")
        if self.training.made_up and self.task != "feta":
            raise ValueError("training.made_up: images are made up from tissues, which the task brain_mask has none of")
        if self.aggregation.quorum is not None and self.aggregation.quorum > len(self.sites):
            raise ValueError(
                f"aggregation.quorum: {self.aggregation.quorum} of {len(self.sites)} sites can never be reached"
            )
        if self.private:
            _check_private(self)
        _check_rule(self)
        if self.distributed:
            _check_distributed(self)
        _check_strategy(self)
        return self

    @property
    def distributed(self) -> bool:
        """Whether every site adds a share of one noise."""
        return self.privacy.mode == "distributed"

    @property
    def private(self) -> bool:
        """Whether sites train with differential privacy."""
        return self.privacy.mode != "off"

    @property
    def site_names(self) -> tuple[str, ...]:
        """All sites, sorted: the order that secure aggregation numbers them in."""
        return tuple(sorted(self.sites))


def most_liars(rule: Rule, contributors: int) -> int:
    """The most lying sites that a rule over so many contributors is built for; below 1 where it is built for none.

    Fewer than half of the contributors for `median` and `trimmed_mean` (Yin et al. 2018); (contributors - 3) / 2 for
    `multi_krum` (Blanchard et al. 2017: n >= 2 f + 3); none for `mean`.
    """
    if rule == "mean":
        return 0
    return (contributors - (3 if rule == "multi_krum" else 1)) // 2


def _check_private(plan: StudyPlan) -> None:
    if any(site.weight != 1 for site in plan.sites.values()):
        raise ValueError("sites: every weight is 1 in a private study")
    if plan.aggregation.rollback is not None:
        raise ValueError(
            "aggregation.rollback: a private study has no validation scores: they would have to be noised and "
            "charged to every hospital's ledger, which is not offered; remove the line"
        )
    if plan.evaluation.federated:
        raise ValueError(
            "evaluation.federated: a private study publishes no scores: they would have to be noised and charged "
            "to every hospital's ledger, which is not offered; remove the line, and have each site score the model "
            "on its own subjects with fedseg evaluate"
        )


def _check_distributed(plan: StudyPlan) -> None:
    training, aggregation = plan.training, plan.aggregation
    wrong = {
        "training.steps": (training.steps != 1, "each round is one pooled step: set training.steps to 1"),
        "training.optimiser": (
            training.optimiser != "sgd",
            "the pooled gradient moves the model by SGD, at the server and at every site alike: set it to sgd",
        ),
        "training.weight_decay": (training.weight_decay > 0, "the pooled step takes none: remove the line"),
        "aggregation.mode": (
            aggregation.mode != "secure",
            "one site's share of the noise protects nobody by itself: set it to secure",
        ),
    }
    for key, (refused, why) in wrong.items():
        if refused:
            raise ValueError(f"{key}: privacy.mode is distributed: {why}")


def _check_rule(plan: StudyPlan) -> None:
    aggregation = plan.aggregation
    rule, liars, takes_liars = aggregation.rule, aggregation.liars, aggregation.rule in ("trimmed_mean", "multi_krum")
    if liars is not None and not takes_liars:
        raise ValueError(f"aggregation.liars: {rule} takes no number of liars; trimmed_mean and multi_krum do")
    if rule == "mean":
        return
    if aggregation.mode == "secure":
        raise ValueError(
            f"aggregation.rule: the server would need every site's own update for {rule}, and secure aggregation keeps "
            "it from that; use mean, or mode: plain where every site's policy allows it"
        )
    if len({site.weight for site in plan.sites.values()}) > 1:
        raise ValueError(f"aggregation.rule: {rule} counts every site alike: give all sites one weight")
    _check_liars(rule, liars, aggregation.quorum or len(plan.sites), needed=takes_liars)


def _check_liars(rule: Rule, liars: int | None, quorum: int, *, needed: bool) -> None:
    most = most_liars(rule, quorum)
    if most < 1:
        least = 5 if rule == "multi_krum" else 3
        raise ValueError(f"aggregation.rule: {rule} needs a quorum of {least} or more, this plan's is {quorum}")
    if needed and liars is None:
        raise ValueError(f"aggregation.rule: {rule} needs aggregation.liars, how many sites may lie: 1 to {most} here")
    if liars is not None and liars > most:
        raise ValueError(f"aggregation.liars: {rule} over a quorum of {quorum} withstands at most {most}, not {liars}")


class _Refusal(NamedTuple):
    """What strategies cannot do, the key of the plan that asks for it, and why."""

    names: tuple[StrategyName, ...]
    key: str
    asked: Callable[[StudyPlan], bool]
    why: str


_OPTIMISERS: tuple[StrategyName, ...] = ("fedavgm", "fedadam", "fedyogi")
_SGD = "the correction is the mean gradient of a round, which only plain SGD steps leave in the update: set "
_REFUSALS = (
    _Refusal(
        ("fedprox", "scaffold", "fedbn", "ditto"),
        "strategy.name",
        lambda plan: plan.distributed,
        "privacy.mode is distributed: each round is one pooled step, and no site trains a model that could drift or "
        "stay; use fedavg, fedavgm, fedadam or fedyogi",
    ),
    _Refusal(
        ("ditto",),
        "strategy.name",
        lambda plan: plan.private,
        "a personal model is trained on patients outside the steps that the privacy ledger charges; use fedbn, whose "
        "local part comes of the charged steps",
    ),
    _Refusal(
        ("fedprox",),
        "training.steps",
        lambda plan: plan.training.steps == 1,
        "with one step a round a site never leaves the model that it is pulled to: take more steps, or fedavg",
    ),
    _Refusal(
        _OPTIMISERS,
        "training.momentum",
        lambda plan: plan.distributed and plan.training.momentum > 0,
        "the server's optimiser has a momentum of its own, strategy.server_momentum: set it to 0",
    ),
    _Refusal(("scaffold",), "training.optimiser", lambda plan: plan.training.optimiser != "sgd", f"{_SGD}it to sgd"),
    _Refusal(("scaffold",), "training.momentum", lambda plan: plan.training.momentum > 0, f"{_SGD}it to 0"),
    _Refusal(
        ("scaffold",),
        "aggregation.rule",
        lambda plan: plan.aggregation.rule != "mean",
        "the correction follows from the mean of all updates, and a rule that leaves some out gives another number",
    ),
    _Refusal(
        ("scaffold",),
        "aggregation.quorum",
        lambda plan: _fewest(plan) != len(plan.sites),
        "the corrections add up to nothing only while every site knows whether its update was in the sum, which one "
        "that was lost cannot know: set it to the number of sites",
    ),
    _Refusal(
        ("scaffold", "fedbn"),
        "aggregation.rollback",
        lambda plan: plan.aggregation.rollback is not None,
        "what stays at the sites would not go back with the model: remove the line",
    ),
    _Refusal(
        ("fedbn",),
        "training.layers",
        lambda plan: plan.training.layers == "head",
        "the head has no normalisation that could stay at a site: use fedavg, or other layers",
    ),
)


def _fewest(plan: StudyPlan) -> int | None:
    """The quorum where the plan alone decides it."""
    return plan.aggregation.quorum or (len(plan.sites) if plan.aggregation.mode == "plain" else None)


def _check_strategy(plan: StudyPlan) -> None:
    chosen = plan.strategy
    _check_parameters(chosen)
    for refusal in _REFUSALS:
        if chosen.name in refusal.names and refusal.asked(plan):
            raise ValueError(f"{refusal.key}: strategy {chosen.name}: {refusal.why}")


def _check_parameters(chosen: Strategy) -> None:
    own = STRATEGY_DEFAULTS.get(chosen.name, {})
    for name in list(Strategy.model_fields)[1:]:
        given = getattr(chosen, name) is not None
        if given and name not in own:
            having = [other for other in get_args(StrategyName) if name in STRATEGY_DEFAULTS.get(other, {})]
            raise ValueError(f"strategy.{name}: {chosen.name} has none; {' and '.join(having)} do")
        if not given and name in own:
            raise ValueError(f"strategy.{name}: {chosen.name} needs a number; {own[name]:g} is usual")


class Init(Section):
    """The model file that round 1 starts from, where it isn't made from the plan's seed.

    Attributes:
        model_hash: Of its weights.
        trained_on: What it was trained on, in the words of the file: whether anyone's privacy is at stake in it.
    """

    model_hash: Digest
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


def parse_plan(text: str, name: str) -> Document[StudyPlan]:
    """Read a plan from YAML 1.2.

    Args:
        text: The document.
        name: What errors call the file.

    Raises:
        PlanError: with file, line, what is allowed and the nearest match.
    """
    return document.parse(text, StudyPlan, name=name, error=PlanError)
