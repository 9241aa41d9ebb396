"""Training of classifier and denoiser: reproducible, no hidden random state.

`classifier`, `denoiser`, `adversarial`, `joint` and `pixels` say what is learnt, `loop` goes
through the epochs and keeps the best, `epochs` makes the steps of one of them: in plain torch, in
one compiled call, or as a CUDA graph.
"""

from __future__ import annotations

from nnmf_cuda.training.adversarial import train_robust_classifier
from nnmf_cuda.training.classifier import train_classifier
from nnmf_cuda.training.denoiser import train_denoiser
from nnmf_cuda.training.joint import train_joint_classifier
from nnmf_cuda.training.loop import TrainingResult
from nnmf_cuda.training.pixels import ImageSamples, train_pixel_classifier

__all__ = [
    "ImageSamples",
    "TrainingResult",
    "train_classifier",
    "train_denoiser",
    "train_joint_classifier",
    "train_pixel_classifier",
    "train_robust_classifier",
]
