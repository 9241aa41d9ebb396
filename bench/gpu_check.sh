#!/usr/bin/env bash
# Check everything that needs a GPU, within ten minutes, on a bare machine without a network.
#
#   bench/gpu_check.sh [RUN-OPTIONS...]     for example: bench/gpu_check.sh --seed 1
#   bench/gpu_check.sh --on-cpu             the same parts, tiny and on the CPU: does this script work?
#
# There must be: a C++20 compiler, nvcc, and a python3 (3.11 or newer) with torch for CUDA. Other
# packages are imported where they are installed, or installed from the wheels in the folder
# $NNMF_CUDA_WHEELS (with no dependencies: give all of them):
#   to build             setuptools>=77, ninja, pybind11, numpy
#   to test and measure  pytest, pandas, scipy, scikit-learn, joblib, threadpoolctl, pillow, tqdm
#                        (scikit-learn 1.9 also narwhals)
#   the command line     jsonargparse, PyYAML, docstring_parser, typeshed_client,
#                        importlib_resources, typing_extensions
#   the experiment       safetensors, matplotlib (and what it needs), jinja2, MarkupSafe, pyautoattack
#   to compare with      triton (for torch.compile), torchnmf, cupy-cuda13x, nmf-torch (which must
#                        have been compiled for this Python)
# Without those of the last three lines their parts are left out, and the table says so.
#
# Parts run in the order of what they are worth, each with a limit of its own in seconds, and none
# that fails takes another with it. Records go, one JSON object a line, to $OUT if that is set, else
# to bench/results/, with the whole output in gpu_check.log beside them; the table comes last. The
# images are $NNMF_CUDA_DATA/darabi.npz, or the phantom where that is not set.
#
# GPU_CHECK_SECONDS (570) is the time for everything; NNMF_CUDA_SKIP_BUILD=1 takes the extension that
# is there.
set -uo pipefail
cd "$(dirname "$0")/.."
here=$PWD
total=${GPU_CHECK_SECONDS:-570}
results=${OUT:-bench/results}
mkdir -p "$results"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
log=$results/gpu_check.log
: > "$log"
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

device=cuda smoke=() marker=needs_cuda
if [[ "${1:-}" == --on-cpu ]]; then
  shift
  device=cpu smoke=(--smoke) marker="not slow"
fi

left() { echo $((total - SECONDS)); }

note() { # NAME OUTCOME SECONDS LIMIT
  printf '{"part": "%s", "outcome": "%s", "seconds": %d, "limit": %d}\n' "$@" >> "$work/parts.jsonl"
  printf '%-28s %-10s %4d s\n' "$1" "$2" "$3"
}

# part NAME LIMIT COMMAND...: runs it for at most LIMIT seconds and what is left of the whole time,
# and keeps how it ended. Its output goes to the log; the end of it also here, where it failed.
part() {
  local name=$1 limit=$2 begin=$SECONDS code outcome
  shift 2
  ((limit > $(left) - 10)) && limit=$(($(left) - 10)) # the record and the table take a few
  if ((limit < 5)); then
    note "$name" "no time left" 0 0
    return 1
  fi
  PART_SECONDS=$limit timeout --kill-after=5 "$limit" "$@" > "$work/part.log" 2>&1
  code=$?
  { echo "=== $name"; cat "$work/part.log"; } >> "$log"
  case $code in
    0) outcome=ok ;;
    124 | 137) outcome="out of time" ;;
    *) outcome="failed ($code)" ;;
  esac
  note "$name" "$outcome" $((SECONDS - begin)) "$limit"
  [[ $code == 0 ]] || tail -n 15 "$work/part.log"
  return $code
}

finish() {
  python3 bench/gpu_record.py "$work" "$results" 2>&1 | tee -a "$log"
  exit "${PIPESTATUS[0]}"
}

has() { # MODULES: whether all are installed
  python3 -c "import importlib.util as u, sys; sys.exit(None in map(u.find_spec, sys.argv[1:]))" "$@"
}

if [[ -n "${NNMF_CUDA_WHEELS:-}" ]]; then
  part wheels 60 python3 -m pip install --quiet --no-index --no-deps --no-compile \
    --target "$work/site" "$NNMF_CUDA_WHEELS"/*.whl
  export PYTHONPATH="$PYTHONPATH:$work/site"
fi

# Build -------------------------------------------------------------------------------------------
build() {
  export MAX_JOBS=${MAX_JOBS:-$(nproc)}
  if [[ $device == cuda ]]; then
    export FORCE_CUDA=1
    # This GPU's own code and nothing else; nvcc's back end on all cores.
    TORCH_CUDA_ARCH_LIST=$(python3 -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())') || return
    export TORCH_CUDA_ARCH_LIST NVCC_APPEND_FLAGS="--split-compile=0 ${NVCC_APPEND_FLAGS:-}"
  else
    export FORCE_CUDA=0
  fi
  python3 setup.py build_ext --inplace
}
export -f build
export device
if [[ "${NNMF_CUDA_SKIP_BUILD:-}" == 1 ]]; then
  note build "left out" 0 0
else
  part build 330 bash -c build || finish # without it there is nothing to check
  grep "^nnmf-cuda:" "$log"
fi

export NNMF_CUDA_REQUIRE_EXT=1
if [[ $device == cuda ]]; then
  export NNMF_CUDA_REQUIRE_CUDA=1
  nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,memory.total --format=csv,noheader | tee -a "$log"
fi
if has jsonargparse; then
  part info 30 python3 -m nnmf_cuda.cli info
else
  part info 30 python3 -c "import json, nnmf_cuda; print(json.dumps(nnmf_cuda.show_config(), indent=1))"
fi

# Tests -------------------------------------------------------------------------------------------
tests=(python3 bench/gpu_tests.py "$work/tests" --marker "$marker")
if [[ $device == cpu ]]; then
  tests+=(--jobs 1 --select cpu --only tests/ops/test_cuda.py)
fi
part tests 150 "${tests[@]}"

# Benchmarks, a process for each op -----------------------------------------------------------------
kernels() { # LIMIT OP
  part "bench $2" "$1" python3 bench/gpu_benchmarks.py kernels "$work/bench.jsonl" --ops "$2" \
    --device "$device" --seconds 0.2 "${smoke[@]}"
}
kernels 150 nnmf_mu
kernels 40 nnls
kernels 40 project
kernels 40 nnmf_divergence

# compute-sanitizer ---------------------------------------------------------------------------------
if [[ $device == cuda ]]; then
  part sanitizer 100 python3 bench/sanitize.py --tools memcheck racecheck synccheck \
    --json "$work/sanitizer.jsonl"
else
  part sanitizer 100 python3 bench/sanitize.py --device cpu
fi
cat "$work"/*check.txt >> "$log" 2> /dev/null

part equality 45 python3 bench/gpu_benchmarks.py equality "$work/bench.jsonl" --device "$device" "${smoke[@]}"
part break_even 45 python3 bench/gpu_benchmarks.py break_even "$work/bench.jsonl" --device "$device" "${smoke[@]}"
kernels 40 nnmf_hals
kernels 30 purify
kernels 30 defended_logits
kernels 30 defended_logits_gradient
kernels 30 extract

# The experiment: its stages against plain eager torch, and a whole run -------------------------------
data=()
if [[ $device == cuda && -n "${NNMF_CUDA_DATA:-}" ]]; then data=(--data "$NNMF_CUDA_DATA/darabi.npz"); fi
if has pyautoattack matplotlib jinja2; then
  part "bench stages" 150 python3 bench/gpu_benchmarks.py stages "$work/bench.jsonl" \
    --device "$device" "${data[@]}" "${smoke[@]}"
else
  note "bench stages" "left out" 0 0
fi
if [[ $device == cuda ]] && has jsonargparse pyautoattack matplotlib safetensors jinja2; then
  part experiment 200 python3 -m nnmf_cuda.cli run --preset paper --device cuda \
    --out "$work/run" "${data[@]}" "$@"
else
  note experiment "left out" 0 0
fi
finish
