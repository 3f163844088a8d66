"""The templates of all pages: one environment, which escapes what it is given and refuses what it is not."""

from __future__ import annotations

from functools import lru_cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template


def template(name: str) -> Template:
    """A template of `fedseg/report/templates` by its file's name."""
    return _environment().get_template(name)


@lru_cache(maxsize=1)
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("fedseg.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
