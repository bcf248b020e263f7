#!/usr/bin/env bash
# Work on a CUDA machine that is available for a limited time.
#   bash benchmarks/gpu.sh check             GPU, PyTorch, and the tests
#   bash benchmarks/gpu.sh train DATA.zip    a slice of training of at most 9 minutes; run it again to continue
#   bash benchmarks/gpu.sh measure           speed of a layer, a step and generation; waits for the device
#   bash benchmarks/gpu.sh score DATA.zip    FID of the newest snapshot against DATA.zip
#
# Environment: OUT, folder of the files to take along, in parts under 16 MiB (default out/gpu); RUN, the run folder
# (runs/gpu); PRESET (cifar10); MINUTES of a slice (9); TRAIN_OPTIONS, more options of train.py. A slice ends by SIGINT:
# train.py saves its state, and the next slice resumes it exactly. To continue on another machine, put the parts into $OUT
# and run `restore` first.
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-out/gpu}
RUN=${RUN:-runs/gpu}
PRESET=${PRESET:-cifar10}
MINUTES=${MINUTES:-9}
mkdir -p "$OUT" "$RUN"
export PYTHONUNBUFFERED=1

pack() { # state, snapshot and logs, in parts
    rm -f "$OUT"/part-*
    local state snapshot
    state=$(ls "$RUN"/training-state-*.safetensors | tail -n 1)
    snapshot=$(ls "$RUN"/network-snapshot-*.safetensors 2>/dev/null | tail -n 1 || true)
    tar -cf - "$state" $snapshot "$RUN"/*.json "$RUN"/*.jsonl "$RUN"/log.txt | split -b 15m - "$OUT/part-"
    cp "$RUN"/report.html "$OUT"/ 2>/dev/null || true
    ls -l "$OUT"
}

case ${1:-help} in
check)
    nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv
    python -c 'import torch; print(torch.__version__, torch.cuda.get_device_name())'
    python -m pytest -q -p no:cacheprovider
    ;;
train)
    data=$2
    resume=()
    if ls "$RUN"/training-state-*.safetensors >/dev/null 2>&1; then resume=(--resume="$RUN"); fi
    status=0
    timeout --signal=INT "$((MINUTES * 60))" python train.py --outdir="$RUN" --nosubdir --preset="$PRESET" --data="$data" \
        --precision=bf16 --seed=0 --tick=25 --snap=10 ${TRAIN_OPTIONS:-} "${resume[@]}" || status=$?
    [ $status -eq 0 ] || [ $status -eq 124 ] || [ $status -eq 130 ] || exit $status
    tail -n 3 "$RUN/log.txt"
    pack
    ;;
measure)
    for name in ddl train_step generate; do
        python -m "benchmarks.$name" --device=cuda 2>&1 | tee "$OUT/$name.txt"
    done
    ;;
score)
    network=$(ls "$RUN"/network-snapshot-*.safetensors | tail -n 1)
    python fid.py ref --data="$2" --dest="$OUT/ref.npz" --keep=0
    python fid.py calc --network="$network" --num="${NUM:-50000}" --ref="$OUT/ref.npz" --json="$OUT/fid.json"
    rm "$OUT/ref.npz"
    ;;
restore)
    cat "$OUT"/part-* | tar -xf -
    ;;
*)
    sed -n '2,13p' "$0"
    ;;
esac
