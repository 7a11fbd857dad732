"""Kill a run again and again, and see that nothing is lost and that it ends as if nothing had been.

    python tests/torture.py --kills 50

Each run is killed by SIGKILL at random moments, every other time while a checkpoint is being
written, and goes on by --resume until it has ended. After each kill all files must be whole and no
epoch may be lost; at the end weights, optimizer and metrics must be those of a run that was left
alone, to the bit, and no temporary file may be left.
"""

import contextlib
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.conftest import train_raf
from tests.test_resume import assert_same_runs, metrics
from utils import checkpoint, cli
from utils.toy.sets import write_rafdb

EPOCHS = 6


def main() -> None:
    parser = cli.Parser(description=__doc__)
    parser.add_argument("--kills", type=cli.whole_number(1), default=50, help="how many")
    parser.add_argument("--seed", type=cli.whole_number(0), default=0, help="random seed")
    args = parser.parse_args()
    torch.set_num_threads(1)  # threads do not survive a fork
    random.seed(args.seed)
    counts, losses = Counter(), []
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_rafdb(root / "raf", train=49, test=21)
        started = time.perf_counter()
        wait(start(root / "raf", root / "left alone"))
        seconds = time.perf_counter() - started

        while counts["kills"] < args.kills:
            counts["runs"] += 1
            folder, epochs, code = root / f"run {counts['runs']}", 0, -signal.SIGKILL
            while code == -signal.SIGKILL:
                counts["resumes"] += (folder / "last.pth").exists()
                process = start(root / "raf", folder)
                if counts["kills"] < args.kills:
                    moment = random.uniform(0, seconds)
                    while_writing = counts["kills"] % 2 == 1
                    code = kill(process, folder, None if while_writing else moment, counts)
                else:
                    code = wait(process)
                try:
                    epochs = check_files(folder, epochs)
                except Exception as error:  # whatever it is, it is what this script looks for
                    losses.append(f"{folder.name}: {type(error).__name__}: {error}")
            try:
                assert code == 0, f"ended with code {code}"
                assert_same_runs(folder, root / "left alone")
            except Exception as error:
                losses.append(f"{folder.name}: {type(error).__name__}: {error}")
    print(
        f"kills {counts['kills']} ({counts['while writing']} while a checkpoint was being written),"
        f" resumes {counts['resumes']}, runs {counts['runs']}, losses {len(losses)}"
    )
    for loss in losses:
        print(f"  {loss}")
    sys.exit(bool(losses))


def start(raf: Path, folder: Path) -> int:
    """Continue or start a run in a process of its own, forked so as not to import PyTorch again."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        os.setsid()
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            train_raf(raf, folder, "--epochs", str(EPOCHS), "--resume")
        code = 0
    finally:
        os._exit(code)


def wait(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def kill(process: int, folder: Path, moment: float | None, counts: Counter) -> int:
    """Kill a run some seconds after its start, or while it writes a checkpoint if that is None.
    Returns its exit code, which is SIGKILL's unless it has ended before."""
    started, temporary = time.perf_counter(), folder / ".last.pth.tmp"
    while not (temporary.exists() if moment is None else time.perf_counter() > started + moment):
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.0005)
    if moment is None:
        time.sleep(random.uniform(0, 0.05))
    os.kill(process, signal.SIGKILL)
    code = wait(process)
    counts["kills"] += 1
    counts["while writing"] += temporary.exists()
    return code


def check_files(folder: Path, epochs: int) -> int:
    """Check that all files are whole and hold at least so many epochs; return how many."""
    contents = {path.name: checkpoint.load(path) for path in folder.glob("[!.]*.pth")}
    done = contents["last.pth"]["iter"] if contents else 0
    assert done >= epochs, f"epoch {epochs} was there, now {done}"
    rows = len(metrics(folder)) if (folder / "metrics.csv").exists() else 0
    assert rows <= done, f"{done} epochs, but {rows} rows"
    return done


if __name__ == "__main__":
    main()
