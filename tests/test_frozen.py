"""The convolution for inference against PyTorch's own, packed and plain."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from networks.frozen import FrozenConv2d, can_pack

GONE = ("_no_such_operator",)  # as in a PyTorch without oneDNN, or in one that renamed them
SIZES = [(1, 1, 1), (2, 1, 5), (3, 13, 7), (5, 30, 31), (0, 9, 9)]  # N, h, w


def layer(*, kernel: int = 3, groups: int = 1) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution from 16 channels to 32, in float64."""
    generator = torch.Generator().manual_seed(kernel)
    weight = torch.randn(32, 16 // groups, kernel, kernel, dtype=torch.float64, generator=generator)
    bias = torch.randn(32, dtype=torch.float64, generator=generator)
    return weight / weight[0].numel() ** 0.5, bias


@pytest.fixture(autouse=True)
def any_processor(monkeypatch):
    """Others than those with AVX-512 can pack, too; they are only slower then."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")


def packed_layer() -> FrozenConv2d:
    conv = FrozenConv2d(*(tensor.float() for tensor in layer()))
    if not conv.packed:
        pytest.skip("this PyTorch has no oneDNN for this processor")
    return conv


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize(
    ("kernel", "stride", "groups"),
    [(1, 1, 1), (1, 2, 1), (3, 1, 1), (3, 2, 1), (7, 2, 1), (3, 1, 4)],
)
@pytest.mark.parametrize(
    ("dtype", "pack", "tolerance"),
    [
        (torch.float64, False, 1e-13),
        (torch.float32, False, 1e-5),
        (torch.float32, True, 1e-5),
        (torch.bfloat16, False, 2e-2),
        (torch.bfloat16, True, 2e-2),
    ],
)
@torch.no_grad()
def test_equals_the_plain_convolution(
    dtype, pack, tolerance, kernel, stride, groups, relu, monkeypatch
):
    """For images of any number, size and layout, one after another."""
    weight, bias = layer(kernel=kernel, groups=groups)
    shape = {"stride": stride, "padding": kernel // 2, "groups": groups}
    if not pack:
        monkeypatch.setattr("networks.frozen.OPERATORS", GONE)
    conv = FrozenConv2d(weight.to(dtype), bias.to(dtype), **shape, relu=relu)
    if pack and not conv.packed:
        pytest.skip(f"this PyTorch or this processor cannot pack {dtype}")
    assert conv.packed == pack
    for size in SIZES:
        x = torch.randn(size[0], 16, *size[1:], dtype=torch.float64)
        expected = F.conv2d(x, weight, bias, **shape)
        expected = F.relu(expected) if relu else expected
        for images in (x, x.contiguous(memory_format=torch.channels_last)):
            images = images.to(dtype, copy=True)
            before = images.clone()
            y = conv(images)
            assert y.dtype == dtype
            if kernel > 1 and len(y):
                assert y.is_contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)
            assert torch.equal(images, before)


def test_what_cannot_be_packed_is_not(monkeypatch):
    assert not can_pack(torch.zeros(1, dtype=torch.float64))
    assert not can_pack(torch.zeros(1, dtype=torch.float16))
    assert not can_pack(torch.zeros(1, device="meta"))
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not can_pack(torch.zeros(1))


def test_what_would_be_slower_packed_is_not(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert not can_pack(torch.zeros(1)) and not can_pack(torch.zeros(1, dtype=torch.bfloat16))


@pytest.mark.parametrize(
    "change",
    [
        lambda conv: conv.double(),
        lambda conv: conv.to("meta"),  # as any device but the CPU
        lambda conv: conv.to(memory_format=torch.channels_last),
        lambda conv: conv.load_state_dict(dict(zip(("weight", "bias"), layer(), strict=True))),
        copy.deepcopy,
        pickle.dumps,
    ],
)
def test_packed_weights_refuse_a_change(change):
    """An error, rather than wrong numbers later."""
    conv = packed_layer()
    weight = conv.weight
    with pytest.raises(RuntimeError):  # NotImplementedError is one
        change(conv)
    assert conv.weight is weight
