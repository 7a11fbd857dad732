"""How a head starts, and what autocast leaves in float32."""

import pytest
import torch

from networks.dan import DAN, CrossAttentionHead


def test_initialisation_of_a_head():
    torch.manual_seed(0)
    head = CrossAttentionHead()
    weight = head.sa.conv_3x3[0].weight
    assert weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.02)
    assert head.ca.attention[3].weight.std().item() == pytest.approx(0.001, rel=0.05)
    for module in head.modules():
        if getattr(module, "bias", None) is not None:
            assert not module.bias.any()


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
