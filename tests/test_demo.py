"""The demo and its Predictor: photos, folders and videos -> lines, JSON and annotated copies."""

import json
import os
import shutil
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

import demo
from tests.bench.yardstick import EVALUATION
from tests.conftest import golden_dan
from utils.data.images import read_rgb
from utils.demo import predictor as predictor_module
from utils.demo import video
from utils.demo.annotate import COLORS, annotate
from utils.demo.predictor import RELEASED, Prediction, Predictor
from utils.demo.video import Frame, in_batches, read_files
from utils.errors import UserError
from utils.labels import AFFECTNET


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """An empty folder to run in, and an empty models/ elsewhere."""
    (tmp_path / "work").mkdir()
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(predictor_module, "MODELS", tmp_path / "models")


@pytest.fixture(autouse=True, scope="module")
def load_once():
    """The same network for all tests that use the same checkpoint."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predictor_module, "TorchNetwork", lru_cache(predictor_module.TorchNetwork))
        yield


@pytest.fixture
def checkpoint(checkpoint_file):
    return str(checkpoint_file(8, RELEASED))


@pytest.fixture
def run(checkpoint, capsys):
    """Runs the demo with the released-form checkpoint: (exit code, stdout, stderr)."""

    def run(*files, flags=""):
        argv = ["--checkpoint", checkpoint, "--json", "o.jsonl", "--image", *files, *flags.split()]
        return demo.main(argv), *capsys.readouterr()

    return run


def records():
    return [json.loads(line) for line in Path("o.jsonl").read_text().splitlines()]


def filled(color=90):
    return np.full((144, 176, 3), color, dtype=np.uint8)


ORANGE = (200, 120, 40)


@pytest.fixture
def face(photo):
    """A frame with a face, and an orange edge."""
    frame = filled()
    frame[:, 20:143] = Image.open(photo).resize((123, 144))
    frame[:, 152:] = ORANGE
    return frame


def write_clip(path, frames, codec="mp4v", fps=10.0):
    """A video by OpenCV itself, without our writer."""
    height, width = frames[0].shape[:2]
    kind = cv2.VideoWriter_fourcc(*codec)
    writer = cv2.VideoWriter(os.path.abspath(path), cv2.CAP_FFMPEG, kind, fps, (width, height))
    for frame in frames:
        writer.write(np.ascontiguousarray(frame[..., ::-1]))
    writer.release()


def frames_of(path):
    return list(read_files([Path(path)]))


@lru_cache
def plain_network():
    return golden_dan(8)


def assert_expected(probabilities, path, box):
    """As torchvision's transforms and the plain network predict, one face alone."""
    x, y, w, h = box
    face = EVALUATION(Image.open(path).convert("RGB").crop((x, y, x + w, y + h)))
    with torch.no_grad():
        expected = plain_network()(face[None]).logits.softmax(dim=1)[0].numpy()
    assert list(probabilities) == list(AFFECTNET)
    np.testing.assert_allclose(list(probabilities.values()), expected, atol=1e-4)


# ---- the Predictor -------------------------------------------------------------------------------


def test_arrays_pillow_images_and_lists_give_the_same_faces(checkpoint, photo):
    predictor = Predictor(checkpoint, detector="haar")
    array = read_rgb(photo)
    (face,) = predictor(array)
    assert_expected(face.probabilities, photo, face.box)
    assert face.label == max(face.probabilities, key=face.probabilities.get)
    several = predictor([Image.fromarray(array), np.full_like(array, 90), array])
    assert [len(faces) for faces in several] == [1, 0, 1]
    assert several[0] == several[2] and several[0][0].box == face.box
    assert predictor([]) == []
    # As a camera stores an upright picture that is to be turned by a quarter.
    turned = Image.fromarray(np.rot90(array))
    turned.getexif()[0x0112] = 6
    assert predictor(turned) == [face]
    (wide,) = Predictor(checkpoint, detector="haar", margin=0.3)(array)
    assert wide.box[2] == pytest.approx(1.6 / 1.2 * face.box[2], abs=1)


def test_cut_out_faces_of_any_size_are_classified(checkpoint, photo):
    predictor = Predictor(checkpoint, detector="haar")
    image = Image.open(photo)
    boxes = [(180, 120, 150 + 3 * i, 200) for i in range(predictor.network.batch_size + 2)]
    crops = [image.crop((x, y, x + w, y + h)) for x, y, w, h in boxes]
    results = predictor.classify(crops)
    for i in (0, 1, -1):
        assert_expected(results[i].probabilities, photo, boxes[i])
    assert_expected(predictor.classify(np.asarray(crops[1])).probabilities, photo, boxes[1])
    assert Predictor(checkpoint, detector=None)(crops[1]) == [predictor.classify(crops[1])]


@pytest.mark.parametrize(
    "picture",
    [
        pytest.param(np.zeros((50, 50, 3), dtype=np.float32), id="floats"),
        pytest.param(np.zeros((50, 50), dtype=np.uint8), id="grey"),
        pytest.param(np.zeros((50, 50, 4), dtype=np.uint8), id="RGBA"),
        pytest.param(np.zeros((0, 50, 3), dtype=np.uint8), id="empty"),
        pytest.param("photo.jpg", id="a path"),
    ],
)
def test_what_is_no_uint8_rgb_picture_is_a_value_error(checkpoint, picture):
    predictor = Predictor(checkpoint)
    for call in (predictor, predictor.classify):
        with pytest.raises(ValueError, match="a picture must"):
            call([picture])


# ---- checkpoints ---------------------------------------------------------------------------------


def test_the_default_is_the_released_file_else_the_newest_run(checkpoint_file, photo, capsys):
    models = predictor_module.MODELS
    with pytest.raises(UserError, match=r"models/README\.md.*rafdb\.py --toy"):
        demo.main(["--image", str(photo)])
    scratch = models.parent / "scratch"
    for folder in (scratch, models / "old", models / "gone"):
        folder.mkdir()
    (models / "linked").symlink_to(scratch)
    (scratch / "back").symlink_to(models)  # a loop, and a link to nowhere
    (models / "gone/best.pth").symlink_to("nowhere.pth")
    best = checkpoint_file(7, "best.pth", ours=True, toy=True)
    for age, folder in ((200, "old"), (100, "linked")):
        shutil.copy(best, models / folder / "best.pth")
        os.utime(models / folder / "best.pth", (1e9 - age, 1e9 - age))
    demo.main(["--image", str(photo)])
    out, err = capsys.readouterr()
    assert out.startswith(f"{models}/linked/best.pth (toy RAF-DB, 7 classes")
    assert err.startswith("warning: ") and "toy" in err and len(err.splitlines()) == 1
    shutil.copy(checkpoint_file(8, RELEASED), models)
    demo.main(["--image", str(photo)])
    assert capsys.readouterr().out.startswith(f"{models}/{RELEASED} (AffectNet, 8 classes")


# ---- photos --------------------------------------------------------------------------------------


def test_all_faces_of_a_photo_are_printed_written_and_drawn(run, photo):
    picture = Image.new("RGB", (600, 400), (110, 110, 110))
    for width, left in ((300, 0), (200, 380)):
        picture.paste(Image.open(photo).resize((width, width * 7 // 6)), (left, 20))
    picture.save("group.png")
    code, out, err = run("group.png", flags="--detector haar --output out")
    assert code == 0 and err == ""
    title, first, second = out.splitlines()
    assert RELEASED in title and "8 classes" in title and "Haar" in title
    faces = records()
    assert faces[0]["box"][0] < 300 < faces[1]["box"][0]
    for i, (line, face) in enumerate(zip((first, second), faces, strict=True)):
        assert line == (
            f"group.png: face {i + 1} box {face['box']}  "
            f"emotion label: {face['label']}  {100 * face['probability']:.1f} %"
        )
        assert_expected(face["probabilities"], "group.png", face["box"])
    copy = read_rgb("out/group_emotions.png").astype(int)
    assert copy.shape == (533, 800, 3)  # enlarged
    changed = np.abs(copy - np.asarray(picture.resize((800, 533)))).max(axis=-1) > 100
    for x, y, w, _ in (np.multiply(face["box"], 800 / 600).round().astype(int) for face in faces):
        assert changed[y + 2, x : x + w].mean() > 0.7  # its outline


def test_whole_image_takes_the_picture_as_the_face(run):
    Image.fromarray(filled()).save("a.png")
    code, out, _ = run("a.png", flags="--whole_image --top 3")
    assert code == 0 and "whole images" in out
    (record,) = records()
    assert record["box"] == [0, 0, 176, 144]
    assert_expected(record["probabilities"], "a.png", record["box"])
    best, second, third = sorted(AFFECTNET, key=record["probabilities"].get, reverse=True)[:3]
    line = out.splitlines()[1]
    assert line.index(f"label: {best}") < line.index(f", {second}") < line.index(f", {third}")


def test_a_folder_keeps_its_order_and_each_file_leaves_a_record(run, checkpoint, photo):
    os.makedirs("photos/deeper")
    names = ["0.jpg", "1.png", "2.jpg", "3.jpg", "3.png", "4.jpg", "5.png", "deeper/a.jpg"]
    for i, name in enumerate(names):
        if name.endswith("png"):
            Image.fromarray(filled()).save(f"photos/{name}")
        else:  # the same face in different light
            ImageEnhance.Brightness(Image.open(photo)).enhance(1 - i / 8).save(f"photos/{name}")
    Path("photos/3.jpg").write_bytes(photo.read_bytes()[:9000])
    code, _, err = run("photos")
    assert code == 0
    found = dict(zip(names, records(), strict=True))
    assert [record["file"] for record in found.values()] == [f"photos/{name}" for name in names]
    predictor = Predictor(checkpoint)
    broken = found.pop("3.jpg")["error"]
    assert "cannot be read" in broken and broken in err
    for name, record in found.items():
        if name.endswith("png"):
            assert record["faces"] == 0
        else:
            (expected,) = predictor(Image.open(record["file"]))
            assert record["probabilities"] == pytest.approx(expected.probabilities, abs=1e-4)


def test_exit_codes_where_there_is_no_face_or_no_readable_file(run):
    Image.new("RGB", (3840, 2160), "grey").save("a.png")
    code, out, _ = run("a.png", flags="--detector haar --output out")
    assert code == 1 and os.listdir("out") == []
    assert "a.png: no face found (searched down to 48 pixels" in out
    Path("b.jpg").touch()
    Path("c.mp4").write_text("no video")
    with pytest.raises(UserError, match="none of 2 files"):
        run("b.jpg", "c.mp4")
    assert [set(record) for record in records()] == [{"file", "error"}] * 2
    with pytest.raises(UserError, match=r"c\.mp4: not a video"):
        run("c.mp4")
    assert "image" not in records()[0]["error"]


# ---- results -------------------------------------------------------------------------------------


def test_copies_do_not_collide_overwrite_a_photo_or_become_inputs(run, photo):
    for folder in ("a", "b"):
        os.mkdir(folder)
        shutil.copy(photo, f"{folder}/face.jpg")
    for _ in range(2):
        _, out, _ = run("a", "b", flags="--output a/copies")
        assert out.count("emotion label") == 2
    assert sorted(os.listdir("a/copies")) == ["a_face_emotions.jpg", "b_face_emotions.jpg"]
    shutil.copy(photo, "b/face_emotions.jpg")
    for flags in ("--output b", "--json a/face.jpg"):
        with pytest.raises(UserError, match="would be overwritten"):
            run("a/face.jpg", "b/face_emotions.jpg", flags=flags)
    assert Path("a/face.jpg").read_bytes() == photo.read_bytes()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux only")
def test_a_json_file_on_a_full_disk_is_one_line(checkpoint, photo):
    with pytest.raises(UserError, match="/dev/full: cannot be written"):
        demo.main(["--image", str(photo), "--json", "/dev/full", "--checkpoint", checkpoint])


def test_names_of_any_kind_are_read_copied_and_told_apart(run, photo, face):
    names = ["-a.jpg", "two\nlines.jpg", "é" * 120 + ".png"]
    names += ["x" * 250 + ".jpg", "x" * 249 + "y.jpg", f"{'f' * 200}/{'é' * 120}.png"]
    names += ["rec-12:30.mp4", "http:x.mp4", "a%03d.mp4", "-b.mp4"]  # OpenCV stumbles over these
    write_clip("clip.mp4", [face])
    os.mkdir("f" * 200)
    for name in names:
        shutil.copy("clip.mp4" if name.endswith("mp4") else photo, name)
    os.rename("clip.mp4", b"caf\xe9.mp4")
    code, out, err = run(*names, "caf\udce9.mp4", flags="--output out")
    assert code == 0
    assert [record["file"] for record in records()] == [*names, "caf\udce9.mp4"]
    assert out.count("emotion label") == len(names) == len(os.listdir("out"))
    assert len(out.splitlines()) == 1 + len(names) + 4
    assert len(err.splitlines()) == 1 and "rename" in err


# ---- videos --------------------------------------------------------------------------------------

CODECS = {".mkv": "MJPG", ".avi": "XVID", ".wmv": "WMV2", ".flv": "FLV1", ".mpg": "MPG2"}
CODECS |= dict.fromkeys((".mp4", ".mov", ".m4v", ".3gp", ".ts"), "mp4v")


@pytest.mark.parametrize("suffix", CODECS)
def test_videos_of_any_container_are_read(suffix):
    colors = [(shade, 90, 200 - shade) for shade in (20, 60, 100, 140, 180)]
    write_clip(f"clip{suffix.upper()}", list(map(filled, colors)), CODECS[suffix])
    frames = frames_of(f"clip{suffix.upper()}")
    assert [frame.index for frame in frames] == list(range(5))
    assert [frame.seconds for frame in frames] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    for frame, color in zip(frames, colors, strict=True):
        np.testing.assert_allclose(frame.image.mean(axis=(0, 1)), color, atol=12)


@pytest.mark.parametrize("suffix", [".avi", ".mkv", ".mp4"])
def test_a_video_is_reported_and_copied_at_its_own_size(run, face, suffix):
    nobody = filled(ORANGE)
    pictures = [face, face, nobody, face]
    os.mkdir("in")
    write_clip(f"in/clip{suffix}", pictures, "MJPG" if suffix == ".avi" else "mp4v")
    code, out, _ = run("in", flags="--output out")
    assert code == 0
    found = records()
    assert [(record["frame"], record["time"]) for record in found] == [(0, 0), (1, 0.1), (3, 0.3)]
    assert f"in/clip{suffix} frame 3 (0.30 s): face 1 box" in out
    assert f"in/clip{suffix}: 4 frames, 3 faces  " in out
    frames = frames_of("out/clip_emotions.mp4")
    assert len(frames) == 4 and frames[0].fps == pytest.approx(10)
    x, y, w, _ = found[0]["box"]
    outline = np.s_[y + 1 : y + 3, x + 20 : x + w - 20]
    for i, (frame, picture) in enumerate(zip(frames, pictures, strict=True)):
        assert frame.image.shape == picture.shape
        change = np.abs(frame.image[outline].astype(int) - picture[outline]).mean()
        assert (change > 25) == (i != 2)
        np.testing.assert_allclose(frame.image[:, 164:].mean(axis=(0, 1)), ORANGE, atol=12)


def test_every_nth_frame_is_read_and_shown_until_the_next(run, face):
    write_clip("clip.avi", [np.roll(face, i, axis=1) for i in range(5)], "MJPG")
    run("clip.avi", flags="--output out --every 3")
    assert [(record["frame"], record["time"]) for record in records()] == [(0, 0), (3, 0.3)]
    first, *others = (frame.image.astype(int) for frame in frames_of("out/clip_emotions.mp4"))
    assert [np.abs(first - other).mean() > 3 for other in others] == [False, False, True]


def test_a_copy_lasts_as_long_as_a_video_of_variable_rate(run):
    """FFmpeg tells the kind of a file by its content, and a GIF has a duration per frame."""
    first, *others = (Image.fromarray(filled(10 * i)) for i in range(20))
    durations = [100] * 10 + [2000] * 10
    first.save("clip.mp4", "GIF", save_all=True, append_images=others, duration=durations)
    source = frames_of("clip.mp4")
    assert source[-1].seconds == pytest.approx(19)
    run("clip.mp4", flags="--output out")
    copy = frames_of("out/clip_emotions.mp4")
    assert 19 <= len(copy) / copy[0].fps <= 21
    np.testing.assert_allclose(np.diff([f.seconds for f in copy]), 1 / copy[0].fps, rtol=0.02)
    for seconds, shade in ((0.55, 50), (0.95, 90), (2, 100), (8, 130), (18, 180)):
        shown = max((f for f in copy if f.seconds <= seconds), key=lambda f: f.index)
        assert shown.image.mean() == pytest.approx(shade, abs=4)


def test_a_copy_of_a_video_that_claims_1000_frames_a_second_keeps_its_length(run):
    write_clip("clip.mp4", [filled()] * 200, fps=1000.0)
    run("clip.mp4", flags="--output out")
    frames = frames_of("out/clip_emotions.mp4")
    assert len(frames) / frames[0].fps == pytest.approx(0.2, abs=0.05)


def test_frames_that_wait_for_a_batch_are_bounded_by_their_memory(monkeypatch):
    monkeypatch.setattr(video, "MAX_BYTES", 1000)
    frames = [Frame(Path("a.mp4"), np.zeros((10, 10, 3), dtype=np.uint8))] * 11  # 300 bytes each
    assert [len(batch) for batch in in_batches(frames, 8)] == [4, 4, 3]
    assert [len(batch) for batch in in_batches(frames, 3)] == [3, 3, 3, 2]


# ---- drawing -------------------------------------------------------------------------------------


def draw(shape, boxes, *values):
    """Faces drawn onto grey: the copy, and where it differs from grey."""
    values = (*values, *[0.0] * (8 - len(values)))
    faces = [Prediction(box, dict(zip(AFFECTNET, values, strict=True))) for box in boxes]
    copy = annotate(np.full((*shape, 3), 128, dtype=np.uint8), faces, enlarge=False)
    return copy, (copy != 128).any(axis=-1)


def test_bars_are_as_long_as_the_probabilities():
    copy, _ = draw((800, 800), [(200, 300, 150, 150)], 0.6, 0.3, 0.1)
    lengths = []
    for color in COLORS[:3]:
        rgb = tuple(int(color[i : i + 2], 16) for i in (1, 3, 5))
        lengths.append((copy[:, 352:] == rgb).all(axis=-1).sum(axis=1).max())
    assert lengths[0] / lengths[1] == pytest.approx(2, rel=0.1)
    assert lengths[1] / lengths[2] == pytest.approx(3, rel=0.25)


def test_faces_are_not_covered_where_there_is_room():
    boxes = [(100, 200, 120, 120), (300, 220, 100, 100), (700, 100, 200, 200), (930, 500, 60, 60)]
    _, changed = draw((800, 1000), boxes, 0, 1)
    for x, y, w, h in boxes:
        assert changed[y, x : x + w].all()
        assert not changed[y + 12 : y + h - 12, x + 12 : x + w - 12].any()


@pytest.mark.parametrize("box", [(0, 0, 64, 64), (0, 60, 4, 4)])
def test_boxes_of_any_size_and_many_faces_can_be_drawn(box):
    assert draw((64, 64), [box] * 50, 1)[1].any()
