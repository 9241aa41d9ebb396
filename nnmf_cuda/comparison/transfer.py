"""Transfer: how each system answers to points that were found against every other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from nnmf_cuda.baselines import ImageClassifier
from nnmf_cuda.comparison.measure import Finished, SplitImages, interval_of
from nnmf_cuda.comparison.victims import Victim
from nnmf_cuda.evaluation.compared import Transfer
from nnmf_cuda.evaluation.seeds import Purpose, seed_word

STRONGEST = "strongest"
"""What the main attack is called in `Transfer.attack`."""


def measure_transfer(
    split: SplitImages,
    finished: Mapping[str, Finished],
    load: Callable[[str], ImageClassifier],
    *,
    eps_255: float,
    seed: int,
    each: Callable[[str], object] = lambda name: None,
) -> list[Transfer]:
    """Ask every system about the points of every other: a matrix for each attack.

    `load` returns a fitted system by its name, of which one is held at a time; `each` is told when
    one has answered. The main attack's matrix has all systems, those of FGSM and PGD the systems
    that such points were found against.
    """
    attacks = list(dict.fromkeys(name for found in finished.values() for name in found.points))
    of_attack = {
        attack: [name for name, found in finished.items() if attack in found.points]
        for attack in attacks
    }
    right: dict[str, dict[tuple[str, str], NDArray[np.bool_]]] = {name: {} for name in attacks}
    for target in finished:
        word = seed_word(seed, Purpose.DECISIONS)
        victim = Victim(load(target), split.dataset.image_shape, seed=word)
        _, y = split.rows(victim.device)
        for attack, names in of_attack.items():
            for source in names if target in names else ():
                points = torch.from_numpy(finished[source].points[attack]).to(victim.device)
                right[attack][source, target] = victim.right(points, y).cpu().numpy()
        each(target)
    return [
        _matrix(attack, names, right[attack], finished, split, eps_255, seed)
        for attack, names in of_attack.items()
    ]


def _matrix(
    attack: str,
    names: Sequence[str],
    right: Mapping[tuple[str, str], NDArray[np.bool_]],
    finished: Mapping[str, Finished],
    split: SplitImages,
    eps_255: float,
    seed: int,
) -> Transfer:
    worst = {}
    if not attack:
        for target in names:
            held = np.logical_and.reduce([right[source, target] for source in names])
            worst[target] = interval_of(held & finished[target].held, split, seed)
    return Transfer(
        attack=attack or STRONGEST,
        eps_255=eps_255,
        split=split.name,
        seed=seed,
        n=len(split.attacked),
        sources=tuple(names),
        targets=tuple(names),
        accuracy=tuple(tuple(float(right[a, b].mean()) for b in names) for a in names),
        worst=worst,
    )
