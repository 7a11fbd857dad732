"""DAN for inference: the same function of a trained network, computed with less work.

Each BatchNorm is folded into the layer in front of it, the three branches of a head's spatial
attention are summed into one 3x3 convolution (structural re-parameterisation: Ding et al.,
"RepVGG", arXiv 2101.03697), all heads are computed at once, and convolutions are frozen.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from networks.dan import (
    DAN,
    FEATURE_DIM,
    ChannelAttention,
    DANOutput,
    SpatialAttention,
    at_least_float32,
)
from networks.frozen import FrozenConv2d

Layer = tuple[Tensor, Tensor]  # weight and bias


class FusedDAN(nn.Module):
    """Equal to `model.eval()` up to rounding.

    The weights are copied, so `model` stays as it is. The convolutions' outputs are channels last
    whatever the images are. There are no gradients. On the CPU the convolutions are packed (see
    FrozenConv2d): for another device or dtype make another FusedDAN.

    Args:
        model: the trained DAN; the result lives on its device.
        dtype: of the convolutions, the model's own unless given. Images are cast to it, autocast
            changes nothing. bfloat16 here instead of autocast saves casting the weights at each
            call. All that follows the heads' spatial maps is float32 or wider in any case.
    """

    @torch.no_grad()
    def __init__(self, model: DAN, dtype: torch.dtype | None = None):
        super().__init__()
        dtype = model.fc.weight.dtype if dtype is None else dtype
        wide = torch.promote_types(dtype, torch.float32)
        self.num_class = model.num_class
        self.num_head = model.num_head
        self.features = _freeze_resnet(model.features, dtype)
        self.hidden, self.spatial = _freeze_spatial([head.sa for head in model.heads], dtype)
        self.squeeze, self.excite = _freeze_channel([head.ca for head in model.heads])
        self.fc = _StackedLinear([_fold(model.fc, model.bn)])
        for part in (self.squeeze, self.excite, self.fc):
            part.to(wide)

    def attention_maps(self, features: Tensor) -> Tensor:
        """features: (N, 512, h, w) -> each head's map, (N, K, h, w), float32 or wider."""
        with torch.autocast(features.device.type, enabled=False):
            y = self.spatial(self.hidden(features.to(self.hidden.weight.dtype)))
            wide = torch.promote_types(y.dtype, torch.float32)
            return y.unflatten(1, (self.num_head, FEATURE_DIM)).sum(dim=2, dtype=wide)

    @torch.no_grad()
    def forward(self, images: Tensor) -> DANOutput:
        """images: (N, 3, H, W), RGB, ImageNet-normalised."""
        with torch.autocast(images.device.type, enabled=False):
            features = self.features(images.to(self.hidden.weight.dtype))  # (N, 512, h, w)
            maps = self.attention_maps(features)
            # The average over the positions of features * map, without that product in memory.
            x = at_least_float32(features).flatten(2)  # (N, 512, h * w)
            pooled = maps.flatten(2) @ x.mT / x.shape[2]  # (N, K, 512)
            weights = self.excite(F.relu_(self.squeeze(pooled))).sigmoid()
            heads = pooled * weights
            if self.num_head > 1:
                heads = heads.log_softmax(dim=1)
            logits = self.fc(heads.sum(dim=1, keepdim=True)).squeeze(1)
        return DANOutput(logits, features, heads)


class _FrozenBlock(nn.Module):
    """ResNet's basic block, x: (N, in, h, w) -> (N, out, h', w')."""

    def __init__(self, block: BasicBlock, dtype: torch.dtype):
        super().__init__()
        self.conv1 = _freeze(block.conv1, block.bn1, dtype, relu=True)
        self.conv2 = _freeze(block.conv2, block.bn2, dtype)
        shortcut = block.downsample
        self.shortcut = nn.Identity() if shortcut is None else _freeze(*shortcut, dtype)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(self.conv2(self.conv1(x)).add_(self.shortcut(x)))


class _StackedLinear(nn.Module):
    """K linear layers side by side, (N, K, in) -> (N, K, out)."""

    def __init__(self, layers: list[Layer]):
        super().__init__()
        weight = torch.stack([weight.T for weight, _ in layers])  # (K, in, out)
        bias = torch.stack([bias for _, bias in layers])[:, None]  # (K, 1, out)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x.transpose(0, 1), self.weight).transpose(0, 1)


def _fold(layer: nn.Conv2d | nn.Linear, bn: nn.BatchNorm1d | nn.BatchNorm2d) -> Layer:
    """A layer and the BatchNorm behind it as one layer, float32 or wider."""
    weight = at_least_float32(layer.weight)
    mean = at_least_float32(bn.running_mean)
    scale = at_least_float32(bn.weight) / (at_least_float32(bn.running_var) + bn.eps).sqrt()
    bias = -mean if layer.bias is None else layer.bias - mean
    return weight * scale.view(-1, *[1] * (weight.dim() - 1)), bias * scale + bn.bias


def _freeze(
    conv: nn.Conv2d, bn: nn.BatchNorm2d, dtype: torch.dtype, *, relu: bool = False
) -> FrozenConv2d:
    weight, bias = (tensor.to(dtype) for tensor in _fold(conv, bn))
    return FrozenConv2d(weight, bias, stride=conv.stride[0], padding=conv.padding[0], relu=relu)


def _freeze_resnet(resnet: nn.Sequential, dtype: torch.dtype) -> nn.Sequential:
    conv, bn, _, pool, *layers = resnet
    blocks = (_FrozenBlock(block, dtype) for layer in layers for block in layer)
    return nn.Sequential(_freeze(conv, bn, dtype, relu=True), pool, *blocks)


def _freeze_spatial(
    attentions: list[SpatialAttention], dtype: torch.dtype
) -> tuple[FrozenConv2d, FrozenConv2d]:
    """All heads' 1x1 convolutions as one, and all their branches as a grouped one.

    A 1x3 or a 3x1 kernel is a 3x3 one with zeros around, hence the three add up to one.
    """
    pairs = []
    for attention in attentions:
        (weight, bias), (row, row_bias), (column, column_bias) = (
            _fold(*branch)
            for branch in (attention.conv_3x3, attention.conv_1x3, attention.conv_3x1)
        )
        weight[:, :, 1:2] += row
        weight[:, :, :, 1:2] += column
        pairs.append((*_fold(*attention.conv1x1), weight, bias + row_bias + column_bias))
    weight1, bias1, weight3, bias3 = (
        torch.cat(parts).to(dtype) for parts in zip(*pairs, strict=True)
    )
    hidden = FrozenConv2d(weight1, bias1)
    return hidden, FrozenConv2d(weight3, bias3, padding=1, groups=len(attentions), relu=True)


def _freeze_channel(attentions: list[ChannelAttention]) -> tuple[_StackedLinear, _StackedLinear]:
    """All heads' two linear layers, each as one."""
    squeeze = _StackedLinear([_fold(*attention.attention[:2]) for attention in attentions])
    last = [attention.attention[3] for attention in attentions]
    return squeeze, _StackedLinear([(linear.weight, linear.bias) for linear in last])
