"""Made-up results of a run, for tables, figures and reports."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from nnmf_cuda.evaluation import (
    METRIC_NAMES,
    ROW_NAMES,
    DenoisingError,
    classification_metrics,
    majority_class_accuracy,
)
from nnmf_cuda.report import ReportContent
from nnmf_cuda.timing import PAPER_STAGES

STRENGTH = {
    "Clean_Baseline": 2.0,
    "Clean_Defended": 1.8,
    "Robust_Baseline": -3.0,
    "Robust_Defended": 0.3,
}


def _probabilities(rng, labels, n_classes):
    found = {}
    for name in ROW_NAMES:
        n_predictions = 1 if name.endswith("Baseline") else 4
        logits = rng.normal(size=(n_predictions, len(labels), n_classes))
        logits[:, np.arange(len(labels)), labels] += STRENGTH[name]
        exponentials = np.exp(logits)
        found[name] = exponentials / exponentials.sum(-1, keepdims=True)
    return found


def _components(n):
    y, x = np.mgrid[0:32, 0:24] / 32
    centres = np.random.default_rng(1).uniform(0.2, 0.7, (n, 2))
    return np.stack([np.exp(-((y - a) ** 2 + (x - b) ** 2) / 0.02) for a, b in centres])


@pytest.fixture
def timings() -> dict:
    seconds = (6.5, 7.1, 4.2, 3.3, 9.4)
    rows = [
        {"stage": stage, "seconds": s, "n_items": 1500, "peak_bytes": 700 * 2**20}
        for stage, s in zip(PAPER_STAGES, seconds, strict=True)
    ]
    rows.insert(0, {"stage": "read_images", "seconds": 1.25, "n_items": 2145, "peak_bytes": 2**29})
    rows.append({"stage": "total", "seconds": 30.5, "n_items": 7500, "peak_bytes": 700 * 2**20})
    return {"device": "cpu", "rows": rows}


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
def uncertainty() -> dict:
    """Intervals, comparisons and calibration of `metrics.json`."""

    def compared(difference: float) -> dict:
        ends = {"estimate": difference, "low": difference - 0.1, "high": difference + 0.1}
        areas = {"difference": difference, "low": -0.5, "high": 0.5, "p_value": 0.25}
        return {
            "mcnemar": {"n_only_a": 7, "n_only_b": 5, "p_value": 0.0001},
            "difference": dict.fromkeys(METRIC_NAMES, ends),
            "delong": areas,
        }

    return {
        "intervals": {
            "level": 0.95,
            "clustered_by": "series",
            "n_clusters": 152,
            "n_resamples": 2000,
            "rows": {
                row: {m: {"low": 0.1 + i / 10, "high": 0.2 + i / 10} for m in METRIC_NAMES}
                for i, row in enumerate(ROW_NAMES)
            },
        },
        "comparisons": {"level": 0.95, "clean": compared(-0.02), "robust": compared(0.5)},
        "calibration": {
            "n_bins": 10,
            "expected_calibration_error": {row: i / 8 for i, row in enumerate(ROW_NAMES)},
        },
    }


@pytest.fixture
def make_content(timings, uncertainty) -> Callable[..., ReportContent]:
    def make(n_classes: int = 2, n_components: int = 15, **changes) -> ReportContent:
        rng = np.random.default_rng(0)
        labels = np.arange(215) * n_classes // 215
        labels[:5] = n_classes - 1
        probabilities = _probabilities(rng, labels, n_classes)
        tables = {
            k: [classification_metrics(labels, p) for p in v] for k, v in probabilities.items()
        }
        rows = {
            k: {m: float(np.mean([t[m] for t in v])) for m in METRIC_NAMES} | {"n": len(labels)}
            for k, v in tables.items()
        }
        spread = {
            k: {m: float(np.std([t[m] for t in v])) for m in METRIC_NAMES}
            for k, v in tables.items()
            if k.endswith("Defended")
        }
        auc = rng.uniform(0.3, 0.8, n_components)
        p_value = 10.0 ** -rng.uniform(0, 40, n_components)
        p_value[0] = 0.0
        sigma = np.linspace(0.01, 0.99, 25)
        fields = {
            "source": "images.npz",
            "synthetic": False,
            "label_names": ("Normal", "Tumor", "Third")[:n_classes],
            "split_counts": {s: [730, 771, 12][:n_classes] for s in ("train", "valid", "test")},
            "rows": rows,
            "majority_class_accuracy": majority_class_accuracy(labels),
            "spread": spread,
            "n_predictions": 4,
            "uncertainty": uncertainty,
            "timings": timings,
            "components": _components(n_components),
            "class_means": rng.uniform(0, 0.5, (n_classes, n_components)),
            "selection": {
                "auc": auc,
                "cohens_d": 3 * (auc - 0.5),
                "p_value": p_value,
                "ranking": np.argsort(-np.abs(auc - 0.5)),
                "selected": np.arange(n_components),
            },
            "classifier_history": {
                "train_loss": list(0.7 * np.exp(-np.arange(100) / 40)),
                "valid_loss": list(0.7 * np.exp(-np.arange(100) / 50) + 0.05),
                "valid_accuracy": list(0.9 - 0.4 * np.exp(-np.arange(100) / 20)),
            },
            "denoiser_history": {"train_loss": list(0.05 + 0.3 * np.exp(-np.arange(300) / 30))},
            "best_epoch": 81,
            "denoising_error": DenoisingError(
                t=np.linspace(0, 999, 25),
                sigma=sigma,
                mse_noisy=sigma**2 / (1 - sigma**2),
                mse_denoised=0.001 + 0.02 * sigma**2,
                mse_mean=np.full(25, 0.024),
            ),
            "purify_t": 41,
            "labels": labels,
            "probabilities": probabilities,
            "attacks": {
                "baseline": {
                    "norm": "Linf",
                    "attack_eps": 0.1,
                    "attacks": ["apgd-ce", "square"],
                    "robust accuracy after each attack": {"apgd-ce": 0.05, "square": 0.0047},
                    "AutoAttack's own warnings": [],
                },
                "defended": {
                    "norm": "Linf",
                    "attack_eps": 0.1,
                    "AutoAttack's own warnings": ["it seems to be a randomized defense!"],
                },
            },
            "environment": {"torch": "2.13.0", "device": "cpu", "threads": 2, "commit": "abc"},
            "config": "seed: 0\nnnmf:\n  n_components: 15\n",
            "notes": [
                "category 2 = Normal, category 1 = Tumor",
                "1 image without annotation left out",
            ],
            "not_run": ["Attack in pixel space", "Other values of attack_eps"],
        }
        return ReportContent(**{**fields, **changes})

    return make


NAMES = {1: "Threat model", 6: "Gradient", 12: "Fixed noise", 13: "Attacks on the purifier"}


def _points(values):
    return [{"id": i, "name": NAMES.get(i, "Another"), "value": values[i]} for i in range(1, 21)]


@pytest.fixture
def evaluation() -> dict:
    """Content of `robustness.json` of a defence with noise; pixels and point 13 were not run."""
    counts = {"fresh": 0.6063, "majority": 0.5721, "all": 0.4977}
    certificate = {
        "sigma": 0.147,
        "n_features": 15,
        "certified_at_attack_eps": 0.1209,
        "curve": {
            "radius": [i / 40 for i in range(21)],
            "linf_equivalent": [i / 155 for i in range(21)],
            "certified_accuracy": [0.86 - i / 25 for i in range(21)],
        },
        "certifies": "The majority of single draws is certified.",
    }
    threat = {
        "norm": "Linf",
        "attack_eps": 0.1,
        "box": [0.0, 1.0],
        "noise": "fresh at every decision",
        "knowledge": "white box",
        "robust_if": "on the point of every attack the majority of 20 fresh decisions is right",
    }
    curve = {"robust_accuracy": [0.53, 0.52, 0.51], "converged": True}
    leak = {"n": 9, "near_share": 0.237, "nearest_accuracy": 0.949, "majority_accuracy": 0.549}
    values = {
        1: {**threat, "eps_in_feature_ranges": [0.1] * 15, "pixel_space": "not run"},
        2: {"lowest": 0.0, "highest": 1.0, "largest_move": 0.1, "attack_eps": 0.1},
        3: {"the paper's protocol": "(N, M, 1, 1)"},
        4: {"n_classes": 2, "dlr": "does not exist", "attacks": ["APGD-margin"]},
        5: {"the paper's protocol": {"flags": 0.507, **counts}, "at eps 0": counts},
        6: {"zero_gradient_share": 0.0, "median_error": 2e-11, "bpda_identity": 0.5442},
        7: {"eot_iter": [1, 8, 64], **curve},
        8: {
            "steps": {"n_iter": [25, 50, 100], **curve},
            "restarts": {"n_restarts": [1, 2, 5], **curve},
            "converged": False,
        },
        9: {"attack_eps": [0.0, 0.1, 1.0], "robust_accuracy": [0.9, 0.5, 0], "reaches_zero": True},
        10: {"black_box": 0.5442, "white_box": 0.5116, "black_box_is_stronger": False},
        11: {"transfer from the undefended": 0.6186, "back to the undefended": 0.2977},
        12: {"robust_accuracy": 0.4837},
        13: "not run",
        14: {"defended": {"clean": 0.87, "worst_case": 0.507}, "constant answer": 0.5488},
        15: {"n": 62, "broken": {"Square": 0.4, "all attacks together": 0.8}},
        16: {"n": 215, "wilson_95": [0.44, 0.573]},
        17: {"baseline": "no warning", "defended": ["<it seems> randomized!"]},
        18: {
            "splits": {"test": leak},
            "most_similar_pairs": [[0.98, "a.jpg", "test", "b.jpg"]] * 10,
            "warnings": ["Leakage: much"],
        },
        19: {"denoised": certificate},
        20: {
            "seed": 0,
            "rows_asked": 17563329,
            "seconds": 426.3,
            "environment": {"nnmf_cuda": "0.1.0", "packages": {"torch": "2.13", "other": None}},
        },
    }
    return {
        "worst_case_accuracy": 0.50698,
        "worst_case_interval": [0.441, 0.573],
        "all_right_accuracy": 0.2465,
        "clean_accuracy": 0.8698,
        "constant_answer_accuracy": 0.5488,
        "verdict": "The worst case, 0.5070, does not beat the constant answer, 0.5488.",
        "preset": "standard",
        "threat_model": threat,
        "points": _points(values),
        "attacks": [
            {"name": "clean", "fresh": 0.8686, "majority": 0.8698, "all": 0.7767, "seconds": 0.0},
            {"name": "the paper's protocol", **counts, "seconds": 0.0},
            {"name": "APGD-margin", **counts, "majority": 0.5116, "seconds": 8.4},
        ],
        "others": {
            "undefended": {"clean_accuracy": 0.907, "worst_case_accuracy": 0.0186},
            "adversarially trained": {"clean_accuracy": 0.8512, "worst_case_accuracy": 0.7581},
        },
    }


@pytest.fixture
def quiet_evaluation(evaluation) -> dict:
    """The same of a defence without noise, itself adversarially trained."""
    threat = {**evaluation["threat_model"], "noise": "none", "robust_if": "the answer is right"}
    lines = [
        {**line, "fresh": line["majority"], "all": line["majority"]}
        for line in evaluation["attacks"]
    ]
    values = {point["id"]: point["value"] for point in evaluation["points"]}
    values |= {
        1: {**values[1], **threat},
        7: {"eot_iter": [1], "note": "the model has no noise to average over"},
        12: {"note": "the defence has no noise"},
        13: {"note": "there is no purifier"},
    }
    return {
        **evaluation,
        "threat_model": threat,
        "attacks": lines,
        "points": _points(values),
        "others": {"undefended": evaluation["others"]["undefended"]},
        "others_notes": ["The adversarially trained classifier is the defence itself."],
    }
