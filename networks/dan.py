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

FEATURE_DIM = 512  # channels of ResNet-18's last feature map


class DANOutput(NamedTuple):
    """DAN's output for images (N, 3, H, W)."""

    logits: Tensor  # (N, num_class)
    features: Tensor  # (N, 512, h, w) from the backbone, h = ceil(H / 32)
    heads: Tensor  # (N, num_head, 512), after a log-softmax over the heads if there are several


class SpatialAttention(nn.Module):
    """Weigh the positions by one map, from convolutions of three shapes (Fig. 4)."""

    def __init__(self):
        super().__init__()
        hidden = FEATURE_DIM // 2
        self.conv1x1 = _conv_bn(FEATURE_DIM, hidden, (1, 1))
        self.conv_3x3 = _conv_bn(hidden, FEATURE_DIM, (3, 3))
        self.conv_1x3 = _conv_bn(hidden, FEATURE_DIM, (1, 3))
        self.conv_3x1 = _conv_bn(hidden, FEATURE_DIM, (3, 1))
        self.relu = nn.ReLU()

    def attention_map(self, x: Tensor) -> Tensor:
        """x: (N, 512, h, w) -> (N, 1, h, w), non-negative, not normalised, float32 or wider."""
        y = self.conv1x1(x)
        y = self.relu(self.conv_3x3(y) + self.conv_1x3(y) + self.conv_3x1(y))
        # Half precision would keep only two or three digits of this sum of 512 terms.
        return at_least_float32(y).sum(dim=1, keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, 512, h, w) -> x weighted by its map, (N, 512, h, w), float32 or wider."""
        return at_least_float32(x) * self.attention_map(x)


class ChannelAttention(nn.Module):
    """Average over the positions, then weigh the channels by a bottleneck of 32 (Fig. 4)."""

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
    """Spatial, then channel attention. From the spatial map on in float32, even under autocast."""

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
    """ResNet-18, `num_head` parallel cross-attention heads, their fusion and a classifier.

    Args:
        num_class: number of expressions.
        num_head: number of cross-attention heads (K in the paper, which uses 4). With 0 it is the
            plain baseline: ResNet-18, average pooling, and a linear classifier.
    """

    def __init__(self, *, num_class: int, num_head: int = 4):
        super().__init__()
        self.num_head = num_head
        self.features = _without_pooling(resnet18(weights=None))
        # One attribute per head instead of a ModuleList keeps the released state-dict keys.
        for i in range(num_head):
            setattr(self, f"cat_head{i}", CrossAttentionHead())
        self.fc = nn.Linear(FEATURE_DIM, num_class)
        self.bn = nn.BatchNorm1d(num_class) if num_head else nn.Identity()

    @property
    def heads(self) -> list[CrossAttentionHead]:
        return [getattr(self, f"cat_head{i}") for i in range(self.num_head)]

    def forward(self, images: Tensor) -> DANOutput:
        """images: (N, 3, H, W), RGB, ImageNet-normalised."""
        features = self.features(images)  # (N, 512, h, w)
        if self.num_head == 0:
            pooled = at_least_float32(features).mean(dim=(2, 3))
            with torch.autocast(pooled.device.type, enabled=False):
                no_heads = pooled[:, None][:, :0]  # (N, 0, 512)
                return DANOutput(self.fc(pooled), features, no_heads)
        heads = torch.stack([head(features) for head in self.heads], dim=1)  # (N, K, 512)
        # In float32 under autocast, for the same reason as in the heads.
        with torch.autocast(heads.device.type, enabled=False):
            if self.num_head > 1:
                heads = heads.log_softmax(dim=1)
            logits = self.bn(self.fc(heads.sum(dim=1)))
        return DANOutput(logits, features, heads)

    def load_backbone(self, state: Mapping[str, Tensor]) -> None:
        """Copy pre-trained ResNet-18 weights into `features`.

        Args:
            state: a torchvision ResNet-18's state dict; its fc is ignored.

        Raises:
            RuntimeError: weights are missing, unknown or of another shape; the message names them.
        """
        with torch.device("meta"):  # names the weights as torchvision does, and draws none
            resnet = resnet18(weights=None)
        resnet.fc = nn.Identity()
        state = {key: value for key, value in state.items() if not key.startswith("fc.")}
        resnet.load_state_dict(state, assign=True)
        self.features.load_state_dict(_without_pooling(resnet).state_dict())


def _without_pooling(resnet: nn.Module) -> nn.Sequential:
    """All of a torchvision ResNet but its average pooling and its classifier."""
    return nn.Sequential(*list(resnet.children())[:-2])


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
    """Cast half precision to float32; leave float32 and float64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
