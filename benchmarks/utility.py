"""What does privacy cost? Dice on kept-back subjects by epsilon: local and distributed, from scratch and pretrained.

Two federations. `made-up`: 8 sites of 60 made-up subjects (and 15 kept back at each), another scanner at each site, at
4 mm. `real`: the three atlas sites below --data at 1.6 mm, weeks 24, 28, 33 and 37 kept back; atlas averages are not
patients, so their Dice is optimistic and an epsilon over them protects nobody. Both start from the plan's seed or from
`fedseg pretrain` on made-up brains alone, which are other brains than the federation's but of the same making: there
the step from made-up to real is missing, and only `real` shows it.

Trainers, clip, noise, calibration and the server's step are those of a study; the masks of secure aggregation, which
change no sum, and the ledgers are left out. `usual` is non-private training as one would do it (FedAvg with Adam),
`quiet` the distributed steps with as good as no noise, `untrained` the start itself. Learning rates, momentum and
average were chosen on the made-up federation, layers and number of steps of the real one on the atlases, which are
public, and by looking at kept-back subjects: Dice is a little too good for it. No budget is at stake in either, while
at hospitals every trial is charged. Dice is the mean of the seven tissues on the network's grid.

    python benchmarks/utility.py --out DIR [--data ../shared/data] [--part made-up real noise plot]

Each result is one JSON line, printed and appended to DIR/results.jsonl; what stands there is not computed again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fedseg.document import Document
from fedseg.federation.strategy import Strategy
from fedseg.federation.vector import Layout, Weights
from fedseg.imaging.bids import load_dataset
from fedseg.imaging.cache import PreparedCache, prepare_case
from fedseg.imaging.synthesis import synthesize
from fedseg.imaging.transforms import Prepared
from fedseg.labels import FETA
from fedseg.plan.manifest import Manifest
from fedseg.plan.study import StudyPlan, parse_plan
from fedseg.privacy.distributed import NoiseShare
from fedseg.runtime.preparation import first_model, layout_of
from fedseg.runtime.pretraining import Limit, Sources, pretrain
from fedseg.runtime.resolution import FirstModel, resolve
from fedseg.runtime.session import noise_share
from fedseg.store.checkpoints import load_model
from fedseg.training.inference import load_segmenter
from fedseg.training.local import LocalTrainer
from fedseg.training.validation import mean_dice

EPSILONS = (8, 2, 16, 4, 1)
"""The telling ones first: a run takes minutes."""

MODES = ("local", "distributed")
STARTS = ("pretrained", "scratch")
PARTS = ("noise", "made-up", "real", "plot")
RESULTS, PLOT = "results.jsonl", "utility.png"
GATE_EPSILON, GATE = 8, 0.03
GAIN, GAIN_WITHIN = 2.0, 0.05
SITES, SUBJECTS, KEPT_BACK = 8, 60, 15
KEPT_BACK_WEEKS = {24.0, 28.0, 33.0, 37.0}
MOMENTUM, AVERAGE = 0.8, 0.8
QUIET = 1e-2
COLORS = ("#009E73", "#0072B2", "#E69F00", "#CC79A7")
TITLES = {
    "made-up": "8 made-up sites of 60 subjects, 4 mm",
    "real": "3 atlas sites of 6 to 8, 1.6 mm (averages, not patients)",
}
STUDY = "00" * 16
NOBODY = 1e-12

Subjects = Mapping[str, list[Prepared]]


@dataclass(frozen=True)
class Federation:
    """What is trained on, and with what.

    Attributes:
        name: `made-up` or `real`.
        public_subjects: N0 of each site.
        image: The plan's image section.
        rates: Learning rate of private steps: local, distributed.
        rounds: Private steps.
        layers: That a private run trains from a pretrained model; from scratch all do.
        usual: Training and schedule of non-private training.
        pretraining_steps: On made-up brains.
    """

    name: str
    public_subjects: Mapping[str, int]
    image: str
    rates: Mapping[str, float]
    rounds: int
    layers: str
    usual: str
    pretraining_steps: int


MADE_UP = Federation(
    "made-up",
    {f"site-{number}": SUBJECTS for number in range(SITES)},
    image="{spacing_mm: 4.0, patch: [16, 24, 16]}",
    rates={"local": 0.2, "distributed": 0.1},
    rounds=16,
    layers="all",
    usual="training: {steps: 30, learning_rate: 3e-3, threads: 1}\nschedule: {rounds: 20}",
    pretraining_steps=3000,
)
REAL = Federation(
    "real",
    {"site-crl": 8, "site-wu": 6, "site-sba": 8},
    image="{spacing_mm: 1.6, patch: [48, 64, 48]}",
    rates={"local": 0.2, "distributed": 0.1},
    rounds=8,
    layers="norms",
    usual="training: {steps: 10, learning_rate: 3e-3, threads: 1}\nschedule: {rounds: 15}",
    pretraining_steps=600,
)
FEDERATIONS = {each.name: each for each in (MADE_UP, REAL)}


@dataclass(frozen=True)
class Run:
    """One result.

    Attributes:
        federation: Its name.
        start: `pretrained` or `scratch`.
        mode: `local`, `distributed`; `quiet` (the distributed steps and their clip, with a thousandth of C as noise);
            `usual` (non-private training); `untrained` (the start itself).
        epsilon: Of a private run.
    """

    federation: str
    start: str
    mode: str
    epsilon: float | None = None


def runs_of(federation: Federation) -> Iterator[Run]:
    """All runs, the telling ones first."""
    for start in STARTS:
        yield from (Run(federation.name, start, mode) for mode in ("untrained", "usual"))
        for epsilon, mode in itertools.product(EPSILONS, ("distributed", "local")):
            yield Run(federation.name, start, mode, epsilon)
        yield Run(federation.name, start, "quiet")


def plan_of(federation: Federation, run: Run) -> Document[StudyPlan]:
    """The study that a run is."""
    sites = ", ".join(f"{site}: {{public_subjects: {count}}}" for site, count in federation.public_subjects.items())
    head = f"name: utility\nimage: {federation.image}\nnetwork: {{preset: small}}\nsites: {{{sites}}}\n"
    if run.mode in ("usual", "untrained"):
        return parse_plan(f"{head}{federation.usual}\nprivacy: {{mode: 'off'}}\naggregation: {{clip: 1e4}}\n", "usual")
    mode = "local" if run.mode == "local" else "distributed"
    # A site's own momentum would start anew in every round; the pooled step carries one.
    momentum = 0.0 if mode == "local" else MOMENTUM
    layers = federation.layers if run.start == "pretrained" else "all"
    steps = f"steps: 1, optimiser: sgd, momentum: {momentum}, learning_rate: {federation.rates[mode]}"
    return parse_plan(
        f"{head}training: {{{steps}, average: {AVERAGE}, layers: {layers}, threads: 1}}\n"
        f"schedule: {{rounds: {federation.rounds}}}\naggregation: {{clip: 1e4}}\n"
        f"privacy: {{mode: {mode}, epsilon: {run.epsilon or max(EPSILONS)}, sampling_rate: 1.0}}\n",
        "private",
    )


class Workshop:
    """Where data, pretrained models and results lie, each made once."""

    def __init__(self, out: Path, data: Path) -> None:
        """Use `out` for everything that is made, and read real scans below `data`."""
        self.out, self._data, self._kept = out, data, PreparedCache(out / "cache")
        self._subjects: dict[tuple[str, bool], dict[str, Subjects]] = {}
        out.mkdir(parents=True, exist_ok=True)

    def subjects(self, federation: Federation, *, kept_back: bool) -> dict[str, Subjects]:
        """Prepared subjects of each site: those that train, or those that nobody trains on."""
        key = (federation.name, kept_back)
        if key not in self._subjects:
            self._subjects[key] = {
                site: self._site(federation, site, index, kept_back)
                for index, site in enumerate(federation.public_subjects)
            }
        return self._subjects[key]

    def _site(self, federation: Federation, site: str, index: int, kept_back: bool) -> Subjects:
        folder = self._data / site if federation is REAL else self.out / "made-up" / site
        spacing = plan_of(federation, Run(federation.name, "scratch", "usual")).content.image.spacing_mm
        if federation is MADE_UP and not folder.exists():
            synthesize(folder, subjects=SUBJECTS + KEPT_BACK, seed=100 + index, site_style=index, spacing_mm=spacing)
        dataset, found = load_dataset(folder, scheme=FETA), {}
        for case in dataset.cases:
            held = case.split == "test" if federation is MADE_UP else case.gestational_age_weeks in KEPT_BACK_WEEKS
            if held == kept_back:
                found[case.subject] = [prepare_case(dataset, case, spacing_mm=spacing, cache=self._kept)]
        return found

    def first(self, federation: Federation, start: str, plan: StudyPlan) -> FirstModel:
        """Where a run starts."""
        first = first_model(plan)
        if start == "scratch":
            return first
        folder = self.out / f"pretrained-{federation.name}"
        limit = Limit(steps=federation.pretraining_steps)
        made = pretrain(
            plan, Sources(), folder, seed=1, limit=limit, on_part=lambda *_: None, should_stop=lambda: False
        )
        named, _ = load_model(made.model)
        return replace(first, weights=Layout.of(named).flatten(named))

    @property
    def has_scans(self) -> bool:
        """Whether the real sites are there."""
        return all((self._data / site).is_dir() for site in REAL.public_subjects)

    def results(self) -> list[dict[str, Any]]:
        """All results that are there."""
        path = self.out / RESULTS
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def put(self, result: Mapping[str, Any]) -> None:
        """Print a result and keep it."""
        line = json.dumps({"benchmark": "utility", **result})
        print(line, flush=True)
        with (self.out / RESULTS).open("a") as file:
            file.write(f"{line}\n")


def measure(workshop: Workshop, federation: Federation, run: Run) -> dict[str, Any]:
    """Do one run, and score what it releases."""
    document = plan_of(federation, run)
    first = workshop.first(federation, run.start, document.content)
    manifest = resolve(document, first, study=STUDY)
    if run.mode == "quiet":
        manifest = manifest.model_copy(update={"noise_multiplier": QUIET})
    began, weights = time.monotonic(), first.weights
    if run.mode != "untrained":
        weights = train(manifest, first.weights, trainers_of(manifest, workshop.subjects(federation, kept_back=False)))
    minutes = (time.monotonic() - began) / 60
    scores = score(manifest, weights, workshop.subjects(federation, kept_back=True))
    return {
        **asdict(run),
        "dice": round(float(np.mean(list(scores.values()))), 4),
        "sites": {site: round(value, 4) for site, value in scores.items()},
        "noise_multiplier": manifest.noise_multiplier,
        "noise_ratio": noise_ratio(manifest),
        "parameters": manifest.dimension,
        "minutes": round(minutes, 2),
    }


def trainers_of(manifest: Manifest, sites: Mapping[str, Subjects]) -> dict[str, LocalTrainer]:
    """A real trainer for each site."""
    return {
        site: LocalTrainer(
            manifest.plan,
            site,
            subjects,
            architecture=manifest.architecture,
            noise_multiplier=manifest.noise_multiplier,
        )
        for site, subjects in sites.items()
    }


def train(manifest: Manifest, first: Weights, trainers: Mapping[str, LocalTrainer]) -> Weights:
    """All rounds of a study, without masks; two sites at a time. The released weights."""
    strategy, layout = Strategy.of(manifest), layout_of(manifest)
    state = strategy.first(first)
    with ThreadPoolExecutor(2) as pool:
        for number in range(1, manifest.plan.schedule.rounds + 1):
            weights = layout.unflatten(strategy.weights(state))
            parts = pool.map(lambda trainer: contribution(manifest, trainer, weights, number), trainers.values())  # noqa: B023  # used up at once
            state = strategy.move(state, mean_of(manifest, list(parts)), number)
    return strategy.released(state)


def contribution(
    manifest: Manifest, trainer: LocalTrainer, weights: Mapping[str, NDArray[np.float32]], number: int
) -> NDArray[np.float64]:
    """What one site would hand to secure aggregation, as a flat vector: an update, or integers."""
    share: NoiseShare | None = noise_share(manifest)
    if share is None:
        made = trainer.update(
            weights, number, entropy=os.urandom, on_step=lambda _done, _of: None, should_stop=lambda: False
        )
        return flat(made)
    total = trainer.gradient_sum(
        weights, share, entropy=os.urandom, on_step=lambda _done, _of: None, should_stop=lambda: False
    )
    return flat(total)


def mean_of(manifest: Manifest, parts: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """The mean update; in distributed mode the mean gradient over all public subjects."""
    share = noise_share(manifest)
    total: NDArray[np.float64] = np.sum(parts, axis=0)
    if share is None:
        return total / len(parts)
    subjects = sum(site.public_subjects for site in manifest.plan.sites.values())
    return total / (share.scale * manifest.plan.privacy.sampling_rate * subjects)


def flat(named: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
    """Arrays in the order of their names, as `Layout` has them."""
    return np.concatenate([named[name].ravel() for name in sorted(named)]).astype(np.float64)


def score(manifest: Manifest, weights: Weights, kept_back: Mapping[str, Subjects]) -> dict[str, float]:
    """Mean Dice at each site, on the network's grid."""
    plan = manifest.plan
    network = load_segmenter(layout_of(manifest).unflatten(weights), manifest.architecture)
    scores = {}
    for site, subjects in kept_back.items():
        pairs = {
            name: [(each.image, each.labels) for each in volumes if each.labels is not None]
            for name, volumes in subjects.items()
        }
        dice = mean_dice(network, pairs, plan.image.patch, precision=plan.training.precision, should_stop=lambda: False)
        scores[site] = float(dice or 0.0)
    return scores


def noise_ratio(manifest: Manifest) -> float | None:
    """Root mean square norm of the noise in one averaged step over the clip: as `fedseg privacy-plan` prints it."""
    plan, sigma, share = manifest.plan, manifest.noise_multiplier, noise_share(manifest)
    if sigma is None:
        return None
    counts = [site.public_subjects * plan.privacy.sampling_rate for site in plan.sites.values()]
    spread = math.sqrt(sum((sigma / count) ** 2 for count in counts)) / len(counts)
    if share is not None:
        spread = sigma * math.sqrt(len(counts) / share.honest) / sum(counts)
    return round(spread * math.sqrt(manifest.dimension), 3)


def measure_noise(workshop: Workshop) -> dict[str, Any]:
    """Noise in one averaged step of 8 sites, local over distributed, by steps of the real engine that draw nobody."""
    spreads, sigmas, honest = {}, {}, 0
    for mode in MODES:
        document = plan_of(MADE_UP, Run("made-up", "scratch", mode, GATE_EPSILON))
        first = first_model(document.content)
        manifest = resolve(document, first, study=STUDY)
        sigmas[mode] = float(manifest.noise_multiplier or 0)
        share = noise_share(manifest)
        honest = share.honest if share is not None else honest
        spreads[mode] = noise_of(manifest, first, workshop.subjects(MADE_UP, kept_back=False))
    at_epsilon = spreads["local"] / spreads["distributed"]
    at_sigma = at_epsilon * sigmas["distributed"] / sigmas["local"]
    return {
        "part": "noise",
        "sites": SITES,
        "honest_others": honest,
        "epsilon": GATE_EPSILON,
        "noise_multiplier": sigmas,
        "spread_of_a_coordinate": {mode: float(f"{value:.4g}") for mode, value in spreads.items()},
        "gain_at_equal_noise_multiplier": round(at_sigma, 4),
        "gain_at_equal_epsilon": round(at_epsilon, 4),
        "expected": GAIN,
        "kept": bool(abs(at_sigma / GAIN - 1) <= GAIN_WITHIN),
        "kept_at_equal_epsilon": bool(abs(at_epsilon / GAIN - 1) <= GAIN_WITHIN),
    }


def noise_of(manifest: Manifest, first: FirstModel, sites: Mapping[str, Subjects]) -> float:
    """Standard deviation of a coordinate of the mean gradient, in a step at rate 1 that draws nobody."""
    privacy = manifest.plan.privacy
    rare = manifest.plan.model_copy(update={"privacy": privacy.model_copy(update={"sampling_rate": NOBODY})})
    asleep = manifest.model_copy(update={"plan": rare})
    weights = layout_of(manifest).unflatten(first.weights)
    parts = [contribution(asleep, trainer, weights, 1) for trainer in trainers_of(asleep, sites).values()]
    if manifest.plan.distributed:
        return float(np.std(mean_of(manifest, parts)))
    # An update is minus the rate times a gradient whose divisor is q N0.
    return float(np.std(mean_of(manifest, parts))) * NOBODY / manifest.plan.training.learning_rate


def gate(results: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Whether pretrained and distributed comes near non-private, on the made-up federation."""
    dice = {
        Run(*(row[key] for key in ("federation", "start", "mode", "epsilon"))): row["dice"]
        for row in results
        if "dice" in row
    }
    ours = dice.get(Run("made-up", "pretrained", "distributed", GATE_EPSILON))
    best = max((dice.get(Run("made-up", start, "usual"), 0.0) for start in STARTS), default=0.0)
    if ours is None or not best:
        return None
    return {
        "part": "gate",
        "epsilon": GATE_EPSILON,
        "pretrained_distributed": ours,
        "non_private": best,
        "gap": round(best - ours, 4),
        "within": GATE,
        "kept": best - ours <= GATE,
    }


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """Dice against epsilon: one panel a federation, one line a mode and start."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    panels = figure.subplots(1, len(FEDERATIONS), sharey=True)
    for panel, name in zip(panels, FEDERATIONS, strict=True):
        rows = [row for row in results if row.get("federation") == name]
        for (start, mode), color in zip(itertools.product(STARTS, MODES), COLORS, strict=True):
            points = sorted(
                (row["epsilon"], row["dice"]) for row in rows if (row["start"], row["mode"]) == (start, mode)
            )
            if points:
                panel.plot(*zip(*points, strict=True), "o-", color=color, label=f"{start}, {mode} noise")
        for row in rows:
            if row["mode"] in ("usual", "untrained") and row["start"] == "pretrained":
                label = {"usual": "non-private", "untrained": "pretrained alone"}[row["mode"]]
                panel.axhline(row["dice"], color="#555555", ls="-" if row["mode"] == "usual" else ":", label=label)
        panel.set(xscale="log", xlabel="epsilon of a subject (delta 1e-5)", title=TITLES[name], ylim=(0, 1))
        panel.set_xticks(sorted(EPSILONS), [str(value) for value in sorted(EPSILONS)])
        panel.minorticks_off()
    panels[0].set_ylabel("mean Dice of the seven tissues, subjects kept back")
    panels[0].legend(fontsize=8)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--start", nargs="+", choices=STARTS, default=STARTS)
    asked = parser.parse_args()
    workshop = Workshop(asked.out, asked.data)
    if "noise" in asked.part and not any(row.get("part") == "noise" for row in workshop.results()):
        workshop.put(measure_noise(workshop))
    for name, federation in FEDERATIONS.items():
        if name in asked.part:
            run_all(workshop, federation, asked.start)
    reached = gate(workshop.results())
    if reached is not None:
        print(json.dumps({"benchmark": "utility", **reached}))
    if "plot" in asked.part:
        plot(workshop.results(), asked.out / PLOT)


def run_all(workshop: Workshop, federation: Federation, starts: list[str]) -> None:
    """All runs of a federation that have no result yet."""
    if federation is REAL and not workshop.has_scans:
        print(f"no real scans: left out ({', '.join(REAL.public_subjects)} below --data)", file=sys.stderr)
        return
    for run in runs_of(federation):
        done = any(asdict(run).items() <= row.items() for row in workshop.results())
        if run.start in starts and not done:
            workshop.put(measure(workshop, federation, run))


if __name__ == "__main__":
    main()
