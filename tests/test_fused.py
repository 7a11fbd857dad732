"""The inference form against the network it was made from."""

import pytest
import torch

from networks.dan import DAN
from networks.fused import fuse
from tests import golden


def trained(*, num_class: int = 7, num_head: int = 4) -> DAN:
    """A DAN whose every weight and statistic is far from its initial value, in float64."""
    model = DAN(num_class=num_class, num_head=num_head).double()
    model.load_state_dict(golden.state_dict(model))
    return model.eval()


def images(size: int, count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(size)
    return torch.randn(count, 3, size, size, dtype=torch.float64, generator=generator)


def relative_errors(output, expected) -> list[float]:
    """The largest error of logits, features and heads, relative to their largest value."""
    return [
        ((a.double() - b.double()).abs().max() / b.double().abs().max()).item()
        for a, b in zip(output, expected, strict=True)
    ]


@pytest.mark.parametrize(("num_head", "num_class", "size"), [(1, 7, 96), (2, 8, 101)])
@torch.no_grad()
def test_outputs_equal_the_models(num_head, num_class, size):
    model = trained(num_class=num_class, num_head=num_head)
    batch = images(size)
    expected = model(batch)
    output = fuse(model, image_size=64)(batch)
    assert [value.shape for value in output] == [value.shape for value in expected]
    assert max(relative_errors(output, expected)) < 1e-10
    single = fuse(model.float(), image_size=64)(batch.float())
    assert {value.dtype for value in single} == {torch.float32}
    assert max(relative_errors(single, expected)) < 1e-4


@torch.no_grad()
def test_bfloat16_keeps_the_sums_in_float32():
    """In bfloat16 a map of 512 terms, and all that is computed from it, would lose its digits."""
    model = trained().float()
    batch = images(96, count=8).float()
    expected = model(batch)
    fused = fuse(model, image_size=64, dtype=torch.bfloat16)
    for output in (fused(batch), fused(batch.bfloat16())):
        assert output.features.dtype == torch.bfloat16
        assert output.heads.dtype == output.logits.dtype == torch.float32
        assert max(relative_errors(output, expected)) < 0.03
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(fused(batch), fused(batch.clone()), rtol=0, atol=0)


def test_the_model_stays_as_it_is_and_nothing_is_left_to_train():
    model = trained(num_head=2)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fused = fuse(model, image_size=64)
    assert all(p.requires_grad for p in model.parameters())
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert not any(p.requires_grad for p in fused.parameters())
    assert not any("BatchNorm" in type(part).__name__ for part in fused.modules())
    convolutions = [m for m in fused.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convolutions) == 20 + 2 * 2  # ResNet-18's, and two for each head


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@torch.no_grad()
def test_cuda_follows_the_model():
    model = trained()
    batch = images(96)
    expected = model(batch)
    fused = fuse(model.cuda(), image_size=64)
    output = [value.cpu() for value in fused(batch.cuda())]
    assert {p.device.type for p in fused.parameters()} == {"cuda"}
    assert max(relative_errors(output, expected)) < 1e-10
