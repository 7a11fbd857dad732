"""What docs/extending.md says, followed: a data set in a format of its own."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from networks.losses import DANLoss
from tests.conftest import SMALL, TinyDAN
from utils import checkpoint, cli, distributed
from utils.checkpoint import read_trained
from utils.data import datasets
from utils.data.datasets import FaceData, Split, data_of
from utils.data.loader import shuffled
from utils.data.transforms import Augmentation
from utils.errors import UserError
from utils.training import engine, evaluation
from utils.training.run import Run

pytestmark = pytest.mark.usefixtures("quick")
CLASSES = ("calm", "glad", "low")
TRAIN = [*SMALL, "--batch_size", "4"]


def read_listed(root, folds):
    """A text file whose lines are a path, a class name and a fold; some folds are held out."""
    lines = [line.split() for line in (Path(root) / "faces.txt").read_text().splitlines()]
    splits = []
    for held_out in (False, True):
        chosen = [line for line in lines if (int(line[2]) in folds) is held_out]
        names = np.array([path for path, _, _ in chosen], dtype="S")
        labels = np.array([CLASSES.index(label) for _, label, _ in chosen], np.int64)
        splits.append(Split(Path(root), names, labels))
    return FaceData("Listed", CLASSES, *splits, root=Path(root))


def recipe(*argv):
    """The body of rafdb.py without toy faces, with another reader and two more flags for it."""
    parser = cli.RecipeParser(__doc__, "listed", batch_size=8, lr=1e-4, epochs=1)
    parser.data.add_argument("--listed_path", default="faces")
    parser.data.add_argument("--folds", type=int, nargs="+", default=[0])
    args, saved = cli.parse(parser, argv)
    world = distributed.init(args)
    data = read_listed(args.listed_path, args.folds)
    if args.evaluate:
        evaluation.evaluate_checkpoint(args, saved, data, world)
        return
    model = TinyDAN(num_class=data.num_class, **cli.network_flags(vars(args)))
    if saved is None:
        checkpoint.load_pretrained(model, args.pretrained)
    criterion = DANLoss(num_class=data.num_class, batch_mean=world.mean)
    model, criterion = world.place(model), world.place(criterion)
    parameters = [*model.parameters(), *criterion.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=args.lr)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=10)
    run = Run(args, saved, data, world, model, criterion, optimizer, scheduler)
    engine.fit(run, data, Augmentation(flip=0.5), order=shuffled)


@pytest.fixture
def listed(tmp_path, monkeypatch):
    """Its data, and a line of SOURCES for it, where the scripts run: folds of 9, 6 and 12 faces."""
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
    source = datasets.Source(
        "listed.py", lambda flags: read_listed(flags["listed_path"], flags["folds"])
    )
    monkeypatch.setitem(datasets.SOURCES, "listed_path", source)
    return root


EVALUATE = "--evaluate --checkpoint models/listed/best.pth --workers 0 --device cpu".split()


def evaluated(folder="best-evaluation"):
    """How many images were."""
    return json.loads(Path("models/listed", folder, "metrics.json").read_text())["images"]


def test_it_trains_resumes_is_evaluated_and_chosen_for_heat_maps(listed, capsys):
    recipe(*TRAIN)
    best = Path("models/listed/best.pth")  # the recipe's name is the run's
    trained = read_trained(best)
    assert (trained.class_names, trained.dataset, trained.toy) == (CLASSES, "Listed", False)
    recipe("--resume", "--epochs", "2")
    assert read_trained(best.with_name("last.pth")).epoch == 2
    recipe(*EVALUATE)
    assert evaluated() == 9
    assert data_of(trained).val.path(0) == Path("faces/0_0.png")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        recipe("--toy")
    assert "unrecognized arguments: --toy" in capsys.readouterr().err


def test_its_own_flags_are_those_of_the_training(listed):
    """With which data a run continues, is evaluated and explained, unless others are given."""
    listed.rename("elsewhere")
    recipe(*TRAIN, "--folds", "1", "2", "--listed_path", "elsewhere")
    recipe("--resume", "--epochs", "2")
    assert len(pd.read_csv("models/listed/metrics.csv")) == 2
    recipe(*EVALUATE)
    assert evaluated() == 18
    recipe(*EVALUATE, "--folds", "1")
    assert evaluated("best-evaluation-folds-1") == 6 and evaluated() == 18
    split = data_of(read_trained("models/listed/best.pth")).val
    assert {split.path(index).name[0] for index in range(len(split))} == {"1", "2"}
    with pytest.raises(UserError, match=r"--folds 1 \(it has 1 2\)"):
        recipe("--resume", "--folds", "1")
