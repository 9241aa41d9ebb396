#!/usr/bin/env bash
# Check everything that needs a GPU, on a bare machine: python3 with a CUDA torch, nvcc, no network.
#
#   bench/gpu_check.sh [RUN-OPTIONS...]        for example: bench/gpu_check.sh --seed 1
#
# Builds the extension in place, runs the tests marked needs_cuda, runs the experiment on the GPU and
# prints a short table. Records go, one JSON object a line, to $OUT if that is set, else to
# bench/results/. About five minutes.
#
# The other dependencies must be importable already; wheels of missing ones can be carried along in
# the folder $NNMF_CUDA_WHEELS. The images are $NNMF_CUDA_DATA/darabi.npz, or the phantom where
# NNMF_CUDA_DATA is not set.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
results="${OUT:-bench/results}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if [[ -n "${NNMF_CUDA_WHEELS:-}" ]]; then
  python3 -m pip install --quiet --no-index --no-deps --target "$work/site" "$NNMF_CUDA_WHEELS"/*.whl
  export PYTHONPATH="$PYTHONPATH:$work/site"
fi

FORCE_CUDA=1 python3 setup.py build_ext --inplace > "$work/build.log" 2>&1 || { tail -n 50 "$work/build.log"; exit 1; }
grep "^nnmf-cuda:" "$work/build.log"
python3 -m nnmf_cuda.cli info

# A part that fails or takes too long must not lose what the others have found.
failed=0
export NNMF_CUDA_REQUIRE_CUDA=1 NNMF_CUDA_REQUIRE_EXT=1
timeout 240 python3 -m pytest -q -m needs_cuda -p no:cacheprovider --junit-xml "$work/tests.xml" || failed=1

data=()
if [[ -n "${NNMF_CUDA_DATA:-}" ]]; then data=(--data "$NNMF_CUDA_DATA/darabi.npz"); fi
timeout 240 python3 -m nnmf_cuda.cli run --preset paper --device cuda --out "$work/run" "${data[@]}" "$@" || failed=1

python3 bench/gpu_record.py "$work/tests.xml" "$work/run" "$results"
exit "$failed"
