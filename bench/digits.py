"""SNnet beside a PCANet of the same size, on scikit-learn's digits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench.measure import elapsed_or_own, quartiles
from nnmf_cuda.benchmarks.records import MEASURED, Record, Recorder

__all__ = ["NETWORKS", "run_digits_benchmarks"]

NETWORKS = {"pca": "PCANet", "semi-nmf": "SNnet", "graph": "S-SNnet"}
"""What the filters are called, and the network with them."""
_SEEDS = (0, 1, 2, 3, 4)
_SIZES = ((3, (6, 6)), (5, (6, 6)), (5, (8, 8)))
"""Side of a patch, filters of the two stages."""
_BLOCK = 4
_N_DIGITS, _N_PIXELS = 1797, 64
_SHARES = {"train": 0.6, "valid": 0.2, "test": 0.2}
_EXTRA = ("accuracy", "accuracies", "valid_accuracy", "valid_accuracies", "beside_pcanet")


@dataclass
class _Found:
    """What one network of one size had on each split."""

    valid: list[float] = field(default_factory=list)
    test: list[float] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)


def run_digits_benchmarks(
    *,
    smoke: bool = False,
    json_path: str | Path | None = None,
    progress: bool = False,
) -> list[Record]:
    """Train PCANet, SNnet and S-SNnet of three sizes on five random splits of the digits.

    The 1797 digits of 8 x 8 pixels that come with scikit-learn, 60 % for training, 20 % for
    validation and 20 % for the test, with all digits in each as often as in the whole. Writers are
    not known, so that a writer may be in all three parts. The size is the one whose PCANet has the
    highest mean accuracy on the validation parts; the test parts count for that size alone. All
    other settings are those of `nnmf_cuda.baselines.SNnet`, with blocks of 4 pixels.

    Parameters
    ----------
    smoke, json_path, progress
        As for `run_kernel_benchmarks`.

    Returns
    -------
    list of dict
        Records as of `run_kernel_benchmarks`, one for each network and size, with
        ``valid_accuracies`` of the splits and ``valid_accuracy``, their mean; for the chosen size
        also ``accuracies`` and ``accuracy`` on the test parts, and ``beside_pcanet``, the
        difference of that to the accuracy of PCANet. Times are those of `fit`.
    """
    from tqdm import tqdm

    recorder = Recorder("digits", device=torch.device("cpu"), smoke=smoke, json_path=json_path)
    sizes, seeds = (_SIZES[:1], _SEEDS[:2]) if smoke else (_SIZES, _SEEDS)
    found: dict[tuple[int, tuple[int, int]], dict[str, _Found]] = {}
    total = len(sizes) * len(NETWORKS) * len(seeds)
    with tqdm(total=total, desc="bench", disable=None if progress else True) as bar:
        for size in sizes:
            found[size] = {name: _found(name, size, seeds, smoke, bar.update) for name in NETWORKS}
    chosen = max(found, key=lambda size: float(np.mean(found[size]["pca"].valid)))
    for (patch, n_filters), networks in found.items():
        is_chosen = (patch, n_filters) == chosen
        for name, one in networks.items():
            test = one.test if is_chosen else None
            recorder.add(
                op="classification",
                size="smoke" if smoke else "digits",
                served_by="estimator",
                shape={
                    "n_samples": _N_DIGITS,
                    "n_features": _N_PIXELS,
                    "patch": patch,
                    "filters": n_filters[0],
                    "of maps": n_filters[1],
                },
                dtype="float32",
                options={"block": _BLOCK, "seeds": list(seeds), "shares": _SHARES},
                impl=NETWORKS[name],
                **{
                    **MEASURED,
                    **dict.fromkeys(_EXTRA),
                    "status": "ok",
                    **quartiles(one.milliseconds),
                    "valid_accuracies": one.valid,
                    "valid_accuracy": float(np.mean(one.valid)),
                    "accuracies": test,
                    "accuracy": None if test is None else float(np.mean(test)),
                    "beside_pcanet": None
                    if test is None
                    else float(np.mean(test) - np.mean(networks["pca"].test)),
                },
            )
    return recorder.records


def _found(
    filters: Any,
    size: tuple[int, tuple[int, int]],
    seeds: tuple[int, ...],
    smoke: bool,
    done: Callable[[], object],
) -> _Found:
    from nnmf_cuda.baselines import SNnet

    found = _Found()
    quick: dict[str, Any] = {"n_patches": 2000, "max_iter": 10} if smoke else {}
    for seed in seeds:
        images, labels, parts = _digits(seed)
        model = SNnet(
            filters,
            patch_size=size[0],
            n_filters=size[1],
            block_size=_BLOCK,
            image_size=None,
            random_state=seed,
            **quick,
        )
        given = images[parts["train"]], labels[parts["train"]]
        found.milliseconds.append(1e3 * elapsed_or_own(partial(model.fit, *given)))
        for part, accuracies in (("valid", found.valid), ("test", found.test)):
            right = model.predict(images[parts[part]]) == labels[parts[part]]
            accuracies.append(float(right.mean()))
        done()
    return found


def _digits(
    seed: int,
) -> tuple[NDArray[np.float32], NDArray[np.int64], dict[str, NDArray[np.int64]]]:
    """Return the digits in [0, 1], their labels, and the parts of a random split."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    labels = data.target.astype(np.int64)
    train, others = train_test_split(
        np.arange(len(labels)), train_size=_SHARES["train"], stratify=labels, random_state=seed
    )
    valid, test = train_test_split(
        others, test_size=0.5, stratify=labels[others], random_state=seed
    )
    return (data.images / 16).astype(np.float32), labels, dict(train=train, valid=valid, test=test)
