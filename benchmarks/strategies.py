"""Which strategy serves hospitals whose scans differ? Dice of each on the real sites, and on a site that never trained.

The three atlas sites below --data at 2.4 mm with the small network, in one process: trainers, strategies and what sites
keep are those of a study; the masks of secure aggregation, which change no sum, the rounding and the clip are left out.
Weeks 24, 28, 33 and 37 are kept back at every site, also at one that never trained, whose other weeks look like those
that did. `dice` is of the model that the study releases, `personal` of what FedBN and Ditto leave at each site. Atlas
averages are not patients: Dice is optimistic, and so are differences between strategies where there are few subjects.

Every strategy gets the same steps (Ditto takes them twice) and the same chance: three values of the one number that it
hangs on, the others as the plan has them, tried in half the rounds without weeks 25 and 30, on which the best value is
chosen (of FedBN and Ditto by the personal models); FedProx, FedBN and the server's optimisers take FedAvg's learning
rate. SCAFFOLD needs plain SGD, so `fedavg-sgd` is its yardstick.

    python benchmarks/strategies.py --data ../shared/data --out DIR [--strategy scaffold ditto]

Each result is one JSON line, printed and appended to DIR/results.jsonl; what stands there is not computed again.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedseg.federation.strategy import Strategy
from fedseg.federation.vector import Weights
from fedseg.imaging.bids import load_dataset
from fedseg.imaging.cache import PreparedCache, prepare_case
from fedseg.imaging.transforms import Prepared
from fedseg.labels import FETA
from fedseg.plan.manifest import Manifest
from fedseg.plan.study import parse_plan
from fedseg.runtime.local_round import LocalRounds
from fedseg.runtime.preparation import first_model, layout_of, make_trainer
from fedseg.runtime.resolution import resolve
from fedseg.runtime.simulation import SiteMemory
from fedseg.training.inference import load_segmenter
from fedseg.training.validation import mean_dice

SITES = ("site-crl", "site-wu", "site-sba")
KEPT_BACK_WEEKS = {24.0, 28.0, 33.0, 37.0}
TUNING_WEEKS = {25.0, 30.0}
SPACING_MM = 2.4
RESULTS = "results.jsonl"
STUDY = "00" * 16

Subjects = dict[str, list[Prepared]]


@dataclass(frozen=True)
class Candidate:
    """One strategy and what is chosen for it.

    Attributes:
        name: In the results.
        strategy: The plan's section; `{}` in it or in `training` is the number that is chosen.
        training: What it changes in the plan's training section.
        values: To choose from.
    """

    name: str
    strategy: str
    values: tuple[float, ...]
    training: str = "learning_rate: RATE"


SGD = "optimiser: sgd, momentum: 0.0, learning_rate: {}"
CANDIDATES = (
    Candidate("fedavg", "name: fedavg", (3e-3, 1e-2, 3e-2), "learning_rate: {}"),
    Candidate("fedprox", "name: fedprox, proximal: {}", (0.01, 0.1, 1.0)),
    Candidate("fedavgm", "name: fedavgm, server_rate: {}", (0.1, 0.3, 1.0)),
    Candidate("fedadam", "name: fedadam, server_rate: {}", (0.003, 0.01, 0.03)),
    Candidate("fedyogi", "name: fedyogi, server_rate: {}", (0.003, 0.01, 0.03)),
    Candidate("fedavg-sgd", "name: fedavg", (0.1, 0.3, 1.0), SGD),
    Candidate("scaffold", "name: scaffold", (0.1, 0.3, 1.0), SGD),
    Candidate("fedbn", "name: fedbn", (3e-3, 1e-2, 3e-2), "learning_rate: {}"),
    Candidate("ditto", "name: ditto, proximal: {}", (0.01, 0.1, 1.0)),
)


class Workshop:
    """Scans and results.

    Args:
        data: The real sites' folders.
        out: For results and prepared scans.
        rounds: Of a whole run; half of them to choose.
        steps: Of a round.
    """

    def __init__(self, data: Path, out: Path, rounds: int, steps: int) -> None:
        """Prepare all scans."""
        self._out, self._rounds, self._steps = out, rounds, steps
        out.mkdir(parents=True, exist_ok=True)
        kept = PreparedCache(out / "cache")
        self._scans: dict[str, list[tuple[str, float | None, Prepared]]] = {}
        for site in SITES:
            dataset = load_dataset(data / site, scheme=FETA)
            self._scans[site] = [
                (
                    case.subject,
                    case.gestational_age_weeks,
                    prepare_case(dataset, case, spacing_mm=SPACING_MM, cache=kept),
                )
                for case in dataset.cases
            ]

    def subjects(self, site: str, *, within: set[float] | None = None, without: set[float] | None = None) -> Subjects:
        """Prepared scans of a site, those of some weeks or all but those."""
        return {
            subject: [scan]
            for subject, week, scan in self._scans[site]
            if (within is None or week in within) and (without is None or week not in without)
        }

    def manifest(
        self, candidate: Candidate, value: float, rate: float, sites: tuple[str, ...], rounds: int
    ) -> Manifest:
        """The study of one run."""
        training = candidate.training.replace("RATE", f"{rate:g}").format(value)
        document = parse_plan(
            f"name: strategies\nnetwork: {{preset: small}}\nimage: {{spacing_mm: {SPACING_MM}, patch: [32, 40, 32]}}\n"
            f"training: {{steps: {self._steps}, threads: 1, augment: light, {training}}}\n"
            f"strategy: {{{candidate.strategy.format(value)}}}\nprivacy: {{mode: 'off'}}\n"
            f"aggregation: {{mode: plain}}\nschedule: {{rounds: {rounds}}}\n"
            f"sites: {{{', '.join(f'{site}: {{}}' for site in sites)}}}\n",
            candidate.name,
        )
        return resolve(document, first_model(document.content), study=STUDY)

    def results(self) -> list[dict[str, Any]]:
        """All results that are there, of runs of this length."""
        path, length = self._out / RESULTS, [self._rounds, self._steps]
        found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [each for each in found if [each["rounds"], each["steps"]] == length]

    def found(self, name: str, part: str) -> dict[str, Any] | None:
        """A result that is there."""
        return next((each for each in self.results() if (each["strategy"], each["part"]) == (name, part)), None)

    def put(self, name: str, part: str, **said: Any) -> dict[str, Any]:
        """Print a result and keep it."""
        result = {"benchmark": "strategies", "strategy": name, "part": part, **said}
        result |= {"rounds": self._rounds, "steps": self._steps}
        line = json.dumps(result)
        print(line, flush=True)
        with (self._out / RESULTS).open("a") as file:
            file.write(f"{line}\n")
        return result

    def chosen(self, candidate: Candidate) -> tuple[float, float]:
        """The value of a candidate that is best on the weeks to choose by; and FedAvg's rate, where it takes that."""
        follows = candidate.training == "learning_rate: RATE"
        rate = self.chosen(CANDIDATES[0])[0] if follows else 0.0
        told = self.found(candidate.name, "choice")
        if told is None:
            scores = {value: self._tried(candidate, value, rate) for value in candidate.values}
            best = max(scores, key=lambda value: scores[value])
            tried = {f"{value:g}": round(score, 4) for value, score in scores.items()}
            told = self.put(candidate.name, "choice", chosen=best, tried=tried, learning_rate=rate or None)
        return float(told["chosen"]), rate

    def _tried(self, candidate: Candidate, value: float, rate: float) -> float:
        run = Run(self.manifest(candidate, value, rate, SITES, self._rounds // 2))
        run.train({site: self.subjects(site, without=KEPT_BACK_WEEKS | TUNING_WEEKS) for site in SITES})
        kept_back = {site: self.subjects(site, within=TUNING_WEEKS) for site in SITES}
        scores = run.personal_dice(kept_back) or run.dice(kept_back)
        return float(np.mean(list(scores.values())))

    def measure(self, candidate: Candidate, unseen: str | None) -> None:
        """All rounds over all sites, or without one of them."""
        part = "all sites" if unseen is None else f"without {unseen}"
        if self.found(candidate.name, part) is not None:
            return
        value, rate = self.chosen(candidate)
        trained = tuple(site for site in SITES if site != unseen)
        began, run = time.process_time(), Run(self.manifest(candidate, value, rate, trained, self._rounds))
        run.train({site: self.subjects(site, without=KEPT_BACK_WEEKS) for site in trained})
        kept_back = {site: self.subjects(site, within=KEPT_BACK_WEEKS) for site in SITES}
        scores = run.dice(kept_back)
        personal = run.personal_dice({site: kept_back[site] for site in trained})
        self.put(
            candidate.name,
            part,
            chosen=value,
            dice=rounded({site: scores[site] for site in trained}),
            personal=rounded(personal) if personal else None,
            unseen=None if unseen is None else round(scores[unseen], 4),
            cpu_minutes=round((time.process_time() - began) / 60, 2),
        )


class Run:
    """A study in one process.

    Args:
        manifest: The study.
    """

    def __init__(self, manifest: Manifest) -> None:
        """Nothing is trained yet."""
        self._manifest, self._layout, self._strategy = manifest, layout_of(manifest), Strategy.of(manifest)
        self._state = self._strategy.first(first_model(manifest.plan).weights)
        self._sites: dict[str, LocalRounds] = {}

    def train(self, subjects: Mapping[str, Subjects]) -> None:
        """All rounds, every site in each."""
        self._sites = {
            site: LocalRounds(self._manifest, make_trainer(self._manifest, site, found), self._layout, SiteMemory())
            for site, found in subjects.items()
        }
        for number in range(1, self._manifest.plan.schedule.rounds + 1):
            updates = [self._round(rounds, number) for rounds in self._sites.values()]
            mean: NDArray[np.float64] = np.stack(updates).mean(axis=0, dtype=np.float64)
            self._state = self._strategy.move(self._state, mean, number)

    def _round(self, rounds: LocalRounds, number: int) -> Weights:
        turn = rounds.turn(number, number - 1, self._state)
        trained = rounds.train(turn, entropy=os.urandom, on_step=lambda _done, _of: None, should_stop=lambda: False)
        rounds.keep(trained, trained.update)
        return trained.update

    def dice(self, kept_back: Mapping[str, Subjects]) -> dict[str, float]:
        """Of the released model."""
        return {site: self._score(self._strategy.released(self._state), found) for site, found in kept_back.items()}

    def personal_dice(self, kept_back: Mapping[str, Subjects]) -> dict[str, float]:
        """Of each site's own model; empty where the strategy makes none."""
        last, released = self._manifest.plan.schedule.rounds, self._strategy.released(self._state)
        own = {site: self._sites[site].personal(released, last) for site in kept_back}
        return {site: self._score(own[site], kept_back[site]) for site in kept_back if own[site] is not None}

    def _score(self, weights: Weights | None, subjects: Subjects) -> float:
        if weights is None:
            return 0.0
        plan = self._manifest.plan
        network = load_segmenter(self._layout.unflatten(weights), self._manifest.architecture)
        pairs = {
            name: [(scan.image, scan.labels) for scan in scans if scan.labels is not None]
            for name, scans in subjects.items()
        }
        dice = mean_dice(network, pairs, plan.image.patch, precision=plan.training.precision, should_stop=lambda: False)
        return float(dice or 0.0)


def rounded(scores: Mapping[str, float]) -> dict[str, float]:
    """To four digits."""
    return {site: round(score, 4) for site, score in scores.items()}


def parts(names: list[str]) -> Iterator[tuple[Candidate, str | None]]:
    """All runs: every strategy over all sites first, then without one site after the other."""
    chosen = [candidate for candidate in CANDIDATES if candidate.name in names]
    for unseen in (None, "site-sba", "site-wu", "site-crl"):
        yield from ((candidate, unseen) for candidate in chosen)


def main() -> None:
    """Measure what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the real sites")
    parser.add_argument("--out", type=Path, required=True, help="folder for results and prepared scans")
    names = [candidate.name for candidate in CANDIDATES]
    parser.add_argument("--strategy", nargs="+", choices=names, default=names)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=8)
    asked = parser.parse_args()
    workshop = Workshop(asked.data, asked.out, asked.rounds, asked.steps)
    for candidate, unseen in parts(asked.strategy):
        workshop.measure(candidate, unseen)


if __name__ == "__main__":
    main()
