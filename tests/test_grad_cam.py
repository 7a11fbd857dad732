"""run_grad_cam.py from its flags to its pictures."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import run_grad_cam
from networks.dan import DAN
from utils import checkpoint
from utils.images import read_rgb
from utils.labels import RAFDB
from utils.map_sheets import Explained, Overview, draw_sheet, overlay, write_pictures
from utils.readers import read_rafdb
from utils.toy_faces import write_rafdb
from utils.trained import read_trained

pytestmark = pytest.mark.filterwarnings("error")
NUM_HEAD = 2


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data") / "raf-basic"
    write_rafdb(root, train=14, test=20)
    return root


def save_checkpoint(path: Path, num_head: int = NUM_HEAD, **content) -> Path:
    torch.manual_seed(0)
    model = DAN(num_class=7, num_head=num_head)
    checkpoint.save(path, {"model_state_dict": model.state_dict(), **content})
    return path


@pytest.fixture(scope="module")
def best(tmp_path_factory, data) -> Path:
    """An untrained network in a checkpoint as training writes it."""
    return save_checkpoint(
        tmp_path_factory.mktemp("run") / "best.pth",
        class_names=list(RAFDB),
        dataset="RAF-DB",
        config={"raf_path": str(data), "image_size": 64, "toy": True},
    )


def names_of(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def files_of(*names: str, num_head: int = NUM_HEAD) -> set[str]:
    heads = {f"{name}_head{i}_cam.jpg" for name in names for i in range(num_head)}
    return heads | {f"{name}_sheet.jpg" for name in names} | {"overview.jpg"}


def test_default_images_are_spread_over_the_test_images(best, tmp_path, capsys):
    run_grad_cam.main(
        ["--checkpoint", str(best), "--output", str(tmp_path), "--limit", "3", "--target", "label"]
    )
    names = ("test_0001_aligned", "test_0011_aligned", "test_0020_aligned")
    assert names_of(tmp_path) == files_of(*names)
    out, err = capsys.readouterr()
    assert "images: 3, heads: 2, gradcam++" in out and err == ""


def test_batches_do_not_change_the_maps(best, tmp_path):
    for batch_size in ("1", "3"):
        argv = ["--checkpoint", str(best), "--limit", "3", "--batch_size", batch_size]
        run_grad_cam.main([*argv, "--output", str(tmp_path / batch_size)])
    for path in (tmp_path / "1").iterdir():
        other = read_rgb(tmp_path / "3" / path.name)
        assert abs(read_rgb(path).astype(int) - other).mean() < 1


@pytest.mark.parametrize("method", [m for m in run_grad_cam.METHODS if m != "gradcam++"])
def test_every_method_writes_its_pictures(method, data, tmp_path, capsys):
    path = save_checkpoint(
        tmp_path / "best.pth",
        num_head=1,
        class_names=list(RAFDB),
        dataset="RAF-DB",
        config={"raf_path": str(data), "image_size": 32},
    )
    output = tmp_path / "out"
    run_grad_cam.main(
        ["--checkpoint", str(path), "--output", str(output), "--limit", "1", "--method", method]
    )
    assert names_of(output) == files_of("test_0001_aligned", num_head=1)
    assert capsys.readouterr().err == ""


def test_images_of_any_kind_by_file_and_folder(best, data, tmp_path, capsys):
    rng = np.random.default_rng(0)
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.fromarray(rng.integers(0, 255, (50, 200, 3), np.uint8)).save(photos / "wide.png")
    Image.fromarray(rng.integers(0, 255, (300, 90), np.uint8)).save(photos / "tall grey.png")
    (photos / "broken.jpg").write_bytes(b"no image")
    face = data / "Image" / "aligned" / "test_0004_aligned.jpg"
    output = tmp_path / "out"
    run_grad_cam.main(
        ["--checkpoint", str(best), "--output", str(output), "--target", "fear"]
        + ["--images", str(photos), str(face), str(tmp_path / "missing.jpg")]
    )
    assert names_of(output) == files_of("wide", "tall grey", "test_0004_aligned")
    out, err = capsys.readouterr()
    assert "images: 3 of 4" in out
    skipped = [line for line in err.splitlines() if line.startswith("skipped: ")]
    assert len(skipped) == 2 and "missing.jpg" in skipped[0] and "broken.jpg" in skipped[1]
    for name, shape in (("wide", (256, 1024)), ("tall grey", (1024, 307))):
        picture = read_rgb(output / f"{name}_head0_cam.jpg")
        assert picture.shape[:2] == shape  # the picture's aspect, at a size one can look at


def test_equal_names_do_not_overwrite_each_other(best, data, tmp_path):
    paths = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        paths.append(tmp_path / folder / "face.jpg")
        paths[-1].write_bytes((data / "Image/aligned/test_0001_aligned.jpg").read_bytes())
    run_grad_cam.main(
        ["--checkpoint", str(best), "--output", str(tmp_path / "out"), "--images"]
        + list(map(str, paths))
    )
    assert names_of(tmp_path / "out") == files_of("a_face", "b_face")


def test_labels_are_known_where_the_image_is_of_the_data_set(best, data):
    trained = read_trained(best)
    split = read_rafdb(data).val
    inside, outside = split.path(7), best
    chosen = run_grad_cam.choose_pictures(trained, [str(inside), str(outside)], None, "out")
    assert [picture.label for picture in chosen] == [split.labels[7], None]


def test_released_file_looks_for_its_data_where_it_belongs(data, tmp_path, monkeypatch):
    path = save_checkpoint(tmp_path / "rafdb_epoch21_acc0.897_bacc0.8275.pth", iter=21)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "raf-basic").symlink_to(data)
    run_grad_cam.main(["--checkpoint", path.name, "--limit", "1", "--method", "attention"])
    assert names_of(tmp_path / "cam_result") == files_of("test_0001_aligned")


def test_dataset_flag_names_the_classes(data, tmp_path):
    path = save_checkpoint(tmp_path / "mine.pth")
    face = data / "Image" / "aligned" / "test_0001_aligned.jpg"
    argv = ["--checkpoint", str(path), "--images", str(face), "--output", str(tmp_path / "out")]
    run_grad_cam.main([*argv, "--dataset", "AffectNet", "--target", "happy"])
    assert names_of(tmp_path / "out") == files_of("test_0001_aligned")


# ---- drawing -------------------------------------------------------------------------------------


def explained(name: str = "face", size: tuple[int, int] = (60, 100), num_head: int = 6):
    maps = np.zeros((num_head, 3, 3), np.float32)
    maps[0, 0, 2] = 1
    return Explained(
        name=name,
        image=np.full((*size, 3), 128, np.uint8),
        maps=maps,
        prediction="happiness",
        probability=0.987,
        label="fear",
        explains="gradcam++, happiness",
    )


def test_overlay_is_bright_where_the_map_is_high():
    picture = overlay(Image.new("RGB", (90, 60), "white"), explained().maps[0])
    light = np.asarray(picture.convert("L"), int)
    assert picture.size == (90, 60)
    assert light[:10, 80:].min() > light[30:, :45].max() + 50


def test_a_map_without_evidence_says_so():
    """Its panel would look like a picture that is simply dark; the last head has such a map."""
    sheet = np.asarray(draw_sheet(explained(num_head=2, size=(100, 100))), int)
    none = sheet[100:370, -20 - 288 : -25]
    assert none.max() > 250  # white letters
    assert np.median(none) < 80


@pytest.mark.parametrize("name", ["two\nlines", "caf\udce9", "\N{GRINNING FACE}", ""])
def test_a_sheet_of_a_picture_of_any_name(name, tmp_path):
    assert all(path.is_file() for path in write_pictures(explained(name), tmp_path))


def test_sheet_has_all_heads_and_the_overview_has_pages(tmp_path):
    paths = write_pictures(explained(), tmp_path)
    assert [path.name for path in paths] == [f"face_head{i}_cam.jpg" for i in range(6)] + [
        "face_sheet.jpg"
    ]
    overview = Overview(tmp_path)
    for i in range(33):
        overview.add(explained(name=f"{i} {'long' * 20}", size=(20 + i, 40)))
    pages = [path.name for path in overview.finish()]
    assert pages == ["overview.jpg", "overview_2.jpg", "overview_3.jpg"]
    assert names_of(tmp_path) >= set(pages)
    assert overview.count == 33


def test_pictures_of_earlier_runs_are_counted(best, tmp_path, capsys):
    argv = ["--checkpoint", str(best), "--output", str(tmp_path), "--method", "attention"]
    run_grad_cam.main([*argv, "--limit", "3"])
    run_grad_cam.main([*argv, "--limit", "3"])
    assert capsys.readouterr().err == ""
    (tmp_path / "mine.jpg").touch()
    run_grad_cam.main([*argv, "--limit", "2"])
    # Of the three pictures the middle one is left: a map a head, and its sheet.
    assert f"also holds {NUM_HEAD + 1} pictures of earlier runs" in capsys.readouterr().err
