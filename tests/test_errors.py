"""How a script ends: on a user's error, on Ctrl-C, behind `| head`; and its progress."""

import os
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY
from utils import progress
from utils.errors import UserError, exit_on_user_error, writing

MANY_LINES = "[print('x' * 1000) for _ in range(1000)]"


def run(code: str, **environment: str) -> subprocess.Popen:
    """A script that does this as its work."""
    lines = ["import sys", "from utils.errors import UserError, exit_on_user_error"]
    lines += ["with exit_on_user_error():", *(f"    {line}" for line in code.splitlines())]
    pipes = {name: subprocess.PIPE for name in ("stdin", "stdout", "stderr")}
    command = [sys.executable, "-c", "\n".join(lines)]
    environment = {**os.environ, **environment}
    return subprocess.Popen(command, cwd=REPOSITORY, env=environment, text=True, **pipes)


def test_a_file_that_cannot_be_opened_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit) as end, exit_on_user_error():
        open(tmp_path)
    assert end.value.code == 2
    assert capsys.readouterr().err == f"error: {tmp_path}: cannot be read (Is a directory)\n"


def test_a_message_is_one_line():
    assert str(UserError("a\nb\x1b.jpg")) == r"a\nb\x1b.jpg"


@pytest.mark.parametrize("error", [ValueError("x"), OSError("x"), BrokenPipeError("of a worker")])
def test_other_errors_are_not_hidden(error):
    with pytest.raises(type(error), match=str(error)), exit_on_user_error():
        raise error


def test_ctrl_c_is_one_line(capsys):
    with pytest.raises(SystemExit) as end, exit_on_user_error(interrupted="run it again"):
        raise KeyboardInterrupt
    assert end.value.code == 130 and capsys.readouterr().err == "run it again\n"


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "code",
    [
        MANY_LINES,
        f"{MANY_LINES}\nsys.exit(1)",
        f"{MANY_LINES}\nraise UserError('x')",
        "input()\nprint('one line, which waits for the end')",
    ],
    ids=["success", "exit code", "error", "at the end"],
)
def test_a_reader_that_goes_away_ends_it_silently(code, unbuffered):
    """`| head -1`, and `| true`."""
    script = run(code, PYTHONUNBUFFERED=unbuffered)
    script.stdout.close()
    script.stdin.write("\n")
    script.stdin.close()
    err = script.stderr.read()
    assert script.wait() == 141 and err in ("", "error: x\n"), err


def test_names_that_are_no_text_can_be_printed():
    out, err = run("print('\\udcff.jpg')", PYTHONIOENCODING="utf-8").communicate()
    assert (out, err) == ("\\udcff.jpg\n", "")


def test_writing_names_the_file_and_the_reason(tmp_path):
    with pytest.raises(UserError, match=r"^out/x\.csv: cannot be written \(No such file"):
        with writing("out/x.csv"):
            (tmp_path / "nowhere" / "x.csv").write_text("x")
    with pytest.raises(BrokenPipeError), writing("x"):  # `| head` has stopped reading
        raise BrokenPipeError


@pytest.mark.parametrize("first, every, lines", [(1e-9, 1e-9, 4), (1e-9, 60, 1), (60, 1e-9, 0)])
def test_progress_in_a_log(first, every, lines, monkeypatch, capsys):
    monkeypatch.setattr(progress, "LOG_FIRST", first)
    monkeypatch.setattr(progress, "LOG_EVERY", every)
    bar = progress.progress(range(4), desc="epoch 1")
    for _ in bar:
        bar.set_postfix(loss="1.500", refresh=False)
    bar.close()
    written = capsys.readouterr().err.splitlines()
    assert len(written) == lines and all(line.startswith("epoch 1: ") for line in written)


def test_progress_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    for _ in progress.progress(range(3), desc="epoch 1", mininterval=0):
        pass
    written = capsys.readouterr().err
    assert "\r" in written and "3/3" in written and not written.endswith("\n")
    assert list(progress.progress(range(3), shown=False)) == [0, 1, 2]
    assert capsys.readouterr().err == ""
