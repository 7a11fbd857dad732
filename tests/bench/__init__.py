"""What tests/benchmark.py measures, and what it measures with."""
