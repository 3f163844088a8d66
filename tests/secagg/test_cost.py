"""Gates that hold on a shared machine: what a step allocates, and a loose bound on a mask's time."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np

from fedseg.secagg.encoding import Encoding
from fedseg.secagg.masking import add_mask

from .helpers import after_share, session


def test_a_mask_never_needs_a_second_vector() -> None:
    vector = np.zeros(2_000_000, np.uint32)
    tracemalloc.start()
    add_mask(vector, bytes(32), 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_a_masked_input_costs_one_vector_beside_its_input() -> None:
    header = session(encoding=Encoding(3, 1.0, 1, 1_000_000))
    server, states = after_share(header)
    u2 = server.close_share()
    x = np.zeros(header.length, np.uint32)
    incoming = server.envelopes_for("amiens")
    tracemalloc.start()
    _, message, y = states["amiens"].mask(incoming, u2, x)
    server.mask(message, y)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.3 * x.nbytes


def test_a_mask_is_made_at_the_speed_of_a_cipher_in_hardware() -> None:
    """The target is 6 ms for 5M on a quiet core, and 3.2 were measured; ten times 6 is for shared machines."""
    vector = np.zeros(5_000_000, np.uint32)
    best = min(_seconds(vector) for _ in range(5))
    assert best < 0.06


def _seconds(vector: np.ndarray[tuple[int], np.dtype[np.uint32]]) -> float:
    start = time.perf_counter()
    add_mask(vector, bytes(32), 1)
    return time.perf_counter() - start
