"""What a forward pass needs in memory, said before it is made, and what there is."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
from collections.abc import Mapping
from pathlib import Path

import torch

from fedseg.training.windows import Shape

BYTES_PER_VOXEL: Mapping[tuple[str, bool], float] = {
    ("small", False): 220.0,
    ("small", True): 160.0,
    ("lean", False): 230.0,
    ("lean", True): 130.0,
    ("base", False): 300.0,
    ("base", True): 200.0,
}
"""Peak of the network's forward pass for each voxel that goes in, by preset and whether it computes in bf16.

Measured on a CPU at 96 and 128 cubed with 8 classes, where they differ by up to a third.
"""

BYTES_PER_CLASS = 8.0
"""Of each voxel and class, in float32: probabilities, and a copy without the padding."""

MARGIN = 1.5
"""So much more than what is predicted must be free."""

_NO_MMAP, _NO_TRIMMING = (-4, 0), (-1, -1)
"""M_MMAP_MAX and M_TRIM_THRESHOLD of malloc.h, and their values."""

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def predicted_bytes(preset: str, classes: int, pass_shape: Shape, volume_shape: Shape, *, bf16: bool) -> int:
    """Peak memory of segmenting a volume, beyond what the volume and the weights take themselves.

    Args:
        preset: The network's.
        classes: Background included.
        pass_shape: What goes through the network at once.
        volume_shape: The whole (padded) volume, whose probabilities are kept.
        bf16: Whether the network computes in bf16.
    """
    network = BYTES_PER_VOXEL[preset, bf16] * math.prod(pass_shape)
    return int(network + BYTES_PER_CLASS * classes * math.prod(volume_shape))


def available_bytes(device: torch.device) -> int:
    """Memory that is free for the taking: the GPU's, or the machine's within the limit of a container (cgroup v2)."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(min(_machine(), _container()))


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; torch has a class of its own for that on a GPU only."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def keep_freed_memory() -> bool:
    """Let the C library keep large blocks that are freed, for this process: the next ones cost no page faults.

    A network of this kind frees and takes a hundred megabytes with every layer. 160 cubed in one pass takes 0.82 s of
    CPU time instead of 1.75 (`base`, bf16); by windows it changes nothing that can be told.

    Returns:
        Whether it could be done: the C library is GNU's.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return all(set_option(*option) == 1 for option in (_NO_MMAP, _NO_TRIMMING))


def _machine() -> int:
    with contextlib.suppress(OSError, StopIteration, ValueError, IndexError):
        lines = _MEMINFO.read_text().splitlines()
        return int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _container() -> float:
    """What a container may still take; infinite where there is no limit."""
    with contextlib.suppress(OSError, ValueError):
        limit, used = ((_CGROUP / name).read_text() for name in ("memory.max", "memory.current"))
        return int(limit) - int(used)
    return math.inf
