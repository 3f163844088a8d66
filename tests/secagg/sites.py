"""Honest sites that can lose power at any write.

Every byte that one sends comes out of `runtime.participation`, which writes each state down (`state.dump`) before its
message leaves, and reads it back (`state.load`) when the site starts again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fedseg.runtime.participation import Participation
from fedseg.secagg.messages import SessionHeader
from fedseg.secagg.roster import Identity, Roster
from fedseg.secagg.state import load

from .helpers import Vector, entropy, key


class PowerCut(Exception):
    """The machine stopped before a write reached the disk."""


@dataclass
class Disk:
    """A site's folder and log; `writes_left` writes succeed, the one after is a power cut."""

    state: bytes | None = None
    vectors: dict[bytes, Vector] = field(default_factory=dict)
    log: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)
    writes_left: int | None = None

    def _write(self) -> None:
        if self.writes_left is not None:
            self.writes_left -= 1
            if self.writes_left < 0:
                raise PowerCut

    def fork(self) -> Disk:
        return replace(self, vectors=dict(self.vectors), log=list(self.log))

    def session(self) -> bytes | None:
        return self.state

    def save_session(self, data: bytes) -> None:
        self._write()
        self.state = data

    def masked(self, session: bytes) -> Vector | None:
        return self.vectors.get(session)

    def save_masked(self, session: bytes, vector: Vector) -> None:
        self._write()
        self.vectors[session] = vector.copy()

    def scored(self, model: str) -> str | None:
        return None

    def save_scored(self, model: str, digest: str) -> None:
        raise AssertionError("no session here is an evaluation")

    def entries(self) -> Sequence[tuple[str, Mapping[str, Any]]]:
        return tuple(self.log)

    def append(self, kind: str, body: Mapping[str, object]) -> None:
        self._write()
        self.log.append((kind, body))


class Site:
    """An honest site: it joins sessions over the model that it holds, and answers one step at a time."""

    def __init__(self, name: str, roster: Roster, expected: Callable[..., SessionHeader]) -> None:
        self.name, self.identity = name, Identity(name, key(name), roster)
        self.disk, self.model = Disk(), bytes([255]) * 32
        self._expected, self._entropy = expected, entropy(f"honest {name}")
        self.restart()

    def restart(self) -> None:
        """All that was not on the disk is gone."""
        self.disk.writes_left = None
        self.at_work = Participation(self.identity, self.disk, self.disk, entropy=self._entropy, may_reuse=False)

    def fork(self) -> Site:
        """The same site, whose future is its own."""
        twin = copy(self)
        twin.disk = self.disk.fork()
        twin.restart()
        return twin

    @property
    def state(self) -> Any:
        """What its disk says."""
        return None if self.disk.state is None else load(self.disk.state, self.identity)

    def x(self, header: SessionHeader) -> Vector:
        """Its update: the same whenever it trains the same model, as a server would have it at worst."""
        words = hashlib.shake_256(self.name.encode() + header.model_hash).digest(4 * header.length)
        return np.frombuffer(words, dtype="<u4").astype(np.uint32)

    def join(self, offered: SessionHeader) -> bytes | None:
        """Step 1, where the offer is exactly what this site would put together itself; None where it is past that."""
        self._expected(offered.round, offered.attempt, self.model).check_offer(offered)
        message = self.at_work.join(offered)
        return None if message is None else message.to_bytes()
