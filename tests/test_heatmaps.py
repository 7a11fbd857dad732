"""Heat maps: the maths, the pictures, and run_grad_cam.py from its flags to its files."""

import math
import os
import re
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_grad_cam
import torch
import torch.nn.functional as F
from PIL import Image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from sklearn.decomposition import PCA

import run_grad_cam
from networks.dan import DAN
from tests.bench.yardstick import Logits
from tests.conftest import CPU, golden_dan
from utils import checkpoint
from utils.data.datasets import read_rafdb
from utils.data.images import read_rgb
from utils.errors import UserError
from utils.heatmaps.maps import head_maps, normalize
from utils.heatmaps.sheets import ExplainedFace, draw_page, write_pictures
from utils.labels import RAFDB

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def model() -> DAN:
    return golden_dan(num_class=5, num_head=3)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(3, 3, 96, 96, generator=torch.Generator().manual_seed(1))


def test_gradcam_equals_that_of_the_package_one_head_at_a_time(model, images):
    _, maps = head_maps(model, images, method="gradcam", target=3)
    assert maps.shape == (3, 3, 3, 3) and maps.min() >= 0
    for i, head in enumerate(model.heads):
        with pytorch_grad_cam.GradCAM(Logits(model), target_layers=[head.sa]) as cam:
            expected = cam(images, [ClassifierOutputTarget(3)] * 3)
        large = torch.tensor(normalize(maps[:, i]))[:, None]
        large = F.interpolate(large, (96, 96), mode="bilinear")[:, 0].numpy()
        np.testing.assert_allclose(normalize(large), expected, atol=1e-4)


def test_gradcam_plus_plus_weighs_by_equation_19_of_its_paper(model, images):
    """Regression: the package adds 1e-6 to squared gradients, which are smaller here, so that the
    weights became cubes of the gradients. By hand in float64 (arXiv 1710.11063)."""
    _, maps = head_maps(model, images)
    double = model.double()
    features = double.features(images.double())
    a = torch.stack([head.sa(features) for head in double.heads], dim=1).detach()
    a.requires_grad_()  # (N, K, 512, h, w)
    heads = torch.stack([head.ca(x) for head, x in zip(double.heads, a.unbind(1), strict=True)], 1)
    logits = double.bn(double.fc(heads.log_softmax(dim=1).sum(dim=1)))
    (g,) = torch.autograd.grad(logits.max(dim=1).values.sum(), a)
    alpha = g**2 / (2 * g**2 + a.sum(dim=(3, 4), keepdim=True) * g**3)
    weights = (g.clamp(min=0) * alpha.nan_to_num()).sum(dim=(3, 4), keepdim=True)
    expected = (weights * a).sum(dim=2).clamp(min=0).detach().numpy()
    np.testing.assert_allclose(normalize(maps), normalize(expected), atol=1e-3)


@pytest.mark.parametrize("sign", [1, -1])
def test_eigencam_is_the_component_that_is_high_where_the_head_attends(
    model, images, monkeypatch, sign
):
    """Regression: the sign of a component is arbitrary, and half of the maps were turned round."""
    svd = torch.linalg.svd

    def signed_svd(x, **options):
        left, *others = svd(x, **options)
        return sign * left, *others

    monkeypatch.setattr(torch.linalg, "svd", signed_svd)
    _, maps = head_maps(model, images, method="eigencam")
    activations = model.cat_head1.sa(model(images).features).detach().numpy()
    for own, a in zip(maps[:, 1], activations, strict=True):
        component = PCA(1).fit_transform(a.reshape(512, 9).T).reshape(3, 3)
        component *= np.sign((component * a.sum(axis=0)).sum())
        np.testing.assert_allclose(own, component.clip(0), rtol=1e-3, atol=1e-4 * own.max())


def test_attention_is_the_spatial_attention_map(model, images):
    _, maps = head_maps(model, images, method="attention")
    features = model(images).features
    expected = torch.cat([head.sa.attention_map(features) for head in model.heads], dim=1)
    np.testing.assert_array_equal(maps, expected.detach())


def test_all_heads_take_one_pass_and_leave_the_model_as_it_was(model, images):
    calls = []
    with (
        model.features.register_forward_hook(lambda *_: calls.append("forward")),
        model.bn.register_full_backward_hook(lambda *_: calls.append("backward")),
        torch.no_grad(),  # as users of a trained model may well do
    ):
        head_maps(model, images)
    assert calls == ["forward", "backward"]
    with pytest.raises(RuntimeError):
        head_maps(model, torch.randn(2, 4, 64, 64))  # four channels
    assert not any(module._forward_hooks for module in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_maps_explain_the_predicted_class_unless_another_is_given(model, images):
    model.bn.bias.data -= model(images).logits.detach().mean(dim=0)
    logits = model(images).logits.detach()
    probabilities, maps = head_maps(model, images)
    torch.testing.assert_close(probabilities, logits.softmax(dim=1))
    assert len(logits.argmax(dim=1).unique()) > 1
    for i, predicted in enumerate(logits.argmax(dim=1).tolist()):
        image = images[i : i + 1]
        _, same = head_maps(model, image, target=predicted)
        _, other = head_maps(model, image, target=(predicted + 1) % 5)
        np.testing.assert_allclose(maps[i], same[0], rtol=1e-3)
        assert not np.allclose(maps[i], other[0], rtol=1e-3)


def test_without_heads_there_is_one_map_of_the_last_block(images):
    baseline = DAN(num_class=5, num_head=0).eval()
    _, maps = head_maps(baseline, images, method="gradcam", target=3)
    features = baseline(images).features.detach()
    expected = torch.einsum("c,nchw->nhw", baseline.fc.weight[3], features) / 9
    np.testing.assert_allclose(maps[:, 0], expected.relu().detach(), atol=1e-5)


def test_normalize_stretches_each_map_separately():
    maps = np.stack([[[1, 3], [2, 1]], [[7, 7], [7, 7]], [[0, 0], [0, 1e-30]]])
    expected = [[[0, 1], [0.5, 0]], [[0, 0], [0, 0]], [[0, 0], [0, 1]]]
    np.testing.assert_allclose(normalize(maps.astype(np.float32)), expected)


def explained(name: str, size: tuple[int, int] = (100, 100)) -> ExplainedFace:
    """A grey face with two maps: the upper right corner, and nothing."""
    maps = np.zeros((2, 3, 3), np.float32)
    maps[0, 0, 2] = 1
    return ExplainedFace(name, np.full((*size, 3), 128, np.uint8), maps, ["fear 98.7 %", name])


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def files_of(*names: str, maps: int = 2) -> set[str]:
    endings = ("sheet", *(f"head{i}_cam" for i in range(maps)))
    return {f"{name}_{ending}.jpg" for name in names for ending in endings}


def test_maps_are_bright_where_they_are_high():
    page = np.asarray(draw_page([explained("face")], ["a", "b"], 288).convert("L"), int)
    high, empty = page[60:330, 570:840], page[60:330, 868:1138]
    assert high[:80, 190:].mean() > 140 and high[135:, :135].max() < 80 and empty.max() < 80


def test_overview_has_pages_and_files_may_have_any_name_and_shape(tmp_path):
    names = ["two\nlines", "a $x^2$", "\N{GRINNING FACE}", "long" * 40, *map(str, range(14))]
    faces = (explained(name, (30 + 20 * i, 90)) for i, name in enumerate(names))
    assert write_pictures(faces, ["a", "b"], tmp_path) == 18
    assert files_in(tmp_path) == {"overview.jpg", "overview_2.jpg", *files_of(*names)}


def save_untrained(path: Path, data: Path, *, num_head: int = 2, bias: float = 0) -> Path:
    """Write a checkpoint as training does."""
    torch.manual_seed(0)
    model = DAN(num_class=7, num_head=num_head)
    torch.nn.init.constant_(model.fc.bias, bias)
    config = {"raf_path": str(data), "image_size": 64, "num_head": num_head}
    content = {"class_names": list(RAFDB), "dataset": "RAF-DB", "config": config}
    checkpoint.save(path, {"model_state_dict": model.state_dict(), **content})
    return path


@pytest.fixture(scope="module")
def best(tmp_path_factory, toy_raf) -> Path:
    return save_untrained(tmp_path_factory.mktemp("run") / "best.pth", toy_raf)


def run(checkpoint: Path, flags: str) -> None:
    run_grad_cam.main(["--checkpoint", str(checkpoint), "--device", "cpu", *flags.split()])


@pytest.mark.parametrize("num_head", [0, 2])
def test_default_images_are_spread_over_the_test_images(toy_raf, tmp_path, capsys, num_head):
    path = save_untrained(tmp_path / "best.pth", toy_raf, num_head=num_head)
    run(path, f"--limit 3 --output {tmp_path / 'cam'}")
    split = read_rafdb(toy_raf).val
    stems = [split.path(i).stem for i in (0, 10, 20)]
    assert files_in(tmp_path / "cam") == {"overview.jpg", *files_of(*stems, maps=num_head or 1)}
    out, err = capsys.readouterr()
    assert f"images: 3 of 3, heads: {num_head}, gradcam++" in out and err == ""


def test_images_of_any_kind_by_file_and_folder(best, toy_raf, tmp_path, capsys):
    photos, output = tmp_path / "photos", tmp_path / "out"
    (photos / "more").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 255, (50, 200, 3), np.uint8)
    odd = os.fsdecode(b"caf\xe9")  # not valid UTF-8
    for name in ("wide", odd, "more/a", "a"):
        Image.fromarray(noise).save(photos / f"{name}.png")
    Image.fromarray(noise[:, :, 0].T).save(photos / "tall grey.png")
    (photos / "broken.jpg").write_bytes(b"no image")
    face = read_rafdb(toy_raf).val.path(3)
    run(best, f"--output {output} --images {photos} {face} {tmp_path}/missing.jpg")
    names = ("wide", odd, "more_a", "photos_a", "tall grey", face.stem)
    assert files_in(output) == {"overview.jpg", *files_of(*names)}
    assert read_rgb(output / "wide_head0_cam.jpg").shape == (128, 512, 3)
    out, err = capsys.readouterr()
    assert "images: 6 of 7" in out
    assert re.fullmatch(r"skipped: .*missing\.jpg.*\nskipped: .*broken\.jpg.*\n", err)


@pytest.mark.parametrize(
    ("method", "target", "label", "expected"),
    [
        ("gradcam", None, "fear", ["correct, the label is fear", "gradcam, fear"]),
        ("gradcam++", "anger", "sadness", ["wrong, the label is sadness", "gradcam++, anger"]),
        ("attention", None, None, ["attention"]),
    ],
)
def test_flags_and_captions(best, tmp_path, monkeypatch, method, target, label, expected):
    asked = {"method": method, "target": target and RAFDB.index(target)}

    def fake_maps(model, images, **options):
        assert images.shape == (1, 3, 64, 64) and options == asked
        return torch.eye(7)[[RAFDB.index("fear")]], np.full((1, 2, 2, 2), 9.0).cumsum(axis=3)

    monkeypatch.setattr(run_grad_cam, "head_maps", fake_maps)
    Image.new("RGB", (90, 90)).save(tmp_path / "face.png")
    trained = checkpoint.read_trained(best)
    args = Namespace(method=method, target=target)
    (face,) = run_grad_cam.explain(trained, {tmp_path / "face.png": label}, args, CPU)
    assert face.caption == ["fear 100.0 %", *expected, "face"]
    assert (face.maps == [0, 1]).all()  # normalised


def test_test_images_of_a_data_set_of_three_splits(tmp_path):
    for split, shade in (("train", 0), ("val", 1), ("test", 2)):
        for name in "ab":
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("L", (8, 8), shade).save(tmp_path / split / name / "0.png")
    config, file = {"aff_path": str(tmp_path)}, tmp_path / "best.pth"
    trained = SimpleNamespace(config=config, path=file, class_names=("a", "b"), toy=False)
    images = run_grad_cam.choose_images(trained, Namespace(images=None, limit=None))
    assert images == {tmp_path / "test" / name / "0.png": name for name in "ab"}


@pytest.mark.parametrize(
    ("problem", "flags", "network"),
    [
        ("no heads", "--method attention", {"num_head": 0}),
        ("predicts NaN", "--limit 1", {"bias": math.nan}),
    ],
)
def test_networks_that_cannot_be_explained(toy_raf, tmp_path, problem, flags, network):
    path = save_untrained(tmp_path / "best.pth", toy_raf, **network)
    with pytest.raises(UserError, match=problem):
        run(path, f"{flags} --output {tmp_path}")
