#!/usr/bin/env bash
# Tests and measures simsfl on a CUDA device in one go, without a network: see benchmarks/README.md.
#
#     [OUT=DIR] [CIFAR10=DIR] [SECONDS_TO_TRAIN=N] [ONLY="tests parts ..."] bash benchmarks/cuda.sh
#
# With SIMSFL_CUDA_REHEARSAL=1 every line runs on the CPU at tiny sizes.
set -uo pipefail
sections="tests records precisions parts profile engines scale train"
ONLY=${ONLY:-$sections}
# refuse WORDS...: says what is wrong with a variable, and ends.
refuse() {
    echo "error: $*" >&2
    exit 2
}
for name in $ONLY; do
    [[ " $sections " == *" $name "* ]] || refuse "ONLY: '$name' is no section; allowed: $sections"
done
[[ ${SIMSFL_CUDA_REHEARSAL:-0} == [01] ]] || refuse "SIMSFL_CUDA_REHEARSAL: '$SIMSFL_CUDA_REHEARSAL'; allowed: 0, 1"
[[ -z ${CIFAR10:-} || -d $CIFAR10 ]] || refuse "CIFAR10: there is no directory $CIFAR10; allowed: one with the slices"
[[ ${SECONDS_TO_TRAIN:-240} =~ ^[1-9][0-9]*$ ]] || refuse "SECONDS_TO_TRAIN: '$SECONDS_TO_TRAIN'; allowed: 1 or more"
if [[ $ONLY == train && -z ${CIFAR10:-} && ${SIMSFL_CUDA_REHEARSAL:-0} == 0 ]]; then
    refuse "CIFAR10: is not set, and there is nothing to train on; allowed: a directory with the slices"
fi
export OUT=${OUT:-cuda-results} PYTHONUNBUFFERED=1 PYTHON=${PYTHON:-python3} PIP_BREAK_SYSTEM_PACKAGES=1
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
CIFAR10=${CIFAR10:+$(cd "$CIFAR10" && pwd)}
export RUN=${RUN:+$(realpath -m "$RUN")}
SIMSFL_CACHE=${SIMSFL_CACHE:+$(realpath -m "$SIMSFL_CACHE")}
if [[ $PYTHON == */* ]]; then
    PYTHON=$(realpath -s "$PYTHON") # a link in a virtual environment stays one
fi
cd "$(dirname "$0")/.."
if [[ -z ${SIMSFL_CACHE:-} ]]; then
    SIMSFL_CACHE=$(mktemp -d)
    trap 'rm -rf "$SIMSFL_CACHE"' EXIT
fi
export SIMSFL_CACHE
exec > >(tee -a "$OUT/log.txt") 2>&1
ended=() failed=0

patience=1 tests=(-m cuda) tiny=() steps=20 scale=1000000 engines=loop,vmap,vmap+bf16,fused,fused+tf32,fused+bf16
if [[ ${SIMSFL_CUDA_REHEARSAL:-} == 1 ]]; then
    patience=5 # two busy cores may be that much slower
    tests=(tests/kernels/test_info_nce.py) steps=2 scale=50 engines=loop,vmap,fused
    tiny=(--device cpu --cohort 4 --width 8 --key-dim 16 --queue-length 40)
fi
if "$PYTHON" -c 'import xdist' 2> /dev/null; then
    tests+=(-n 4 -p no:benchmark) # most of the time goes into compiling
else
    tests+=(-o addopts=--import-mode=importlib)
fi

# section NAME SECONDS COMMAND...: runs a command for so long at most; a failure does not stop the next.
section() {
    local name=$1 limit=$2 begin=$SECONDS code=0
    shift 2
    [[ " $ONLY " == *" $name "* ]] || return 0
    echo "== $name"
    timeout $((limit * patience)) "$@" || code=$?
    ((code == 0)) || failed=1
    ended+=("$name: exit $code after $((SECONDS - begin)) s")
}

if ! "$PYTHON" -c 'import simsfl, simsfl.kernels' 2> /dev/null; then
    "$PYTHON" -m pip install --quiet --no-deps --no-build-isolation --no-index --editable . || exit 1
fi
section tests 90 "$PYTHON" -m pytest -q -p no:cacheprovider "${tests[@]}"
section records 45 "$PYTHON" benchmarks/parts_of_a_step.py records
section precisions 45 "$PYTHON" benchmarks/parts_of_a_step.py precisions
section parts 120 "$PYTHON" benchmarks/parts_of_a_step.py parts
section profile 30 "$PYTHON" benchmarks/parts_of_a_step.py profile
section engines 75 "$PYTHON" experiments/bench.py --dataset shapes --steps "$steps" --engines "$engines" \
    --json "$OUT/engines.json" "${tiny[@]}"
section scale 75 "$PYTHON" experiments/bench.py --scale "$scale" --steps "$steps" --json "$OUT/scale.json" "${tiny[@]}"
if [[ ${SIMSFL_CUDA_REHEARSAL:-} == 1 ]]; then
    section train 120 "$PYTHON" benchmarks/parts_of_a_step.py train 1 --dataset shapes
elif [[ -n ${CIFAR10:-} ]]; then
    [[ -e $SIMSFL_CACHE/cifar10.safetensors ]] ||
        "$PYTHON" benchmarks/pack_cifar10.py unpack "$CIFAR10"/*.zip --out "$SIMSFL_CACHE"
    section train $((${SECONDS_TO_TRAIN:-240} + 150)) \
        "$PYTHON" benchmarks/parts_of_a_step.py train "${SECONDS_TO_TRAIN:-240}" --dataset cifar10
fi
"$PYTHON" benchmarks/parts_of_a_step.py summary $ONLY
printf '%s\n' "${ended[@]}" "whole: $SECONDS s"
exit "$failed"
