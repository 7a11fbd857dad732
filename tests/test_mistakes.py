"""What users get wrong, by script: exit code 2, one line that names the culprit, nothing written.

Each table has a command line and what its error says, " ... " for anything in between. The
commands run in a folder full of what people mistake for the right thing.
"""

import importlib
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.conftest import REPOSITORY, TinyDAN, make_quick
from tests.releases import write_npy_release
from utils.convert_affectnet import convert
from utils.errors import exit_on_user_error
from utils.labels import AFFECTNET, RAFDB
from utils.toy.sets import write_rafdb

pytestmark = pytest.mark.filterwarnings("error")  # which would be lines on stderr too

TRAINING = "--pretrained none --image_size 32 --batch_size 8 --num_head 1 --workers 0 --epochs 1"
TRAINING += " --output_dir run --device cpu"
EVALUATION = "--workers 0 --device cpu --evaluate --checkpoint"
LONG = 300 * "x"  # longer than a file's name may be

RAFDB_TRAINING = {
    # flags
    "--batchsize 3": "--batchsize 3 (did you mean --batch_size?)",
    "--batch_size 1": "--batch_size: must be at least 2",
    "--batch_size x": "--batch_size: 'x' is not a whole number",
    "--lr nan": "--lr",
    "--image_size 16": "--image_size: must be from 32",
    "--num_center 6": "there are 7 classes",
    "--device tpu": "--device tpu",
    "--device cuda:77": "--device cuda:77",
    "--resume nothing.pth": "nothing.pth: no such checkpoint",
    "--resume --evaluate --checkpoint weights/best.pth": "exclude each other",
    "--resume weights/best.pth --overwrite": "--resume and --overwrite exclude each other",
    "--tsne": "--tsne goes together with --evaluate",
    "--evaluate": "--checkpoint FILE",
    "--checkpoint x.pth": "--evaluate",
    "--toy --device tpu --raf_path new": "--device tpu",
    "--toy": "raf: exists and is not a toy data set",
    # data
    "--raf_path nowhere": "nowhere: no such folder ... --toy",
    "--raf_path file": "file",
    "--raf_path folder": "folder: should hold EmoLabel/list_patition_label.txt and Image/aligned/",
    "--raf_path raf_label_9": "22 ... 'train_00015.jpg 9' ... label from 1 to 7",
    "--raf_path raf_no_image": "test_0003_aligned.jpg: missing ... check_data.py",
    "--raf_path raf_broken": "train_00005_aligned.jpg ... check_data.py --exclude",
    # weights and results
    "--pretrained models/resnet18_msceleb.pth": "drive.google.com",
    "--pretrained nothing.pth": "--pretrained none",
    "--pretrained weights/no_resnet.pth": "not a ResNet-18 ... bn1.weight",
    "--output_dir file": "file: cannot be written",
    f"--output_dir {LONG}": "xxx: cannot be written (File name too long)",
}
RAFDB_EVALUATION = {
    "x.pth": "x.pth: no such checkpoint",
    "weights": "weights: is a folder; give a file",
    "weights/page.pth": "web page",
    "weights/cut.pth": "weights/cut.pth: not a checkpoint",
    "weights/own.pth": "trained on own with the classes a, b, c, d, e, f, g, but RAF-DB also has",
    "weights/best.pth --num_head 2": "has --num_head 1, not 2",
    "weights/diverged.pth": "weights/diverged.pth: predicts NaN",
    "weights/best.pth --raf_path raf_broken": "test_0001_aligned.jpg",
}
AFFECTNET_TRAINING = {
    "--aff_path nowhere": "nowhere: no such folder ... --toy",
    "--aff_path folder": "folder: should hold train/",
    "--aff_path aff_raw": "python utils/convert_affectnet.py --aff_path aff_raw",
    "--aff_path aff_unfinished": "aff_unfinished: its conversion was interrupted",
    "--aff_path own_one_class": "at least 2 classes",
    "--aff_path own --num_class 8": "has 3 class folders of its own, but --num_class 8",
    "--toy": "aff: exists and is not a toy data set",
}
DEMO = {
    "": "give either --image or --camera",
    "--image photo.jpg --camera 0": "give either --image or --camera",
    "--image photo.jpg --show": "--show goes together with --camera",
    "--image photo.jpg --top 0": "--top: must be at least 1",
    "--image photo.jpg --margin -1": "--margin: must be at least 0",
    "--image nowhere.jpg": "nowhere.jpg: no such file",
    "--image folder": "folder: holds no file to read",
    "--image broken/cut.jpg": "broken/cut.jpg: cannot be read",
    "--image broken/page.png": "broken/page.png: not an image",
    "--image photo.jpg --output file": "file: cannot be written",
    "--image raf --output raf": "raf: would be both read and written",
    "--image photo.jpg --json file/o.jsonl": "file/o.jsonl: cannot be written",
    "--image photo.jpg --checkpoint weights/no_resnet.pth": "no_resnet.pth: not a trained network",
    "--image photo.jpg --whole_image --checkpoint weights/diverged.pth": "predicts NaN",
}
GRAD_CAM = {
    "--checkpoint nothing.pth": "nothing.pth: no such checkpoint",
    "--checkpoint weights/other_data.pth": "trained on neutral, happy ... now has surprise, fear",
    "--checkpoint weights/rafdb.pth": "datasets/raf-basic: no such folder ... name --images",
    "--checkpoint weights/toy.pth": "faces: no such folder ... python rafdb.py --evaluate",
    "--images raf --target joy": "--target joy: unknown ... one of surprise, fear, disgust",
    "--images broken/page.png": "none of the 1 image",
    "--images photo.jpg --output file": "file: cannot be written",
}
CONVERT = {
    "--aff_path nowhere": "nowhere: no such folder",
    "--aff_path folder": "train_set ... Manually_Annotated_Images ... affectnet.csv",
    "--aff_path aff_raw --output file": "file",
}
CHECK = {
    "nowhere": "nowhere: no such folder",
    "folder": "folder: no data set here",
}

TABLES = (  # script, what stands in front of every row, rows
    ("rafdb", f"--raf_path raf {TRAINING}", RAFDB_TRAINING),
    ("rafdb", f"--raf_path raf {EVALUATION}", RAFDB_EVALUATION),
    ("affectnet", f"--aff_path aff {TRAINING}", AFFECTNET_TRAINING),
    ("demo", "--checkpoint weights/best.pth --device cpu", DEMO),
    ("run_grad_cam", "--checkpoint weights/best.pth --output cam --device cpu", GRAD_CAM),
    ("utils.convert_affectnet", "--workers 1", CONVERT),
    ("utils.check_data", "--workers 1", CHECK),
)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, photo) -> Path:
    """Shared by all rows, as none of them may change it. Names say what is wrong."""
    root = tmp_path_factory.mktemp("workplace")
    for folder in ("folder", "broken", "weights"):
        (root / folder).mkdir()
    (root / "file").write_text("a file\n")
    shutil.copy(photo, root / "photo.jpg")
    (root / "broken/cut.jpg").write_bytes(photo.read_bytes()[:9000])
    (root / "broken/page.png").write_text("<!DOCTYPE html><html></html>")
    write_weights(root / "weights")
    write_data(root)
    return root


def write_weights(folder: Path) -> None:
    (folder / "page.pth").write_text("<!DOCTYPE html><title>Sign in</title>")
    torch.save({"state_dict": {"conv1.weight": torch.zeros(3)}}, folder / "no_resnet.pth")
    torch.manual_seed(0)
    state = TinyDAN(num_class=7, num_head=1).state_dict()
    torch.save({"model_state_dict": state}, folder / "rafdb.pth")
    config = {"image_size": 32}
    ours = {"model_state_dict": state, "class_names": RAFDB, "dataset": "RAF-DB", "config": config}
    diverged = {**state, "bn.running_var": torch.full((7,), -1.0)}
    for name, change in (
        ("best", {}),
        ("diverged", {"model_state_dict": diverged}),
        ("other_data", {"class_names": AFFECTNET[:7], "config": {"raf_path": "raf"}}),
        ("toy", {"config": {"raf_path": "faces", "toy": True}}),
        ("own", {"dataset": "own", "class_names": [*"abcdefg"]}),
    ):
        torch.save({**ours, **change}, folder / f"{name}.pth")
    whole = (folder / "best.pth").read_bytes()
    (folder / "cut.pth").write_bytes(whole[: len(whole) // 2])


def write_data(root: Path) -> None:
    write_rafdb(root / "raf", train=14, test=7)
    (root / "raf/toy.json").unlink()
    for name in ("raf_label_9", "raf_no_image", "raf_broken"):
        shutil.copytree(root / "raf", root / name)
    with open(root / "raf_label_9/EmoLabel/list_patition_label.txt", "a") as labels:
        labels.write("train_00015.jpg 9\n")
    (root / "raf_no_image/Image/aligned/test_0003_aligned.jpg").unlink()
    for name in ("train_00005", "test_0001"):
        path = root / f"raf_broken/Image/aligned/{name}_aligned.jpg"
        path.write_bytes(b"\xff\xd8broken")
    for name in ("aff", "aff_unfinished", "aff_raw"):
        write_npy_release(root / name, [*range(8)] * 2, [*range(8)])
        if name != "aff_raw":
            convert(root / name)
    (root / "aff_unfinished/.conversion_unfinished").touch()
    for name, classes in (("own", "abc"), ("own_one_class", "a")):
        for split in ("train", "val"):
            for key in classes:
                (root / name / split / key).mkdir(parents=True)
                Image.new("RGB", (32, 32)).save(root / name / split / key / "0.png")


def snapshot(folder: Path) -> dict[Path, tuple | None]:
    """Everything below a folder but that for results; files by what a rewrite would change."""
    found = {}
    for path in folder.rglob("*"):
        stat = path.lstat()
        found[path] = None if path.is_dir() else (stat.st_size, stat.st_mtime_ns, stat.st_ino)
    found.pop(folder / "cam", None)  # may be made before the mistake shows
    return found


@pytest.mark.parametrize(
    ("script", "argv", "says"),
    [
        pytest.param(script, f"{usual} {argv}", says, id=f"{script} {argv[:60]}")
        for script, usual, table in TABLES
        for argv, says in table.items()
    ],
)
def test_a_mistake_ends_in_one_line(script, argv, says, workplace, monkeypatch, capfd):
    make_quick(monkeypatch)
    monkeypatch.chdir(workplace)
    main, before = importlib.import_module(script).main, snapshot(workplace)
    with pytest.raises(SystemExit) as end, exit_on_user_error():
        sys.exit(main(shlex.split(argv)))
    *others, error = capfd.readouterr().err.splitlines()
    assert end.value.code == 2 and all(line.startswith("skipped: ") for line in others)
    assert re.match("error: .*" + ".*".join(map(re.escape, says.split(" ... "))), error)
    assert snapshot(workplace) == before


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("rafdb.py --raf_path nowhere", "nowhere: no such folder"),
        ("utils/convert_affectnet.py --aff_path nowhere", "nowhere: no such folder"),
        ("utils/convert_fer2013.py --fer2013 nowhere", "nowhere: cannot be read"),
    ],
)
def test_the_same_as_a_program(command, says, workplace):
    script, *argv = shlex.split(command)
    command = [sys.executable, REPOSITORY / script, *argv]
    done = subprocess.run(command, cwd=workplace, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert says in done.stderr
