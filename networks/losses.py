"""DAN's training loss: cross-entropy + affinity loss + partition loss (arXiv 2109.07270, Sec. 3).

All of it is computed in float32 or wider whatever autocast says: squared distances over 512
dimensions and a variance that may vanish do not survive half precision.

Each loss is a function of means over the batch. Where several processes share a batch, they are
given a mean over all of it, and then each computes the loss of the whole batch.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.dan import FEATURE_DIM, DANOutput, at_least_float32

# (N,), one number per image -> their mean over the whole batch, a scalar.
BatchMean = Callable[[Tensor], Tensor]

# Keeps the partition loss finite where all heads agree; float64's, also in float32, as released.
EPSILON = torch.finfo(torch.float64).eps


class AffinityLoss(nn.Module):
    """Pull each image's features towards its class's centre, and the centres apart.

    L = 1/N sum_i |g_i - c_{y_i}|^2 / sum_d Var_j(c_{j,d}), with g the globally average-pooled
    features and the unbiased variance over the classes j.

    Args:
        num_center: at least 2, as one alone has no variance.
        batch_mean: over the images of all processes that share a batch.
    """

    def __init__(self, *, num_center: int, batch_mean: BatchMean = torch.mean):
        super().__init__()
        if num_center < 2:
            raise ValueError(f"the variance of the centres needs two of them, got {num_center=}")
        self.num_center = num_center
        self.batch_mean = batch_mean
        self.centers = nn.Parameter(torch.randn(num_center, FEATURE_DIM))

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """features: (N, 512, h, w), labels: (N,) int64 -> scalar."""
        with torch.autocast(features.device.type, enabled=False):
            pooled = at_least_float32(features).mean(dim=(2, 3))  # (N, 512)
            centers = at_least_float32(self.centers)
            # The released code clamps each distance of its (N, num_center) masked table, the
            # zeros beside the label's own distance too: each adds its floor of 1e-12.
            distance = (pooled - centers[labels]).square().sum(dim=1).clamp(1e-12, 1e12)
            floor = 1e-12 * (self.num_center - 1)
            return (self.batch_mean(distance) + floor) / centers.var(dim=0).sum()


class PartitionLoss(nn.Module):
    """Push the heads apart: L = log(1 + K / variance of the heads), 0 for fewer than two heads.

    Args:
        batch_mean: over the images of all processes that share a batch.
    """

    def __init__(self, *, batch_mean: BatchMean = torch.mean):
        super().__init__()
        self.batch_mean = batch_mean

    def forward(self, heads: Tensor) -> Tensor:
        """heads: (N, K, 512) -> scalar."""
        num_head = heads.shape[1]
        if num_head < 2:
            return at_least_float32(heads.new_zeros(()))
        if len(heads):
            variance = at_least_float32(heads).var(dim=1).mean(dim=1)  # (N,)
        else:  # a process that has no image of a batch, where var would warn
            variance = at_least_float32(heads.new_zeros(0))
        return torch.log1p(num_head / (self.batch_mean(variance) + EPSILON))


class DANLosses(NamedTuple):
    """Scalars: the weighted sum, and its terms before weighting."""

    total: Tensor
    cross_entropy: Tensor
    affinity: Tensor
    partition: Tensor


class DANLoss(nn.Module):
    """Weighted sum of the three losses; its affinity centres are trained with the network.

    Args:
        num_class: classes of the data set.
        num_center: centres of the affinity loss, as many as classes unless given. The released
            RAF-DB script kept 8 for its 7 classes.
        affinity_weight, partition_weight: weights beside the cross-entropy's 1.
        batch_mean: over the images of all processes that share a batch.
    """

    def __init__(
        self,
        *,
        num_class: int,
        num_center: int | None = None,
        affinity_weight: float = 1.0,
        partition_weight: float = 1.0,
        batch_mean: BatchMean = torch.mean,
    ):
        super().__init__()
        num_center = num_class if num_center is None else num_center
        if num_center < num_class:
            raise ValueError(f"each class needs a centre, got {num_center=} for {num_class=}")
        self.batch_mean = batch_mean
        self.affinity = AffinityLoss(num_center=num_center, batch_mean=batch_mean)
        self.partition = PartitionLoss(batch_mean=batch_mean)
        self.affinity_weight = affinity_weight
        self.partition_weight = partition_weight

    def forward(self, output: DANOutput, labels: Tensor) -> DANLosses:
        """output: DAN's for N images, labels: (N,) int64."""
        logits = at_least_float32(output.logits)
        cross_entropy = self.batch_mean(F.cross_entropy(logits, labels, reduction="none"))
        affinity = self.affinity(output.features, labels)
        partition = self.partition(output.heads)
        total = cross_entropy + self.affinity_weight * affinity + self.partition_weight * partition
        return DANLosses(total, cross_entropy, affinity, partition)
