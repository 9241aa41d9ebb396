"""AutoAttack's pieces on feature vectors, with what it says about itself kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nnmf_cuda.attacks.autoattack.backend import (
    AttackSettings,
    AutoAttackBackend,
    Meter,
    expected_calls,
)
from nnmf_cuda.attacks.balls import Threat
from nnmf_cuda.attacks.checks import (
    Array,
    check_features,
    check_labels,
    check_logits,
    check_settings,
    gradient_report,
)
from nnmf_cuda.graphs import count_on_host
from nnmf_cuda.models.networks import deterministic_convolutions, frozen, isolated

LAYOUT = "(N, M, 1, 1), the weakest for Square"


@dataclass(frozen=True)
class AttackResult:
    """What an attack found, and how.

    Attributes
    ----------
    x_adv : Tensor of shape (n_samples, n_features)
        float32 in [0, 1], on the device of the given features. A sample on which no attack
        succeeded, or which was wrong from the start, keeps its clean position.
    robust_flags : Tensor of shape (n_samples,)
        bool: right on the clean features and after every attack, by AutoAttack's count, which
        asks the model once each time. For a random model each asking is a new draw, so the count
        is pessimistic; but a sample once found wrong, or never found wrong, stays unmoved in
        `x_adv`, so fresh predictions on `x_adv` are optimistic. Report both.
    clean_accuracy : float
        Share that was right at AutoAttack's own first look.
    accuracy_after : dict of str to float
        Share still robust after each attack, in the order they ran.
    seconds : dict of str to float
        Time in each attack; 0 where no sample was left to attack.
    warnings : list of str
        AutoAttack's own checks on the kind of defence, verbatim.
    layout : str
        How the features were laid out as images, which Square's result depends on.
    max_perturbation : float
        Largest distance of a point from its clean position, in the attack's norm.
    grad_norm_mean, zero_gradient_share : float
        See `gradient_report`; on the clean features.
    n_clamped : int
        Entries of x that were outside [0, 1] by rounding (at most 1e-6) and were put on its edge.
    package : str
        Package that drove the attacks: "pyautoattack" or "autoattack".
    """

    x_adv: Tensor
    robust_flags: Tensor
    clean_accuracy: float
    accuracy_after: dict[str, float]
    seconds: dict[str, float]
    warnings: list[str]
    layout: str
    max_perturbation: float
    grad_norm_mean: float
    zero_gradient_share: float
    n_clamped: int
    package: str


def run_autoattack(
    model: nn.Module,
    x: Array,
    y: Array,
    *,
    norm: str = "Linf",
    attack_eps: float = 0.10,
    attacks: Sequence[str] = ("apgd-ce", "square"),
    seed: int = 0,
    batch_size: int = 250,
    n_iter: int = 100,
    n_restarts: int = 5,
    n_queries: int = 5000,
    eot_iter: int = 1,
    progress: bool = False,
) -> AttackResult:
    """Attack a classifier of feature vectors with AutoAttack's custom version.

    This is not "AutoAttack standard": that needs the DLR loss, which two classes do not have.

    "apgd-ce" and "square" run in loops of our own, which draw the package's random numbers and so
    find its points, at a fraction of its cost a step; inside `nnmf_cuda.ops.reference_path` the
    package's own run. `compare_attacks` compares the two.

    Parameters
    ----------
    model : nn.Module
        Maps features (n_samples, n_features) to logits (n_samples, n_classes), differentiably.
        Attacked in evaluation mode; its modes and `requires_grad` flags are restored.
    x : array of shape (n_samples, n_features)
        Features in [0, 1]; attacked in float32.
    y : array of shape (n_samples,)
        Labels in 0..n_classes-1.
    norm : {"Linf", "L2"}, default="Linf"
        Norm that bounds the perturbation ("L2" without Square).
    attack_eps : float, default=0.10
        The bound, in units of the features.
    attacks : sequence of str, default=("apgd-ce", "square")
        Of "apgd-ce", "apgd-dlr" (3 classes or more), "apgd-t" (4 or more), "fab", "fab-t",
        "square"; run in this order, each on the samples that are still right.
    seed : int, default=0
        Same seed, same points. The global random state is restored.
    batch_size : int, default=250
        Samples per call. AutoAttack restarts its random numbers with every batch, so points
        depend on it.
    n_iter, n_restarts, eot_iter : int, default=100, 5, 1
        Steps of APGD and FAB, random starts of "apgd-ce" and "apgd-dlr", gradients that APGD
        averages at each step of a random model.
    n_queries : int, default=5000
        Queries of Square.
    progress : bool, default=False
        Show a bar for each attack, if the standard error is a terminal.

    Returns
    -------
    AttackResult

    Raises
    ------
    TypeError, ValueError
        If x leaves the box, or labels, settings, attacks or logits do not fit.
    RuntimeError
        If the model has no gradient or only zero gradients, or a point broke the bound.
    ImportError
        If neither pyautoattack nor autoattack is installed.

    References
    ----------
    .. [1] Croce & Hein (2020), Reliable evaluation of adversarial robustness with an ensemble of
       diverse parameter-free attacks, ICML.
    .. [2] Andriushchenko, Croce, Flammarion & Hein (2020), Square Attack: a query-efficient
       black-box adversarial attack via random search, ECCV.

    Examples
    --------
    >>> result = run_autoattack(classifier, features, labels, attack_eps=0.1)
    >>> result.accuracy_after["square"], result.seconds["apgd-ce"]
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    budget = {"n_iter": n_iter, "n_restarts": n_restarts, "n_queries": n_queries}
    budget["eot_iter"] = eot_iter
    threat = Threat(float(attack_eps), norm)
    check_settings(attacks, norm=norm, seed=seed, batch_size=batch_size, **budget)
    features, n_clamped = check_features(x)
    labels = check_labels(y, len(features))
    home = features.device
    device = next((p.device for p in model.parameters()), home)
    features, labels = features.to(device), labels.to(device)

    meter = Meter(device, expected_calls(**budget), progress=progress)
    target = _FeaturesAsImages(model, meter)
    with isolated(seed), frozen(model), deterministic_convolutions():
        with torch.no_grad():
            logits = model(features[:batch_size].to(target.dtype))
        n_classes = check_logits(logits, len(features[:batch_size]), attacks, labels)
        gradient = gradient_report(model, features.to(target.dtype), labels, batch_size=batch_size)
        if gradient.zero_gradient_share == 1:
            raise ValueError(
                "the gradient of the model is exactly zero on every sample (saturated or "
                "piecewise constant): gradient attacks would find nothing and robustness would "
                "look better than it is"
            )
        settings = AttackSettings(
            threat=threat,
            attacks=tuple(attacks),
            n_classes=n_classes,
            seed=int(seed),
            device=device,
            batch_size=batch_size,
            **budget,
        )
        backend = AutoAttackBackend(target, settings, meter)
        images, y_adv = backend.run(features[:, :, None, None], labels)
    x_adv = images.flatten(1)
    robust_flags = y_adv == labels
    # What an attack left is what the next one was given.
    left = [meter.rows.get(name, 0) for name in attacks[1:]] + [int(robust_flags.sum())]
    return AttackResult(
        x_adv=x_adv.to(home),
        robust_flags=robust_flags.to(home),
        clean_accuracy=meter.rows.get(attacks[0], 0) / len(features),
        accuracy_after={a: n / len(features) for a, n in zip(attacks, left, strict=True)},
        seconds={name: meter.seconds.get(name, 0.0) for name in attacks},
        warnings=backend.log.warnings,
        layout=LAYOUT,
        max_perturbation=threat.check_points(x_adv, features, attack="AutoAttack"),
        grad_norm_mean=gradient.grad_norm_mean,
        zero_gradient_share=gradient.zero_gradient_share,
        n_clamped=n_clamped,
        package=backend.package,
    )


class _FeaturesAsImages(nn.Module):
    """The model as attacks want it: (N, M, 1, 1) or (N, M) float32 in, float32 logits out."""

    def __init__(self, model: nn.Module, meter: Meter) -> None:
        super().__init__()
        self.model = model
        self.meter = meter
        floating = (p.dtype for p in model.parameters() if p.is_floating_point())
        self.dtype = next(floating, torch.float32)

    def forward(self, images: Tensor) -> Tensor:
        count_on_host(self.meter.count_call)
        logits: Tensor = self.model(images.flatten(1).to(self.dtype))
        return logits.float()


@dataclass(frozen=True)
class AttackComparison:
    """How far two results of an attack agree.

    Attributes
    ----------
    n_samples : int
        Samples that were compared.
    differing_decisions : float
        Share of samples that are robust in one result and broken in the other.
    equal_points : float
        Share of samples whose points are equal in every bit of every feature.
    max_difference, mean_difference : float
        Largest and mean absolute difference over all features of all points.
    """

    n_samples: int
    differing_decisions: float
    equal_points: float
    max_difference: float
    mean_difference: float


def compare_attacks(a: AttackResult, b: AttackResult) -> AttackComparison:
    """Compare two attacks on the same samples, say one inside `nnmf_cuda.ops.reference_path`.

    Parameters
    ----------
    a, b : AttackResult
        Of the same samples in the same order; devices may differ.

    Returns
    -------
    AttackComparison

    Raises
    ------
    ValueError
        If the results are of different numbers of samples or features.

    Examples
    --------
    >>> attacked = run_autoattack(classifier, features, labels)
    >>> with nnmf_cuda.ops.reference_path():
    ...     plain = run_autoattack(classifier, features, labels)
    >>> compare_attacks(attacked, plain).differing_decisions
    0.0
    """
    if a.x_adv.shape != b.x_adv.shape:
        raise ValueError(
            "a and b must be attacks on the same samples, got points of shapes "
            f"{tuple(a.x_adv.shape)} and {tuple(b.x_adv.shape)}"
        )
    difference = (a.x_adv.cpu().double() - b.x_adv.cpu().double()).abs()
    differing = a.robust_flags.cpu() != b.robust_flags.cpu()
    return AttackComparison(
        n_samples=len(difference),
        differing_decisions=float(differing.double().mean()),
        equal_points=float((difference == 0).all(1).double().mean()),
        max_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
    )
