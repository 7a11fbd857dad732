"""Kill a run again and again, and see that nothing is lost and that it ends as if nothing had been.

    python tests/torture.py --kills 50

Each run is killed by SIGKILL at random moments, every other time while a checkpoint is being
written, and goes on by --resume until it has ended. After each kill all files must be whole and no
epoch may be lost; at the end weights, optimizer and metrics must be those of a run that was left
alone, to the bit, and no temporary file may be left.
"""

import contextlib
import csv
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import rafdb
from tests.conftest import SMALL
from utils import checkpoint, cli
from utils.errors import exit_on_user_error
from utils.toy.sets import write_rafdb

EPOCHS = 6


def main() -> None:
    parser = cli.Parser(description=__doc__)
    parser.add_argument("--kills", type=cli.whole_number(1), default=50, help="how many")
    parser.add_argument("--seed", type=cli.whole_number(0), default=0, help="random seed")
    args = parser.parse_args()
    torch.set_num_threads(1)  # threads do not survive a fork
    chance = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        torture = Torture(Path(folder), chance)
        while torture.kills < args.kills:
            torture.one_run(args.kills)
    print(
        f"kills {torture.kills} ({torture.while_writing} while a checkpoint was being written), "
        f"resumes {torture.resumes}, runs {torture.runs}, losses {len(torture.losses)}"
    )
    for loss in torture.losses:
        print(f"  {loss}")
    sys.exit(bool(torture.losses))


class Torture:
    """Counts what it does and what is lost."""

    def __init__(self, folder: Path, chance: random.Random):
        self.folder, self.chance = folder, chance
        self.kills = self.while_writing = self.resumes = self.runs = 0
        self.losses: list[str] = []
        write_rafdb(folder / "raf", train=49, test=21)
        started = time.perf_counter()
        self.reference = folder / "left alone"
        self._wait(self._start(self.reference))
        self.seconds = time.perf_counter() - started

    def one_run(self, kills: int) -> None:
        """From its start to its end, killed until there have been so many kills in all."""
        self.runs += 1
        folder, epochs = self.folder / f"run {self.runs}", 0
        while True:
            process = self._start(folder)
            self.resumes += (folder / "last.pth").exists()
            code = self._kill(process, folder) if self.kills < kills else self._wait(process)
            if code == -signal.SIGKILL:
                epochs = self._look(folder, epochs)
            else:
                break
        if code:
            self.losses.append(f"{folder.name}: ended with code {code}")
        self._compare(folder)

    def _start(self, folder: Path) -> int:
        """rafdb.py in a process of its own, forked so as not to import PyTorch each time."""
        process = os.fork()
        if process:
            return process
        code = 1
        try:
            os.setsid()
            flags = ["--raf_path", str(self.folder / "raf"), "--output_dir", str(folder), *SMALL]
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
                with exit_on_user_error():
                    rafdb.main([*flags, "--epochs", str(EPOCHS), "--resume"])
            code = 0
        finally:
            os._exit(code)

    def _wait(self, process: int) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])

    def _kill(self, process: int, folder: Path) -> int:
        """Its exit code, which is SIGKILL's unless it has ended before its moment came."""
        writing = self.kills % 2 == 1
        deadline = time.perf_counter() + self.chance.uniform(0, self.seconds)
        temporary = folder / ".last.pth.tmp"
        while not (temporary.exists() if writing else time.perf_counter() > deadline):
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.0005)
        if writing:
            time.sleep(self.chance.uniform(0, 0.05))
        os.kill(process, signal.SIGKILL)
        code = self._wait(process)
        self.kills += 1
        self.while_writing += temporary.exists()
        return code

    def _look(self, folder: Path, epochs: int) -> int:
        """All files must be whole, and hold as many epochs as before or more."""
        try:
            now = 0
            for path in folder.glob("[!.]*.pth"):
                content = checkpoint.load(path)
                if path.name == "last.pth":
                    now = content["iter"]
            if (folder / "metrics.csv").exists():
                with open(folder / "metrics.csv") as file:
                    rows = [float(row["val_accuracy"]) for row in csv.DictReader(file)]
                if len(rows) > now:
                    self.losses.append(f"{folder.name}: {now} epochs, but {len(rows)} rows")
        except Exception as error:  # whatever it is, it is what this script looks for
            self.losses.append(f"{folder.name}: {type(error).__name__}: {error}")
            return epochs
        if now < epochs:
            self.losses.append(f"{folder.name}: epoch {epochs} was there, now {now}")
        return now

    def _compare(self, folder: Path) -> None:
        ours, theirs = (checkpoint.load(f / "last.pth") for f in (folder, self.reference))
        for key in ("model_state_dict", "criterion_state_dict", "optimizer_state_dict"):
            if not _same(ours[key], theirs[key]):
                self.losses.append(f"{folder.name}: another {key} than without kills")
        for ours_row, row in zip(ours["metrics"], theirs["metrics"], strict=True):
            times = ("seconds", "images_per_second")
            if any(ours_row[key] != row[key] for key in row.keys() - set(times)):
                self.losses.append(f"{folder.name}: other metrics in epoch {row['epoch']}")
        files, expected = (sorted(os.listdir(f)) for f in (folder, self.reference))
        if files != expected:
            self.losses.append(f"{folder.name}: holds {files}")


def _same(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


if __name__ == "__main__":
    main()
