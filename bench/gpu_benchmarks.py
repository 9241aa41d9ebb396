"""Run one of the package's benchmarks without its command line, which needs more packages.

Usage: gpu_benchmarks.py SUITE JSON [--ops OP ...] [--device cuda] [--seconds 0.3] [--smoke]
                         [--data IMAGES] [--repeats 2] [--reference_repeats 1]
"""

from __future__ import annotations

import argparse
import sys

from nnmf_cuda import benchmarks


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("suite", choices=("kernels", "scaling", "equality", "break_even", "stages"))
    parser.add_argument("json")
    parser.add_argument("--ops", nargs="*", help="for kernels; all by default")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=0.3, help="for each implementation")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--data", help="for stages; the phantom by default")
    parser.add_argument("--repeats", type=int, default=2, help="for stages")
    parser.add_argument("--reference_repeats", type=int, default=1, help="for stages")
    given = parser.parse_args()
    common = {"device": given.device, "smoke": given.smoke, "json_path": given.json}
    if given.suite == "stages":
        runs = {"repeats": given.repeats, "reference_repeats": given.reference_repeats}
        record = benchmarks.run_stage_benchmarks(data=given.data, **runs, **common)
        print(benchmarks.stages_table(record))
        return 0
    timed = {**common, "min_run_seconds": given.seconds}
    if given.suite == "kernels":
        records = benchmarks.run_kernel_benchmarks(cases=given.ops, **timed)
    elif given.suite == "scaling":
        records = benchmarks.run_scaling_benchmarks(**timed)
    elif given.suite == "break_even":
        records = benchmarks.run_break_even_benchmarks(**timed)
    else:
        records = benchmarks.run_equality_benchmarks(**common)
    print(benchmarks.records_table(records))
    return int(any(record["status"] == "failed" for record in records))


if __name__ == "__main__":
    sys.exit(main())
