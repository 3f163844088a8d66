"""The versions of a study's plan on disk: the newest is in force, earlier ones and the models that they made are kept.

`manifest.json` is the version in force; it is replaced last, so that a crash leaves either version whole. The study's
first version is `manifest-1.json` then, its model `model-1.safetensors`; the second is `manifest-2.json`, and so on.
"""

from __future__ import annotations

from pathlib import Path

from fedseg.plan.manifest import Manifest
from fedseg.store.files import fsync_folder, storage_errors, write_atomic

MANIFEST, MEMBERSHIP, MODEL = "manifest.json", "site.json", "model.safetensors"


def read_manifest(path: Path) -> Manifest:
    """The manifest in a file.

    Raises:
        PlanError: It is none.
        StorageError: It cannot be read.
    """
    with storage_errors(path):
        return Manifest.from_json(path.read_bytes())


def earlier_versions(root: Path) -> list[Manifest]:
    """The versions before the one in force, oldest first, as far back as this folder knows them."""
    kept = {each.plan_hash: each for each in map(read_manifest, root.glob("manifest-*.json"))}
    found: list[Manifest] = []
    version: Manifest | None = read_manifest(root / MANIFEST)
    while version is not None and version.parent is not None:
        version = kept.get(version.parent.plan_hash)
        found += [version] if version is not None else []
    return found[::-1]


def all_versions(root: Path) -> list[Manifest]:
    """All that this folder knows, oldest first; the last one is in force."""
    return [*earlier_versions(root), read_manifest(root / MANIFEST)]


def replace_plan(root: Path, *following: Manifest) -> None:
    """Go on under the last of these versions; the one in force, and those between, are kept.

    Raises:
        StorageError: The folder cannot be written. The version in force is as before.
    """
    known = all_versions(root)
    for number, version in enumerate([*known, *following[:-1]], 1):
        write_atomic(root / f"manifest-{number}.json", version.to_json(), 0o644)
    with storage_errors(root):
        if (root / MODEL).is_file():
            (root / MODEL).replace(root / f"model-{len(known)}.safetensors")
            fsync_folder(root)
    write_atomic(root / MANIFEST, following[-1].to_json(), 0o644)
