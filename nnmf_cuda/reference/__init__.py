"""The ops in plain torch, formula first: the fallback of `nnmf_cuda.ops` and the truth in tests.

Every function here has the signature of the op of the same name (batch dimension always present)
and runs on any device in any floating dtype. Nothing here imports `nnmf_cuda.ops`.
"""

from __future__ import annotations

from nnmf_cuda.reference.defence import (
    defended_logits,
    defended_logits_backward,
    denoise,
    feature_cnn,
    feature_cnn_backward,
    purify,
    purify_backward,
    sinusoidal_embedding,
)
from nnmf_cuda.reference.nnls import nnls, nnls_backward, project
from nnmf_cuda.reference.nnmf import EPSILON, nnmf_divergence, nnmf_hals, nnmf_mu
from nnmf_cuda.reference.philox import philox_4x32, philox_normal
from nnmf_cuda.reference.training import train_feature_cnn_epoch, train_mlp_epoch

__all__ = [
    "EPSILON",
    "defended_logits",
    "defended_logits_backward",
    "denoise",
    "feature_cnn",
    "feature_cnn_backward",
    "nnls",
    "nnls_backward",
    "nnmf_divergence",
    "nnmf_hals",
    "nnmf_mu",
    "philox_4x32",
    "philox_normal",
    "project",
    "purify",
    "purify_backward",
    "sinusoidal_embedding",
    "train_feature_cnn_epoch",
    "train_mlp_epoch",
]
