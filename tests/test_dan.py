"""The network against plain PyTorch, and its pre-trained weights."""

import pytest
import torch
import torch.nn.functional as F
from torchvision.models import resnet18

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


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("with_fc", [True, False])
def test_backbone_takes_resnet18_weights(prefix, wrapped, with_fc):
    torch.manual_seed(0)
    source = resnet18(num_classes=11)
    for module in source.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
    state = {
        prefix + key: value
        for key, value in source.state_dict().items()
        if with_fc or not key.startswith("fc.")
    }
    model = DAN(num_class=7)
    model.load_backbone({"state_dict": state} if wrapped else state)
    images = torch.randn(1, 3, 64, 64)
    source.avgpool = source.fc = torch.nn.Identity()
    with torch.no_grad():
        expected = source.eval()(images).reshape(1, 512, 2, 2)
        assert torch.equal(model.eval().features(images), expected)


def test_backbone_names_what_does_not_fit():
    state = resnet18().state_dict()
    del state["layer2.0.conv1.weight"]
    state["conv1.weight"] = torch.zeros(64, 1, 7, 7)
    state["layer5.weight"] = torch.zeros(1)
    with pytest.raises(ValueError) as error:
        DAN(num_class=7).load_backbone(state)
    message = str(error.value)
    assert "layer2.0.conv1.weight is missing" in message
    assert "conv1.weight is (64, 1, 7, 7), not (64, 3, 7, 7)" in message
    assert "layer5.weight is unknown" in message


def test_backbone_names_values_that_are_no_weights():
    state = resnet18().state_dict()
    state["conv1.weight"][3, 0, 0, 0] = float("nan")
    state["bn1.weight"] = torch.ones(64).to_sparse()
    state["bn1.bias"] = torch.empty(64, device="meta")
    state["bn1.running_mean"] = torch.zeros(64, dtype=torch.complex64)
    state["bn1.running_var"] = "text"
    with pytest.raises(ValueError) as error:
        DAN(num_class=7).load_backbone(state)
    message = str(error.value)
    assert "conv1.weight holds NaN" in message and "bn1.running_var is missing" in message
    for name in ("weight", "bias", "running_mean"):
        assert f"bn1.{name} is not plain floats" in message


def test_half_precision_backbones_are_taken():
    state = {
        k: v.half() if v.is_floating_point() else v for k, v in resnet18().state_dict().items()
    }
    model = DAN(num_class=7)
    model.load_backbone(state)
    assert torch.equal(model.features[0].weight, state["conv1.weight"].float())


def test_batch_counters_may_be_missing_from_old_backbones():
    state = resnet18().state_dict()
    state = {key: v for key, v in state.items() if not key.endswith("num_batches_tracked")}
    DAN(num_class=7).load_backbone(state)
