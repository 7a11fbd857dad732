"""The network against plain PyTorch."""

import pytest
import torch
import torch.nn.functional as F

from networks.dan import DAN, CrossAttentionHead, DANOutput
from networks.losses import DANLoss


@pytest.mark.parametrize(("num_class", "num_head"), [(7, 4), (8, 1), (3, 2)])
@pytest.mark.parametrize("size", [(224, 224), (96, 100)])
def test_output_shapes(num_class, num_head, size):
    model = DAN(num_class=num_class, num_head=num_head).eval()
    with torch.no_grad():
        output = model(torch.randn(2, 3, *size))
    assert isinstance(output, DANOutput)
    h, w = (-(-side // 32) for side in size)
    assert output.logits.shape == (2, num_class)
    assert output.features.shape == (2, 512, h, w)
    assert output.heads.shape == (2, num_head, 512)


def test_parameter_count_is_the_papers():
    assert sum(p.numel() for p in DAN(num_class=7).parameters()) == 19_723_733


def test_head_equals_its_formula():
    torch.manual_seed(0)
    head = CrossAttentionHead().double().eval()
    for module in head.modules():  # running statistics that matter
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    x = torch.randn(3, 512, 3, 5, dtype=torch.float64)

    def conv_bn(x, layers, padding):
        conv, bn = layers
        x = F.conv2d(x, conv.weight, conv.bias, padding=padding)
        return F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias)

    sa, ca = head.sa, head.ca.attention
    y = conv_bn(x, sa.conv1x1, 0)
    branches = (
        conv_bn(y, sa.conv_3x3, (1, 1))
        + conv_bn(y, sa.conv_1x3, (0, 1))
        + conv_bn(y, sa.conv_3x1, (1, 0))
    )
    spatial = branches.clamp(min=0).sum(1, keepdim=True)
    v = (x * spatial).mean((2, 3))
    squeezed = F.linear(v, ca[0].weight, ca[0].bias)
    bn = ca[1]
    squeezed = F.batch_norm(squeezed, bn.running_mean, bn.running_var, bn.weight, bn.bias)
    weights = F.linear(squeezed.clamp(min=0), ca[3].weight, ca[3].bias).sigmoid()
    torch.testing.assert_close(sa.attention_map(x), spatial, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(head(x), v * weights, rtol=1e-10, atol=1e-10)


def test_initialisation_of_a_head():
    torch.manual_seed(0)
    head = CrossAttentionHead()
    weight = head.sa.conv_3x3[0].weight
    assert weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.02)
    assert head.ca.attention[3].weight.std().item() == pytest.approx(0.001, rel=0.05)
    for module in head.modules():
        if getattr(module, "bias", None) is not None:
            assert not module.bias.any()


@pytest.mark.parametrize("num_head", [1, 3])
def test_every_parameter_gets_a_gradient(num_head):
    torch.manual_seed(0)
    model = DAN(num_class=5, num_head=num_head)
    criterion = DANLoss(num_class=5)
    labels = torch.arange(6) % 5
    criterion(model(torch.randn(6, 3, 64, 64)), labels).total.backward()
    parameters = [*model.named_parameters(), *criterion.named_parameters()]
    without = [name for name, p in parameters if p.grad is None or not p.grad.isfinite().all()]
    assert not without
    # A bias in front of a BatchNorm has no effect, all others do.
    vanishing = [name for name, p in parameters if p.grad.abs().max() == 0]
    assert all(name.endswith("bias") for name in vanishing)


def test_heads_are_float32_under_autocast():
    """The spatial map sums 512 channels: half precision would keep two digits of it."""
    torch.manual_seed(0)
    model = DAN(num_class=7).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        output = model(images)
        attention_map = model.cat_head0.sa.attention_map(output.features)
    assert output.features.dtype == torch.bfloat16
    assert output.logits.dtype == output.heads.dtype == attention_map.dtype == torch.float32
