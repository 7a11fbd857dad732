"""Results that cannot be written: one error that names the file, from every place that writes."""

import contextlib
import json
import os
import resource
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import demo
import rafdb
import run_grad_cam
from tests.affectnet_layouts import GOOD, snapshot, tree, write_manual_release, write_npy_release
from utils.convert_affectnet import convert
from utils.errors import UserError
from utils.map_sheets import Explained, Overview, write_pictures
from utils.outputs import JsonLines, check_file, check_folder, make_folder, writing
from utils.plots import plot_confusion, plot_curves, plot_tsne
from utils.toy_faces import main as toy_faces
from utils.toy_faces import write_affectnet, write_rafdb
from utils.video import VIDEO_SUFFIXES, VideoWriter

WITHOUT_SPACE = Path("/dev/full")  # Linux' device on which no byte finds room
needs_device = pytest.mark.skipif(not WITHOUT_SPACE.exists(), reason="no /dev/full here")


@contextlib.contextmanager
def largest_file(size: int):
    """Writing stops at a size in bytes, as it does on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def full_disk(tmp_path):
    """A disk of its own of 300 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root may mount a disk")
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting is not allowed here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def error_of(action, *args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        action(*args, **kwargs)
    return str(caught.value)


# ---- the checks ----------------------------------------------------------------------------------


def test_writing_names_the_file_and_the_reason(tmp_path):
    with pytest.raises(UserError, match=r"^out/x\.csv: cannot be written \(No such file"):
        with writing("out/x.csv"):
            (tmp_path / "nowhere" / "x.csv").write_text("x")
    with pytest.raises(UserError, match=r"cannot be written \(of\s? no number\); ask somebody$"):
        with writing("x", "ask somebody"):
            raise OSError("of\nno number")
    with pytest.raises(BrokenPipeError), writing("x"):
        raise BrokenPipeError
    with pytest.raises(ValueError), writing("x"):
        raise ValueError


def test_checks_make_nothing(tmp_path):
    for path in ("new", "new/deep/er"):
        assert check_folder(tmp_path / path) == tmp_path / path
        assert check_file(tmp_path / path) == tmp_path / path
    (tmp_path / "file").write_text("mine")
    assert check_file(tmp_path / "file") == tmp_path / "file"
    (tmp_path / "link").symlink_to("nowhere")
    for path in ("file", "file/x", "link", "link/x"):
        assert "cannot be written" in error_of(check_folder, tmp_path / path)
    for path in ("file/x", "link/x"):
        assert str(tmp_path / path) in error_of(check_file, tmp_path / path)
    assert "is a folder" in error_of(check_file, tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["file", "link"]
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_is_made_and_left_empty(tmp_path):
    assert make_folder(tmp_path / "a/b") == tmp_path / "a/b"
    assert os.listdir(tmp_path / "a/b") == []
    (tmp_path / "file").touch()
    assert "cannot be written" in error_of(make_folder, tmp_path / "file")


# ---- one file, by itself -------------------------------------------------------------------------

CURVE = {"epoch": 1, "loss": 1, "cross_entropy": 1, "affinity": 0, "partition": 0}
CURVE |= {"train_accuracy": 0.5, "val_accuracy": 0.5, "val_balanced_accuracy": 0.5}
DRAWN = Explained("a", np.zeros((40, 40, 3), np.uint8), np.zeros((1, 2, 2)), "x", 0.5, None, "cam")


def overview(folder: Path) -> None:
    pages = Overview(folder)
    pages.add(DRAWN)
    pages.finish()


WRITERS = {  # file -> what writes it into a folder
    "curves.png": lambda folder: plot_curves([CURVE], folder / "curves.png", title="x"),
    "confusion.png": lambda folder: plot_confusion(
        np.eye(2), "ab", folder / "confusion.png", title="x"
    ),
    "tsne.png": lambda folder: plot_tsne(
        np.eye(2), np.arange(2), "ab", folder / "tsne.png", title="t-SNE"
    ),
    "a_head0_cam.jpg": lambda folder: write_pictures(DRAWN, folder),
    "a_sheet.jpg": lambda folder: write_pictures(DRAWN, folder),
    "overview.jpg": overview,
    "faces.jsonl": lambda folder: write_lines(folder / "faces.jsonl", 1),
    "sheet.png": lambda folder: toy_faces(["--sheet", str(folder / "sheet.png")]),
}


def write_lines(path: Path, count: int) -> None:
    with JsonLines(path) as lines:
        for number in range(count):
            lines.add({"number": number})


@needs_device
@pytest.mark.parametrize("name", WRITERS)
def test_no_space_for_a_file(name, tmp_path):
    (tmp_path / name).symlink_to(WITHOUT_SPACE)
    error = error_of(WRITERS[name], tmp_path)
    assert error.startswith(f"{tmp_path / name}: cannot be written (No space left on device)")


@pytest.mark.parametrize("name", ["curves.png", "confusion.png", "tsne.png", "overview.jpg"])
def test_the_folder_has_gone(name, tmp_path):
    error = error_of(WRITERS[name], tmp_path / "gone")
    assert error.startswith(f"{tmp_path / 'gone' / name}: cannot be written (No such file")


@pytest.mark.parametrize("name", WRITERS)
def test_space_for_all_but_the_last_byte(name, tmp_path, capsys):
    """Pillow's JPEG files would be cut short without a word."""
    WRITERS[name](tmp_path)
    with largest_file((tmp_path / name).stat().st_size - 1):
        error = error_of(WRITERS[name], tmp_path)
    # Of two files that are written the larger one fails.
    assert error.startswith(f"{tmp_path}{os.sep}") and "cannot be written (File too large)" in error


def test_lines_until_the_disk_is_full_are_whole(tmp_path):
    path = tmp_path / "faces.jsonl"
    with largest_file(100):
        error = error_of(write_lines, path, 20)
    assert error.startswith(f"{path}: cannot be written (File too large)")
    *lines, _ = path.read_text().split("\n")
    assert [json.loads(line)["number"] for line in lines] == list(range(len(lines)))
    assert len(lines) > 3


@pytest.mark.parametrize("suffix", VIDEO_SUFFIXES)
@pytest.mark.parametrize("share", [0.3, 0.95])
def test_a_video_that_is_cut_off_is_no_success(suffix, share, tmp_path):
    """OpenCV says nothing when it cannot write."""
    noise = np.random.default_rng(0).integers(0, 255, (20, 48, 64, 3), np.uint8)

    def write(path: Path) -> None:
        writer = VideoWriter(path, 10.0, (64, 48))
        for frame in noise:
            writer.write(frame)
        writer.close()

    whole = tmp_path / f"whole{suffix}"
    write(whole)
    path = tmp_path / f"clip{suffix}"
    with largest_file(int(share * whole.stat().st_size)):
        assert error_of(write, path).startswith(f"{path}: ")


def test_a_video_whose_folder_has_gone(tmp_path):
    (tmp_path / "out").mkdir()
    writer = VideoWriter(tmp_path / "out/clip.mp4", 10.0, (64, 48))
    writer.write(np.zeros((48, 64, 3), np.uint8))
    shutil.rmtree(tmp_path / "out")
    assert error_of(writer.close).startswith(f"{tmp_path / 'out/clip.mp4'}: cannot be written")


# ---- whole scripts -------------------------------------------------------------------------------


@needs_device
@pytest.mark.parametrize(
    "name", ["metrics.json", "predictions.csv", "confusion_matrix.png", "tsne.png"]
)
def test_evaluation_without_space(name, small_run, toy_raf, tmp_path):
    (tmp_path / name).symlink_to(WITHOUT_SPACE)
    flags = f"--evaluate --tsne --workers 0 --device cpu --output_dir {tmp_path}"
    flags += f" --checkpoint {small_run / 'best.pth'} --raf_path {toy_raf}"
    error = error_of(rafdb.main, flags.split())
    assert error.startswith(f"{tmp_path / name}: cannot be written (No space left on device)")


@needs_device
@pytest.mark.parametrize("name", ["photo_emotions.jpg", "o.jsonl"])
def test_demo_without_space(name, checkpoint_file, photo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(photo, "photo.jpg")
    Path("out").mkdir()
    Path("out", name).symlink_to(WITHOUT_SPACE)
    flags = ["--image", "photo.jpg", "--output", "out", "--json", "out/o.jsonl", "--checkpoint"]
    error = error_of(demo.main, [*flags, str(checkpoint_file(8, "affecnet8_epoch5_acc0.6209.pth"))])
    assert error.startswith(f"out/{name}: cannot be written (No space left on device)")


def test_heat_maps_on_a_full_disk(small_run, toy_raf, full_disk):
    flags = f"--checkpoint {small_run / 'best.pth'} --method attention --output {full_disk / 'cam'}"
    error = error_of(run_grad_cam.main, flags.split())
    assert "_aligned_" in error and "cannot be written (No space left on device)" in error


@pytest.mark.parametrize("write", [write_rafdb, write_affectnet])
def test_a_toy_set_on_a_full_disk_leaves_nothing(write, full_disk):
    root = full_disk / "deep" / "set"
    error = error_of(write, root, train=100, **{"test" if write is write_rafdb else "val": 30})
    assert error.startswith(f"{root}: cannot be written (")
    assert os.listdir(full_disk / "deep") == []


@pytest.mark.parametrize(
    ("kind", "limit"), [("npy", 200), ("npy", 2000), ("manual", 0), ("manual", 200)]
)
def test_a_conversion_continues_once_there_is_room(kind, limit, tmp_path, capsys):
    """What does not fit is an image, a list, the margin, a crop."""
    source, output, whole = tmp_path / "source", tmp_path / "out", tmp_path / "whole"
    source.mkdir()
    if kind == "npy":
        write_npy_release(source, [*range(8)] * 6, [*range(8)])
    else:
        write_manual_release(source, [GOOD, ("a/2.jpg", 1, 1, 9, 9, 3)], [GOOD])
    convert(source, output=whole, copy=True, workers=1)
    before = snapshot(source)
    with largest_file(limit):
        error = error_of(convert, source, output=output, copy=True, workers=1)
    assert error.startswith(f"{output}: cannot be written (File too large); make room")
    assert error.endswith("then run again to continue")
    convert(source, output=output, copy=True, workers=1)
    assert tree(output) == tree(whole) and snapshot(source) == before
    assert [path for path in output.rglob("*.tmp")] == []


def test_crops_of_several_processes_on_a_full_disk(full_disk, tmp_path):
    rows = [(f"a/{i}.jpg", 10, 10, 50, 50, i % 8) for i in range(200)]
    write_manual_release(tmp_path, rows, [GOOD])
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 100, 3), np.uint8))
    for row in rows:
        noise.save(tmp_path / "Manually_Annotated_Images" / row[0])
    error = error_of(convert, tmp_path, output=full_disk, workers=2)
    assert error.startswith(f"{full_disk}: cannot be written (No space left on device)")
