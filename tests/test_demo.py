import json
import os
import shutil
import struct
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

import demo
from tests.conftest import golden_dan
from utils.data.images import IMAGE_SUFFIXES, list_files, read_rgb
from utils.demo import predictor as predictor_module
from utils.demo import video
from utils.demo.annotate import COLORS, annotate
from utils.demo.predictor import RELEASED, Prediction, Predictor
from utils.demo.video import VIDEO_SUFFIXES, Frame, in_batches, read_files
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

    def run(*argv):
        code = demo.main([*map(str, argv), "--checkpoint", checkpoint])
        return code, *capsys.readouterr()

    return run


def records():
    return [json.loads(line) for line in Path("o.jsonl").read_text().splitlines()]


def blank(path):
    Image.new("RGB", (120, 100), (90, 90, 90)).save(path)
    return path


def grey(shade=90):
    return np.full((144, 176, 3), shade, dtype=np.uint8)


def face_frame(photo):
    frame = grey()
    frame[:, 20:143] = np.asarray(Image.open(photo).resize((123, 144)))
    return frame


def write_clip(path, pictures, codec="mp4v", fps=10.0):
    """A video by OpenCV itself, without our writer."""
    height, width = pictures[0].shape[:2]
    kind = cv2.VideoWriter_fourcc(*codec)
    writer = cv2.VideoWriter(os.path.abspath(path), cv2.CAP_FFMPEG, kind, fps, (width, height))
    for picture in pictures:
        writer.write(np.ascontiguousarray(picture[..., ::-1]))
    writer.release()
    return path


def frames_of(path):
    return list(read_files([Path(path)]))


@lru_cache
def plain_network():
    return golden_dan(8)


def assert_expected(probabilities, path, box):
    """As torchvision's transforms and the plain network predict, one face alone."""
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
        expected = plain_network()(transform(face)[None]).logits.softmax(dim=1)[0].numpy()
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
    predictor = Predictor(checkpoint, detector=None)
    image = Image.open(photo)
    boxes = [(180, 120, 150 + 3 * i, 200) for i in range(predictor.network.batch_size + 2)]
    crops = [image.crop((x, y, x + w, y + h)) for x, y, w, h in boxes]
    results = predictor.classify(crops)
    for i in (0, 1, -1):
        assert_expected(results[i].probabilities, photo, boxes[i])
    assert_expected(predictor.classify(np.asarray(crops[1])).probabilities, photo, boxes[1])
    assert predictor(crops[1]) == [predictor.classify(crops[1])]


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((50, 50, 3), dtype=np.float32),
        np.zeros((50, 50), dtype=np.uint8),
        np.zeros((50, 50, 4), dtype=np.uint8),
        np.zeros((0, 50, 3), dtype=np.uint8),
        "photo.jpg",
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
    with pytest.raises(UserError, match=r"drive\.google.*rafdb\.py.*--toy"):
        demo.main(["--image", str(photo)])
    (models.parent / "scratch").mkdir()
    (models / "linked").symlink_to(models.parent / "scratch")
    (models.parent / "scratch/back").symlink_to(models)  # a loop, and a link to nowhere
    (models / "gone").mkdir()
    (models / "gone/best.pth").symlink_to("nowhere.pth")
    (models / "old").mkdir()
    best = checkpoint_file(7, "best.pth", ours=True, toy=True)
    for age, folder in ((200, "old"), (100, "linked")):
        shutil.copy(best, models / folder / "best.pth")
        os.utime(models / folder / "best.pth", (1e9 - age, 1e9 - age))
    demo.main(["--image", str(photo)])
    out, err = capsys.readouterr()
    assert out.startswith(f"{models}/linked/best.pth (toy RAF-DB, 7 classes")
    assert err.startswith("warning: ") and "toy" in err and len(err.splitlines()) == 1
    shutil.copy(checkpoint_file(8, RELEASED), models)
    os.chdir(models.parent)
    demo.main(["--image", str(photo)])
    assert capsys.readouterr().out.startswith(f"models/{RELEASED} (AffectNet, 8 classes")


# ---- photos --------------------------------------------------------------------------------------


def test_all_faces_of_a_photo_are_printed_written_and_drawn(run, photo):
    picture = Image.new("RGB", (600, 400), (110, 110, 110))
    for width, left in ((300, 0), (200, 380)):
        picture.paste(Image.open(photo).resize((width, width * 7 // 6)), (left, 20))
    picture.save("group.png")
    flags = ("--detector", "haar", "--json", "o.jsonl", "--output", "out")
    code, out, err = run("--image", "group.png", *flags)
    assert code == 0 and err == ""
    title, first, second, _ = out.splitlines()
    assert RELEASED in title and "8 classes" in title and "Haar" in title
    faces = records()
    assert faces[0]["box"][0] < 300 < faces[1]["box"][0]
    for i, (line, face) in enumerate(zip((first, second), faces, strict=True)):
        assert line == (
            f"group.png: face {i + 1} of 2 box {face['box']}  "
            f"emotion label: {face['label']}  {100 * face['probability']:.1f} %"
        )
        assert_expected(face["probabilities"], "group.png", face["box"])
    copy = read_rgb("out/group_emotions.png").astype(int)
    assert copy.shape == (533, 800, 3)  # enlarged
    assert (np.abs(copy - np.asarray(picture.resize((800, 533)))).max(-1) > 100).sum() > 1000


def test_whole_image_takes_the_picture_as_the_face(run):
    code, out, _ = run("--image", blank("a.png"), "--whole_image", "--json", "o.jsonl", "--top", 3)
    assert code == 0 and "whole images" in out
    (record,) = records()
    assert record["box"] == [0, 0, 120, 100]
    assert_expected(record["probabilities"], "a.png", record["box"])
    best, second, third = sorted(AFFECTNET, key=record["probabilities"].get, reverse=True)[:3]
    line = out.splitlines()[1]
    assert line.index(f"label: {best}") < line.index(f"({second}") < line.index(third, 40)


def test_a_folder_keeps_its_order_and_each_file_leaves_a_record(run, photo):
    Path("photos/deeper").mkdir(parents=True)
    for i in range(0, 6, 2):
        shutil.copy(photo, f"photos/{i}.jpg")
        blank(f"photos/{i + 1}.png")
    shutil.copy(photo, "photos/deeper/a.jpg")
    Path("photos/3.jpg").write_bytes(photo.read_bytes()[:9000])
    code, out, err = run("--image", "photos", "--json", "o.jsonl")
    assert code == 0
    names = ["0.jpg", "1.png", "2.jpg", "3.jpg", "3.png", "4.jpg", "5.png", "deeper/a.jpg"]
    found = records()
    assert [record["file"] for record in found] == [f"photos/{name}" for name in names]
    for record in found:
        if record["file"].endswith(".png"):
            assert record["faces"] == 0
        elif record["file"] == "photos/3.jpg":
            assert "cannot be read" in record["error"] and record["error"] in err
        else:
            assert record["probabilities"] == pytest.approx(found[0]["probabilities"], abs=1e-4)
    assert "photos/1.png: no face found (searched down to 2" in out


def test_exit_codes_where_there_is_no_face_or_no_readable_file(run):
    code, out, _ = run("--image", blank("a.png"), "--output", "out")
    assert code == 1 and list(Path("out").iterdir()) == []
    Path("b.jpg").touch()
    Path("c.mp4").write_text("no video")
    with pytest.raises(UserError, match="none of 2 files"):
        run("--image", "b.jpg", "c.mp4", "--json", "o.jsonl")
    assert [set(record) for record in records()] == [{"file", "error"}] * 2
    with pytest.raises(UserError, match=r"c\.mp4: not a video"):
        run("--image", "c.mp4", "--json", "o.jsonl")
    assert "image" not in records()[0]["error"]


# ---- results -------------------------------------------------------------------------------------


def test_copies_do_not_collide_overwrite_a_photo_or_become_inputs(run, photo):
    for folder in ("a", "b"):
        Path(folder).mkdir()
        shutil.copy(photo, f"{folder}/face.jpg")
    for _ in range(2):
        _, out, _ = run("--image", "a", "b", "--output", "a/copies")
        assert out.count("emotion label") == 2
    copies = ["a_face_emotions.jpg", "b_face_emotions.jpg"]
    assert sorted(path.name for path in Path("a/copies").iterdir()) == copies
    shutil.copy(photo, "b/face_emotions.jpg")
    for flags in (["--output", "b"], ["--json", "a/face.jpg"]):
        with pytest.raises(UserError, match="would be overwritten"):
            run("--image", "a/face.jpg", "b/face_emotions.jpg", *flags)
    assert Path("a/face.jpg").read_bytes() == photo.read_bytes()


def test_names_of_any_kind_are_read_copied_and_told_apart(run, photo):
    names = ["-a.jpg", "two\nlines.jpg", "é" * 120 + ".png"]
    names += ["x" * 250 + ".jpg", "x" * 249 + "y.jpg", f"{'f' * 200}/{'é' * 120}.png"]
    names += ["rec-12:30.mp4", "http:x.mp4", "a%03d.mp4", "-b.mp4"]  # OpenCV stumbles over these
    write_clip("clip.mp4", [face_frame(photo)])
    os.mkdir("f" * 200)
    for name in names:
        shutil.copy("clip.mp4" if name.endswith("mp4") else photo, name)
    os.rename("clip.mp4", b"caf\xe9.mp4")
    code, out, err = run("--image", *names, "caf\udce9.mp4", "--output", "out", "--json", "o.jsonl")
    assert code == 0
    assert [record["file"] for record in records()] == [*names, "caf\udce9.mp4"]
    assert out.count("emotion label") == len(names) == len(list(Path("out").iterdir()))
    assert len(out.splitlines()) == 1 + len(names) + 4 + 1
    assert len(err.splitlines()) == 1 and "rename" in err


# ---- videos --------------------------------------------------------------------------------------

CONTAINERS = {".mkv": "MJPG", ".avi": "XVID", ".wmv": "WMV2", ".flv": "FLV1", ".mpg": "MPG2"}
CONTAINERS |= dict.fromkeys((".mp4", ".mov", ".m4v", ".3gp", ".ts"), "mp4v")


def test_videos_of_any_container_in_a_folder_are_read():
    Path("clips").mkdir()
    shades = (20, 60, 100, 140, 180)
    for suffix, codec in CONTAINERS.items():
        write_clip(f"clips/clip{suffix.upper()}", [grey(shade) for shade in shades], codec)
    files = list_files(["clips"], suffixes=IMAGE_SUFFIXES | VIDEO_SUFFIXES)
    assert {file.suffix.lower() for file in files} == set(CONTAINERS)
    for file in files:
        frames = frames_of(file)
        assert [frame.index for frame in frames] == list(range(5)), file
        assert [frame.seconds for frame in frames] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
        for frame, shade in zip(frames, shades, strict=True):
            np.testing.assert_allclose(frame.image.mean(axis=(0, 1)), shade, atol=12)


@pytest.mark.parametrize("suffix, copied", [(".avi", ".avi"), (".mkv", ".mkv"), (".3gp", ".mp4")])
def test_a_video_is_reported_and_copied_at_its_own_size(run, photo, suffix, copied):
    face = face_frame(photo)
    pictures = [face, face, grey(), face]
    write_clip(f"clip{suffix}", pictures, "MJPG" if suffix == ".avi" else "mp4v")
    code, out, _ = run("--image", f"clip{suffix}", "--output", "out", "--json", "o.jsonl")
    assert code == 0
    found = records()
    assert [(record["frame"], record["time"]) for record in found] == [(0, 0), (1, 0.1), (3, 0.3)]
    assert f"clip{suffix} frame 3 (0.30 s): face 1 box" in out
    assert f"clip{suffix}: 4 frames, 3 faces  " in out
    frames = frames_of(f"out/clip_emotions{copied}")
    assert len(frames) == 4 and frames[0].fps == pytest.approx(10)
    x, y, w, _ = found[0]["box"]
    edge = np.s_[y + 1 : y + 3, x + 20 : x + w - 20]  # of the outline
    for i, (frame, picture) in enumerate(zip(frames, pictures, strict=True)):
        assert frame.image.shape == picture.shape
        change = np.abs(frame.image[edge].astype(int) - picture[edge]).mean()
        assert (change > 25) == (i != 2)


def test_every_nth_frame_is_read_and_shown_until_the_next(run, photo):
    pictures = [np.roll(face_frame(photo), i, axis=1) for i in range(5)]
    write_clip("clip.avi", pictures, "MJPG")
    run("--image", "clip.avi", "--output", "out", "--json", "o.jsonl", "--every", "3")
    assert [(record["frame"], record["time"]) for record in records()] == [(0, 0), (3, 0.3)]
    first, *others = (frame.image.astype(int) for frame in frames_of("out/clip_emotions.avi"))
    assert len(others) == 3
    assert [np.abs(first - other).mean() > 3 for other in others] == [False, False, True]


def set_durations(path, runs):
    """Give the frames of an MP4 file by OpenCV other durations: pairs of a count and seconds."""
    data = bytearray(Path(path).read_bytes().replace(b"edts", b"free"))
    scale = struct.unpack_from(">I", data, data.index(b"mdhd") + 16)[0]
    table = data.index(b"stts") + 8
    assert struct.unpack_from(">I", data, table) == (1,)
    entries = [struct.pack(">II", count, round(seconds * scale)) for count, seconds in runs]
    data[table : table + 12] = struct.pack(">I", len(runs)) + b"".join(entries)
    for box in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stts"):
        at = data.index(box) - 4
        struct.pack_into(">I", data, at, struct.unpack_from(">I", data, at)[0] + 8 * len(runs) - 8)
    Path(path).write_bytes(data)


def test_a_copy_lasts_as_long_as_a_video_of_variable_rate(run):
    write_clip("clip.mp4", [grey(10 * i) for i in range(20)])
    set_durations("clip.mp4", [(10, 0.1), (10, 2)])
    source = frames_of("clip.mp4")
    assert source[-1].seconds == pytest.approx(19)
    run("--image", "clip.mp4", "--output", "out")
    copy = frames_of("out/clip_emotions.mp4")
    assert 19 <= len(copy) / copy[0].fps <= 21
    np.testing.assert_allclose(np.diff([f.seconds for f in copy]), 1 / copy[0].fps, rtol=0.02)
    for time in (0.5, 0.9, 2, 8, 18):  # what is shown then
        shown = [
            max((f for f in v if f.seconds <= time + 0.03), key=lambda f: f.index)
            for v in (source, copy)
        ]
        assert shown[0].image.mean() == pytest.approx(shown[1].image.mean(), abs=4)


def test_a_copy_of_a_video_that_claims_1000_frames_a_second_keeps_its_length(run):
    write_clip("clip.mp4", [grey()] * 200, fps=1000.0)
    run("--image", "clip.mp4", "--output", "out")
    frames = frames_of("out/clip_emotions.mp4")
    assert len(frames) / frames[0].fps == pytest.approx(0.2, abs=0.05)


def test_frames_that_wait_for_a_batch_are_bounded_by_their_memory(monkeypatch):
    monkeypatch.setattr(video, "MAX_BYTES", 1000)
    frames = [Frame(Path("a.mp4"), np.zeros((10, 10, 3), dtype=np.uint8))] * 11  # 300 bytes each
    assert [len(batch) for batch in in_batches(frames, 8)] == [4, 4, 3]
    assert [len(batch) for batch in in_batches(frames, 3)] == [3, 3, 3, 2]


# ---- drawing -------------------------------------------------------------------------------------


def draw(shape, boxes, *values, enlarge=False):
    """Faces drawn onto grey: the copy, and where it differs from grey."""
    values = (*values, *[0.0] * (8 - len(values)))
    faces = [Prediction(box, dict(zip(AFFECTNET, values, strict=True))) for box in boxes]
    copy = annotate(np.full((*shape, 3), 128, dtype=np.uint8), faces, enlarge=enlarge)
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
