"""What a data set is called by default, and how its subjects are counted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fedseg.cli.evaluate import _folder_names
from fedseg.errors import UsageError
from tests.cli.conftest import Command


def test_a_folder_called_data_has_its_sites_name() -> None:
    assert _folder_names([Path("/x/leuven/data"), Path("/x/wien/data")]) == ["leuven", "wien"]
    assert _folder_names([Path("/x/leuven"), Path("/x/pairs.csv"), Path("/data")]) == ["leuven", "pairs", "data"]
    with pytest.raises(UsageError, match="two data sets are called bids"):
        _folder_names([Path("/x/bids"), Path("/y/bids")])


def test_a_data_check_counts_pregnancies_as_the_ledger_does(fedseg: Command, make_bids: Callable[..., Path]) -> None:
    root = make_bids(3, participants="participant_id\tsubject_key\nsub-01\tx\nsub-02\tx\nsub-03\ty\n")
    answer = fedseg("data", "check", root)
    assert "(2 train, 0 validation, 0 test subjects under 3 ids, " in answer.out
    assert json.loads(fedseg("data", "check", root, "--json").out)["subjects"]["train"] == 2
