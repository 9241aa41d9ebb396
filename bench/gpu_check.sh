#!/usr/bin/env bash
# Check what needs a GPU, in two short visits to a bare machine without a network.
#
#   bench/gpu_check.sh first  [--on-cpu]                     at most 255 seconds: the object, parity
#                                                            of every op with the CPU, the headline
#                                                            timings, compute-sanitizer
#   bench/gpu_check.sh second [--on-cpu] [RUN-OPTIONS...]    at most 400 seconds: all tests, peers,
#                                                            extract, stages, the experiment
#   bench/gpu_check.sh table RESULTS.jsonl                   the table of a visit, also of one that
#                                                            was ended
#
# --on-cpu goes the same way, tiny and on the CPU: does this work?  RUN-OPTIONS go to the experiment,
# for example --seed 1.
#
# There must be a python3 (3.11 or newer) with torch for CUDA. The extension is taken from
# bench/prebuilt/, where `nox -s gpu_object` has put it on a machine without a GPU, if it is of
# these sources and imports; else it is built, which needs a C++20 compiler and nvcc. Other packages
# are imported where they are installed; the second visit installs the wheels in $NNMF_CUDA_WHEELS,
# or else bench/prebuilt/wheels (with no dependencies: give all of them):
#   to build             setuptools>=77, ninja, pybind11, numpy
#   to test and measure  pytest (pytest-xdist, pytest-timeout, pytest-reportlog where they are),
#                        pandas, scipy, scikit-learn, joblib, threadpoolctl, pillow, tqdm, tabulate
#                        (scikit-learn 1.9 also narwhals)
#   the experiment       jsonargparse, PyYAML, docstring_parser, typeshed_client, importlib_resources,
#                        typing_extensions, safetensors, matplotlib (and what it needs), jinja2,
#                        MarkupSafe, pyautoattack
#   to compare with      triton (for torch.compile), torchnmf, cupy-cuda13x, nmf-torch (which must
#                        have been compiled for this Python), nvidia-ml-py (clocks)
# Parts that lack one of theirs are left out, and the table says so.
#
# Everything goes to $OUT if that is set, else to bench/results/: gpu-check-VISIT-TIME.jsonl, a line
# of JSON for every result as soon as it is known, which a kill at any moment leaves as it is; the
# output of all parts (.log); the table (.txt), written anew after each part. The images are
# $NNMF_CUDA_DATA/darabi.npz, or the phantom where that is not set. GPU_CHECK_SECONDS is the time for
# a visit.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
wheels=${NNMF_CUDA_WHEELS:-bench/prebuilt/wheels}
if [[ "${1:-}" == second ]] && compgen -G "$wheels/*.whl" > /dev/null; then # first needs none
  site=$(mktemp -d)
  python3 -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$wheels"/*.whl \
    && export PYTHONPATH="$PYTHONPATH:$site"
fi
GPU_CHECK_SPENT=$SECONDS exec python3 -m bench.gpu_check "$@"
