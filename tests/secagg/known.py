"""Known answers as `cryptography_vectors` carries them: the standards' and NIST's, in their own files."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files

_FOLDER = files("cryptography_vectors")


def lines(path: str) -> list[str]:
    return _FOLDER.joinpath(*path.split("/")).read_text().splitlines()


def answers(path: str) -> Iterator[dict[str, str]]:
    """The cases of a file of `NAME = value` lines, names in lower case; a `[NAME = value]` holds for those after it."""
    section: dict[str, str] = {}
    case: dict[str, str] = {}
    for line in [*lines(path), "[end = 1]"]:
        name, equals, value = (part.strip() for part in line.strip("[]").partition("="))
        if line.startswith("[") and case:
            yield section | case
            case = {}
        if line.startswith("["):
            section[name.lower()] = value
        elif equals and name.lower() == "count" and case:
            yield section | case
            case = {name.lower(): value}
        elif equals:
            case[name.lower()] = value
