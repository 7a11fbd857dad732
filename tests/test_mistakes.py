"""What users get wrong, by script: exit code 2, one line that names the culprit, nothing written.

Each table has a command line and what its error says. tests/mistakes.py builds the files, in the
folder in which the commands run.
"""

import importlib
import os
import re
import shlex
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import rafdb
from tests import mistakes
from utils.errors import exit_on_user_error

REPOSITORY = Path(rafdb.__file__).parent
pytestmark = pytest.mark.filterwarnings("error")  # which would be lines on stderr too


class Row(NamedTuple):
    """An entry of a table that needs more than what the error says."""

    says: str  # in this order, whatever stands in place of " ... "
    skipped: int = 0  # lines before the error, one for each file that is left out
    leaves: tuple[str, ...] = ()  # what is written all the same
    unless_root: bool = False  # for whom permissions do not count


LONG = 300 * "x"  # longer than a file's name may be

RAFDB = {
    # flags
    "--batchsize 3": "--batchsize 3 (did you mean --batch_size?)",
    "--frob=3": "--frob=3; see --help",
    "--frobnicate=3": "unrecognized arguments: --frobnicate=3; see --help",
    "stray": "unrecognized arguments: stray",
    "--batch_size 0": "--batch_size: must be at least 1",
    "--batch_size 1": "BatchNorm cannot train on one image",
    "--batch_size x": "--batch_size: 'x' is not a whole number",
    "--batch_size": "--batch_size: expected one argument",
    "--num_head 0": "--num_head: must be at least 1",
    "--epochs -1": "--epochs: must be at least 1",
    "--epochs 1.5": "not a whole number",
    "--lr nan": "--lr",
    "--lr inf": "--lr",
    "--lr 0": "--lr: must be more than 0",
    "--seed -1": "--seed",
    "--image_size 16": "--image_size: must be from 32",
    "--workers -1": "--workers: must be at least 0",
    "--affinity_weight -1": "--affinity_weight",
    "--num_center 6": "there are 7 classes",
    "--precision fp8": "--precision",
    "--device tpu": "--device tpu",
    "--device cuda:": "--device cuda:",
    "--device cuda:77": "--device cuda:77",
    "--resume nothing.pth": "--resume nothing.pth: no such checkpoint",
    f"--resume {LONG}": "xxx: no such checkpoint",
    "--resume weights/a_folder.pth": "weights/a_folder.pth",
    "--resume weights/page.pth": "web page",
    "--resume weights/code.pth": "could run code",
    "--resume weights/best.pth": "weights/best.pth: holds no configuration of a run",
    "--resume --evaluate --checkpoint weights/best.pth": "do not go together",
    "--resume weights/best.pth --overwrite": "--resume and --overwrite do not go together",
    "--tsne": "--tsne goes together with --evaluate",
    "--output_dir weights --overwrite --raf_path nowhere": "nowhere",
    "--toy --device tpu --raf_path new": "--device tpu",
    "--toy": "raf: exists and is not a toy data set",
    "--toy --raf_path file/toy": "file/toy: cannot be written",
    f"--toy --raf_path {LONG}": "File name too long",
    # data
    "--raf_path nowhere": "--toy",
    "--raf_path file": "file",
    "--raf_path folder": "folder/EmoLabel/list_patition_label.txt: missing",
    "--raf_path raf_no_labels": "list_patition_label.txt: missing",
    "--raf_path raf_no_images": "Image/aligned: missing",
    "--raf_path raf_images_file": "raf_images_file/Image/aligned",
    "--raf_path raf_labels_folder": "raf_labels_folder/EmoLabel/list_patition_label.txt",
    "--raf_path raf_label_9": "22 ... 'train_00015.jpg 9' ... label from 1 to 7",
    "--raf_path raf_label_nan": "22 ... 'train_00015.jpg nan' ... label from 1 to 7",
    "--raf_path raf_no_label": "22 ... 'train_00015.jpg'",
    "--raf_path raf_escape": "22 ... 'train_../../x.jpg 1'",
    "--raf_path raf_twice": "repeats train_00001.jpg of line 1",
    "--raf_path raf_no_image": "test_0003_aligned.jpg",
    "--raf_path raf_binary": "raf_binary/EmoLabel/list_patition_label.txt: not",
    "--raf_path raf_empty": "raf_empty ... train_*.jpg",
    "--raf_path raf_no_test": "raf_no_test ... test_*.jpg",
    "--raf_path raf_broken_train": "train_00005_aligned.jpg",
    "--raf_path raf_broken_test": "test_0005_aligned.jpg",
    "--raf_path forbidden/raf": Row("list_patition_label.txt", unless_root=True),
    "--raf_path forbidden/closed": Row("forbidden/closed", unless_root=True),
    "--raf_path forbidden/train": Row("forbidden/train", unless_root=True),
    # weights and output
    "--pretrained models/resnet18_msceleb.pth": "drive.google.com",
    "--pretrained nothing.pth": "--pretrained none",
    "--pretrained weights/a_folder.pth": "weights/a_folder.pth",
    "--pretrained weights/page.pth": "web page",
    "--pretrained weights/code.pth": "could run code",
    "--pretrained weights/no_resnet.pth": "bn1.weight is missing",
    "--output_dir file": "file: cannot be written",
    "--output_dir file/run": "file/run: cannot be written",
    "--output_dir link": "link: cannot be written",
    f"--output_dir {LONG}": "xxx: cannot be written (File name too long)",
    f"--output_dir {LONG} --resume": "xxx: cannot be written (File name too long)",
    "--output_dir forbidden/run": Row("forbidden/run: cannot be written", unless_root=True),
    "--evaluate": "--checkpoint FILE",
    "--checkpoint x.pth": "--evaluate",
}

RAFDB_EVALUATE = {
    "x.pth": "x.pth: no such checkpoint",
    "https://host/best.pth": "https://host/best.pth: is an address; download the file",
    "weights/a_folder.pth": "weights/a_folder.pth",
    "weights/page.pth": "web page",
    "weights/affecnet7.pth": "trained by affectnet.py; evaluate it with",
    "weights/affecnet8_epoch5_acc0.6209.pth": "--checkpoint weights/affecnet8_epoch5_acc0.6209.pth",
    "weights/seven.pth": "unknown order ... give it with --dataset",
    "weights/seven.pth --dataset FER": "--dataset: invalid choice",
    "weights/rafdb.pth --dataset AffectNet": "by its name trained on RAF-DB, but AffectNet",
    "weights/best.pth --num_head 2": "num_head 1, but --num_head 2",
    "weights/best.pth --image_size 96": "image_size 32, but --image_size 96",
    "weights/lacking.pth": "features.0.weight",
    "weights/diverged.pth": "weights/diverged.pth: answers with NaN",
    "weights/best.pth --output_dir file": "file: cannot be written",
    "weights/best.pth --raf_path raf_broken_test": "test_0005",
    "x.pth --toy --raf_path new": "x.pth",
}

AFFECTNET = {
    "--num_class 6": "--num_class: invalid choice",
    "--lr -1": "--lr",
    "--aff_path nowhere": "--toy",
    "--aff_path file": "file",
    "--aff_path folder": "folder: has no train/",
    "--aff_path aff_raw": "python utils/convert_affectnet.py --aff_path aff_raw",
    "--aff_path releases/cropped/train": "releases/cropped/train: has no train/",
    "--aff_path forbidden/closed": Row("forbidden/closed", unless_root=True),
    "--aff_path aff_unfinished": "aff_unfinished: its conversion was interrupted",
    "--aff_path aff_empty_class": "aff_empty_class ... val/4",
    "--aff_path own_other_classes": "own_other_classes: ... c",
    "--aff_path own_one_class": "at least 2 are needed",
    "--aff_path own_no_val": "own_no_val: has no val/",
    "--aff_path own --num_class 8": "has 3 class folders of its own, but 8 classes",
    "--toy": "aff: exists and is not a toy data set",
    "--toy --aff_path aff_raw": "aff_raw/toy.json: damaged",
    "--pretrained nothing.pth": "nothing.pth: no such weights",
    f"--pretrained {LONG}.pth": "xxx.pth: no such weights",
    "--pretrained weights": "weights: is a folder; give a file",
}

AFFECTNET_EVALUATE = {
    "weights/affecnet7.pth --aff_path own": "own: has 3 class folders of its own, but 7 classes",
    "weights/rafdb.pth --toy --aff_path new": "trained by rafdb.py; evaluate it with",
    "weights/affecnet7.pth --num_class 8": "AffectNet with 7 classes ... AffectNet with 8 (",
    "weights/best.pth --aff_path own": "RAF-DB with 7 classes",
    "weights/random.pth": "weights/random.pth: not a checkpoint",
    "weights/code.pth": "could run code",
}

DEMO = {
    # flags
    "": "required: --image; see --help",
    "--images photo.jpg": "--images (did you mean --image?); see --help",
    "--image": "--image: expected at least one argument",
    "--image photo.jpg --top 0": "--top: must be at least 1",
    "--image photo.jpg --every 0": "--every: must be at least 1",
    "--image photo.jpg --margin -1": "--margin: must be at least 0",
    "--image photo.jpg --unknown": "--unknown",
    "--image photo.jpg --device tpu": "--device tpu",
    "--image photo.jpg --dataset RAF-DB": "trained on AffectNet, but RAF-DB was asked for",
    # files
    "--image nowhere.jpg": "nowhere.jpg: no such file",
    "--image link": "link: no such file",
    f"--image {LONG}.jpg": "xxx.jpg: no such file",
    "--image nowhere.jpg nor_there.jpg": "nor_there.jpg: no such file",
    "--image folder": "folder: has no files ending in .jpg",
    "--image broken/cut.jpg": "broken/cut.jpg: cannot be read",
    "--image broken/empty.jpg --json o.jsonl": "broken/empty.jpg: not an image",
    "--image broken/page.png --output out": "broken/page.png: not an image",
    "--image broken/huge.png": "broken/huge.png: 100000x100000 is too large",
    "--image broken --output out --json o.jsonl": Row("none of 4 files", skipped=4),
    "--image file": "file: not an image",
    "--image videos/text.mp4": "videos/text.mp4: not a video",
    "--image videos/cut.mp4 --output out": "videos/cut.mp4: not a video",
    "--image videos --json o.jsonl": Row("none of 2 files", skipped=2),
    "--image forbidden/face.jpg": Row("forbidden/face.jpg", unless_root=True),
    "--image forbidden/closed": Row("forbidden/closed", unless_root=True),
    "--image forbidden/text.mp4": Row("forbidden/text.mp4", unless_root=True),
    # results
    "--image photo.jpg --output file": "file: cannot be written",
    "--image photo.jpg --output file/out": "file/out: cannot be written",
    "--image photo.jpg --output link": "link: cannot be written",
    "--image raf --output raf": "raf: is to be read and written to",
    "--image photo.jpg photo_emotions.jpg --output .": "photo_emotions.jpg: would be overwritten",
    "--image photo.jpg --json photo.jpg": "photo.jpg: is one of the files to read",
    "--image photo.jpg --checkpoint weights/seven.pth --json weights/seven.pth": "is one of the",
    "--image photo.jpg --json folder": "folder: is a folder",
    "--image photo.jpg --json file/o.jsonl": "file/o.jsonl: cannot be written",
    "--image photo.jpg --output forbidden/out": Row("forbidden/out: cannot", unless_root=True),
    "--image photo.jpg --json forbidden/o.jsonl": Row("forbidden/o.jsonl", unless_root=True),
    # checkpoints
    "--image photo.jpg --checkpoint nothing.pth": "nothing.pth: no such checkpoint",
    "--image photo.jpg --checkpoint weights": "weights: is a folder; give a file",
    "--image photo.jpg --output out --json o --checkpoint weights/page.pth": "web page",
    "--image photo.jpg --output out --checkpoint weights/empty.pth": "weights/empty.pth: not a",
    "--image photo.jpg --checkpoint weights/random.pth": "weights/random.pth: not a checkpoint",
    "--image photo.jpg --checkpoint weights/cut.pth": "weights/cut.pth: not a checkpoint",
    "--image photo.jpg --checkpoint weights/code.pth": "could run code",
    "--image photo.jpg --checkpoint weights/list.pth": "weights/list.pth: holds a list",
    "--image photo.jpg --checkpoint weights/no_resnet.pth": "weights/no_resnet.pth: not a trained",
    "--image photo.jpg --checkpoint weights/seven.pth": "give it with --dataset",
    "--image photo.jpg --output out --checkpoint weights/lacking.pth": "features.0.weight",
    "--image photo.jpg --json o --checkpoint weights/misshapen.pth": "cat_head0.ca.attention.0",
    "--image photo.jpg --checkpoint weights/diverged.pth": "weights/diverged.pth: answers with NaN",
    "--image photo.jpg --checkpoint weights/names.pth": "names 2 classes, but has 7",
    "--image photo.jpg --checkpoint forbidden/best.pth": Row("may not be read", unless_root=True),
}

GRAD_CAM = {
    "": "weights/best.pth: does not say where its data lies; name --images",
    "--checkpoint nothing.pth": "nothing.pth: no such checkpoint",
    "--checkpoint file": "file: not a checkpoint",
    "--checkpoint weights/page.pth": "web page",
    "--checkpoint weights/other_data.pth": "trained on neutral, happy ... now has surprise, fear",
    "--checkpoint weights/rafdb.pth": "datasets/raf-basic: no such folder ... name --images",
    "--checkpoint weights/toy.pth": "faces: no such folder ... by python rafdb.py --evaluate",
    "--checkpoint weights/affecnet7.pth": "datasets/AffectNet: no such folder",
    "--checkpoint weights/seven.pth --images raf": "give it with --dataset",
    "--checkpoint weights/lacking.pth --images photo.jpg": "features.0.weight",
    "--checkpoint weights/diverged.pth --images photo.jpg": Row("with NaN", leaves=("cam",)),
    "--images raf --method gradcam+++": "--method: invalid choice",
    "--images raf --target joy": "--target joy: unknown ... or one of surprise, fear, disgust",
    "--images photo.jpg --target label": "photo.jpg: has no label",
    "--images photo.jpg --target fear --method attention": "attention are the same for every class",
    "--images raf --limit 0": "--limit: must be at least 1",
    "--images raf --batch_size 0": "--batch_size: must be at least 1",
    "--images raf --device tpu": "--device tpu",
    "--images nowhere": "nowhere: no such file",
    "--images folder": "folder: has no files ending in",
    "--images broken/empty.jpg": "broken/empty.jpg: not an image",
    "--images broken": Row("none of the 4 images", skipped=4),
    "--images videos/cut.mp4": "videos/cut.mp4: not an image",
    "--images raf --output raf": "raf: is to be read and written to",
    "--images raf --output file": "file: cannot be written",
    "--images raf --output file/cam": "file/cam: cannot be written",
    "--images raf --output forbidden/cam": Row("forbidden/cam: cannot", unless_root=True),
}

CONVERT = {
    "--aff_path nowhere": "nowhere: no such folder",
    f"--aff_path {LONG}": "xxx: no such folder",
    "--aff_path file": "file: no such folder",
    "--aff_path folder": "train_set ... Manually_Annotated_Images ... affectnet.csv",
    "--aff_path releases/no_val": "val_set/images: missing",
    "--aff_path releases/no_annotations": "train_set/annotations: missing",
    "--aff_path releases/others_images": "others_images: ... 1 images ... (train/2/mine.png)",
    "--aff_path releases/val_is_a_file": "releases/val_is_a_file/val",
    "--aff_path releases/list_is_a_folder": "affectnet.csv: is a folder",
    "--aff_path releases/two_lists": "affectnet.original.csv exists",
    "--aff_path releases/no_validation": "validation.csv: missing",
    "--aff_path releases/no_columns": "training.csv: no column",
    "--aff_path releases/cropped --margin 0.2": "--margin 0.5",
    "--aff_path releases/list_empty": "list_empty/affectnet.csv",
    "--aff_path releases/list_binary": "list_binary/affectnet.csv",
    "--aff_path releases/list_quotes": "list_quotes/affectnet.csv",
    "--aff_path releases/list_no_column": "no column img_path",
    "--aff_path releases/good --output file": "file: cannot be written",
    "--aff_path releases/good --output file/aff": "file/aff: cannot be written",
    "--aff_path releases/good --margin -0.1": "--margin",
    "--aff_path releases/good --margin nan": "--margin",
    "--aff_path releases/good --margin wide": "--margin: invalid float value: 'wide'",
    "--aff_path releases/good --workers 0": "--workers",
    "--aff_path releases/good --link": "--link",
    "--aff_path forbidden/releases": Row("forbidden/releases/train_set", unless_root=True),
    "--aff_path forbidden/closed": Row("forbidden/closed: cannot be read", unless_root=True),
    "--aff_path releases/good --output forbidden/aff": Row("forbidden/aff", unless_root=True),
}

TOY_FACES = {
    "": "nothing to do",
    "--layout celeba --output new": "--layout: invalid choice",
    "--output new --seed -1": "0 or more, not -1",
    "--output new --train 3": "one a class",
    "--output new --test -7": "one a class",
    "--output new --train many": "--train: invalid int value: 'many'",
    "--output file": "file: exists and is not a toy data set",
    "--output own": "own: exists and is not a toy data set",
    "--output aff_raw": "toy.json: damaged",
    "--output file/new": "file/new: cannot be written",
    "--output new --train 7 --test 7 --sheet folder": "folder: is a folder",
    "--output new --train 7 --test 7 --sheet sheet.xyz": "sheet.xyz: no picture's name",
    "--output new --train 7 --test 7 --sheet file/sheet.png": "file/sheet.png: cannot be written",
    "--output forbidden/new": Row("forbidden/new: cannot be written", unless_root=True),
}

TRAINING = "--pretrained none --image_size 32 --batch_size 8 --num_head 1 --workers 0 --epochs 1"
TRAINING += " --output_dir run --device cpu"
EVALUATION = "--workers 0 --device cpu --evaluate --checkpoint"

TABLES = (  # script, what stands in front of every row, rows
    ("rafdb", f"--raf_path raf {TRAINING}", RAFDB),
    ("rafdb", f"--raf_path raf {EVALUATION}", RAFDB_EVALUATE),
    ("affectnet", f"--aff_path aff {TRAINING}", AFFECTNET),
    ("affectnet", f"--aff_path aff {EVALUATION}", AFFECTNET_EVALUATE),
    ("demo", "--checkpoint weights/affecnet8_epoch5_acc0.6209.pth --device cpu", DEMO),
    ("run_grad_cam", "--checkpoint weights/best.pth --output cam --device cpu", GRAD_CAM),
    ("utils.convert_affectnet", "--workers 1", CONVERT),
    ("utils.toy_faces", "", TOY_FACES),
)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, photo) -> Path:
    """Shared by all rows, as none of them may change it."""
    folder = tmp_path_factory.mktemp("workplace")
    mistakes.build(folder, photo)
    return folder


@contextmanager
def unchanged(folder: Path, but: tuple[str, ...] = ()):
    """Checks that what runs inside leaves the folder as it is, but for paths that are named."""
    before = snapshot(folder)
    try:
        yield
    finally:
        after = snapshot(folder)
        new = sorted(after.keys() - before.keys())
        for path in map(folder.joinpath, reversed(new)):  # so that the next row does not find it
            path.rmdir() if path.is_dir() else path.unlink()
    assert set(new) == set(but)
    assert {path: after.get(path) for path in before} == before


def snapshot(folder: Path) -> dict[str, tuple]:
    """Everything below a folder; files by what a rewrite would change."""
    found = {}
    for parent, folders, files in os.walk(folder):
        found |= {os.path.relpath(os.path.join(parent, name), folder): () for name in folders}
        for path in (os.path.join(parent, name) for name in files):
            stat = os.lstat(path)
            change = (stat.st_size, stat.st_mtime_ns, stat.st_ino)
            found[os.path.relpath(path, folder)] = change
    return found


def rows() -> list:
    params = []
    for script, usual, table in TABLES:
        for argv, row in table.items():
            row = row if isinstance(row, Row) else Row(row)
            marks = []
            if row.unless_root and os.geteuid() == 0:
                marks = [pytest.mark.skip(reason="permissions do not keep root from anything")]
            name = f"{script} {argv[:80]}"
            params.append(pytest.param(script, f"{usual} {argv}", row, id=name, marks=marks))
    return params


@pytest.mark.parametrize(("script", "argv", "row"), rows())
def test_a_mistake_ends_in_one_line(script, argv, row, workplace, monkeypatch, capfd):
    if "cuda:77" in argv and torch.cuda.device_count() > 77:
        pytest.skip("there are that many GPUs")
    monkeypatch.chdir(workplace)
    main = importlib.import_module(script).main
    with unchanged(workplace, but=row.leaves), pytest.raises(SystemExit) as end:
        with exit_on_user_error():
            main(shlex.split(argv))
    *skipped, error = capfd.readouterr().err.splitlines()
    assert end.value.code == 2
    assert re.match("error: .*" + ".*".join(map(re.escape, row.says.split(" ... "))), error)
    assert len(skipped) == row.skipped and all(line.startswith("skipped: ") for line in skipped)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("rafdb.py --raf_path nowhere", "nowhere: no such folder"),
        ("affectnet.py --aff_path aff_raw", "aff_raw: holds train_set but no class folders"),
        ("demo.py --image nowhere.jpg", "nowhere.jpg: no such file"),
        ("run_grad_cam.py --checkpoint weights/page.pth", "weights/page.pth: not a checkpoint"),
        ("utils/convert_affectnet.py --aff_path releases/two_lists", "releases/two_lists"),
        ("utils/toy_faces.py --output own", "own: exists and is not a toy data set"),
    ],
)
def test_the_same_as_a_program(command, says, workplace):
    script, *argv = shlex.split(command)
    command = [sys.executable, REPOSITORY / script, *argv]
    with unchanged(workplace):
        done = subprocess.run(command, cwd=workplace, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert says in done.stderr
