"""GroupNorm in channels-last memory, with a volume's own statistics and with others'."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedseg.training.field_norm import FieldNorm, with_field_norms
from fedseg.training.network import PRESETS, build_network

FORMATS = [torch.channels_last_3d, torch.contiguous_format]


def layers(channels: int, groups: int) -> tuple[FieldNorm, nn.Sequential]:
    norm, slope = nn.GroupNorm(groups, channels), nn.PReLU()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return FieldNorm(norm, slope), nn.Sequential(norm, slope)


def volume(*shape: int, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) + 1


@settings(max_examples=30)
@given(
    groups=st.sampled_from([1, 2, 8]),
    times=st.integers(1, 5),
    sides=st.tuples(*[st.integers(1, 9)] * 3),
    layout=st.sampled_from(FORMATS),
)
@torch.no_grad()
def test_own_statistics_are_group_norms(
    groups: int, times: int, sides: tuple[int, int, int], layout: torch.memory_format
) -> None:
    if sides[0] * sides[1] * sides[2] * times == 1:
        return  # one value has no spread
    ours, torchs = layers(groups * times, groups)
    given = volume(1, groups * times, *sides).contiguous(memory_format=layout)
    torch.testing.assert_close(ours(given), torchs(given.contiguous()), atol=1e-4, rtol=1e-4)
    assert ours(given).stride() == given.stride() or 1 in given.shape


@torch.no_grad()
def test_more_rows_than_are_summed_at_once() -> None:
    ours, torchs = layers(8, 8)
    given = volume(1, 8, 64, 64, 20).contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(ours(given), torchs(given.contiguous()), atol=1e-5, rtol=1e-5)
    rounded = ours(given.bfloat16())
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), ours(given), atol=0.05, rtol=0.02)


@pytest.mark.parametrize("layout", FORMATS)
@torch.no_grad()
def test_measured_statistics_are_the_mean_of_the_volumes_that_were_measured(layout: torch.memory_format) -> None:
    ours, torchs = layers(4, 2)
    first, second = (volume(1, 4, 5, 6, 7, seed=seed).contiguous(memory_format=layout) for seed in (1, 2))
    second = 2 * second + 5
    ours.measure()
    torch.testing.assert_close(ours(first), torchs(first), atol=1e-4, rtol=1e-4)
    ours(second)
    ours.use_measured()
    both = torch.cat([first, second], dim=2)
    expected = torchs(both)
    torch.testing.assert_close(ours(first), expected[:, :, :5], atol=1e-4, rtol=1e-4)
    assert ours(volume(1, 4, 3, 2, 9).contiguous(memory_format=layout)).shape == (1, 4, 3, 2, 9)
    ours.use_own()
    torch.testing.assert_close(ours(second), torchs(second), atol=1e-4, rtol=1e-4)
    ours.measure()
    ours(second)
    ours.use_measured()
    torch.testing.assert_close(ours(second), torchs(second), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("preset", sorted(PRESETS))
@torch.no_grad()
def test_every_norm_of_a_network_is_replaced_and_no_weight_is_copied(preset: str) -> None:
    model = build_network(preset, 4, 0)
    copied, norms = with_field_norms(model)
    assert len(norms) == sum(isinstance(module, nn.GroupNorm) for module in model.modules())
    assert not any(isinstance(module, FieldNorm) for module in model.modules())
    assert {id(each) for each in copied.parameters()} == {id(each) for each in model.parameters()}
    given = volume(1, 1, 32, 32, 32)
    torch.testing.assert_close(copied(given), model.eval()(given), atol=1e-3, rtol=1e-3)
