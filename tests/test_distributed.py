"""Several processes against one: gradients, evaluation, whole runs, and what ends them."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

import rafdb
from networks.losses import DANLoss
from tests import golden
from tests.conftest import CPU, REPOSITORY, SMALL, TinyDAN
from utils import checkpoint, distributed
from utils.data.datasets import read_rafdb
from utils.data.loader import FaceLoader
from utils.distributed import World
from utils.training.engine import evaluate
from utils.training.run import _NetworkAndLosses


def answers(world: World, raf: Path) -> dict:
    """Gradients of this process's share of a batch, and the evaluation of all test images."""
    torch.manual_seed(0)
    model = TinyDAN(num_class=7, num_head=2).double().eval()
    criterion = DANLoss(num_class=7, batch_mean=world.mean).double()
    criterion.affinity.centers.data = golden.weights("centers", (7, 512))
    forward = _NetworkAndLosses(model, criterion, compiled=False, autocast=None)
    if world.size > 1:
        forward = DistributedDataParallel(forward)
    images = torch.randn(7, 3, 64, 64, dtype=torch.float64, generator=torch.manual_seed(0))
    share = world.share(7)  # of different size for each
    losses, _ = forward(images[share], torch.arange(7)[share])
    losses.total.backward()
    parameters = [*model.named_parameters(), *criterion.named_parameters()]

    # A batch of 20, and one of a single image, of which one process has none.
    loader = FaceLoader(read_rafdb(raf).val, batch_size=20, image_size=64, world=world)
    return {
        "losses": [loss.item() for loss in losses],
        "gradients": {name: parameter.grad for name, parameter in parameters},
        "evaluation": evaluate(model.float(), loader, 64, criterion=criterion.float()),
    }


def answer(rank: int, folder: str, raf: str) -> None:
    """What one of two processes computes, in a file."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    world = World(CPU, None, *distributed._join("cpu"))
    torch.save(answers(world, Path(raf)), Path(folder, f"{rank}.pt"))
    world.shutdown()


# Both are forked from a process that has imported PyTorch but not used it: this one has threads.
PROGRAM = """
import sys
import torch
from tests.test_distributed import answer
fork = torch.multiprocessing.get_context("fork")
both = [fork.Process(target=answer, args=(rank, *sys.argv[1:])) for rank in range(2)]
[process.start() for process in both]
[process.join() for process in both]
sys.exit(any(process.exitcode for process in both))
"""


@pytest.fixture(scope="module")
def both(tmp_path_factory, toy_raf):
    """What each of two processes answers."""
    folder = tmp_path_factory.mktemp("answers")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    environment |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    command = [sys.executable, "-c", PROGRAM, str(folder), str(toy_raf)]
    subprocess.run(command, cwd=REPOSITORY, env=environment, check=True, timeout=120)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.fixture(scope="module")
def alone(toy_raf):
    return answers(World(), toy_raf)


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
    assert len(expected.labels) == 21
    for result in (theirs["evaluation"] for theirs in both):
        assert torch.equal(result.labels, expected.labels)
        torch.testing.assert_close(
            result.probabilities, expected.probabilities, rtol=1e-4, atol=1e-6
        )
        assert result.losses == pytest.approx(expected.losses, rel=1e-5)


def torchrun(toy_raf, folder, *flags) -> subprocess.Popen:
    """`torchrun --nproc_per_node=2 rafdb.py`, with its files in a folder."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node=2", "rafdb.py", *SMALL, "--num_head", "1"]
    return subprocess.Popen(
        [*command, "--raf_path", str(toy_raf), "--output_dir", str(folder), *flags],
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


def test_a_whole_run_writes_once_and_continues_alone(toy_raf, tmp_path):
    """The number of processes belongs to the machine, not to the recipe."""
    folder = tmp_path / "run"
    process = torchrun(toy_raf, folder, "--epochs", "1")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out.count("epoch 1/1") == 1 and "2 processes" in out
    rafdb.main(["--resume", str(folder), "--epochs", "2", "--device", "cpu"])
    history = checkpoint.load(folder / "last.pth")["metrics"]
    assert [row["epoch"] for row in history] == [1, 2]


@pytest.mark.slow
def test_a_signal_saves_the_same_step_of_all(toy_raf, tmp_path):
    folder = tmp_path / "run"
    process = torchrun(toy_raf, folder, "--epochs", "1000")
    wait_for(folder / "metrics.csv", process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=300)
    assert err.count("interrupted by SIGTERM") == 1
    assert "torchrun --nproc_per_node=2 rafdb.py --resume" in err
    assert checkpoint.load(folder / "last.pth")["iter"] >= 1


@pytest.mark.slow
def test_a_process_that_dies_takes_the_run_down(toy_raf, tmp_path):
    """What was saved before is intact."""
    folder = tmp_path / "run"
    process = torchrun(toy_raf, folder, "--epochs", "1000")
    wait_for(folder / "metrics.csv", process)
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
    )
    os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)
    _, err = process.communicate(timeout=300)
    assert process.returncode != 0 and "rafdb.py FAILED" in err
    assert len(checkpoint.load(folder / "last.pth")["metrics"]) >= 1
