"""What a report shows, as plain arrays and dictionaries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnmf_cuda.evaluation import ROW_NAMES

__all__ = ["OPTIONAL_PARTS", "ReportContent"]

OPTIONAL_PARTS = {
    "components": "Component images",
    "class_means": "Class means of the features",
    "selection": "Selection statistics of the components",
    "classifier_history": "Training curve of the classifier",
    "denoiser_history": "Training curve of the denoiser",
    "denoising_error": "Denoising error against noise level",
    "probabilities": "ROC and reliability curves",
    "uncertainty": "Intervals and comparisons of the rows",
    "timings": "Stage times",
    "attacks": "Settings and checks of the attack",
}
"""Fields of `ReportContent` that may be None, with the title of what is then not shown."""


@dataclass(frozen=True)
class ReportContent:
    """Everything `write_report` shows; no model and no tensor.

    Attributes
    ----------
    source : str
        Where the images came from.
    synthetic : bool
        Whether they were generated; a banner then says so.
    label_names : tuple of str
        Class names; the last is the positive class.
    split_counts : mapping of str to sequence of int
        Images of each class in "train", "valid" and "test".
    rows : mapping of str to mapping
        The nine metrics and ``n`` of the four rows (``metrics.json``).
    majority_class_accuracy : float
        Accuracy of the constant answer on the test images.
    spread : mapping, optional
        Standard deviation over predictions, for rows that have one.
    n_predictions : int
        Predictions behind each defended row.
    paper_comparable : bool
        Whether the data are the paper's, so that its figures stand beside ours.
    paper_defence : bool
        Whether the defence is the paper's purifier.
    random_defence : bool
        Whether the defence draws noise before it answers.
    uncertainty : mapping, optional
        ``intervals``, ``comparisons`` and ``calibration`` of ``metrics.json``.
    timings : mapping, optional
        Content of ``timings.json``.
    stage_benchmark : mapping, optional
        Record of `nnmf_cuda.benchmarks.run_stage_benchmarks` on these images.
    components : array of shape (n_components, height, width), optional
        Images of the NNMF components.
    class_means : array of shape (n_classes, n_features), optional
        Mean selected feature of each class on the training split.
    selection : mapping, optional
        ``auc``, ``cohens_d``, ``p_value`` (each of n_components), ``ranking`` (best first) and
        ``selected`` (indices kept).
    classifier_history, denoiser_history : mapping of str to sequence of float, optional
        One value an epoch; names that end in "loss" share an axis, the others another.
    best_epoch : int, optional
        Epoch kept of the classifier, counted from 0.
    denoising_error : mapping, optional
        What `nnmf_cuda.evaluation.denoising_error` returns.
    purify_t : int, optional
        Timestep at which the defence works.
    labels : array of shape (n_test,), optional
        True classes; needed with ``probabilities``.
    probabilities : mapping of str to array (n_predictions, n_test, n_classes), optional
        Softmax probabilities behind each row.
    attacks : mapping of str to mapping, optional
        For each attacked model, settings and findings by name.
    robustness : mapping, optional
        Content of ``robustness.json``.
    pixel_examples : mapping, optional
        "clean" and "attacked" images (m, height, width) of the attack on pixels, and optionally
        "titles" and "eps_255".
    environment : mapping
        Versions, device, commit and the like.
    config : str
        The configuration, as YAML.
    notes : sequence of str
        What the reader and the run decided or skipped.
    not_run : sequence of str
        What was left out of this run.
    """

    source: str
    synthetic: bool
    label_names: tuple[str, ...]
    split_counts: Mapping[str, Sequence[int]]
    rows: Mapping[str, Mapping[str, float]]
    majority_class_accuracy: float
    spread: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    n_predictions: int = 20
    paper_comparable: bool = False
    paper_defence: bool = True
    random_defence: bool = True
    uncertainty: Mapping[str, Any] | None = None
    timings: Mapping[str, Any] | None = None
    stage_benchmark: Mapping[str, Any] | None = None
    components: NDArray[np.floating[Any]] | None = None
    class_means: NDArray[np.floating[Any]] | None = None
    selection: Mapping[str, NDArray[Any]] | None = None
    classifier_history: Mapping[str, Sequence[float]] | None = None
    denoiser_history: Mapping[str, Sequence[float]] | None = None
    best_epoch: int | None = None
    denoising_error: Mapping[str, NDArray[Any]] | None = None
    purify_t: int | None = None
    labels: NDArray[np.integer[Any]] | None = None
    probabilities: Mapping[str, NDArray[np.floating[Any]]] | None = None
    attacks: Mapping[str, Mapping[str, Any]] | None = None
    robustness: Mapping[str, Any] | None = None
    pixel_examples: Mapping[str, Any] | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)
    config: str = ""
    notes: Sequence[str] = ()
    not_run: Sequence[str] = ()

    def __post_init__(self) -> None:
        missing = [name for name in ROW_NAMES if name not in self.rows]
        if missing:
            raise ValueError(f"rows has no {missing}; give all of {ROW_NAMES}")
        n_classes = len(self.label_names)
        for split, counts in self.split_counts.items():
            if len(counts) != n_classes:
                raise ValueError(
                    f"split_counts[{split!r}] has {len(counts)} entries for {n_classes} label_names"
                )
        if self.components is not None and np.ndim(self.components) != 3:
            raise ValueError(
                f"components has shape {np.shape(self.components)}; "
                "give (n_components, height, width)"
            )
        if self.class_means is not None and np.shape(self.class_means)[:1] != (n_classes,):
            raise ValueError(
                f"class_means has shape {np.shape(self.class_means)}; "
                f"give ({n_classes}, n_features)"
            )
        if self.probabilities is not None:
            self._check_probabilities(self.probabilities)

    def _check_probabilities(self, probabilities: Mapping[str, NDArray[Any]]) -> None:
        if self.labels is None:
            raise ValueError("labels is None; probabilities need the labels they belong to")
        expected = (len(self.labels), len(self.label_names))
        for name in ROW_NAMES:
            if name not in probabilities:
                raise ValueError(f"probabilities has no {name!r}; give all of {ROW_NAMES}")
            shape = np.shape(probabilities[name])
            if len(shape) != 3 or shape[1:] != expected:
                raise ValueError(
                    f"probabilities[{name!r}] has shape {shape}; give (n_predictions, "
                    f"{expected[0]}, {expected[1]})"
                )

    @property
    def missing_parts(self) -> list[str]:
        """Titles of the optional parts that are not there."""
        return [title for name, title in OPTIONAL_PARTS.items() if getattr(self, name) is None]
