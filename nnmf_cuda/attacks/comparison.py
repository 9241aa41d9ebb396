"""Two results of an attack on the same samples, side by side."""

from __future__ import annotations

from dataclasses import dataclass

from nnmf_cuda.attacks.autoattack import AttackResult

__all__ = ["AttackComparison", "compare_attacks"]


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
