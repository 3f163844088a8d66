"""Named arrays to one flat float32 vector and back, and the hash that names a model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedseg.errors import ProtocolError

Weights = NDArray[np.float32]


@dataclass(frozen=True)
class Layout:
    """Names and shapes of a model's arrays in the order in which the flat vector holds them (sorted by name)."""

    entries: tuple[tuple[str, tuple[int, ...]], ...]

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[np.float32]]) -> Layout:
        """The layout of named arrays."""
        return cls(tuple((name, tuple(arrays[name].shape)) for name in sorted(arrays)))

    @property
    def size(self) -> int:
        """Length of the flat vector."""
        return sum(int(np.prod(shape, dtype=np.int64)) for _, shape in self.entries)

    def flatten(self, arrays: Mapping[str, NDArray[np.float32]]) -> Weights:
        """Join named arrays into one float32 vector of length `size`.

        Raises:
            ProtocolError: if names or shapes differ from the layout.
        """
        if Layout.of(arrays) != self:
            raise ProtocolError("these weights belong to another network")
        return np.concatenate([np.asarray(arrays[name], dtype=np.float32).ravel() for name, _ in self.entries])

    def unflatten(self, vector: Weights) -> dict[str, NDArray[np.float32]]:
        """Split a flat vector into named arrays (copies).

        Raises:
            ProtocolError: if its length is not `size`.
        """
        if vector.shape != (self.size,):
            raise ProtocolError(f"a vector of {vector.size} numbers is no model of {self.size} parameters")
        arrays, start = {}, 0
        for name, shape in self.entries:
            stop = start + int(np.prod(shape, dtype=np.int64))
            arrays[name] = vector[start:stop].reshape(shape).copy()
            start = stop
        return arrays


def model_hash(weights: Weights) -> str:
    """SHA-256 in hex of the flat vector as little-endian float32: the name of a model in a study.

    The manifest fixes architecture and order, so the numbers alone identify the model.
    """
    return hashlib.sha256(np.ascontiguousarray(weights, dtype="<f4").data).hexdigest()
