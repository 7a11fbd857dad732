"""Several processes against one: gradients, evaluation, whole runs, and what interrupts them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import rafdb
from tests import golden
from tests.conftest import CPU, REPOSITORY, SMALL
from tests.test_engine import make_run
from utils import checkpoint, distributed
from utils.data.datasets import read_rafdb
from utils.data.loader import FaceLoader
from utils.distributed import World
from utils.training.engine import evaluate


def torchrun(*command: str | Path) -> subprocess.Popen:
    """`torchrun --nproc_per_node=2` in the repository."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*start, *command], cwd=REPOSITORY, env=environment, **pipes)


def train(raf: Path, folder: Path, epochs: int) -> subprocess.Popen:
    flags = [*SMALL, "--num_head", "1", "--epochs", str(epochs)]
    return torchrun("rafdb.py", *flags, "--raf_path", raf, "--output_dir", folder)


# ---- what each process computes ------------------------------------------------------------------


def answers(world: World, folder: Path, raf: Path) -> dict:
    """Gradients of this process's share of a batch, and the evaluation of all test images."""
    data = read_rafdb(raf)
    torch.set_default_dtype(torch.float64)
    run = make_run(folder, data, world=world)
    torch.set_default_dtype(torch.float32)
    run.model.eval()
    run.criterion.affinity.centers.data = golden.weights("centers", (7, 512))
    images = torch.randn(7, 3, 64, 64, dtype=torch.float64, generator=torch.manual_seed(0))
    share = world.share(7)  # of different size for each
    losses, _ = run.forward(images[share], torch.arange(7)[share])
    losses.total.backward()
    parameters = [*run.model.named_parameters(), *run.criterion.named_parameters()]

    # Two batches of 10, and one of a single image, of which one process has none.
    loader = FaceLoader(data.val, batch_size=10, image_size=64, world=world)
    return {
        "losses": [loss.item() for loss in losses],
        "gradients": {name: parameter.grad for name, parameter in parameters},
        "evaluation": evaluate(run.model.float(), loader, 64, criterion=run.criterion.float()),
    }


def main(folder: str, raf: str) -> None:
    """Write what this process, which torchrun has started, computes."""
    torch.set_num_threads(1)
    world = World(CPU, None, *distributed._join("cpu"))
    torch.save(answers(world, Path(folder), Path(raf)), Path(folder, f"{world.rank}.pt"))
    world.shutdown()


@pytest.fixture(scope="module")
def both(tmp_path_factory, toy_raf):
    """What each of two processes answers."""
    folder = tmp_path_factory.mktemp("answers")
    process = torchrun("--module", "tests.test_distributed", folder, toy_raf)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory, toy_raf):
    return answers(World(), tmp_path_factory.mktemp("run"), toy_raf)


def test_gradients_and_losses_are_those_of_the_whole_batch(both, alone):
    for theirs in both:
        assert theirs["losses"] == pytest.approx(alone["losses"], rel=1e-9)
        assert theirs["gradients"].keys() == alone["gradients"].keys()
        for name, gradient in alone["gradients"].items():
            tolerance = 1e-6 * gradient.abs().max().item() + 1e-12
            torch.testing.assert_close(
                theirs["gradients"][name], gradient, rtol=1e-6, atol=tolerance
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


# ---- runs ----------------------------------------------------------------------------------------


def test_a_whole_run_writes_once_and_continues_alone(toy_raf, tmp_path):
    """The number of processes belongs to the machine, not to the recipe."""
    process = train(toy_raf, tmp_path, epochs=1)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out.count("epoch 1/1") == 1 and "2 processes" in out
    rafdb.main(["--resume", str(tmp_path), "--epochs", "2", "--device", "cpu"])
    history = checkpoint.load(tmp_path / "last.pth")["metrics"]
    assert [row["epoch"] for row in history] == [1, 2]
    assert history[0]["images_per_second"] * history[0]["seconds"] == pytest.approx(49)


@pytest.mark.slow
def test_a_signal_saves_the_same_step_of_all(toy_raf, tmp_path):
    process = train(toy_raf, tmp_path, epochs=1000)
    while not (tmp_path / "metrics.csv").exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=300)
    assert err.count("interrupted by SIGTERM") == 1
    assert "torchrun --nproc_per_node=2 rafdb.py --resume" in err
    assert checkpoint.load(tmp_path / "last.pth")["iter"] >= 1


if __name__ == "__main__":
    main(*sys.argv[1:])
