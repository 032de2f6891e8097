#!/usr/bin/env bash
# Tests and measures simsfl on a CUDA device in one go, without a network: see benchmarks/README.md.
#
#     [OUT=DIR] [CIFAR10=DIR] [SECONDS_TO_TRAIN=N] [ONLY="tests parts ..."] bash benchmarks/cuda.sh
#
# With SIMSFL_CUDA_REHEARSAL=1 every line runs on the CPU at tiny sizes.
set -uo pipefail
export OUT=${OUT:-cuda-results} PYTHONUNBUFFERED=1 PYTHON=${PYTHON:-python3} PIP_BREAK_SYSTEM_PACKAGES=1
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
CIFAR10=${CIFAR10:+$(cd "$CIFAR10" && pwd)}
export RUN=${RUN:+$(realpath -m "$RUN")}
cd "$(dirname "$0")/.."
if [[ -z ${SIMSFL_CACHE:-} ]]; then
    SIMSFL_CACHE=$(mktemp -d)
    trap 'rm -rf "$SIMSFL_CACHE"' EXIT
fi
export SIMSFL_CACHE
ONLY=${ONLY:-tests records precisions parts profile engines scale train}
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
"$PYTHON" benchmarks/parts_of_a_step.py summary
printf '%s\n' "${ended[@]}" "whole: $SECONDS s"
exit "$failed"
