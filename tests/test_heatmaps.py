"""Heat maps: the maths, the pictures, and run_grad_cam.py from its flags to its files."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_grad_cam
import torch
import torch.nn.functional as F
from PIL import Image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

import run_grad_cam
from networks.dan import DAN
from tests.bench.yardstick import Logits
from utils import checkpoint
from utils.data.datasets import read_rafdb
from utils.data.images import read_rgb
from utils.errors import UserError
from utils.heatmaps.maps import head_maps, normalize
from utils.heatmaps.sheets import ExplainedFace, draw_page, write_pictures
from utils.labels import RAFDB

pytestmark = pytest.mark.filterwarnings("error")


def random_model() -> DAN:
    """A network whose BatchNorm statistics vary as a trained one's do."""
    torch.manual_seed(0)
    model = DAN(num_class=5, num_head=3)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


@pytest.fixture(scope="module")
def model() -> DAN:
    return random_model()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(3, 3, 96, 96, generator=torch.Generator().manual_seed(1))


# The second and the third are the same map as the first on this network.
PACKAGE = {"GradCAM": "gradcam", "XGradCAM": "gradcam", "HiResCAM": "gradcam"}
PACKAGE["LayerCAM"] = "layercam"


@pytest.mark.parametrize("package", PACKAGE)
def test_maps_equal_those_of_the_package_one_head_at_a_time(model, images, package):
    targets = [0, 3, 1]
    maps = head_maps(model, images, method=PACKAGE[package], targets=targets).maps
    assert maps.shape == (3, 3, 3, 3) and maps.min() >= 0
    for i, head in enumerate(model.heads):
        with getattr(pytorch_grad_cam, package)(Logits(model), target_layers=[head.sa]) as cam:
            expected = cam(images, [ClassifierOutputTarget(target) for target in targets])
        large = torch.tensor(normalize(maps[:, i]))[:, None]
        large = F.interpolate(large, (96, 96), mode="bilinear")[:, 0].numpy()
        np.testing.assert_allclose(normalize(large), expected, atol=1e-4)


def test_gradcam_plus_plus_weighs_by_equation_19_of_its_paper(model, images):
    """Regression: the package adds 1e-6 to squared gradients, which are smaller here, so that the
    weights became cubes of the gradients. By hand in float64 (arXiv 1710.11063)."""
    double = random_model().double()
    features = double.features(images.double())
    a = torch.stack([head.sa(features) for head in double.heads], dim=1).detach()
    a.requires_grad_()  # (N, K, 512, h, w)
    heads = torch.stack([head.ca(x) for head, x in zip(double.heads, a.unbind(1), strict=True)], 1)
    logits = double.bn(double.fc(heads.log_softmax(dim=1).sum(dim=1)))
    (g,) = torch.autograd.grad(logits.max(dim=1).values.sum(), a)
    alpha = g**2 / (2 * g**2 + a.sum(dim=(3, 4), keepdim=True) * g**3)
    weights = (g.clamp(min=0) * alpha.nan_to_num()).sum(dim=(3, 4), keepdim=True)
    expected = (weights * a).sum(dim=2).clamp(min=0).detach().numpy()
    np.testing.assert_allclose(
        normalize(head_maps(model, images).maps), normalize(expected), atol=1e-3
    )


def test_eigencam_does_not_depend_on_the_arbitrary_sign_of_a_component(model, images, monkeypatch):
    """Regression: with the wrong sign a map shows what the head does not attend to."""
    maps = head_maps(model, images, method="eigencam").maps
    svd = torch.linalg.svd

    def other_signs(x, **how):
        left, values, right = svd(x, **how)
        return type(svd(x, **how))((-left, values, -right))

    monkeypatch.setattr(torch.linalg, "svd", other_signs)
    np.testing.assert_allclose(head_maps(model, images, method="eigencam").maps, maps, rtol=1e-5)
    energy = model.cat_head1.sa(model(images).features).sum(dim=1).detach().numpy()
    for own, total in zip(maps[:, 1], energy, strict=True):
        assert np.corrcoef(own.ravel(), total.ravel())[0, 1] > 0.5


def test_attention_is_the_spatial_attention_map(model, images):
    maps = head_maps(model, images, method="attention").maps
    features = model(images).features
    for i, head in enumerate(model.heads):
        expected = head.sa.attention_map(features)[:, 0].detach()
        np.testing.assert_array_equal(maps[:, i], expected.numpy())


def test_all_heads_take_one_pass_and_leave_the_model_as_it_was(images):
    model, forward, backward = random_model(), [], []
    hooks = [model.features.register_forward_hook(lambda *_: forward.append(1))]
    hooks.append(model.bn.register_full_backward_hook(lambda *_: backward.append(1)))
    with torch.no_grad():  # as users of a trained model may well do
        maps = head_maps(model, images).maps
    for hook in hooks:
        hook.remove()
    assert (len(forward), len(backward)) == (1, 1)
    with pytest.raises(RuntimeError):
        head_maps(model, torch.randn(2, 4, 64, 64))  # four channels
    assert not any(module._forward_hooks for module in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    alone = head_maps(model.requires_grad_(False), images[1:2]).maps
    np.testing.assert_allclose(alone, maps[1:2], rtol=1e-3)


def test_targets_are_the_predicted_classes_unless_given(model, images):
    logits = model(images).logits.detach()
    predicted = logits.argmax(dim=1).tolist()
    other = (predicted[1] + 1) % 5
    mixed = head_maps(model, images, targets=[None, other, None])
    assert mixed.targets.tolist() == [predicted[0], other, predicted[2]]
    plain = head_maps(model, images)
    assert plain.targets.tolist() == predicted
    assert np.allclose(mixed.maps[::2], plain.maps[::2])
    assert not np.allclose(mixed.maps[1], plain.maps[1])
    torch.testing.assert_close(plain.probabilities, logits.softmax(dim=1))


def test_networks_that_differ(images):
    """A head with other spatial attention has maps by gradients; without heads there is one map,
    of the last block."""
    model = random_model()
    model.cat_head0.sa = torch.nn.Conv2d(512, 512, 1)
    assert head_maps(model, images).maps[:, 0].any()
    baseline = DAN(num_class=5, num_head=0).eval()
    maps = head_maps(baseline, images, method="gradcam", targets=[0, 3, 1]).maps[:, 0]
    features = baseline(images).features.detach()
    for i, target in enumerate((0, 3, 1)):
        expected = torch.einsum("c,chw->hw", baseline.fc.weight[target], features[i]) / 9
        np.testing.assert_allclose(maps[i], expected.relu().detach(), atol=1e-5)


def test_normalize_stretches_each_map_separately():
    maps = np.stack([[[1, 3], [2, 1]], [[7, 7], [7, 7]], [[0, 0], [0, 1e-30]]])
    expected = [[[0, 1], [0.5, 0]], [[0, 0], [0, 0]], [[0, 0], [0, 1]]]
    np.testing.assert_allclose(normalize(maps.astype(np.float32)), expected)


def explained(name: str, size: tuple[int, int] = (100, 100)) -> ExplainedFace:
    """A grey face with two maps: the upper right corner, and nothing."""
    maps = np.zeros((2, 3, 3), np.float32)
    maps[0, 0, 2] = 1
    return ExplainedFace(name, Image.new("RGB", size, "grey"), maps, "fear", 0.987, "anger", "cam")


def test_maps_are_bright_where_they_are_high_and_say_so_where_they_are_empty():
    page = np.asarray(draw_page([explained("face")], 288).convert("L"), int)
    high, empty = page[60:330, 570:840], page[60:330, 868:1138]
    assert high[:80, 190:].mean() > 140 and high[135:, :135].max() < 80
    assert empty.max() > 250 and np.median(empty) < 80  # white letters on a dark panel


def test_overview_has_pages_and_files_may_have_any_name_and_shape(tmp_path):
    names = ["two\nlines", "a $x^2$", "\N{GRINNING FACE}", "long" * 40, *map(str, range(14))]
    faces = (explained(name, (30 + 20 * i, 90)) for i, name in enumerate(names))
    assert write_pictures(faces, tmp_path) == 18
    pages = {"overview.jpg", "overview_2.jpg"}
    assert {path.name for path in tmp_path.iterdir()} == pages | files_of(*names)
    assert draw_page([explained("caf\udce9")], 128).width >= 500


def files_of(*names: str) -> set[str]:
    endings = ("head0_cam", "head1_cam", "sheet")
    return {f"{name}_{ending}.jpg" for name in names for ending in endings}


def save_untrained(path: Path, data: Path, running_var: float = 1.0) -> Path:
    """Write a checkpoint as training does."""
    torch.manual_seed(0)
    model = DAN(num_class=7, num_head=2)
    model.bn.running_var.fill_(running_var)
    config = {"raf_path": str(data), "image_size": 64, "toy": True}
    content = {"class_names": list(RAFDB), "dataset": "RAF-DB", "config": config}
    checkpoint.save(path, {"model_state_dict": model.state_dict(), **content})
    return path


@pytest.fixture(scope="module")
def best(tmp_path_factory, toy_raf) -> Path:
    return save_untrained(tmp_path_factory.mktemp("run") / "best.pth", toy_raf)


def run(best: Path, flags: str) -> None:
    run_grad_cam.main(["--checkpoint", str(best), "--device", "cpu", *flags.split()])


def test_default_images_are_spread_over_the_test_images(best, toy_raf, tmp_path, capsys):
    for size in (1, 3):
        run(best, f"--limit 3 --target label --batch_size {size} --output {tmp_path / str(size)}")
    split = read_rafdb(toy_raf).val
    files = files_of(*(split.path(i).stem for i in (0, 10, 20))) | {"overview.jpg"}
    assert {path.name for path in (tmp_path / "1").iterdir()} == files
    out, err = capsys.readouterr()
    assert "images: 3 of 3, heads: 2, gradcam++" in out and err == ""
    for name in files:  # whatever the batch size
        one, three = (read_rgb(tmp_path / size / name).astype(int) for size in "13")
        assert abs(one - three).mean() < 1


def test_images_of_any_kind_by_file_and_folder(best, toy_raf, tmp_path, capsys):
    photos, output = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (50, 200, 3), np.uint8)
    Image.fromarray(noise).save(photos / "wide.png")
    Image.fromarray(noise[:, :, 0].T).save(photos / "tall grey.png")
    (photos / "broken.jpg").write_bytes(b"no image")
    face = read_rafdb(toy_raf).val.path(3)
    run(best, f"--output {output} --target fear --images {photos} {face} {tmp_path}/missing.jpg")
    files = files_of("wide", "tall grey", face.stem) | {"overview.jpg"}
    assert {path.name for path in output.iterdir()} == files
    assert read_rgb(output / "wide_head0_cam.jpg").shape == (256, 1024, 3)
    out, err = capsys.readouterr()
    skipped = [line for line in err.splitlines() if line.startswith("skipped: ")]
    assert "images: 3 of 4" in out
    assert len(skipped) == 2 and "missing.jpg" in skipped[0] and "broken.jpg" in skipped[1]
    run(best, f"--output {output} --images {face} --method attention")
    with pytest.raises(UserError, match="none of the 1 image"):
        run(best, f"--output {output} --images {photos}/broken.jpg")


@pytest.mark.parametrize("target", ["label", "fear"])
def test_target_is_each_images_label_or_a_named_class(best, target):
    trained = checkpoint.read_trained(best)
    args = run_grad_cam.parse(["--checkpoint", str(best), "--limit", "3", "--target", target])
    faces = run_grad_cam.choose_faces(trained, args)
    for face in run_grad_cam.explain(trained, faces, args, torch.device("cpu")):
        assert face.method == f"gradcam++, {face.label if target == 'label' else target}"


def test_labels_are_known_where_the_image_is_of_the_data_set(best, toy_raf, tmp_path):
    split = read_rafdb(toy_raf).val
    name, other = split.path(7).name, split.path(8).name
    (tmp_path / "link").symlink_to(split.path(7).parent)
    (tmp_path / name).touch()
    paths = [split.path(7), tmp_path / "link" / other, tmp_path / name]
    args = run_grad_cam.parse(["--checkpoint", str(best), "--images", *map(str, paths)])
    faces = run_grad_cam.choose_faces(checkpoint.read_trained(best), args)
    assert [face.label for face in faces] == [split.labels[7], split.labels[8], None]


def test_test_images_of_a_data_set_of_three_splits(tmp_path):
    for split, shade in (("train", 0), ("val", 1), ("test", 2)):
        for name in "ab":
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("L", (8, 8), shade).save(tmp_path / split / name / "0.png")
    config, file = {"aff_path": str(tmp_path)}, tmp_path / "best.pth"
    trained = SimpleNamespace(config=config, path=file, class_names=("a", "b"), toy=False)
    args = run_grad_cam.parse(["--checkpoint", str(file)])
    faces = run_grad_cam.choose_faces(trained, args)
    assert [face.file for face in faces] == [tmp_path / "test" / n / "0.png" for n in "ab"]
    args = run_grad_cam.parse(["--checkpoint", str(file), "--images", str(tmp_path / "test/b")])
    assert [face.label for face in run_grad_cam.choose_faces(trained, args)] == [1]


def test_mistakes_are_user_errors(best, toy_raf, photo, tmp_path):
    nan = save_untrained(tmp_path / "nan.pth", toy_raf, running_var=-1.0)
    for file, flags, words in (
        (best, "--target joy", "--target joy: unknown"),
        (best, f"--target label --images {photo}", "its label is unknown"),
        (best, f"--output {best}", "cannot be written"),
        (nan, f"--output {tmp_path} --limit 1", "NaN"),
    ):
        with pytest.raises(UserError, match=words):
            run(file, flags)
    with pytest.raises(SystemExit):
        run(best, "--method attention --target fear")
