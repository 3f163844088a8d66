"""The model file: weights with their own description.

A model file is one `.safetensors`: float32 arrays by name, and in the header's metadata one key, `fedseg`, whose JSON
is `{"schema": 1, "card": {...}, "sha256": ...}`. The digest covers the card and every array with its name and shape,
so that a file that is damaged anywhere is refused. It proves nothing against somebody who writes a file anew.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, JsonValue, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load as parse_safetensors
from safetensors.numpy import save as format_safetensors

from fedseg.errors import ModelError
from fedseg.federation.vector import Layout, Weights, model_hash
from fedseg.imaging.fingerprint import Fingerprint
from fedseg.plan.sections import Side, Spacing
from fedseg.store.files import write_atomic

SCHEMA = 1
MAX_FILE_BYTES = 1 << 30
MAX_HEADER_BYTES = 4 << 20
MAX_ARRAYS = 10_000
READABLE = 0o644

_KEY = "fedseg"
_Text = Annotated[str, Field(min_length=1)]
_Positive = Annotated[int, Field(gt=0)]


@dataclass(frozen=True)
class ModelCard:
    """All that `predict` and `evaluate` need to know of a model, and where it comes from.

    Args:
        architecture: What builds the network: preset, channels and the like, as JSON.
        task: Name of the label scheme.
        tissues: Names of the classes 1..C.
        spacing_mm: Edge of the isotropic voxels that the network sees, within the bounds of plans.
        patch: Size in voxels of the patches it sees, within the bounds of plans.
        normalisation: How intensities are brought to a common scale, as JSON.
        study: The study's name.
        plan_hash: SHA-256 of the canonical plan.
        rounds: Rounds that went into it.
        contributors: Number and sites of each closed round.
        privacy: What is claimed, as in the privacy report.
        code_version: Version of fedseg that wrote it.
        model_hash: `federation.vector.model_hash` of its weights; filled in by `save_model` where empty.
        fingerprint: Of images that scans are compared with, made-up or public ones; None where there is none.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    architecture: dict[str, JsonValue]
    task: _Text
    tissues: Annotated[tuple[_Text, ...], Field(min_length=1, max_length=255)]
    spacing_mm: Spacing
    patch: tuple[Side, Side, Side]
    normalisation: dict[str, JsonValue]
    study: str
    plan_hash: str
    rounds: Annotated[int, Field(ge=0)]
    contributors: tuple[tuple[_Positive, tuple[_Text, ...]], ...]
    privacy: dict[str, JsonValue]
    code_version: str
    model_hash: str = ""
    fingerprint: Fingerprint | None = None


_CARD = TypeAdapter(ModelCard)


def describe(card: ModelCard) -> dict[str, Any]:
    """The card as JSON values: `model` in the JSON of `evaluate`. A fingerprint that it lacks is left out."""
    described: dict[str, Any] = _CARD.dump_python(card, mode="json")
    if card.fingerprint is None:
        del described["fingerprint"]
    return described


def weights_hash(arrays: Mapping[str, NDArray[np.float32]]) -> str:
    """SHA-256 in hex over the names, shapes and little-endian float32 bytes of all arrays, in order of name."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(json.dumps([name, list(arrays[name].shape)]).encode() + b"\n")
        digest.update(np.asarray(arrays[name], dtype="<f4").tobytes())
    return digest.hexdigest()


def save_model(
    path: Path, arrays: Mapping[str, NDArray[np.float32]], card: ModelCard, mode: int = READABLE
) -> ModelCard:
    """Write a model file whole or not at all.

    Args:
        path: Replaced if it exists.
        arrays: Finite float32 arrays by name.
        card: Its `model_hash` may be empty.
        mode: Permissions of the file.

    Returns:
        The card as written.

    Raises:
        ModelError: Arrays that are not finite float32, or a card that is not what it should be or of other weights.
        StorageError: The disk is full, or the folder missing or not writable.
    """
    where = str(path)
    _refuse_odd_arrays(arrays, where)
    named = model_hash(Layout.of(arrays).flatten(arrays))
    if card.model_hash not in ("", named):
        raise ModelError("the model's description is of other weights", where=where)
    card = _parse_card(json.dumps(describe(replace(card, model_hash=named))), where)
    envelope = {"schema": SCHEMA, "card": describe(card), "sha256": _digest(card, arrays)}
    # One metadata key: safetensors writes several in random order, and one model should be one file.
    contiguous = {name: np.asarray(values, order="C") for name, values in arrays.items()}
    data = format_safetensors(contiguous, {_KEY: _canonical(envelope)})
    _refuse_sizes(len(data), int.from_bytes(data[:8], "little"), where)
    write_atomic(path, data, mode)
    return card


def load_model(path: Path) -> tuple[dict[str, Weights], ModelCard]:
    """Read a model file and check all of it.

    Returns:
        Float32 arrays by name, writable, and the card.

    Raises:
        ModelError: No such file, not a safetensors file, cut short, not of fedseg, of a schema that this version
            doesn't know, damaged, or larger than any model of ours.
    """
    where = str(path)
    data = _read(path)
    header = _parse_header(data, where)
    envelope = _parse_envelope(header, where)
    card = _parse_card(json.dumps(envelope["card"]), where)
    arrays = _parse_arrays(data, header, where)
    if envelope["sha256"] != _digest(card, arrays) or card.model_hash != model_hash(Layout.of(arrays).flatten(arrays)):
        raise ModelError(
            "the model file is damaged: its content does not match its hash",
            where=where,
            hint="copy it again from where it was written",
        )
    _refuse_odd_arrays(arrays, where)
    return arrays, card


def _read(path: Path) -> bytes:
    """A file's content, if it isn't larger than any model of ours."""
    try:
        with path.open("rb") as file:
            # Room is made for what is asked for, so no more is asked for than there is.
            data = file.read(min(os.fstat(file.fileno()).st_size, MAX_FILE_BYTES) + 1)
    except FileNotFoundError as error:
        raise ModelError("there is no such model file", where=str(path)) from error
    except OSError as error:
        raise ModelError(f"the model file cannot be read: {error.strerror}", where=str(path)) from error
    _refuse_sizes(len(data), 0, str(path))
    return data


def _refuse_sizes(file_bytes: int, header_bytes: int, where: str) -> None:
    if file_bytes > MAX_FILE_BYTES:
        raise ModelError(f"the file is larger than {MAX_FILE_BYTES >> 30} GiB: no model of fedseg's", where=where)
    if header_bytes > MAX_HEADER_BYTES:
        raise ModelError("the model's description is too long", where=where)


def _parse_header(data: bytes, where: str) -> dict[str, Any]:
    """The JSON header of a safetensors file: tensors by name, and `__metadata__`."""
    size = int.from_bytes(data[:8], "little")
    if size > MAX_HEADER_BYTES or data[8:9] not in (b"", b"{"):
        raise _not_safetensors(where)
    if len(data) < 8 + size or size == 0:
        raise _cut_short(len(data), where)
    header = _json(data[8 : 8 + size])
    if not isinstance(header, dict):
        raise _not_safetensors(where)
    return header


def _parse_envelope(header: dict[str, Any], where: str) -> dict[str, Any]:
    """The `fedseg` key of the metadata, of a schema that is known."""
    metadata = header.get("__metadata__")
    envelope = _json(metadata[_KEY]) if isinstance(metadata, dict) and isinstance(metadata.get(_KEY), str) else None
    if not isinstance(envelope, dict) or "schema" not in envelope:
        raise ModelError(
            "the file holds weights, but not fedseg's description of them",
            where=where,
            hint="give the model.safetensors of a study",
        )
    if envelope["schema"] != SCHEMA:
        raise ModelError(
            f"the model file has schema {envelope['schema']!r}; this version knows {SCHEMA}",
            where=where,
            hint="install the version of fedseg that wrote it, or a later one",
        )
    if set(envelope) != {"schema", "card", "sha256"}:
        raise ModelError("the model's description is incomplete", where=where)
    return envelope


def _parse_card(text: str, where: str) -> ModelCard:
    try:
        return _CARD.validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ModelError(
            f"the model's description is wrong at '{field}': {first['msg']}",
            where=where,
            hint="it is damaged or made up: give a model.safetensors that fedseg wrote",
        ) from error


def _parse_arrays(data: bytes, header: dict[str, Any], where: str) -> dict[str, Weights]:
    """The float32 arrays of a safetensors file, copied."""
    tensors = [entry for name, entry in header.items() if name != "__metadata__"]
    if len(tensors) > MAX_ARRAYS:
        raise ModelError(f"the model file holds more than {MAX_ARRAYS} arrays", where=where)
    if len(data) < _expected_bytes(tensors) + 8 + int.from_bytes(data[:8], "little"):
        raise _cut_short(len(data), where)
    if any(not isinstance(entry, dict) or entry.get("dtype") != "F32" for entry in tensors):
        raise ModelError("the model file holds other arrays than float32", where=where)
    try:
        return {name: np.array(values, dtype=np.float32) for name, values in parse_safetensors(data).items()}
    except (SafetensorError, ValueError) as error:
        raise _not_safetensors(where) from error


def _expected_bytes(tensors: Iterable[object]) -> int:
    """Where the last array ends, as the header says; 0 where it says nothing sensible."""
    ends = [entry.get("data_offsets") for entry in tensors if isinstance(entry, dict)]
    return max(
        (end[1] for end in ends if isinstance(end, list) and len(end) == 2 and isinstance(end[1], int)), default=0
    )


def _json(text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _digest(card: ModelCard, arrays: Mapping[str, NDArray[np.float32]]) -> str:
    """SHA-256 in hex of card and weights together."""
    return hashlib.sha256(f"{weights_hash(arrays)}\n{_canonical(describe(card))}".encode()).hexdigest()


def _refuse_odd_arrays(arrays: Mapping[str, NDArray[np.float32]], where: str) -> None:
    if not arrays:
        raise ModelError("a model without weights", where=where)
    for name, values in arrays.items():
        if values.dtype != np.float32:
            raise ModelError(f"the weights '{name}' are {values.dtype}, not float32", where=where)
        if not np.isfinite(values).all():
            raise ModelError(f"the weights '{name}' hold NaN or infinity", where=where)


def _cut_short(size: int, where: str) -> ModelError:
    return ModelError(
        f"the model file is cut short: it ends after {size} bytes",
        where=where,
        hint="copy it again from where it was written",
    )


def _not_safetensors(where: str) -> ModelError:
    return ModelError("this is not a safetensors file", where=where, hint="give the model.safetensors of a study")
