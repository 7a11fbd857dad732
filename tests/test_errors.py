"""How a script ends: on a user's error, on Ctrl-C, and when nobody reads what it prints."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import demo
from utils.errors import UserError, exit_on_user_error

REPOSITORY = Path(demo.__file__).parent
MANY_LINES = "[print('x' * 1000) for _ in range(1000)]"


def run(code: str, **kwargs) -> subprocess.Popen:
    """A script that does this as its work."""
    lines = ["import signal, sys, time", "from utils.errors import UserError, exit_on_user_error"]
    # Tests that a shell runs in the background would hand SIGINT down as ignored.
    lines += ["signal.signal(signal.SIGINT, signal.default_int_handler)"]
    lines += ["with exit_on_user_error():", *(f"    {line}" for line in code.splitlines())]
    command = [sys.executable, "-c", "\n".join(lines)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **kwargs}
    return subprocess.Popen(command, cwd=REPOSITORY, text=True, **pipes)


def test_a_user_error_is_one_line_and_code_2(capsys):
    with pytest.raises(SystemExit) as end, exit_on_user_error():
        raise UserError("file: broken; mend it")
    assert end.value.code == 2
    assert capsys.readouterr() == ("", "error: file: broken; mend it\n")


@pytest.mark.parametrize("error", [ValueError("x"), OSError("x"), BrokenPipeError("of a worker")])
def test_other_errors_are_not_hidden(error, capsys):
    with pytest.raises(type(error), match=str(error)), exit_on_user_error():
        raise error


def test_ctrl_c_is_one_line(capsys):
    with pytest.raises(SystemExit) as end, exit_on_user_error(interrupted="run it again"):
        raise KeyboardInterrupt
    assert end.value.code == 130 and capsys.readouterr().err == "run it again\n"


def test_ctrl_c_on_a_terminal_starts_a_line(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with pytest.raises(SystemExit), exit_on_user_error(interrupted="run it again"):
        raise KeyboardInterrupt
    assert capsys.readouterr().err == "\nrun it again\n"


def test_ctrl_c_as_a_program():
    script = run("print('ready', flush=True)\ntime.sleep(60)")
    assert script.stdout.readline() == "ready\n"
    script.send_signal(signal.SIGINT)
    out, err = script.communicate()
    assert (script.returncode, out, err.count("\n")) == (130, "", 1)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "code",
    [
        MANY_LINES,
        f"{MANY_LINES}\nsys.exit(1)",
        f"{MANY_LINES}\nraise UserError('x')",
        "input()\nprint('one line, which waits for the end')",
        "input()\nprint('one line')\nsys.exit(1)",
    ],
)
def test_a_reader_that_goes_away_ends_it_silently(code, unbuffered):
    """`| head -1`, and `| true`."""
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    script = run(code, stdin=subprocess.PIPE, env=environment)
    script.stdout.close()
    script.stdin.write("\n")
    script.stdin.close()
    err = script.stderr.read()
    assert script.wait() == 141 and err in ("", "error: x\n")


def test_nobody_reads_the_error():
    reading, writing = os.pipe()
    os.close(reading)
    script = run("raise UserError('x')", stdout=writing, stderr=writing)
    os.close(writing)
    assert script.wait() == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("code", [MANY_LINES, "print('one line')"])
def test_stdout_on_a_full_disk_is_one_line(code):
    with open("/dev/full", "w") as full:
        script = run(code, stdout=full)
    _, err = script.communicate()
    assert script.returncode == 2
    assert err == "error: stdout cannot be written (No space left on device)\n"


def test_names_that_are_no_text_can_be_printed():
    script = run("print('\\udcff.jpg')", env={**os.environ, "PYTHONIOENCODING": "utf-8"})
    out, err = script.communicate()
    assert (script.returncode, out, err) == (0, "\\udcff.jpg\n", "")


def test_the_demo_behind_head(checkpoint_file, photo, tmp_path):
    """`python demo.py ... | head -1` with more output to come."""
    for i in range(3):
        Image.open(photo).resize((256, 300)).save(tmp_path / f"{i}.png")
    script = [sys.executable, REPOSITORY / "demo.py", "--image", tmp_path, "--device", "cpu"]
    script += ["--checkpoint", checkpoint_file(8, "affecnet8_epoch5_acc0.6209.pth")]
    done = subprocess.Popen(script, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert "8 classes" in done.stdout.readline()
    done.stdout.close()
    assert done.stderr.read() == "" and done.wait() == 141
