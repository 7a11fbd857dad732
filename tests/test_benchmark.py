"""The benchmark runs to its end; what it measures is for a quiet machine to say."""

import sys

from tests import benchmark
from tests.bench import pipelines


def test_every_line_of_the_table(monkeypatch, capsys):
    for module in (benchmark, pipelines):
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
