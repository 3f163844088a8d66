"""What does keeping the data apart cost, is joining worth it, and what does a site get that never trained?

On `site-crl`, `site-wu` and `site-sba` below --data, weeks 24, 28, 33 and 37 kept back as in `atlas.py`, whose study is
what these are compared with. All parts have the plan's network, preprocessing, augmentation, seed and first weights;
only leave-out has its strategy.

pooled: all sites' training subjects in one place. As many steps one after another as the study takes (rounds times
steps a round), each on the sites' batches joined: `subjects_per_step` subjects of every site. The learning rate follows
the same cosine over rounds; the optimiser's state is kept from the first step to the last, as one trains usually. What
the plan averages over rounds is averaged.

own: each site's own model, as many steps on its own subjects alone (`runtime.alone`), scored at every site.

leave-out: the study without `site-sba`, in one process. Two contributors would see each other's updates through a
sum, so secure aggregation refuses them: here the aggregation is plain, which changes the mean by rounding alone.

    python benchmarks/pooled.py --data ../shared/data --out DIR [--plan sample_configs/atlas.yaml] [--init MODEL]
        [--part pooled own leave-out]

Scores are those of `fedseg evaluate`: on the scans' own grid, every subject weighs the same. Each result is one JSON
line, printed and appended to DIR/results.jsonl; what stands there is not computed again. One model trains at a time.
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from atlas import ROOT, SITES, link_site

from fedseg.document import Document
from fedseg.federation.schedule import learning_rate
from fedseg.federation.strategy import Strategy
from fedseg.federation.vector import Layout, Weights
from fedseg.imaging.transforms import Prepared
from fedseg.labels import scheme
from fedseg.metrics.scores import SubjectScores
from fedseg.metrics.summary import summarise
from fedseg.plan.manifest import Manifest
from fedseg.plan.study import StudyPlan, parse_plan
from fedseg.runtime import events
from fedseg.runtime.alone import own_manifest, train_alone
from fedseg.runtime.model_file import write_model
from fedseg.runtime.prediction import Segmenter
from fedseg.runtime.preparation import first_model, layout_of, prepare_training, training_data
from fedseg.runtime.resolution import FirstModel, resolve
from fedseg.runtime.scoring import evaluate, evaluation_data
from fedseg.runtime.simulation import simulate
from fedseg.store.checkpoints import load_model
from fedseg.training.compute import reproducible
from fedseg.training.local import LocalTrainer, make_optimiser, round_seed
from fedseg.training.network import arrays, load_arrays

PARTS = ("pooled", "own", "leave-out")
LEFT_OUT = "site-sba"
RESULTS = "results.jsonl"
STUDY = "00" * 16
POOL = "all sites pooled"
METRICS = ("dice", "hd95_mm")

Subjects = Mapping[str, list[Prepared]]


class PooledTrainer(LocalTrainer):
    """All sites' subjects in one place: a step's batch is the sites' batches joined.

    Args:
        manifest: The study.
        sites: Each site's subjects.
    """

    def __init__(self, manifest: Manifest, sites: Mapping[str, Subjects]) -> None:
        """Put the subjects together."""
        pooled = {f"{site}/{name}": volumes for site, subjects in sites.items() for name, volumes in subjects.items()}
        super().__init__(manifest.plan, next(iter(sites)), pooled, architecture=manifest.architecture)
        self._members = {
            site: [index for index, name in enumerate(self.subjects) if name.startswith(f"{site}/")] for site in sites
        }

    def rounds(self, weights: Mapping[str, Weights]) -> Iterator[dict[str, Weights]]:
        """The weights after each round; one optimiser takes all steps."""
        plan = self.plan
        load_arrays(self.model, weights)
        self.model.train()
        optimiser = make_optimiser(self.model, plan, plan.training.learning_rate)
        with reproducible(plan.training.threads):
            for number in range(1, plan.schedule.rounds + 1):
                for group in optimiser.param_groups:
                    group["lr"] = learning_rate(plan, number)
                rng = np.random.default_rng(round_seed(plan.seed, number, POOL))
                batches = self._joined(rng)
                for _ in range(plan.training.steps):
                    self.plain_step(next(batches), rng, optimiser)
                yield arrays(self.model)

    def _joined(self, rng: np.random.Generator) -> Iterator[list[int]]:
        """The subjects of every step: of each site as many as a step there has, shuffled like there."""
        most = self.plan.training.subjects_per_step
        shuffled = [(_shuffles(rng, members), min(most, len(members))) for members in self._members.values()]
        while True:
            yield [next(drawn) for drawn, count in shuffled for _ in range(count)]


def _shuffles(rng: np.random.Generator, members: list[int]) -> Iterator[int]:
    while True:
        yield from (int(each) for each in rng.permutation(members))


class OneAtATime(LocalTrainer):
    """A site's trainer that waits until no other trains: one core is enough for all."""

    _turn = threading.Lock()

    def update(self, *given: Any, **named: Any) -> dict[str, Weights]:
        """See `LocalTrainer`."""
        with self._turn:
            return super().update(*given, **named)


class Workshop:
    """Where data, models and results lie."""

    def __init__(self, out: Path, data: Path, plan: Document[StudyPlan], init: Path | None) -> None:
        """Link the sites' scans below `out`."""
        self.out, self._plan, self._init = out, plan, init
        self._subjects: dict[str, Subjects] = {}
        out.mkdir(parents=True, exist_ok=True)
        for site in SITES:
            if not (out / site / "data" / "participants.tsv").exists():
                link_site(data / site, out / site / "data")

    def manifest(self, without: str | None = None) -> tuple[Manifest, FirstModel]:
        """The study of the plan, or of the plan without a site: then with plain aggregation."""
        plan = self._plan.content
        if without is not None:
            told = plan.model_dump(exclude={"evaluation"})
            told["sites"].pop(without)
            told["aggregation"] = {"mode": "plain", "clip": plan.aggregation.clip}
            plan = StudyPlan.model_validate(told)
        first = self._first(plan)
        return resolve(replace(self._plan, content=plan), first, study=STUDY), first

    def _first(self, plan: StudyPlan) -> FirstModel:
        first = first_model(plan)
        if self._init is None:
            return first
        named, _ = load_model(self._init)
        return replace(first, weights=Layout.of(named).flatten(named))

    def subjects(self, site: str) -> Subjects:
        """Prepared training subjects."""
        if site not in self._subjects:
            plan = self._plan.content
            dataset = training_data(self.out / site / "data", plan, None)
            self._subjects[site] = prepare_training(dataset, plan, self.out / "cache", lambda _done, _of: None)
        return self._subjects[site]

    def score(self, model: Path, site: str, split: str = "test") -> list[SubjectScores]:
        """The scores of `fedseg evaluate` on a split of a site."""
        segmenter = Segmenter([model])
        dataset, _ = evaluation_data(self.out / site / "data", scheme(self._plan.content.task), None, split)
        return [each.scores for each in evaluate(segmenter, dataset, split, site, lambda _done, _of: None)]

    def results(self) -> list[dict[str, Any]]:
        """All results that are there."""
        path = self.out / RESULTS
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def once(self, key: Mapping[str, Any], measure: Callable[[Path], dict[str, Any]]) -> None:
        """Measure something, keep its model and its result; nothing where that is there."""
        manifest, _ = self.manifest()
        key = {"benchmark": "pooled", **key, "plan_hash": manifest.plan_hash, "init": _name(self._init)}
        if any(key.items() <= row.items() for row in self.results()):
            return
        model = self.out / f"{'-'.join(str(key[name]) for name in ('part', 'site') if name in key)}.safetensors"
        began = time.monotonic()
        line = json.dumps({**key, **measure(model), "minutes": round((time.monotonic() - began) / 60, 2)})
        print(line, flush=True)
        with (self.out / RESULTS).open("a") as file:
            file.write(f"{line}\n")


def _name(path: Path | None) -> str | None:
    return None if path is None else path.name


def pooled(workshop: Workshop, model: Path) -> dict[str, Any]:
    """Train on all sites together; what its model scores at each."""
    study, first = workshop.manifest()
    manifest = own_manifest(study, SITES)
    plan, strategy, layout = manifest.plan, Strategy.of(manifest), layout_of(manifest)
    trainer = PooledTrainer(manifest, {site: workshop.subjects(site) for site in SITES})
    state, before = strategy.first(first.weights), layout.unflatten(first.weights)
    sent = layout.names_in(manifest.trained)
    for number, after in enumerate(trainer.rounds(before), 1):
        moved = {name: after[name] - before[name] for name in sent}
        state = strategy.move(state, layout.within(sent).flatten(moved), number)
        before = after
        _say("pooled", number, plan.schedule.rounds)
    history = tuple((number, SITES) for number in range(1, plan.schedule.rounds + 1))
    write_model(model, manifest, layout, strategy.released(state), history)
    return _by_site(plan, {site: workshop.score(model, site) for site in SITES})


def own(site: str, workshop: Workshop, model: Path) -> dict[str, Any]:
    """Train one site's own model; what it scores there and elsewhere."""
    study, first = workshop.manifest()
    manifest = own_manifest(study, [site])
    weights = train_alone(manifest, site, workshop.subjects(site), first.weights, partial(_say, site))
    history = tuple((number, (site,)) for number in range(1, manifest.plan.schedule.rounds + 1))
    write_model(model, manifest, layout_of(manifest), weights, history)
    scores = {each: workshop.score(model, each) for each in SITES}
    others = [one for each in SITES if each != site for one in scores[each]]
    return _by_site(manifest.plan, scores) | {"elsewhere": _means(others)}


def leave_out(workshop: Workshop, model: Path) -> dict[str, Any]:
    """A study of the other sites; what its model scores at the site that never trained, and at those that did."""
    manifest, first = workshop.manifest(without=LEFT_OUT)
    names = manifest.plan.site_names
    trainers = {
        site: OneAtATime(manifest.plan, site, workshop.subjects(site), architecture=manifest.architecture)
        for site in names
    }
    weights, finished = simulate(
        manifest, first.weights, layout_of(manifest), trainers, entropy=secrets.token_bytes, notify=_notify
    )
    write_model(model, manifest, layout_of(manifest), weights, finished.history)
    return {
        "left_out": LEFT_OUT,
        "kept_back": _means(workshop.score(model, LEFT_OUT)),
        "all_subjects": _means(workshop.score(model, LEFT_OUT, "all")),
        **_by_site(manifest.plan, {site: workshop.score(model, site) for site in names}),
    }


def _by_site(plan: StudyPlan, scores: Mapping[str, list[SubjectScores]]) -> dict[str, Any]:
    together = [each for rows in scores.values() for each in rows]
    return {
        "rounds": plan.schedule.rounds,
        "steps": plan.schedule.rounds * plan.training.steps,
        "mean": _means(together),
        "sites": {site: _means(rows) for site, rows in scores.items()},
    }


def _means(scores: list[SubjectScores]) -> dict[str, Any]:
    summary = summarise(scores)
    found = {metric: {name: _short(value) for name, value in summary[metric].items()} for metric in METRICS}
    return {"subjects": len({(each.site, each.subject) for each in scores}), **found}


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _notify(event: events.Event) -> None:
    if isinstance(event, events.RoundClosed):
        print(f"leave-out: round {event.round} closed", file=sys.stderr, flush=True)


def _say(what: str, done: int, of: int) -> None:
    print(f"{what}: round {done} of {of}", file=sys.stderr, flush=True)


def main() -> None:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--plan", type=Path, default=ROOT / "sample_configs" / "atlas.yaml")
    parser.add_argument("--init", type=Path)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS)
    asked = parser.parse_args()
    plan = parse_plan(asked.plan.read_text(), asked.plan.name)
    if plan.content.private or tuple(plan.content.sites) != SITES:
        sys.exit(f"{asked.plan} must be a plan without privacy of the sites {', '.join(SITES)}")
    workshop = Workshop(asked.out, asked.data, plan, asked.init)
    if "pooled" in asked.part:
        workshop.once({"part": "pooled"}, partial(pooled, workshop))
    for site in SITES if "own" in asked.part else ():
        workshop.once({"part": "own", "site": site}, partial(own, site, workshop))
    if "leave-out" in asked.part:
        workshop.once({"part": "leave-out"}, partial(leave_out, workshop))


if __name__ == "__main__":
    main()
