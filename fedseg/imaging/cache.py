"""Prepared scans kept on disk, keyed by content and settings: never stale, and thrown away by deleting the folder."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedseg.errors import DataError
from fedseg.imaging.dataset import Case, Dataset
from fedseg.imaging.grids import Geometry
from fedseg.imaging.nifti import read_image, read_labels, write_whole
from fedseg.imaging.transforms import CODE_VERSION, MARGIN_MM, Prepared, prepare
from fedseg.labels import LabelScheme

_DAMAGED = (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile)


@dataclass(frozen=True)
class PreparedCache:
    """A folder of prepared scans (patient data: mode 0700, files 0600).

    An entry's name is the SHA-256 of the image, the label map, the class map, the settings and `CODE_VERSION`: another
    content is another entry. An entry that can't be read is computed again.
    """

    folder: Path

    def key(
        self,
        image: Path,
        labels: Path | None,
        class_map: Mapping[int, int] | None,
        *,
        scheme: LabelScheme,
        spacing_mm: float,
        n4: bool = False,
    ) -> str:
        """Hex SHA-256 of everything that `prepare` depends on."""
        facts = {
            "code": CODE_VERSION,
            "image": _file_hash(image),
            "labels": None if labels is None else _file_hash(labels),
            "class_map": None if class_map is None else sorted(class_map.items()),
            "scheme": [scheme.name, *scheme.tissues],
            "spacing_mm": float(spacing_mm),
            "n4": n4,
            "margin_mm": MARGIN_MM,
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def prepared(
        self,
        image: Path,
        labels: Path | None,
        class_map: Mapping[int, int] | None,
        *,
        scheme: LabelScheme,
        spacing_mm: float,
        n4: bool = False,
    ) -> Prepared:
        """The prepared scan, from the folder or computed and put there.

        Raises:
            DataError: As `read_image`, `read_labels` and `prepare`.
            StorageError: The folder can't be written.
        """
        key = self.key(image, labels, class_map, scheme=scheme, spacing_mm=spacing_mm, n4=n4)
        path = self.folder / f"{key}.npz"
        kept = _load(path)
        if kept is not None:
            return kept
        result = prepare_files(image, labels, class_map, scheme=scheme, spacing_mm=spacing_mm, n4=n4)
        write_whole(path, _dump(result))
        return result


def prepare_files(
    image: Path,
    labels: Path | None,
    class_map: Mapping[int, int] | None,
    *,
    scheme: LabelScheme,
    spacing_mm: float,
    n4: bool = False,
) -> Prepared:
    """Read and `prepare`, without a cache."""
    label_map = None if labels is None else read_labels(labels)
    return prepare(read_image(image), label_map, class_map, spacing_mm=spacing_mm, scheme=scheme, n4=n4)


def prepare_case(
    dataset: Dataset, case: Case, *, spacing_mm: float, n4: bool = False, cache: PreparedCache | None = None
) -> Prepared:
    """A case of a data set as the network sees it, through the cache where there is one; labels where it has them."""
    target = dataset.target(case)
    classes = None if target is None else dataset.class_map(case)
    make = prepare_files if cache is None else cache.prepared
    return make(case.image, target, classes, scheme=dataset.scheme, spacing_mm=spacing_mm, n4=n4)


def _file_hash(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError("the file cannot be read", where=str(path), hint="check the path and its rights") from error


def _dump(result: Prepared) -> bytes:
    """One .npz: image, labels (where there are any) and the geometry as JSON text."""
    arrays = {"image": result.image, "geometry": np.frombuffer(_geometry_json(result.geometry), np.uint8)}
    if result.labels is not None:
        arrays["labels"] = result.labels
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]  # mypy takes ** for allow_pickle, which is never among them
    return file.getvalue()


def _load(path: Path) -> Prepared | None:
    """What `_dump` wrote, or None where the entry is missing or damaged (zip's CRC tells)."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            geometry = _geometry(json.loads(arrays["geometry"].tobytes()))
            result = Prepared(arrays["image"], arrays.get("labels"), geometry)
    except _DAMAGED:
        return None
    return result if result.image.shape == geometry.crop_shape else None


def _geometry_json(geometry: Geometry) -> bytes:
    return json.dumps(dataclasses.asdict(geometry)).encode()


def _geometry(facts: Mapping[str, object]) -> Geometry:
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in facts.items()}
    return Geometry(**values)  # type: ignore[arg-type]  # JSON does not tell how long a list is; the file is our own
