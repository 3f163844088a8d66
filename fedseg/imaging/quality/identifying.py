"""Fields that may say who was scanned, where and when: named, never quoted.

fedseg reads none of them and sends none of them; but copies of a data set travel further than anyone planned.
Sources: what dcm2niix writes with `-ba n`, and BIDS 1.10 (hardware, institution and time fields of MRI sidecars; the
column `acq_time` of `_scans.tsv`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fedseg.imaging.nifti import Fields
from fedseg.imaging.quality.finding import Remark

_DICOM, _COMMENT = 2, 6
_EXTENSIONS = {_DICOM: "DICOM", 4: "AFNI", _COMMENT: "comment"}

_KEY = re.compile(
    r"(?i)^(patient.*(name|id|birth|address|sex|age|weight|size|comment|telephone|religio|insurance).*"
    r"|.*(birth(date|time)|physician|operator|accession|institution|stationname|serialnumber|deviceuid).*"
    r"|.*(study|series|acquisition|content|instance|frameofreference|procedurestepstart|procedurestepend)"
    r"(date|time|datetime|instanceuid|uid)|studyid|date|time|.*datetime)$"
)
_VERSIONS = re.compile(r"(?i).*softwareversion.*|consistencyinfo")
_COLUMN = re.compile(
    r"(.*_)?(surname|firstname|lastname|forename|initials|dob|birthdate|birth_date|date_of_birth|birthday|mrn|nhs|ssn"
    r"|address|street|phone|telephone|email|postcode|zip|accession|accession_number|date|datetime|hospital_id"
    r"|patient_id|patientid|patient_number|acq_time)(_.*)?|((patient|mother|maternal|first|last|full|family|given)_)?name"
)
_WORDS = frozenset(
    """
    accession acq acquisition address admitting age anatomical application assessment begin birth birthdate birthday
    coil comment comments condition consistency const content contents country creation csa current data date
    datetime days dcmmeta department derivation description details detector device diagnosis dicom dob document
    email end equipment examination family father file first firstname forename frame full ga gestational given
    global group header history hospital id identifier identity image info information initials instance institution
    institutional insurance interpretation issuer last lastname location manufacturer manufacturers maternal medical
    modality model mother mr mrn name nhs note notes number of operator operators order organ other part participant
    patient patientid performed performing person phone physician physicians postcode pregnancy procedure protocol
    record records referring region registration remark remarks report request requested requesting responsible
    result results samples scan scanner scheduled sequence serial series service session sessions sex site size
    slice slices software sop source ssn staff start station status step street study subject surname system task
    telephone time transmit type uid unit update value version versions visit weeks weight zip
    """.split()  # noqa: SIM905
)
"""Words that names of fields are made of (BIDS, DICOM, dcm2niix, dcmstack). A name with any other is not shown: it may
be data that stands where a name should, as in a table without a header."""
_HUMPS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_NAME = re.compile(r"[A-Za-z][A-Za-z_]*\d?")
_HIDDEN = "(a field)"
_DATE = re.compile(
    r"(?<!\d)((19|20)\d\d([-/.]?)(0[1-9]|1[0-2])\3(0[1-9]|[12]\d|3[01])|(0?[1-9]|[12]\d|3[01])[./](0?[1-9]|1[0-2])[./]"
    r"((19|20)\d\d))(?!\d)"
)
_PERSON = re.compile(r"[^\W\d_]+\^[^\W\d_]+")
_EMPTY = {"", "n/a", "na", "none", "unknown", "anonymous", "anonymized", "anonymised", "anon", "removed", "0", "xxx"}
_TOOLS = re.compile(
    r"(?i)^(fsl|itk|spm|ants|afni|mrtrix|mirtk|irtk|svrtk|nesvor|freesurfer|nibabel|\d+\.\d+\.\d+(:\w+)?$)"
)


def check_header(fields: Fields, first_bytes: bytes, name: str) -> Iterator[Remark]:
    """Text fields and extensions of a NIfTI header, and the name that gzip has kept.

    Args:
        fields: The header as stored.
        first_bytes: The file's first 512 bytes.
        name: The file's name.
    """
    found = [field for field, text in fields.texts.items() if not _TOOLS.match(text) or _telling(text)]
    found += [f"extension {code} ({_EXTENSIONS.get(code, 'other')})" for code in sorted(set(fields.extensions))]
    if _kept_name(first_bytes) not in (None, name.removesuffix(".gz")):
        found.append("gzip file name")
    if found:
        hint = "see that they say nothing of a person, and clear them: nothing of them is copied or sent"
        yield Remark("header-text", "warning", f"text in the header: {', '.join(found)}", hint)


def check_sidecar(document: Any) -> Iterator[Remark]:
    """Fields of a JSON sidecar, nested ones by their path; a part that is no field's name is not shown."""
    found = sorted({".".join(map(_shown, path)) for path in _telling_keys(document, ())})
    if found:
        hint = "delete them (or convert with dcm2niix -ba y, which leaves the person out): nothing of them is sent"
        yield Remark("sidecar", "warning", f"identifying fields in the sidecar: {', '.join(found)}", hint)


def check_columns(columns: Mapping[str, Sequence[str]]) -> Iterator[Remark]:
    """Columns of a table, by name or because their cells look like dates or names.

    A table without a header has data of its first row for names: those are not shown.
    """
    found = {
        _shown(column)
        for column, cells in columns.items()
        if any(cell.lower() not in _EMPTY for cell in cells)
        and (_COLUMN.fullmatch(column) or any(_telling(cell) for cell in (column.replace("_", "-"), *cells)))
    }
    if found:
        hint = "delete them, or move them where the data set's copies don't go: nothing of them is read or sent"
        yield Remark("table-columns", "warning", f"identifying columns: {', '.join(sorted(found))}", hint)


def check_name(subject: str, file: str) -> Iterator[Remark]:
    """Dates and names in ids and file names."""
    if _telling(subject) or _telling(file):
        hint = "rename it: ids and file names end up in outputs and messages on this machine"
        yield Remark("name-date", "warning", "the subject's id or the file's name holds a date or a name", hint)
    elif re.fullmatch(r"[^\W\d_]{3,}", subject):
        yield Remark("name-letters", "note", "the subject's id has no digit", "if it is a person's name, rename it")


def _telling(text: str) -> bool:
    return bool(_DATE.search(text) or _PERSON.search(text))


def _shown(name: str) -> str:
    """The name of a field or column; `(a field)` where it may be data."""
    words = (word.lower() for word in _HUMPS.findall(name))
    return name if _NAME.fullmatch(name) and all(word in _WORDS for word in words) else _HIDDEN


def _telling_keys(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Paths of the fields that tell something: by name, or because their text looks like a date or a name."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _telling_keys(inner, (*path, str(key)))
        return
    items = value if isinstance(value, list) else [value]
    for inner in items:
        if isinstance(inner, Mapping):
            yield from _telling_keys(inner, path)
    key = path[-1] if path else ""
    texts = [str(each) for each in items if isinstance(each, str | int | float)]
    if all(text.strip().lower() in _EMPTY for text in texts):
        return
    telling = any(map(_telling, texts)) and not _VERSIONS.match(key)
    if telling or _KEY.match(key) or any(map(_telling, path)):
        yield path


def _kept_name(first_bytes: bytes) -> str | None:
    """The name in a gzip header (RFC 1952, FNAME), or None."""
    if first_bytes[:2] != b"\x1f\x8b" or not first_bytes[3] & 8 or first_bytes[3] & 4:
        return None
    return first_bytes[10:].split(b"\0")[0].decode("latin-1")
