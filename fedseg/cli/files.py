"""Text files that a person names on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fedseg.errors import FedsegError, UsageError

if TYPE_CHECKING:
    from fedseg.document import Document
    from fedseg.plan.study import StudyPlan
    from fedseg.policy import SitePolicy


def read_text(path: Path, what: str) -> str:
    """A small text file.

    Raises:
        UsageError: if there is none, or it is not text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"there is no such {what}", where=str(path), hint="check the path") from None
    except IsADirectoryError:
        raise UsageError(f"this is a folder, not a {what}", where=str(path), hint="name the file in it") from None
    except UnicodeDecodeError as error:
        wide = error.object[:2] in (b"\xff\xfe", b"\xfe\xff")
        hint = "it is UTF-16: save it as UTF-8" if wide else "is this the right file? It has to be text in UTF-8"
        raise UsageError(f"this {what} is not text", where=str(path), hint=hint) from None
    except OSError as error:
        hint = "is it a file that you may read?"
        raise UsageError(f"this {what} cannot be read: {error.strerror}", where=str(path), hint=hint) from None


def load_plan(path: Path) -> Document[StudyPlan]:
    """A plan from a YAML file."""
    from fedseg.plan.study import parse_plan

    return parse_plan(read_text(path, "plan"), str(path))


def load_policy(text: str | None, name: str) -> Document[SitePolicy]:
    """A policy from its text; the default one for None."""
    from fedseg.policy import default_policy, parse_policy

    return default_policy() if text is None else parse_policy(text, name)


def require_folder(path: Path, what: str) -> None:
    """Refuse a path that is not there.

    Raises:
        UsageError: saying so.
    """
    if not path.exists():
        raise FedsegError(f"there is no such {what}", where=str(path), hint="check the path")
