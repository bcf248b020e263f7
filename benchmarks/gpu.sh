#!/usr/bin/env bash
# Work on a CUDA machine that is lent for minutes.
#   bash benchmarks/gpu.sh check                     at most 4 minutes: environment, GPU tests, speed and memory
#   bash benchmarks/gpu.sh train PRESET DATA.zip     at most 9 minutes: network, prior, finisher, FID; again to continue
#   bash benchmarks/gpu.sh measure                   speed of a layer, a step and generation against their peers
#
# Everything to take along goes into $OUT (default out/gpu) as it is made: tables, 64 samples, and the averaged network
# half precision in parts under 16 MiB. `cat PRESET.safetensors.part-* > PRESET.safetensors` joins them. The runs stay in
# $RUN (runs/gpu), where the next `train` finds them. DEVICE (cuda), MINUTES (4 or 9), PYTHON, MORE (options of
# benchmarks.gpu_check or benchmarks.gpu_train) and TESTS (tests/test_gpu.py) are for trying it on a CPU.
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-out/gpu}
RUN=${RUN:-runs/gpu}
DEVICE=${DEVICE:-cuda}
MORE=${MORE:-}
PYTHON=${PYTHON:-python}
mkdir -p "$OUT" "$RUN"
export PYTHONUNBUFFERED=1

within() { # seconds, then a command; SIGINT ends it, so that training saves its state
    local status=0
    timeout --signal=INT --kill-after=20 "$@" || status=$?
    case $status in
    124 | 130) echo "Stopped after $1 seconds." ;;
    *) return $status ;;
    esac
}

case ${1:-help} in
check)
    limit=$((${MINUTES:-4} * 60))
    {
        nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv || echo 'no nvidia-smi'
        "$PYTHON" -c 'import sys, torch; print(sys.version, torch.__version__, torch.version.cuda, torch.cuda.is_available())'
    } 2>&1 | tee "$OUT/environment.txt"
    { within $((limit / 3)) "$PYTHON" -m pytest -q -p no:cacheprovider -m gpu ${TESTS:-tests/test_gpu.py} || true; } 2>&1 |
        tee "$OUT/tests.txt"
    within $((limit - SECONDS)) "$PYTHON" -m benchmarks.gpu_check --device="$DEVICE" --out="$OUT/check" $MORE
    ;;
train)
    within $((${MINUTES:-9} * 60)) "$PYTHON" -m benchmarks.gpu_train --preset="$2" --data="$3" --device="$DEVICE" \
        --seconds=$((${MINUTES:-9} * 60)) --run="$RUN" --out="$OUT" $MORE
    ls -l "$OUT"
    ;;
measure)
    for name in ddl train_step generate; do
        "$PYTHON" -m "benchmarks.$name" --device="$DEVICE" 2>&1 | tee "$OUT/$name.txt"
    done
    ;;
*)
    sed -n '2,11p' "$0"
    ;;
esac
