#!/bin/sh
# The main job on the built-in digits: make quickstart. Each command is printed before it runs.
#   sh experiments/quickstart.sh DATA_FOLDER OUT_FOLDER
set -eu
data=$1
out=$2
source=assets/mnist/t10k-images-idx3-ubyte.gz
run() {
    printf '\n$ %s\n' "$*"
    "$@"
}
rm -rf "$out"
mkdir -p "$data" "$out"

run python dataset_tool.py --source=$source --dest="$data/train.zip" --max-images=9500
run python dataset_tool.py --source=$source --dest="$data/test.zip" --skip-images=9500
run python train.py --preset=mnist-cpu --duration=0.09 --outdir="$out/run" --nosubdir --data="$data/train.zip" --val-data="$data/test.zip"
run python train.py --fit-prior="$out/run" --prior=head --prior-width=32 --duration=0.01 --seed=0 --outdir="$out/prior" --nosubdir --data="$data/train.zip" --val-data="$data/test.zip"
network=$(ls "$out"/prior/network-snapshot-*.safetensors | tail -n 1)
run python generate.py --network="$network" --outdir="$out/samples" --seeds=0-63 --temperature=0.8 --grid="$out/samples.png"
run python generate.py --network="$network" --outdir="$out/reconstructions" --reconstruct="$data/test.zip" --columns=16 --grid="$out/reconstructions.png"

cat <<END

Done. Look at
  $out/samples.png           64 generated digits, one per seed (--uniform: without the prior)
  $out/reconstructions.png   500 digits of the test set, each row above its reconstructions
  $out/run/report.html       how the training went
  $out/samples/              the 64 digits as single files
END
