"""Many scans, one after the other: read ahead, segmented, written; a bad one does not stop the others."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedseg.errors import DataError, Interrupted
from fedseg.imaging.cleanup import Cleaned
from fedseg.imaging.flags import flags_of
from fedseg.imaging.grid_flags import Flag
from fedseg.imaging.nifti import Volume, read_image
from fedseg.imaging.transforms import Prepared
from fedseg.metrics.volumes import volume_ml
from fedseg.report.volumes import brain_tissue_ml
from fedseg.runtime.derivatives import Derivatives, Outputs
from fedseg.runtime.prediction import OnCase, Segmentation, Segmenter
from fedseg.runtime.scans import Scan
from fedseg.training.inference import Way
from fedseg.training.memory import out_of_memory

Ready = tuple[Volume, Prepared]


@dataclass(frozen=True)
class Predicted:
    """A scan that was segmented.

    Args:
        scan: The scan.
        files: What was written, by kind.
        volumes_ml: Of each tissue.
        uncertainty: As in `Segmentation`.
        cleaned: As in `Segmentation`.
        ways: As in `Segmentation`.
        flags: What to look at before it is used.
        seconds: That it took, reading ahead not counted.
    """

    scan: Scan
    files: dict[str, Path]
    volumes_ml: dict[str, float]
    uncertainty: float
    cleaned: Cleaned
    ways: tuple[Way, ...]
    flags: tuple[Flag, ...]
    seconds: float

    @property
    def brain_tissue_ml(self) -> float | None:
        """As `report.volumes` defines it; None of a brain mask."""
        return brain_tissue_ml(self.volumes_ml)

    def to_json(self) -> dict[str, Any]:
        """What `predict --json` says of it."""
        return {
            "scan": str(self.scan.image),
            "gestational_age_weeks": self.scan.gestational_age_weeks,
            **{"uncertainty_map" if kind == "uncertainty" else kind: str(path) for kind, path in self.files.items()},
            "volumes_ml": self.volumes_ml,
            "brain_tissue_ml": self.brain_tissue_ml,
            "uncertainty": self.uncertainty,
            "cleaned": asdict(self.cleaned),
            "ways": [asdict(way) for way in self.ways],
            "flags": [asdict(flag) for flag in self.flags],
            "seconds": round(self.seconds, 2),
        }


@dataclass(frozen=True)
class Batch:
    """What became of all scans.

    Args:
        done: Those that were segmented.
        failed: The others, each with the reason.
    """

    done: tuple[Predicted, ...]
    failed: tuple[tuple[Scan, DataError], ...]


def predict(
    segmenter: Segmenter,
    scans: Sequence[Scan],
    out: Path,
    outputs: Outputs | None = None,
    *,
    on_case: OnCase = lambda _done, _of: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Batch:
    """Segment scans into a BIDS derivative; the next one is read while one is segmented.

    Args:
        segmenter: The models.
        scans: From `scans.find_scans`.
        out: The derivative's folder.
        outputs: What is wanted beside the segmentations.
        on_case: Told of progress.
        should_stop: Asked before each scan.

    Raises:
        Interrupted: `should_stop` said so; what was written until then is whole.
        StorageError: if `out` cannot be written.
    """
    derivatives = Derivatives(out, segmenter.cards, scans, outputs or Outputs())
    done: list[Predicted] = []
    failed: list[tuple[Scan, DataError]] = []
    with closing(_ahead(segmenter, scans)) as waiting:
        for number, (scan, ready) in enumerate(waiting):
            if should_stop():
                raise Interrupted(
                    f"{len(done)} of {len(scans)} scans are segmented in {out}",
                    hint="what is there is whole; the same command segments all scans again",
                )
            try:
                done.append(_one(segmenter, derivatives, scan, *ready.result(), first=not done))
            except DataError as error:
                failed.append((scan, error))
            except (MemoryError, RuntimeError) as error:
                failed.append((scan, too_large(scan.image, error)))
            on_case(number + 1, len(scans))
    return Batch(tuple(done), tuple(failed))


def _ahead(segmenter: Segmenter, scans: Sequence[Scan]) -> Generator[tuple[Scan, Future[Ready]]]:
    """Each scan with what a thread reads and prepares of it, one scan ahead: two are in memory at most."""

    def read(scan: Scan) -> Ready:
        image = read_image(scan.image)
        return image, segmenter.prepare(image)

    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as pool:
        coming = pool.submit(read, scans[0])
        for number, scan in enumerate(scans):
            ready = coming
            ready.exception()  # waits: the thread has one scan at a time
            if number + 1 < len(scans):
                coming = pool.submit(read, scans[number + 1])
            yield scan, ready


def too_large(scan: Path, error: Exception) -> DataError:
    """What is said of a scan for which memory ran out; any other error is raised again."""
    if not out_of_memory(error):
        raise error
    hint = "close other programs, crop it to the head, or use a machine with more memory"
    return DataError("the scan doesn't fit into memory", where=str(scan), hint=hint)


def _one(
    segmenter: Segmenter, derivatives: Derivatives, scan: Scan, image: Volume, prepared: Prepared, *, first: bool
) -> Predicted:
    """Segment and write one scan; with the first one, what all share."""
    began = time.monotonic()
    found = segmenter.segment(prepared)
    volumes = {
        tissue: volume_ml(found.labels == np.uint8(index), image.voxel_mm3)
        for index, tissue in enumerate(segmenter.scheme.tissues, 1)
    }
    flags = _flags(segmenter, scan, image, found)
    if first:
        derivatives.describe()
    facts = {
        "VolumesML": volumes,
        "BrainTissueML": brain_tissue_ml(volumes),
        "Uncertainty": found.uncertainty,
        "CleanUp": asdict(found.cleaned) if segmenter.options.cleanup else "off",
        "Flags": [asdict(flag) for flag in flags],
    }
    files = derivatives.write(scan, found, facts)
    seconds = time.monotonic() - began
    return Predicted(scan, files, volumes, found.uncertainty, found.cleaned, found.ways, flags, seconds)


def _flags(segmenter: Segmenter, scan: Scan, image: Volume, found: Segmentation) -> tuple[Flag, ...]:
    return tuple(
        flags_of(
            found.labels,
            image,
            segmenter.scheme,
            gestational_age_weeks=scan.gestational_age_weeks,
            uncertainty=found.uncertainty,
            fingerprint=segmenter.card.fingerprint,
            cleaned=found.cleaned,
        )
    )
