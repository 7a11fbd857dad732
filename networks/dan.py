"""DAN, the Distract-your-Attention Network for facial expression recognition.

Wen et al., "Distract Your Attention: Multi-head Cross Attention Network for Facial Expression
Recognition", arXiv 2109.07270. The names of the parts are the paper's; the names of the
parameters are those of the released implementation, so that its checkpoints load with
`strict=True` and ours load there.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models import resnet18

FEATURE_DIM = 512  # channels that ResNet-18 hands to the heads


class DANOutput(NamedTuple):
    """What DAN returns for images (N, 3, H, W)."""

    logits: Tensor  # (N, num_class)
    features: Tensor  # (N, 512, h, w), the backbone's, h = H / 32 rounded up
    heads: Tensor  # (N, num_head, 512), log-softmaxed over the heads where there are several


class SpatialAttention(nn.Module):
    """One map of weights over the positions, from convolutions of three shapes (Fig. 4)."""

    def __init__(self):
        super().__init__()
        hidden = FEATURE_DIM // 2
        self.conv1x1 = _conv_bn(FEATURE_DIM, hidden, (1, 1))
        self.conv_3x3 = _conv_bn(hidden, FEATURE_DIM, (3, 3))
        self.conv_1x3 = _conv_bn(hidden, FEATURE_DIM, (1, 3))
        self.conv_3x1 = _conv_bn(hidden, FEATURE_DIM, (3, 1))
        self.relu = nn.ReLU()

    def attention_map(self, x: Tensor) -> Tensor:
        """x: (N, 512, h, w) -> (N, 1, h, w), not negative and not normalised, float32 or wider."""
        y = self.conv1x1(x)
        y = self.relu(self.conv_3x3(y) + self.conv_1x3(y) + self.conv_3x1(y))
        # A sum of 512 terms: half precision would keep two or three digits of it.
        return at_least_float32(y).sum(dim=1, keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, 512, h, w) -> x weighted by its map, (N, 512, h, w), float32 or wider."""
        return at_least_float32(x) * self.attention_map(x)


class ChannelAttention(nn.Module):
    """Pool over the positions, then weigh the channels by a bottleneck of 32 (Fig. 4)."""

    def __init__(self):
        super().__init__()
        self.attention = nn.Sequential(
            nn.Linear(FEATURE_DIM, 32),
            nn.BatchNorm1d(32),
            nn.ReLU(inplace=True),
            nn.Linear(32, FEATURE_DIM),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, 512, h, w) -> (N, 512)."""
        pooled = x.mean(dim=(2, 3))
        return pooled * self.attention(pooled)


class CrossAttentionHead(nn.Module):
    """Spatial, then channel attention; from the spatial map on in float32 also under autocast."""

    def __init__(self):
        super().__init__()
        self.sa = SpatialAttention()
        self.ca = ChannelAttention()
        self.apply(_init_head)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, 512, h, w) -> (N, 512), float32 or wider."""
        x = self.sa(x)
        with torch.autocast(x.device.type, enabled=False):
            return self.ca(x)


class DAN(nn.Module):
    """ResNet-18, `num_head` cross-attention heads side by side, their fusion and a classifier.

    Args:
        num_class: expressions to tell apart.
        num_head: cross-attention heads (K in the paper, which uses 4).
    """

    def __init__(self, *, num_class: int, num_head: int = 4):
        super().__init__()
        if num_class < 1 or num_head < 1:
            raise ValueError(f"DAN needs classes and heads, got {num_class=}, {num_head=}")
        self.num_class = num_class
        self.num_head = num_head
        # All of ResNet-18 but its average pooling and its classifier.
        self.features = nn.Sequential(*list(resnet18(weights=None).children())[:-2])
        # One attribute a head rather than a ModuleList: the released state-dict keys.
        for i in range(num_head):
            setattr(self, f"cat_head{i}", CrossAttentionHead())
        self.fc = nn.Linear(FEATURE_DIM, num_class)
        self.bn = nn.BatchNorm1d(num_class)

    @property
    def heads(self) -> list[CrossAttentionHead]:
        return [getattr(self, f"cat_head{i}") for i in range(self.num_head)]

    def forward(self, images: Tensor) -> DANOutput:
        """images: (N, 3, H, W), RGB, ImageNet-normalised."""
        features = self.features(images)  # (N, 512, h, w)
        heads = torch.stack([head(features) for head in self.heads], dim=1)  # (N, K, 512)
        # A float32 tail under autocast, for the same reason as in the heads.
        with torch.autocast(heads.device.type, enabled=False):
            if self.num_head > 1:
                heads = heads.log_softmax(dim=1)
            logits = self.bn(self.fc(heads.sum(dim=1)))
        return DANOutput(logits, features, heads)

    def load_backbone(self, checkpoint: Mapping) -> None:
        """Put pre-trained ResNet-18 weights into `features`.

        Args:
            checkpoint: a torchvision ResNet-18's state dict, or a dict that holds one under
                `state_dict` as the MS-Celeb-1M file does; with or without `module.` in front of
                the keys, with or without an fc.

        Raises:
            ValueError: weights are missing, misshapen, not finite or unknown; the message names
                them.
        """
        state = checkpoint.get("state_dict", checkpoint)
        if not isinstance(state, Mapping):
            raise ValueError("'state_dict' is not a dict of weights")
        state = {str(key).removeprefix("module."): value for key, value in state.items()}
        names = [name for name, _ in resnet18(weights=None).named_children()][:-2]
        backbone, problems = {}, []
        for key, own in self.features.state_dict().items():
            index, _, rest = key.partition(".")
            source = f"{names[int(index)]}.{rest}"  # features.4.0.conv1 is ResNet's layer1.0.conv1
            value = state.pop(source, None)
            if source.endswith("num_batches_tracked"):  # absent from old files, and unused
                backbone[key] = own
            elif not isinstance(value, Tensor):
                problems.append(f"{source} is missing")
            elif not _is_floats(value):
                problems.append(f"{source} is not plain floats")
            elif value.shape != own.shape:
                problems.append(f"{source} is {tuple(value.shape)}, not {tuple(own.shape)}")
            elif not value.isfinite().all():
                problems.append(f"{source} holds NaN or infinite values")
            else:
                backbone[key] = value
        problems += [f"{key[:80]} is unknown" for key in state if not key.startswith("fc.")]
        if problems:
            more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
            raise ValueError(f"not a ResNet-18: {'; '.join(problems[:5])}{more}")
        self.features.load_state_dict(backbone)


def _is_floats(value: Tensor) -> bool:
    """Whether a tensor from a file is floats in memory, and not of a sparse or other odd kind."""
    if value.layout is not torch.strided or value.is_nested or value.is_meta:
        return False
    return value.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _conv_bn(channels_in: int, channels_out: int, kernel: tuple[int, int]) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel, padding=(kernel[0] // 2, kernel[1] // 2)),
        nn.BatchNorm2d(channels_out),
    )


def _init_head(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.001)
        nn.init.zeros_(module.bias)


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision becomes float32; float32 and float64 stay what they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
