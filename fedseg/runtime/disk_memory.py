"""What a site must not compute or say twice, on its own disk: its newest model, its session, its updates."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from fedseg.errors import StorageError
from fedseg.federation.exchange import Best, RingVector
from fedseg.federation.parts import Kept, newest_of
from fedseg.federation.vector import Weights
from fedseg.store import secrets
from fedseg.store.files import storage_errors, write_atomic
from fedseg.store.vectors import load_model_vector, load_ring_vector, save_vector

# The protocol's record of a session: keys, shares and messages of at most 100 sites.
SESSION = "session.bin"
MOST_SESSION = 1 << 22

# What evaluations were given, by model: hashes of statistics.
SCORED = "scored.json"

_CONTRIBUTIONS, _MASKED, _KEPT = "contribution-*.npy", "masked-*.npy", "kept-*.npy"
CACHE = "cache"

_ERASING = threading.Lock()  # the training thread keeps a contribution while the other one takes in a model


def remove_prepared(folder: Path) -> None:
    """Remove a folder of prepared scans; one that is missing is well. The scans themselves lie elsewhere.

    Raises:
        StorageError: It cannot be removed.
    """
    with storage_errors(folder), suppress(FileNotFoundError):
        shutil.rmtree(folder)


@dataclass(frozen=True)
class DiskMemory:
    """A site's `runtime.ports.Memory` below one folder, its state folder."""

    root: Path

    def weights(self) -> Weights | None:
        """The newest model that this site holds."""
        path = self.root / "weights.npy"
        return load_model_vector(path) if path.is_file() else None

    def save_weights(self, weights: Weights) -> None:
        """Keep the newest model; what was computed from the one before has served, and is overwritten."""
        save_vector(self.root / "weights.npy", weights)
        self.erase_updates()

    def contribution(self, round_number: int, model: str) -> RingVector | None:
        """The encoded update of that round and model, where it was computed."""
        path = self._contribution(round_number, model)
        return load_ring_vector(path) if path.is_file() else None

    def save_contribution(self, round_number: int, model: str, vector: RingVector) -> None:
        """Keep it, fsynced; earlier ones have served, and are overwritten.

        It lacks the masks, and in distributed mode the other sites' noise. It outlives an attempt that failed: the
        round's next one sends the same again, as its noise was charged once.
        """
        path = self._contribution(round_number, model)
        self._erase(_CONTRIBUTIONS, {path})
        save_vector(path, vector)

    def session(self) -> bytes | None:
        """The protocol's record of the newest session, as it was written down; None before the first."""
        return secrets.read(self.root / SESSION, MOST_SESSION)

    def save_session(self, data: bytes) -> None:
        """Keep it, fsynced; what it replaces held secrets and is overwritten."""
        secrets.replace(self.root / SESSION, data)

    def masked(self, session: bytes) -> RingVector | None:
        """The masked update of a session (sid0), exactly as it is sent; None where there is none."""
        path = self._masked(session)
        return load_ring_vector(path) if path.is_file() else None

    def save_masked(self, session: bytes, vector: RingVector) -> None:
        """Keep it, fsynced; earlier ones have served, and are overwritten."""
        path = self._masked(session)
        self._erase(_MASKED, {path})
        save_vector(path, vector)

    def scored(self, model: str) -> str | None:
        """Hash of the statistics of that model that were given to an evaluation, in hex; None where none were.

        Raises:
            StorageError: The file is damaged.
        """
        return self._all_scored.get(model)

    def save_scored(self, model: str, digest: str) -> None:
        """Keep it for good, fsynced: the statistics themselves are erased.

        Raises:
            StorageError: The file is damaged.
        """
        write_atomic(self.root / SCORED, json.dumps({**self._all_scored, model: digest}).encode())

    def best(self) -> Best | None:
        """What a collapse would roll back to, as this site has computed it; None before the first score.

        Raises:
            StorageError: if the file is damaged.
        """
        path = self.root / "best.json"
        try:
            return Best(**json.loads(self._read(path.name))) if path.is_file() else None
        except (ValueError, TypeError):
            raise StorageError("what this site knows of the best model is damaged", where=str(path)) from None

    def save_best(self, best: Best) -> None:
        """Keep it, fsynced."""
        write_atomic(self.root / "best.json", json.dumps(asdict(best)).encode())

    def kept(self, closed: int) -> Kept | None:
        """What stays at this site of the newest round up to `closed`, by the plan's strategy; None where nothing does.

        Raises:
            StorageError: The file is damaged.
        """
        newest = newest_of(self._kept_rounds, closed)
        return None if newest is None else Kept(newest, load_model_vector(self._kept(newest)))

    def save_kept(self, round_number: int, closed: int, vector: Weights) -> None:
        """Keep it, fsynced, readable for this account alone, and what it follows; all else is overwritten."""
        save_vector(self._kept(round_number), vector)
        needed = {round_number, newest_of(self._kept_rounds, closed)}
        self._erase(_KEPT, {self._kept(number) for number in needed if number is not None})

    def erase_updates(self) -> None:
        """Overwrite and remove every update that this site has computed: once a round has closed, or the study ended.

        Best effort, as `store.secrets` says.

        Raises:
            StorageError: The disk is failing.
        """
        self._erase(_CONTRIBUTIONS)
        self._erase(_MASKED)

    def finish(self, needed: int | None) -> None:
        """Erase what a complete study has no more use for: prepared scans, updates, and what was kept of its rounds.

        Args:
            needed: Of what was kept, the newest up to this round stays; None: nothing does.

        Raises:
            StorageError: The disk is failing.
        """
        newest = None if needed is None else newest_of(self._kept_rounds, needed)
        self.erase_updates()
        self._erase(_KEPT, set() if newest is None else {self._kept(newest)})
        remove_prepared(self.root / CACHE)

    def clean_up(self) -> None:
        """Overwrite and remove what a crash has left half-written or half-erased; only while nothing is being written.

        Raises:
            StorageError: The disk is failing.
        """
        for left in self.root.glob(".*.npy*.last"):
            secrets.sweep(left.with_name(left.name[1 : -len(".last")]))
        for left in self.root.glob(".*.npy.*.part"):
            secrets.erase(left)
        secrets.sweep(self.root / SESSION)

    def _masked(self, session: bytes) -> Path:
        return self.root / f"masked-{session.hex()}.npy"

    def _contribution(self, round_number: int, model: str) -> Path:
        return self.root / f"contribution-{round_number:05d}-{model[:16]}.npy"

    def _kept(self, round_number: int) -> Path:
        return self.root / f"kept-{round_number:05d}.npy"

    @property
    def _all_scored(self) -> dict[str, str]:
        path = self.root / SCORED
        try:
            return dict(json.loads(self._read(path.name))) if path.is_file() else {}
        except (ValueError, TypeError):
            raise StorageError("what this site has given to evaluations is damaged", where=str(path)) from None

    @property
    def _kept_rounds(self) -> list[int]:
        return [int(path.stem.removeprefix("kept-")) for path in self.root.glob(_KEPT)]

    def _erase(self, names: str, needed: Collection[Path] = ()) -> None:
        with _ERASING:
            for old in self.root.glob(names):
                if old not in needed:
                    secrets.erase(old)

    def _read(self, name: str) -> bytes:
        with storage_errors(self.root / name):
            return (self.root / name).read_bytes()
