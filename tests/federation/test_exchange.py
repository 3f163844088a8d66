from __future__ import annotations

import numpy as np

from fedseg.federation.exchange import Published, Submit


def test_what_is_long_or_sealed_stays_out_of_logs() -> None:
    assert "secret" not in repr(Submit(bytes(32), ("a", "b"), {"b": b"secret"}))
    assert "array" not in repr(Published(1, ("a", "b"), np.zeros(3, np.uint32)))
