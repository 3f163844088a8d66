from __future__ import annotations

import pytest

from fedseg.errors import DataError
from fedseg.labels import FETA, abbreviation, color, scheme


def test_looks_are_distinct() -> None:
    assert len({color(tissue) for tissue in FETA.tissues}) == 7
    assert len({abbreviation(tissue) for tissue in FETA.tissues}) == 7


def test_unknown_scheme_suggests() -> None:
    with pytest.raises(DataError, match=r"no label scheme 'fetta'.*did you mean 'feta'"):
        scheme("fetta")
    assert FETA.index("background") == 0
    assert FETA.index("brainstem") == 7
