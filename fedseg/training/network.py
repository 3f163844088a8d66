"""The networks a study can train: three presets of MONAI's 3D UNet, safe for subject-level DP-SGD.

Both normalise with GroupNorm, which looks at one patch alone and keeps no running statistics, so one subject's
gradient never depends on another subject. The UNet puts out 8 channels and a 1x1x1 head maps them to the classes,
because 8 groups cannot be laid over 2 or 7 channels.

`lean` ends one level earlier: its head is a transposed convolution that makes eight voxels of classes from one voxel of
features. What `base` does at full resolution takes more than half of a training step on a CPU.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.networks.nets.unet import UNet
from torch import nn

from fedseg.errors import ModelError

Array = npt.NDArray[np.float32]

GROUPS = 8
HEAD_CHANNELS = 8
RESIDUAL_UNITS = 2
FAMILY = "monai-unet"
MAX_CLASSES = 256


@dataclass(frozen=True)
class Preset:
    """One size of network.

    Attributes:
        channels: Of each level, each level halving the grid of the one before.
        refines: Whether it convolves at full resolution.
    """

    channels: tuple[int, ...]
    refines: bool = True

    @property
    def multiple(self) -> int:
        """What each side of an input must be a multiple of, in voxels."""
        return int(2 ** (len(self.channels) - 1))


PRESETS: Mapping[str, Preset] = {
    "small": Preset((8, 16, 32, 64)),
    "base": Preset((16, 32, 64, 128, 256)),
    "lean": Preset((16, 32, 64, 128, 256), refines=False),
}


class SegmentationNet(nn.Module):
    """A UNet with a head of one layer: float [N, 1, X, Y, Z] in, logits [N, classes, X, Y, Z] out.

    X, Y and Z must be multiples of `multiple`, at least twice that.
    """

    def __init__(self, preset: str, classes: int) -> None:
        """Lay out the layers; the weights are torch's defaults until `build_network` seeds them."""
        super().__init__()
        size = PRESETS[preset]
        self.preset = preset
        self.classes = classes
        self.multiple = size.multiple
        self.body = UNet(
            spatial_dims=3,
            in_channels=1,
            out_channels=HEAD_CHANNELS,
            channels=size.channels,
            strides=(2,) * (len(size.channels) - 1),
            num_res_units=RESIDUAL_UNITS,
            norm=("GROUP", {"num_groups": GROUPS}),
        )
        self.head: nn.Conv3d | nn.ConvTranspose3d
        if size.refines:
            self.head = nn.Conv3d(HEAD_CHANNELS, classes, kernel_size=1)
        else:
            # The skip connection joins the first level's channels to as many from below.
            levels: Any = self.body.model
            levels[2] = nn.Identity()
            self.head = nn.ConvTranspose3d(2 * size.channels[0], classes, kernel_size=2, stride=2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits of every class at every voxel; softmax is the caller's."""
        logits: torch.Tensor = self.head(self.body(image))
        return logits


def build_network(preset: str, classes: int, seed: int | None) -> SegmentationNet:
    """A fresh network of `classes` classes (background included), on the CPU, in float32.

    Args:
        preset: A name in `PRESETS`.
        classes: 2 to 256; labels are uint8.
        seed: Initial weights are a function of it; None draws them from the operating system. torch's global
            generator is left as it was found.

    Raises:
        ModelError: An unknown preset or an impossible number of classes.
    """
    if preset not in PRESETS:
        raise ModelError(f"unknown network preset {preset!r}", hint=f"known: {', '.join(sorted(PRESETS))}")
    if not 2 <= classes <= MAX_CLASSES:
        raise ModelError(f"a network of {classes} classes", hint=f"2 to {MAX_CLASSES}, background included")
    with torch.random.fork_rng(devices=[]):
        if seed is None:
            torch.seed()
        else:
            torch.manual_seed(seed)
        return SegmentationNet(preset, classes)


def choose_layers(model: SegmentationNet, layers: str) -> None:
    """Let only some layers train; the others stay as they are loaded.

    Fewer parameters drown in less noise, where a model has been trained elsewhere before.

    Args:
        model: Changed in place.
        layers: `all`; `decoder` (every up path of the UNet, and the head); `head` (the last layer alone); or
            `norms` (scale and shift of every GroupNorm, and the head, without which no new classes can be learnt).

    Raises:
        ModelError: No such choice.
    """
    chosen: dict[str, Callable[[], list[nn.Module]]] = {
        "all": lambda: [model],
        "decoder": lambda: [*_up_paths(model.body), model.head],
        "head": lambda: [model.head],
        "norms": lambda: [*(module for module in model.modules() if isinstance(module, nn.GroupNorm)), model.head],
    }
    if layers not in chosen:
        raise ModelError(f"unknown choice of layers {layers!r}", hint=f"known: {', '.join(chosen)}")
    model.requires_grad_(False)
    for module in chosen[layers]():
        module.requires_grad_(True)


def trained_names(preset: str, classes: int, layers: str) -> tuple[str, ...]:
    """Names of the parameters that train, sorted.

    Raises:
        ModelError: As `build_network` and `choose_layers`.
    """
    return tuple(trained_arrays(_chosen(preset, classes, layers)))


def norm_names(preset: str, classes: int) -> tuple[str, ...]:
    """Names of scale and shift of every normalisation layer, sorted.

    Raises:
        ModelError: As `build_network`.
    """
    modules = build_network(preset, classes, seed=0).named_modules()
    norms = [(name, module) for name, module in modules if isinstance(module, nn.GroupNorm)]
    return tuple(sorted(f"{name}.{own}" for name, module in norms for own, _ in module.named_parameters()))


def trained_parameters(preset: str, classes: int, layers: str) -> int:
    """How many numbers train: d.

    Raises:
        ModelError: As `build_network` and `choose_layers`.
    """
    return sum(p.numel() for p in _chosen(preset, classes, layers).parameters() if p.requires_grad)


def arrays(model: nn.Module) -> dict[str, Array]:
    """Copies of all parameters as float32, sorted by name: trained or not, they are the state of a study."""
    return {name: _array(p) for name, p in sorted(model.named_parameters())}


def trained_arrays(model: nn.Module) -> dict[str, Array]:
    """Copies of the parameters that train, as float32, sorted by name."""
    return {name: _array(p) for name, p in sorted(model.named_parameters()) if p.requires_grad}


def load_arrays(model: nn.Module, values: Mapping[str, npt.NDArray[Any]]) -> None:
    """Put `values` into all parameters of `model`, trained or not, in place.

    Raises:
        ModelError: A name is missing or unknown, a shape differs, or a value is not finite. `model` is untouched then.
    """
    parameters = dict(model.named_parameters())
    _refuse_misfit(parameters, values)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.from_numpy(np.array(values[name], dtype=np.float32)))


def _chosen(preset: str, classes: int, layers: str) -> SegmentationNet:
    model = build_network(preset, classes, seed=0)
    choose_layers(model, layers)
    return model


def _up_paths(body: UNet) -> Iterator[nn.Module]:
    """The last of the three parts of every level: MONAI nests (down, skip connection of the next level, up)."""
    level: Any = body.model
    while isinstance(level, nn.Sequential):
        _, skip, up = level
        yield up
        level = getattr(skip, "submodule", None)


def _array(parameter: nn.Parameter) -> Array:
    return parameter.detach().to("cpu", torch.float32).contiguous().numpy().copy()


def _refuse_misfit(parameters: Mapping[str, nn.Parameter], values: Mapping[str, npt.NDArray[Any]]) -> None:
    missing, unknown = sorted(parameters.keys() - values.keys()), sorted(values.keys() - parameters.keys())
    if missing or unknown:
        first = next(itertools.chain(missing, unknown))
        raise ModelError(
            f"the weights don't fit the network: {len(missing)} missing, {len(unknown)} unknown, first {first!r}",
            hint="weights and architecture come from different models",
        )
    for name, parameter in parameters.items():
        if tuple(values[name].shape) != tuple(parameter.shape):
            raise ModelError(
                f"weight {name!r} is {tuple(values[name].shape)}, the network wants {tuple(parameter.shape)}"
            )
        if not np.isfinite(values[name]).all():
            raise ModelError(f"weight {name!r} holds a value that is not finite")


def architecture(preset: str, classes: int) -> dict[str, Any]:
    """What a model file says about its network: JSON data that `from_architecture` reads back."""
    return {"family": FAMILY, "preset": preset, "classes": classes, "groups": GROUPS, "head_channels": HEAD_CHANNELS}


def from_architecture(description: Mapping[str, Any]) -> SegmentationNet:
    """The network that `architecture` described, with weights yet to be loaded.

    A model file is data from elsewhere: only the keys, families and presets of this package are accepted.

    Raises:
        ModelError: A key is missing or unknown, or a value is none that this version knows.
    """
    preset, classes = description.get("preset"), description.get("classes")
    if not isinstance(preset, str) or isinstance(classes, bool) or not isinstance(classes, int):
        raise ModelError("the model file doesn't name its network's preset and classes", hint="is it a fedseg model?")
    network = build_network(preset, classes, seed=0)
    expected = architecture(preset, classes)
    wrong = sorted(
        str(key) for key in description.keys() | expected.keys() if description.get(key) != expected.get(key)
    )
    if wrong:
        raise ModelError(
            f"the model file describes a network that this version doesn't know: {', '.join(wrong)}",
            hint="use the fedseg version that wrote it",
        )
    return network
