"""What training leaves at a site, in one list: what never leaves it, what is in it, and how long it lies there.

All of it is below the site's state folder, but for the ledger. `federation.outgoing` is the list of what leaves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from fedseg.plan.study import StudyPlan


@dataclass(frozen=True)
class Staying:
    """One thing that stays at a site.

    Attributes:
        name: The file or folder, below the site's state folder.
        what: What it is, and what it tells of patients.
        until: When it is erased, or that only the hospital removes it.
        where: In which studies there is one: all, private ones, or those of a strategy.
    """

    name: str
    what: str
    until: str
    where: tuple[str, ...] | Literal["all", "private"] = "all"


_UPDATES = "overwritten once the round is closed, and at the study's end"

STAYING: tuple[Staying, ...] = (
    Staying(
        "cache/",
        "the scans of the splits train and validation as the network sees them, with their labels: patient data",
        "removed when the study is complete; an extension, or a baseline, prepares them again",
    ),
    Staying("contribution-*.npy", "this site's update of a round, without masks", _UPDATES),
    Staying("masked-*.npy", "the same with its masks, as it is sent", _UPDATES),
    Staying(
        "kept-*.npy",
        "what this site corrects its steps by: two of them and what the server publishes give its newest update",
        "overwritten at the study's end: such a study cannot have more rounds",
        ("scaffold",),
    ),
    Staying(
        "kept-*.npy",
        "the site's own normalisation layers, after the newest rounds",
        "at the study's end all but the newest are overwritten: more rounds would go on from it. That one lies "
        "there until the hospital removes it",
        ("fedbn",),
    ),
    Staying(
        "kept-*.npy",
        "the site's own model, after the newest rounds",
        "at the study's end all but the newest are overwritten: more rounds would go on from it. That one lies "
        "there until the hospital removes it",
        ("ditto",),
    ),
    Staying(
        "model-personal.safetensors",
        "this site's own model, which is never sent; in a private study it comes of the charged steps",
        "it lies there until the hospital removes it",
        ("fedbn", "ditto"),
    ),
    Staying(
        "baseline/",
        "where somebody trained one: a model of this site's scans alone, without privacy: it may give them away",
        "it lies there until the hospital removes it",
    ),
    Staying(
        "client.log",
        "what the client said: rounds, times, what was spent; an error may name a scan",
        "it lies there until the hospital removes it",
    ),
    Staying(
        "the ledger's folder",
        "which subjects each round was charged to, as keyed hashes: with the key beside it, whoever knows an id can "
        "test whether it is there",
        "kept for good: what was spent stays spent, and a ledger that is missing stops training",
        "private",
    ),
)


def staying(plan: StudyPlan) -> Iterator[Staying]:
    """What one study leaves at a site."""
    return (
        each
        for each in STAYING
        if each.where == "all"
        or (each.where == "private" and plan.private)
        or (isinstance(each.where, tuple) and plan.strategy.name in each.where)
    )
