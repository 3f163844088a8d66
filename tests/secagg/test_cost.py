"""Gates that hold on a shared machine: what a step allocates, and how many bytes go out. Times are the benchmark's."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from fedseg.rpc.staging import stage
from fedseg.rpc.transfer import chunks
from fedseg.secagg.encoding import Encoding
from fedseg.secagg.masking import add_mask

from .helpers import after_share, session, update_code

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "secagg.py"
DIMENSION = 1_000_000
VECTOR = 4 * DIMENSION
SCRATCH = 2 << 20


class Peak:
    """Bytes, once measured."""

    size = 0


@contextmanager
def peak() -> Iterator[Peak]:
    measured = Peak()
    tracemalloc.start()
    try:
        yield measured
        measured.size = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_mask_never_needs_a_second_vector() -> None:
    vector = np.zeros(2 * DIMENSION, np.uint32)
    with peak() as measured:
        add_mask(vector, bytes(32), 1)
    assert measured.size < 1 << 20


def test_encoding_makes_one_vector_and_decoding_one_mean() -> None:
    code = Encoding(3, 1.0, 1, DIMENSION, scored=True)
    update = np.full(DIMENSION, 1e-4, np.float32)
    with peak() as measured:
        vector = code.encode(update, 1, bytes(32)).vector
    assert VECTOR < measured.size < VECTOR + SCRATCH
    with peak() as measured:
        code.decode(vector, [1])
    assert VECTOR < measured.size < VECTOR + SCRATCH


def test_a_site_holds_at_most_three_vectors() -> None:
    """The update and what it is encoded to; then that and what it is masked to."""
    server, states = after_share(session(encoding=Encoding(3, 1.0, 1, DIMENSION)))
    u2 = server.close_share()
    state, incoming = states["amiens"], server.envelopes_for("amiens")
    with peak() as measured:
        x = update_code(state.header).encode(np.full(DIMENSION, 1e-4, np.float32), 1, bytes(32)).vector
        masked, y = state.mask(incoming, u2, x)
        masked.confirm(u2)
    assert 2 * VECTOR < measured.size < 2 * VECTOR + SCRATCH < 3 * VECTOR
    assert (y != x).any()


def test_the_server_adds_an_upload_from_disk_without_a_copy_of_it(tmp_path: Path) -> None:
    server, states = after_share(session(encoding=Encoding(3, 1.0, 1, DIMENSION)))
    u2 = server.close_share()
    x = np.zeros(DIMENSION + 1, np.uint32)
    masked, y = states["amiens"].mask(server.envelopes_for("amiens"), u2, x)
    with peak() as measured:
        server.mask(masked.message, stage(tmp_path, chunks(y), y.nbytes))
    assert measured.size < 2 * (1 << 20) + (1 << 18), "a piece of the upload and the one before"
    assert server.answered == ("amiens",)


@pytest.mark.skipif(sys.platform != "linux", reason="the benchmark reads memory from /proc")
def test_the_benchmark_sees_sums_come_out_and_uploads_of_four_bytes_a_parameter() -> None:
    command = [sys.executable, str(BENCHMARK), "--parameters", "300000", "--sites", "5"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = [json.loads(line) for line in printed.splitlines()]
    assert [(row["n"], row["dropouts"]) for row in rows] == [(5, 0), (5, 1)]
    for row in rows:
        assert 4 * 300_001 < row["bytes"] < 1.01 * 4 * 300_000
        for name in ("mask", "encode", "digest", "client", "server"):
            assert row[f"{name}_ms"] >= row[f"{name}_least_ms"] > 0
            assert row[f"{name}_ratio"] > 0
        assert row["site_peak_mb"] > 2.4
        assert row["server_peak_mb"] > 1.2
