"""The command `nnmf-cuda bench`: its options, and the calls into `nnmf_cuda.benchmarks`."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from nnmf_cuda.cli.options import add_device


def add_bench_commands(parser: ArgumentParser) -> None:
    """Add what `bench` can do; jsonargparse wants its parser to be part of the command before."""
    kinds = parser.add_subcommands(title="benchmarks", metavar="BENCHMARK")
    kinds.add_subcommand(
        "kernels", _bench_kernels_parser(), help="every op against its reference in plain torch"
    )
    kinds.add_subcommand(
        "stages", _bench_stages_parser(), help="seconds of each stage here and in plain torch"
    )


def _bench_kernels_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description="Compare every op with its plain-torch reference at the paper's size: first the"
        " results, in float64, then the times. A minute. Comparisons with other libraries and with"
        " the machine's ceilings are in the folder bench of the source tree: python -m bench."
    )
    add_device(parser)
    parser.add_argument(
        "--case", type=list[str] | None, default=None, help="only these cases, e.g. '[project]'"
    )
    parser.add_argument(
        "--min_run_seconds", type=float, default=1.0, help="time spent on each of the two"
    )
    _add_record_options(parser)
    return parser


def _bench_stages_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description="Run the experiment of the preset paper in turns on this package and in plain"
        " eager torch (the reference), and print the seconds and the peak memory of each stage,"
        " with the paper's seconds beside for reading. Before that come the four metric rows of"
        " both, and how far their attacks on one model agree; where they disagree, it ends with an"
        " error instead, and prints and records no time. The reference takes minutes a run."
        " `run --bench_records` draws what --json has recorded."
    )
    parser.add_argument(
        "--device",
        type=str,
        default="auto",
        help="cpu, cuda, or auto: the CPU and, where there is one, the GPU",
    )
    parser.add_argument(
        "--data", type=str | None, default=None, help="as for run; default: the phantom"
    )
    parser.add_argument(
        "--repeats", type=int, default=3, help="runs of this package, on each device"
    )
    parser.add_argument(
        "--reference_repeats", type=int, default=1, help="runs of the reference, on each device"
    )
    _add_record_options(parser)
    return parser


def _add_record_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--smoke",
        action="store_true",
        help="tiny sizes: shows that it works, not how fast it is",
    )
    parser.add_argument(
        "--json",
        type=str | None,
        default=None,
        help="append records to this file, one line of JSON each",
    )


def run_bench(arguments: Namespace, _: ArgumentParser) -> None:
    """Run the benchmark that was chosen and print its table."""
    from nnmf_cuda import benchmarks

    kind = arguments.subcommand
    options = arguments[kind].as_dict()
    options["json_path"] = options.pop("json")
    if kind == "stages":
        print(benchmarks.stages_table(benchmarks.run_stage_benchmarks(**options, progress=True)))
        return
    options["cases"] = options.pop("case")
    print(benchmarks.quick_look_table(benchmarks.run_quick_look(**options, progress=True)))
