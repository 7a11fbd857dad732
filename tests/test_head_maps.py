"""The maths of the heat maps; the grad-cam package itself is the truth, one head at a time."""

import numpy as np
import pytest
import pytorch_grad_cam
import torch
import torch.nn.functional as F
from pytorch_grad_cam.utils.image import scale_cam_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

from networks.dan import DAN
from tests.grad_cam_speed import Logits
from utils.head_maps import CAM_CLASSES, METHODS, head_maps, normalise

pytestmark = pytest.mark.filterwarnings("error")
GRADIENT_METHODS = ("gradcam", "xgradcam", "hirescam", "layercam")


def random_model(num_head: int) -> DAN:
    """Running statistics as a trained one has them, so that logits and maps vary."""
    torch.manual_seed(0)
    model = DAN(num_class=5, num_head=num_head)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


@pytest.fixture(scope="module")
def model() -> DAN:
    return random_model(num_head=3)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(3, 3, 96, 96, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("method", GRADIENT_METHODS)
def test_maps_are_those_of_the_package_one_head_at_a_time(model, images, method):
    targets = [0, 3, 1]
    maps = head_maps(model, images, method=method, targets=targets).maps
    assert maps.shape == (3, 3, 3, 3) and maps.min() >= 0
    for i, head in enumerate(model.heads):
        package = getattr(pytorch_grad_cam, CAM_CLASSES[method])
        with package(Logits(model), target_layers=[head.sa]) as cam:
            expected = cam(images, [ClassifierOutputTarget(target) for target in targets])
        large = torch.tensor(normalise(maps[:, i]))[:, None]
        large = F.interpolate(large, (96, 96), mode="bilinear")[:, 0].numpy()
        np.testing.assert_allclose(normalise(large), expected, atol=1e-4)


def test_gradcam_plus_plus_weighs_by_equation_19_of_its_paper(model, images):
    """Regression: the package's 1e-6 is more than the squares of DAN's gradients, and the weights
    became their cubes. By hand, in float64; Chattopadhyay et al., arXiv 1710.11063."""
    double = random_model(num_head=3).double()
    features = double.features(images.double())
    a = torch.stack([head.sa(features) for head in double.heads], dim=1).detach()
    a.requires_grad_()  # (N, K, 512, h, w)
    heads = torch.stack([head.ca(x) for head, x in zip(double.heads, a.unbind(1), strict=True)], 1)
    logits = double.bn(double.fc(heads.log_softmax(dim=1).sum(dim=1)))
    (g,) = torch.autograd.grad(logits.max(dim=1).values.sum(), a)
    alpha = g**2 / (2 * g**2 + a.sum(dim=(3, 4), keepdim=True) * g**3)
    weights = (g.clamp(min=0) * alpha.nan_to_num()).sum(dim=(3, 4), keepdim=True)
    expected = (weights * a).sum(dim=2).clamp(min=0).detach().numpy()
    maps = head_maps(model, images).maps
    np.testing.assert_allclose(normalise(maps), normalise(expected), atol=1e-3)


def test_score_maps_are_those_of_the_package_but_for_its_bars(capsys):
    model = random_model(num_head=1)
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    maps = head_maps(model, image, method="scorecam", targets=[3]).maps
    assert capsys.readouterr() == ("", "")
    with pytorch_grad_cam.ScoreCAM(Logits(model), target_layers=[model.cat_head0.sa]) as cam:
        expected = cam(image, [ClassifierOutputTarget(3)])
    assert "it/s" in capsys.readouterr().err  # its bars are as they were
    # Scaled as the package does, which leaves a map as small as it is where all of it is near 0.
    large = scale_cam_image(scale_cam_image(maps[0], (64, 64)))
    np.testing.assert_allclose(large, expected, atol=1e-3)


def test_ablation_map_weighs_channels_by_the_drop_of_the_score():
    """By hand; the class of the lowest, negative logit, where dividing by it would flip the map."""
    model = random_model(num_head=1)
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        output = model(image)
        target = int(output.logits.argmin())
        assert output.logits[0, target] < 0
        activations = model.cat_head0.sa(output.features)
        ablated = activations.repeat(512, 1, 1, 1)
        ablated[range(512), range(512)] = 0
        logits = model.bn(model.fc(model.cat_head0.ca(ablated)))
        drop = output.logits[0, target] - logits[:, target]
        expected = torch.einsum("c,chw->hw", drop, activations[0]).clamp(min=0)
    done = []
    maps = head_maps(
        model, image, method="ablationcam", targets=[target], each_head=lambda: done.append(1)
    ).maps
    assert len(done) == 1
    np.testing.assert_allclose(normalise(maps[0, 0]), normalise(expected.numpy()), atol=1e-3)


def test_gradients_do_not_depend_on_the_position(model, images):
    """The channel attention averages over positions, so these three are the same here."""
    maps = [
        normalise(head_maps(model, images, method=method).maps)
        for method in ("gradcam", "hirescam", "xgradcam")
    ]
    np.testing.assert_allclose(maps[1], maps[0], atol=1e-4)
    np.testing.assert_allclose(maps[2], maps[0], atol=1e-4)


@pytest.mark.parametrize("method", ["eigencam", "eigengradcam"])
def test_principal_components_do_not_depend_on_their_arbitrary_sign(
    model, images, method, monkeypatch
):
    """Regression: with the wrong sign a map shows what the head does not look at."""
    maps = head_maps(model, images, method=method).maps
    svd = np.linalg.svd
    monkeypatch.setattr(np.linalg, "svd", lambda x, **how: [-part for part in svd(x, **how)])
    np.testing.assert_allclose(head_maps(model, images, method=method).maps, maps, rtol=1e-5)
    if method == "eigencam":
        with torch.no_grad():
            energy = model.cat_head1.sa(model(images).features).sum(dim=1)
        for own, total in zip(maps[:, 1], energy.numpy(), strict=True):
            assert np.corrcoef(own.ravel(), total.ravel())[0, 1] > 0.5


def test_attention_is_the_models_own_map(model, images):
    result = head_maps(model, images, method="attention")
    with torch.no_grad():
        features = model(images).features
        for i in range(model.num_head):
            expected = getattr(model, f"cat_head{i}").sa.attention_map(features)[:, 0]
            np.testing.assert_array_equal(result.maps[:, i], expected.numpy())


def test_one_forward_and_one_backward_pass_serve_all_heads(model, images):
    forward, backward = [], []
    handles = [model.features.register_forward_hook(lambda *_: forward.append(1))]
    handles.append(model.bn.register_full_backward_hook(lambda *_: backward.append(1)))
    head_maps(model, images)
    for handle in handles:
        handle.remove()
    assert (len(forward), len(backward)) == (1, 1)


@pytest.mark.parametrize("method", ["gradcam++", "ablationcam", "attention"])
def test_the_model_stays_as_it_was(method):
    model = random_model(num_head=1)
    children, state = list(model.named_modules()), model.state_dict()
    head_maps(model, torch.randn(1, 3, 64, 64), method=method)
    assert list(model.named_modules()) == children
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_hooks_are_released_when_the_model_fails(model):
    with pytest.raises(RuntimeError):
        head_maps(model, torch.randn(2, 4, 64, 64))
    assert not any(module._forward_hooks for module in model.modules())


def test_frozen_models_have_the_same_maps(model, images):
    frozen = random_model(num_head=3).requires_grad_(False)
    with torch.no_grad():  # as somebody might well call it
        maps = head_maps(frozen, images).maps
    np.testing.assert_array_equal(maps, head_maps(model, images).maps)


def test_a_map_does_not_depend_on_the_rest_of_the_batch(model, images):
    alone = head_maps(model, images[1:2]).maps
    np.testing.assert_allclose(alone, head_maps(model, images).maps[1:2], rtol=1e-3)


def test_targets_are_the_predicted_classes_unless_given(model, images):
    predicted = model(images).logits.argmax(dim=1).tolist()
    other = (predicted[1] + 1) % 5
    mixed = head_maps(model, images, targets=[None, other, None])
    assert mixed.targets.tolist() == [predicted[0], other, predicted[2]]
    plain = head_maps(model, images)
    assert plain.targets.tolist() == predicted
    same = [np.allclose(a, b) for a, b in zip(mixed.maps, plain.maps, strict=True)]
    assert same == [True, False, True]
    probabilities = model(images).logits.softmax(dim=1).detach()
    torch.testing.assert_close(plain.probabilities, probabilities)


def test_training_mode_and_unknown_methods_are_errors(model, images):
    with pytest.raises(ValueError, match="evaluation mode"):
        head_maps(random_model(num_head=1).train(), images)
    with pytest.raises(ValueError, match="no method 'guided'"):
        head_maps(model, images, method="guided")


def test_methods_are_those_of_the_package():
    assert METHODS[0] == "gradcam++" and len(METHODS) == 10
    assert all(hasattr(pytorch_grad_cam, name) for name in CAM_CLASSES.values())


def test_normalise_stretches_each_map_by_itself():
    maps = np.stack([[[1, 3], [2, 1]], [[7, 7], [7, 7]], [[0, 0], [0, 1e-30]]])
    expected = [[[0, 1], [0.5, 0]], [[0, 0], [0, 0]], [[0, 0], [0, 1]]]
    np.testing.assert_allclose(normalise(maps.astype(np.float32)), expected)
