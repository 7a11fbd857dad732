"""What can be said of CUDA without a GPU: fake tensors have a device, but no memory."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from networks.dan import DAN
from networks.losses import DANLoss
from utils.data.transforms import preprocess


@pytest.mark.skipif(torch.__version__ < "2.14", reason="fakes of older versions need a driver")
@pytest.mark.parametrize("num_head", [0, 1, 4])
def test_a_forward_pass_on_fake_cuda_tensors_stays_on_its_device(num_head, monkeypatch):
    """From uint8 images to the losses; a tensor made on the CPU in between would be an error."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)  # needs a driver
    with FakeTensorMode(allow_non_fake_inputs=True):
        with torch.device("cuda"):
            model, criterion = DAN(num_class=7, num_head=num_head), DANLoss(num_class=7)
            images = torch.zeros(8, 3, 100, 100, dtype=torch.uint8)
            labels = torch.zeros(8, dtype=torch.int64)
        inputs = preprocess(images, 224)
        output = model(inputs)
        losses = criterion(output, labels)
    assert inputs.shape == (8, 3, 224, 224)
    assert {value.device.type for value in (inputs, *output, *losses)} == {"cuda"}
