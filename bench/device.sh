#!/usr/bin/env bash
# On a machine with a GPU: device tests, then the benches of kernels and searches.
#
#     bench/device.sh [all] [FOLDER]         everything, under 8 minutes
#     bench/device.sh quick [FOLDER]         correctness only, under 3 minutes
#     bench/device.sh run PART ...           some parts, each with all the time it wants
#
# PYTHON names the interpreter (default python3), LOGS the folder of logs and copies of the results
# (default FOLDER or bench/results/device; device.tar.gz in it has them all), GPU_ALIGN_PAIRS a
# folder of trained pairs, PEERS a folder of wheels and source archives of other assignment solvers.
#
# Every part has its share of seconds; one that is cut leaves what it has recorded until then. A part
# that fails does not stop the others; the exit status says whether one did.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

# name, seconds in `all`, seconds in `run`, command; the shares of `all` add up to 475 s.
PARTS="
tests_engine   70 120 test engine
tests_kernels  50 120 test kernels
same_seed      20  40 bench same_seed
row_distance   55  60 bench row_distance
assignment     60 100 bench assignment
k_best         15  40 bench k_best
profile_step   35  60 bench profile_step
whole          45 120 bench whole
portfolio      35  60 bench portfolio
beam_width     35  60 bench beam_width
many_models    55  90 bench many_models siren siren_60000
"
QUICK="tests_engine tests_kernels same_seed"
CURTAILED=" assignment whole portfolio beam_width many_models " # in `all`

usage() {
    sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"
    exit 2
}

log() { printf '%s %s\n' "$(date +%T)" "$*"; }

files_of() { # engine or kernels: test files that need a device
    local all
    all=$(grep -lE 'mark\.gpu|DEVICES' tests/test_*.py)
    case $1 in
        engine) grep engine <<<"$all" ;;
        kernels) grep -v engine <<<"$all" ;;
    esac
}

command_of() { # kind, arguments...: sets the array `command`
    local kind=$1
    shift
    case $kind in
        test)
            local files
            mapfile -t files < <(files_of "$1")
            command=("$python" -m pytest -q -m gpu -n "$workers" -p no:benchmark "${files[@]}")
            ;;
        bench)
            command=("$python" -m "bench.$1" "${@:2}" --record)
            case "$mode $CURTAILED" in "all "*" $1 "*) command+=(--quick) ;; esac
            ;;
    esac
}

part() { # name, seconds, kind, arguments...
    local name=$1 seconds=$2 status=0
    shift 2
    command_of "$@"
    log "$name, at most $seconds s"
    timeout -k 5 "$seconds" "${command[@]}" >"$out/$name.log" 2>&1 || status=$?
    case $status in
        0) ;;
        124 | 137) log "$name: cut after $seconds s; what it had recorded stays" ;;
        *) log "$name: failed with status $status" ;;
    esac
    [ $status = 0 ] || failed="$failed $name"
    tail -n "${LINES_SHOWN:-12}" "$out/$name.log"
}

install_peers() { # wheels now; archives in the background, as they take a minute to compile
    local archives wheels
    [ -n "${PEERS:-}" ] && [ ! -d "$peers" ] || return 0
    shopt -s nullglob
    wheels=("$PEERS"/*.whl) archives=("$PEERS"/*.tar.gz)
    shopt -u nullglob
    [ ${#wheels[@]} = 0 ] || install "${wheels[@]}" || log "wheels of peers: see $out/peers.log"
    [ ${#archives[@]} = 0 ] || {
        install "${archives[@]}" &
        installing=$!
    }
}

install() {
    torch_lap_cuda_ARCHS=90 timeout 200 "$python" -m pip install --quiet --no-index --no-deps --no-compile \
        --no-build-isolation --target "$peers" --upgrade "$@" >>"$out/peers.log" 2>&1
}

await_peers() {
    [ -n "${installing:-}" ] || return 0
    wait "$installing" || log "a peer could not be installed, see $out/peers.log"
    installing=
}

prepare() {
    "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null || {
        echo "$python finds no torch with a CUDA device: device figures are not yet measured" >&2
        exit 1
    }
    "$python" -c 'import gpu_align.kernels' 2>/dev/null ||
        "$python" -m pip install --quiet --no-deps --no-build-isolation -e . || exit 1
    nvidia-smi --query-gpu=name,driver_version,clocks.sm,memory.used --format=csv
    "$python" -c 'import sys; from bench.record import commit; sys.exit(commit() is None)' ||
        echo "no git here: the results name no commit. Set GPU_ALIGN_COMMIT"
    export PYTHONPATH="$peers${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
}

finish() {
    "$python" -m bench.plot >"$out/plot.log" 2>&1 || log "not all could be drawn: $out/plot.log"
    "$python" -m bench.targets 2>&1 | tee "$out/targets.log"
    find bench/results -maxdepth 1 -newer "$started" -type f -exec cp {} "$out/" \;
    rm -f "$started"
    tar czf "$out.tmp" --exclude ./peers --exclude ./device.tar.gz -C "$out" . &&
        mv "$out.tmp" "$out/device.tar.gz"
    [ -z "$failed" ] || log "not all is well:$failed"
    log "done: $out/device.tar.gz has all logs and results"
}

mode=all
case ${1:-} in
    all | quick | run) mode=$1 && shift ;;
    -*) usage ;;
esac
python=${PYTHON:-python3}
chosen=
case $mode in
    quick) chosen=$QUICK ;;
    run)
        [ $# -gt 0 ] || usage
        chosen=$*
        for name in $chosen; do
            grep -q "^$name " <<<"$PARTS" || {
                echo "expected parts among: $(awk '{print $1}' <<<"$PARTS" | xargs); got $name" >&2
                exit 2
            }
        done
        set --
        ;;
esac
out=${LOGS:-${1:-bench/results/device}}
peers=$out/peers
workers=${WORKERS:-6}
failed=
mkdir -p "$out"
started=$out/.started
touch "$started"
prepare
case " ${chosen:-assignment} " in *" assignment "*) install_peers ;; esac
while read -r name short long rest; do
    [ -n "$name" ] || continue
    case " ${chosen:-$name} " in *" $name "*) ;; *) continue ;; esac
    case $mode in
        run) short=$long ;;
        quick) short=$((short * 5 / 4)) ;;
    esac
    [ "$name" != assignment ] || await_peers
    # shellcheck disable=SC2086  # the rest of a line is words
    part "$name" "$short" $rest </dev/null
done <<<"$PARTS"
finish
[ -z "$failed" ]
