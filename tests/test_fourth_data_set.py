"""The README's list for a data set in a format of its own, followed: reader, recipe, RECIPES."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import run_grad_cam
from networks.dan import DAN
from networks.fused import FusedDAN
from networks.losses import DANLoss
from tests.conftest import SMALL
from utils import cli, distributed, engine, evaluation, resume, trained_on, transforms
from utils.errors import UserError
from utils.face_data import FaceData, Split
from utils.images import read_rgb
from utils.run import build, report, set_up
from utils.sampling import shuffled
from utils.trained import read_trained
from utils.training import Training

CLASSES = ("calm", "glad", "low")
# So many steps that after an epoch BatchNorm's statistics are near enough for finite answers.
TRAIN = [*SMALL, "--batch_size", "2"]


def read_listed(root, folds):
    """A text file whose lines are a path, a class name and a fold; some folds are held out."""
    lines = [line.split() for line in (Path(root) / "faces.txt").read_text().splitlines()]
    splits = []
    for held_out in (False, True):
        chosen = [line for line in lines if (int(line[2]) in folds) is held_out]
        names = np.array([path for path, _, _ in chosen], dtype="S")
        labels = np.array([CLASSES.index(label) for _, label, _ in chosen], np.int64)
        splits.append(Split(Path(root), names, labels))
    return FaceData("Listed", "listed", CLASSES, *splits)


def recipe(*argv):
    """The body of rafdb.py without toy faces, with another reader and one more flag for that."""
    parser, group = cli.recipe_parser(__doc__, batch_size=8, lr=1e-4, epochs=1, run_name="listed")
    group.add_argument("--listed_path", default="faces")
    group.add_argument("--folds", type=int, nargs="+", default=[0])
    group.add_argument("--masks_path", help="a second path, which may be left out")
    args = cli.parse(parser, argv)
    world = distributed.join(args.device)
    resume.take_run_flags(args, world)
    trained = evaluation.read_checkpoint(args) if args.evaluate else None
    data = read_listed(args.listed_path, args.folds)
    if trained is not None:
        evaluation.evaluate_trained(args, trained, data, world, DAN, FusedDAN)
        return
    run = set_up(args, data, world)
    run.say(data.summary())
    model, criterion = build(run, DAN, DANLoss)
    parameters = [*model.parameters(), *criterion.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=args.lr)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=10)
    report(run, model)
    training = Training(run, model, criterion, optimizer, scheduler)
    engine.fit(training, data, transforms.Augmentation(flip=0.5), order=shuffled)


@pytest.fixture
def listed(tmp_path, monkeypatch):
    """Its data, and a line of RECIPES for it, where the scripts run: folds of 9, 6 and 12 faces."""
    monkeypatch.chdir(tmp_path)
    root = Path("faces")
    root.mkdir()
    drawn = np.random.default_rng(0)
    lines = []
    for fold, count in enumerate((9, 6, 12)):
        for index in range(count):
            name = f"{fold}_{index}.png"
            pixels = drawn.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name)
            lines.append(f"{name} {CLASSES[index % 3]} {fold}\n")
    (root / "faces.txt").write_text("".join(lines))
    line = trained_on.Recipe(
        "listed.py", lambda flags: read_listed(flags["listed_path"], flags["folds"])
    )
    monkeypatch.setitem(trained_on.RECIPES, "listed_path", line)
    return root


EVALUATE = "--evaluate --checkpoint models/listed/best.pth --workers 0 --device cpu".split()


def evaluated():
    """How many images were."""
    return json.loads(Path("models/listed/best-evaluation/metrics.json").read_text())["images"]


def test_a_recipe_without_toy_faces(listed, capsys):
    """It trains, resumes, is evaluated and drawn; --toy is no flag of it."""
    recipe(*TRAIN)
    best = Path("models/listed/best.pth")
    trained = read_trained(best)
    assert (trained.class_names, trained.dataset, trained.toy) == (CLASSES, "Listed", False)

    recipe("--resume", "--epochs", "2")
    assert read_trained(best.with_name("last.pth")).epoch == 2
    capsys.readouterr()

    recipe(*EVALUATE)
    assert evaluated() == 9
    assert "Listed" in capsys.readouterr().out

    run_grad_cam.main(["--checkpoint", str(best), "--limit", "1", "--device", "cpu"])
    assert Path("cam_result/overview.jpg").is_file()

    with pytest.raises(SystemExit):
        recipe("--toy")
    assert "unrecognized arguments: --toy" in capsys.readouterr().err


def test_its_own_flags_are_those_of_the_training(listed, monkeypatch):
    """With which data a run goes on, is evaluated and explained, unless other ones are named."""
    listed.rename("elsewhere")
    folds, path = ["--folds", "1", "2"], ["--listed_path", "elsewhere"]
    recipe(*TRAIN, *folds, *path)
    recipe("--resume", "--epochs", "2")
    assert len(pd.read_csv("models/listed/metrics.csv")) == 2

    recipe(*EVALUATE)
    assert evaluated() == 18
    said = json.loads(Path("models/listed/best-evaluation/metrics.json").read_text())
    assert (said["folds"], said["listed_path"], said["precision"]) == ([1, 2], "elsewhere", "fp32")
    recipe(*EVALUATE, "--folds", "1")
    assert evaluated() == 6

    shown = []
    monkeypatch.setattr(run_grad_cam, "read_rgb", lambda path: shown.append(path) or read_rgb(path))
    run_grad_cam.main(["--checkpoint", "models/listed/best.pth", "--device", "cpu"])
    assert {path.name[0] for path in shown} == {"1", "2"}

    # A bare --resume goes on with the run in the default folder where it has the flags given.
    recipe("--resume", "--folds", "1", "2", "--epochs", "3")
    recipe("--resume", *path, "--epochs", "4")
    assert len(pd.read_csv("models/listed/metrics.csv")) == 4
    # Others may choose data with a folder of their own, so they are read first.
    with pytest.raises(UserError, match=r"--folds 1 \(it has 1 2\)"):
        recipe("--resume", *path, "--folds", "1")
    with pytest.raises(UserError, match="the run has --folds 1 2; .* --resume models/listed"):
        recipe("--resume", "--listed_path", "./elsewhere")


def test_a_damaged_run_is_told_where_the_data_lead_to_it(listed, monkeypatch):
    recipe(*TRAIN)
    last = Path("models/listed/last.pth")
    last.unlink()  # a link to best.pth
    last.write_bytes(b"half")
    with pytest.raises(UserError, match=r"models/listed/last\.pth: not a checkpoint"):
        recipe("--resume", "--folds", "0")

    original = read_listed

    def read_another(*args):
        return replace(original(*args), run_name="another")

    monkeypatch.setitem(globals(), "read_listed", read_another)
    recipe("--resume", "--folds", "1", *TRAIN)
    assert Path("models/another/last.pth").is_file()


def test_a_flag_that_no_checkpoint_could_keep(listed):
    parser, group = cli.recipe_parser(__doc__, batch_size=8, lr=1e-4, epochs=1, run_name="listed")
    group.add_argument("--listed_path", type=Path, default="faces")
    with pytest.raises(TypeError, match="--listed_path .*Path.*: checkpoints keep"):
        cli.parse(parser, [])


def test_a_split_without_images(listed):
    with pytest.raises(UserError, match="faces: one of its splits has no images"):
        recipe(*TRAIN, "--folds", "3")
