"""The command `nnmf-cuda bench`: its options, and the calls into `nnmf_cuda.benchmarks`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from nnmf_cuda.cli.options import add_device


def add_bench_commands(parser: ArgumentParser) -> None:
    """Add what `bench` can do; jsonargparse wants its parser to be part of the command before."""
    kinds = parser.add_subcommands(title="benchmarks", metavar="BENCHMARK")
    kinds.add_subcommand(
        "kernels", _bench_kernels_parser(), help="every op against reference, peers and machine"
    )
    kinds.add_subcommand(
        "scaling", _bench_scaling_parser(), help="KL updates along n, f, k, starts and threads"
    )
    kinds.add_subcommand(
        "convergence", _bench_convergence_parser(), help="time to scikit-learn's objective"
    )
    kinds.add_subcommand("memory", _bench_memory_parser(), help="peak memory of a fit")
    kinds.add_subcommand(
        "equality", _bench_equality_parser(), help="differences from scikit-learn's factors"
    )
    kinds.add_subcommand(
        "break_even", _bench_break_even_parser(), help="CPU against GPU over growing problems"
    )
    kinds.add_subcommand(
        "stages", _bench_stages_parser(), help="seconds of each stage here and in plain torch"
    )
    kinds.add_subcommand("plot", _bench_plot_parser(), help="figures and tables from records")
    kinds.add_subcommand(
        "page", _bench_page_parser(), help="tables of equality, break_even and stages from records"
    )


def _bench_kernels_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description="Time every op against its plain-torch reference, torch.compile of that, and"
        " other libraries (skipped where not installed), beside the machine's matrix-product rate"
        " and memory bandwidth of the same run. Each result is verified in float64 before it is"
        " timed. About ten minutes."
    )
    add_device(parser)
    parser.add_argument(
        "--case", type=list[str] | None, default=None, help="only these cases, e.g. '[project]'"
    )
    parser.add_argument(
        "--min_run_seconds", type=float, default=1.0, help="time spent on each implementation"
    )
    _add_record_options(parser)
    return parser


def _bench_scaling_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description="Time our Kullback-Leibler updates from the paper's size along the number of"
        " samples, features, components, starts that share X, and threads."
    )
    add_device(parser)
    parser.add_argument(
        "--min_run_seconds", type=float, default=0.5, help="time spent on each point"
    )
    _add_record_options(parser)
    return parser


def _bench_convergence_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description="Time our solvers to the objective that scikit-learn has after 200 iterations"
        " (mu, Kullback-Leibler) and 50 (cd, Frobenius), from one start on the same images."
    )
    add_device(parser)
    parser.add_argument(
        "--data",
        type=list[str] | None,
        default=None,
        help="images as for run, or 'phantom'; default: the phantom, and darabi.npz of the folder"
        " that NNMF_CUDA_DATA names, where that is set",
    )
    _add_record_options(parser)
    return parser


def _bench_memory_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description="Measure what a fit at the paper's size takes beside X, float32 and uint8, each"
        " in a process of its own. On the CPU, Linux only."
    )
    _add_record_options(parser)
    return parser


def _bench_equality_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description="Compare multiplicative updates with scikit-learn's in float64, after 1, 10 and"
        " 100 iterations from the same start. Half a minute."
    )
    add_device(parser)
    _add_record_options(parser)
    return parser


def _bench_break_even_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description="Time nnmf_mu and project on the CPU and on the device over growing problems,"
        " and the copies to the device."
    )
    add_device(parser)
    parser.add_argument(
        "--min_run_seconds", type=float, default=0.5, help="time spent on each point"
    )
    _add_record_options(parser)
    return parser


def _bench_page_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description="Write the tables of equality and break_even of all machines in the records,"
        " and of stages of those with a GPU, into a Markdown file: between <!-- equality --> and"
        " <!-- /equality --> and so on."
    )
    parser.add_argument("records", type=str, nargs="+", help="files that --json has written")
    parser.add_argument("--page", type=str, required=True, help="Markdown file")
    return parser


def _bench_stages_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description="Run the experiment of the preset paper in turns on this package and in plain"
        " eager torch (the reference), and print the seconds and the peak memory of each stage,"
        " with the paper's seconds beside for reading. Before that come the four metric rows of"
        " both, and how far their attacks on one model agree; where they disagree, it ends with an"
        " error instead, and prints and records no time. The reference takes minutes a run."
        " `bench plot` and `run --bench_records` draw what --json has recorded."
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


def _bench_plot_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description="Draw figures from the newest records of one machine, and nothing else; with"
        " --page also put them and their tables into a Markdown file."
    )
    parser.add_argument("records", type=str, nargs="+", help="files that --json has written")
    parser.add_argument("--out", type=str, required=True, help="directory of the SVG files")
    parser.add_argument(
        "--page",
        type=str | None,
        default=None,
        help="Markdown file whose parts between <!-- kernels --> and <!-- /kernels --> and so on"
        " become figure and table",
    )
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
    from nnmf_cuda.pipeline.environment import resolve_device

    kind = arguments.subcommand
    options = arguments[kind].as_dict()
    if kind == "plot":
        for path in benchmarks.plot_records(
            options["records"], out=options["out"], page=options["page"]
        ):
            print(path)
        return
    if kind == "page":
        print(benchmarks.write_device_tables(options["records"], page=options["page"]))
        return
    options["json_path"] = options.pop("json")
    if kind == "stages":
        print(benchmarks.stages_table(benchmarks.run_stage_benchmarks(**options, progress=True)))
        return
    if "device" in options:
        options["device"] = str(resolve_device(options["device"]))
    if kind == "kernels":
        options["cases"] = options.pop("case")
    run: dict[str, Callable[..., list[dict[str, Any]]]] = {
        "kernels": benchmarks.run_kernel_benchmarks,
        "scaling": benchmarks.run_scaling_benchmarks,
        "convergence": benchmarks.run_convergence_benchmarks,
        "memory": benchmarks.run_memory_benchmarks,
        "equality": benchmarks.run_equality_benchmarks,
        "break_even": benchmarks.run_break_even_benchmarks,
    }
    print(benchmarks.records_table(run[kind](**options, progress=True)))
