"""A run that is interrupted and resumed ends like one that was not; nothing saved is lost."""

import csv
import json
import os
import shlex
import shutil
import signal
from pathlib import Path

import pytest
import torch
from torch.optim import lr_scheduler

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
    script, flags, number = rafdb, ["--raf_path", str(toy_raf)], signal.SIGTERM
    if request.param == "affectnet":
        script, flags, number = affectnet, ["--aff_path", str(toy_aff)], signal.SIGUSR1
    flags += SMALL
    if request.param == "rafdb streamed":
        monkeypatch.setattr(loader, "CACHE_SHARE", 0)
        flags, number = [*flags, "--workers", "2"], signal.SIGINT

    def run(folder, *more):
        script.main([*flags, "--output_dir", str(folder), *more])

    run.signal = number  # the one that interrupts it
    return run


def signal_at(monkeypatch, step: int, number: int) -> None:
    """Send a signal to this process once, after the given number of steps."""
    update, calls = engine.update, []

    def counting(*args):
        calls.append(None)
        if len(calls) == step:
            os.kill(os.getpid(), number)
        return update(*args)

    monkeypatch.setattr(engine, "update", counting)


def assert_same(a, b, where="checkpoint") -> None:
    """Bit by bit, but for the seconds that it took."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a.keys() - {*TIMES, "output_dir", "epochs"}:
            assert_same(a[key], b[key], f"{where}[{key!r}]")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for index, pair in enumerate(zip(a, b, strict=True)):
            assert_same(*pair, f"{where}[{index}]")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b or a != a, where


def metrics(folder: Path) -> list[dict]:
    with open(folder / "metrics.csv") as file:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]


def assert_same_runs(one: Path, other: Path) -> None:
    for name in ("last.pth", "best.pth"):
        assert_same(checkpoint.load(one / name), checkpoint.load(other / name))
    assert metrics(one) == metrics(other)
    assert sorted(os.listdir(one)) == sorted(os.listdir(other))


def test_interrupted_in_mid_epoch_and_resumed_is_bit_identical(call, tmp_path, monkeypatch, capsys):
    """Three epochs of three steps, interrupted after the fifth step."""
    call(tmp_path / "whole", "--epochs", "3")
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as end, exit_on_user_error():
        signal_at(patch, 5, call.signal)
        call(tmp_path / "run", "--epochs", "3")
    assert end.value.code == 128 + call.signal
    error = capsys.readouterr().err
    assert f"{signal.Signals(call.signal).name} in epoch 2, step 2 of 3" in error
    saved = checkpoint.load(tmp_path / "run" / "last.pth")
    assert (saved["iter"], saved["progress"]["steps"]) == (1, 2)
    command = shlex.split(error.splitlines()[-1])
    assert command[0] == "python" and command[2:4] == ["--resume", f"{tmp_path}/run/last.pth"]
    call(tmp_path / "run", "--resume")
    assert_same_runs(tmp_path / "whole", tmp_path / "run")


def test_more_epochs_for_a_finished_run_are_bit_identical(call, tmp_path, capsys):
    call(tmp_path / "whole", "--epochs", "2")
    call(tmp_path / "run", "--epochs", "1")
    capsys.readouterr()
    call(tmp_path / "run", "--resume")
    assert "has completed 1 epoch;" in capsys.readouterr().out
    call(tmp_path / "run", "--resume", "--epochs", "2")
    assert_same_runs(tmp_path / "whole", tmp_path / "run")


def test_interrupted_during_its_evaluation(toy_raf, tmp_path, monkeypatch):
    train_raf(toy_raf, tmp_path / "whole", "--epochs", "2")
    with monkeypatch.context() as patch, pytest.raises(SystemExit), exit_on_user_error():
        evaluate = engine.evaluate
        patch.setattr(
            engine, "evaluate", lambda *a: os.kill(os.getpid(), signal.SIGTERM) or evaluate(*a)
        )
        train_raf(toy_raf, tmp_path / "run", "--epochs", "2")
    saved = checkpoint.load(tmp_path / "run" / "last.pth")
    assert (saved["iter"], saved["progress"]["steps"]) == (0, 3)
    train_raf(toy_raf, tmp_path / "run", "--resume")
    assert_same_runs(tmp_path / "whole", tmp_path / "run")


def test_a_network_with_dropout_resumes_bit_identically(toy_raf, tmp_path, monkeypatch):
    """Its random numbers come from PyTorch's global state, which the checkpoint holds."""
    forward = TinyDAN.forward

    def with_dropout(self, images):
        return forward(self, torch.nn.functional.dropout(images, 0.5, self.training))

    monkeypatch.setattr(TinyDAN, "forward", with_dropout)
    train_raf(toy_raf, tmp_path / "whole", "--epochs", "2")
    with monkeypatch.context() as patch, pytest.raises(SystemExit), exit_on_user_error():
        signal_at(patch, 4, signal.SIGTERM)
        train_raf(toy_raf, tmp_path / "run", "--epochs", "2")
    train_raf(toy_raf, tmp_path / "run", "--resume")
    assert_same_runs(tmp_path / "whole", tmp_path / "run")


def test_flags_that_are_not_given_are_those_of_the_run(toy_raf, tmp_path):
    flags = ["--lr", "0.03", "--seed", "7", "--affinity_weight", "0.5", "--epochs", "2"]
    train_raf(toy_raf, tmp_path / "whole", *flags)
    train_raf(toy_raf, tmp_path / "run", *flags[:-2], "--epochs", "1")
    last = str(tmp_path / "run" / "last.pth")
    rafdb.main(["--resume", last, "--epochs", "2", "--device", "cpu"])  # nor where the data lie
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


CHANGES = {
    "--lr": "0.3",
    "--batch_size": "12",
    "--num_head": "3",
    "--image_size": "40",
    "--seed": "9",
    "--affinity_weight": "2.0",
    "--partition_weight": "2.0",
    "--num_center": "8",
    "--pretrained": "imagenet",
    "--precision": "bf16",
    "--epochs": "1",
}


@pytest.mark.parametrize("flag", CHANGES)
def test_another_recipe_is_refused_with_both_values(toy_raf, small_run, flag):
    own = checkpoint.load(small_run / "last.pth")["config"][flag.removeprefix("--")]
    with pytest.raises(UserError) as error:
        train_raf(toy_raf, small_run, "--resume", flag, CHANGES[flag])
    assert f"{flag} {CHANGES[flag]} (it has {own})" in str(error.value)


def test_another_optimizer_or_schedule_is_refused(toy_raf, small_run, tmp_path, monkeypatch):
    """StepLR's state loaded into a cosine schedule went on at lr 0."""
    cosine = lr_scheduler.CosineAnnealingLR
    sgd, step_lr = torch.optim.SGD, lr_scheduler.StepLR
    changes = {
        "SGD": lambda parameters, lr, **_: torch.optim.AdamW(parameters, lr),
        "momentum": lambda parameters, lr, **_: sgd(parameters, lr, momentum=0.5),
    }
    shutil.copytree(small_run, tmp_path / "run")
    for named, optimizer in changes.items():
        with monkeypatch.context() as patch, pytest.raises(UserError, match=f"optimizer.*{named}"):
            patch.setattr(torch.optim, "SGD", optimizer)
            train_raf(toy_raf, tmp_path / "run", "--resume", "--epochs", "4")
    for schedule in (lambda o, **_: cosine(o, 40), lambda o, **_: step_lr(o, 3)):
        with monkeypatch.context() as patch, pytest.raises(UserError, match="scheduler.*StepLR"):
            patch.setattr(lr_scheduler, "StepLR", schedule)
            train_raf(toy_raf, tmp_path / "run", "--resume", "--epochs", "4")
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["optimizer_settings"]["class"] == "SGD" and config["optimizer_settings"][
        "momentum"
    ] == [0.9]
    assert (
        config["scheduler_settings"]["class"] == "StepLR"
        and config["scheduler_settings"]["step_size"] == 10
    )


@pytest.mark.parametrize("schedule", ["CosineAnnealingLR", "OneCycleLR"])
def test_other_schedules_resume_with_the_same_learning_rates(
    toy_raf, tmp_path, monkeypatch, schedule
):
    make = {
        "CosineAnnealingLR": lambda o, **_: lr_scheduler.CosineAnnealingLR(o, 3),
        "OneCycleLR": lambda o, **_: lr_scheduler.OneCycleLR(o, 0.1, total_steps=4),
    }[schedule]
    monkeypatch.setattr(lr_scheduler, "StepLR", make)
    train_raf(toy_raf, tmp_path / "whole", "--epochs", "3")
    train_raf(toy_raf, tmp_path / "run", "--epochs", "1")
    train_raf(toy_raf, tmp_path / "run", "--resume", "--epochs", "3")
    assert_same_runs(tmp_path / "whole", tmp_path / "run")
    assert len({row["lr"] for row in metrics(tmp_path / "run")}) == 3


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
    told = str(error.value).partition("--resume ")[2].partition(", replace")[0]
    assert shlex.split(told) == [str(folder / "last.pth")]
    assert (folder / "last.pth").read_bytes() == before
    train_raf(toy_raf, folder, "--overwrite", "--epochs", "1")
    assert [row["epoch"] for row in metrics(folder)] == ["1"]


def test_runs_of_earlier_versions_continue(toy_raf, small_run, tmp_path):
    """Their checkpoints know neither optimizer nor schedule, nor their own toy mark."""
    content = checkpoint.load(small_run / "last.pth")
    for name in ("optimizer_settings", "scheduler_settings", "optimizer"):
        del content["config"][name]
    del content["toy"]
    content["config"]["skip_bad_images"] = False
    checkpoint.save(tmp_path / "last.pth", content)
    train_raf(toy_raf, tmp_path, "--resume", "--epochs", "3")
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
