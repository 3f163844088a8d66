"""Class probabilities of a whole prepared volume from a trained network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.inferers.utils import sliding_window_inference

from fedseg.errors import DataError
from fedseg.training.compute import autocast
from fedseg.training.network import SegmentationNet, from_architecture, load_arrays

OVERLAP = 0.5
WINDOWS_AT_ONCE = 2


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
    model: SegmentationNet, image: npt.NDArray[np.float32], patch: tuple[int, int, int], *, precision: str = "auto"
) -> npt.NDArray[np.float32]:
    """Probabilities float32 [classes, X, Y, Z] of a prepared image float32 [X, Y, Z]; they sum to 1 at each voxel.

    Windows of the training patch overlap by half, blended with Gaussian weights (Isensee et al. 2021). A whole volume
    in one pass would be faster and worse: GroupNorm's statistics are those of the field of view, and the network knows
    those of a patch (mean Dice on the atlases: .837 by windows, .798 in one pass).

    Args:
        model: From `load_segmenter`.
        image: At the spacing and with the normalisation that the model was trained on; padded like a training patch
            (with its lowest value) where it is smaller than one.
        patch: The plan's patch; each side a multiple of `model.multiple`.
        precision: As in the plan's training section.

    Raises:
        DataError: `image` is not a 3D volume of finite values.
    """
    if image.ndim != 3 or not image.size or not np.isfinite(image).all():
        raise DataError(f"an image of shape {image.shape} cannot be segmented: a finite 3D volume is needed")
    device = next(model.parameters()).device
    padded, inside = _padded(image.astype(np.float32, copy=False), patch)
    batch = torch.from_numpy(padded)[None, None].to(device)
    with torch.no_grad(), autocast(device, precision):
        logits = sliding_window_inference(batch, patch, WINDOWS_AT_ONCE, model, overlap=OVERLAP, mode="gaussian")
        probabilities = torch.softmax(logits[0].float(), dim=0)
    result: npt.NDArray[np.float32] = np.ascontiguousarray(probabilities[(slice(None), *inside)].cpu().numpy())
    return result


def _padded(
    image: npt.NDArray[np.float32], patch: tuple[int, int, int]
) -> tuple[npt.NDArray[np.float32], tuple[slice, slice, slice]]:
    """`image` in the middle of at least one patch, its lowest value around it, and where it lies."""
    missing = [max(side - old, 0) for side, old in zip(patch, image.shape, strict=True)]
    x, y, z = (slice(gap // 2, gap // 2 + old) for gap, old in zip(missing, image.shape, strict=True))
    widths = [(gap // 2, gap - gap // 2) for gap in missing]
    return np.pad(image, widths, constant_values=float(image.min())), (x, y, z)
