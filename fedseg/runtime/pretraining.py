"""Pretraining: a first model from label maps that are nobody's, or that their owner declares public.

Only label maps are read, never a scan: every image is made up (`imaging.generation`). What the model was trained on
stands in its file, in words. The folder holds the model and the state of training; asked again, training goes on.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedseg import __version__
from fedseg.errors import StorageError, UsageError
from fedseg.imaging.label_maps import made_up_labels, public_labels
from fedseg.imaging.made_up_fingerprint import T2_MADE_UP
from fedseg.labels import scheme
from fedseg.plan.study import StudyPlan
from fedseg.runtime.model_file import normalisation
from fedseg.store.checkpoints import ModelCard, save_model
from fedseg.store.files import exclusive, storage_errors, write_atomic
from fedseg.training.network import architecture, arrays, build_network
from fedseg.training.pretraining import Pretrainer

MODEL = "model.safetensors"
STATE = "pretraining.npz"
SAVE_EVERY_S = 60.0
MADE_UP_BRAINS = 60
LONGEST = 1000

_DAMAGED = (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile)

OnPart = Callable[[str, int, int], None]
"""Called with what is done, how much of it, and of how much."""


@dataclass(frozen=True)
class Sources:
    """Where label maps come from.

    Attributes:
        made_up: Number of made-up brains.
        folders: BIDS folders of label maps.
        public: Their owner's sentence that declares them public; needed where there are folders.
        table: A label table instead of the folders' dseg.tsv.
    """

    made_up: int = MADE_UP_BRAINS
    folders: tuple[Path, ...] = ()
    public: str | None = None
    table: str | None = None

    def __post_init__(self) -> None:
        """Refuse folders that nobody has declared public.

        Raises:
            UsageError: saying what is missing.
        """
        if self.folders and not (self.public or "").strip():
            raise UsageError(
                "nobody has declared these label maps public, and without privacy a model may give them away",
                where="--public",
                hint='the owner\'s sentence goes into the model file, as in --public "CC0, by its authors, 2021"',
            )
        if self.public and not self.folders:
            raise UsageError("there is nothing to declare public", where="--public", hint="name folders with --labels")
        if self.public and not (self.public.isprintable() and len(self.public) <= LONGEST):
            raise UsageError(f"at most {LONGEST} printable characters, on one line", where="--public")
        if self.made_up < 1 and not self.folders:
            raise UsageError("there is no label map to train on", where="--subjects", hint="1 or more")


@dataclass(frozen=True)
class Limit:
    """When pretraining is done: after so many steps, or so many minutes of training, whichever comes first."""

    steps: int | None = None
    minutes: float | None = None

    def share(self, step: int, seconds: float) -> float:
        """How much of it is done, 1 and above where all is."""
        by_steps = 0.0 if self.steps is None else step / self.steps
        return max(by_steps, 0.0 if self.minutes is None else seconds / (60 * self.minutes))


@dataclass(frozen=True)
class Pretrained:
    """How a run of pretraining ended.

    Attributes:
        model: The model file, which is there either way.
        card: What it says of itself.
        steps: Steps done, those of earlier runs with them.
        seconds: Seconds that they took.
        complete: Whether the limit was reached.
    """

    model: Path
    card: ModelCard
    steps: int
    seconds: float
    complete: bool


def pretrain(
    plan: StudyPlan,
    sources: Sources,
    out: Path,
    *,
    seed: int,
    limit: Limit,
    on_part: OnPart,
    should_stop: Callable[[], bool],
    clock: Callable[[], float] = time.monotonic,
) -> Pretrained:
    """Train the plan's network on made-up images, or go on with what is in `out`.

    With the same plan, sources, seed and threads, N steps give the same bits on one machine, in one run or in several.

    Args:
        plan: Whose task, network, spacing, patch, patches of a subject, precision and threads hold.
        sources: Of label maps.
        out: Folder for the model and the state of training; made where it is missing.
        seed: Of brains, images and first weights.
        limit: When to end.
        on_part: Told of progress.
        should_stop: Asked between steps; what was trained is kept.
        clock: Seconds.

    Raises:
        DataError: label maps that cannot be used.
        StorageError: the folder cannot be written, or its state cannot be read.
        UsageError: the folder holds the state of other settings.
    """
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    with exclusive(out):
        maps = label_maps(plan, sources, seed, on_part)
        described = architecture(plan.network.preset, scheme(plan.task).classes)
        first = arrays(build_network(plan.network.preset, scheme(plan.task).classes, seed))
        trainer = Pretrainer(plan, maps, architecture=described, first=first, seed=seed)
        shelf = _Shelf(out / STATE, _settings(plan, maps, seed))
        seconds = shelf.take_up(trainer)
        seconds = _train(trainer, limit, shelf, seconds, on_part, should_stop, clock)
        words = trained_on(sources, len(maps), trainer.step, seed)
        card = save_model(out / MODEL, trainer.weights, _card(plan, described, words))
    return Pretrained(out / MODEL, card, trainer.step, seconds, limit.share(trainer.step, seconds) >= 1)


def label_maps(plan: StudyPlan, sources: Sources, seed: int, on_part: OnPart) -> list[NDArray[np.uint8]]:
    """All label maps at the plan's spacing: the made-up ones, then those of the folders."""
    maps = []
    for index in range(sources.made_up):
        maps.append(made_up_labels(seed, index, plan.image.spacing_mm))
        on_part("making brains up", index + 1, sources.made_up)
    for folder in sources.folders:
        maps += public_labels(
            folder,
            labels=sources.table,
            spacing_mm=plan.image.spacing_mm,
            on_map=lambda done, of: on_part("reading label maps", done, of),
        )
    return maps


def trained_on(sources: Sources, maps: int, steps: int, seed: int) -> str:
    """What a model was trained on, in one line."""
    parts = [f"{_some(sources.made_up, 'made-up brain')} (seed {seed})"] if sources.made_up else []
    if sources.folders:
        parts.append(f'{_some(maps - sources.made_up, "label map")} declared public: "{sources.public}"')
    return f"images made up ({_some(steps, 'step')}) from the labels of {', and of '.join(parts)}"


def _some(count: int, what: str) -> str:
    return f"{count} {what}{'s' if count != 1 else ''}"


def _train(
    trainer: Pretrainer,
    limit: Limit,
    shelf: _Shelf,
    before: float,
    on_part: OnPart,
    should_stop: Callable[[], bool],
    clock: Callable[[], float],
) -> float:
    """Train to the limit, or until stopped; saves now and then, and at the end. Seconds in all."""
    began = saved = clock()

    def go_on(step: int) -> bool:
        nonlocal saved
        spent = before + clock() - began
        done = limit.share(step, spent)
        on_part("training", round(1000 * min(done, 1.0)), 1000)
        if done < 1 and clock() - saved > SAVE_EVERY_S:
            shelf.put(trainer, spent)
            saved = clock()
        return done < 1 and not should_stop()

    trainer.run(go_on)
    seconds = before + clock() - began
    shelf.put(trainer, seconds)
    return seconds


@dataclass(frozen=True)
class _Shelf:
    """The state of training on disk, bound to the settings that it came from."""

    path: Path
    settings: str

    def take_up(self, trainer: Pretrainer) -> float:
        """Restore what is there, where anything is; the seconds that it took."""
        if not self.path.exists():
            return 0.0
        state, facts = self._read()
        if facts["settings"] != self.settings:
            raise UsageError(
                "this folder holds another pretraining: its plan, label maps, seed or version differ",
                where=str(self.path.parent),
                hint="name another folder with --out, or repeat what was asked for there",
            )
        trainer.restore(state)
        return float(facts["seconds"])

    def put(self, trainer: Pretrainer, seconds: float) -> None:
        """Replace what is there."""
        facts = json.dumps({"settings": self.settings, "seconds": seconds})
        file = io.BytesIO()
        named = {"facts": np.frombuffer(facts.encode(), np.uint8), **trainer.state()}
        np.savez(file, **named)  # type: ignore[arg-type]  # mypy takes ** for allow_pickle, which is never among them
        write_atomic(self.path, file.getvalue())

    def _read(self) -> tuple[Mapping[str, NDArray[Any]], dict[str, Any]]:
        try:
            with np.load(io.BytesIO(self.path.read_bytes()), allow_pickle=False) as kept:
                state = {name: kept[name] for name in kept.files if name != "facts"}
                return state, dict(json.loads(kept["facts"].tobytes()))
        except _DAMAGED:
            raise StorageError(
                "the state of pretraining is damaged", where=str(self.path), hint="remove it: training starts anew"
            ) from None


def _settings(plan: StudyPlan, maps: Sequence[NDArray[np.uint8]], seed: int) -> str:
    """A digest of all that the weights after N steps depend on, but for the number of threads."""
    digest = hashlib.sha256()
    for labels in maps:
        digest.update(json.dumps(labels.shape).encode() + labels.tobytes())
    facts = {
        "task": plan.task,
        "image": plan.image.model_dump(mode="json"),
        "network": plan.network.preset,
        "patches": plan.training.patches_per_subject,
        "precision": plan.training.precision,
        "seed": seed,
        "version": __version__,
        "maps": digest.hexdigest(),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _card(plan: StudyPlan, described: dict[str, Any], words: str) -> ModelCard:
    return ModelCard(
        architecture=described,
        task=plan.task,
        tissues=scheme(plan.task).tissues,
        spacing_mm=plan.image.spacing_mm,
        patch=plan.image.patch,
        normalisation=normalisation(plan),
        study="pretraining",
        plan_hash="",
        rounds=0,
        contributors=(),
        privacy={"mode": "public", "trained_on": words},
        code_version=__version__,
        fingerprint=T2_MADE_UP,
    )
