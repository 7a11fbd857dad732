"""The released pipeline, written afresh: what the benchmark compares with.

Eager float32, channels first, heads one by one with every product in memory, one image at a time
through Pillow and torchvision in the DataLoader's workers. It computes what ours computes, see
test_yardstick.py.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision import transforms as T
from torchvision.models import resnet18

NORMALIZE = T.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])

RAFDB_TRAIN = T.Compose(
    [
        T.Resize((224, 224)),
        T.RandomHorizontalFlip(),
        T.RandomApply([T.RandomRotation(20), T.RandomCrop(224, padding=32)], p=0.2),
        T.ToTensor(),
        NORMALIZE,
        T.RandomErasing(scale=(0.02, 0.25)),
    ]
)
AFFECTNET_TRAIN = T.Compose(
    [
        T.Resize((224, 224)),
        T.RandomHorizontalFlip(),
        T.RandomApply([T.RandomAffine(20, scale=(0.8, 1), translate=(0.2, 0.2))], p=0.7),
        T.ToTensor(),
        NORMALIZE,
        T.RandomErasing(),
    ]
)
EVALUATION = T.Compose([T.Resize((224, 224)), T.ToTensor(), NORMALIZE])


@dataclass
class ImageFiles(Dataset):
    """(float (3, 224, 224), label), each file opened and transformed whenever it is asked for."""

    paths: Sequence[Path]
    labels: Sequence[int]
    transform: T.Compose

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = Image.open(self.paths[index]).convert("RGB")
        return self.transform(image), int(self.labels[index])


class SpatialAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1x1 = nn.Sequential(nn.Conv2d(512, 256, 1), nn.BatchNorm2d(256))
        self.conv_3x3 = nn.Sequential(nn.Conv2d(256, 512, 3, padding=1), nn.BatchNorm2d(512))
        self.conv_1x3 = nn.Sequential(
            nn.Conv2d(256, 512, (1, 3), padding=(0, 1)), nn.BatchNorm2d(512)
        )
        self.conv_3x1 = nn.Sequential(
            nn.Conv2d(256, 512, (3, 1), padding=(1, 0)), nn.BatchNorm2d(512)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1x1(x)
        y = F.relu(self.conv_3x3(y) + self.conv_1x3(y) + self.conv_3x1(y))
        return x * y.sum(dim=1, keepdim=True)


class ChannelAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.Sequential(
            nn.Linear(512, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 512), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return x * self.attention(x)


class Head(nn.Sequential):
    def __init__(self):
        super().__init__(OrderedDict(sa=SpatialAttention(), ca=ChannelAttention()))


class Yardstick(nn.Module):
    """Images (N, 3, H, W) -> logits, features, heads; the state dict is DAN's."""

    def __init__(self, num_class: int = 7, num_head: int = 4):
        super().__init__()
        self.num_head = num_head
        self.features = nn.Sequential(*list(resnet18(weights=None).children())[:-2])
        for i in range(num_head):
            setattr(self, f"cat_head{i}", Head())
        self.fc = nn.Linear(512, num_class)
        self.bn = nn.BatchNorm1d(num_class)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = self.features(images)
        heads = [getattr(self, f"cat_head{i}")(features) for i in range(self.num_head)]
        heads = torch.stack(heads).permute(1, 0, 2)
        if self.num_head > 1:
            heads = F.log_softmax(heads, dim=1)
        return self.bn(self.fc(heads.sum(dim=1))), features, heads


class YardstickLoss(nn.Module):
    """Cross-entropy + affinity + partition, the distances as a table of images and classes."""

    def __init__(self, num_class: int = 7):
        super().__init__()
        self.centers = nn.Parameter(torch.randn(num_class, 512))

    def forward(self, output: tuple[Tensor, Tensor, Tensor], labels: Tensor) -> Tensor:
        logits, features, heads = output
        return F.cross_entropy(logits, labels) + self.affinity(features, labels) + partition(heads)

    def affinity(self, features: Tensor, labels: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(features, 1).flatten(1)
        n, num_class = len(x), len(self.centers)
        distances = (
            x.pow(2).sum(dim=1, keepdim=True).expand(n, num_class)
            + self.centers.pow(2).sum(dim=1, keepdim=True).expand(num_class, n).t()
            - 2 * x @ self.centers.t()
        )
        mask = labels.unsqueeze(1) == torch.arange(num_class, device=labels.device)
        distances = (distances * mask.float()).clamp(min=1e-12, max=1e12)
        return distances.sum() / n / self.centers.var(dim=0).sum()


def partition(heads: Tensor) -> Tensor:
    num_head = heads.shape[1]
    if num_head == 1:
        return heads.new_zeros(())
    eps = torch.finfo(torch.float64).eps
    return torch.log(1 + num_head / (heads.var(dim=1).mean() + eps))


class YardstickTraining:
    """The plain training loop."""

    def __init__(self, device: torch.device):
        self.device = device
        self.model = Yardstick().to(device)
        self.criterion = YardstickLoss().to(device)
        parameters = [*self.model.parameters(), *self.criterion.parameters()]
        self.optimizer = torch.optim.SGD(parameters, lr=1e-3, momentum=0.9, weight_decay=1e-4)

    def step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The batch's loss, and how many images it got right."""
        self.optimizer.zero_grad()
        output = self.model(images)
        loss = self.criterion(output, labels)
        loss.backward()
        self.optimizer.step()
        return loss.detach(), (output[0].argmax(dim=1) == labels).sum()

    def epoch(self, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, int]:
        """The sum of the losses, and how many images were right."""
        self.model.train()
        total, hits = 0, 0
        for images, labels in batches:
            loss, right = self.step(images.to(self.device), labels.to(self.device))
            total, hits = total + loss, hits + right
        return float(total), int(hits)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
        """The sum of the losses."""
        self.model.eval()
        total = 0
        for images, labels in batches:
            output = self.model(images.to(self.device))
            total = total + self.criterion(output, labels.to(self.device))
        return float(total)


class Logits(nn.Module):
    """The grad-cam package expects a model that returns logits alone."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)[0]


def maps_one_by_one(model: nn.Module, images: Tensor) -> np.ndarray:
    """Grad-CAM++ as the package's documentation shows it: one pass per image and head.

    images: (N, 3, H, W) -> (N, K, H, W) float32 in [0, 1], of the predicted classes.
    """
    from pytorch_grad_cam import GradCAMPlusPlus  # takes seconds

    maps = []
    for i in range(model.num_head):
        layer = getattr(model, f"cat_head{i}").sa
        with GradCAMPlusPlus(model=Logits(model), target_layers=[layer]) as cam:
            maps.append([cam(input_tensor=image[None], targets=None)[0] for image in images])
    return np.stack(maps, axis=1)
