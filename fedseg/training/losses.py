"""What training minimises: cross-entropy and Dice over the patches of one subject."""

from __future__ import annotations

import torch
from torch.nn.functional import log_softmax

DICE_SMOOTHING = 1.0
LEAST_VOXELS = 64.0


def subject_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Weighted cross-entropy plus one minus the mean Dice of the tissues, over the K patches of one subject.

    Args:
        logits: [K, classes, X, Y, Z], of any float type; computed on in float32.
        labels: Integer [K, X, Y, Z], below `classes`.

    Both terms count all K patches together. A voxel weighs the inverse square root of its class's share, scaled to a
    mean of one: without it a brainstem waits hundreds of steps behind the background. Dice (Milletari et al. 2016)
    leaves the background out; a tissue that is in none of the patches costs what the network wrongly claims of it,
    softened by one voxel.
    """
    classes = torch.arange(logits.shape[1], device=logits.device).view(1, -1, 1, 1, 1)
    truth = (labels.unsqueeze(1) == classes).float()
    log_probabilities = log_softmax(logits.float(), dim=1)
    probabilities = log_probabilities.exp()
    over = (0, 2, 3, 4)
    voxels = truth.sum(over)
    weights = class_weights(voxels)
    cross_entropy = -((log_probabilities * truth).sum(over) * weights).sum() / labels.numel()
    overlap = 2 * (probabilities * truth).sum(over) + DICE_SMOOTHING
    dice = overlap / (probabilities.sum(over) + voxels + DICE_SMOOTHING)
    return cross_entropy + 1 - dice[1:].mean()


def class_weights(voxels: torch.Tensor) -> torch.Tensor:
    """Weight of one voxel of each class: its share to the power -1/2, mean one over all voxels, 0 where absent.

    Args:
        voxels: Float [classes], voxels of each class in one subject's patches; a class of fewer than
            `LEAST_VOXELS` weighs as if it had that many.
    """
    present = (voxels > 0).float()
    raw = present * voxels.clamp(min=LEAST_VOXELS).rsqrt()
    return raw * (voxels.sum() / (raw * voxels).sum())
