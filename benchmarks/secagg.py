"""What does secure aggregation cost a site and the server: time, memory and bytes?

Runs whole sessions with one site and the server in processes of their own (memory is read there, beyond what the
interpreter holds before there is a vector), and all other sites in this one. Prints one JSON line for each number of
sites and of dropouts: none, and as many as may be lost between the shares and the upload. The sum is checked each time.

    OMP_NUM_THREADS=1 python benchmarks/secagg.py [--parameters 5000000] [--sites 3 10 30]

Every time is in milliseconds of the processor (other programs that take turns don't count): the median and the least
of five sessions, and the median as a ratio to one AES-256-CTR stream over the vector with one addition of it, measured
at the site in the same sessions:

- mask: one mask over one vector
- encode, digest: an update into the ring, and the hash of a masked vector
- client: all masks, shares, envelopes, signatures and checks of one site, without the two before
- server: the sum from the shares: secrets reconstructed and masks taken off

Peak memory is the kernel's (`VmHWM`, Linux): it counts numpy's arrays and OpenSSL's buffers alike, where
`getrusage` would still show the peak of the process that started this one, and tracemalloc would slow every step.
At a site that is the update and its encoded vector, then that and the masked one; at the server the sum and the one
upload that is being added, while the others wait on disk.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import secrets
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from fedseg.rpc import codec, transfer
from fedseg.rpc._pb import federation_pb2 as pb
from fedseg.rpc.staging import stage
from fedseg.secagg.aggregator import SecureAggregator
from fedseg.secagg.encoding import Encoding
from fedseg.secagg.masking import add_mask
from fedseg.secagg.messages import Advertisement, Consistency, Envelopes, MaskedInput, Shares, input_digest
from fedseg.secagg.roster import Identity, Roster
from fedseg.secagg.session import SessionHeader
from fedseg.secagg.signing import public_half
from fedseg.secagg.site import Masked, Shared, advertise
from fedseg.secagg.thresholds import Thresholds

SESSIONS = 5
PIECE = 1 << 18
GRPC_FRAME = 5
MEGABYTE = 1e6
Vector = NDArray[np.uint32]
Times = dict[str, float]


@dataclass(frozen=True)
class Study:
    """Who takes part, with the keys of all, and in what.

    Args:
        parameters: Of the model.
        server: The server's private key.
        keys: The sites' private keys by name.
    """

    parameters: int
    server: bytes = field(repr=False)
    keys: dict[str, bytes] = field(repr=False)

    @classmethod
    def of(cls, sites: int, parameters: int) -> Study:
        """A study of `site-00`, `site-01` and so on."""
        keys = {f"site-{number:02}": secrets.token_bytes(32) for number in range(sites)}
        return cls(parameters, secrets.token_bytes(32), keys)

    def roster(self) -> Roster:
        """The public keys."""
        public = {site: public_half(key) for site, key in self.keys.items()}
        return Roster("benchmark", bytes(32), public_half(self.server), public)

    def header(self) -> SessionHeader:
        """The one session."""
        roster = self.roster()
        return SessionHeader.of(
            study=roster.study,
            plan_hash=roster.plan_hash,
            round=1,
            attempt=1,
            model_hash=bytes(32),
            encoding=Encoding(len(self.keys), 1.0, 1, self.parameters),
            sites=roster.sites,
            thresholds=Thresholds.of(len(self.keys)),
            roster=roster.fingerprint,
        )


class Stopwatch:
    """Milliseconds by name, added up."""

    def __init__(self) -> None:
        """Begin with none."""
        self.times: Times = defaultdict(float)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add the time within."""
        began = time.process_time()
        yield
        self.times[name] += (time.process_time() - began) * 1e3


class Memory:
    """How much more this process has come to hold, at most, than when this was made."""

    def __init__(self) -> None:
        """Forget the peak so far."""
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        self._before = self._status("VmRSS")

    def peak(self) -> float:
        """In megabytes."""
        return (self._status("VmHWM") - self._before) / MEGABYTE

    def _status(self, name: str) -> int:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        (kilobytes,) = (line.split()[1] for line in lines if line.startswith(f"{name}:"))
        return int(kilobytes) * 1024


def aes_ctr_and_add(vector: Vector) -> None:
    """The floor: one AES-256-CTR stream over the vector's bytes, added to it piece by piece."""
    encryptor = Cipher(algorithms.AES256(bytes(32)), modes.CTR(bytes(16))).encryptor()
    zeros, stream = bytes(PIECE), bytearray(PIECE + 15)
    words = np.frombuffer(stream, dtype=np.uint32, count=PIECE // 4)
    for start in range(0, vector.size, words.size):
        piece = vector[start : start + words.size]
        encryptor.update_into(memoryview(zeros)[: piece.nbytes], stream)
        np.add(piece, words[: piece.size], out=piece)


def encode(header: SessionHeader, watch: Stopwatch) -> Vector:
    """An input: the same at every site, so that the sum is known."""
    update = np.random.default_rng(0).standard_normal(header.dimension, dtype=np.float32)
    # A virtual machine may have to ask its host for pages, at ten times the cost: leave some that it has just had.
    np.ones(header.length, dtype=np.uint32)
    code = header.encoding
    if not isinstance(code, Encoding):
        raise TypeError("this benchmark is of updates")
    with watch("encode"):
        return code.encode(update, 1, bytes(32)).vector


def site_process(pipe: Connection, study: Study, site: str) -> None:
    """The site that is measured; it receives what the server sends it in each step."""
    header, identity = study.header(), Identity(site, study.keys[site], study.roster())
    for _ in range(SESSIONS):
        watch, memory = Stopwatch(), Memory()
        with watch("client"):
            advertised = advertise(header, identity, secrets.token_bytes)
        pipe.send(advertised.message.to_bytes())
        u1 = pipe.recv()
        with watch("client"):
            shared = advertised.share_keys([Advertisement.from_bytes(data) for data in u1], secrets.token_bytes)
        pipe.send(shared.message.to_bytes())
        masked = masking(pipe, watch, shared)
        u3 = pipe.recv()
        with watch("client"):
            signed = masked.confirm(u3)
        pipe.send(signed.message.to_bytes())
        signatures = pipe.recv()
        with watch("client"):
            unmasked = signed.unmask(signatures)
        pipe.send(unmasked.message.to_bytes())
        pipe.send((dict(watch.times), memory.peak()))


def masking(pipe: Connection, watch: Stopwatch, shared: Shared) -> Masked:
    """Step 3 of the measured site, and beside it what it is compared with."""
    incoming, u2 = pipe.recv()
    x = encode(shared.header, watch)
    with watch("client"):
        masked, y = shared.mask(incoming, u2, x)
    with watch("digest"):
        digest = input_digest(shared.sid, shared.site, u2, y)
    if digest != masked.message.digest:
        sys.exit("the digest that was measured is not the one that was sent")
    watch.times["client"] -= watch.times["digest"]
    send_upload(pipe, masked.message, y)
    with watch("aes"):
        aes_ctr_and_add(y)
    with watch("mask"):
        add_mask(y, bytes(32), 1)
    return masked


def server_process(pipe: Connection, study: Study, folder: Path) -> None:
    """The server; it receives the sites' messages of each step together."""
    header, roster = study.header(), study.roster()
    for _ in range(SESSIONS):
        watch, memory = Stopwatch(), Memory()
        server = SecureAggregator(header, roster)
        for data in pipe.recv():
            server.advertise(Advertisement.from_bytes(data))
        pipe.send([each.to_bytes() for each in server.close_advertise()])
        for data in pipe.recv():
            server.share(Envelopes.from_bytes(data))
        u2 = server.close_share()
        pipe.send((u2, {site: dict(server.envelopes_for(site)) for site in u2}))
        add_uploads(pipe, server, folder)
        pipe.send(server.close_mask())
        for data in pipe.recv():
            server.consistency(Consistency.from_bytes(data))
        pipe.send(dict(server.close_consistency()))
        for data in pipe.recv():
            server.shares(Shares.from_bytes(data))
        with watch("server"):
            total = server.close_unmask()
        pipe.send((dict(watch.times), memory.peak(), hashlib.sha256(total.data).digest()))


def add_uploads(pipe: Connection, server: SecureAggregator, folder: Path) -> None:
    """Add the sites' vectors once all of them lie on disk: the most that can be in flight."""
    size, staged = 4 * server.header.length, []
    for _ in range(pipe.recv()):
        message = MaskedInput.from_bytes(pipe.recv())
        pieces = (pipe.recv_bytes() for _ in range(0, size, transfer.CHUNK_BYTES))
        staged.append((message, stage(folder, pieces, size)))
    while staged:
        server.mask(*staged.pop())


def send_upload(pipe: Connection, message: MaskedInput, vector: Vector) -> None:
    """An upload: its message, then its pieces."""
    pipe.send(message.to_bytes())
    for piece in transfer.chunks(vector):
        pipe.send_bytes(piece)


class Driver:
    """All other sites, and the wire between the two processes that are measured.

    Args:
        study: Who takes part.
        site: The pipe to the measured site, the first of the study.
        server: The pipe to the server.
        lost: Sites that share their keys and upload nothing.
    """

    def __init__(self, study: Study, site: Connection, server: Connection, lost: Sequence[str]) -> None:
        """Make the input that all send."""
        self.header, self.roster = study.header(), study.roster()
        self._site, self._server, self._lost = site, server, lost
        self._others = [Identity(name, key, self.roster) for name, key in study.keys.items()][1:]
        self._x = encode(self.header, Stopwatch())
        self._sent = 0

    def run(self) -> tuple[Times, Times]:
        """One session; the site's figures and the server's, `bytes` and `peak` among them."""
        self._sent = 0
        advertised = [advertise(self.header, other, secrets.token_bytes) for other in self._others]
        u1 = self._exchange([each.message.to_bytes() for each in advertised])
        self._site.send(u1)
        known = [Advertisement.from_bytes(data) for data in u1]
        shared = [each.share_keys(known, secrets.token_bytes) for each in advertised]
        u2, envelopes = self._exchange([each.message.to_bytes() for each in shared])
        masked, u3 = self._upload(shared, u2, envelopes)
        self._site.send(u3)
        signed = [each.confirm(u3) for each in masked]
        signatures = self._exchange([each.message.to_bytes() for each in signed])
        self._site.send(signatures)
        return self._figures([each.unmask(signatures).message.to_bytes() for each in signed], len(u3))

    def _exchange(self, messages: list[bytes]) -> Any:
        """A step: the measured site's message and the others' to the server; its answer."""
        own = self._site.recv()
        self._sent += len(own) + GRPC_FRAME
        self._server.send([own, *messages])
        return self._server.recv()

    def _upload(
        self, shared: Sequence[Shared], u2: Sequence[str], envelopes: Mapping[str, Mapping[str, bytes]]
    ) -> tuple[list[Masked], tuple[str, ...]]:
        uploading = [each for each in shared if each.site not in self._lost]
        self._server.send(1 + len(uploading))
        (own,) = {*envelopes} - {each.site for each in shared}
        self._site.send((envelopes[own], u2))
        self._relay()
        masked = []
        for each in uploading:
            state, y = each.mask(envelopes[each.site], u2, self._x)
            send_upload(self._server, state.message, y)
            masked.append(state)
        return masked, self._server.recv()

    def _relay(self) -> None:
        """The measured site's upload, with its bytes counted as gRPC carries them."""
        message, size = MaskedInput.from_bytes(self._site.recv()), 4 * self.header.length
        self._server.send(message.to_bytes())
        parts = [pb.UploadPart(header=codec.encode_upload(self.header.sid0(), message, size))]
        self._sent += parts[0].ByteSize() + GRPC_FRAME
        for _ in range(0, size, transfer.CHUNK_BYTES):
            piece = self._site.recv_bytes()
            self._sent += pb.UploadPart(chunk=piece).ByteSize() + GRPC_FRAME
            self._server.send_bytes(piece)

    def _figures(self, shares: list[bytes], contributors: int) -> tuple[Times, Times]:
        times, peak, digest = self._exchange(shares)
        expected = self._x * np.uint32(contributors)
        if digest != hashlib.sha256(expected.data).digest():
            sys.exit("the sum is wrong")
        server = {**times, "peak": peak}
        times, peak = self._site.recv()
        return {**times, "peak": peak, "bytes": self._sent}, server


def measure(sites: int, parameters: int, dropouts: int, folder: Path) -> dict[str, Any]:
    """One row."""
    study, spawn = Study.of(sites, parameters), multiprocessing.get_context("spawn")
    names = list(study.keys)
    (site, site_end), (server, server_end) = spawn.Pipe(), spawn.Pipe()
    processes = [
        spawn.Process(target=site_process, args=(site_end, study, names[0]), daemon=True),
        spawn.Process(target=server_process, args=(server_end, study, folder), daemon=True),
    ]
    for process in processes:
        process.start()
    # So that a process that has failed ends this one too, rather than leave it waiting.
    site_end.close()
    server_end.close()
    driver = Driver(study, site, server, names[sites - dropouts :])
    rounds = [driver.run() for _ in range(SESSIONS)]
    for process in processes:
        process.join()
    return {"n": sites, "parameters": parameters, "dropouts": dropouts, **summary(rounds)}


def summary(rounds: Sequence[tuple[Times, Times]]) -> dict[str, float]:
    """Medians, least times and ratios of the sessions, the greatest peaks, and the bytes."""
    columns = {name: [site[name] for site, _ in rounds] for name in ("aes", "mask", "encode", "digest", "client")}
    columns["server"] = [server["server"] for _, server in rounds]
    floor = statistics.median(columns["aes"])
    row: dict[str, float] = {}
    for name, times in columns.items():
        row[f"{name}_ms"] = round(statistics.median(times), 2)
        row[f"{name}_least_ms"] = round(min(times), 2)
        row[f"{name}_ratio"] = round(statistics.median(times) / floor, 2)
    row["site_peak_mb"] = round(max(site["peak"] for site, _ in rounds), 1)
    row["server_peak_mb"] = round(max(server["peak"] for _, server in rounds), 1)
    return row | {"bytes": max(site["bytes"] for site, _ in rounds)}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--parameters", type=int, default=5_000_000)
    parser.add_argument("--sites", type=int, nargs="+", default=[3, 10, 30])
    asked = parser.parse_args()
    if not Path("/proc/self/clear_refs").exists():
        sys.exit("peak memory can be measured on Linux only")
    with tempfile.TemporaryDirectory() as folder:
        for sites in asked.sites:
            most = sites - Thresholds.of(sites).quorum
            for dropouts in sorted({0, most}):
                row = measure(sites, asked.parameters, dropouts, Path(folder))
                print(json.dumps({"benchmark": "secagg"} | row), flush=True)


if __name__ == "__main__":
    main()
