"""What can go wrong in a run without anybody's code being wrong: one line, and nothing lost."""

import multiprocessing
import os
import resource
import shutil
import signal
import subprocess

import pytest
import torch

import rafdb
import utils.data
from tests.conftest import SMALL
from utils import checkpoint
from utils.errors import Interrupted, UserError
from utils.loss_watch import LossWatch
from utils.training import Training


def run(raf, folder, *more):
    rafdb.main(["--raf_path", str(raf), *SMALL, "--output_dir", str(folder), *more])


@pytest.fixture
def begun(small_run, tmp_path):
    """A copy of a run of two epochs, to go on with."""
    return shutil.copytree(small_run, tmp_path / "begun")


@pytest.fixture
def streamed(monkeypatch):
    monkeypatch.setattr(utils.data, "CACHE_SHARE", 0)


def test_exhausted_gpu_memory_names_the_batch_size(toy_raf, begun, monkeypatch):
    def exhausted(self, images, labels):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr("utils.training._LossesOf.forward", exhausted)
    with pytest.raises(UserError, match="--batch_size 16 at 32 pixels .* try --batch_size 8"):
        run(toy_raf, begun, "--resume", "--epochs", "3")
    assert checkpoint.load(begun / "last.pth")["iter"] == 2


def test_a_worker_that_dies_says_how(toy_raf, begun, monkeypatch, streamed):
    def killed(self, index):
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(utils.data.FaceDataset, "__getitem__", killed)
    with pytest.raises(UserError, match="decodes images died .*--workers") as error:
        run(toy_raf, begun, "--resume", "--epochs", "3", "--workers", "1")
    assert "\n" not in str(error.value)
    assert checkpoint.load(begun / "last.pth")["iter"] == 2


def test_a_signal_to_workers_and_run_alike_is_no_failure(toy_raf, tmp_path, monkeypatch, streamed):
    """A scheduler ends all processes of a job at once; the workers are gone first."""
    look = LossWatch.look

    def ended(self, step, *args):
        look(self, step, *args)
        if step == 0:
            for worker in multiprocessing.active_children():
                worker.terminate()
                worker.join()
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(LossWatch, "look", ended)
    with pytest.raises(Interrupted) as end:
        run(toy_raf, tmp_path, "--workers", "2", "--epochs", "1")
    assert end.value.number == signal.SIGTERM
    assert checkpoint.load(tmp_path / "last.pth")["progress"]["steps"] == 1


def test_a_file_that_cannot_grow_leaves_the_last_checkpoint(toy_raf, begun):
    """As a full disk, or a quota."""
    before = (begun / "last.pth").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, hard))
    try:
        with pytest.raises(UserError, match="last.pth: cannot be written .*is intact"):
            run(toy_raf, begun, "--resume", "--epochs", "3")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (begun / "last.pth").read_bytes() == before
    assert not list(begun.glob(".*.tmp"))
    run(toy_raf, begun, "--resume", "--epochs", "3")
    assert checkpoint.load(begun / "last.pth")["iter"] == 3


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 200 MB, where one checkpoint fits and a second does not."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_leaves_the_last_checkpoint(toy_raf, small_disk):
    with pytest.raises(UserError, match="last.pth: cannot be written"):
        run(toy_raf, small_disk / "run", "--epochs", "3")
    assert checkpoint.load(small_disk / "run" / "last.pth")["iter"] == 1
    assert checkpoint.load(small_disk / "run" / "best.pth")["iter"] == 1
    assert not list((small_disk / "run").glob(".*.tmp"))


def test_a_disk_that_became_read_only(toy_raf, small_disk, small_run):
    shutil.copytree(small_run, small_disk / "run", ignore=shutil.ignore_patterns("best.pth"))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(UserError, match="cannot be written"):
        run(toy_raf, small_disk / "run", "--resume", "--epochs", "3")
    assert checkpoint.load(small_disk / "run" / "last.pth")["iter"] == 2


def test_a_folder_deleted_under_the_run(toy_raf, begun, monkeypatch):
    monkeypatch.setattr(LossWatch, "finish", lambda self: shutil.rmtree(begun))
    with pytest.raises(UserError, match="last.pth: cannot be written .No such file or directory"):
        run(toy_raf, begun, "--resume", "--epochs", "3")


@pytest.fixture
def broken_raf(toy_raf, tmp_path):
    """Two training images and a test image that cannot be read."""
    raf = shutil.copytree(toy_raf, tmp_path / "broken raf")
    for name in ("train_00005", "train_00033", "test_0004"):
        (raf / f"Image/aligned/{name}_aligned.jpg").write_bytes(b"\xff\xd8broken")
    return raf


@pytest.mark.parametrize("kept_in_memory", [True, False])
def test_a_bad_image_stops_before_anything_is_written(
    broken_raf, tmp_path, monkeypatch, kept_in_memory
):
    if not kept_in_memory:
        monkeypatch.setattr(utils.data, "CACHE_SHARE", 0)
    with pytest.raises(UserError, match="train_000.*_aligned.jpg: .*--skip_bad_images"):
        run(broken_raf, tmp_path / "run", "--epochs", "1")
    assert not (tmp_path / "run" / "last.pth").exists()


def test_bad_images_can_be_left_out(broken_raf, tmp_path, monkeypatch, capsys):
    """They are counted and listed; streaming the images gives the same run."""
    flags = ["--epochs", "2", "--skip_bad_images"]
    run(broken_raf, tmp_path / "cached", *flags)
    assert "images that cannot be read are left out: 3, listed in" in capsys.readouterr().out
    monkeypatch.setattr(utils.data, "CACHE_SHARE", 0)
    run(broken_raf, tmp_path / "streamed", *flags, "--workers", "2")
    tables = [(tmp_path / name / "bad_images.csv").read_text() for name in ("cached", "streamed")]
    assert tables[0] == tables[1] and tables[0].count("\n") == 4
    assert "train_00033_aligned.jpg" in tables[0] and "test_0004_aligned.jpg" in tables[0]
    states = [
        checkpoint.load(tmp_path / name / "last.pth")["model_state_dict"]
        for name in ("cached", "streamed")
    ]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_a_run_that_a_bad_image_stopped_can_go_on_without_it(
    toy_raf, begun, tmp_path, monkeypatch, capsys
):
    raf = shutil.copytree(toy_raf, tmp_path / "raf")
    (raf / "Image/aligned/train_00005_aligned.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="train_00005_aligned.jpg"):
        run(raf, begun, "--resume", "--epochs", "3")
    run(raf, begun, "--resume", "--epochs", "3", "--skip_bad_images")
    assert checkpoint.load(begun / "last.pth")["iter"] == 3
    assert "train_00005" in (begun / "bad_images.csv").read_text()


def test_nothing_readable_is_named(toy_raf, tmp_path):
    raf = shutil.copytree(toy_raf, tmp_path / "raf")
    for path in (raf / "Image/aligned").glob("train_*"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="none of its 49 images can be read"):
        run(raf, tmp_path / "run", "--epochs", "1", "--skip_bad_images")


def test_deterministic_and_compiled_runs(toy_raf, tmp_path, monkeypatch):
    """Determinism costs nothing on a CPU; what is compiled is the network that is saved."""
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda model, **kwargs: compiled.append(model) or model)
    monkeypatch.setattr(torch, "use_deterministic_algorithms", compiled.append)
    models = []
    init = Training.__init__

    def remember(self, run, model, *rest):
        models.append(model)
        init(self, run, model, *rest)

    monkeypatch.setattr(Training, "__init__", remember)
    run(toy_raf, tmp_path / "run", "--epochs", "1", "--compile", "--deterministic")
    assert compiled == [True, models[0]]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_deterministic_runs_on_cuda_are_bit_identical(toy_raf, tmp_path):
    for name in ("one", "other"):
        run(toy_raf, tmp_path / name, "--device", "cuda", "--deterministic", "--epochs", "2")
    one, other = (checkpoint.load(tmp_path / name / "last.pth") for name in ("one", "other"))
    for key, value in one["model_state_dict"].items():
        assert torch.equal(value, other["model_state_dict"][key]), key
