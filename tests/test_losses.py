"""The losses at their limits, their weights, and their precision."""

import pytest
import torch

from networks.dan import DANOutput
from networks.losses import AffinityLoss, DANLoss, PartitionLoss


def test_affinity_distance_is_clamped():
    """A feature on its centre costs the floor of every class's entry, as in the released code."""
    loss = AffinityLoss(num_center=4).double()
    with torch.no_grad():
        loss.centers.copy_(torch.eye(4, 512))
    features = loss.centers.detach()[[1]].reshape(1, 512, 1, 1)
    spread = loss.centers.var(dim=0).sum().item()
    assert loss(features, torch.tensor([1])).item() == pytest.approx(4e-12 / spread, rel=1e-9)
    far = torch.full((1, 512, 1, 1), 1e9, dtype=torch.float64)
    assert loss(far, torch.tensor([1])).item() == pytest.approx(1e12 / spread, rel=1e-9)


def test_partition_of_one_head_is_zero():
    loss = PartitionLoss()(torch.randn(3, 1, 5, dtype=torch.bfloat16))
    assert loss.item() == 0 and loss.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_stays_finite_where_heads_collapse(dtype):
    heads = torch.ones(2, 4, 512, dtype=dtype, requires_grad=True)
    output = DANOutput(torch.zeros(2, 7, dtype=dtype), torch.ones(2, 512, 3, 3, dtype=dtype), heads)
    criterion = DANLoss(num_class=7)
    losses = criterion(output, torch.tensor([0, 6]))
    losses.total.backward()
    assert all(loss.isfinite() for loss in losses)
    assert heads.grad.isfinite().all() and criterion.affinity.centers.grad.isfinite().all()
    assert all(
        loss.dtype == (dtype if dtype == torch.float64 else torch.float32) for loss in losses[:1]
    )


def test_computed_in_float32_under_autocast():
    torch.manual_seed(0)
    output = DANOutput(torch.randn(4, 7), torch.randn(4, 512, 3, 3), torch.randn(4, 4, 512))
    labels = torch.tensor([0, 1, 2, 3])
    criterion = DANLoss(num_class=7)
    plain = criterion(output, labels)
    with torch.autocast("cpu", torch.bfloat16):
        autocast = criterion(output, labels)
    for a, b in zip(plain, autocast, strict=True):
        assert b.dtype == torch.float32 and torch.equal(a, b)


def test_weights_and_terms():
    torch.manual_seed(0)
    output = DANOutput(torch.randn(4, 7), torch.randn(4, 512, 3, 3), torch.randn(4, 4, 512))
    criterion = DANLoss(num_class=7, affinity_weight=0.5, partition_weight=3)
    losses = criterion(output, torch.tensor([0, 1, 2, 6]))
    expected = losses.cross_entropy + 0.5 * losses.affinity + 3 * losses.partition
    assert losses.total.item() == pytest.approx(expected.item())


def test_more_centres_than_classes_but_not_fewer():
    """The released RAF-DB script kept 8 centres for 7 classes."""
    assert DANLoss(num_class=7, num_center=8).affinity.centers.shape == (8, 512)
    with pytest.raises(ValueError, match="num_center=6"):
        DANLoss(num_class=7, num_center=6)
