"""Proofs of answers in pixels, where a system is a network on NNMF features that can be verified.

A proof about features becomes one about images by the Lipschitz constant of the projection; see
`nnmf_cuda.evaluation.certify_pixels`.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnmf_cuda.evaluation import certify_pixels
from nnmf_cuda.models.features import FeatureExtractor
from nnmf_cuda.robustness import verify
from nnmf_cuda.robustness.verification_task import weights_to_verify

FEATURE_RADII = (0.01, 0.02, 0.05, 0.1, 0.2)
"""Linf radii in features that are tried, growing; the largest that is proven counts."""


@runtime_checkable
class DefendsFeatures(Protocol):
    """A system that projects images to features, which a network answers."""

    extractor_: FeatureExtractor
    defence_: nn.Module


def certified_linf(system: object, images: Tensor, y: Tensor) -> NDArray[np.float64] | None:
    """Return Linf radii (n,) in pixels in which each answer is proven right; 0 where it is not.

    Images (n, height * width) are in [0, 1]. Only bounds of whole balls are used, no search, so
    that it takes seconds: `nnmf-cuda verify` proves more. None where the system's network cannot
    be verified, as a random one cannot.
    """
    if not isinstance(system, DefendsFeatures):
        return None
    try:
        weights_to_verify(system.defence_)
    except ValueError:
        return None
    with torch.no_grad():
        features = system.extractor_(images).clamp(0, 1)
    radii = torch.zeros(len(y), dtype=torch.float64)
    rows = torch.arange(len(y))
    for eps in FEATURE_RADII:
        if not len(rows):
            break
        found = verify(system.defence_, features[rows], y[rows], eps=eps, seconds=0)
        rows = rows[torch.from_numpy(found.proven)]
        radii[rows] = eps
    return certify_pixels(system.extractor_, images, radii.to(images.device)).linf
