"""Class probabilities of a whole prepared volume from a trained network."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from fedseg.errors import DataError
from fedseg.training.compute import autocast, uses_bf16
from fedseg.training.field_norm import FieldNorm, with_field_norms
from fedseg.training.memory import MARGIN, available_bytes, predicted_bytes
from fedseg.training.network import SegmentationNet, from_architecture, load_arrays
from fedseg.training.windows import Shape, Windows, part

BACKGROUND_LOGIT = 20.0

Probabilities = npt.NDArray[np.float32]
Predict = Callable[[npt.NDArray[np.float32]], Probabilities]


@dataclass(frozen=True)
class Way:
    """How a volume goes through the network, chosen before it does.

    Args:
        passes: `patch` (it fits into one), `windows`, or `whole` (one pass, after two windows that measure the
            statistics of the norms).
        windows: How many windows are run.
        padded: The shape that is worked on.
        needs_bytes: Memory that is predicted for it.
        free_bytes: Memory that is free.
    """

    passes: Literal["patch", "whole", "windows"]
    windows: int
    padded: Shape
    needs_bytes: int
    free_bytes: int


def load_segmenter(arrays: Mapping[str, npt.NDArray[Any]], architecture: Mapping[str, Any]) -> SegmentationNet:
    """The network of a model file, ready to segment: on the GPU where there is one, in evaluation mode.

    Raises:
        ModelError: The architecture is none of this version's, or the arrays don't fit it.
    """
    model = from_architecture(architecture)
    load_arrays(model, arrays)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    return model.eval()


def segment(
    model: SegmentationNet, image: npt.NDArray[np.float32], patch: Shape, *, precision: str = "auto"
) -> Probabilities:
    """Probabilities float32 [classes, X, Y, Z] that a `Predictor` finds in one prepared image float32 [X, Y, Z]."""
    return Predictor(model, patch, precision=precision)(image)


def mirrored(predict: Predict, image: npt.NDArray[np.float32]) -> Probabilities:
    """The mean of what is found in an image and in its mirror image, left and right (the first axis) exchanged.

    For schemes whose labels name no side.
    """
    found = predict(image)
    found += predict(np.ascontiguousarray(image[::-1]))[:, ::-1]
    found *= 0.5
    return found


def uncertainty(probabilities: Probabilities) -> npt.NDArray[np.float32]:
    """Entropy over the logarithm of the number of classes, float32 [X, Y, Z]: 0 (sure) to 1 (all are alike)."""
    total = np.zeros(probabilities.shape[1:], np.float32)
    for chance in probabilities:
        total -= chance * np.log(np.maximum(chance, np.finfo(np.float32).tiny))
    return np.asarray(np.clip(total / math.log(len(probabilities)), 0, 1), dtype=np.float32)


def mean_uncertainty(probabilities: Probabilities) -> float:
    """Mean `uncertainty` of what is most likely not background; 0 where nothing is."""
    brain = probabilities.argmax(axis=0) > 0
    return float(uncertainty(probabilities[:, brain][..., None, None]).mean()) if brain.any() else 0.0


class Predictor:
    """Segments volumes with one network, whose weights it shares.

    A volume that fits into a patch is one window; a larger one goes through by windows, blended (Isensee et al. 2021),
    or in one pass where that is asked for, cheaper, and fits into the memory that is free. One pass is faster and
    worse: GroupNorm's statistics are those of the field of view, and the network knows those of a patch. On ten
    kept-back atlases (1.2 mm, patches of 64 x 80 x 64, volumes up to 1.4 times as long) it took 0.73 of the time; mean
    Dice fell by .005 (mean of three models; up to .03 for one scan) with the statistics of two windows at opposite
    corners, by .035 (one model) with its own.

    Args:
        model: Its weights are shared, not copied.
        patch: The plan's patch; each side a multiple of `model.multiple`.
        precision: As in the plan's training section.
        one_pass: Whether one pass is asked for.
    """

    def __init__(
        self, model: SegmentationNet, patch: Shape, *, precision: str = "auto", one_pass: bool = False
    ) -> None:
        self._device = next(model.parameters()).device
        self._network, self._norms = with_field_norms(model)
        self._patch = patch
        self._precision = precision
        self._one_pass = one_pass
        self._format = torch.channels_last_3d if self._device.type == "cpu" else torch.contiguous_format

    def way(self, shape: Shape) -> Way:
        """How a volume of this shape would be segmented in the memory that is free."""
        free = available_bytes(self._device)
        windows = Windows(_at_least(shape, self._patch), self._patch)
        by_windows = Way("windows", len(windows), windows.shape, self._needs(self._patch, windows.shape), free)
        if len(windows) == 1:
            return replace(by_windows, passes="patch")
        padded = _at_least(shape, (2 * self._network.multiple,) * 3, self._network.multiple)
        whole = Way("whole", 2, padded, self._needs(padded, padded), free)
        cheaper = math.prod(padded) < (len(windows) - whole.windows) * math.prod(self._patch)
        return whole if self._one_pass and cheaper and MARGIN * whole.needs_bytes < free else by_windows

    def __call__(self, image: npt.NDArray[np.float32], way: Way | None = None) -> Probabilities:
        """Segment a prepared image.

        Args:
            image: float32 [X, Y, Z], at the spacing and with the normalisation that the model was trained on; padded
                like a training patch (with its lowest value) where it has to be.
            way: From `way`; None chooses one.

        Returns:
            Probabilities float32 [classes, X, Y, Z]; at each voxel they sum to 1.

        Raises:
            DataError: `image` is not a 3D volume of finite values.
        """
        if image.ndim != 3 or not image.size or not np.isfinite(image).all():
            raise DataError(f"an image of shape {image.shape} cannot be segmented: a finite 3D volume is needed")
        x, y, z = image.shape
        chosen = way or self.way((x, y, z))
        volume = torch.from_numpy(image.astype(np.float32, copy=False)).to(self._device)
        padded, inside = _padded(volume, chosen.padded)
        with torch.no_grad(), autocast(self._device, self._precision):
            if chosen.passes == "whole":
                self._measure(_padded(volume, _at_least((x, y, z), self._patch))[0])
            logits = self._pass(padded) if chosen.passes == "whole" else self._windows(padded)
        return np.ascontiguousarray(_softmax(logits)[(slice(None), *inside)].cpu().numpy())

    def _windows(self, volume: torch.Tensor) -> torch.Tensor:
        """Logits float32 [classes, X, Y, Z], windows blended. A window of nothing but background is not run."""
        x, y, z = volume.shape
        windows = Windows((x, y, z), self._patch)
        total = torch.zeros(self._network.classes, x, y, z, device=self._device)
        lowest = volume.min()
        for corner, weights in windows.blended():
            window = part(corner, self._patch)
            along = [torch.from_numpy(weight).to(self._device) for weight in weights]
            weight = along[0][:, None, None] * along[1][:, None] * along[2]
            if bool((volume[window] == lowest).all()):
                total[(0, *window)] += BACKGROUND_LOGIT * weight
            else:
                _add(total[(slice(None), *window)], self._logits(volume[window]), weight)
        return total

    def _pass(self, volume: torch.Tensor) -> torch.Tensor:
        """Logits float32 [classes, X, Y, Z] of the whole volume, with the norms' statistics as measured."""
        try:
            return self._logits(volume).float().contiguous()
        finally:
            self._field(FieldNorm.use_own)

    def _measure(self, volume: torch.Tensor) -> None:
        """Let two windows at opposite corners, which together see most of a brain, set the norms' statistics."""
        x, y, z = volume.shape
        self._field(FieldNorm.measure)
        for corner in Windows((x, y, z), self._patch).opposite():
            self._logits(volume[part(corner, self._patch)])
        self._field(FieldNorm.use_measured)

    def _logits(self, volume: torch.Tensor) -> torch.Tensor:
        """[classes, X, Y, Z], one pass."""
        logits: torch.Tensor = self._network(volume[None, None].contiguous(memory_format=self._format))[0]
        return logits

    def _field(self, change: Callable[[FieldNorm], None]) -> None:
        for norm in self._norms:
            change(norm)

    def _needs(self, at_once: Shape, padded: Shape) -> int:
        bf16 = uses_bf16(self._device, self._precision)
        return predicted_bytes(self._network.preset, self._network.classes, at_once, padded, bf16=bf16)


def _add(total: torch.Tensor, logits: torch.Tensor, weight: torch.Tensor) -> None:
    """Add weighted logits, a slab at a time: what changes its memory layout and type stays in the cache."""
    for slab in range(total.shape[1]):
        total[:, slab].addcmul_(logits[:, slab].contiguous().float(), weight[slab])


def _softmax(logits: torch.Tensor) -> torch.Tensor:
    """Over the first axis, in place, a slab at a time."""
    for slab in range(logits.shape[1]):
        logits[:, slab] = torch.softmax(logits[:, slab], dim=0)
    return logits


def _at_least(shape: Shape, least: Shape, multiple: int = 1) -> Shape:
    """`shape`, each side grown to `least` and to a multiple."""
    x, y, z = (-(-max(side, low) // multiple) * multiple for side, low in zip(shape, least, strict=True))
    return x, y, z


def _padded(volume: torch.Tensor, shape: Shape) -> tuple[torch.Tensor, tuple[slice, slice, slice]]:
    """`volume` in the middle of `shape`, its lowest value around it, and where it lies."""
    missing = [side - old for side, old in zip(shape, volume.shape, strict=True)]
    x, y, z = (slice(gap // 2, gap // 2 + old) for gap, old in zip(missing, volume.shape, strict=True))
    widths = [width for gap in reversed(missing) for width in (gap // 2, gap - gap // 2)]
    return torch.nn.functional.pad(volume, widths, value=float(volume.min())), (x, y, z)
