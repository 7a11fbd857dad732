"""A workplace full of what users mistake for the right thing, for tests/test_mistakes.py."""

import os
import pickle
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from networks.dan import DAN
from tests.affectnet_layouts import GOOD, write_list, write_manual_release, write_npy_release
from utils.convert_affectnet import convert
from utils.labels import AFFECTNET, RAFDB
from utils.toy_faces import write_rafdb
from utils.video import VideoWriter


class Code:
    """A pickle that runs code when it is read."""

    def __reduce__(self):
        return os.mkdir, ("code-ran",)


def build(root: Path, photo: Path) -> None:
    """Fill an empty folder. Names say what is wrong with a file; the others are fine."""
    (root / "folder").mkdir()
    (root / "file").write_text("a file\n")
    (root / "link").symlink_to("nowhere")
    _pictures(root, photo)
    _weights(root / "weights")
    _raf_db(root)
    _affect_net(root)
    _class_folders(root)
    (root / "releases").mkdir()
    _releases(root / "releases")
    _forbidden(root)


def _pictures(root: Path, photo: Path) -> None:
    shutil.copy(photo, root / "photo.jpg")
    shutil.copy(photo, root / "photo_emotions.jpg")
    (root / "broken").mkdir()
    (root / "broken/cut.jpg").write_bytes(photo.read_bytes()[:9000])
    (root / "broken/empty.jpg").touch()
    (root / "broken/page.png").write_text("<!DOCTYPE html><html></html>")
    (root / "broken/huge.png").write_bytes(_png_header(100_000, 100_000))
    (root / "videos").mkdir()
    (root / "videos/text.mp4").write_text("no video")
    writer = VideoWriter(root / "videos/cut.mp4", 10.0, (64, 48))
    for shade in range(5):
        writer.write(np.full((48, 64, 3), 40 * shade, np.uint8))
    writer.close()
    whole = (root / "videos/cut.mp4").read_bytes()
    (root / "videos/cut.mp4").write_bytes(whole[: len(whole) // 2])


def _png_header(width: int, height: int) -> bytes:
    """The start of a PNG file that would take 30 GB in memory."""

    def chunk(content: bytes) -> bytes:
        length, check = len(content) - 4, zlib.crc32(content)
        return struct.pack(">I", length) + content + struct.pack(">I", check)

    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(header) + chunk(b"IDAT" + zlib.compress(bytes(100)))


def _weights(folder: Path) -> None:
    folder.mkdir()
    (folder / "a_folder.pth").mkdir()
    (folder / "page.pth").write_text("<!DOCTYPE html><title>Sign in</title>")
    (folder / "empty.pth").touch()
    (folder / "random.pth").write_bytes(np.random.default_rng(0).bytes(4000))
    (folder / "code.pth").write_bytes(pickle.dumps(Code(), protocol=2))
    torch.save([1, 2], folder / "list.pth")
    torch.save({"state_dict": {"conv1.weight": torch.zeros(3)}}, folder / "no_resnet.pth")
    for num_class, name in ((7, "seven.pth"), (8, "affecnet8_epoch5_acc0.6209.pth")):
        torch.manual_seed(0)
        state = {key: v.half() if v.is_floating_point() else v for key, v in _network(num_class)}
        torch.save({"model_state_dict": state}, folder / name)
        if num_class == 7:
            seven = state
    for name in ("rafdb.pth", "affecnet7.pth"):
        os.link(folder / "seven.pth", folder / name)
    ours = {"class_names": list(RAFDB), "dataset": "RAF-DB", "config": {"image_size": 32}}
    torch.save({"model_state_dict": seven, **ours}, folder / "best.pth")
    other = {**ours, "class_names": list(AFFECTNET[:7]), "config": {"raf_path": "raf"}}
    torch.save({"model_state_dict": seven, **other}, folder / "other_data.pth")
    toy = {**ours, "config": {"raf_path": "faces", "toy": True}}
    torch.save({"model_state_dict": seven, **toy}, folder / "toy.pth")
    whole = (folder / "best.pth").read_bytes()
    (folder / "cut.pth").write_bytes(whole[: len(whole) // 2])
    lacking = {key: value for key, value in seven.items() if key != "features.0.weight"}
    torch.save({"model_state_dict": lacking, **ours}, folder / "lacking.pth")
    misshapen = {**seven, "cat_head0.ca.attention.0.weight": torch.zeros(2, 2)}
    torch.save({"model_state_dict": misshapen, **ours}, folder / "misshapen.pth")
    torch.save({"model_state_dict": seven, **ours, "class_names": ["a", "b"]}, folder / "names.pth")
    diverged = {**seven, "bn.running_var": torch.full((7,), -1.0)}
    torch.save({"model_state_dict": diverged, **ours}, folder / "diverged.pth")


def _network(num_class: int):
    return DAN(num_class=num_class, num_head=1).state_dict().items()


def _raf_db(root: Path) -> None:
    """`raf`, and one copy for each thing that can be wrong with it."""
    write_rafdb(root / "raf", train=14, test=7)
    (root / "raf/toy.json").unlink()
    labels = "EmoLabel/list_patition_label.txt"
    lines = (root / "raf" / labels).read_text()

    def copy(name: str) -> Path:
        shutil.copytree(root / "raf", root / name)
        return root / name

    (copy("raf_no_labels") / labels).unlink()
    folder = copy("raf_labels_folder")
    (folder / labels).unlink()
    (folder / labels).mkdir()
    shutil.rmtree(copy("raf_no_images") / "Image")
    shutil.rmtree(copy("raf_images_file") / "Image/aligned")
    (root / "raf_images_file/Image/aligned").touch()
    (copy("raf_label_9") / labels).write_text(lines + "train_00015.jpg 9\n")
    (copy("raf_label_nan") / labels).write_text(lines + "train_00015.jpg nan\n")
    (copy("raf_no_label") / labels).write_text(lines + "train_00015.jpg\n")
    (copy("raf_twice") / labels).write_text(lines + lines.splitlines()[0] + "\n")
    (copy("raf_escape") / labels).write_text(lines + "train_../../x.jpg 1\n")
    (copy("raf_no_image") / "Image/aligned/test_0003_aligned.jpg").unlink()
    (copy("raf_binary") / labels).write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    (copy("raf_empty") / labels).write_text("")
    train = [line for line in lines.splitlines(keepends=True) if line.startswith("train")]
    (copy("raf_no_test") / labels).write_text("".join(train))
    for name, image in (("raf_broken_train", "train_00005"), ("raf_broken_test", "test_0005")):
        (copy(name) / f"Image/aligned/{image}_aligned.jpg").write_bytes(b"\xff\xd8broken")


def _affect_net(root: Path) -> None:
    """`aff` as a release that has been converted, and releases that have not."""
    codes = [*range(8)] * 2
    for name in ("aff", "aff_unfinished", "aff_empty_class"):
        write_npy_release(root / name, codes, [*range(8)])
        convert(root / name, copy=True)
        shutil.rmtree(root / name / "train_set")
        shutil.rmtree(root / name / "val_set")
    (root / "aff_unfinished/.conversion_unfinished").touch()
    shutil.rmtree(root / "aff_empty_class/val/4")
    write_npy_release(root / "aff_raw", codes, [*range(8)])
    (root / "aff_raw/toy.json").write_text("{")


def _class_folders(root: Path) -> None:
    for name, train, val in (
        ("own", "abc", "abc"),
        ("own_other_classes", "abc", "abd"),
        ("own_one_class", "a", "a"),
        ("own_no_val", "ab", ""),
    ):
        for split, classes in (("train", train), ("val", val)):
            for key in classes:
                (root / name / split / key).mkdir(parents=True)
                for i in range(3):
                    Image.new("RGB", (32, 32)).save(root / name / split / key / f"{i}.png")


def _releases(root: Path) -> None:
    """Releases of AffectNet, each good but for what its name says."""
    write_npy_release(root / "good", [0], [1])
    write_npy_release(root / "no_val", [0], [1])
    shutil.rmtree(root / "no_val/val_set")
    write_npy_release(root / "no_annotations", [0], [1])
    shutil.rmtree(root / "no_annotations/train_set/annotations")
    write_npy_release(root / "others_images", [0], [1])
    (root / "others_images/train/2").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(root / "others_images/train/2/mine.png")
    write_npy_release(root / "val_is_a_file", [0], [1])
    (root / "val_is_a_file/val").touch()
    write_npy_release(root / "list_is_a_folder", [0], [1])
    (root / "list_is_a_folder/affectnet.csv").mkdir()
    write_npy_release(root / "two_lists", [0], [1])
    for name in ("affectnet.csv", "affectnet.original.csv"):
        (root / "two_lists" / name).write_text("phase,img_path,label\ntrain,mine.jpg,1\n")
    for name in ("cropped", "no_validation", "no_columns"):
        (root / name).mkdir()
        write_manual_release(root / name, [GOOD], [GOOD])
    convert(root / "cropped", margin=0.5, workers=1)
    (root / "no_validation/validation.csv").unlink()
    (root / "no_columns/training.csv").write_text("subDirectory_filePath,face_x\na/1.jpg,3\n")
    for name, content in (
        ("list_empty", b""),
        ("list_binary", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"),
        ("list_quotes", b'phase,img_path,label\n"x'),
        ("list_no_column", b"phase,label\ntrain,1\n"),
    ):
        (root / name).mkdir()
        (root / name / "affectnet.csv").write_bytes(content)
    (root / "list_unusable").mkdir()
    write_list(root / "list_unusable", [("train", "gone.jpg", 1)], index=False)


def _forbidden(root: Path) -> None:
    """What permissions keep from anybody but root."""
    (root / "forbidden").mkdir()
    for name in ("face.jpg", "best.pth", "text.mp4"):
        (root / "forbidden" / name).write_bytes(b"secret")
        (root / "forbidden" / name).chmod(0)
    for name in ("raf", "train"):
        shutil.copytree(root / "raf", root / f"forbidden/{name}")
    (root / "forbidden/raf/EmoLabel/list_patition_label.txt").chmod(0)
    (root / "forbidden/train").chmod(0)
    (root / "forbidden/releases/train_set/images").mkdir(parents=True)
    (root / "forbidden/releases/train_set/annotations").mkdir(mode=0)
    (root / "forbidden/closed").mkdir(mode=0)
    (root / "forbidden").chmod(0o555)
