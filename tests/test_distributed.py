"""Several processes against one: gradients, evaluation, whole runs, and what ends them."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import rafdb
from networks.dan import DAN
from networks.losses import DANLoss
from tests import golden
from tests.conftest import SMALL, training_args
from utils import checkpoint, distributed, engine
from utils.data import FaceLoader
from utils.distributed import ALONE, World
from utils.readers import read_rafdb
from utils.run import Run
from utils.training import Training

CPU = torch.device("cpu")
REPOSITORY = Path(rafdb.__file__).parent


def answers(world: World, raf: Path) -> dict:
    """Gradients of this process's share of a batch, and the evaluation of all test images."""
    model = DAN(num_class=7, num_head=2).double()
    model.load_state_dict(golden.state_dict(model))
    criterion = DANLoss(num_class=7, batch_mean=world.mean).double()
    criterion.affinity.centers.data = golden.weights("centers", (7, 512))
    run = Run(training_args(), "RAF-DB", tuple("abcdefg"), CPU, None, Path(), world)
    optimizer = torch.optim.SGD([*model.parameters(), *criterion.parameters()], lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    training = Training(run, model.eval(), criterion, optimizer, scheduler)

    images = torch.randn(7, 3, 64, 64, dtype=torch.float64, generator=torch.manual_seed(0))
    share = world.share(7)  # not the same for all
    losses, _ = training.losses_of(images[share], torch.arange(7)[share])
    losses.total.backward()
    parameters = [*model.named_parameters(), *criterion.named_parameters()]

    loader = FaceLoader(
        read_rafdb(raf).val, batch_size=20, image_size=64, device=CPU, world=world
    )  # a batch of 20, and one of a single image, of which one process has none
    evaluation = engine.evaluate(model.float(), loader, 64, criterion=criterion.float())
    return {
        "losses": [loss.item() for loss in losses],
        "gradients": {name: parameter.grad for name, parameter in parameters},
        "evaluation": evaluation,
    }


def _answer(rank: int, folder: Path, raf: Path, port: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    world = distributed.join("cpu")
    torch.save(answers(world, raf), folder / f"{rank}.pt")
    world.leave()


@pytest.fixture(scope="module")
def both(tmp_path_factory, toy_raf):
    """What each of two processes answers."""
    folder = tmp_path_factory.mktemp("answers")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_answer, (folder, toy_raf, port), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.fixture(scope="module")
def alone(toy_raf):
    return answers(ALONE, toy_raf)


def test_gradients_and_losses_are_those_of_the_whole_batch(both, alone):
    for theirs in both:
        assert theirs["losses"] == pytest.approx(alone["losses"], rel=1e-9)
        assert theirs["gradients"].keys() == alone["gradients"].keys()
        for name, gradient in alone["gradients"].items():
            scale = gradient.abs().max().item()
            torch.testing.assert_close(
                theirs["gradients"][name], gradient, rtol=1e-6, atol=1e-6 * scale + 1e-12
            )


def test_evaluation_is_exact_and_the_same_everywhere(both, alone):
    expected = alone["evaluation"]
    assert expected.indices.tolist() == list(range(21))
    for result in (theirs["evaluation"] for theirs in both):
        assert torch.equal(result.indices, expected.indices)
        assert torch.equal(result.labels, expected.labels)
        torch.testing.assert_close(
            result.probabilities, expected.probabilities, rtol=1e-4, atol=1e-6
        )
        assert result.losses == pytest.approx(expected.losses, rel=1e-5)
        assert result.metrics.accuracy == expected.metrics.accuracy


def torchrun(toy_raf, folder, *flags) -> subprocess.Popen:
    """`torchrun --nproc_per_node=2 rafdb.py`, with its files in a folder."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node=2", "rafdb.py", *SMALL, "--raf_path", str(toy_raf)]
    return subprocess.Popen(
        [*command, "--output_dir", str(folder), *flags],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(path: Path, process: subprocess.Popen) -> None:
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.1)


def test_a_whole_run_writes_once_and_goes_on_alone(toy_raf, tmp_path):
    """The number of processes is of the machine, not of the recipe."""
    folder = tmp_path / "run"
    process = torchrun(toy_raf, folder, "--epochs", "1")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out.count("epoch 1/1") == 1 and "2 processes" in out
    flags = ["--raf_path", str(toy_raf), "--output_dir", str(folder), *SMALL]
    rafdb.main([*flags, "--resume", "--epochs", "2"])
    history = checkpoint.load(folder / "last.pth")["metrics"]
    assert [row["epoch"] for row in history] == [1, 2]


def test_bad_images_leave_one_process_too_few(toy_raf, tmp_path):
    """BatchNorm trains on two images or more in each; all leave such a step out together."""
    raf = shutil.copytree(toy_raf, tmp_path / "raf")
    bad = sorted(raf.glob("Image/aligned/train_*"))[::3]
    for path in bad:
        path.write_bytes(b"no image")
    flags = ["--raf_path", str(raf), "--batch_size", "4", "--epochs", "1", "--skip_bad_images"]
    process = torchrun(toy_raf, tmp_path / "run", *flags)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert f"are left out: {len(bad)}, listed in" in out and "Warning" not in err


def test_a_process_that_dies_takes_the_run_down_with_a_message(toy_raf, tmp_path):
    folder = tmp_path / "run"
    process = torchrun(toy_raf, folder, "--epochs", "1000")
    wait_for(folder / "metrics.csv", process)
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
    )
    os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)
    _, err = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "lost the others" in err and "--resume" in err and "rafdb.py FAILED" in err
    assert len(checkpoint.load(folder / "last.pth")["metrics"]) >= 1


def test_a_signal_saves_the_same_step_of_all(toy_raf, tmp_path):
    folder = tmp_path / "run"
    process = torchrun(toy_raf, folder, "--epochs", "1000")
    wait_for(folder / "metrics.csv", process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=300)
    assert err.count("interrupted by SIGTERM") == 1
    assert "torchrun --nproc_per_node=2 rafdb.py" in err and "error" not in err.split("\n\n")[0]
    assert checkpoint.load(folder / "last.pth")["iter"] >= 1
