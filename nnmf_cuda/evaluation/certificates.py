"""Certified radii by randomised smoothing, with the one-shot denoiser or with plain noise.

`certify` lets a `BaseClassifier` vote on noisy copies of each sample, and turns a clear majority
into a radius.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from nnmf_cuda import ops
from nnmf_cuda.evaluation.metrics import check_labels
from nnmf_cuda.evaluation.rows import device_of, read_features
from nnmf_cuda.models.defended import DefendedClassifier
from nnmf_cuda.models.diffusion import DiffusionPurifier
from nnmf_cuda.models.networks import frozen

ABSTAINED = -1
"""The prediction of a smoothed classifier that cannot tell which class is the likeliest."""

_SELECTION, _ESTIMATION = 0, 1
"""Words of the seeds of a sample's two sets of draws."""

_ENTRIES = 2**21
"""Numbers of features held at a time."""


@dataclass(frozen=True)
class Certificate:
    """What `certify` found.

    Attributes
    ----------
    predictions : array of shape (n_samples,)
        Class of the smoothed classifier, or `ABSTAINED`.
    radii : array of shape (n_samples,)
        L2 radius around each sample within which the smoothed classifier's answer is
        ``predictions``, right or wrong; 0 where it abstained.
    labels : array of shape (n_samples,)
        True classes.
    sigma : float
        Standard deviation of the noise, in units of the features.
    n_features, n_selection, n_estimation, alpha
        Dimension d of the features, and the arguments of `certify`.
    """

    predictions: NDArray[np.int64]
    radii: NDArray[np.float64]
    labels: NDArray[np.int64]
    sigma: float
    n_features: int
    n_selection: int
    n_estimation: int
    alpha: float

    @property
    def abstained(self) -> NDArray[np.bool_]:
        """Where there is no answer, which counts as an error."""
        return np.equal(self.predictions, ABSTAINED)

    @property
    def right(self) -> NDArray[np.bool_]:
        """Where the smoothed classifier names the true class."""
        return np.equal(self.predictions, self.labels)

    @property
    def linf_equivalent(self) -> NDArray[np.float64]:
        """Largest Linf ball inside each L2 ball: radii / sqrt(n_features)."""
        return self.radii / math.sqrt(self.n_features)

    @property
    def max_radius(self) -> float:
        """The radius of a sample all of whose draws agree: no sample can have a larger one."""
        return self.sigma * _lowest_quantile(self.n_estimation, self.n_estimation, self.alpha)

    def certified_accuracy(self, radii: ArrayLike) -> NDArray[np.float64]:
        """Return the share of samples that are right, with at least each of the L2 radii.

        At 0 this is the clean accuracy of the smoothed classifier. The result has the shape of
        `radii`; none of them may be negative or NaN.
        """
        wanted = np.asarray(radii, dtype=np.float64)
        if not (wanted >= 0).all():
            raise ValueError(f"radii={wanted}; give L2 radii of 0 or more")
        reached: NDArray[np.float64] = np.where(self.right, self.radii, -1.0)
        return np.asarray((reached >= wanted[..., None]).mean(axis=-1), dtype=np.float64)

    def certified_accuracy_linf(self, attack_eps: ArrayLike) -> NDArray[np.float64]:
        """Return `certified_accuracy` in Linf balls: an L2 radius of attack_eps * sqrt(d) each."""
        eps = np.asarray(attack_eps, dtype=np.float64)
        return self.certified_accuracy(eps * math.sqrt(self.n_features))

    def holds_within(self, attack_eps: float, norm: str) -> NDArray[np.bool_]:
        """Return which samples (n_samples,) are right and certified in an "Linf" or "L2" ball."""
        radius = attack_eps * (math.sqrt(self.n_features) if norm == "Linf" else 1.0)
        return self.right & (self.radii >= radius)

    def as_dict(self, *, n_points: int = 21) -> dict[str, Any]:
        """Return settings, the curve of `certified_accuracy` and each radius, for JSON."""
        grid = np.linspace(0, max(self.max_radius, 0.0), n_points)
        return {
            "method": "randomised smoothing, L2",
            "sigma": self.sigma,
            "n_selection": self.n_selection,
            "n_estimation": self.n_estimation,
            "alpha": self.alpha,
            "n": len(self.labels),
            "n_features": self.n_features,
            "clean_accuracy": float(self.right.mean()),
            "abstained_share": float(self.abstained.mean()),
            "mean_certified_radius": float(np.where(self.right, self.radii, 0.0).mean()),
            "max_radius": self.max_radius,
            "max_linf_equivalent": self.max_radius / math.sqrt(self.n_features),
            "curve": {
                "radius": grid.tolist(),
                "linf_equivalent": (grid / math.sqrt(self.n_features)).tolist(),
                "certified_accuracy": self.certified_accuracy(grid).tolist(),
            },
            "predictions": self.predictions.tolist(),
            "radii": self.radii.tolist(),
        }


def certify(
    defended: nn.Module,
    x: ArrayLike | Tensor,
    y: ArrayLike,
    *,
    sigma: float | None = None,
    n_selection: int = 100,
    n_estimation: int = 10_000,
    alpha: float = 1e-3,
    seed: int,
) -> Certificate:
    """Certify the smoothed version of a model: the class that most noisy copies of x get.

    Parameters
    ----------
    defended : DefendedClassifier or nn.Module
        A defended model whose purifier has a single timestep. Its draws vote one by one, hard; the
        mean of K draws' logits, which the model itself answers with, is not what is certified.
        Any other module, ``model(x)`` giving logits, is certified behind plain noise, without a
        denoiser: what the denoiser is to be compared with.
    x : array-like or Tensor of shape (n_samples, n_features)
        Features, read as float32.
    y : array-like of int, shape (n_samples,)
        True classes.
    sigma : float, optional
        Noise of the second form. That of a defended model follows from its timestep t:
        sqrt((1 - alphas_cumprod[t]) / alphas_cumprod[t]), as x_t / sqrt(alphas_cumprod[t]) is
        x + sigma * noise.
    n_selection, n_estimation : int, default=100, 10_000
        Draws that choose the class of each sample, and further draws, of other noise, that bound
        this class's probability from below.
    alpha : float, default=1e-3
        Each sample's certificate fails with at most this probability over the draws.
    seed : int
        0 or more. The noise of a sample depends on it and on the sample's place in x alone.

    Raises
    ------
    ValueError
        If the defended model has several timesteps, logits are not finite, or another argument is
        not as described.

    Notes
    -----
    Cohen et al.'s CERTIFY. With p the one-sided Clopper-Pearson bound of the class's share, the
    radius is sigma times the normal quantile of p; with p at most 1/2 the model abstains. The
    radius is one in all of R^d: it takes no account of the box or of the features' unit length,
    which leave an adversary less.

    References
    ----------
    .. [1] Cohen, Rosenfeld & Kolter (2019), Certified adversarial robustness via randomized
       smoothing, ICML, theorem 1 and section 3.2.2.
    .. [2] Salman, Sun, Yang, Kapoor & Kolter (2020), Denoised smoothing, NeurIPS 33.
    .. [3] Carlini, Tramer, Dvijotham, Rice, Sun & Kolter (2023), (Certified!!) adversarial
       robustness for free!, ICLR, algorithm 1.

    Examples
    --------
    >>> import torch
    >>> flat = torch.nn.Linear(3, 2)
    >>> _ = flat.weight.data.copy_(torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]))
    >>> _ = flat.bias.data.zero_()
    >>> found = certify(flat, [[0.3, 5.0, 5.0]], [1], sigma=0.25, seed=0)  # 0.3 from the boundary
    >>> bool(0.25 < found.radii[0] < 0.3)
    True
    """
    base = base_classifier(defended, sigma)
    labels = check_labels(y)
    features = read_features(x, device_of(defended), name="x", n_samples=len(labels))
    if not bool(torch.isfinite(features).all()):
        raise ValueError("x holds NaN or infinity; give finite features")
    _check_counts(n_selection, n_estimation, alpha, seed)
    predictions = np.full(len(labels), ABSTAINED)
    radii = np.zeros(len(labels))
    with frozen(defended), frozen(base.model), torch.no_grad():
        for i, row in enumerate(features):
            chosen = int(base.votes(row, n_selection, (seed, i, _SELECTION)).argmax())
            n_chosen = int(base.votes(row, n_estimation, (seed, i, _ESTIMATION))[chosen])
            lowest = _lowest_quantile(n_chosen, n_estimation, alpha)
            if lowest > 0:
                predictions[i], radii[i] = chosen, base.sigma * lowest
    return Certificate(
        predictions=predictions,
        radii=radii,
        labels=labels,
        sigma=base.sigma,
        n_features=features.shape[1],
        n_selection=n_selection,
        n_estimation=n_estimation,
        alpha=alpha,
    )


def _lowest_quantile(k: int, n: int, alpha: float) -> float:
    """Return the normal quantile of Clopper & Pearson's lower bound of a share k / n.

    The bound is one-sided, of confidence 1 - alpha.
    """
    from scipy.special import ndtri
    from scipy.stats import binomtest

    interval = binomtest(k, n, alternative="greater").proportion_ci(1 - alpha, method="exact")
    return float(ndtri(interval.low))


def _check_counts(n_selection: int, n_estimation: int, alpha: float, seed: int) -> None:
    for name, value in (("n_selection", n_selection), ("n_estimation", n_estimation)):
        if value < 1:
            raise ValueError(f"{name}={value}; need at least 1 draw")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha={alpha}; need a value between 0 and 1, such as 0.001")
    if seed < 0:
        raise ValueError(f"seed={seed}; give 0 or more")
    if alpha ** (1 / n_estimation) <= 0.5:
        least = math.ceil(math.log(alpha) / math.log(0.5)) + 1
        raise ValueError(
            f"n_estimation={n_estimation} at alpha={alpha:g} abstains even where all draws agree; "
            f"give at least {least} draws"
        )


@dataclass(frozen=True)
class BaseClassifier:
    """Votes of a classifier on x + sigma * noise."""

    model: nn.Module  # model(x, noise=seed) noises each row once and gives logits
    sigma: float  # standard deviation of that noise, in units of the features

    def votes(self, x: Tensor, n_draws: int, seed: tuple[int, ...]) -> NDArray[np.int64]:
        """Count how often each class (n_classes,) is named for one sample (n_features,).

        Each draw of noise has one vote. Calls hold a number of draws that depends on n_features
        alone, so neither batches nor devices change what is drawn from the words of the seed.
        """
        size, counts = max(1, _ENTRIES // len(x)), []
        for call, start in enumerate(range(0, n_draws, size)):
            rows = x.repeat(min(size, n_draws - start), 1)
            words = np.random.SeedSequence([*seed, call]).generate_state(2, np.uint32)
            # 63 bits: what Philox takes
            logits = self.model(rows, noise=(int(words[0]) << 31) | (int(words[1]) >> 1))
            if not bool(torch.isfinite(logits).all()):
                raise ValueError("the model returned NaN or infinite logits; check its weights")
            counts.append(torch.bincount(logits.argmax(1), minlength=logits.shape[1]))
        return torch.stack(counts).sum(0).cpu().numpy()


class _Noised(nn.Module):
    """A classifier behind plain noise, called as a defended one is."""

    def __init__(self, classifier: nn.Module, sigma: float) -> None:
        super().__init__()
        self.classifier = classifier
        self.sigma = sigma

    def forward(self, x: Tensor, *, noise: int) -> Tensor:
        draws = ops.philox_normal(
            noise, (1, len(x), 1, x.shape[1]), dtype=x.dtype, device=x.device
        )[0, :, 0]
        logits: Tensor = self.classifier(x + self.sigma * draws)
        return logits


def base_classifier(defended: nn.Module, sigma: float | None) -> BaseClassifier:
    """Return the base classifier of a defended model, or of one behind plain noise."""
    if not isinstance(defended, DefendedClassifier):
        if sigma is None or not (sigma > 0 and math.isfinite(sigma)):
            raise ValueError(
                f"sigma={sigma}; a model other than a DefendedClassifier is certified behind plain "
                "noise: give sigma > 0, its standard deviation in units of the features"
            )
        return BaseClassifier(_Noised(defended, float(sigma)), float(sigma))
    if sigma is not None:
        raise ValueError(
            f"sigma={sigma} is given with a defended model, whose timestep sets its noise; "
            "leave sigma out, or give the classifier alone (model.classifier)"
        )
    purifier = defended.purifier
    steps = [int(t) for t in purifier.timesteps]
    if len(steps) != 1:
        raise ValueError(
            f"defended has timesteps {tuple(steps)}; a certificate needs a single one. Smoothing "
            "certifies a function of x + noise with one Gaussian draw; a chain is such a function "
            "only with its other draws counted in, and costs a call of the denoiser a step: make "
            "a DiffusionPurifier with timesteps=(t,)"
        )
    one_draw = DiffusionPurifier(purifier.denoiser, purifier.schedule, timesteps=steps, n_draws=1)
    model = DefendedClassifier(
        one_draw.to(purifier.alphas_cumprod.device), defended.classifier
    ).train(defended.training)
    return BaseClassifier(model, purifier.schedule.noise_level(steps[0]))
