"""The presets, their weights as arrays, and the model card's description."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedseg.errors import ModelError
from fedseg.training.network import PRESETS, architecture, arrays, build_network, from_architecture, load_arrays


@pytest.mark.parametrize(("preset", "least", "most"), [("small", 280_000, 320_000), ("base", 4_700_000, 4_900_000)])
def test_presets_have_the_size_they_promise(preset: str, least: int, most: int) -> None:
    assert least < sum(p.numel() for p in build_network(preset, 8, 0).parameters()) < most


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("classes", [2, 8])
def test_logits_have_one_channel_a_class_on_the_same_grid(preset: str, classes: int) -> None:
    network = build_network(preset, classes, 0)
    side = 2 * network.multiple
    assert network(torch.zeros(2, 1, side, side, side)).shape == (2, classes, side, side, side)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_no_layer_keeps_statistics_or_joins_patches(preset: str) -> None:
    network = build_network(preset, 8, 0)
    assert not list(network.named_buffers())
    assert any(isinstance(m, nn.GroupNorm) for m in network.modules())
    side = 2 * network.multiple
    patches = torch.randn(2, 1, side, side, side, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(network(patches)[:1], network(patches[:1]), atol=1e-4, rtol=1e-4)


def test_the_seed_decides_the_weights_and_leaves_torchs_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second, other = (arrays(build_network("small", 8, seed)) for seed in (1, 1, 2))
    assert torch.rand(1) == expected
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert any(not np.array_equal(first[name], other[name]) for name in first)


def test_without_a_seed_two_networks_differ() -> None:
    first, second = (arrays(build_network("small", 2, None)) for _ in range(2))
    assert any(not np.array_equal(first[name], second[name]) for name in first)


def test_arrays_are_sorted_copies_of_the_trainable_parameters() -> None:
    network = build_network("small", 8, 0)
    dict(network.named_parameters())["head.bias"].requires_grad_(False)
    values = arrays(network)
    assert list(values) == sorted(values) and "head.bias" not in values and "head.weight" in values
    values["head.weight"][:] = 7
    assert not (network.head.weight == 7).any()
    assert {value.dtype for value in values.values()} == {np.dtype(np.float32)}


def test_loading_gives_back_what_was_taken() -> None:
    source, target = build_network("small", 8, 1), build_network("small", 8, 2)
    load_arrays(target, arrays(source))
    assert all(np.array_equal(a, b) for a, b in zip(arrays(source).values(), arrays(target).values(), strict=True))


def _without(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != "head.bias"}


def _with_extra(values: dict[str, Any]) -> dict[str, Any]:
    return values | {"back.door": np.zeros(1, np.float32)}


def _wrong_shape(values: dict[str, Any]) -> dict[str, Any]:
    return values | {"head.bias": np.zeros(3, np.float32)}


def _not_finite(values: dict[str, Any]) -> dict[str, Any]:
    return values | {"head.bias": np.full(8, np.nan, np.float32)}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without, "1 missing, 0 unknown, first 'head.bias'"),
        (_with_extra, "0 missing, 1 unknown, first 'back.door'"),
        (_wrong_shape, r"weight 'head.bias' is \(3,\), the network wants \(8,\)"),
        (_not_finite, "weight 'head.bias' holds a value that is not finite"),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_change_nothing(spoil: Any, message: str) -> None:
    network = build_network("small", 8, 0)
    before = arrays(network)
    with pytest.raises(ModelError, match=message):
        load_arrays(network, spoil({name: value + 1 for name, value in before.items()}))
    assert all(np.array_equal(before[name], value) for name, value in arrays(network).items())


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_the_card_rebuilds_the_network(preset: str) -> None:
    original = build_network(preset, 8, 3)
    rebuilt = from_architecture(architecture(preset, 8))
    load_arrays(rebuilt, arrays(original))
    assert rebuilt.preset == preset


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preset": "huge"}, "unknown network preset 'huge' .*known: base, small"),
        ({"classes": 1}, "a network of 1 classes"),
        ({"classes": 10**9}, "a network of 1000000000 classes"),
        ({"classes": True}, "doesn't name its network's preset and classes"),
        ({"preset": None}, "doesn't name its network's preset and classes"),
        ({"groups": 4}, "a network that this version doesn't know: groups"),
        ({"family": "os.system"}, "a network that this version doesn't know: family"),
        ({"hook": "exec"}, "a network that this version doesn't know: hook"),
    ],
)
def test_an_unknown_card_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        from_architecture(architecture("small", 8) | change)
