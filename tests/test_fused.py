"""The inference form against the network it was made from."""

import numpy as np
import pytest
import torch

from networks.dan import DAN
from networks.fused import FusedDAN
from tests import golden


def trained(*, num_class: int, num_head: int) -> DAN:
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


@pytest.mark.parametrize(
    ("num_head", "num_class", "size"), [(1, 7, 96), (2, 8, 112), (4, 7, 101), (4, 8, 224)]
)
@torch.no_grad()
def test_outputs_equal_the_models(num_head, num_class, size):
    model = trained(num_class=num_class, num_head=num_head)
    batch = images(size)
    expected = model(batch)
    output = FusedDAN(model)(batch)
    assert [value.shape for value in output] == [value.shape for value in expected]
    assert max(relative_errors(output, expected)) < 1e-10
    single = FusedDAN(model.float())(batch.float())
    assert {value.dtype for value in single} == {torch.float32}
    assert max(relative_errors(single, expected)) < 1e-4


@pytest.mark.parametrize("name", golden.CASES)
@torch.no_grad()
def test_outputs_equal_the_released_numbers(name):
    case = golden.load(name)
    model = trained(num_class=case["meta"]["num_class"], num_head=case["meta"]["num_head"])
    output = FusedDAN(model)(golden.batch(case["meta"])[0])
    np.testing.assert_allclose(output.logits, case["eval_logits"], rtol=1e-9)
    np.testing.assert_allclose(output.heads, case["eval_heads"], rtol=1e-9)
    pooled = output.features.mean(dim=(2, 3))
    np.testing.assert_allclose(pooled, case["eval_features_pooled"], rtol=1e-9)


@torch.no_grad()
def test_attention_maps_equal_the_heads_own():
    model = trained(num_class=7, num_head=4)
    fused = FusedDAN(model)
    features = model.features(images(96))
    maps = torch.cat([head.sa.attention_map(features) for head in model.heads], dim=1)
    torch.testing.assert_close(fused.attention_maps(features), maps, rtol=1e-10, atol=0)


@torch.no_grad()
def test_bfloat16_keeps_the_sums_in_float32():
    """In bfloat16 a map of 512 terms, and all that is made from it, would lose its digits."""
    model = trained(num_class=7, num_head=4).float()
    batch = images(96, count=8).float()
    expected = model(batch)
    fused = FusedDAN(model, torch.bfloat16)
    assert fused.attention_maps(expected.features).dtype == torch.float32
    for output in (fused(batch), fused(batch.bfloat16())):
        assert output.features.dtype == torch.bfloat16
        assert output.heads.dtype == output.logits.dtype == torch.float32
        assert max(relative_errors(output, expected)) < 0.03


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_autocast_changes_nothing(dtype, plain, monkeypatch):
    if plain:
        monkeypatch.setattr("networks.frozen.OPERATORS", ("_no_such_operator",))
    fused = FusedDAN(trained(num_class=7, num_head=2), dtype)
    batch = images(64)
    expected = fused(batch)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(fused(batch), expected, rtol=0, atol=0)
        maps = fused.attention_maps(expected.features)
    torch.testing.assert_close(maps, fused.attention_maps(expected.features), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4), (torch.bfloat16, 0.05)]
)
@torch.no_grad()
def test_one_form_serves_batches_of_any_size(dtype, tolerance):
    """Packed weights do not depend on the images that came first; 32 pixels leave 1x1 maps."""
    model = trained(num_class=7, num_head=4)
    fused = FusedDAN(model, dtype)
    generator = torch.Generator().manual_seed(0)
    for shape in ((2, 224, 224), (1, 32, 32), (9, 64, 33), (3, 101, 160), (0, 96, 96)):
        batch = torch.randn(shape[0], 3, *shape[1:], dtype=torch.float64, generator=generator)
        output = fused(batch)
        assert len(output.logits) == len(batch)
        if len(batch):
            assert max(relative_errors(output, model(batch))) < tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_packed_and_plain_convolutions_agree(dtype, monkeypatch):
    """What a PyTorch without oneDNN computes, or a processor without AVX-512."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    model = trained(num_class=7, num_head=4)
    packed = FusedDAN(model, dtype)
    monkeypatch.setattr("networks.frozen.OPERATORS", ("_no_such_operator",))
    plain = FusedDAN(model, dtype)
    assert plain.hidden.weight.layout == torch.strided
    batch = images(96)
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    assert max(relative_errors(packed(batch), plain(batch))) < tolerance


@torch.no_grad()
def test_layout_of_the_images_does_not_matter():
    fused = FusedDAN(trained(num_class=7, num_head=4))
    batch = images(96)
    plain, last = fused(batch), fused(batch.to(memory_format=torch.channels_last))
    assert plain.features.is_contiguous(memory_format=torch.channels_last)
    assert max(relative_errors(last, plain)) < 1e-12


def test_gradients_are_refused():
    """oneDNN's convolutions have none, and would leave them out in silence."""
    output = FusedDAN(trained(num_class=7, num_head=2).float())(images(32).float().requires_grad_())
    assert not any(value.requires_grad for value in output)


def test_model_stays_as_it_is_and_nothing_is_left_to_train():
    model = trained(num_class=7, num_head=2).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fused = FusedDAN(model)
    assert model.training and all(p.requires_grad for p in model.parameters())
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert not any(p.requires_grad for p in fused.parameters())
    assert not any("BatchNorm" in type(part).__name__ for part in fused.modules())
    assert (fused.num_class, fused.num_head) == (7, 2)
    shared = {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in fused.parameters()}
    assert not shared


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_graph_compiles_whole(dtype):
    """Plain and packed; `fullgraph` fails on a graph break; no compiler is needed here."""
    model = trained(num_class=7, num_head=4).to(dtype)
    fused = FusedDAN(model)
    batch = images(96).to(dtype)
    with torch.no_grad():
        compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
        assert max(relative_errors(compiled(batch), model(batch))) < 1e-4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@torch.no_grad()
def test_device_follows_the_model():
    model = trained(num_class=7, num_head=4)
    batch = images(96)
    expected = model(batch)
    fused = FusedDAN(model.cuda())
    output = [value.cpu() for value in fused(batch.cuda())]
    assert {p.device.type for p in fused.parameters()} == {"cuda"}
    assert max(relative_errors(output, expected)) < 1e-10
