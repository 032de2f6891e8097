#!/usr/bin/env bash
# Tests and measures simsfl on a CUDA device in one go, without a network: see benchmarks/README.md.
#
#     [OUT=DIR] [CIFAR10=DIR] [SECONDS_TO_TRAIN=N] [ONLY="tests parts ..."] bash benchmarks/cuda.sh
#
# With SIMSFL_CUDA_REHEARSAL=1 every line runs on the CPU at tiny sizes.
set -uo pipefail
cd "$(dirname "$0")/.."
export OUT=${OUT:-cuda-results} PYTHONUNBUFFERED=1 PYTHON=${PYTHON:-python3}
export SIMSFL_CACHE=${SIMSFL_CACHE:-$(mktemp -d)}
ONLY=${ONLY:-tests records precisions parts profile engines scale train}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
exec > >(tee -a "$OUT/log.txt") 2>&1
ended=()

tiny=()
if [[ ${SIMSFL_CUDA_REHEARSAL:-} == 1 ]]; then
    tiny=(--device cpu --clients 8 --cohort 4 --width 8 --key-dim 16 --queue-length 40)
    turns=2
else
    turns=20
fi

# section NAME SECONDS COMMAND...: runs a command for so long at most; a failure does not stop the next.
section() {
    local name=$1 limit=$2 begin=$SECONDS code=0
    shift 2
    [[ " $ONLY " == *" $name "* ]] || return 0
    echo "== $name"
    timeout "$limit" "$@" || code=$?
    ended+=("$name: exit $code after $((SECONDS - begin)) s")
}

if ! "$PYTHON" -c 'import simsfl, simsfl.kernels' 2> /dev/null; then
    "$PYTHON" -m pip install --quiet --no-deps --no-build-isolation --no-index --editable .
fi
if [[ ${SIMSFL_CUDA_REHEARSAL:-} == 1 ]]; then
    section tests 90 "$PYTHON" -m pytest -q -p no:cacheprovider tests/kernels/test_info_nce.py
else
    section tests 90 "$PYTHON" -m pytest -q -p no:cacheprovider -m cuda
fi
section records 60 "$PYTHON" benchmarks/parts_of_a_step.py records
section precisions 60 "$PYTHON" benchmarks/parts_of_a_step.py precisions
section parts 150 "$PYTHON" benchmarks/parts_of_a_step.py parts
section profile 60 "$PYTHON" benchmarks/parts_of_a_step.py profile
section engines 90 "$PYTHON" experiments/bench.py --dataset shapes --steps "$turns" --json "$OUT/engines.json" \
    --engines loop,vmap+fp32,fused+fp32,fused+tf32,fused+bf16 "${tiny[@]}"
section scale 90 "$PYTHON" experiments/bench.py --scale --steps "$turns" --json "$OUT/scale.json"
if [[ -n ${CIFAR10:-} ]]; then
    [[ -e $SIMSFL_CACHE/cifar10.safetensors ]] ||
        "$PYTHON" benchmarks/pack_cifar10.py unpack "$CIFAR10"/*.zip --out "$SIMSFL_CACHE"
    section train $((${SECONDS_TO_TRAIN:-240} + 90)) \
        "$PYTHON" benchmarks/parts_of_a_step.py train "${SECONDS_TO_TRAIN:-240}" --dataset cifar10
fi
"$PYTHON" benchmarks/parts_of_a_step.py summary
printf '%s\n' "${ended[@]}" "whole: $SECONDS s"
