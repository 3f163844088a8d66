"""Tissue schemes: the classes that a model learns, and how each tissue is shown and written."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from fedseg.errors import DataError

BACKGROUND = "background"


@dataclass(frozen=True)
class LabelScheme:
    """The classes that a model learns: 0 is background, 1..C are `tissues` in order."""

    name: str
    tissues: tuple[str, ...]

    @property
    def classes(self) -> int:
        """Number of classes with background: C + 1."""
        return len(self.tissues) + 1

    def index(self, tissue: str) -> int:
        """Class index of a tissue; 0 for `background`; ValueError for a tissue of another scheme."""
        return 0 if tissue == BACKGROUND else self.tissues.index(tissue) + 1


FETA = LabelScheme(
    "feta",
    (
        "external_csf",
        "cortical_grey_matter",
        "white_matter",
        "ventricles",
        "cerebellum",
        "deep_grey_matter",
        "brainstem",
    ),
)
BRAIN_MASK = LabelScheme("brain_mask", ("brain",))

_SCHEMES = {each.name: each for each in (FETA, BRAIN_MASK)}


@dataclass(frozen=True)
class _Look:
    """How a tissue is shown and written.

    Args:
        display: Name for people.
        abbreviation: Column `abbreviation` of dseg.tsv.
        color: Hex colour; Okabe and Ito's palette, told apart by colour-blind readers.
        bids: BIDS' standard index (specification 1.10, "Common image-derived labels"), None where there is none.
    """

    display: str
    abbreviation: str
    color: str
    bids: int | None


_LOOKS = {
    BACKGROUND: _Look("background", "BG", "#000000", 0),
    "external_csf": _Look("external cerebrospinal fluid", "eCSF", "#56B4E9", 3),
    "cortical_grey_matter": _Look("cortical grey matter", "CGM", "#D55E00", 8),
    "white_matter": _Look("white matter", "WM", "#F0E442", 2),
    "ventricles": _Look("ventricles", "VEN", "#0072B2", 3),
    "cerebellum": _Look("cerebellum", "CBM", "#009E73", 11),
    "deep_grey_matter": _Look("deep grey matter", "DGM", "#CC79A7", 9),
    "brainstem": _Look("brainstem", "BSTM", "#E69F00", 10),
    "brain": _Look("brain", "BRAIN", "#D55E00", None),
}


def scheme(name: str) -> LabelScheme:
    """The scheme of that name (`feta`, `brain_mask`); DataError with the nearest match for any other."""
    if name not in _SCHEMES:
        raise DataError(f"there is no label scheme '{name}'", hint=suggest(name, _SCHEMES))
    return _SCHEMES[name]


def display_name(tissue: str) -> str:
    """The tissue's name for people: `external_csf` gives `external cerebrospinal fluid`."""
    return _LOOKS[tissue].display


def abbreviation(tissue: str) -> str:
    """Short name for tables and dseg.tsv: `CGM`."""
    return _LOOKS[tissue].abbreviation


def color(tissue: str) -> str:
    """Hex colour, `#RRGGBB`, of overlays and dseg.tsv."""
    return _LOOKS[tissue].color


def dseg_tsv(scheme: LabelScheme) -> str:
    """The text of the `dseg.tsv` that goes with this scheme's label maps.

    Columns as in BIDS derivatives: index, name, abbreviation, color, mapping (BIDS' own index, `n/a` where none fits).
    """
    rows = ["index\tname\tabbreviation\tcolor\tmapping"]
    for index, tissue in enumerate((BACKGROUND, *scheme.tissues)):
        look = _LOOKS[tissue]
        mapping = "n/a" if look.bids is None else str(look.bids)
        rows.append(f"{index}\t{look.display}\t{look.abbreviation}\t{look.color}\t{mapping}")
    return "\n".join(rows) + "\n"


def suggest(name: str, known: Iterable[str]) -> str:
    """A hint for a name that is not known: the nearest of those that are, or all of a few."""
    choices = list(known)
    near = difflib.get_close_matches(name.lower(), choices, n=1)
    if near:
        return f"did you mean '{near[0]}'?"
    return f"known: {', '.join(choices)}" if len(choices) <= 8 else "no known name is near it"
