"""A convolution for inference, whose weights no longer change."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

OPERATORS = ("_reorder_convolution_weight", "_convolution_pointwise", "_is_mkldnn_bf16_supported")


class FrozenConv2d(nn.Module):
    """A convolution, and the ReLU behind it where there is one.

    On the CPU oneDNN reorders the weights of a plain convolution at each call. Here they are
    packed once, in float32 and in bfloat16, into the layout that it computes with, whatever the
    images' number and size. torch.compile does the same to the convolutions that it freezes, with
    the same operators. Where these are missing, on processors without AVX-512, in other dtypes and
    on other devices, this is a plain convolution.

    There are no gradients. PyTorch raises an error where packed weights are cast, moved, copied
    with deepcopy or pickled.

    Args:
        weight: (out, in / groups, height, width); its dtype and device are the layer's.
        bias: (out,)
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        *,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        relu: bool = False,
    ):
        super().__init__()
        self.padding = [padding, padding]
        self.stride = [stride, stride]
        self.groups = groups
        self.relu = relu
        self.packed = can_pack(weight)
        if self.packed:
            weight = torch.ops.mkldnn._reorder_convolution_weight(
                weight, self.padding, self.stride, [1, 1], groups
            )
        else:
            weight = weight.contiguous(memory_format=torch.channels_last)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, in, h, w) of the weights' dtype -> (N, out, h', w').

        The result is channels last where x is, and behind a kernel above 1x1 in any case.
        """
        if self.packed:
            layer = (self.weight, self.bias, self.padding, self.stride, [1, 1], self.groups)
            after = "relu" if self.relu else "none"
            return torch.ops.mkldnn._convolution_pointwise(x, *layer, after, [], "")
        x = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, 1, self.groups)
        return F.relu_(x) if self.relu else x


def can_pack(weight: Tensor) -> bool:
    """Whether PyTorch has oneDNN's convolutions for such weights on this processor, and is faster
    with packed ones."""
    onednn = torch.backends.mkldnn
    if weight.device.type != "cpu" or not (onednn.is_available() and onednn.enabled):
        return False
    # With AVX2 the layout depends on the images' size, and a reorder from one packed layout to
    # another takes 100 ms for a 512x512x3x3 weight, where one from a plain layout takes few.
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    if not all(hasattr(torch.ops.mkldnn, name) for name in OPERATORS):
        return False
    if weight.dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return weight.dtype == torch.float32
