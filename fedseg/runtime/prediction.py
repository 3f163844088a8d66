"""Model files at work: new scans segmented, each on its own grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedseg.errors import DataError, ModelError
from fedseg.imaging.cleanup import Cleaned, clean
from fedseg.imaging.grids import Geometry
from fedseg.imaging.nifti import Volume
from fedseg.imaging.transforms import Prepared, prepare, restore
from fedseg.labels import LabelScheme, scheme
from fedseg.store.checkpoints import ModelCard, load_model
from fedseg.training.inference import Predictor, Way, load_segmenter, mean_uncertainty, mirrored
from fedseg.training.memory import keep_freed_memory
from fedseg.training.network import SegmentationNet

_SHOWN = 40
_OF_FEDSEG = "its description is damaged or made up: give a model.safetensors that fedseg wrote"

OnCase = Callable[[int, int], None]
"""Called with (scans done, scans in all)."""


@dataclass(frozen=True)
class Options:
    """How scans are segmented.

    Args:
        cleanup: Whether pieces apart from the brain are removed and holes in it filled.
        mirror: Whether each scan is segmented a second time with left and right exchanged, and the mean taken.
        one_pass: Whether a whole volume goes through in one pass where memory allows: faster and a little worse.
        precision: As in a plan's training section; `auto` is what suits the machine best.
    """

    cleanup: bool = True
    mirror: bool = False
    one_pass: bool = False
    precision: str = "auto"


@dataclass(frozen=True, eq=False)
class Segmentation:
    """One scan segmented.

    Args:
        labels: Classes uint8 [i, j, k] on the scan's own grid.
        probabilities: float32 [C + 1, X, Y, Z] on the network's grid, background first.
        geometry: The way from that grid to the scan's.
        uncertainty: Mean over predicted brain voxels of the entropy over log(C + 1), 0 to 1; 0 where no brain is found.
        cleaned: What the clean-up changed.
        ways: How the volume went through each model's network.
    """

    labels: NDArray[np.uint8]
    probabilities: NDArray[np.float32]
    geometry: Geometry
    uncertainty: float
    cleaned: Cleaned
    ways: tuple[Way, ...]


class Segmenter:
    """Model files, ready to segment.

    Several models count as the mean of their probabilities (an ensemble). They must agree on the task and on the voxel
    size: probabilities on two grids could only be averaged after a second resampling.

    Args:
        paths: The model files.
        options: How to segment.

    Raises:
        ModelError: if one cannot be used, or they do not go together.
    """

    def __init__(self, paths: Sequence[Path], options: Options | None = None) -> None:
        self.options = options or Options()
        loaded = [load_network(path) for path in paths]
        self.cards = tuple(card for _, card in loaded)
        for path, card in zip(paths[1:], self.cards[1:], strict=True):
            _refuse_misfit(path, card, paths[0], self.card)
        keep_freed_memory()
        precision, one_pass = self.options.precision, self.options.one_pass
        self._predictors = [
            Predictor(network, card.patch, precision=precision, one_pass=one_pass) for network, card in loaded
        ]

    @property
    def card(self) -> ModelCard:
        """The description of the (first) model."""
        return self.cards[0]

    @property
    def scheme(self) -> LabelScheme:
        """The label scheme."""
        return LabelScheme(self.card.task, self.card.tissues)

    def __call__(self, image: Volume) -> Segmentation:
        """Segment a scan.

        Raises:
            DataError: if the scan is not one that the model can segment.
        """
        return self.segment(self.prepare(image))

    def prepare(self, image: Volume) -> Prepared:
        """A scan as the networks see it; any thread may do this while another scan is segmented.

        Raises:
            DataError: if the scan is not one that the model can segment.
        """
        n4 = bool(self.card.normalisation["n4"])
        return prepare(image, None, None, spacing_mm=self.card.spacing_mm, scheme=self.scheme, n4=n4)

    def segment(self, prepared: Prepared) -> Segmentation:
        """Segment a scan that is prepared."""
        x, y, z = prepared.image.shape
        ways = tuple(predictor.way((x, y, z)) for predictor in self._predictors)
        probabilities = self._run(self._predictors[0], ways[0], prepared.image)
        for predictor, way in zip(self._predictors[1:], ways[1:], strict=True):
            probabilities += self._run(predictor, way, prepared.image)
        probabilities /= len(self._predictors)
        labels, cleaned = restore(probabilities, prepared.geometry), Cleaned(0.0, 0.0)
        if self.options.cleanup:
            labels, cleaned = clean(labels, prepared.geometry)
        doubt = mean_uncertainty(probabilities)
        return Segmentation(labels, probabilities, prepared.geometry, doubt, cleaned, ways)

    def _run(self, predictor: Predictor, way: Way, image: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.options.mirror:
            return mirrored(lambda each: predictor(each, way), image)
        return predictor(image, way)


def load_network(path: Path) -> tuple[SegmentationNet, ModelCard]:
    """A model file's network, ready to segment, and its card, which says `n4` true or false.

    Raises:
        ModelError: if it cannot be used, or its card is none that fedseg writes.
    """
    arrays, card = load_model(path)
    _refuse_odd_task(path, card)
    network = load_segmenter(arrays, card.architecture)
    what = ""
    if any(side % network.multiple for side in card.patch):
        what = (
            f"the model's patch is {list(card.patch)}; each side must be a multiple of {network.multiple} for the "
            f"{network.preset} network"
        )
    elif network.classes != len(card.tissues) + 1:
        what = (
            f"the network has {network.classes} classes, its description {len(card.tissues)} tissues and the background"
        )
    elif not isinstance(card.normalisation.get("n4"), bool):
        what = "the model's description says neither true nor false of n4"
    if what:
        raise ModelError(what, where=str(path), hint=_OF_FEDSEG)
    return network, card


def _refuse_odd_task(path: Path, card: ModelCard) -> None:
    """ModelError where the task is unknown, or its tissues are others than this version's."""
    try:
        known = scheme(card.task)
    except DataError as error:
        what = f"the model is for the task {card.task[:_SHOWN]!r}, which this version does not know"
        raise ModelError(what, where=str(path), hint=error.hint) from None
    if card.tissues != known.tissues:
        raise ModelError(
            f"the model's {len(card.tissues)} tissues are not those of the task {card.task}",
            where=str(path),
            hint=f"this version's are {', '.join(known.tissues)}: use the version that wrote the model",
        )


def _refuse_misfit(path: Path, card: ModelCard, first: Path, other: ModelCard) -> None:
    """ModelError where two models cannot be averaged."""
    what, hint = "", "give models of one study plan"
    if (card.task, card.tissues) != (other.task, other.tissues):
        what = f"the model is for {card.task} ({len(card.tissues)} tissues), {first} for {other.task}"
    elif card.spacing_mm != other.spacing_mm:
        what = f"the model works at {card.spacing_mm:g} mm, {first} at {other.spacing_mm:g} mm"
        hint = "segment with each by itself: a mean would need a second resampling"
    elif card.normalisation["n4"] != other.normalisation["n4"]:
        what = f"only one of the model and {first} has bias fields taken out (n4) first"
    elif card.model_hash == other.model_hash:
        what, hint = f"this is the same model as {first}", "name each model once"
    if what:
        raise ModelError(f"{what}: they cannot be averaged", where=str(path), hint=hint)
