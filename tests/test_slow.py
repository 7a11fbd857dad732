"""What takes real trainings, real disks or many processes: `python -m pytest -m slow`."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from networks.dan import DAN
from tests import benchmark
from tests.bench import demonstration, pipelines
from tests.conftest import CPU, REPOSITORY, SMALL, train_raf
from tests.grad_cam_meaning import measure
from utils import checkpoint
from utils.checkpoint import read_trained
from utils.data.datasets import read_rafdb
from utils.data.loader import FaceLoader
from utils.errors import UserError
from utils.training.engine import evaluate

pytestmark = pytest.mark.slow
README = (REPOSITORY / "README.md").read_text()


# ---- toy runs that learn -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learned(toy_run, clone):
    """The best network of `rafdb.py --toy`, as it was trained, and faces it has not seen."""
    trained = read_trained(toy_run / "best.pth")
    model = trained.network().requires_grad_(False)
    return trained, model, read_rafdb(clone / trained.config["raf_path"]).val


def test_toy_rafdb_learns_people_it_has_not_seen(toy_run, learned):
    """Chance is 14 %."""
    assert checkpoint.load(toy_run / "last.pth")["metrics"][-1]["val_accuracy"] >= 0.95
    assert isinstance(learned[1], DAN) and learned[0].toy


def test_toy_affectnet_learns(run_in_clone, clone):
    """Chance is 12.5 %."""
    run_in_clone("python affectnet.py --toy")
    last = checkpoint.load(clone / "models/toy-affectnet-8/last.pth")
    assert last["metrics"][-1]["val_accuracy"] >= 0.92


def test_evaluation_agrees_with_training(learned, toy_run, run_in_clone):
    split = learned[2]
    out = run_in_clone("python rafdb.py --toy --evaluate --checkpoint models/toy-rafdb/best.pth")
    metrics = json.loads((toy_run / "best-evaluation" / "metrics.json").read_text())
    best = max(row["val_accuracy"] for row in checkpoint.load(toy_run / "last.pth")["metrics"])
    # Training evaluates in bf16 where that is native, --evaluate in float32.
    assert metrics["accuracy"] == pytest.approx(best, abs=2 / len(split))
    assert f"{len(split)} images of toy RAF-DB" in out


def test_inference_form_and_bf16_predict_the_same(learned):
    trained, model, split = learned
    loader = FaceLoader(split, batch_size=64, image_size=trained.image_size)
    expected = evaluate(model, loader, trained.image_size)
    fused = evaluate(trained.inference_network(), loader, trained.image_size)
    torch.testing.assert_close(fused.probabilities, expected.probabilities, rtol=1e-3, atol=1e-4)
    network = trained.inference_network(CPU, torch.bfloat16)
    bf16 = evaluate(network, loader, trained.image_size)
    # 99.5 % is the aim; one face of these few may lie on the border.
    differing = (bf16.predictions != expected.predictions).sum().item()
    assert differing <= 1 + 0.005 * len(split)


@pytest.mark.parametrize("method", ["attention", "gradcam++"])
def test_heat_maps_lie_on_brows_eyes_and_mouth(learned, method):
    """They are where a face differs from the same face without them; 1 would be chance."""
    trained, model, split = learned
    gains = measure(model, split, trained.image_size, method)
    assert len(gains) > 90 and gains.mean() > 1.3 and (gains > 1).mean() > 0.95


# ---- the README ----------------------------------------------------------------------------------

# Commands that cannot run in a test, and why.
NOT_RUN = {
    "pip install -r requirements.txt": "done before the tests",
    "python rafdb.py --toy": "the fixture toy_run",
    "python rafdb.py": "needs RAF-DB",
    "python rafdb.py --resume": "needs RAF-DB",
    "python affectnet.py --epochs 10": "needs AffectNet",
    "python affectnet.py --toy": "another test",
    "python affectnet.py --aff_path datasets/FER2013": "needs FER2013",
    "python utils/convert_affectnet.py --aff_path datasets/AffectNet": "needs AffectNet",
    "python utils/check_data.py datasets/raf-basic": "needs RAF-DB",
    "python affectnet.py --evaluate --checkpoint models/affecnet8_epoch5_acc0.6209.pth": (
        "needs AffectNet and the released weights"
    ),
    "python utils/convert_fer2013.py --fer2013 fer2013.csv --ferplus fer2013new.csv": "the same",
    "torchrun --nproc_per_node=4 rafdb.py": "needs RAF-DB and GPUs; see test_distributed.py",
}


def commands() -> list[str]:
    """The lines of the README's shell blocks, without comments."""
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    single = [block for block in blocks if not block.startswith("for ")]  # loops take minutes
    lines = (re.sub(r"\s+#.*", "", line).strip() for line in "\n".join(single).splitlines())
    return [" ".join(line.split()) for line in lines if line and not line.startswith("#")]


def test_commands_that_are_not_run_stand_in_the_readme():
    assert set(NOT_RUN) <= set(commands())


def test_the_first_run_ends_as_the_readme_shows(toy_output):
    """But for the figures."""

    def shape(text: str) -> list[str]:
        lines = (" ".join(line.removesuffix("...").split()) for line in text.splitlines())
        return [re.sub(r"[0-9]+(\.[0-9]+)?", "0", line) for line in lines]

    shown = re.search(r"```\n(toy RAF-DB.*?)```", README, re.DOTALL)[1]
    printed = shape(toy_output)[-len(shape(shown)) :]
    for expected, line in zip(shape(shown), printed, strict=True):
        assert line.startswith(expected)


@pytest.mark.parametrize("command", [c for c in commands() if c not in NOT_RUN])
def test_command(command, clone, toy_run, run_in_clone, photo):
    if "photo.jpg" in command:
        shutil.copy(photo, clone / "photo.jpg")
    assert run_in_clone(command)


@pytest.mark.parametrize("path", re.findall(r"\]\((?!http|#)([^)]+)\)", README))
def test_linked_files_are_there(path):
    assert (REPOSITORY / path).is_file()


# ---- disks, signals, kills -----------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system on which one checkpoint of the real network fits, but not two."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_leaves_the_last_checkpoint(toy_raf, small_disk):
    with pytest.raises(UserError, match="last.pth: cannot be written"):
        train_raf(toy_raf, small_disk / "run", "--epochs", "3")
    assert checkpoint.load(small_disk / "run" / "last.pth")["iter"] == 1
    assert checkpoint.load(small_disk / "run" / "best.pth")["iter"] == 1
    assert not list((small_disk / "run").glob(".*.tmp"))


def start(toy_raf, folder, *more) -> subprocess.Popen:
    """rafdb.py in a process of its own, streaming its images, once its first epoch has ended."""
    code = "from utils.data import loader; loader.CACHE_SHARE = 0; import rafdb, sys\n"
    code += "from utils.errors import exit_on_user_error\n"
    code += "with exit_on_user_error(): rafdb.main(sys.argv[1:])"
    flags = ["--raf_path", str(toy_raf), *SMALL, "--output_dir", str(folder), *more]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *flags],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for line in process.stdout:
        if line.startswith("epoch"):
            return process
    raise AssertionError(process.communicate()[1])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_process_group_saves_the_run(toy_raf, tmp_path, number):
    """Workers included, as from a terminal or a scheduler; the printed command continues it."""
    folder = tmp_path / "a run"
    process = start(toy_raf, folder, "--epochs", "500", "--workers", "2")
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + number and "Traceback" not in err
    words = shlex.split(err.splitlines()[-1])
    done = checkpoint.load(folder / "last.pth")["iter"]
    again = [sys.executable, "rafdb.py", *words[2:], "--epochs", "501"]
    process = subprocess.Popen(again, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("epoch"):
            break
    process.terminate()
    process.communicate(timeout=120)
    assert line.split()[1] == f"{done + 1}/501"


def test_a_second_ctrl_c_ends_immediately(toy_raf, tmp_path):
    process = start(toy_raf, tmp_path / "run", "--epochs", "500")
    process.send_signal(signal.SIGSTOP)  # so that the first arrives before a step can end
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    for line in process.stderr:
        if "press Ctrl-C again" in line:
            break
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT)
    assert checkpoint.load(tmp_path / "run" / "last.pth")["iter"] >= 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_fifty_kills_lose_nothing():
    script = str(Path(__file__).with_name("torture.py"))
    done = subprocess.run([sys.executable, script, "--kills", "50"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kills 50" in done.stdout and "losses 0" in done.stdout


# ---- the benchmark -------------------------------------------------------------------------------


def test_every_row_of_the_benchmark(monkeypatch, capsys):
    """It runs to its end; what it measures is for a quiet machine to say."""
    for module in (benchmark, pipelines, demonstration):
        monkeypatch.setattr(module, "SIZE", 32)
    # Not in a process of its own, which takes longer than all else here.
    monkeypatch.setattr(benchmark, "peak_bytes", lambda device, call, *args: call(*args) or 1)
    flags = "--quick --images 8 --batch_size 8 --workers 0 --device cpu".split()
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *flags])
    benchmark.main()
    lines = capsys.readouterr().out.splitlines()
    measured = {line.split(" | ")[0].lstrip("| ").split(",")[0] for line in lines[2:-2]}
    assert measured >= {
        "training step",
        "training epoch",
        "- its steps alone",
        "evaluation with loading",
        "forward",
        "latency",
        "one core",
        "Grad-CAM++ of 4 heads",
    }
    assert "CPU" in lines[-1] and lines[-1].endswith("8 images an epoch")
