"""YAML 1.2 documents that know their own lines, checked against a strict pydantic model.

Shared by the study plan and the site policy: both are data that people write by hand, so every mistake is
answered with the file, the line, what is allowed and the nearest match.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from fedseg.errors import FedsegError

MAX_BYTES = 256 * 1024
_BRACKETS = {"while parsing a flow sequence": "[", "while parsing a flow mapping": "{"}

Path = tuple[str | int, ...]


class Section(BaseModel):
    """A frozen part of a document in which an unknown key, a wrong type, NaN or infinity is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


Model = TypeVar("Model", bound=Section)


class Impossible(ValueError):
    """Raised by a model's validator: what is impossible about a whole document.

    Args:
        why: One sentence, about the first key.
        keys: Dotted keys that it is about. The answer points at the first that is written, or whose section is.
        hint: What to write instead.
    """

    def __init__(self, why: str, *keys: str, hint: str) -> None:
        """Keep the parts; as text, the first key and why."""
        super().__init__(f"{keys[0]}: {why}")
        self.keys, self.hint = keys, hint


@dataclass(frozen=True)
class Document(Generic[Model]):
    """A checked document and where each of its keys stands.

    Attributes:
        content: The typed content.
        name: What errors call the file.
        lines: Line number (from 1) by key path.
    """

    content: Model
    name: str
    lines: Mapping[Path, int]

    def where(self, *path: str | int) -> str:
        """`file:line` of a key; of its nearest written ancestor where the key itself is left to its default."""
        while path and path not in self.lines:
            path = path[:-1]
        return f"{self.name}:{self.lines.get(path, 1)}"


def parse(text: str, model: type[Model], *, name: str, error: type[FedsegError]) -> Document[Model]:
    """Read a YAML 1.2 text into `model`.

    Args:
        text: The document, at most 256 KiB.
        model: The strict model it must satisfy.
        name: What errors call the file.
        error: The class of error to raise.

    Raises:
        FedsegError: of class `error`, at the first mistake, with line, what is allowed and the nearest match.
    """
    tree = _load(text, name, error)
    try:
        lines = dict(_lines(tree, ()))
        plain = json.dumps(tree, default=str)
    except _TagError as tagged:
        key = ".".join(str(part) for part in tagged.args[0])
        raise error(f"{key}: tags (!...) are not allowed", where=name, hint="write the plain value") from None
    except RecursionError:
        raise error("nested too deeply", where=name, hint="is this the right file?") from None
    except TypeError:
        raise error("a key is not plain text", where=name) from None
    try:
        content = model.model_validate_json(plain)
    except ValidationError as failure:
        # An unknown key first: it explains the missing one.
        problems = sorted(failure.errors(), key=lambda e: e["type"] != "extra_forbidden")
        raise _explain(problems[0], model, Document(cast(Model, None), name, lines), error) from None
    return Document(content, name, lines)


class _TagError(Exception):
    """A value with a YAML tag, at a key path."""


def _load(text: str, name: str, error: type[FedsegError]) -> CommentedMap:
    if len(text) > MAX_BYTES:
        raise error(f"longer than {MAX_BYTES // 1024} KiB", where=name, hint="is this the right file?")
    try:
        tree = YAML(typ="rt", pure=True).load(text)
    except MarkedYAMLError as failure:
        raise _malformed(failure, name, error) from None
    except (YAMLError, ValueError) as failure:
        what = str(failure).partition("\n")[0]
        raise error(f"not valid YAML: {what}", where=name, hint="is this the right file?") from None
    except RecursionError:
        raise error("nested too deeply", where=name, hint="is this the right file?") from None
    if not isinstance(tree, CommentedMap):
        raise error(
            "empty, or not a mapping of keys to values", where=name, hint="start from a file in sample_configs/"
        )
    return tree


def _malformed(failure: MarkedYAMLError, name: str, error: type[FedsegError]) -> FedsegError:
    """What is wrong with the text, at the line to look at: a bracket that is not closed is noticed far below it."""
    mark, what, hint = failure.problem_mark, failure.problem, "check indentation and colons"
    if isinstance(failure, DuplicateKeyError):
        what, hint = str(what).partition(" with value")[0], "each key stands once: remove or rename one of the two"
    elif failure.context in _BRACKETS:
        mark, hint = failure.context_mark, f"is the {_BRACKETS[failure.context]} that opens here closed?"
        what = f"{failure.context}, {what}"
    line = mark.line + 1 if mark else 1
    return error(f"not valid YAML: {what}", where=f"{name}:{line}", hint=hint)


def _lines(node: object, path: Path) -> list[tuple[Path, int]]:
    found: list[tuple[Path, int]] = []
    if getattr(getattr(node, "tag", None), "value", None) is not None:
        raise _TagError(path)
    if isinstance(node, CommentedMap):
        for key, value in node.items():
            # A key that was merged in (<<) has no place of its own: it stands where its mapping does.
            place = (node.lc.data or {}).get(key, (node.lc.line,))
            found.append(((*path, str(key)), place[0] + 1))
            found += _lines(value, (*path, str(key)))
    elif isinstance(node, CommentedSeq):
        for index, value in enumerate(node):
            found.append(((*path, index), node.lc.item(index)[0] + 1))
            found += _lines(value, (*path, index))
    return found


def _explain(
    problem: ErrorDetails, model: type[Section], document: Document[Any], error: type[FedsegError]
) -> FedsegError:
    path = tuple(part for part in problem["loc"] if part != "[key]")
    dotted = ".".join(str(part) for part in path)
    if problem["type"] == "extra_forbidden":
        known = _keys(model, path[:-1])
        close = difflib.get_close_matches(str(path[-1]), known, n=1, cutoff=0.5)
        guess = f"did you mean {close[0]}? " if close else ""
        hint = f"{guess}known here: {', '.join(known)}"
        return error(f"unknown key {dotted}", where=document.where(*path), hint=hint)
    if problem["type"] == "missing":
        return error(f"{dotted} is missing", where=document.where(*path[:-1]))
    message = problem["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    given = problem["input"]
    nearest = _nearest(given, problem.get("ctx", {}).get("expected"))
    if isinstance(given, str | int | float | bool) and problem["type"] != "value_error":
        message += f", not {given!r}"
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, Impossible):
        return error(str(cause), where=_written(document, cause.keys), hint=cause.hint)
    # What is impossible about a whole document says first which key it is about.
    about = path or tuple(message.partition(":")[0].split("."))
    return error(f"{dotted}: {message}" if dotted else message, where=document.where(*about), hint=nearest)


def _written(document: Document[Any], keys: Sequence[str]) -> str:
    """`file:line` of the first of these keys that is written in the file, or of which a section is."""
    paths = [tuple(key.split(".")) for key in keys]
    return document.where(*next((path for path in paths if path[:1] in document.lines), paths[0]))


def _nearest(given: object, expected: object) -> str | None:
    choices = [word.strip("' ") for word in str(expected or "").replace(" or ", ",").split(",")]
    close = difflib.get_close_matches(str(given), choices, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close and close[0] else None


def _keys(model: type[Section], path: Sequence[str | int]) -> list[str]:
    """The keys known at `path` below `model`."""
    for part in path:
        field = model.model_fields.get(str(part))
        if field is not None:
            model = _section(field.annotation) or model
    return list(model.model_fields)


def _section(annotation: object) -> type[Section] | None:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section(part))), None)
