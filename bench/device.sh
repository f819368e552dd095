#!/usr/bin/env bash
# On a machine with a GPU: the device tests, then the benches of kernels and searches. Under 9
# minutes: each part has its share of seconds. A part that is cut leaves what it has recorded.
#
#     bench/device.sh [FOLDER]
#
# PYTHON names the interpreter (default python3).
# FOLDER gets the logs and a copy of the results (default bench/results/device). A part that fails
# does not stop the others; the exit status says whether one did.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-bench/results/device}
python=${PYTHON:-python3}
mkdir -p "$out"
failed=0

part() { # name, seconds, command...
    local name=$1 seconds=$2
    shift 2
    echo "== $name"
    timeout "$seconds" "$@" >"$out/$name.log" 2>&1 || {
        local status=$?
        [ $status = 124 ] && echo "cut after $seconds s: later cases are not measured"
        [ $status = 124 ] || echo "failed: status $status"
        failed=1
    }
    tail -n "${LINES_SHOWN:-15}" "$out/$name.log"
}

"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null || {
    echo "$python finds no torch with a CUDA device: device figures are not yet measured"
    exit 1
}
if ! "$python" -c 'import gpu_align.kernels' 2>/dev/null; then
    "$python" -m pip install --quiet --no-deps --no-build-isolation -e . || exit 1
fi
nvidia-smi --query-gpu=name,driver_version,clocks.sm,memory.used --format=csv
# The files are named, so that the others need not even be imported.
part tests 150 "$python" -m pytest -q -m gpu \
    tests/test_auction_gpu.py tests/test_row_distance.py tests/test_sinkhorn_kernel.py \
    tests/test_engine_gpu.py
part row_distance 70 "$python" -m bench.row_distance --record
part assignment 75 "$python" -m bench.assignment --record
part profile_step 25 "$python" -m bench.profile_step --record
part beam_width 60 "$python" -m bench.beam_width --record --quick
part whole 55 "$python" -m bench.whole --record --quick
part many_models 60 "$python" -m bench.many_models --record small siren
for result in row_distance assignment profile_step beam_width whole many_models_cuda; do
    [ ! -e "bench/results/$result.json" ] || cp "bench/results/$result.json" "$out/"
done
exit $failed
