"""What a site's own label numbers mean.

Label numbers clash between sites (3 is white matter in FeTA and cerebellum in Fidon's atlases), so a number is
never trusted: it is looked up in the site's table (BIDS' `dseg.tsv`) and mapped *by name*. A name that is not known,
or a tissue that no name stands for, is refused.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from fedseg.errors import DataError
from fedseg.imaging.folders import is_own_folder
from fedseg.imaging.nifti import stem
from fedseg.imaging.tables import read_text
from fedseg.labels import BACKGROUND, BRAIN_MASK, LabelScheme, display_name, suggest

_SYNONYMS: Mapping[str, tuple[str, ...]] = {
    BACKGROUND: (
        "background",
        "bg",
        "unknown",
        "unlabelled",
        "outside",
        "exterior",
        "clear label",
        "non brain",
        "nonbrain",
    ),
    "external_csf": (
        "external cerebrospinal fluid",
        "external csf",
        "ecsf",
        "cerebrospinal fluid",
        "csf",
        "extra axial cerebrospinal fluid",
        "extra axial csf",
        "extracerebral cerebrospinal fluid",
        "extracerebral csf",
        "external cerebrospinal fluid rim",
        "subarachnoid space",
    ),
    "cortical_grey_matter": (
        "cortical grey matter",
        "grey matter",
        "gm",
        "cgm",
        "cortical gm",
        "cortex",
        "cortical plate",
        "cerebral cortex",
    ),
    "white_matter": (
        "white matter",
        "wm",
        "cerebral white matter",
        "corpus callosum",
        "subplate",
        "intermediate zone",
        "internal capsule",
    ),
    "ventricles": (
        "ventricles",
        "ventricle",
        "ventricular system",
        "lateral ventricles",
        "lateral ventricle",
        "lv",
        "third ventricle",
        "3rd ventricle",
        "fourth ventricle",
        "4th ventricle",
        "cavum",
        "cavum septi pellucidi",
        "cavum septum pellucidum",
        "csp",
    ),
    "cerebellum": ("cerebellum", "cb", "cbm", "cerebellar hemisphere", "cerebellar vermis", "vermis"),
    "deep_grey_matter": (
        "deep grey matter",
        "deep gm",
        "dgm",
        "subcortical grey matter",
        "sgm",
        "basal ganglia",
        "bg and thalami",
        "thalamus",
        "thalami",
        "thalamus and basal ganglia",
        "hippocampus",
        "hippocampi",
        "amygdala",
        "hippocampi and amygdala",
        "hippocampus and amygdala",
        "caudate",
        "lentiform",
    ),
    "brainstem": ("brainstem", "brain stem", "bs", "bst", "bstm"),
    "brain": ("brain", "brain mask", "whole brain"),
}
_TISSUE_OF = {synonym: tissue for tissue, synonyms in _SYNONYMS.items() for synonym in synonyms}

TABLES: Mapping[str, Mapping[int, str]] = MappingProxyType(
    {
        "feta": {
            0: "background",
            1: "external cerebrospinal fluid",
            2: "grey matter",
            3: "white matter",
            4: "ventricles",
            5: "cerebellum",
            6: "deep grey matter",
            7: "brainstem",
        },
        "fidon": {
            0: "background",
            1: "white matter",
            2: "ventricles",
            3: "cerebellum",
            4: "external cerebrospinal fluid",
            5: "grey matter",
            6: "deep grey matter",
            7: "brainstem",
            8: "corpus callosum",
        },
        "drawem": {
            0: "background",
            1: "cerebrospinal fluid",
            2: "cortical grey matter",
            3: "white matter",
            4: "external cerebrospinal fluid rim",
            5: "ventricles",
            6: "cerebellum",
            7: "deep grey matter",
            8: "brainstem",
            9: "hippocampi and amygdala",
        },
        "bounti": {
            0: "background",
            1: "left external csf",
            2: "right external csf",
            3: "left cortical grey matter",
            4: "right cortical grey matter",
            5: "left white matter",
            6: "right white matter",
            7: "left lateral ventricle",
            8: "right lateral ventricle",
            9: "cavum septum pellucidum",
            10: "brainstem",
            11: "left cerebellum",
            12: "right cerebellum",
            13: "cerebellar vermis",
            14: "left basal ganglia",
            15: "right basal ganglia",
            16: "left thalamus",
            17: "right thalamus",
            18: "third ventricle",
            19: "fourth ventricle",
        },
    }
)
"""Label tables of known protocols, index to name: for `--labels NAME` where a data set has no dseg.tsv."""


@dataclass(frozen=True)
class LabelTable:
    """What the indices of a label map mean.

    Args:
        source: The file it was read from, or the name of a known table.
        names: Name of each index.
    """

    source: str
    names: Mapping[int, str]


def given_table(labels: str | None) -> LabelTable | None:
    """The table of `--labels`: a known name, or a file."""
    if labels is None:
        return None
    path = Path(labels)
    if path.is_file():
        return LabelTable(str(path), parse_dseg_tsv(read_text(path), str(path)))
    if path.suffix or len(path.parts) > 1:
        raise DataError("there is no such label table", where=labels, hint="a file with the columns index and name")
    return LabelTable(f"--labels {labels}", named_table(labels))


def table_for(labels: Path | None, root: Path, override: LabelTable | None) -> LabelTable | None:
    """The override, else the nearest dseg.tsv: the label map's own, then from its folder up to the root.

    The table of a folder of our own results says what our numbers mean, and nothing of anybody else's labels.
    """
    if labels is None or override is not None:
        return override
    candidates = [labels.with_name(f"{stem(labels)}.tsv")]
    for folder in labels.parents:
        if not is_own_folder(folder):
            candidates.append(folder / "dseg.tsv")
        if folder == root:
            break
    path = next((candidate for candidate in candidates if candidate.is_file()), None)
    return LabelTable(str(path), parse_dseg_tsv(read_text(path), str(path))) if path else None


def named_table(name: str) -> dict[int, str]:
    """The known table of that name (`TABLES`); DataError with the nearest match for any other."""
    if name not in TABLES:
        raise DataError(f"there is no label table '{name}'", hint=suggest(name, TABLES))
    return dict(TABLES[name])


def parse_dseg_tsv(text: str, where: str) -> dict[int, str]:
    """Read a label table: a header with `index` and `name`, tabs (or commas) between.

    Args:
        text: The file's content; a byte order mark, blank lines and further columns do no harm.
        where: The file's name, for messages.

    Returns:
        Name of each index, as written.

    Raises:
        DataError: No such columns, an index that is not a whole number from 0 or that comes twice, an empty name,
            an empty table.
    """
    lines = [line for line in text.lstrip("\ufeff").splitlines() if line.strip()]
    if not lines:
        raise DataError("the label table is empty", where=where, hint="it needs the columns index and name")
    delimiter = "\t" if "\t" in lines[0] else ","
    header, *rows = csv.reader(lines, delimiter=delimiter)
    columns = [column.strip().lower() for column in header]
    if "index" not in columns or "name" not in columns:
        found = ", ".join(columns)
        raise DataError(f"the label table has no columns index and name; it has: {found}", where=where)
    table: dict[int, str] = {}
    for row in rows:
        cells = dict(zip(columns, (cell.strip() for cell in row), strict=False))
        _add_row(table, cells.get("index", ""), cells.get("name", ""), where)
    if not table:
        raise DataError("the label table has a header and no rows", where=where)
    return table


def class_map(table: Mapping[int, str], scheme: LabelScheme, where: str) -> dict[int, int]:
    """Map a site's label indices to the scheme's classes, by name.

    Names are compared without case, punctuation, side (left, right) or spelling of grey. "Grey matter" alone is the
    cortical one, as at FeTA's and Fidon's sites; the corpus callosum is white matter. For the brain mask every name
    that isn't background is brain, external CSF included (as in the brain masks of the atlases: see `imaging.dataset`).
    Index 0 is background unless the table says otherwise.

    Args:
        table: Name of each index.
        scheme: The study's scheme.
        where: The table's file name, for messages.

    Raises:
        DataError: Names that aren't known, or tissues of the scheme that no name stands for: with what was found,
            what is known, and the nearest match.
    """
    if scheme == BRAIN_MASK:
        return {0: 0} | {index: int(_tissue_of(name) != BACKGROUND) for index, name in table.items()}
    tissues = {index: _tissue_of(name) for index, name in table.items()}
    _refuse_unknown(table, tissues, scheme, where)
    missing = [tissue for tissue in scheme.tissues if tissue not in tissues.values()]
    if missing:
        raise DataError(
            f"no label stands for {', '.join(map(display_name, missing))}; found: {_listing(table)}",
            where=where,
            hint="every tissue of the study's scheme needs a name in the table: complete it, or give --labels",
        )
    return {0: 0} | {index: scheme.index(tissue) for index, tissue in tissues.items() if tissue is not None}


def _refuse_unknown(
    table: Mapping[int, str], tissues: Mapping[int, str | None], scheme: LabelScheme, where: str
) -> None:
    """DataError for names that stand for no class of the scheme."""
    known = (BACKGROUND, *scheme.tissues)
    unknown = {index: table[index] for index, tissue in tissues.items() if tissue not in known}
    if unknown:
        synonyms = [synonym for tissue in known for synonym in _SYNONYMS[tissue]]
        raise DataError(
            f"label names that are not known: {_listing(unknown)}; found: {_listing(table)}; "
            f"known: {', '.join(map(display_name, known))}, and their synonyms",
            where=where,
            hint="; ".join(f"'{name}': {suggest(_normal(name), synonyms)}" for name in unknown.values()),
        )


def _add_row(table: dict[int, str], index: str, name: str, where: str) -> None:
    """Put one row into the table, or say what is wrong with it."""
    if not re.fullmatch(r"[0-9]+", index):
        raise DataError(f"the index '{index}' is not a whole number from 0", where=where)
    if not name:
        raise DataError(f"index {index} has no name", where=where, hint="say which tissue it is")
    if int(index) in table:
        raise DataError(f"index {index} is listed twice: '{table[int(index)]}' and '{name}'", where=where)
    table[int(index)] = name


def _normal(name: str) -> str:
    """Lower case, British grey, no punctuation, no side, single blanks."""
    words = re.sub(r"[^a-z0-9]+", " ", name.lower()).replace("gray", "grey").split()
    kept = [word for word in words if word not in {"left", "right", "l", "r", "lh", "rh", "the"}]
    return " ".join(kept)


def _tissue_of(name: str) -> str | None:
    """The tissue that a name stands for, None where it is not known; a plural is taken for its singular."""
    normal = _normal(name)
    return _TISSUE_OF.get(normal) or _TISSUE_OF.get(normal.removesuffix("s"))


def _listing(table: Mapping[int, str]) -> str:
    return ", ".join(f"{index} '{name}'" for index, name in sorted(table.items()))
