import json
import os
import shutil
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

import demo
from networks.dan import DAN
from tests import golden
from utils import views
from utils.errors import UserError
from utils.faces import HaarCascade
from utils.images import read_rgb
from utils.labels import AFFECTNET, RAFDB
from utils.video import VIDEO_SUFFIXES, VideoReader, VideoWriter

RELEASED = "affecnet8_epoch5_acc0.6209.pth"


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """An empty folder with a models/ of its own to run in."""
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True, scope="module")
def load_once():
    """The same network for all tests here that ask for the same one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "load", lru_cache(demo.load))
        yield


@pytest.fixture
def checkpoint(checkpoint_file):
    return str(checkpoint_file(8, RELEASED))


@pytest.fixture
def run(checkpoint, capsys):
    """Runs the demo with the released-form checkpoint: (exit code, stdout, stderr)."""

    def run(*argv):
        code = demo.main([*map(str, argv), "--checkpoint", checkpoint])
        return code, *capsys.readouterr()

    return run


def records(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def group_photo(photo, path):
    """Two faces side by side, 300 and 200 pixels wide pictures on grey."""
    picture = Image.new("RGB", (600, 400), (110, 110, 110))
    picture.paste(Image.open(photo).resize((300, 350)), (0, 20))
    picture.paste(Image.open(photo).resize((200, 234)), (380, 100))
    picture.save(path)
    return path


def write_clip(photo, path, frames=5):
    face = np.asarray(Image.open(photo).convert("RGB").resize((256, 300)))
    writer = VideoWriter(path, 10.0, (256, 300))
    for i in range(frames):
        writer.write(np.roll(face, i, axis=1))
    writer.close()
    return path


def blank(path):
    Image.new("RGB", (120, 100), (90, 90, 90)).save(path)
    return path


@lru_cache
def plain_network(num_class):
    model = DAN(num_class=num_class)
    model.load_state_dict(golden.state_dict(model))
    return model.eval()


def expected_probabilities(path, box, num_class=8):
    """By torchvision's transforms and the plain network, one face alone."""
    x, y, w, h = box
    face = Image.open(path).convert("RGB").crop((x, y, x + w, y + h))
    transform = transforms.Compose(
        [
            transforms.Resize((224, 224)),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    with torch.no_grad():
        return plain_network(num_class)(transform(face)[None]).logits.softmax(dim=1)[0].numpy()


# ---- photos ------------------------------------------------------------------------------------


def test_one_photo_prints_its_face_as_the_released_demo_does(run, photo, checkpoint):
    code, out, err = run("--image", photo)
    assert code == 0 and err == ""
    first, line = out.splitlines()
    assert checkpoint in first and "8 classes" in first and "Haar" in first
    assert str(photo) in line and "box [" in line and line.endswith(" %")
    assert any(f"emotion label: {name} " in line for name in AFFECTNET)


def test_probabilities_are_those_of_the_plain_network(run, photo):
    run("--image", photo, "--json", "o.jsonl")
    (record,) = records("o.jsonl")
    expected = expected_probabilities(photo, record["box"])
    assert list(record["probabilities"]) == list(AFFECTNET)
    np.testing.assert_allclose(list(record["probabilities"].values()), expected, atol=1e-4)
    assert record["label"] == AFFECTNET[expected.argmax()]
    assert record["probability"] == max(record["probabilities"].values())
    assert record["file"] == str(photo)


def test_all_faces_of_a_photo_are_printed(run, photo):
    path = group_photo(photo, "group.png")
    code, out, _ = run("--image", path, "--json", "o.jsonl", "--output", "out")
    assert code == 0
    assert "group.png: face 1 of 2 box" in out and "group.png: face 2 of 2 box" in out
    left, right = records("o.jsonl")
    assert left["box"][0] < 300 < right["box"][0]
    for record in (left, right):
        expected = expected_probabilities(path, record["box"])
        np.testing.assert_allclose(list(record["probabilities"].values()), expected, atol=1e-4)


def test_whole_image_takes_the_picture_as_the_face(run, workplace):
    blank("a.png")
    code, out, _ = run("--image", "a.png", "--whole_image", "--json", "o.jsonl", "--top", 3)
    assert code == 0 and "whole images" in out
    (record,) = records("o.jsonl")
    assert record["box"] == [0, 0, 120, 100]
    expected = expected_probabilities("a.png", record["box"])
    np.testing.assert_allclose(list(record["probabilities"].values()), expected, atol=1e-4)
    best, second, third = (AFFECTNET[i] for i in np.argsort(-expected)[:3])
    line = out.splitlines()[1]
    assert line.index(f"label: {best}") < line.index(f"({second}") < line.index(third, 40)


def test_margin_widens_the_box(photo):
    narrow, wide = (
        demo.finder(HaarCascade(), margin)(read_rgb(photo))[0].box[2] for margin in (0, 0.2)
    )
    assert wide == pytest.approx(1.4 * narrow, abs=1)


def test_many_files_are_classified_in_batches_and_keep_their_order(run, photo, workplace):
    """Several files to a batch of the network, with pictures without a face between."""
    (workplace / "photos" / "deeper").mkdir(parents=True)
    for i in range(0, 10, 2):
        shutil.copy(photo, f"photos/{i}.jpg")
        blank(f"photos/{i + 1}.png")
    shutil.copy(photo, "photos/deeper/a.jpg")
    Path("photos/notes.txt").write_text("no image, and not listed")
    code, out, err = run("--image", "photos", "--json", "o.jsonl")
    assert code == 0 and err == ""
    files = [line.split(":")[0] for line in out.splitlines()[1:]]
    assert files == [
        str(p) for p in sorted(Path("photos").rglob("*")) if p.suffix in (".jpg", ".png")
    ]
    assert out.count("no face found") == 5
    expected = expected_probabilities(photo, records("o.jsonl")[0]["box"])
    for record in records("o.jsonl"):
        np.testing.assert_allclose(list(record["probabilities"].values()), expected, atol=1e-3)


# ---- exit codes --------------------------------------------------------------------------------


def test_no_face_in_any_file_is_exit_code_1(run):
    code, out, _ = run("--image", blank("a.png"), "--output", "out")
    assert code == 1
    assert "a.png: no face found" in out
    assert list(Path("out").iterdir()) == []


def test_unreadable_files_are_a_line_each_and_the_rest_goes_on(run, photo):
    Path("empty.jpg").touch()
    Path("cut.jpg").write_bytes(photo.read_bytes()[:9000])
    Path("text.mp4").write_text("no video")
    Path("folder").mkdir()
    names = ["empty.jpg", "cut.jpg", "text.mp4", "folder", "missing.png"]
    code, out, err = run("--image", *names, photo)
    assert code == 0 and "emotion label" in out
    lines = err.splitlines()
    assert len(lines) == len(names)
    assert all(any(name in line for line in lines) for name in names)


def test_as_a_program(photo, checkpoint, workplace):
    """One photo imports nothing that it does not need."""
    script = Path(demo.__file__)
    code = (
        "import sys, runpy; sys.argv = sys.argv[1:]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally: print([m for m in ('sklearn', 'matplotlib', 'pandas', 'utils.engine') "
        "if m in sys.modules])"
    )
    program = [sys.executable, "-c", code, str(script), "--checkpoint", checkpoint, "--image"]
    environment = {**os.environ, "PYTHONPATH": str(script.parent)}
    kind = {"capture_output": True, "text": True, "env": environment, "cwd": workplace}
    good = subprocess.run([*program, str(photo)], **kind)
    assert good.returncode == 0, good.stderr
    assert "emotion label: " in good.stdout and good.stdout.endswith("[]\n")


# ---- checkpoints -------------------------------------------------------------------------------


def test_without_checkpoint_the_released_file_then_the_newest_run(checkpoint_file, photo, capsys):
    for age, run in ((200, "old"), (100, "new")):
        Path("models", run).mkdir()
        best = shutil.copy(checkpoint_file(7, "best.pth", ours=True), f"models/{run}/best.pth")
        os.utime(best, (1e9 - age, 1e9 - age))
    demo.main(["--image", str(photo)])
    out = capsys.readouterr().out
    assert out.startswith("models/new/best.pth (RAF-DB, 7 classes")
    assert any(f"emotion label: {name} " in out for name in RAFDB)
    shutil.copy(checkpoint_file(8, RELEASED), "models")
    demo.main(["--image", str(photo)])
    assert capsys.readouterr().out.startswith(f"models/{RELEASED} (AffectNet, 8 classes")


def test_without_any_checkpoint_the_error_says_where_to_get_one(photo):
    with pytest.raises(UserError, match=r"drive\.google.*rafdb\.py.*--toy"):
        demo.main(["--image", str(photo)])


def test_the_data_set_names_the_classes(checkpoint_file, photo, capsys):
    path = str(checkpoint_file(7, "downloaded.pth"))
    labels = {}
    for dataset, names in (("RAF-DB", RAFDB), ("AffectNet", AFFECTNET[:7])):
        argv = ["--image", str(photo), "--checkpoint", path, "--dataset", dataset]
        demo.main([*argv, "--json", "o.jsonl"])
        (record,) = records("o.jsonl")
        assert list(record["probabilities"]) == list(names)
        labels[dataset] = names.index(record["label"])
    assert labels["RAF-DB"] == labels["AffectNet"]  # the same output under other names


def test_a_toy_model_is_warned_about(checkpoint_file, photo, capsys):
    path = str(checkpoint_file(7, "best.pth", ours=True, toy=True))
    demo.main(["--image", str(photo), "--checkpoint", path])
    err = capsys.readouterr().err
    assert err.startswith("warning: ") and "toy" in err and len(err.splitlines()) == 1


# ---- annotated copies --------------------------------------------------------------------------


def test_copies_of_the_same_name_do_not_collide(run, photo):
    for folder in ("a", "b"):
        Path(folder).mkdir()
        shutil.copy(photo, f"{folder}/face.jpg")
    before = Path("a/face.jpg").read_bytes()
    run("--image", "a/face.jpg", "b/face.jpg", "--output", ".")
    copies = sorted(Path().glob("*_emotions.jpg"))
    assert [path.name for path in copies] == ["a_face_emotions.jpg", "b_face_emotions.jpg"]
    assert Path("a/face.jpg").read_bytes() == before
    copy = read_rgb(copies[0]).astype(int)
    assert copy.shape[0] == 800  # 512x600, enlarged
    original = np.asarray(Image.open(photo).resize((683, 800))).astype(int)
    assert (np.abs(copy - original).max(axis=-1) > 100).sum() > 1000


def test_earlier_copies_are_not_looked_at_again(run, photo):
    Path("photos").mkdir()
    shutil.copy(photo, "photos/face.jpg")
    for _ in range(2):
        _, out, _ = run("--image", "photos", "--output", "photos/annotated")
        assert out.count("emotion label") == 1
    assert [path.name for path in Path("photos/annotated").iterdir()] == ["face_emotions.jpg"]


# ---- videos ------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", VIDEO_SUFFIXES)
def test_a_video_is_annotated_and_its_frames_are_reported(run, photo, suffix):
    path = write_clip(photo, Path(f"clip{suffix}"))
    code, out, _ = run("--image", path, "--output", "out", "--json", "o.jsonl")
    assert code == 0
    found = records("o.jsonl")
    assert [record["frame"] for record in found] == [0, 1, 2, 3, 4]
    assert [record["time"] for record in found] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert f"clip{suffix} frame 3 (0.30 s): box" in out
    *_, summary, written = out.splitlines()
    assert summary.startswith(f"clip{suffix}: 5 frames, 5 faces  ")
    assert written == f"annotated: out/clip_emotions{suffix}"
    copy = VideoReader(Path(f"out/clip_emotions{suffix}"))
    frames = [image for _, _, image in copy.frames()]
    copy.close()
    assert len(frames) == 5
    assert copy.fps == pytest.approx(10)
    assert frames[0].shape[:2] == (800, 682)  # 300x256, enlarged; the codec drops an odd column


def test_every_nth_frame_is_looked_at_and_all_are_in_the_copy(run, photo):
    path = write_clip(photo, Path("clip.avi"), frames=7)
    run("--image", path, "--output", "out", "--json", "o.jsonl", "--every", "3")
    assert [record["frame"] for record in records("o.jsonl")] == [0, 3, 6]
    copy = VideoReader(Path("out/clip_emotions.avi"))
    frames = [image.astype(int) for _, _, image in copy.frames()]
    copy.close()
    assert len(frames) == 7
    # Each frame carries the box of the last one looked at: the same outline at the same place.
    for record in records("o.jsonl")[:2]:
        x, y, w, _ = (round(value * 800 / 300) for value in record["box"])
        first, *others = (
            frame[y + 1 : y + 3, x + 20 : x + w - 20] for frame in frames[record["frame"] :][:3]
        )
        assert max(np.abs(first - other).mean() for other in others) < 10


def test_a_video_without_faces_is_exit_code_1(run):
    writer = VideoWriter(Path("clip.avi"), 10.0, (64, 64))
    for _ in range(3):
        writer.write(np.full((64, 64, 3), 90, dtype=np.uint8))
    writer.close()
    code, out, _ = run("--image", "clip.avi", "--json", "o.jsonl", "--output", "out")
    assert code == 1
    assert out.splitlines()[-2] == "clip.avi: 3 frames, no faces"
    assert records("o.jsonl") == []


def test_pictures_that_wait_for_a_batch_are_bounded_by_their_memory(monkeypatch):
    """A long video in which nobody appears fills no batch."""
    monkeypatch.setattr(views, "MAX_BYTES", 1000)
    image = np.zeros((10, 10, 3), dtype=np.uint8)  # 300 bytes
    stream = (
        views.View(Path("a.mp4"), [], np.empty((0, 8, 8, 3), np.uint8), image, frame=i)
        for i in range(11)
    )
    assert [len(batch) for batch in views.in_batches(stream, batch_size=8)] == [4, 4, 3]
