"""The command `python -m bench`: every benchmark of a checkout, figures and tables of records."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

__all__ = ["main"]


@dataclass(frozen=True)
class _Benchmark:
    """One benchmark of the command: a line for the list, the description, and its own options."""

    help: str
    description: str
    device: bool = True
    seconds: float | None = None  # default of --min_run_seconds
    more: Callable[[ArgumentParser], None] = lambda parser: None


def _add_case(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--case", type=list[str] | None, default=None, help="only these cases, e.g. '[project]'"
    )


def _add_data(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        type=list[str] | None,
        default=None,
        help="images as for nnmf-cuda run, or 'phantom'; default: the phantom, and darabi.npz of"
        " the folder that NNMF_CUDA_DATA names, where that is set",
    )


def _add_folder(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--folder",
        type=str | None,
        default=None,
        help="where the pixels are for the time; default: the folder for temporary files",
    )


_BENCHMARKS = {
    "kernels": _Benchmark(
        "every op against reference, peers and machine",
        "Time every op against its plain-torch reference, torch.compile of that, and other"
        " libraries (skipped where not installed), beside the machine's matrix-product rate and"
        " memory bandwidth of the same run. Each result is verified in float64 before it is timed."
        " About ten minutes.",
        seconds=1.0,
        more=_add_case,
    ),
    "scaling": _Benchmark(
        "KL updates along n, f, k, starts and threads",
        "Time our Kullback-Leibler updates from the paper's size along the number of samples,"
        " features, components, starts that share X, and threads.",
        seconds=0.5,
    ),
    "convergence": _Benchmark(
        "time to scikit-learn's objective",
        "Time our solvers to the objective that scikit-learn has after 200 iterations (mu,"
        " Kullback-Leibler) and 50 (cd, Frobenius), from one start on the same images.",
        more=_add_data,
    ),
    "memory": _Benchmark(
        "peak memory of a fit",
        "Measure what a fit at the paper's size takes beside X, float32 and uint8, each in a"
        " process of its own. On the CPU, Linux only.",
        device=False,
    ),
    "out_of_core": _Benchmark(
        "8 GiB of rows under a limit of 2 GiB of memory",
        "Fit to pixels in a file that is larger than the memory that a process may have, transform"
        " them, give them to a stream and extract their features, each in a process of its own."
        " On the CPU, Linux only; needs 9 GB of disk for the time.",
        device=False,
        more=_add_folder,
    ),
    "two_ranks": _Benchmark(
        "two processes that share X beside one of two threads",
        "Fit to 200,000 x 4096 pixels in a mapped file, by one process of two threads and by two"
        " ranks of one thread under torchrun, by turns: time, CPU seconds, memory of a process, and"
        " the share of exchange and waiting. On the CPU, Linux only.",
        device=False,
        more=_add_folder,
    ),
    "sparse": _Benchmark(
        "sparse counts against scikit-learn",
        "Time updates of sparse counts like those of 20 newsgroups against scikit-learn's, an"
        " iteration and to its objective, and measure their memory. On the CPU; two minutes.",
        device=False,
    ),
    "missing": _Benchmark(
        "what a mask and weights cost, and what is found with entries hidden",
        "Time iterations with a mask and with weights beside those of all entries, and fit planted"
        " counts of which 30 % are hidden: how well are the parts and the hidden means found? On"
        " the CPU; three minutes.",
        device=False,
    ),
    "equality": _Benchmark(
        "differences from scikit-learn's factors",
        "Compare multiplicative updates with scikit-learn's in float64, after 1, 10 and 100"
        " iterations from the same start. Half a minute.",
    ),
    "tf32": _Benchmark(
        "rounding of updates on tensor cores, emulated, and its bound",
        "Emulate half-steps of Kullback-Leibler updates in TF32 thrice, bit by bit, on images and"
        " on adversarial data, and hold them to the bound that is proved. On the CPU; one minute.",
        device=False,
    ),
    "consensus": _Benchmark(
        "consensus NMF of counts, beside its steps on scikit-learn",
        "Time ConsensusNNMF, and the steps of cNMF written plainly on scikit-learn, on planted"
        " counts like those of single cells, dense and sparse. Spectra are compared. Two minutes.",
    ),
    "digits": _Benchmark(
        "SNnet beside a PCANet of the same size",
        "Train PCANet, SNnet and S-SNnet on five random splits of scikit-learn's digits; the size"
        " is chosen on validation parts. On the CPU; two minutes.",
        device=False,
    ),
    "break_even": _Benchmark(
        "CPU against GPU over growing problems",
        "Time nnmf_mu and project on the CPU and on the device over growing problems, and the"
        " copies to the device.",
        seconds=0.5,
    ),
}


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m bench", description="Measure speed and memory, or draw what was measured."
    )
    kinds = parser.add_subcommands(title="benchmarks", metavar="BENCHMARK")
    for name, benchmark in _BENCHMARKS.items():
        kinds.add_subcommand(name, _benchmark_parser(benchmark), help=benchmark.help)
    kinds.add_subcommand("plot", _plot_parser(), help="figures and tables from records")
    kinds.add_subcommand(
        "page", _page_parser(), help="tables of equality, break_even and stages from records"
    )
    kinds.add_subcommand(
        "ranks", _ranks_parser(), help="fits of several processes, and what many would take"
    )
    kinds.add_subcommand(
        "predict", _predict_parser(), help="what headlines should take on a GPU, from machine code"
    )
    return parser


def _ranks_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description="Time the parts of an iteration and the exchange of 1 to 4 processes of this"
        " machine, predict whole iterations from them, and carry the model to many machines. On the"
        " CPU; three minutes where nothing else runs.",
    )
    parser.add_argument(
        "--measure", type=bool, default=True, help="false: only write the page from the record"
    )
    parser.add_argument(
        "--smoke", action="store_true", help="tiny sizes: shows that it works; keeps no record"
    )
    parser.add_argument(
        "--record",
        type=str,
        default="bench/results/ranks-2-cores.json",
        help="file of the record, which is replaced",
    )
    parser.add_argument(
        "--page",
        type=str | None,
        default=None,
        help="Markdown file that gets the tables, as docs/scaling.md",
    )
    return parser


def _run_ranks(*, measure: bool, smoke: bool, record: str, page: str | None) -> None:
    from bench.ranks import measure_ranks
    from bench.ranks_page import measured_table, parts_of, write_page
    from bench.ranks_record import Record

    if measure:
        found = measure_ranks(smoke=smoke, progress=True)
        if not smoke:
            Path(record).write_text(found.text(), "utf-8")
        else:
            print(measured_table(found))
            return
    kept = Record.read(Path(record))
    if page is not None:
        write_page(kept, Path(page))
    print("\n\n".join(parts_of(kept).values()))


def _predict_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description="Write bench/results/predictions-DEVICE.json from the machine code of a build"
        " with CUDA, the launches that csrc makes, and what is assumed about a device. Needs"
        " cuobjdump, nvdisasm and a C++ compiler, and no GPU."
    )
    parser.add_argument(
        "--objects",
        nargs="+",
        default=["build/temp*/csrc/*/cuda/*.o"],
        help="objects built for the devices, or patterns of their paths",
    )
    parser.add_argument(
        "--devices", nargs="+", default=["h200", "b200"], help="h200 (sm_90), b200 (sm_100)"
    )
    parser.add_argument(
        "--page", type=str | None, default=None, help="Markdown file that gets the table of them"
    )
    return parser


def _benchmark_parser(benchmark: _Benchmark) -> ArgumentParser:
    parser = ArgumentParser(description=benchmark.description)
    if benchmark.device:
        parser.add_argument(
            "--device", type=str, default="auto", help="auto (CUDA where there is one), cpu or cuda"
        )
    benchmark.more(parser)
    if benchmark.seconds is not None:
        parser.add_argument(
            "--min_run_seconds",
            type=float,
            default=benchmark.seconds,
            help="time spent on each implementation and problem",
        )
    parser.add_argument(
        "--smoke", action="store_true", help="tiny sizes: shows that it works, not how fast it is"
    )
    parser.add_argument(
        "--json",
        type=str | None,
        default=None,
        help="append records to this file, one line of JSON each",
    )
    return parser


def _plot_parser() -> ArgumentParser:
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


def _page_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description="Write the tables of equality and break_even of all machines in the records,"
        " and of stages of those with a GPU, into a Markdown file: between <!-- equality --> and"
        " <!-- /equality --> and so on."
    )
    parser.add_argument("records", type=str, nargs="+", help="files that --json has written")
    parser.add_argument("--page", type=str, required=True, help="Markdown file")
    return parser


def _run(kind: str, options: dict[str, Any]) -> None:
    """Run the benchmark that was chosen and print its table."""
    from bench.plot import plot_records, write_device_tables

    if kind == "plot":
        for path in plot_records(options["records"], out=options["out"], page=options["page"]):
            print(path)
        return
    if kind == "ranks":
        _run_ranks(**options)
        return
    if kind == "predict":
        from bench.predict import write_page, write_predictions

        for path in write_predictions(options["objects"], devices=options["devices"]):
            print(path)
        if options["page"] is not None:
            write_page(Path(options["page"]))
        return
    if kind == "page":
        print(write_device_tables(options["records"], page=options["page"]))
        return
    from bench.break_even import run_break_even_benchmarks
    from bench.consensus import run_consensus_benchmarks
    from bench.convergence import run_convergence_benchmarks
    from bench.digits import run_digits_benchmarks
    from bench.equality import run_equality_benchmarks
    from bench.kernels import run_kernel_benchmarks, run_scaling_benchmarks
    from bench.memory import run_memory_benchmarks
    from bench.missing import run_missing_benchmarks
    from bench.out_of_core import run_out_of_core_benchmarks
    from bench.sparse import run_sparse_benchmarks
    from bench.tables import records_table
    from bench.tf32 import run_tf32_study
    from bench.two_ranks import run_two_ranks_benchmarks

    options["json_path"] = options.pop("json")
    if kind == "kernels":
        options["cases"] = options.pop("case")
    run: dict[str, Callable[..., list[dict[str, Any]]]] = {
        "kernels": run_kernel_benchmarks,
        "scaling": run_scaling_benchmarks,
        "convergence": run_convergence_benchmarks,
        "memory": run_memory_benchmarks,
        "out_of_core": run_out_of_core_benchmarks,
        "two_ranks": run_two_ranks_benchmarks,
        "sparse": run_sparse_benchmarks,
        "missing": run_missing_benchmarks,
        "equality": run_equality_benchmarks,
        "tf32": run_tf32_study,
        "consensus": run_consensus_benchmarks,
        "digits": run_digits_benchmarks,
        "break_even": run_break_even_benchmarks,
    }
    print(records_table(run[kind](**options, progress=True)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 2 where what it was given cannot be done."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    given = _parser().parse_args(None if arguments is None else list(arguments))
    kind = given.subcommand
    try:
        _run(kind, given[kind].as_dict())
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
