"""The whole experiment: stages in order, timed, and everything they leave on disk."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnmf_cuda.attacks import AttackResult
from nnmf_cuda.attacks.checks import check_classes
from nnmf_cuda.data import SPLITS, ImageDataset, audit_dataset, groupings_of_test, load_dataset
from nnmf_cuda.evaluation import (
    PAPER_TEST_COUNTS,
    EvaluatedRows,
    denoising_error,
    measure_uncertainty,
)
from nnmf_cuda.evaluation.seeds import Purpose, seed_word
from nnmf_cuda.pipeline import stages
from nnmf_cuda.pipeline.artifacts import TrainedModel, save_model
from nnmf_cuda.pipeline.config import ExperimentConfig
from nnmf_cuda.pipeline.defences import noise_schedule
from nnmf_cuda.pipeline.environment import describe_environment
from nnmf_cuda.pipeline.run_directory import results_directory
from nnmf_cuda.pipeline.stages import StageOutputs, evaluate_stages, run_five_stages
from nnmf_cuda.report import ReportContent, bullet_list, metrics_table, timings_table, write_report
from nnmf_cuda.report.robustness_table import summary_table
from nnmf_cuda.robustness import Robustness, Subject, evaluate_robustness
from nnmf_cuda.robustness.evaluate import pixels_of_test, write_results
from nnmf_cuda.robustness.saved_run import FEATURES_FILE, save_features
from nnmf_cuda.run.notes import NOT_RUN, attack_findings, notes_of
from nnmf_cuda.timing import StageTimer

__all__ = ["Experiment", "run_experiment"]


logger = logging.getLogger(__name__)

EVALUATIONS = {"paper": "paper", "honest": "standard", "thorough": "thorough"}
"""The preset of `evaluate_robustness` for each evaluation; that of "paper" is not run, as it would
only count again."""


@dataclass(frozen=True)
class Experiment:
    """What a run found.

    Attributes
    ----------
    model : TrainedModel
        Extractor, classifier and defence.
    metrics : dict
        Content of `metrics.json`.
    timings : dict
        Content of `timings.json`.
    comparable : bool
        Whether the test images are those of the paper, by their counts.
    robustness : dict or None
        Content of `robustness.json`, where it was evaluated.
    """

    model: TrainedModel
    metrics: dict[str, Any]
    timings: dict[str, Any]
    comparable: bool
    robustness: dict[str, Any] | None = None

    def tables(self) -> str:
        """Return the two tables and the notes for a terminal."""
        metrics = metrics_table(
            self.metrics["rows"],
            majority_class_accuracy=self.metrics["majority_class_accuracy"],
            paper=self.comparable,
            spread=self.metrics["spread"],
            n_predictions=self.metrics["n_predictions"],
            uncertainty=self.metrics,
            paper_defence=self.model.defence.kind == "purifier",
            random_defence=self.model.defence.purifies,
        )
        parts = [
            metrics,
            timings_table(self.timings, paper=self.comparable),
            bullet_list(self.metrics["notes"]),
        ]
        if self.robustness is not None:
            parts.append(summary_table(self.robustness))
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
    """Run every stage and write the results.

    Parameters
    ----------
    config : ExperimentConfig
        What to do.
    out : path
        Directory of the results; see `nnmf_cuda.pipeline.run_directory`.
    config_yaml : str
        The configuration as the command line reads it back, for `config.yaml`.
    device : torch.device
        Where to compute.
    overwrite : bool, default=False
        Whether results in `out` may be replaced.
    progress : bool, default=False
        Show progress bars, where stderr is a terminal.
    say : callable, optional
        Takes one line about each decision and each stage.
    bench_records : sequence of mapping, optional
        Of benchmarks: the newest that `nnmf_cuda.benchmarks.run_stage_benchmarks` has made on
        these images is plotted in the report.
    evaluation : {"paper", "honest", "thorough"}, default="paper"
        Whether `nnmf_cuda.robustness.evaluate_robustness` follows, with how much effort.

    Returns
    -------
    Experiment

    Raises
    ------
    ValueError
        If data, configuration or `out` do not allow a run, or none of `bench_records` fits.
    """
    if evaluation not in EVALUATIONS:
        raise ValueError(f"evaluation must be one of {', '.join(EVALUATIONS)}; got {evaluation!r}")
    with results_directory(out, overwrite=overwrite) as partial:
        timer = StageTimer(device)
        dataset = _load(config, timer, progress=progress, say=say)
        check_classes(config.attack.attacks, dataset.n_classes)  # before anything is trained
        benchmark = _stage_benchmark(bench_records, dataset)
        run = _Run(dataset, config, device, timer, progress, say, benchmark, evaluation)
        experiment = run.to_the_end(partial, config_yaml)
        (partial / "config.yaml").write_text(config_yaml, encoding="utf-8")
        timer.write(partial / "timings.json")
    return experiment


def _load(
    config: ExperimentConfig, timer: StageTimer, *, progress: bool, say: Callable[[str], None]
) -> ImageDataset:
    with timer.stage("reading_images") as stage:
        dataset = load_dataset(
            config.data.path,
            classes=config.data.classes,
            label_key=config.data.label_key,
            split_by=config.data.split_by,
            test_fold=config.data.test_fold,
            seed=config.seed,
            progress=progress,
        )
        stage.n_items = len(dataset.images)
    counts = ", ".join(f"{len(dataset.labels_of(split))} {split}" for split in SPLITS)
    say(f"data: {dataset.source}, {counts}; classes {', '.join(dataset.label_names)}")
    for note in dataset.notes:
        say(f"  {note}")
    return dataset


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


class _Run:
    """The state of one run between its stages."""

    def __init__(
        self,
        dataset: ImageDataset,
        config: ExperimentConfig,
        device: torch.device,
        timer: StageTimer,
        progress: bool,
        say: Callable[[str], None],
        stage_benchmark: Mapping[str, Any] | None,
        evaluation: str,
    ) -> None:
        self.dataset = dataset
        self.config = config
        self.device = device
        self.timer = timer
        self.progress = progress
        self.say = say
        self.stage_benchmark = stage_benchmark
        self.evaluation = evaluation

    def to_the_end(self, partial: Path, config_yaml: str) -> Experiment:
        environment = describe_environment(self.device, data_sha256=self.dataset.sha256())
        outputs = run_five_stages(
            self.dataset,
            self.config,
            device=self.device,
            timer=self.timer,
            progress=self.progress,
            say=self.say,
        )
        features, attacks, model = outputs.features, outputs.attacks, self._model(outputs)
        with self.timer.stage("evaluation", n_items=len(features.y["test"])):
            rows = evaluate_stages(outputs, self.config)
            uncertainty = measure_uncertainty(
                rows, groupings=groupings_of_test(self.dataset), seed=self.config.seed
            )
        found = {
            name: attack_findings(
                result,
                features.x["test"].float().cpu().numpy(),
                rows.labels,
                rows.probabilities[f"Robust_{name.capitalize()}"],
                self.config.attack,
            )
            for name, result in attacks.items()
        }
        with self.timer.stage("leakage_audit", n_items=len(self.dataset.images)):
            audit = audit_dataset(self.dataset, resolution=min(32, *self.dataset.image_shape))
        notes = [*notes_of(self.dataset, self.config, rows, found), *audit.warnings()]
        metrics = {
            **rows.as_dict(notes=notes),
            **uncertainty.as_dict(),
            "attacks": found,
            "audit": audit.as_dict(),
            "noise_levels": outputs.defence.noise_levels,
            "not_run": list(NOT_RUN) if self.evaluation == "paper" else [],
        }
        robustness = self._robustness(model, outputs, metrics)
        with self.timer.stage("writing_results"):
            save_model(model, partial / "model")
            _save_adversarial(partial / "adversarial.npz", features, attacks)
            save_features(partial / FEATURES_FILE, features, self.dataset)
            _save_json(partial / "environment.json", environment)
            _save_json(partial / "metrics.json", metrics)
            if robustness is not None:
                write_results(partial, robustness)
            report = self._report(outputs, rows, metrics, environment, config_yaml, robustness)
            write_report(partial, report)
        content = None if robustness is None else robustness.content
        return Experiment(model, metrics, self.timer.as_dict(), self._is_papers_test_split, content)

    def _robustness(
        self, model: TrainedModel, outputs: StageOutputs, metrics: Mapping[str, Any]
    ) -> Robustness | None:
        if self.evaluation == "paper":
            return None
        subject = Subject(
            model=model,
            x={split: outputs.features.x[split].float() for split in SPLITS},
            y={s: torch.from_numpy(outputs.features.y[s]).to(self.device) for s in SPLITS},
            attack_eps=self.config.attack.attack_eps,
            norm=self.config.attack.norm,
            paper={
                name: {"points": result.x_adv, "flags": result.robust_flags}
                for name, result in outputs.attacks.items()
            },
            findings=metrics,
            seed=self.config.seed,
            groupings=groupings_of_test(self.dataset),
        )
        preset = EVALUATIONS[self.evaluation]
        with self.timer.stage("robustness_evaluation", n_items=len(subject.y["test"])):
            return evaluate_robustness(
                subject, preset=preset, images=pixels_of_test(self.dataset, model), say=self.say
            )

    def _model(self, outputs: StageOutputs) -> TrainedModel:
        return TrainedModel(
            extractor=outputs.features.extractor,
            classifier=outputs.cnn.model,
            purifier=outputs.defence.purifier,
            defended=outputs.defence.model,
            robust_classifier=outputs.defence.classifier,
            label_names=self.dataset.label_names,
            diffusion=replace(
                self.config.diffusion, timesteps=tuple(outputs.defence.purifier.timesteps.tolist())
            ),
            defence=self.config.defence,
            info={
                "source": self.dataset.source,
                "synthetic": self.dataset.synthetic,
                "seed": self.config.seed,
                "data_sha256": self.dataset.sha256(),
                "data": asdict(self.config.data),
            },
        )

    @property
    def _is_papers_test_split(self) -> bool:
        labels = self.dataset.labels_of("test")
        counts = np.bincount(labels, minlength=self.dataset.n_classes)
        return not self.dataset.synthetic and tuple(counts) == PAPER_TEST_COUNTS

    def _report(
        self,
        outputs: StageOutputs,
        rows: EvaluatedRows,
        metrics: Mapping[str, Any],
        environment: Mapping[str, Any],
        config_yaml: str,
        robustness: Robustness | None,
    ) -> ReportContent:
        dataset, features = self.dataset, outputs.features
        cnn, denoiser, selector = outputs.cnn, outputs.denoiser, features.selector
        train_x, train_y = features.x["train"].cpu().numpy(), features.y["train"]
        classes = range(dataset.n_classes)
        return ReportContent(
            source=dataset.source,
            synthetic=dataset.synthetic,
            label_names=dataset.label_names,
            split_counts={
                split: [int((features.y[split] == c).sum()) for c in classes] for split in SPLITS
            },
            rows=metrics["rows"],
            majority_class_accuracy=metrics["majority_class_accuracy"],
            spread=rows.spread,
            n_predictions=rows.n_predictions,
            paper_comparable=self._is_papers_test_split,
            paper_defence=self.config.defence.kind == "purifier",
            random_defence=self.config.defence.purifies,
            uncertainty=metrics,
            timings=self.timer.as_dict(),
            stage_benchmark=self.stage_benchmark,
            components=features.nnmf.components_.reshape(-1, *dataset.image_shape),
            class_means=np.stack([train_x[train_y == c].mean(0) for c in classes]),
            selection={
                "auc": selector.auc_,
                "cohens_d": selector.cohens_d_,
                "p_value": selector.p_value_,
                "ranking": selector.ranking_,
                "selected": selector.selected_,
            },
            classifier_history=cnn.history,
            denoiser_history=denoiser.history,
            best_epoch=cnn.best_epoch,
            denoising_error=denoising_error(
                denoiser.model,
                noise_schedule(self.config.diffusion).alphas_cumprod,
                features.x["test"],
                seed=seed_word(self.config.seed, Purpose.EVALUATION),
            ),
            purify_t=int(outputs.defence.purifier.timesteps[0]),
            labels=rows.labels,
            probabilities=rows.probabilities,
            attacks={
                name: {**metrics["attacks"][name], "seconds": result.seconds}
                for name, result in outputs.attacks.items()
            },
            environment=environment,
            config=config_yaml,
            notes=metrics["notes"],
            not_run=NOT_RUN if robustness is None else (),
            robustness=None if robustness is None else robustness.content,
            pixel_examples=None if robustness is None else robustness.examples,
        )


def _save_adversarial(
    path: Path, features: stages.Features, attacks: Mapping[str, AttackResult]
) -> None:
    np.savez(
        path,
        x_clean=features.x["test"].float().cpu().numpy(),
        y=features.y["test"],
        x_adv_baseline=attacks["baseline"].x_adv.cpu().numpy(),
        x_adv_defended=attacks["defended"].x_adv.cpu().numpy(),
        robust_flags_baseline=attacks["baseline"].robust_flags.cpu().numpy(),
        robust_flags_defended=attacks["defended"].robust_flags.cpu().numpy(),
    )


def _save_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
