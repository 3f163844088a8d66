"""The presets, their weights as arrays, and the model card's description."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedseg.errors import ModelError
from fedseg.training.network import (
    PRESETS,
    architecture,
    arrays,
    build_network,
    choose_layers,
    from_architecture,
    load_arrays,
    trained_arrays,
    trained_names,
    trained_parameters,
)


@pytest.mark.parametrize(
    ("preset", "least", "most"),
    [("small", 280_000, 320_000), ("base", 4_700_000, 4_900_000), ("lean", 4_700_000, 4_900_000)],
)
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


def test_arrays_are_sorted_copies_of_all_parameters_trained_or_not() -> None:
    network = build_network("small", 8, 0)
    choose_layers(network, "head")
    values = arrays(network)
    assert list(values) == sorted(dict(network.named_parameters()))
    values["head.weight"][:] = 7
    assert not (network.head.weight == 7).any()
    assert {value.dtype for value in values.values()} == {np.dtype(np.float32)}


def test_trained_arrays_are_those_of_the_layers_chosen() -> None:
    network = build_network("small", 8, 0)
    everything = arrays(network)
    assert list(trained_arrays(network)) == list(everything)
    choose_layers(network, "head")
    chosen = trained_arrays(network)
    assert list(chosen) == ["head.bias", "head.weight"]
    assert all(np.array_equal(value, everything[name]) for name, value in chosen.items())


def test_frozen_parameters_are_loaded_too() -> None:
    source, target = build_network("small", 8, 1), build_network("small", 8, 2)
    choose_layers(target, "norms")
    load_arrays(target, arrays(source))
    assert all(np.array_equal(a, b) for a, b in zip(arrays(source).values(), arrays(target).values(), strict=True))


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_the_decoder_is_what_comes_after_the_deepest_level(preset: str) -> None:
    network, side = build_network(preset, 8, 0), 2 * PRESETS[preset].multiple
    choose_layers(network, "decoder")
    levels = len(PRESETS[preset].channels) - 1
    names = trained_names(preset, 8, "decoder")
    assert sum("ConvTranspose3d" in type(module).__name__ for module in network.modules()) == levels
    transposed = {
        f"{name}.weight" for name, module in network.named_modules() if isinstance(module, nn.ConvTranspose3d)
    }
    assert transposed < set(names) and {"head.bias", "head.weight"} < set(names)
    used: list[str] = []
    for name, module in network.named_modules():
        if next(module.parameters(recurse=False), None) is not None:
            module.register_forward_hook(lambda *_, name=name: used.append(name))
    network(torch.zeros(1, 1, side, side, side))
    trained = [any(each.rpartition(".")[0] == name for each in names) for name in used]
    assert trained == sorted(trained), "encoder first, decoder after"


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_norms_are_every_group_norm_and_the_head(preset: str) -> None:
    norms = {name for name, module in build_network(preset, 8, 0).named_modules() if isinstance(module, nn.GroupNorm)}
    assert {name.rpartition(".")[0] for name in trained_names(preset, 8, "norms")} == norms | {"head"}


@pytest.mark.parametrize(
    ("preset", "sizes"),
    [
        ("small", {"all": 302_525, "decoder": 62_461, "norms": 664, "head": 72}),
        ("base", {"all": 4_815_817, "decoder": 956_367, "norms": 2_520, "head": 72}),
        ("lean", {"all": 4_809_128, "decoder": 949_678, "norms": 4_488, "head": 2_056}),
    ],
)
def test_how_many_numbers_train(preset: str, sizes: dict[str, int]) -> None:
    assert {layers: trained_parameters(preset, 8, layers) for layers in sizes} == sizes


def test_only_chosen_layers_get_a_gradient() -> None:
    for layers in ("all", "decoder", "norms", "head"):
        network = build_network("small", 3, 0)
        choose_layers(network, layers)
        network(torch.randn(1, 1, 16, 16, 16)).square().mean().backward()
        moved = sorted(name for name, p in network.named_parameters() if p.grad is not None)
        assert tuple(moved) == trained_names("small", 3, layers)


def test_a_choice_can_be_changed_and_an_unknown_one_is_refused() -> None:
    network = build_network("small", 3, 0)
    choose_layers(network, "head")
    with pytest.raises(ModelError, match=r"unknown choice of layers 'tail' \(known: all, decoder, head, norms\)"):
        choose_layers(network, "tail")
    choose_layers(network, "all")
    assert all(p.requires_grad for p in network.parameters())


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
        ({"preset": "huge"}, "unknown network preset 'huge' .*known: base, lean, small"),
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
