"""The model file of a site's own model, which its study's strategy leaves there: it is never sent."""

from __future__ import annotations

from pathlib import Path

from fedseg.federation.vector import Layout, Weights
from fedseg.plan.manifest import Manifest
from fedseg.runtime.model_file import History, write_own

NEVER = (
    "not private: part of it was trained on one site's own scans alone, without differential privacy; it stays at the "
    "site, never hand it on"
)


def write_personal(
    path: Path, manifest: Manifest, layout: Layout, weights: Weights, history: History, site: str
) -> Path:
    """Write a site's own model whole or not at all, readable for its owner alone; returns the file.

    Its description names the site. In a private study its local part comes of the steps that the ledger charges, so
    the study's claim holds of it; in any other it says that it must not be handed on.

    Args:
        path: The file.
        manifest: The study.
        layout: Order of the network's arrays in the flat vector.
        weights: float32[P].
        history: (round, contributors) of every closed round.
        site: Whose it is.

    Raises:
        ModelError: The weights do not fit the layout, or are not finite.
        StorageError: The file cannot be written.
    """
    return write_own(path, manifest, layout, weights, history, site, "" if manifest.plan.private else NEVER)
