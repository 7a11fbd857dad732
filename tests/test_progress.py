"""What a log shows of something that takes long, where there is no terminal."""

import sys

import pytest

from utils import progress


@pytest.mark.parametrize("every, lines", [(1e-9, 4), (60, 0)])
def test_lines_of_a_log(every, lines, monkeypatch, capsys):
    monkeypatch.setattr(progress, "LOG_EVERY", every)
    bar = progress.progress(range(4), desc="epoch 1")
    for _ in bar:
        bar.set_postfix(loss="1.500", refresh=False)
    bar.close()
    written = capsys.readouterr().err.splitlines()
    assert len(written) == lines and all(line.startswith("epoch 1: ") for line in written)
    if lines:
        assert written[-1].startswith("epoch 1: 4 of 4, 00:00 gone") and "loss=1.5" in written[1]


def test_what_is_not_shown_is_silent(monkeypatch, capsys):
    monkeypatch.setattr(progress, "LOG_EVERY", 1e-9)
    assert list(progress.progress(range(3), shown=False)) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_that_goes(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    for _ in progress.progress(range(3), desc="epoch 1", mininterval=0):
        pass
    written = capsys.readouterr().err
    assert "\r" in written and "3/3" in written and not written.endswith("\n")
