"""What models answer on a test set: probabilities, the paper's four rows, the denoiser's error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from nnmf_cuda.evaluation.metrics import (
    METRIC_NAMES,
    Metrics,
    check_labels,
    classification_metrics,
    majority_class_accuracy,
)
from nnmf_cuda.models.networks import frozen


def device_of(model: nn.Module) -> torch.device:
    """Return where a model's parameters live."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def predict_probabilities(
    model: nn.Module,
    x: ArrayLike | Tensor,
    *,
    batch_size: int = 1024,
    generator: torch.Generator | None = None,
) -> NDArray[np.float64]:
    """Return the softmax (n_samples, n_classes) of a model's logits, in float64, no gradients.

    Parameters
    ----------
    model : nn.Module
        ``model(x)`` gives logits (n, n_classes); runs in evaluation mode on its own device.
    x : array-like or Tensor of shape (n_samples, n_features)
        Features; read as float32.
    batch_size : int, default=1024
        Rows a call. The noise of a random model depends on it.
    generator : torch.Generator, optional
        Passed on as ``model(x, generator=generator)``: for models that draw noise.

    Raises
    ------
    ValueError
        If ``x`` is not two-dimensional, is empty, or the logits are not finite.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}; need at least 1")
    features = read_features(x, device_of(model), name="x")
    options = {} if generator is None else {"generator": generator}
    with frozen(model), torch.no_grad():
        starts = range(0, len(features), batch_size)
        logits = torch.cat([model(features[i : i + batch_size], **options) for i in starts])
    if not torch.isfinite(logits).all():
        raise ValueError("the model returned NaN or infinite logits; check its weights and x")
    return logits.double().softmax(dim=1).cpu().numpy()


def read_features(
    x: ArrayLike | Tensor, device: torch.device, *, name: str, n_samples: int | None = None
) -> Tensor:
    """Return x (n_samples, n_features), not empty, as float32 on a device."""
    features = torch.as_tensor(x if isinstance(x, Tensor) else np.asarray(x)).detach()
    if features.ndim != 2 or not features.numel() or len(features) != (n_samples or len(features)):
        raise ValueError(
            f"{name} has shape {tuple(features.shape)}; give ({n_samples or 'n_samples'}, "
            "n_features), not empty"
        )
    return features.to(device, torch.float32)


ROW_NAMES = ("Clean_Baseline", "Clean_Defended", "Robust_Baseline", "Robust_Defended")
"""Rows of the paper's table, in its order."""


@dataclass(frozen=True)
class EvaluatedRows:
    """What `evaluate_rows` found.

    Attributes
    ----------
    rows : dict of str to Metrics
        For each of `ROW_NAMES`. A defended row is the mean over ``n_predictions`` predictions of
        each metric.
    spread : dict of str to dict
        For each defended row the standard deviation (ddof 1) of each metric over those
        predictions: how much one prediction's figures move with the noise. It says nothing about
        the uncertainty that comes from the number of samples.
    probabilities : dict of str to array of shape (n_predictions, n_samples, n_classes)
        Softmax probabilities behind each row; one prediction for the baseline.
    labels : array of shape (n_samples,)
        True classes.
    n_predictions : int
        Predictions behind each defended row.
    """

    rows: dict[str, Metrics]
    spread: dict[str, dict[str, float]]
    probabilities: dict[str, NDArray[np.float64]]
    labels: NDArray[np.int64]
    n_predictions: int

    def as_dict(self, *, notes: Sequence[str] = ()) -> dict[str, Any]:
        """Return the content of ``metrics.json``."""
        return {
            "rows": {name: row.as_dict() for name, row in self.rows.items()},
            "spread": self.spread,
            "n_predictions": self.n_predictions,
            "majority_class_accuracy": majority_class_accuracy(self.labels),
            "notes": list(notes),
        }


def evaluate_rows(
    baseline: nn.Module,
    defended: nn.Module,
    x_clean: ArrayLike | Tensor,
    x_adv_baseline: ArrayLike | Tensor,
    x_adv_defended: ArrayLike | Tensor,
    labels: ArrayLike,
    *,
    seed: int,
    n_predictions: int = 20,
    batch_size: int = 1024,
    random: bool = True,
) -> EvaluatedRows:
    """Evaluate both models on clean and on attacked features.

    The paper prints one prediction for each defended row. Here both defended rows (clean and
    attacked) are the mean of each metric over ``n_predictions`` predictions with noise of their
    own, unknown to the attack; the standard deviation stands in ``spread``. The Robust rows are
    fresh predictions on the attacked features, not the attack's own success flags.

    Parameters
    ----------
    baseline : nn.Module
        ``baseline(x)`` gives logits.
    defended : nn.Module
        ``defended(x, generator=generator)`` gives logits; draws its noise from the generator.
    x_clean, x_adv_baseline, x_adv_defended : array-like or Tensor (n_samples, n_features)
        Clean features, and those returned by the attack on each model.
    labels : array-like of int, shape (n_samples,)
        True classes.
    seed : int
        Of the generator from which all defended predictions draw.
    n_predictions, batch_size : int, default=20, 1024
        Predictions for each defended row, and rows a call.
    random : bool, default=True
        False for a defence without noise: called as ``defended(x)``, and once is enough.

    Raises
    ------
    ValueError
        If lengths disagree, ``n_predictions < 1``, or a class has no sample.
    """
    y = check_labels(labels)
    if n_predictions < 1:
        raise ValueError(f"n_predictions={n_predictions}; need at least 1")
    if not random:
        n_predictions = 1
    models, device = (baseline, defended) * 2, device_of(defended)
    names = ("x_clean", "x_clean", "x_adv_baseline", "x_adv_defended")
    given = (x_clean, x_clean, x_adv_baseline, x_adv_defended)
    inputs = [
        read_features(x, device, name=name, n_samples=len(y))
        for name, x in zip(names, given, strict=True)
    ]
    generator = torch.Generator(device).manual_seed(seed) if random else None
    rows, spread, probabilities = {}, {}, {}
    for name, model, x in zip(ROW_NAMES, models, inputs, strict=True):
        is_defended = name.endswith("Defended")
        draws = [
            predict_probabilities(
                model, x, batch_size=batch_size, generator=generator if is_defended else None
            )
            for _ in range(n_predictions if is_defended else 1)
        ]
        probabilities[name] = np.stack(draws)
        rows[name], deviation = _mean_and_spread(y, draws)
        if is_defended:
            spread[name] = deviation
    return EvaluatedRows(rows, spread, probabilities, y, n_predictions)


def _mean_and_spread(
    labels: NDArray[np.int64], draws: Sequence[NDArray[np.float64]]
) -> tuple[Metrics, dict[str, float]]:
    """Return mean and standard deviation of each metric over predictions (n_samples, n_classes)."""
    table = [classification_metrics(labels, p) for p in draws]
    values = {name: np.array([row[name] for row in table]) for name in METRIC_NAMES}
    mean = {name: float(value.mean()) for name, value in values.items()}
    ddof = 1 if len(table) > 1 else 0
    spread = {name: float(value.std(ddof=ddof)) for name, value in values.items()}
    return Metrics(**mean, n=len(labels)), spread


@dataclass(frozen=True)
class DenoisingError:
    """Mean squared errors at several noise levels, each an array of shape (n_levels,).

    A denoiser that helps lies below both other errors.

    Attributes
    ----------
    t, sigma : array of float
        Timesteps, counted from 0, and their sqrt(1 - alphas_cumprod[t]).
    mse_noisy, mse_denoised, mse_mean : array of float
        Errors of x_t / sqrt(alphas_cumprod[t]), left as it is, of the denoiser's answer, and of
        always answering the mean of the clean features.
    """

    t: NDArray[np.float64]
    sigma: NDArray[np.float64]
    mse_noisy: NDArray[np.float64]
    mse_denoised: NDArray[np.float64]
    mse_mean: NDArray[np.float64]


def denoising_error(
    denoiser: nn.Module,
    alphas_cumprod: ArrayLike | Tensor,
    x_start: ArrayLike | Tensor,
    *,
    seed: int,
    timesteps: Sequence[int] | None = None,
    n_draws: int = 8,
) -> DenoisingError:
    """Measure the mean squared error of one-shot denoising against the noise level.

    Parameters
    ----------
    denoiser : nn.Module
        ``denoiser(x_t, t)`` predicts x_start.
    alphas_cumprod : array-like of shape (num_timesteps,)
        Of the noise schedule.
    x_start : array-like or Tensor of shape (n_samples, n_features)
        Clean features, best not those the denoiser was trained on.
    seed : int
        Of the noise.
    timesteps : sequence of int, optional
        Indices counted from 0; by default up to 25 whose noise levels are evenly spread.
    n_draws : int, default=8
        Noise draws a sample and level.
    """
    device = device_of(denoiser)
    x = read_features(x_start, device, name="x_start")
    schedule = torch.as_tensor(alphas_cumprod, dtype=torch.float64).cpu()
    sigma = (1 - schedule).sqrt().numpy()
    if timesteps is None:
        targets = np.linspace(sigma[0], sigma[-1], 25)
        nearest = np.abs(sigma[None, :] - targets[:, None]).argmin(axis=1)
        timesteps = np.unique(nearest).tolist()
    outside = [t for t in timesteps if not 0 <= t < len(schedule)]
    if outside:
        raise ValueError(f"timesteps holds {outside}; the schedule has 0..{len(schedule) - 1}")
    generator = torch.Generator(device).manual_seed(seed)
    clean = x.repeat(n_draws, 1)
    noisy_errors, denoised_errors = [], []
    with frozen(denoiser), torch.no_grad():
        for t in timesteps:
            kept = float(schedule[t])
            noise = torch.randn(clean.shape, generator=generator, device=device)
            x_t = kept**0.5 * clean + (1 - kept) ** 0.5 * noise
            index = torch.full((len(clean),), t, dtype=torch.int64, device=device)
            noisy_errors.append(float((x_t / kept**0.5 - clean).square().mean()))
            denoised_errors.append(float((denoiser(x_t, index) - clean).square().mean()))
    return DenoisingError(
        t=np.asarray(timesteps, dtype=np.float64),
        sigma=sigma[list(timesteps)],
        mse_noisy=np.array(noisy_errors),
        mse_denoised=np.array(denoised_errors),
        mse_mean=np.full(len(timesteps), float((x - x.mean(0)).square().mean())),
    )
