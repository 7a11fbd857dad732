#!/usr/bin/env bash
# Everything that only a GPU can tell, in at most 8 minutes: the CUDA tests, the benchmark, and a
# whole run of RAF-DB's size. A part that fails does not stop the others; the last lines are the
# table of docs/speed.md.
#
#   bash tests/on_gpu.sh
set -u
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

part() { # name, seconds it may take, command
    printf '\n== %s\n' "$1"
    timeout "$2" "${@:3}" || echo "FAILED ($1): exit code $?"
}

python -c 'import torch; print(torch.__version__, torch.cuda.get_device_name())'
part "CUDA tests" 100 python -m pytest -q -k cuda
part "benchmark" 190 bash -c "python tests/benchmark.py --compile | tee '$work/table.md'"
# RAF-DB's counts and image size.
part "drawing 15,339 faces" 40 python -c "from utils.toy.sets import write_rafdb
write_rafdb('$work/raf', train=12271, test=3068)"
part "40 epochs of RAF-DB's size" 150 bash -c "time python rafdb.py --raf_path '$work/raf' \
    --pretrained none --output_dir '$work/run'"

printf '\n== for docs/speed.md\n'
cat "$work/table.md"
