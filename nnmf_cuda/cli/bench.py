"""The command `nnmf-cuda bench`: a look at every op, and the paper's stages, with their times."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from jsonargparse import ArgumentParser, Namespace

from nnmf_cuda.cli.options import DeviceOption, built, parser_of, show


@dataclass(frozen=True, kw_only=True)
class RecordOptions:
    """Of every benchmark."""

    smoke: bool = False
    """Tiny sizes: shows that it works, not how fast it is."""
    json: str | None = None
    """Append records to this file, one line of JSON each."""


@dataclass(frozen=True, kw_only=True)
class Kernels(DeviceOption, RecordOptions):
    """Compare every op with its plain-torch reference at the paper's size.

    First the results, in float64, then the times. A minute. Comparisons with other libraries and
    with the machine's ceilings are in the folder bench of the source tree: python -m bench.
    """

    case: list[str] | None = None
    """Only these cases, e.g. '[project]'."""
    min_run_seconds: float = 1.0
    """Time spent on each of the two."""


@dataclass(frozen=True, kw_only=True)
class Stages(RecordOptions):
    """Run the experiment of the preset paper in turns on this package and in plain eager torch.

    Prints the seconds and the peak memory of each stage, with the paper's seconds beside for
    reading. Before that come the four metric rows of both, and how far their attacks on one model
    agree; where they disagree, it ends with an error instead, and prints and records no time. The
    reference (plain torch) takes minutes a run. `run --bench_records` draws what --json has
    recorded.
    """

    device: str = "auto"
    """cpu, cuda, or auto: the CPU and, where there is one, the GPU."""
    data: str | None = None
    """As for run; default: the phantom."""
    repeats: int = 3
    """Runs of this package, on each device."""
    reference_repeats: int = 1
    """Runs of the reference, on each device."""


def add_bench_commands(parser: ArgumentParser) -> None:
    """Add what `bench` can do; jsonargparse wants its parser to be part of the command before."""
    kinds = parser.add_subcommands(title="benchmarks", metavar="BENCHMARK")
    kinds.add_subcommand(
        "kernels",
        parser_of(Kernels, "bench kernels"),
        help="every op against its reference in plain torch",
    )
    kinds.add_subcommand(
        "stages",
        parser_of(Stages, "bench stages"),
        help="seconds of each stage here and in plain torch",
    )


def bench(values: Namespace) -> None:
    """Run the benchmark that was chosen and print its table."""
    if values.subcommand == "stages":
        from nnmf_cuda.benchmarks.stage_tables import stages_table
        from nnmf_cuda.benchmarks.stages import run_stage_benchmarks

        stages = asdict(built(Stages, values.stages))
        json_path = stages.pop("json")
        show(stages_table(run_stage_benchmarks(json_path=json_path, progress=True, **stages)))
        return
    from nnmf_cuda.benchmarks.quick_look import quick_look_table, run_quick_look

    kernels = asdict(built(Kernels, values.kernels))
    cases, json_path = kernels.pop("case"), kernels.pop("json")
    records = run_quick_look(cases=cases, json_path=json_path, progress=True, **kernels)
    show(quick_look_table(records))
