"""A run that is interrupted and resumed ends like one that was not; nothing saved is lost."""

import csv
import itertools
import os
import shlex
import shutil
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, StepLR

import affectnet
import rafdb
from tests.conftest import SMALL, TinyDAN, train_raf
from utils import checkpoint
from utils.data import loader
from utils.errors import UserError, exit_on_user_error
from utils.training import engine

pytestmark = pytest.mark.usefixtures("quick")
TIMES = ("seconds", "images_per_second")


@pytest.fixture(params=["rafdb", "rafdb streamed", "affectnet"])
def call(request, toy_raf, toy_aff, monkeypatch):
    """Runs a script with its data and the small flags."""
    script, flags, number = rafdb, ["--raf_path", str(toy_raf), *SMALL], signal.SIGTERM
    if request.param == "affectnet":
        script, flags, number = affectnet, ["--aff_path", str(toy_aff), *SMALL], signal.SIGUSR1
    if request.param == "rafdb streamed":
        monkeypatch.setattr(loader, "CACHE_SHARE", 0)
        flags, number = [*flags, "--workers", "2"], signal.SIGINT

    def run(folder, *more):
        script.main([*flags, "--output_dir", str(folder), *more])

    run.signal = number  # the one that interrupts it
    return run


@pytest.fixture
def interrupt(monkeypatch, capsys):
    """Runs a training that a signal interrupts at some call of a function of the engine; returns
    the exit code and what it printed to stderr."""

    def run(train, *args, function="update", call=1, number=signal.SIGTERM):
        original, calls = getattr(engine, function), itertools.count(1)

        def interrupted(*args, **kwargs):
            if next(calls) == call:
                os.kill(os.getpid(), number)
            return original(*args, **kwargs)

        with monkeypatch.context() as patch, pytest.raises(SystemExit) as end, exit_on_user_error():
            patch.setattr(engine, function, interrupted)
            train(*args)
        return end.value.code, capsys.readouterr().err

    return run


def comparable(content):
    """A checkpoint with arrays for tensors, without what may differ between equal runs."""
    if isinstance(content, dict):
        names = content.keys() - {*TIMES, "output_dir", "epochs"}
        return {name: comparable(content[name]) for name in names}
    if isinstance(content, list | tuple):
        return [comparable(value) for value in content]
    return content.numpy() if isinstance(content, torch.Tensor) else content


def metrics(folder: Path) -> list[dict]:
    with open(folder / "metrics.csv") as file:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]


def assert_same_runs(one: Path, other: Path) -> None:
    """Bit by bit, but for the seconds that they took."""
    for name in ("last.pth", "best.pth"):
        ours, theirs = (comparable(checkpoint.load(folder / name)) for folder in (one, other))
        np.testing.assert_equal(ours, theirs)
    assert metrics(one) == metrics(other)
    assert sorted(os.listdir(one)) == sorted(os.listdir(other))


def test_interrupted_in_mid_epoch_and_resumed_is_bit_identical(call, interrupt, tmp_path):
    """Three epochs of three steps, interrupted after the fifth step."""
    call(tmp_path / "whole", "--epochs", "3")
    code, error = interrupt(call, tmp_path / "run", "--epochs", "3", call=5, number=call.signal)
    assert code == 128 + call.signal
    assert f"{signal.Signals(call.signal).name} in epoch 2, step 2 of 3" in error
    saved = checkpoint.load(tmp_path / "run" / "last.pth")
    assert (saved["iter"], saved["progress"]["steps"]) == (1, 2)
    command = shlex.split(error.splitlines()[-1])
    assert command[0] == "python" and command[2:4] == ["--resume", f"{tmp_path}/run/last.pth"]
    call(tmp_path / "run", "--resume")
    assert_same_runs(tmp_path / "whole", tmp_path / "run")


def test_more_epochs_for_a_finished_run_are_bit_identical(call, tmp_path, capsys):
    """Flags that are not given are those of the run."""
    flags = ["--lr", "0.03", "--seed", "7", "--affinity_weight", "0.5"]
    call(tmp_path / "whole", *flags, "--epochs", "2")
    call(tmp_path / "run", *flags, "--epochs", "1")
    capsys.readouterr()
    call(tmp_path / "run", "--resume")
    assert "has completed 1 epoch;" in capsys.readouterr().out
    call(tmp_path / "run", "--resume", "--epochs", "2")
    assert_same_runs(tmp_path / "whole", tmp_path / "run")


def test_interrupted_during_its_evaluation(toy_raf, interrupt, tmp_path):
    train_raf(toy_raf, tmp_path / "whole", "--epochs", "2")
    train = (train_raf, toy_raf, tmp_path / "run", "--epochs", "2")
    _, error = interrupt(*train, function="evaluate")
    assert "in epoch 1, its evaluation;" in error
    saved = checkpoint.load(tmp_path / "run" / "last.pth")
    assert (saved["iter"], saved["progress"]["steps"]) == (0, 3)
    train_raf(toy_raf, tmp_path / "run", "--resume")
    assert_same_runs(tmp_path / "whole", tmp_path / "run")


def test_a_network_with_dropout_resumes_bit_identically(toy_raf, interrupt, tmp_path, monkeypatch):
    """Its random numbers come from PyTorch's global state, which the checkpoint holds."""
    forward = TinyDAN.forward

    def with_dropout(self, images):
        return forward(self, torch.nn.functional.dropout(images, 0.5, self.training))

    monkeypatch.setattr(TinyDAN, "forward", with_dropout)
    train_raf(toy_raf, tmp_path / "whole", "--epochs", "2")
    interrupt(train_raf, toy_raf, tmp_path / "run", "--epochs", "2", call=4)
    train_raf(toy_raf, tmp_path / "run", "--resume")
    assert_same_runs(tmp_path / "whole", tmp_path / "run")


def test_a_bare_resume_finds_the_run_in_the_default_folder(toy_raf, toy_aff, tmp_path, monkeypatch):
    """Also the one of other class folders, which is called after them."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(toy_aff / "train", "mine/train")
    for code in range(8):
        (tmp_path / f"mine/train/{code}").rename(tmp_path / f"mine/train/class {code}")
    shutil.copytree("mine/train", "mine/val")
    calls = (
        (rafdb, "rafdb", ["--raf_path", str(toy_raf)]),
        (affectnet, "affectnet-8", ["--aff_path", str(toy_aff)]),
        (affectnet, "affectnet-7", ["--aff_path", str(toy_aff), "--num_class", "7"]),
        (affectnet, "mine", ["--aff_path", "mine"]),
    )
    for script, name, data in calls:
        for epochs in ("1", "2"):  # the first call starts it
            script.main([*data, *SMALL, "--resume", "--epochs", epochs])
        assert len(metrics(tmp_path / "models" / name)) == 2
    rafdb.main(["--resume", "--epochs", "3", "--device", "cpu"])  # the run knows its data
    assert len(metrics(tmp_path / "models/rafdb")) == 3


def test_best_follows_where_a_run_was_killed_before_it(toy_raf, small_run, tmp_path):
    """Between the two files of an epoch that is the best so far; a half-written file goes."""
    content = checkpoint.load(small_run / "last.pth")
    content["metrics"][-1]["val_accuracy"] = 0.99
    checkpoint.save(tmp_path / "last.pth", content)
    (tmp_path / ".best.pth.tmp").write_bytes(b"half")
    train_raf(toy_raf, tmp_path, "--resume", "--epochs", "3")
    assert checkpoint.load(tmp_path / "best.pth")["iter"] == 2
    assert not list(tmp_path.glob(".*.tmp"))


def test_another_recipe_is_refused_with_both_values(toy_raf, small_run):
    own = checkpoint.load(small_run / "last.pth")["config"]
    changes = {"lr": 0.3, "batch_size": 12, "num_head": 3, "image_size": 40, "seed": 9}
    changes |= {"affinity_weight": 2.0, "partition_weight": 2.0, "num_center": 8, "epochs": 1}
    changes |= {"pretrained": "imagenet", "precision": "bf16"}
    flags = [word for name, value in changes.items() for word in (f"--{name}", str(value))]
    with pytest.raises(UserError) as error:
        train_raf(toy_raf, small_run, "--resume", *flags)
    for name, value in changes.items():
        assert f"--{name} {value} (it has {own[name]})" in str(error.value)


@pytest.mark.parametrize(
    ("replaced", "change", "says"),
    [
        ("torch.optim.SGD", lambda p, lr, **_: torch.optim.AdamW(p, lr), "optimizer.*SGD"),
        ("torch.optim.SGD", partial(torch.optim.SGD, nesterov=True), "optimizer.*nesterov"),
        ("torch.optim.lr_scheduler.StepLR", lambda o, **_: CosineAnnealingLR(o, 40), "scheduler"),
        ("torch.optim.lr_scheduler.StepLR", lambda o, **_: StepLR(o, 3), "scheduler.*step_size"),
    ],
    ids=["optimizer", "its settings", "schedule", "its settings"],
)
def test_another_optimizer_or_schedule_is_refused(
    toy_raf, small_run, monkeypatch, replaced, change, says
):
    """StepLR's state loaded into a cosine schedule went on at lr 0."""
    monkeypatch.setattr(replaced, change)
    with pytest.raises(UserError, match=says):
        train_raf(toy_raf, small_run, "--resume", "--epochs", "4")


def test_other_data_are_refused(toy_raf, small_run, tmp_path):
    shutil.copytree(toy_raf, tmp_path / "raf")
    labels = tmp_path / "raf/EmoLabel/list_patition_label.txt"
    labels.write_text(labels.read_text().replace("train_00001.jpg 4", "train_00001.jpg 2"))
    with pytest.raises(UserError, match="other images or labels"):
        train_raf(tmp_path / "raf", small_run, "--resume", "--epochs", "3")


def test_a_folder_that_holds_a_run_is_not_overwritten(toy_raf, small_run, tmp_path):
    folder = shutil.copytree(small_run, tmp_path / "my run")
    before = (folder / "last.pth").read_bytes()
    with pytest.raises(UserError, match="already holds a run.*--resume.*--overwrite") as error:
        train_raf(toy_raf, folder)
    assert f"--resume '{folder}/last.pth'" in str(error.value)
    assert (folder / "last.pth").read_bytes() == before
    (folder / "test_metrics.json").touch()
    train_raf(toy_raf, folder, "--overwrite", "--epochs", "1")
    assert [row["epoch"] for row in metrics(folder)] == ["1"]
    assert not (folder / "test_metrics.json").exists()


def test_runs_of_earlier_versions_continue(small_run, tmp_path):
    """Their checkpoints know neither optimizer nor schedule, nor their own toy mark; and here they
    come from a machine with more GPUs and other weights."""
    content = checkpoint.load(small_run / "last.pth")
    for name in ("optimizer_settings", "scheduler_settings", "optimizer"):
        del content["config"][name]
    del content["toy"]
    content["config"] |= {"skip_bad_images": False, "device": "cuda:77", "pretrained": "gone"}
    checkpoint.save(tmp_path / "last.pth", content)
    rafdb.main(["--resume", str(tmp_path), "--epochs", "3"])
    assert len(metrics(tmp_path)) == 3


def test_only_the_last_checkpoint_of_a_run_is_continued(small_run, tmp_path):
    """Not a released file, and not best.pth, after which the epochs that follow it would be lost.
    The run goes on in its own folder."""
    torch.save({"iter": 21, "model_state_dict": {}}, tmp_path / "rafdb_epoch21.pth")
    for path in (tmp_path / "rafdb_epoch21.pth", small_run / "best.pth"):
        with pytest.raises(UserError, match="not the last.pth of a run"):
            rafdb.main(["--resume", str(path)])
    with pytest.raises(UserError, match="continues in its own folder"):
        rafdb.main(["--resume", str(small_run), "--output_dir", str(tmp_path / "other")])


def test_a_run_of_another_script_is_refused_before_anything_is_drawn(
    small_run, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for flags in (["--resume", str(small_run)], ["--resume", "--output_dir", str(small_run)]):
        with pytest.raises(UserError, match="trained on --raf_path .*use the script"):
            affectnet.main([*flags, "--epochs", "5"])
    assert not list(tmp_path.iterdir())
