"""Fixtures for every room: the real scans, where they lie beside the repository, and tiny BIDS data sets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import settings
from numpy.typing import NDArray

# What runs on every change gives the same answer twice, however busy the machine is; `make test-slow` searches further.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("fresh", deadline=None, max_examples=1000)
settings.load_profile("same")

REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

FIDON_TSV = """index\tname
0\tbackground
1\twhite matter
2\tventricles
3\tcerebellum
4\texternal cerebrospinal fluid
5\tgrey matter
6\tdeep grey matter
7\tbrainstem
8\tcorpus callosum
"""

Save = Callable[..., Path]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real scans; the test is skipped where it is missing."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"the real scans are not beside the repository ({REAL_DATA})")
    return REAL_DATA


@pytest.fixture
def save() -> Save:
    """Write an array as NIfTI: `save(path, data, affine=..., qform=code, sform=code)`."""

    def write(
        path: Path,
        data: NDArray[Any],
        affine: NDArray[np.float64] | None = None,
        *,
        qform: int = 0,
        sform: int = 2,
        dtype: type | None = None,
    ) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        nib: Any = nibabel
        affine = np.diag([0.8, 0.8, 0.8, 1.0]) if affine is None else affine
        image = nib.Nifti1Image(data, affine, dtype=dtype or data.dtype.type)
        image.set_qform(affine if qform else None, qform)
        image.set_sform(affine if sform else None, sform)
        image.to_filename(path)
        return path

    return write


def tiny_head(shape: tuple[int, int, int] = (22, 26, 20), seed: int = 0) -> tuple[NDArray[Any], NDArray[Any]]:
    """A head-like ball in Fidon's numbering: image float32 (background 0) and labels uint8, all eight labels."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, size) for size in shape], indexing="ij"))
    radius = np.sqrt((grid**2).sum(axis=0))
    labels = np.zeros(shape, np.uint8)
    for label, bound in ((4, 0.85), (5, 0.72), (1, 0.6), (6, 0.4), (2, 0.25)):
        labels[radius < bound] = label
    x, y, z = grid
    labels[(radius < 0.6) & (z < -0.3)] = 3
    labels[(radius < 0.6) & (z > 0.35)] = 8
    labels[(radius < 0.6) & (np.abs(x) < 0.2) & (y < -0.3)] = 7
    grey = np.array([0, 700, 1500, 800, 1600, 600, 650, 750, 500], np.float32)[labels]
    image = np.where(labels > 0, grey + rng.normal(0, 20, shape), 0).astype(np.float32)
    return image, labels


@pytest.fixture
def make_bids(tmp_path: Path, save: Save) -> Callable[..., Path]:
    """Write a BIDS data set of tiny heads: `make_bids(subjects=3, labels=True, masks=False, tsv=FIDON_TSV)`."""

    def make(
        subjects: int = 3,
        *,
        labels: bool = True,
        masks: bool = False,
        tsv: str | None = FIDON_TSV,
        participants: str | None = None,
        name: str = "bids",
    ) -> Path:
        root = tmp_path / name
        root.mkdir()
        for number in range(1, subjects + 1):
            image, label = tiny_head(seed=number)
            stem = f"sub-{number:02d}/anat/sub-{number:02d}_rec-srr"
            save(root / f"{stem}_T2w.nii.gz", image)
            if labels:
                save(root / "derivatives/manual" / f"{stem}_dseg.nii.gz", label)
            if masks:
                save(root / "derivatives/manual" / f"{stem}_desc-brain_mask.nii.gz", (label > 0).astype(np.uint8))
        if tsv is not None and labels:
            (root / "derivatives/manual/dseg.tsv").write_text(tsv)
        if participants is not None:
            (root / "participants.tsv").write_text(participants)
        return root

    return make
