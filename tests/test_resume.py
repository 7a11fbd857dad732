"""A run that is interrupted and goes on ends as one that was not; nothing saved is lost."""

import argparse
import csv
import errno
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.optim import lr_scheduler

import affectnet
import rafdb
import utils.data
from tests.conftest import SMALL
from utils import checkpoint, resume, run_folder
from utils.errors import UserError, exit_on_user_error
from utils.loss_watch import LossWatch

REPOSITORY = Path(rafdb.__file__).parent
TIMES = ("seconds", "images_per_second")


@pytest.fixture(params=["rafdb", "rafdb streamed", "affectnet"])
def call(request, toy_raf, toy_aff, monkeypatch):
    """Runs a script with its data and the small flags."""
    script, flags, number = rafdb, ["--raf_path", str(toy_raf)], signal.SIGTERM
    if request.param == "affectnet":
        script, flags, number = affectnet, ["--aff_path", str(toy_aff)], signal.SIGUSR1
    flags += SMALL
    if request.param == "rafdb streamed":
        monkeypatch.setattr(utils.data, "CACHE_SHARE", 0)
        flags, number = [*flags, "--workers", "2"], signal.SIGINT

    def run(folder, *more):
        script.main([*flags, "--output_dir", str(folder), *more])

    run.signal = number  # the one to interrupt it by
    return run


def signal_at(monkeypatch, step: int, number: int) -> None:
    """Send a signal to this process once, when the loss of a step is noted for that many times."""
    look, calls = LossWatch.look, []

    def counting(self, *args):
        look(self, *args)
        calls.append(None)
        if len(calls) == step:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(LossWatch, "look", counting)


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
        number = call.signal
        signal_at(patch, 5, number)
        call(tmp_path / "run", "--epochs", "3")
    assert end.value.code == 128 + number
    error = capsys.readouterr().err
    assert f"{signal.Signals(number).name} in epoch 2, step 2 of 3" in error
    saved = checkpoint.load(tmp_path / "run" / "last.pth")
    assert (saved["iter"], saved["progress"]["steps"]) == (1, 2)
    assert f"--resume {tmp_path / 'run' / 'last.pth'}" in error.splitlines()[-1]
    call(tmp_path / "run", "--resume")
    assert_same_runs(tmp_path / "whole", tmp_path / "run")


def test_more_epochs_for_a_finished_run_are_bit_identical(call, tmp_path, capsys):
    call(tmp_path / "whole", "--epochs", "2")
    call(tmp_path / "run", "--epochs", "1")
    capsys.readouterr()
    call(tmp_path / "run", "--resume")
    assert "has finished its 1 epochs" in capsys.readouterr().out
    call(tmp_path / "run", "--resume", "--epochs", "2")
    assert_same_runs(tmp_path / "whole", tmp_path / "run")


def raf(toy_raf, folder, *more):
    rafdb.main(["--raf_path", str(toy_raf), *SMALL, "--output_dir", str(folder), *more])


def test_interrupted_in_its_evaluation(toy_raf, tmp_path, monkeypatch):
    raf(toy_raf, tmp_path / "whole", "--epochs", "2")
    with monkeypatch.context() as patch, pytest.raises(SystemExit), exit_on_user_error():
        patch.setattr(LossWatch, "finish", lambda self: os.kill(os.getpid(), signal.SIGTERM))
        raf(toy_raf, tmp_path / "run", "--epochs", "2")
    saved = checkpoint.load(tmp_path / "run" / "last.pth")
    assert (saved["iter"], saved["progress"]["steps"]) == (0, 3)
    raf(toy_raf, tmp_path / "run", "--resume")
    assert_same_runs(tmp_path / "whole", tmp_path / "run")


def test_flags_that_are_not_given_are_those_of_the_run(toy_raf, tmp_path):
    flags = ["--lr", "0.03", "--seed", "7", "--affinity_weight", "0.5", "--epochs", "2"]
    raf(toy_raf, tmp_path / "whole", *flags)
    raf(toy_raf, tmp_path / "run", *flags[:-2], "--epochs", "1")
    last = str(tmp_path / "run" / "last.pth")
    rafdb.main(["--resume", last, "--epochs", "2", "--device", "cpu"])  # nor where the data lie
    assert_same_runs(tmp_path / "whole", tmp_path / "run")


def test_resumed_into_another_folder(toy_raf, small_run, tmp_path):
    """The first one stays as it is; the best network comes along."""
    before = {path.name: path.read_bytes() for path in small_run.iterdir() if path.is_file()}
    raf(toy_raf, tmp_path, "--resume", str(small_run), "--epochs", "3")
    assert {p.name: p.read_bytes() for p in small_run.iterdir() if p.is_file()} == before
    assert [row["epoch"] for row in metrics(tmp_path)] == ["1", "2", "3"]
    assert (tmp_path / "best.pth").is_file()


def test_resume_starts_where_there_is_no_run_yet(toy_raf, tmp_path, capsys):
    """A job that a cluster starts again and again has one command."""
    raf(toy_raf, tmp_path, "--resume", "--epochs", "1")
    assert f"{tmp_path}: no run to go on with, so one starts" in capsys.readouterr().out
    assert checkpoint.load(tmp_path / "last.pth")["iter"] == 1


def test_best_follows_where_a_run_was_killed_before_it(toy_raf, small_run, tmp_path):
    """Between the two files of an epoch that is the best so far; a half-written file is swept."""
    content = checkpoint.load(small_run / "last.pth")
    content["metrics"][-1]["val_accuracy"] = 0.99
    checkpoint.save(tmp_path / "last.pth", content)
    (tmp_path / ".best.pth.tmp").write_bytes(b"half")
    raf(toy_raf, tmp_path, "--resume", "--epochs", "3")
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
    "--precision": "",  # the other one
    "--epochs": "1",
}


@pytest.mark.parametrize("flag", CHANGES)
def test_another_recipe_is_refused_with_both_values(toy_raf, small_run, tmp_path, flag):
    shutil.copytree(small_run, tmp_path / "run")
    own = checkpoint.load(small_run / "last.pth")["config"][flag.removeprefix("--")]
    value = CHANGES[flag] or {"fp32": "bf16", "bf16": "fp32"}[own]
    with pytest.raises(UserError) as error:
        raf(toy_raf, tmp_path / "run", "--resume", flag, value)
    assert f"{flag} {value} (it has {own})" in str(error.value)


def test_other_data_are_refused(toy_raf, small_run, tmp_path):
    shutil.copytree(toy_raf, tmp_path / "raf")
    labels = tmp_path / "raf/EmoLabel/list_patition_label.txt"
    labels.write_text(labels.read_text().replace("train_00001.jpg 4", "train_00001.jpg 2"))
    with pytest.raises(UserError, match="other images or labels"):
        raf(tmp_path / "raf", tmp_path / "run", "--resume", str(small_run), "--epochs", "3")


def test_a_folder_that_holds_a_run_is_not_overwritten(toy_raf, small_run, tmp_path):
    shutil.copytree(small_run, tmp_path / "run")
    before = (tmp_path / "run/last.pth").read_bytes()
    with pytest.raises(UserError, match="holds a run already.*--resume.*--overwrite"):
        raf(toy_raf, tmp_path / "run")
    with pytest.raises(UserError, match="holds a run already"):  # nor by what goes on elsewhere
        raf(toy_raf, tmp_path / "run", "--resume", str(small_run / "best.pth"))
    assert (tmp_path / "run/last.pth").read_bytes() == before
    raf(toy_raf, tmp_path / "run", "--overwrite", "--epochs", "1")
    assert [row["epoch"] for row in metrics(tmp_path / "run")] == ["1"]


def test_what_a_run_suggests_can_be_pasted(toy_raf, small_run, tmp_path, capsys):
    """Its words are those of a shell, wherever the run lies."""
    folder = shutil.copytree(small_run, tmp_path / "my run")
    raf(toy_raf, folder, "--resume", "--epochs", "3")
    commands = [shlex.split(line) for line in capsys.readouterr().out.splitlines()[-2:]]
    for words in commands:
        assert words[words.index("--checkpoint") + 1] == str(folder / "best.pth")
    with pytest.raises(UserError) as error:
        raf(toy_raf, folder)
    told = str(error.value).partition("--resume ")[2].partition(", start")[0]
    assert shlex.split(told) == [str(folder / "last.pth")]


def test_a_damaged_checkpoint_is_not_the_end(toy_raf, small_run, tmp_path):
    """The error names what else to go on from, and that works."""
    folder = shutil.copytree(small_run, tmp_path / "my run")
    raf(toy_raf, tmp_path / "other", "--epochs", "1")
    last, best = folder / "last.pth", folder / "best.pth"
    last.unlink()  # it may be one file with best.pth
    shutil.copy(tmp_path / "other" / "best.pth", best)
    last.write_bytes(best.read_bytes()[:-1000])
    with pytest.raises(UserError, match="last.pth: not a checkpoint.*, go on from") as error:
        raf(toy_raf, folder, "--resume")
    told = str(error.value).partition("--resume ")[2].partition(" with")[0]
    raf(toy_raf, tmp_path / "new", "--resume", *shlex.split(told), "--epochs", "2")
    assert len(metrics(tmp_path / "new")) == 2
    best.unlink()
    with pytest.raises(UserError, match="get another copy, or start anew with --overwrite"):
        raf(toy_raf, folder, "--resume")


@pytest.mark.parametrize("flag", ["--resume", "--overwrite"])
def test_a_run_keeps_others_out_of_its_folder(toy_raf, tmp_path, monkeypatch, capsys, flag):
    process = start(toy_raf, tmp_path / "run", "--epochs", "500")
    try:
        monkeypatch.setattr(resume, "PATIENCE", 0.5)
        with pytest.raises(UserError, match="another run is still writing there"):
            raf(toy_raf, tmp_path / "run", flag, "--epochs", "600")
        assert "waiting for its end" in capsys.readouterr().err
    finally:
        process.kill()
        process.communicate()
    raf(toy_raf, tmp_path / "run", "--overwrite", "--epochs", "1")  # a dead one keeps nobody out
    assert len(metrics(tmp_path / "run")) == 1


def test_what_the_other_run_saved_last_is_what_goes_on(toy_raf, small_run, tmp_path, monkeypatch):
    """It may end an epoch after this one has read its flags, and before it lets go."""
    raf(toy_raf, tmp_path / "other", "--resume", str(small_run), "--epochs", "3")
    shutil.copytree(small_run, tmp_path / "run")
    hold, newer = resume.hold, [tmp_path / "other" / "last.pth"]

    def hold_later(*args):
        if newer:
            shutil.copy(newer.pop(), tmp_path / "run" / "last.pth")
        hold(*args)

    monkeypatch.setattr(resume, "hold", hold_later)
    raf(toy_raf, tmp_path / "run", "--resume", "--epochs", "4")
    rows = [
        checkpoint.load(tmp_path / name / "last.pth")["metrics"][2] for name in ("other", "run")
    ]
    assert rows[0] == rows[1]  # with its seconds: the epoch was not trained again


def test_two_runs_that_start_at_once_do_not_share_a_folder(toy_raf, tmp_path, monkeypatch):
    """Neither finds the folder there; the second comes to it later."""
    monkeypatch.setattr(resume, "PATIENCE", 0.5)
    make_folder = run_folder.make_folder

    def another_first(path):
        make_folder(path)
        monkeypatch.setattr(run_folder, "make_folder", make_folder)
        other.append(start(toy_raf, path, "--epochs", "500"))

    other = []
    monkeypatch.setattr(run_folder, "make_folder", another_first)
    try:
        with pytest.raises(UserError, match="another run is still writing there"):
            raf(toy_raf, tmp_path / "run", "--epochs", "600")
    finally:
        other[0].kill()
        other[0].communicate()


def test_a_folder_that_cannot_be_locked_is_used_all_the_same(
    toy_raf, tmp_path, monkeypatch, capsys
):
    """Some network file systems know no locks."""

    def refuse(*args, **kwargs):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(resume.FileLock, "acquire", refuse)
    raf(toy_raf, tmp_path / "run", "--epochs", "1")
    assert "cannot be locked (No locks available)" in capsys.readouterr().err
    assert len(metrics(tmp_path / "run")) == 1


def warmed_up(optimizer, n):
    linear = lr_scheduler.LinearLR(optimizer, 0.1, total_iters=1)
    cosine = lr_scheduler.CosineAnnealingLR(optimizer, n - 1)
    return lr_scheduler.SequentialLR(optimizer, [linear, cosine], milestones=[1])


SCHEDULES = {  # made for n epochs, by the setting that says so
    "T_max": lambda optimizer, n: lr_scheduler.CosineAnnealingLR(optimizer, n),
    "total_steps": lambda optimizer, n: lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=n),
    "gamma": lambda optimizer, n: lr_scheduler.ExponentialLR(optimizer, 0.01 ** (1 / n)),
    "_schedulers": warmed_up,
}


@pytest.mark.parametrize("setting", SCHEDULES)
def test_a_schedule_goes_on_but_not_as_another(toy_raf, tmp_path, monkeypatch, setting):
    """Loaded, it would bring the number of epochs that it was made for along."""

    def run(n, *flags):
        schedule = SCHEDULES[setting]
        monkeypatch.setattr(lr_scheduler, "StepLR", lambda optimizer, **_: schedule(optimizer, n))
        raf(toy_raf, tmp_path, *flags)

    run(4, "--epochs", "2")
    run(4, "--resume", "--epochs", "3")
    with pytest.raises(UserError, match=rf"schedule is no longer the run's \(.*{setting}.*\)"):
        run(6, "--resume", "--epochs", "6")
    assert len(metrics(tmp_path)) == 3


SGD, ADAM, ADAMW = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW


@pytest.mark.parametrize(
    ("own", "other", "says"),
    [
        (partial(SGD, momentum=0.9), ADAMW, "does not fit this network and recipe"),
        (SGD, ADAMW, "no longer the run's .*betas"),
        (ADAMW, SGD, "no longer the run's .*momentum"),
        (ADAMW, partial(ADAMW, weight_decay=0.1), r"no longer the run's \(weight_decay\)"),
        (ADAM, ADAMW, "no longer the run's .*weight_decay"),
    ],
)
def test_an_optimizer_goes_on_but_not_as_another(toy_raf, tmp_path, monkeypatch, own, other, says):
    """Loaded, it would bring its settings along, or lack what the other one needs."""

    def run(optimizer, *flags):
        monkeypatch.setattr(
            torch.optim, "SGD", lambda parameters, lr, **_: optimizer(parameters, lr)
        )
        raf(toy_raf, tmp_path, *flags)

    run(own, "--epochs", "1")
    run(own, "--resume", "--epochs", "2")
    with pytest.raises(UserError, match=says):
        run(other, "--resume", "--epochs", "3")
    assert len(metrics(tmp_path)) == 2


def test_released_weights_are_no_run(toy_raf, tmp_path, checkpoint_file):
    path = checkpoint_file(7, "rafdb_epoch21_acc0.897_bacc0.8275.pth")
    with pytest.raises(UserError, match="no configuration of a run"):
        raf(toy_raf, tmp_path, "--resume", str(path))


def start(toy_raf, folder, *more) -> subprocess.Popen:
    """rafdb.py in a process of its own, once it has ended its first epoch."""
    flags = ["--raf_path", str(toy_raf), *SMALL, "--output_dir", str(folder), *more]
    process = subprocess.Popen(
        [sys.executable, "rafdb.py", *flags],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not (folder / "metrics.csv").exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    return process


def test_the_printed_command_goes_on(toy_raf, tmp_path):
    """The whole process group gets the signal, workers included, as from a terminal."""
    process = start(toy_raf, tmp_path / "a run", "--epochs", "500", "--workers", "2")
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130 and "Traceback" not in err
    command = shlex.split(err.splitlines()[-1])
    done = checkpoint.load(tmp_path / "a run" / "last.pth")
    assert command[0] == "python"
    command[command.index("--epochs") + 1] = str(done["iter"] + 1)
    with pytest.raises(UserError, match="only --epochs may grow"):
        rafdb.main(command[2:])
    command[command.index("--epochs") + 1] = "500"
    again = subprocess.Popen(
        [sys.executable, *command[1:]],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in again.stdout:
        if line.startswith("epoch"):
            break
    again.terminate()
    again.communicate(timeout=120)
    assert line.split()[1] == f"{done['iter'] + 1}/500"
    assert again.returncode == 128 + signal.SIGTERM


def test_a_second_ctrl_c_ends_at_once(toy_raf, tmp_path):
    process = start(toy_raf, tmp_path / "run", "--epochs", "500")
    process.send_signal(signal.SIGSTOP)  # so that both are there before a step can end
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    line = process.stderr.readline() + process.stderr.readline()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert "Ctrl-C again stops at once" in line
    assert process.returncode in (130, -signal.SIGINT)
    assert checkpoint.load(tmp_path / "run" / "last.pth")["iter"] >= 1


def test_flags_that_a_recipe_adds_are_its_own(small_run, toy_raf):
    """Whatever is not known to leave a run's numbers alone decides on them."""
    path = small_run / "last.pth"
    content = checkpoint.load(path)
    args = argparse.Namespace(raf_path=str(toy_raf), fold=4, given={"fold"}, own={"fold"})
    content["config"]["fold"] = 3
    checkpoint.save(small_run.with_name("fold.pth"), content)
    with pytest.raises(UserError, match=r"--fold 4 \(it has 3\)"):
        resume.read(small_run.with_name("fold.pth"), args, content["data_fingerprint"])
    with pytest.raises(UserError, match=r"--fold 4 \(it has none\)"):  # older than the flag
        resume.read(path, args, content["data_fingerprint"])


def test_a_run_of_another_recipe_is_refused_before_anything_is_drawn(
    small_run, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    path = str(small_run / "last.pth")
    for flags in (["--resume", path], ["--resume", "--output_dir", str(small_run)]):
        with pytest.raises(UserError, match=f"by rafdb.py; .* python rafdb.py --resume {path}"):
            affectnet.main([*flags, "--epochs", "5"])
    assert not list(tmp_path.iterdir())
