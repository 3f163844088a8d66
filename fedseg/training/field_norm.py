"""GroupNorm at inference: quick in channels-last memory, and able to see a whole volume with a patch's eyes.

GroupNorm's statistics are those of the field of view. A network that was trained on patches knows the share of tissue
and background in a patch, and is at a loss with a whole volume (`inference`). `FieldNorm` can measure its statistics on
windows of a patch's size and then use them on the whole volume.
"""

from __future__ import annotations

import copy
from enum import Enum, auto
from typing import cast

import torch
from monai.networks.blocks.acti_norm import ADN
from torch import nn

from fedseg.training.network import SegmentationNet

ROW = 128
ROWS_AT_ONCE = 2048
"""Of `ROW` values each: what is summed or scaled at once in float32 stays in a core's cache (1 MiB)."""


class _Field(Enum):
    """Whose statistics a norm uses."""

    OWN = auto()
    MEASURE = auto()
    MEASURED = auto()


class FieldNorm(nn.Module):
    """A GroupNorm and its PReLU, for one volume at a time: float [1, C, X, Y, Z].

    In channels-last memory both are computed in one go, in float32, a cache's worth at a time: torch 2.13's own kernel
    takes ten times as long there and is off by 1e-3 (bf16, 8 channels in 8 groups, 96 cubed: 25 ms; in contiguous
    memory, where the convolutions are slower, 2 ms).
    """

    def __init__(self, norm: nn.GroupNorm, slope: nn.PReLU) -> None:
        """Take over both modules; their weights stay shared."""
        super().__init__()
        self.norm, self.slope = norm, slope
        self._field = _Field.OWN
        self._moments: list[torch.Tensor] = []

    def measure(self) -> None:
        """Forget what was measured; the mean of the statistics of every volume from here on counts later."""
        self._field, self._moments = _Field.MEASURE, []

    def use_measured(self) -> None:
        """Use the statistics that were measured on every volume from here on."""
        self._field = _Field.MEASURED

    def use_own(self) -> None:
        """Use each volume's own statistics, as GroupNorm does."""
        self._field = _Field.OWN

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        """Normalised and activated, in the type and memory format of `volume`."""
        rows = _rows(volume)
        if rows is None and self._field is _Field.OWN:
            activated: torch.Tensor = self.slope(self.norm(volume))
            return activated
        moments = self._of(volume, rows)
        scale, shift = self._affine(moments, volume.shape[1])
        if rows is None:
            each = (1, -1, 1, 1, 1)
            activated = self.slope(volume.float() * scale.view(each) + shift.view(each))
            return activated.to(volume.dtype)
        scaled = _scaled(rows, scale, shift, float(self.slope.weight.detach()))
        return scaled.view_as(volume.permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3)

    def _of(self, volume: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
        """Mean and mean square of each group, float32 [2, groups]."""
        if self._field is _Field.MEASURED:
            return torch.stack(self._moments).mean(0)
        groups = self.norm.num_groups
        if rows is None:
            values = volume.float().reshape(groups, -1)
            moments = torch.stack([values.mean(1), (values * values).mean(1)])
        else:
            channels = _sums(rows).view(2, -1, volume.shape[1]).sum(1)
            moments = channels.view(2, groups, -1).sum(2) * (groups / volume.numel())
        if self._field is _Field.MEASURE:
            self._moments.append(moments)
        return moments

    def _affine(self, moments: torch.Tensor, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What each channel is multiplied with, and what is added."""
        mean, square = moments.repeat_interleave(channels // self.norm.num_groups, dim=1)
        scale = torch.rsqrt((square - mean * mean).clamp_min(0) + self.norm.eps) * self.norm.weight
        return scale, self.norm.bias - mean * scale


def with_field_norms(model: SegmentationNet) -> tuple[SegmentationNet, list[FieldNorm]]:
    """A copy of a network whose norms are `FieldNorm`s; the weights are shared, so it costs next to nothing."""
    shared = {id(parameter): parameter for parameter in model.parameters()}
    copied = copy.deepcopy(model, shared)
    norms = []
    for module in list(copied.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, ADN):
                norm, slope = child.get_submodule("N"), child.get_submodule("A")
                norms.append(FieldNorm(cast(nn.GroupNorm, norm), cast(nn.PReLU, slope)))
                setattr(module, name, norms[-1])
    return copied.eval(), norms


def _rows(volume: torch.Tensor) -> torch.Tensor | None:
    """A channels-last volume as [n, repeats * channels], wide enough for vector units; None where it is none."""
    if volume.device.type != "cpu" or not volume.is_contiguous(memory_format=torch.channels_last_3d):
        return None
    voxels, channels = volume[0, 0].numel(), volume.shape[1]
    repeats = 1
    while repeats * channels < ROW and voxels % (2 * repeats) == 0:
        repeats *= 2
    return volume.permute(0, 2, 3, 4, 1).reshape(-1, repeats * channels)


def _sums(rows: torch.Tensor) -> torch.Tensor:
    """Sum and sum of squares of each column, float32 [2, columns]."""
    total = torch.zeros(2, rows.shape[1])
    for part in torch.split(rows, ROWS_AT_ONCE):
        values = part.float()
        total[0] += values.sum(0)
        total[1] += (values * values).sum(0)
    return total


def _scaled(rows: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, slope: float) -> torch.Tensor:
    """A leaky ReLU of each column scaled and shifted."""
    repeats = rows.shape[1] // scale.numel()
    scale, shift = scale.repeat(repeats), shift.repeat(repeats)
    out = torch.empty_like(rows)
    for part, target in zip(torch.split(rows, ROWS_AT_ONCE), torch.split(out, ROWS_AT_ONCE), strict=True):
        target.copy_(nn.functional.leaky_relu_(torch.addcmul(shift, scale, part.float()), slope))
    return out
