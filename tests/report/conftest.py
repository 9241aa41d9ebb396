"""Made-up results of a run, for tables, figures and reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from nnmf_cuda.data import ImageDataset
from nnmf_cuda.evaluation import (
    METRIC_NAMES,
    ROW_NAMES,
    AUCComparison,
    Certificate,
    Comparison,
    DenoisingError,
    EvaluatedRows,
    Interval,
    McNemarResult,
    Metrics,
    RowIntervals,
    Uncertainty,
    classification_metrics,
)
from nnmf_cuda.evaluation.headline import Headline
from nnmf_cuda.evaluation.robustness import (
    About,
    AttackLine,
    Certified,
    Curve,
    Curves,
    ModelLine,
    PaperProtocol,
    Point,
    RobustnessReport,
    Rounds,
    State,
    ThreatModel,
    Verdict,
)
from nnmf_cuda.nnmf.estimator import NNMF
from nnmf_cuda.nnmf.selection import ComponentSelector
from nnmf_cuda.report.run_report import RunReport
from nnmf_cuda.report.tables import MetricTable
from nnmf_cuda.timing import PAPER_STAGES, StageRow, Timings
from nnmf_cuda.training import TrainingResult

STRENGTH = {
    "Clean_Baseline": 2.0,
    "Clean_Defended": 1.8,
    "Robust_Baseline": -3.0,
    "Robust_Defended": 0.3,
}
IMAGE_SHAPE = (32, 24)
SPLIT = ["train"] * 40 + ["valid"] * 20 + ["test"] * 215


def evaluated_rows(labels: np.ndarray, n_classes: int) -> EvaluatedRows:
    rng, rows, spread, probabilities = np.random.default_rng(0), {}, {}, {}
    for name in ROW_NAMES:
        n_predictions = 1 if name.endswith("Baseline") else 4
        logits = rng.normal(size=(n_predictions, len(labels), n_classes))
        logits[:, np.arange(len(labels)), labels] += STRENGTH[name]
        exponentials = np.exp(logits)
        probabilities[name] = exponentials / exponentials.sum(-1, keepdims=True)
        every = [classification_metrics(labels, p) for p in probabilities[name]]
        values = {m: np.array([metrics[m] for metrics in every]) for m in METRIC_NAMES}
        rows[name] = Metrics(**{m: float(v.mean()) for m, v in values.items()}, n=len(labels))
        if n_predictions > 1:
            spread[name] = {m: float(v.std()) for m, v in values.items()}
    return EvaluatedRows(rows, spread, probabilities, labels, 4)


def components(n: int) -> np.ndarray:
    y, x = np.mgrid[0:32, 0:24] / 32
    centres = np.random.default_rng(1).uniform(0.2, 0.7, (n, 2))
    return np.stack([np.exp(-((y - a) ** 2 + (x - b) ** 2) / 0.02) for a, b in centres])


def dataset_of(n_classes: int, labels: np.ndarray) -> ImageDataset:
    return ImageDataset(
        images=np.zeros((len(SPLIT), *IMAGE_SHAPE), dtype=np.uint8),
        labels=np.concatenate([np.arange(60) % n_classes, labels]),
        label_names=("Normal", "Tumor", "Third")[:n_classes],
        split=np.array(SPLIT),
        groups={},
        files=np.array([f"{i}.png" for i in range(len(SPLIT))]),
        source="images.npz",
    )


@pytest.fixture
def timings() -> Timings:
    seconds = zip(PAPER_STAGES, (6.5, 7.1, 4.2, 3.3, 9.4), strict=True)
    read = StageRow("read_images", 1.25, 2145, 2**29)
    return Timings("cpu", (read, *(StageRow(name, s, 1500, 700 * 2**20) for name, s in seconds)))


@pytest.fixture
def stage_benchmark() -> dict:
    """A record of the stage benchmark, as far as a report reads it."""

    def path(factor: float, *, reference: bool) -> dict:
        medians = dict(zip((*PAPER_STAGES, "total"), (1.0, 2.0, 4.0, 8.0, 16.0, 31.0), strict=True))
        stages = {
            name: {"median_s": s * factor, "low_s": s * factor / 2, "high_s": s * factor * 2}
            for name, s in medians.items()
        }
        return {"reference": reference, "stages": stages}

    return {
        "size": "images",
        "smoke": False,
        "options": {"preset": "paper"},
        "paths": {"cpu": path(1, reference=False), "cpu reference": path(5, reference=True)},
        "environments": {"cpu": {"device_name": "Some CPU"}},
        "threads": 2,
        "commit": "0123456789abcdef",
        "date": "2026-01-02T03:04:05+00:00",
    }


@pytest.fixture
def uncertainty() -> Uncertainty:
    def compared(difference: float) -> Comparison:
        ends = Interval(difference, difference - 0.1, difference + 0.1)
        return Comparison(
            McNemarResult(7, 5, 0.0001),
            dict.fromkeys(METRIC_NAMES, ends),
            AUCComparison(0.9, 0.9 - difference, difference, 0.1, 1.0, 0.25, -0.5, 0.5, 0.95),
        )

    return Uncertainty(
        level=0.95,
        intervals=RowIntervals(
            "series",
            n_clusters=152,
            n_resamples=2000,
            n_redrawn=0,
            rows={
                row: dict.fromkeys(
                    METRIC_NAMES, Interval(0.15 + i / 10, 0.1 + i / 10, 0.2 + i / 10)
                )
                for i, row in enumerate(ROW_NAMES)
            },
        ),
        wilson=dict.fromkeys(ROW_NAMES, Interval(0.6, 0.529, 0.659)),
        clean=compared(-0.02),
        robust=compared(0.5),
        calibration_errors={row: i / 8 for i, row in enumerate(ROW_NAMES)},
    )


@pytest.fixture
def make_table(uncertainty: Uncertainty) -> Callable[..., MetricTable]:
    def make(n_classes: int = 2, **changes) -> MetricTable:
        labels = np.arange(215) * n_classes // 215
        labels[:5] = n_classes - 1
        rows = evaluated_rows(labels, n_classes)
        return replace(MetricTable(rows, uncertainty, papers_images=False), **changes)

    return make


@pytest.fixture
def make_report(timings: Timings, make_table: Callable[..., MetricTable]) -> Callable:
    """Return a function that makes a report; its arguments are fields of report and table."""

    def make(n_classes: int = 2, n_components: int = 15, **changes) -> RunReport:
        rng = np.random.default_rng(0)
        in_table = ("papers_images", "papers_defence", "draws_noise", "rows")
        table = make_table(n_classes, **{k: changes.pop(k) for k in in_table if k in changes})
        dataset = dataset_of(n_classes, table.rows.labels)
        x_train = rng.uniform(0, 0.5, (40, n_components))
        selector = ComponentSelector().fit(x_train, dataset.labels_of("train"))
        selector.p_value_[selector.ranking_[0]] = 0.0
        nnmf = NNMF(n_components)
        nnmf.components_ = components(n_components).reshape(n_components, -1)
        sigma = np.linspace(0.01, 0.99, 25)
        report = RunReport(
            dataset=dataset,
            table=table,
            nnmf=nnmf,
            selector=selector,
            x_train=x_train,
            classifier=TrainingResult(
                None,
                {
                    "train_loss": list(0.7 * np.exp(-np.arange(100) / 40)),
                    "valid_loss": list(0.7 * np.exp(-np.arange(100) / 50) + 0.05),
                    "valid_accuracy": list(0.9 - 0.4 * np.exp(-np.arange(100) / 20)),
                },
                81,
            ),
            denoiser=TrainingResult(
                None, {"train_loss": list(0.05 + 0.3 * np.exp(-np.arange(300) / 30))}, 299
            ),
            denoising_error=DenoisingError(
                t=np.linspace(0, 999, 25),
                sigma=sigma,
                mse_noisy=sigma**2 / (1 - sigma**2),
                mse_denoised=0.001 + 0.02 * sigma**2,
                mse_mean=np.full(25, 0.024),
            ),
            purify_t=41,
            attacks={
                "baseline": {"norm": "Linf", "attack_eps": 0.1, "warnings": []},
                "defended": {
                    "norm": "Linf",
                    "attack_eps": 0.1,
                    "accuracy_after": {"apgd-ce": 0.05, "square": 0.0047},
                    "warnings": ["it seems to be a randomized defense!"],
                },
            },
            timings=timings,
            stage_benchmark=None,
            robustness=None,
            environment={"torch": "2.13.0", "device": "cpu", "threads": 2, "commit": "abc"},
            config_yaml="seed: 0\nnnmf:\n  n_components: 15\n",
            notes=("category 2 = Normal, category 1 = Tumor", "1 image left out"),
            not_run=("Attack in pixel space", "Other values of attack_eps"),
        )
        return replace(report, **changes)

    return make


def point(number: int, **fields) -> Point:
    names = {1: "Threat model", 13: "Attacks on the purifier"}
    made = {
        "value": {"n": number},
        "state": State.PLAIN,
        "figure": f"{number / 100:.3f}",
        "sentence": f"What point {number} says.",
        "shown": {"n": number},
    }
    return Point(number, names.get(number, f"Another, {number}"), **{**made, **fields})


@pytest.fixture
def evaluation() -> RobustnessReport:
    """An evaluation of a defence with noise; pixels and point 13 were not run."""
    counts = {"fresh": 0.6063, "majority": 0.5721, "all": 0.4977}
    flat = (0.53, 0.52, 0.51)
    certificate = Certificate(
        predictions=np.zeros(50, np.int64),
        radii=np.linspace(0.0, 0.4, 50),
        labels=np.zeros(50, np.int64),
        sigma=0.147,
        n_features=15,
        n_selection=100,
        n_estimation=1000,
        alpha=1e-3,
    )
    points = {i: point(i) for i in range(1, 21)}
    points |= {
        1: point(1, missing=("pixel space (give --data)",)),
        13: Point(13, "Attacks on the purifier"),
        17: point(17, state=State.BAD, shown={"defended": ["<it seems> randomized!"]}),
        18: point(18, state=State.GOOD, warnings=("The test images are near.",)),
    }
    return RobustnessReport(
        preset="standard",
        about=About(),
        threat_model=ThreatModel(
            norm="Linf",
            attack_eps=0.1,
            noise="fresh at every decision",
            knowledge="white box",
            robust_if="on the point of every attack the majority of 20 fresh decisions is right",
            is_random=True,
        ),
        headline=Headline(
            attacked=0.50698,
            clean=0.8698,
            constant=0.5488,
            ceiling=0.9256,
            proven=0.1209,
            undecided=None,
            proof="by smoothing",
        ),
        verdict=Verdict(
            robust=0.50698,
            low=0.441,
            high=0.573,
            method="Wilson",
            drawn="image",
            constant=0.5488,
            less_constant=Interval(-0.042, -0.11, 0.02),
        ),
        rounds=Rounds(1, 0.0, 0.507, 0.507),
        defence=ModelLine(
            0.8698,
            0.50698,
            [
                AttackLine("clean", fresh=0.8686, majority=0.8698, all=0.7767, seconds=0.0),
                AttackLine("the paper's protocol", **counts, seconds=0.0),
                AttackLine("APGD-margin", **{**counts, "majority": 0.5116}, seconds=8.4),
            ],
        ),
        all_right_accuracy=0.2465,
        others={
            "undefended": ModelLine(0.907, 0.0186, []),
            "adversarially trained": ModelLine(0.8512, 0.7581, []),
        },
        others_notes=(),
        paper_protocol=PaperProtocol("APGD-CE + Square", 0.0186, 0.6063, 0.5721),
        points=list(points.values()),
        seconds=426.3,
        curves=Curves(
            eps=Curve("attack_eps", (0.0, 0.1, 1.0), (0.9, 0.5, 0.0)),
            steps=Curve("n_iter", (25, 50, 100), flat),
            restarts=Curve("n_restarts", (1, 2, 5), flat),
            draws=Curve("eot_iter", (1, 8, 64), flat),
        ),
        pixels=None,
        certificates={"denoised": Certified("the majority of single draws", certificate, 0.1209)},
        fixed_noise=0.4837,
        worst_points=None,
    )


@pytest.fixture
def quiet_evaluation(evaluation) -> RobustnessReport:
    """The same of a defence without noise, itself adversarially trained."""
    threat = replace(
        evaluation.threat_model, noise="none", robust_if="the answer is right", is_random=False
    )
    attacks = [
        replace(line, fresh=line.majority, all=line.majority) for line in evaluation.defence.attacks
    ]
    return replace(
        evaluation,
        threat_model=threat,
        headline=replace(
            evaluation.headline, proven=0.4884, undecided=0.0186, proof="branch and bound"
        ),
        defence=replace(evaluation.defence, attacks=attacks),
        others={"undefended": evaluation.others["undefended"]},
        others_notes=["The adversarially trained classifier is the defence itself."],
        curves=replace(evaluation.curves, draws=None),
        fixed_noise=None,
    )
