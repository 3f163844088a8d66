"""How a device computes: precision, threads, deterministic kernels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from fedseg.training.network import SegmentationNet


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """bf16 where it `uses_bf16`, float32 otherwise."""
    return torch.autocast(device.type, torch.bfloat16, enabled=uses_bf16(device, precision))


def uses_bf16(device: torch.device, precision: str) -> bool:
    """Whether bf16 is asked for, or `auto` finds a device that computes it natively."""
    return precision == "bf16" or (precision == "auto" and native_bf16(device))


def training_cast(model: SegmentationNet, images: torch.Tensor, precision: str) -> torch.autocast:
    """`autocast` for a forward pass that is differentiated: float32 on a CPU where a level is two voxels deep.

    There torch 2.13 computes wrong weight gradients of a 3x3x3 convolution in bf16 (relative error 0.9 and more, or not
    a number; one or three voxels deep, and the forward pass, are right).
    """
    two_deep = images.device.type == "cpu" and images.shape[2] <= 2 * model.multiple
    return autocast(images.device, "float32" if two_deep else precision)


def native_bf16(device: torch.device) -> bool:
    """Whether bf16 arithmetic is in hardware: AMX or AVX512-BF16 on a CPU; Ampere or newer on a GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


@contextmanager
def one_thread() -> Iterator[None]:
    """For hundreds of short tensor operations: on a core that is shared, each wait for a second thread costs more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def reproducible(threads: int | None) -> Iterator[None]:
    """Deterministic kernels and, where given, a fixed number of threads; both are put back afterwards."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    memory: Any = torch.utils.deterministic
    fill = memory.fill_uninitialized_memory
    torch.set_num_threads(threads or before[0])
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
        memory.fill_uninitialized_memory = fill
