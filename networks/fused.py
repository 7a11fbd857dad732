"""DAN for inference: the network itself, with its layers merged where that does not change it.

Each BatchNorm is folded into the layer before it, and the three branches of a head's spatial
attention become one 3x3 convolution (structural re-parameterisation: Ding et al., "RepVGG", arXiv
2101.03697). The network's own `forward` stays in use, so a change to `networks/dan.py` is a change
here too; the result is compared with the network before it is handed out.
"""

import copy
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from networks.dan import DANOutput, SpatialAttention

# Of the largest logit: folding in float32 changes about 1e-6 of it.
TOLERANCE = 1e-3


class FusedDAN(nn.Module):
    """Images -> DANOutput, without gradients, whatever autocast says. See `fuse`."""

    def __init__(self, network: nn.Module, dtype: torch.dtype | None):
        super().__init__()
        self.network = network
        self.dtype = dtype

    @torch.no_grad()
    def forward(self, images: Tensor) -> DANOutput:
        """images: (N, 3, H, W), RGB, ImageNet-normalised."""
        with torch.autocast(images.device.type, enabled=False):
            return self.network(images if self.dtype is None else images.to(self.dtype))


@torch.no_grad()
def fuse(model: nn.Module, *, image_size: int, dtype: torch.dtype | None = None) -> FusedDAN | None:
    """Return a faster copy of a trained DAN for inference.

    Args:
        model: in evaluation mode, on the device where the copy will run.
        image_size: side in pixels of the random images on which both are compared.
        dtype: of the convolutions, the model's own if None. All that follows the heads' spatial
            maps is float32 or wider in any case.

    Returns:
        The copy, or None if its logits differ from the model's: the network has been changed such
        that merging its layers is wrong.
    """
    network = copy.deepcopy(model).requires_grad_(False)
    for module in list(network.modules()):
        _fold_batch_norms(module)
    for module in list(network.modules()):
        if isinstance(module, SpatialAttention):
            _merge_branches(module)
    parameter = next(model.parameters())
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, image_size, image_size, generator=generator).to(parameter)
    expected, logits = model(images).logits, network(images).logits
    if (logits - expected).abs().max() > TOLERANCE * expected.abs().max():
        return None
    network.to(memory_format=torch.channels_last)
    if dtype is not None:
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.to(dtype)
    return FusedDAN(network, dtype)


def _fold_batch_norms(module: nn.Module) -> None:
    """Fold each BatchNorm into the child before it, as registered: `nn.Sequential`, ResNet's
    blocks and DAN itself register layers in the order in which they apply them."""
    for (name, layer), (norm_name, norm) in pairwise(list(module.named_children())):
        if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            fused = fuse_conv_bn_eval(layer, norm)
        elif isinstance(layer, nn.Linear) and isinstance(norm, nn.BatchNorm1d):
            fused = fuse_linear_bn_eval(layer, norm)
        else:
            continue
        setattr(module, name, fused)
        setattr(module, norm_name, nn.Identity())


class _Nothing(nn.Module):
    """A branch that adds nothing to the sum."""

    def forward(self, x: Tensor) -> int:
        return 0


def _merge_branches(attention: SpatialAttention) -> None:
    """A 1x3 or 3x1 kernel is a 3x3 one with zeros around it, so the sum of the three is one."""
    names = ("conv_3x3", "conv_1x3", "conv_3x1")
    convolutions = [
        next(getattr(attention, name, nn.Identity()).children(), None) for name in names
    ]
    shapes = [getattr(convolution, "kernel_size", None) for convolution in convolutions]
    if shapes != [(3, 3), (1, 3), (3, 1)]:
        return  # not the paper's branches any more
    square, row, column = convolutions
    square.weight[:, :, 1:2] += row.weight
    square.weight[:, :, :, 1:2] += column.weight
    square.bias += row.bias + column.bias
    attention.conv_1x3, attention.conv_3x1 = _Nothing(), _Nothing()
