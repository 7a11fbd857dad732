"""DAN for inference: the same function of a trained network, computed with less work.

Each BatchNorm is folded into the layer in front of it, the three branches of a head's spatial
attention are summed into one 3x3 convolution (structural re-parameterisation: Ding et al.,
"RepVGG", arXiv 2101.03697), and all heads are computed at once.
"""

import copy
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from networks.dan import DAN, FEATURE_DIM, DANOutput, at_least_float32


class FusedDAN(nn.Module):
    """Equal to `model.eval()` up to rounding, and not trainable.

    The weights are copied, folded in float64 and then cast, so `model` stays as it is. The
    convolutions' weights are channels last, and so are their outputs whatever the images are.

    Args:
        model: the trained DAN; the result lives on its device.
        dtype: of the convolutions, the model's own unless given. Images are cast to it. bfloat16
            here instead of autocast saves casting the weights at each call. All that follows the
            heads' spatial maps is float32 or wider in any case.
    """

    def __init__(self, model: DAN, dtype: torch.dtype | None = None):
        super().__init__()
        weight = model.fc.weight
        dtype = weight.dtype if dtype is None else dtype
        self.num_class = model.num_class
        self.num_head = model.num_head

        # On the CPU since not every accelerator has float64.
        model = copy.deepcopy(model).to("cpu", torch.float64).eval().requires_grad_(False)
        _fold_batch_norms(model)
        self.features = model.features
        self.hidden, self.spatial = _stack_spatial([head.sa for head in model.heads])
        self.squeeze, self.excite = (
            _HeadLinear([head.ca.attention[index] for head in model.heads]) for index in (0, 3)
        )
        self.fc = model.fc

        self.to(weight.device, torch.promote_types(dtype, torch.float32))
        for part in (self.features, self.hidden, self.spatial):
            part.to(dtype=dtype, memory_format=torch.channels_last)

    def attention_maps(self, features: Tensor) -> Tensor:
        """features: (N, 512, h, w) -> each head's map, (N, K, h, w), float32 or wider."""
        y = F.relu_(self.spatial(self.hidden(features)))  # (N, K * 512, h, w)
        wide = torch.promote_types(y.dtype, torch.float32)
        return y.unflatten(1, (self.num_head, FEATURE_DIM)).sum(dim=2, dtype=wide)

    def forward(self, images: Tensor) -> DANOutput:
        """images: (N, 3, H, W), RGB, ImageNet-normalised."""
        features = self.features(images.to(self.hidden.weight.dtype))  # (N, 512, h, w)
        maps = self.attention_maps(features)
        with torch.autocast(maps.device.type, enabled=False):
            # The average over the positions of features * map, without that product in memory.
            x = at_least_float32(features).flatten(2)  # (N, 512, h * w)
            pooled = maps.flatten(2) @ x.mT / x.shape[2]  # (N, K, 512)
            weights = self.excite(F.relu_(self.squeeze(pooled))).sigmoid()
            heads = pooled * weights
            if self.num_head > 1:
                heads = heads.log_softmax(dim=1)
            logits = self.fc(heads.sum(dim=1))
        return DANOutput(logits, features, heads)


class _HeadLinear(nn.Module):
    """A linear layer of its own for each head, (N, K, in) -> (N, K, out)."""

    def __init__(self, linears: list[nn.Linear]):
        super().__init__()
        weight = torch.stack([linear.weight.T for linear in linears])  # (K, in, out)
        bias = torch.stack([linear.bias for linear in linears])[:, None]  # (K, 1, out)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x.transpose(0, 1), self.weight).transpose(0, 1)


def _fold_batch_norms(module: nn.Module) -> None:
    """Fold each BatchNorm into the convolution or linear layer in front of it, in place.

    In DAN and in torchvision's ResNet-18 the children of a module stand in the order of their
    use, so a BatchNorm belongs to the child before it.
    """
    for (name, layer), (bn_name, bn) in pairwise(list(module.named_children())):
        if isinstance(bn, nn.BatchNorm2d):
            setattr(module, name, fuse_conv_bn_eval(layer, bn))
        elif isinstance(bn, nn.BatchNorm1d):
            setattr(module, name, fuse_linear_bn_eval(layer, bn))
        else:
            continue
        setattr(module, bn_name, nn.Identity())
    for child in module.children():
        _fold_batch_norms(child)


def _stack_spatial(attentions: list[nn.Module]) -> tuple[nn.Conv2d, nn.Conv2d]:
    """Folded spatial attentions -> their 1x1 convolutions as one, their branches as a grouped one.

    A 1x3 or a 3x1 kernel is a 3x3 one with zeros around, hence the three add up to one.
    """
    num_head = len(attentions)
    hidden = nn.Conv2d(FEATURE_DIM, num_head * FEATURE_DIM // 2, 1)
    spatial = nn.Conv2d(hidden.out_channels, num_head * FEATURE_DIM, 3, padding=1, groups=num_head)
    convolutions = [attention.conv1x1[0] for attention in attentions]
    kernels, biases = [], []
    for attention in attentions:
        square, row, column = (
            branch[0] for branch in (attention.conv_3x3, attention.conv_1x3, attention.conv_3x1)
        )
        kernels.append(
            square.weight + F.pad(row.weight, (0, 0, 1, 1)) + F.pad(column.weight, (1, 1))
        )
        biases.append(square.bias + row.bias + column.bias)
    hidden.weight = nn.Parameter(torch.cat([conv.weight for conv in convolutions]))
    hidden.bias = nn.Parameter(torch.cat([conv.bias for conv in convolutions]))
    spatial.weight = nn.Parameter(torch.cat(kernels))
    spatial.bias = nn.Parameter(torch.cat(biases))
    return hidden.requires_grad_(False), spatial.requires_grad_(False)
