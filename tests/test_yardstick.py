"""DAN and its losses against plain PyTorch, which is also the benchmark's yardstick."""

import pytest
import torch

from networks.dan import DAN
from networks.losses import DANLoss
from tests import golden
from tests.bench.yardstick import Yardstick, YardstickLoss


@pytest.mark.parametrize(("num_class", "num_head"), [(7, 4), (8, 1)])
def test_yardstick_has_our_outputs_losses_and_gradients(num_class, num_head):
    model = DAN(num_class=num_class, num_head=num_head).double()
    model.load_state_dict(golden.state_dict(model))
    criterion = DANLoss(num_class=num_class).double()
    yardstick = Yardstick(num_class, num_head).double()
    yardstick.load_state_dict(model.state_dict())
    plain = YardstickLoss(num_class).double()
    plain.load_state_dict({"centers": criterion.affinity.centers})

    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, 64, 64, generator=generator, dtype=torch.float64)
    labels = torch.arange(4)
    ours, theirs = model(images), yardstick(images)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    loss, plain_loss = criterion(ours, labels).total, plain(theirs, labels)
    torch.testing.assert_close(loss, plain_loss, rtol=1e-9, atol=0)
    loss.backward()
    plain_loss.backward()
    for a, b in zip(model.parameters(), yardstick.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-7, atol=1e-9)
