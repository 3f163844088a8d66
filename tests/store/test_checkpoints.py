from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load as read_safetensors
from safetensors.numpy import save as format_safetensors

from fedseg.errors import ModelError, StorageError
from fedseg.federation.vector import Layout, model_hash
from fedseg.imaging.fingerprint import Fingerprint
from fedseg.store import checkpoints
from fedseg.store.checkpoints import (
    ModelCard,
    describe,
    load_model,
    save_model,
    weights_hash,
)

ARRAYS = {
    "head.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "head.bias": np.array([-1.5, 2.5], dtype=np.float32),
    "scale": np.array(3.0, dtype=np.float32),
}
CARD = ModelCard(
    architecture={"preset": "small", "channels": [8, 16, 32, 64]},
    task="feta",
    tissues=("white_matter", "ventricles"),
    spacing_mm=1.6,
    patch=(64, 64, 64),
    normalisation={"kind": "zscore"},
    study="atlas",
    plan_hash="0" * 64,
    rounds=2,
    contributors=((1, ("crl", "wu")), (3, ("crl", "wu", "sba"))),
    privacy={"mode": "off", "epsilon": None},
    code_version="0.1.0",
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_model(path, ARRAYS, CARD)
    return path


def _rewrite(path: Path, change: Any) -> None:
    """Write the file anew with its envelope changed by a function."""
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    envelope = change(json.loads(header["__metadata__"]["fedseg"]))
    path.write_bytes(format_safetensors(read_safetensors(data), {"fedseg": json.dumps(envelope)}))


def test_round_trip(model: Path) -> None:
    arrays, card = load_model(model)
    assert card == replace(CARD, model_hash=model_hash(Layout.of(ARRAYS).flatten(ARRAYS)))
    assert set(arrays) == set(ARRAYS)
    for name, values in arrays.items():
        assert values.dtype == np.float32
        assert values.flags.writeable
        assert values.shape == ARRAYS[name].shape
        np.testing.assert_array_equal(values, ARRAYS[name])
    assert json.loads(json.dumps(describe(card)))["contributors"] == [[1, ["crl", "wu"]], [3, ["crl", "wu", "sba"]]]


def test_the_same_model_is_the_same_file(model: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.safetensors"
    save_model(again, dict(reversed(ARRAYS.items())), load_model(model)[1])
    assert again.read_bytes() == model.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.safetensors", "model.safetensors"]


def test_arrays_that_are_views_are_written_as_they_look(tmp_path: Path) -> None:
    turned = {"w": np.arange(6, dtype=np.float32).reshape(2, 3).T}
    save_model(tmp_path / "m", turned, CARD)
    np.testing.assert_array_equal(load_model(tmp_path / "m")[0]["w"], turned["w"])


def test_cut_anywhere_it_is_refused(model: Path) -> None:
    data = model.read_bytes()
    for size in range(len(data)):
        model.write_bytes(data[:size])
        with pytest.raises(ModelError, match=f"model.safetensors: the model file is cut short: it ends after {size} b"):
            load_model(model)


def test_every_byte_matters(model: Path) -> None:
    data = model.read_bytes()
    for place in range(len(data)):
        model.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(ModelError):
            load_model(model)


@given(st.binary(max_size=200))
def test_no_bytes_make_it_fail_otherwise(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("random") / "m"
    path.write_bytes(data)
    with pytest.raises(ModelError):
        load_model(path)
    path.write_bytes(len(data).to_bytes(8, "little") + data)
    with pytest.raises(ModelError):
        load_model(path)


def test_changed_weights_and_changed_claims_are_damage(model: Path) -> None:
    data = bytearray(model.read_bytes())
    data[-1] ^= 1
    model.write_bytes(data)
    with pytest.raises(ModelError, match="damaged: its content does not match its hash"):
        load_model(model)
    save_model(model, ARRAYS, CARD)
    _rewrite(model, lambda e: e | {"card": e["card"] | {"privacy": {"mode": "local", "epsilon": 1.0}}})
    with pytest.raises(ModelError, match="damaged: its content does not match its hash"):
        load_model(model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e | {"schema": 2}, "the model file has schema 2; this version knows 1 (install the version"),
        (lambda e: e | {"more": 1}, "the model's description is incomplete"),
        (lambda _: {"version": 1}, "not fedseg's description of them"),
        (lambda _: [], "not fedseg's description of them"),
        (lambda e: e | {"card": e["card"] | {"patch": [64, 64]}}, "description is wrong at 'patch"),
        (lambda e: e | {"card": e["card"] | {"rounds": "2"}}, "description is wrong at 'rounds'"),
        (lambda e: e | {"card": e["card"] | {"run": "rm"}}, "description is wrong at 'run'"),
        (
            lambda e: e | {"card": e["card"] | {"patch": [4096] * 3}},
            "description is wrong at 'patch.0': Input should be less than or equal to 256 "
            "(it is damaged or made up: give a model.safetensors that fedseg wrote)",
        ),
        (lambda e: e | {"card": e["card"] | {"patch": [64, 64, 7]}}, "greater than or equal to 8"),
        (lambda e: e | {"card": e["card"] | {"spacing_mm": 0.04}}, "'spacing_mm': Input should be greater than or eq"),
        (lambda e: e | {"card": e["card"] | {"spacing_mm": 4.1}}, "'spacing_mm': Input should be less than or equal"),
    ],
)
def test_descriptions_that_are_refused(model: Path, change: Any, message: str) -> None:
    _rewrite(model, change)
    with pytest.raises(ModelError, match=re.escape(message)):
        load_model(model)


def test_files_that_are_something_else(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="there is no such model file"):
        load_model(model.with_name("none"))
    with pytest.raises(ModelError, match="the model file cannot be read: Is a directory"):
        load_model(model.parent)
    model.write_bytes(b"PK\x03\x04 a zip file, as torch writes them" + bytes(100))
    with pytest.raises(ModelError, match="this is not a safetensors file"):
        load_model(model)
    model.write_bytes(b"hello\n")
    with pytest.raises(ModelError, match="this is not a safetensors file"):
        load_model(model)
    model.write_bytes(format_safetensors(ARRAYS))
    with pytest.raises(ModelError, match="the file holds weights, but not fedseg's description of them"):
        load_model(model)
    save_model(model, ARRAYS, CARD)
    model.write_bytes(model.read_bytes() + b"\0")
    with pytest.raises(ModelError, match="this is not a safetensors file"):
        load_model(model)
    monkeypatch.setattr(checkpoints, "MAX_FILE_BYTES", 100)
    with pytest.raises(ModelError, match="no model of fedseg's"):
        load_model(model)


def test_arrays_of_another_type_in_the_file(model: Path) -> None:
    data = model.read_bytes()
    metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    model.write_bytes(format_safetensors({"w": np.zeros(3, np.float16)}, metadata))
    with pytest.raises(ModelError, match="other arrays than float32"):
        load_model(model)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "without weights"),
        ({"w": np.zeros(2)}, "'w' are float64, not float32"),
        ({"w": np.array([1, np.nan], np.float32)}, "'w' hold NaN or infinity"),
    ],
)
def test_weights_that_are_not_written(tmp_path: Path, arrays: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        save_model(tmp_path / "m", arrays, CARD)
    assert not list(tmp_path.iterdir())


def test_cards_that_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="description is of other weights"):
        save_model(tmp_path / "m", ARRAYS, replace(CARD, model_hash="f" * 64))
    with pytest.raises(ModelError, match="description is wrong at 'spacing_mm'"):
        save_model(tmp_path / "m", ARRAYS, replace(CARD, spacing_mm=0.0))
    with pytest.raises(StorageError):
        save_model(tmp_path / "none" / "m", ARRAYS, CARD)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_model(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = model.read_bytes()
    monkeypatch.setattr("os.fsync", _full_disk)
    with pytest.raises(StorageError, match="no room"):
        save_model(model, {"w": np.zeros(9, np.float32)}, CARD)
    assert model.read_bytes() == before
    assert [path.name for path in model.parent.iterdir()] == [model.name]


def _full_disk(_: int) -> None:
    raise OSError(28, "No space left on device")


def test_the_hash_is_of_names_shapes_and_numbers() -> None:
    # Written out by hand: the name and shape as JSON, a line's end, 1.0 and 2.0 as little-endian float32.
    by_hand = b'["a", [2]]\n' + bytes.fromhex("0000803f00000040")
    assert weights_hash({"a": np.array([1, 2], np.float32)}) == hashlib.sha256(by_hand).hexdigest()
    base = weights_hash(ARRAYS)
    assert weights_hash(dict(reversed(ARRAYS.items()))) == base
    assert weights_hash({name: values.astype(">f4") for name, values in ARRAYS.items()}) == base
    assert weights_hash(ARRAYS | {"head.weight": ARRAYS["head.weight"].reshape(3, 2)}) != base
    assert weights_hash({f"x{name}": values for name, values in ARRAYS.items()}) != base


KNOWN = Fingerprint("made-up brains", 24, 1.0, {"noise": (0.1, 0.2), "fluid": (0.5, 1.4)})


def test_a_fingerprint_comes_back_and_none_leaves_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, ARRAYS, replace(CARD, fingerprint=KNOWN))
    _, card = load_model(path)
    assert card.fingerprint == KNOWN
    assert describe(card)["fingerprint"]["ranges"] == {"noise": [0.1, 0.2], "fluid": [0.5, 1.4]}
    assert "fingerprint" not in describe(CARD)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("source", ""),
        ("source", "x" * 2001),
        ("source", "\x1b[2J"),
        ("volumes", 0),
        ("spacing_mm", 0.0),
        ("spacing_mm", 1e9),
        ("ranges", {}),
        ("ranges", {f"f{chr(97 + index // 26)}{chr(97 + index % 26)}": [0, 1] for index in range(33)}),
        ("ranges", {"x" * 41: [0.0, 1.0]}),
        ("ranges", {"\x1b[2J": [0.0, 1.0]}),
        ("ranges", {"noise": [0.0, 1.0, 2.0]}),
        ("ranges", {"noise": [2.0, 1.0]}),
        ("ranges", {"noise": [0.0, "1"]}),
        ("ranges", {"noise": [0.0, float("inf")]}),
        ("more", 1),
    ],
)
def test_a_fingerprint_that_is_too_large_or_odd_is_refused(tmp_path: Path, field: str, value: Any) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, ARRAYS, replace(CARD, fingerprint=KNOWN))

    def change(envelope: dict[str, Any]) -> dict[str, Any]:
        envelope["card"]["fingerprint"][field] = value
        return envelope

    _rewrite(path, change)
    with pytest.raises(ModelError, match="the model's description is wrong at 'fingerprint"):
        load_model(path)
