"""The kernels as functions of tensors; see `nnmf_cuda.show_config` for what serves each of them.

Every op runs on the device of its arguments: by a compiled kernel where there is one, otherwise
by the plain-torch reference. All are functional: no argument is modified.
"""

from __future__ import annotations

from nnmf_cuda.ops._schema import is_reference_path, reference_path
from nnmf_cuda.ops.defence import defended_logits, feature_cnn, purify
from nnmf_cuda.ops.nnls import nnls, project
from nnmf_cuda.ops.nnmf import (
    EPSILON,
    beta_loss_to_float,
    nnmf_divergence,
    nnmf_hals,
    nnmf_mu,
)
from nnmf_cuda.ops.philox import philox_normal
from nnmf_cuda.ops.training import train_feature_cnn_epoch, train_mlp_epoch

__all__ = [
    "EPSILON",
    "beta_loss_to_float",
    "defended_logits",
    "feature_cnn",
    "is_reference_path",
    "nnls",
    "nnmf_divergence",
    "nnmf_hals",
    "nnmf_mu",
    "philox_normal",
    "project",
    "purify",
    "reference_path",
    "train_feature_cnn_epoch",
    "train_mlp_epoch",
]
