"""Gates that hold on a shared machine: what a step allocates."""

from __future__ import annotations

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
