"""Training without the others: a site's own model, which joining is measured against. It is never sent.

What would the hospital have without the study? A model of its own scans, trained as one trains where nothing leaves the
house: without privacy's clip and noise, without a server's strategy, for as long as the study trains there. That is
what `own_manifest` says, and what `write_baseline` trains. No budget is spent on it, because nobody outside sees it:
the file says that it must stay where it is, and only its owner may read it.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import secrets
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from fedseg.errors import Interrupted, ModelError, PlanError, StorageError, UsageError
from fedseg.federation.strategy import State, Strategy
from fedseg.federation.vector import Layout, Weights, model_hash
from fedseg.imaging.transforms import Prepared
from fedseg.plan.manifest import Manifest
from fedseg.plan.study import MAX_STEPS, StudyPlan
from fedseg.runtime.model_file import History, write_own
from fedseg.runtime.ports import OnStep, ShouldStop
from fedseg.runtime.preparation import (
    first_model,
    layout_of,
    make_trainer,
    trained_ranges,
)
from fedseg.store.checkpoints import load_model
from fedseg.store.files import exclusive, storage_errors, write_atomic

BASELINE = "baseline.safetensors"
TRAINING = "baseline-training.npz"
NEVER = (
    "not private: trained on one site's own scans without differential privacy, so it may give them away; it stays at "
    "the site, never hand it on"
)
ROUND_STEPS, MOST_STEPS = 25, 10_000
_OF_PRIVACY = (
    "steps",
    "subjects_per_step",
    "optimiser",
    "learning_rate",
    "momentum",
    "weight_decay",
    "layers",
    "average",
)
"""What a private plan says of training for the sake of its noise."""

_DAMAGED = (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile)

OnRound = Callable[[int, int], None]
"""Called with (rounds done, rounds in all)."""


def own_manifest(manifest: Manifest, sites: Sequence[str]) -> Manifest:
    """The study as these sites would train without it: no privacy, no strategy of a server's, no rollback.

    Without privacy the recipe is the plan's, step for step. A private plan's few, large, plain steps are what noise
    asks for, and nobody's choice without it: they become steps of one subject with the optimiser and the rate that
    plans have by default, as many as the study draws subjects at the largest of the sites (rounds times steps times
    sampling rate times public subjects), in rounds of at least `ROUND_STEPS`; all layers train.

    Args:
        manifest: The study.
        sites: One or more of its sites.
    """
    told = manifest.plan.model_dump(exclude={"strategy", "evaluation"})
    told |= {"privacy": {"mode": "off"}, "aggregation": {"mode": "plain", "clip": told["aggregation"]["clip"]}}
    told["sites"] = {site: told["sites"][site] for site in sites}
    if manifest.plan.private:
        rounds, steps = _usual_steps(manifest.plan, sites)
        told["training"] = {name: value for name, value in told["training"].items() if name not in _OF_PRIVACY}
        told["training"]["steps"] = steps
        told["schedule"]["rounds"] = rounds
    plan = StudyPlan.model_validate(told)
    trained = trained_ranges(plan, layout_of(manifest))
    return manifest.model_copy(update={"plan": plan, "noise_multiplier": None, "trained": trained, "parent": None})


def _usual_steps(plan: StudyPlan, sites: Sequence[str]) -> tuple[int, int]:
    """Rounds, and steps in each, that look at as many subjects as a private study draws at a site."""
    most = max(plan.sites[site].public_subjects for site in sites)
    drawn = max(1, round(plan.privacy.sampling_rate * most))
    total = min(MAX_STEPS, plan.schedule.rounds * plan.training.steps * drawn)
    rounds = max(1, min(plan.schedule.rounds, total // ROUND_STEPS), math.ceil(total / MOST_STEPS))
    return rounds, total // rounds


def train_alone(
    manifest: Manifest,
    site: str,
    subjects: Mapping[str, list[Prepared]],
    initial: Weights,
    on_round: OnRound,
) -> Weights:
    """All rounds of a study at one site, with what its manifest says: the study's own, or `own_manifest`'s.

    Args:
        manifest: Not of a plan of distributed noise, whose steps need all sites.
        site: The site's name.
        subjects: Prepared volumes of its training subjects.
        initial: Where round 1 starts.
        on_round: Told of progress.
    """
    strategy = Strategy.of(manifest)
    reached = Reached(0, strategy.first(initial))
    for after in _rounds(manifest, site, subjects, reached, _nothing, lambda: False):
        reached = after
        on_round(reached.rounds, manifest.plan.schedule.rounds)
    return strategy.released(reached.state)


@dataclass(frozen=True)
class Reached:
    """How far training has come: rounds done, and the state after them."""

    rounds: int
    state: State


def _rounds(
    manifest: Manifest,
    site: str,
    subjects: Mapping[str, list[Prepared]],
    start: Reached,
    on_step: OnStep,
    should_stop: ShouldStop,
) -> Iterator[Reached]:
    """The rounds after those that are done, one by one."""
    trainer, layout, strategy = make_trainer(manifest, site, subjects), layout_of(manifest), Strategy.of(manifest)
    sent, plan, state = layout.within(layout.names_in(manifest.trained)), manifest.plan, start.state
    for number in range(start.rounds + 1, plan.schedule.rounds + 1):
        before = (number - 1) * plan.training.steps
        update = trainer.update(
            layout.unflatten(strategy.weights(state)),
            number,
            entropy=secrets.token_bytes,
            on_step=partial(_overall, on_step, before, plan.schedule.rounds * plan.training.steps),
            should_stop=should_stop,
        )
        state = strategy.move(state, sent.flatten(update), number)
        yield Reached(number, state)


def _overall(on_step: OnStep, before: int, of: int, step: int, _steps: int) -> None:
    on_step(before + step, of)


def first_weights(manifest: Manifest, init: Path | None) -> Weights:
    """What a study's round 1 started from, made again at a site.

    Args:
        manifest: The study.
        init: The model file that it started from, where it did not start from its plan's seed.

    Raises:
        ModelError: it is another file.
        PlanError: this machine, or this version, makes other first weights of the seed.
        UsageError: the file is missing, or there was none.
    """
    expected = manifest.init
    if (expected is None) != (init is None):
        raise _init_error(manifest)
    if init is None:
        weights = first_model(manifest.plan).weights
        if model_hash(Strategy.of(manifest).first(weights)) != manifest.initial_model:
            raise PlanError(
                "this machine makes another first model of the plan's seed than the study started from",
                hint=f"install the version that resolved the plan: {manifest.code_version}",
            )
        return weights
    named, card = load_model(init)
    if expected is not None and card.model_hash != expected.model_hash:
        raise ModelError(
            "this is not the model that the study started from",
            where=str(init),
            hint=f"its hash must be {expected.model_hash}: ask the coordinator for the file",
        )
    return Layout.of(named).flatten(named)


def _init_error(manifest: Manifest) -> UsageError:
    if manifest.init is None:
        return UsageError("the study started from its plan's seed, not from a model file", hint="leave --init out")
    return UsageError(
        f"the study started from a model trained on {manifest.init.trained_on}, and so must its baseline",
        where="--init",
        hint=f"ask the coordinator for that file (model hash {manifest.init.model_hash[:16]}...) and name it: --init "
        "FILE",
    )


def write_baseline(
    manifest: Manifest,
    site: str,
    subjects: Mapping[str, list[Prepared]],
    initial: Weights,
    out: Path,
    *,
    on_step: OnStep,
    should_stop: ShouldStop,
) -> Path:
    """Train a site's own model, or go on with what is in `out`, and write it there; returns the file.

    Args:
        manifest: The study.
        site: The site's name.
        subjects: Prepared volumes of its training subjects.
        initial: Where round 1 starts.
        out: Made where it is missing.
        on_step: Told of progress, over all rounds.
        should_stop: Asked between steps; the rounds that were finished are kept.

    Raises:
        Interrupted: `should_stop` said so.
        StorageError: the folder cannot be written, or its state cannot be read.
        UsageError: it holds the training of other scans or another study, or another process is at work in it.
    """
    with storage_errors(out):
        out.mkdir(mode=0o700, parents=True, exist_ok=True)
    own = own_manifest(manifest, [site])
    with exclusive(out):
        shelf = _Shelf(out / TRAINING, _settings(own, subjects))
        reached = shelf.take_up() or Reached(0, Strategy.of(own).first(initial))
        try:
            for after in _rounds(own, site, subjects, reached, on_step, should_stop):
                shelf.put(after)
                reached = after
        except Interrupted as error:
            error.what = f"stopped; {reached.rounds} of {own.plan.schedule.rounds} rounds are trained and kept"
            error.hint = "the same command goes on from there"
            raise
        weights, history = Strategy.of(own).released(reached.state), _history(own, site)
        written = write_own(out / BASELINE, own, layout_of(own), weights, history, f"{site} alone", NEVER)
        with storage_errors(shelf.path):
            shelf.path.unlink(missing_ok=True)
    return written


@dataclass(frozen=True)
class _Shelf:
    """The rounds of a baseline so far, bound to the settings and scans that they came from. Its owner's alone."""

    path: Path
    settings: str

    def take_up(self) -> Reached | None:
        """How far an earlier run came; None where there was none.

        Raises:
            StorageError: The file is damaged.
            UsageError: It is another training's.
        """
        if not self.path.exists():
            return None
        try:
            with np.load(io.BytesIO(self.path.read_bytes()), allow_pickle=False) as kept:
                settings, reached = str(kept["settings"]), Reached(int(kept["rounds"]), kept["state"])
        except _DAMAGED:
            hint = "remove it: training starts anew"
            raise StorageError("the state of training is damaged", where=str(self.path), hint=hint) from None
        if settings != self.settings:
            raise UsageError(
                "this folder holds the unfinished baseline of other scans, or of another version of the study",
                where=str(self.path),
                hint="remove that file to start anew, or name another folder with --out",
            )
        return reached

    def put(self, reached: Reached) -> None:
        """Replace what is there."""
        file = io.BytesIO()
        np.savez(file, settings=np.array(self.settings), rounds=np.array(reached.rounds), state=reached.state)
        write_atomic(self.path, file.getvalue())


def _settings(manifest: Manifest, subjects: Mapping[str, list[Prepared]]) -> str:
    """A digest of all that the rounds depend on, but for the number of threads."""
    digest = hashlib.sha256(manifest.to_json())
    for name in sorted(subjects):
        for volume in subjects[name]:
            labels = b"" if volume.labels is None else volume.labels.tobytes()
            digest.update(json.dumps([name, volume.image.shape]).encode() + volume.image.tobytes() + labels)
    return digest.hexdigest()


def _history(manifest: Manifest, site: str) -> History:
    """All rounds, of this site alone."""
    return tuple((number, (site,)) for number in range(1, manifest.plan.schedule.rounds + 1))


def _nothing(_done: int, _of: int) -> None:
    pass
