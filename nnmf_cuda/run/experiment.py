"""The whole experiment: stages in order, timed, and everything they leave on disk."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from nnmf_cuda.attacks.checks import check_classes
from nnmf_cuda.data import SPLITS, ImageDataset, audit_dataset, groupings_of_test, load_dataset
from nnmf_cuda.evaluation import PAPER_TEST_COUNTS, denoising_error, measure_uncertainty
from nnmf_cuda.evaluation.seeds import Purpose, seed_word
from nnmf_cuda.pipeline.artifacts import ModelInfo, TrainedModel, save_model
from nnmf_cuda.pipeline.config import ExperimentConfig
from nnmf_cuda.pipeline.defences import noise_schedule
from nnmf_cuda.pipeline.environment import describe_environment
from nnmf_cuda.pipeline.fast_decoding import fast_decoding_note
from nnmf_cuda.pipeline.places import Place, reason, remove
from nnmf_cuda.pipeline.run_directory import EVALUATED, NotWritten, held_directory, staged_results
from nnmf_cuda.pipeline.stages import StageOutputs, evaluate_stages, run_stages
from nnmf_cuda.report.robustness_table import summary_table
from nnmf_cuda.report.run_report import RunReport, write_report
from nnmf_cuda.report.tables import MetricTable, StageTable, bullet_list
from nnmf_cuda.robustness import Robustness, SavedRun, evaluate_robustness
from nnmf_cuda.robustness.saved_run import FEATURES_FILE, PaperAttack, save_features
from nnmf_cuda.run.metrics import AttackRecord, RunMetrics
from nnmf_cuda.run.notes import NOT_RUN, notes_of, warnings_of
from nnmf_cuda.timing import StageTimer, Timings

logger = logging.getLogger(__name__)

EVALUATIONS: Mapping[str, Literal["quick", "standard", "thorough"] | None] = {
    "paper": None,
    "quick": "quick",
    "honest": "standard",
    "thorough": "thorough",
}
"""The preset of `evaluate_robustness` for each evaluation; the paper's ends with its own attack."""


@dataclass(frozen=True)
class Experiment:
    """A finished run; `robustness` is None where it was not evaluated."""

    model: TrainedModel
    metrics: RunMetrics
    table: MetricTable
    timings: Timings
    robustness: Robustness | None = None

    def tables(self) -> str:
        """Return the two tables and the notes for a terminal."""
        stages = StageTable(self.timings, paper=self.table.papers_images)
        parts = [self.table.text(), stages.text(), bullet_list(self.metrics.notes)]
        if self.robustness is not None:
            parts.append(summary_table(self.robustness.report))
        return "\n\n".join(parts)


def run_experiment(
    config: ExperimentConfig,
    *,
    out: Path,
    config_yaml: str,
    device: torch.device,
    overwrite: bool = False,
    progress: bool = False,
    say: Callable[[str], None] = logger.info,
    bench_records: Sequence[Mapping[str, Any]] = (),
    evaluation: str = "paper",
) -> Experiment:
    """Run every stage and write the results into `out` (see `nnmf_cuda.pipeline.run_directory`).

    `config_yaml` is the configuration as the command line reads it back, for `config.yaml`. Of
    `bench_records` the newest that `nnmf-cuda bench stages` has made on these images is plotted in
    the report. `evaluation`, a key of `EVALUATIONS`, says whether
    `nnmf_cuda.robustness.evaluate_robustness` follows: it begins when the run is in `out`, which
    nothing that happens to it takes away. Raises ValueError if data, configuration, records or
    `out` do not allow a run, and `NotWritten` where what was found could not be written, or not be
    evaluated.
    """
    if evaluation not in EVALUATIONS:
        raise ValueError(f"evaluation must be one of {', '.join(EVALUATIONS)}; got {evaluation!r}")
    preset = EVALUATIONS[evaluation]
    experiment = None
    with held_directory(out, overwrite=overwrite) as place:
        try:
            with staged_results(place) as partial:
                timer = StageTimer(device)
                dataset = _load(config, timer, progress=progress, say=say)
                # Before anything is trained.
                check_classes(config.attack.attacks, dataset.n_classes)
                benchmark = _stage_benchmark(bench_records, dataset)
                environment = describe_environment(device, data_sha256=dataset.sha256())
                outputs = run_stages(
                    dataset, config, device=device, timer=timer, progress=progress, say=say
                )
                config = outputs.config
                dataset = _with_decoding_note(dataset, config, outputs, say=say)
                metrics = _measure(dataset, config, outputs, timer)
                table = _metric_table(dataset, config, metrics)
                model = _trained_model(dataset, config, outputs)
                experiment = Experiment(model, metrics, table, timer.timings())
                run = _Run(dataset, config, outputs, environment, benchmark, config_yaml, timer)
                experiment, missing = run.write(partial, experiment)
        except Exception as error:  # what has been found must be told, whatever happened after
            if experiment is None:
                raise
            raise NotWritten(
                f"--out {out}: the results, which are above, could not be written"
                f" ({reason(error)})",
                experiment.tables(),
            ) from error
        if preset is not None:
            experiment, missing = run.evaluate(place, experiment, preset, say=say)
    if missing:
        raise NotWritten(
            f"--out {out} holds the results, but no report ({missing})", experiment.tables()
        )
    return experiment


@dataclass(frozen=True)
class _Run:
    """What the stages have made, and what is written beside it."""

    dataset: ImageDataset
    config: ExperimentConfig
    outputs: StageOutputs
    environment: Mapping[str, Any]
    benchmark: Mapping[str, Any] | None
    config_yaml: str
    timer: StageTimer

    def write(self, partial: Path, experiment: Experiment) -> tuple[Experiment, str]:
        """Write all but an evaluation.

        Returns the experiment with all its timings, and why there is no report, "" if there is one.
        """
        with self.timer.stage("writing_results"):
            save_model(experiment.model, partial / "model")
            _save_adversarial(partial / "adversarial.npz", self.outputs)
            save_features(partial / FEATURES_FILE, self.outputs.features, self.dataset)
            _save_json(partial / "environment.json", self.environment)
            (partial / "config.yaml").write_text(self.config_yaml, encoding="utf-8")
            missing = self._write_report(partial, experiment)
        return self._write_numbers(partial, experiment), missing

    def evaluate(
        self, place: Place, experiment: Experiment, preset: str, *, say: Callable[[str], None]
    ) -> tuple[Experiment, str]:
        """Evaluate the run that is in a place, and write what that changes; returns as `write`."""
        out, data = place.home, self.config.data.path
        command = ["nnmf-cuda", "evaluate", "--model", str(out), "--preset", preset]
        go_on = shlex.join(command if data is None else [*command, "--data", data])
        say(f"the run is in {out}; the evaluation begins, and should it be stopped: {go_on}")
        try:
            n_items = len(self.dataset.labels_of("test"))
            with self.timer.stage("robustness_evaluation", n_items=n_items):
                saved = _saved_run(
                    self.dataset, self.config, self.outputs, experiment.model, experiment.metrics
                )
                robustness = evaluate_robustness(
                    saved, preset=preset, images=saved.images_of(self.dataset), say=say
                )
        except Exception as error:  # hours of training must not hang on it
            raise NotWritten(
                f"--out {out} holds the run, but its evaluation failed ({reason(error)}): go on"
                f" with {go_on}",
                experiment.tables(),
            ) from error
        experiment = replace(
            experiment,
            metrics=replace(experiment.metrics, not_run=()),
            timings=self.timer.timings(),
            robustness=robustness,
        )
        try:
            with place.staged(EVALUATED) as partial:
                with self.timer.stage("writing_evaluation"):
                    robustness.write(partial)
                    missing = self._write_report(partial, experiment)
                experiment = self._write_numbers(partial, experiment)
        except Exception as error:
            raise NotWritten(
                f"--out {out} holds the run, but its evaluation, which is above, could not be"
                f" written ({reason(error)})",
                experiment.tables(),
            ) from error
        return experiment, missing

    def _write_numbers(self, partial: Path, experiment: Experiment) -> Experiment:
        experiment = replace(experiment, timings=self.timer.timings())
        _save_json(partial / "timings.json", experiment.timings.as_dict())
        _save_json(partial / "metrics.json", experiment.metrics.as_dict())
        return experiment

    def _write_report(self, home: Path, experiment: Experiment) -> str:
        """Write the report; return why there is none where it cannot be written."""
        try:
            write_report(home, self._report(experiment))
        except Exception as error:  # the results are there and whole without it
            for name in ("report.html", "figures"):
                remove(home / name)
            return reason(error)
        return ""

    def _report(self, experiment: Experiment) -> RunReport:
        metrics, robustness = experiment.metrics, experiment.robustness
        features, denoiser = self.outputs.features, self.outputs.denoiser
        timesteps = experiment.model.purifier.timesteps
        return RunReport(
            dataset=self.dataset,
            table=experiment.table,
            nnmf=features.nnmf,
            selector=features.selector,
            x_train=features.x["train"].cpu().numpy(),
            classifier=self.outputs.cnn,
            denoiser=denoiser,
            denoising_error=denoising_error(
                denoiser.model,
                noise_schedule(self.config.diffusion).alphas_cumprod,
                features.x["test"],
                seed=seed_word(self.config.seed, Purpose.EVALUATION),
            ),
            purify_t=int(timesteps[0]) if self.config.defence.purifies else None,
            attacks={
                name: {**record.as_dict(), "seconds": record.result.seconds}
                for name, record in metrics.attacks.items()
            },
            timings=experiment.timings,
            stage_benchmark=self.benchmark,
            robustness=None if robustness is None else robustness.report,
            environment=self.environment,
            config_yaml=self.config_yaml,
            notes=metrics.notes,
            not_run=metrics.not_run,
        )


def _load(
    config: ExperimentConfig, timer: StageTimer, *, progress: bool, say: Callable[[str], None]
) -> ImageDataset:
    with timer.stage("reading_images") as stage:
        dataset = load_dataset(
            **config.data.of_load(), seed=config.seed, progress=progress, n_train_needed=2
        )
        stage.n_items = len(dataset.images)
    counts = ", ".join(f"{len(dataset.labels_of(split))} {split}" for split in SPLITS)
    say(f"data: {dataset.source}, {counts}; classes {', '.join(dataset.label_names)}")
    for note in dataset.notes:
        say(f"  {note}")
    return dataset


def _with_decoding_note(
    dataset: ImageDataset,
    config: ExperimentConfig,
    outputs: StageOutputs,
    *,
    say: Callable[[str], None],
) -> ImageDataset:
    """Add to the data's notes what fast decoding has changed, where it was asked for."""
    path = config.data.path
    if config.data.decode == "exact" or path is None:
        return dataset
    note = fast_decoding_note(path, config.data, outputs.features.extractor)
    say(note)
    return replace(dataset, notes=(*dataset.notes, note))


def _stage_benchmark(
    records: Sequence[Mapping[str, Any]], dataset: ImageDataset
) -> Mapping[str, Any] | None:
    """Return the newest record of the stages of these images."""
    if not records:
        return None
    found = [
        record
        for record in records
        if record["suite"] == "stages"
        and record["data_sha256"] == dataset.sha256()
        and not record["smoke"]
    ]
    if not found:
        raise ValueError(
            f"bench_records hold none of the stages on {dataset.source}, with these labels and this"
            " split: make one with `nnmf-cuda bench stages --json FILE` on the same images"
        )
    return max(found, key=lambda record: str(record["date"]))


def _measure(
    dataset: ImageDataset,
    config: ExperimentConfig,
    outputs: StageOutputs,
    timer: StageTimer,
) -> RunMetrics:
    features = outputs.features
    with timer.stage("evaluation", n_items=len(features.y["test"])):
        rows = evaluate_stages(outputs, config)
        uncertainty = measure_uncertainty(
            rows, groupings=groupings_of_test(dataset), seed=config.seed
        )
    attacks = {
        name: AttackRecord.count(
            config.attack,
            result,
            features.x["test"].float().cpu().numpy(),
            rows.labels,
            rows.probabilities[f"Robust_{name.capitalize()}"],
        )
        for name, result in outputs.attacks.items()
    }
    with timer.stage("leakage_audit", n_items=len(dataset.images)):
        audit = audit_dataset(dataset, resolution=min(32, *dataset.image_shape))
    prospects, attempts = outputs.prospects, outputs.defence.attempts
    warnings = warnings_of(rows, prospects, attempts)
    return RunMetrics(
        rows=rows,
        uncertainty=uncertainty,
        attacks=attacks,
        audit=audit,
        prospects=prospects,
        selection_trials=outputs.selection_trials,
        noise_levels=outputs.defence.noise_levels,
        attempts=attempts,
        warnings=tuple(warnings),
        notes=(
            prospects.summary + ".",
            *warnings,
            *notes_of(dataset, config, rows, attacks),
            *audit.warnings(),
        ),
        not_run=NOT_RUN,
    )


def _metric_table(
    dataset: ImageDataset, config: ExperimentConfig, metrics: RunMetrics
) -> MetricTable:
    counts = np.bincount(dataset.labels_of("test"), minlength=dataset.n_classes)
    return MetricTable(
        metrics.rows,
        metrics.uncertainty,
        papers_images=not dataset.synthetic and tuple(counts) == PAPER_TEST_COUNTS,
        papers_defence=config.defence.kind == "purifier",
        draws_noise=config.defence.purifies,
    )


def _trained_model(
    dataset: ImageDataset, config: ExperimentConfig, outputs: StageOutputs
) -> TrainedModel:
    purifier = outputs.defence.purifier
    return TrainedModel(
        extractor=outputs.features.extractor,
        classifier=outputs.cnn.model,
        purifier=purifier,
        defended=outputs.defence.model,
        robust_classifier=outputs.defence.classifier,
        label_names=dataset.label_names,
        diffusion=replace(config.diffusion, timesteps=tuple(purifier.timesteps.tolist())),
        defence=config.defence,
        info=ModelInfo(
            source=dataset.source,
            synthetic=dataset.synthetic,
            seed=config.seed,
            data_sha256=dataset.sha256(),
            data=config.data,
        ),
    )


def _saved_run(
    dataset: ImageDataset,
    config: ExperimentConfig,
    outputs: StageOutputs,
    model: TrainedModel,
    metrics: RunMetrics,
) -> SavedRun:
    features = outputs.features
    return SavedRun(
        model=model,
        x={split: features.x[split].float() for split in SPLITS},
        y={split: torch.from_numpy(features.y[split]).to(model.device) for split in SPLITS},
        attack=config.attack,
        paper={
            name: PaperAttack(
                points=result.x_adv,
                flags=result.robust_flags,
                accuracy=metrics.rows.rows[f"Robust_{name.capitalize()}"].accuracy,
                layout=result.layout,
                warnings=result.warnings,
            )
            for name, result in outputs.attacks.items()
        },
        seed=config.seed,
        audit=metrics.audit,
        groupings=groupings_of_test(dataset),
    )


def _save_adversarial(path: Path, outputs: StageOutputs) -> None:
    """Write clean and attacked features and AutoAttack's flags of both models."""
    attacks = outputs.attacks
    arrays: dict[str, Any] = {
        "x_clean": outputs.features.x["test"].float().cpu().numpy(),
        "y": outputs.features.y["test"],
        **{f"x_adv_{name}": a.x_adv.cpu().numpy() for name, a in attacks.items()},
        **{f"robust_flags_{name}": a.robust_flags.cpu().numpy() for name, a in attacks.items()},
    }
    np.savez(path, **arrays)


def _save_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
