"""The paper's table of seconds a stage, measured: this package against plain eager torch."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from nnmf_cuda import ops
from nnmf_cuda.attacks import compare_attacks
from nnmf_cuda.benchmarks.records import Record, Recorder
from nnmf_cuda.data import ImageDataset, load_dataset, phantom
from nnmf_cuda.pipeline import config as settings
from nnmf_cuda.pipeline import stages as experiment
from nnmf_cuda.pipeline.environment import describe_environment, resolve_device
from nnmf_cuda.timing import StageTimer


@dataclass(frozen=True)
class _Path:
    """One way to compute the experiment."""

    device: torch.device
    is_reference: bool

    @property
    def name(self) -> str:
        return f"{self.device.type}{' reference' if self.is_reference else ''}"


@dataclass(frozen=True)
class _Run:
    """What one run of one path found."""

    seconds: dict[str, float]  # by stage and "total"
    peak_bytes: dict[str, int]
    rows: dict[str, dict[str, float]]
    spread: dict[str, dict[str, float]]


def run_stage_benchmarks(
    *,
    data: str | None = None,
    device: str | torch.device = "auto",
    repeats: int = 3,
    reference_repeats: int = 1,
    smoke: bool = False,
    json_path: str | Path | None = None,
    config: settings.ExperimentConfig | None = None,
    progress: bool = False,
) -> Record:
    """Run the experiment's five stages on this package and on its reference path, in turns.

    The paths are "cpu" and "cpu reference", "cuda" and "cuda reference". A reference path is the
    same experiment inside `nnmf_cuda.ops.reference_path`: plain eager torch. All have the same
    images, configuration and seed; each works on its own features and networks. A tiny experiment
    is run on each first, so that libraries are loaded and threads started. What a stage does not
    need (reading images, progress bars, evaluation, reports) is not timed.

    After each run the four metric rows are compared between all runs so far. At the end the
    reference attacks the models of each device's first run as well: with the same model, samples,
    seed and noise it should find the same points.

    `data` is as for ``nnmf-cuda run``, `device` "cpu", "cuda", or "auto": the CPU and, where there
    is one, the GPU. `repeats` and `reference_repeats` are runs on each device. `smoke` takes a tiny
    experiment on a tiny phantom; `config` replaces the preset ``paper`` but for its data.

    Returns the record, which is appended to `json_path`. ``paths`` holds for each path ``stages``
    (by name, and ``total``, which is that of a run and not the sum of medians), and the metric
    ``rows`` and their ``spread`` for each run; ``quality`` and ``attacks`` are those of
    `metric_differences` and, by device, `attack_by_both`; all else says on what, and where.

    Raises `QualityError`, and records nothing, if a metric of a row differs by more than 0.05
    (clean), or 0.1 or the spread of fresh predictions (attacked), MCC by twice as much; or if
    attacks on one model decide differently on more than 0.1 of the samples.
    """
    for name, value in (("repeats", repeats), ("reference_repeats", reference_repeats)):
        if value < 1:
            raise ValueError(f"{name}={value}; need at least 1")
    paths = _paths(str(device))
    dataset, config, preset = _problem(data, config, smoke=smoke)
    recorder = Recorder("stages", device=paths[-1].device, smoke=smoke, json_path=json_path)
    environments = {
        path.device.type: describe_environment(path.device, data_sha256=dataset.sha256())
        for path in paths
        if path.is_reference
    }
    order = _order(paths, repeats, reference_repeats)
    runs, attacks = _run_all(order, dataset, config, progress=progress)
    told = asdict(config)
    if config.data.path is not None:  # a record is made to be shown, and a path tells its author
        told["data"]["path"] = Path(config.data.path).name
    counts = {f"n_{split}": len(dataset.labels_of(split)) for split in ("train", "valid", "test")}
    height, width = dataset.image_shape
    return recorder.add(
        op="stages",
        size="phantom" if dataset.synthetic else Path(dataset.source).stem,
        shape={**counts, "height": height, "width": width},
        dtype=str(dataset.images.dtype),
        options={"preset": preset},
        synthetic=dataset.synthetic,
        data_sha256=dataset.sha256(),
        config=told,
        repeats=repeats,
        reference_repeats=reference_repeats,
        order=[path.name for path in order],
        paths={path.name: _summary(path, runs[path.name]) for path in paths},
        quality=metric_differences(runs),
        attacks=attacks,
        environments=environments,
    )


def _paths(device: str) -> list[_Path]:
    devices = [resolve_device(device)]
    if device == "auto" and devices[0].type == "cuda":
        devices.insert(0, torch.device("cpu"))
    return [_Path(where, is_reference) for where in devices for is_reference in (False, True)]


def _problem(
    data: str | None, config: settings.ExperimentConfig | None, *, smoke: bool
) -> tuple[ImageDataset, settings.ExperimentConfig, str]:
    """Return images, settings, and the preset's name, or "custom"."""
    if smoke:
        if data is not None or config is not None:
            raise ValueError("smoke brings its own data and settings: give no others")
        return *_tiny_problem(), "smoke"
    preset = "paper" if config is None else "custom"
    config = replace(config or settings.PRESETS["paper"], data=settings.DataConfig(path=data))
    return load_dataset(data, seed=config.seed), config, preset


def _tiny_problem() -> tuple[ImageDataset, settings.ExperimentConfig]:
    """Return an experiment of a second or two that goes through everything."""
    tiny = settings.ExperimentConfig(
        nnmf=settings.NNMFConfig(n_components=6, max_iter=20),
        classifier=settings.ClassifierConfig(epochs=8),
        diffusion=settings.DiffusionConfig(epochs=4, n_draws=2),
        attack=settings.AttackConfig(n_iter=5, n_restarts=1, n_queries=20),
        n_predictions=3,
    )
    return phantom((80, 40, 40), tiny.seed, image_shape=(32, 32)), tiny


def _order(paths: Sequence[_Path], repeats: int, reference_repeats: int) -> list[_Path]:
    """Let the paths take turns for as long as each has runs left."""
    return [
        path
        for i in range(max(repeats, reference_repeats))
        for path in paths
        if i < (reference_repeats if path.is_reference else repeats)
    ]


def _run_all(
    order: Sequence[_Path],
    dataset: ImageDataset,
    config: settings.ExperimentConfig,
    *,
    progress: bool,
) -> tuple[dict[str, list[_Run]], dict[str, Record]]:
    """Return the runs of each path, and by device the attacks on the models of its first run."""
    paths = list(dict.fromkeys(order))
    runs: dict[str, list[_Run]] = {path.name: [] for path in paths}
    models: dict[str, experiment.StageOutputs] = {}
    attacks: dict[str, Record] = {}
    n_steps = len(order) + len(paths) // 2
    hidden = None if progress else True
    with tqdm(total=n_steps, desc="bench stages", unit="run", disable=hidden) as bar:
        for path in paths:
            bar.set_postfix_str(f"{path.name}: loading libraries")
            _run(path, *_tiny_problem())
        for path in order:
            found, outputs = _run(path, dataset, config, bar=bar)
            runs[path.name].append(found)
            require_equal_metrics(runs)
            if not path.is_reference:
                models.setdefault(path.device.type, outputs)
            bar.update()
        for device, outputs in models.items():
            bar.set_postfix_str(f"{device} reference: attacking the models of {device}")
            attacks[device] = attack_by_both(outputs, config)
            bar.update()
    require_equal_attacks(attacks)
    return runs, attacks


def _run(
    path: _Path, dataset: ImageDataset, config: settings.ExperimentConfig, *, bar: Any = None
) -> tuple[_Run, experiment.StageOutputs]:
    def say(line: str) -> None:
        if bar is not None:
            bar.set_postfix_str(f"{path.name}: {line}")

    timer = StageTimer(path.device)
    _give_back_memory(path.device)
    with ops.reference_path() if path.is_reference else contextlib.nullcontext():
        outputs = experiment.run_stages(dataset, config, device=path.device, timer=timer, say=say)
        evaluated = experiment.evaluate_stages(outputs, config)
    # What can be had at a radius is looked at for the user, and is no stage of the experiment.
    rows = [row for row in timer.timings().rows if row.stage != "prospects"]
    found = _Run(
        seconds={row.stage: row.seconds for row in rows},
        peak_bytes={row.stage: row.peak_bytes for row in rows},
        rows={name: row.as_dict() for name, row in evaluated.rows.items()},
        spread=evaluated.spread,
    )
    return found, outputs


def _give_back_memory(device: torch.device) -> None:
    """Drop what the run before has left, lest it count in the peak of the next."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    with contextlib.suppress(AttributeError, OSError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)


def _summary(path: _Path, runs: Sequence[_Run]) -> Record:
    stages = {}
    for stage in runs[0].seconds:
        seconds = [run.seconds[stage] for run in runs]
        stages[stage] = {
            "median_s": float(np.median(seconds)),
            "low_s": min(seconds),
            "high_s": max(seconds),
            "seconds": seconds,
            "peak_bytes": max(run.peak_bytes[stage] for run in runs),
        }
    return {
        "device": str(path.device),
        "reference": path.is_reference,
        "stages": stages,
        "rows": [run.rows for run in runs],
        "spread": [run.spread for run in runs],
    }


# Equal quality: only then are seconds compared --------------------------------------------------

COMPARED = ("accuracy", "f1", "mcc", "balanced_accuracy", "roc_auc", "brier")
"""Metrics that have to agree. Precision and recall trade places where a threshold moves, and F1
holds both; log loss has no bound."""

_ALLOWED = {"Clean": 0.05, "Robust": 0.1}
"""How far a metric in [0, 1] may be apart: on clean images, from the order in which sums are formed
while training; on attacked ones, also from an attack that took another way."""
_RANGE = {"mcc": 2.0}
"""How long the range of a metric is, where it is not [0, 1]."""


class QualityError(ValueError):
    """Raised where paths differ in what they find: their seconds are then not to be compared."""


def metric_differences(runs: Mapping[str, Sequence[_Run]]) -> Record:
    """Return by row and metric how far the runs of all paths are apart, and may be.

    ``largest_difference`` is of every metric, ``allowed`` of those in `COMPARED`.
    """
    every = [run for found in runs.values() for run in found]
    differences: Record = {}
    for row, metrics in every[0].rows.items():
        values = {name: [run.rows[row][name] for run in every] for name in metrics if name != "n"}
        differences[row] = {name: float(np.ptp(found)) for name, found in values.items()}
    allowed = {row: {name: _allowed(every, row, name) for name in COMPARED} for row in differences}
    return {"largest_difference": differences, "allowed": allowed}


def _allowed(every: Sequence[_Run], row: str, metric: str) -> float:
    condition = row.partition("_")[0]
    allowed = _ALLOWED[condition] * _RANGE.get(metric, 1.0)
    if condition == "Clean":
        return allowed
    return max([allowed, *(run.spread[row][metric] for run in every if row in run.spread)])


def require_equal_metrics(runs: Mapping[str, Sequence[_Run]]) -> None:
    """Raise `QualityError` where a metric of a row is further apart than is allowed."""
    found = metric_differences(runs)
    texts = []
    for row, allowed in found["allowed"].items():
        for metric, limit in allowed.items():
            # Not (a > b), so that NaN fails too; 0.9 - 0.85 is above 0.05.
            if not found["largest_difference"][row][metric] <= limit + 1e-9:
                values = "; ".join(
                    f"{name} {', '.join(f'{run.rows[row][metric]:.4f}' for run in of_path)}"
                    for name, of_path in runs.items()
                    if of_path
                )
                texts.append(f"{row} {metric} {values} (may differ by {limit:.3f})")
    if texts:
        raise QualityError(
            "the paths differ in what they found, so that their seconds are not compared, nor"
            f" recorded: {' | '.join(texts)}"
        )


def attack_by_both(outputs: experiment.StageOutputs, config: settings.ExperimentConfig) -> Record:
    """Attack the models of a run of this package once more, on the reference path, and compare.

    Networks that were trained on two paths differ by rounding, and so do the points of attacks on
    them. Here both attacks have the same model, samples, seed and noise.

    Returns by model ("baseline", "defended") what `nnmf_cuda.attacks.compare_attacks` does, and of
    both attacks ``accuracy_after`` and ``seconds``, by path ("ours", "reference") and attack.
    """
    found = {}
    for name, model in outputs.targets.items():
        with ops.reference_path():
            plain = experiment.attack_model(model, outputs.features, config)
        both = {"ours": outputs.attacks[name], "reference": plain}
        found[name] = {
            **asdict(compare_attacks(*both.values())),
            "accuracy_after": {path: result.accuracy_after for path, result in both.items()},
            "seconds": {path: result.seconds for path, result in both.items()},
        }
    return found


def require_equal_attacks(attacks: Mapping[str, Record]) -> None:
    """Raise `QualityError` where attacks on one model (see `attack_by_both`) disagree too much."""
    texts = [
        f"{device} {model} {compared['differing_decisions']:.4f}"
        for device, models in attacks.items()
        for model, compared in models.items()
        if not compared["differing_decisions"] <= _ALLOWED["Robust"]
    ]
    if texts:
        raise QualityError(
            "attacks on one model, by this package and by its reference, decide differently on"
            f" more than {_ALLOWED['Robust']} of the samples, so that their seconds are not"
            f" compared, nor recorded: {' | '.join(texts)}"
        )
