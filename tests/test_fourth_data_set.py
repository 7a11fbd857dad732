"""The README's list for a data set in a format of its own, followed: reader, recipe, RECIPES."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import run_grad_cam
from networks.dan import DAN
from networks.fused import FusedDAN
from networks.losses import DANLoss
from tests.conftest import SMALL
from utils import cli, distributed, engine, evaluation, resume, trained_on, transforms
from utils.face_data import FaceData, Split
from utils.run import build, report, set_up
from utils.sampling import shuffled
from utils.trained import read_trained
from utils.training import Training

CLASSES = ("calm", "glad", "low")


def read_listed(root):
    """A text file a split: a path and a class name a line."""
    splits = []
    for name in ("train", "val"):
        lines = [line.split() for line in (root / f"{name}.txt").read_text().splitlines()]
        labels = np.array([CLASSES.index(label) for _, label in lines], np.int64)
        splits.append(Split(root, np.array([path for path, _ in lines], dtype="S"), labels))
    return FaceData("Listed", "listed", CLASSES, *splits)


def recipe(root, argv):
    """The body of rafdb.py without toy faces, and with another reader."""
    parser, group = cli.recipe_parser(__doc__, batch_size=8, lr=0.01, epochs=1, run_name="listed")
    group.add_argument("--listed_path", default=str(root))
    args = cli.parse(parser, argv)
    resume.take_run_flags(args)
    world = distributed.join(args.device)
    trained = evaluation.read_checkpoint(args) if args.evaluate else None
    data = read_listed(root)
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
    """Its folder, with a line of RECIPES for it, in the folder where the scripts run."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "faces"
    root.mkdir()
    drawn = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 6)):
        lines = []
        for index in range(count):
            name = f"{split}_{index}.png"
            pixels = drawn.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name)
            lines.append(f"{name} {CLASSES[index % 3]}\n")
        (root / f"{split}.txt").write_text("".join(lines))
    line = trained_on.Recipe("listed.py", lambda path, num_class: read_listed(root))
    monkeypatch.setitem(trained_on.RECIPES, "listed_path", line)
    return root


def test_a_recipe_without_toy_faces(listed, tmp_path, capsys):
    """It trains, resumes, is evaluated and drawn; --toy is no flag of it."""
    recipe(listed, SMALL)
    best = tmp_path / "models/listed/best.pth"
    trained = read_trained(best)
    assert (trained.class_names, trained.dataset, trained.toy) == (CLASSES, "Listed", False)

    recipe(listed, ["--resume", "--epochs", "2"])
    assert read_trained(best.with_name("last.pth")).epoch == 2
    capsys.readouterr()

    recipe(listed, ["--evaluate", "--checkpoint", str(best), "--workers", "0", "--device", "cpu"])
    found = json.loads((tmp_path / "models/listed/best-evaluation/metrics.json").read_text())
    assert found["images"] == 6
    assert "Listed" in capsys.readouterr().out

    run_grad_cam.main(["--checkpoint", str(best), "--limit", "1", "--device", "cpu"])
    assert (tmp_path / "cam_result/overview.jpg").is_file()

    with pytest.raises(SystemExit):
        recipe(listed, ["--toy"])
    assert "unrecognized arguments: --toy" in capsys.readouterr().err
