"""How much of the server one site may hold at once.

gRPC lets a client open as many calls as it likes and say nothing in them. What a client can make the server hold is
bounded by these, together:

- `rpc.service.start_server`: calls beyond the server's threads are refused, not queued; a client tries again later.
- `LIMITS`: few streams a connection, and no message larger than a piece of an upload. A stream's read-ahead is fixed:
  gRPC's own estimate follows what a client sends and how late it answers pings, up to 1 GiB.
- `Turns`: a site has at most `CALLS_A_SITE` calls under way, and at most one transfer: a newer one ends an older one
  that hangs. With a message and its read-ahead that is about 4 MiB a call. (64 polls of one site, each with an endless
  stream behind it, held 1.9 GB without any of this, and 28 MB with it.)
- An upload lies on disk (`rpc.staging`), never in memory, and only where the study asked for it: one a site, of the
  one size that a vector has.
- A request holds no list and no map; canonical messages are capped before they are read (`secagg.wire.Reader`).

Not prevented: peers with a certificate or an invite can keep threads busy with calls in which they send nothing, over
many connections (about 25 kB each, as many as the system lets the process open). That is denial of service, and
whoever does it is known by certificate.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fedseg.errors import Unreachable
from fedseg.rpc.credentials import SERVER_OPTIONS, Options
from fedseg.rpc.transfer import CHUNK_BYTES

CALLS_A_SITE = 4
"""A poll, a transfer, a short call, and a transfer that is being ended."""

LIMITS: Options = [
    ("grpc.max_receive_message_length", CHUNK_BYTES + (1 << 16)),
    ("grpc.max_concurrent_streams", 2 * CALLS_A_SITE),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 2 * CHUNK_BYTES),
]


def bounded_options() -> Options:
    """`SERVER_OPTIONS` with `LIMITS` in place of what they bound more tightly."""
    return list({**dict(SERVER_OPTIONS), **dict(LIMITS)}.items())


class Turns:
    """Counts each site's calls; every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: Counter[str] = Counter()
        self._transfers: dict[str, Callable[[], None]] = {}

    @contextmanager
    def call(self, site: str) -> Iterator[None]:
        """The time of one call.

        Raises:
            Unreachable: if the site has `CALLS_A_SITE` under way.
        """
        with self._lock:
            if self._calls[site] >= CALLS_A_SITE:
                raise Unreachable("this site has too many calls under way", hint="is it joined twice?")
            self._calls[site] += 1
        try:
            yield
        finally:
            with self._lock:
                self._calls[site] -= 1

    @contextmanager
    def transfer(self, site: str, end: Callable[[], None]) -> Iterator[None]:
        """The time of one upload or download; ends the site's earlier one.

        Args:
            site: Whose.
            end: Called, from another thread, where a newer transfer takes its place.

        Raises:
            Unreachable: if the site has `CALLS_A_SITE` under way.
        """
        with self.call(site):
            with self._lock:
                earlier, self._transfers[site] = self._transfers.get(site), end
            if earlier is not None:
                earlier()
            try:
                yield
            finally:
                with self._lock:
                    if self._transfers.get(site) is end:
                        del self._transfers[site]
