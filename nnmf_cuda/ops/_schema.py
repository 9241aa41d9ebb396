"""One schema per op, with the reference as the fallback for every device.

The ops exist whether or not the extension was built: a compiled CPU or CUDA kernel registers
itself for its dispatch key and then outranks the reference (`CompositeExplicitAutograd`).
"""

from __future__ import annotations

import torch

from nnmf_cuda import _extension, reference

LIBRARY = torch.library.Library("nnmf_cuda", "FRAGMENT")

OPS = {
    "nnmf_mu": (
        "(Tensor X, Tensor W, Tensor H, Tensor? active=None, *, float beta_loss, int n_iter,"
        " bool update_H=True,"
        " float l1_reg_W=0., float l1_reg_H=0., float l2_reg_W=0., float l2_reg_H=0.,"
        " bool compute_divergence=False) -> (Tensor, Tensor, Tensor)",
        reference.nnmf_mu,
    ),
    "nnmf_divergence": (
        "(Tensor X, Tensor W, Tensor H, *, float beta_loss) -> Tensor",
        reference.nnmf_divergence,
    ),
    "nnmf_hals": (
        "(Tensor X, Tensor W, Tensor H, *, int n_iter, int n_inner=1, bool update_H=True,"
        " float l1_reg_W=0., float l1_reg_H=0., float l2_reg_W=0., float l2_reg_H=0.,"
        " bool compute_divergence=False) -> (Tensor, Tensor, Tensor)",
        reference.nnmf_hals,
    ),
    "nnls": ("(Tensor gram, Tensor cross) -> Tensor", reference.nnls),
    "nnls_backward": (
        "(Tensor gram, Tensor h, Tensor grad) -> Tensor",
        reference.nnls_backward,
    ),
    "project": ("(Tensor X, Tensor H) -> Tensor", reference.project),
    "purify": (
        "(Tensor x, Tensor? noise, Tensor timesteps, Tensor alphas_cumprod, Tensor[] weights, *,"
        " float eta=0., int seed=0, int n_draws=1) -> Tensor",
        reference.purify,
    ),
}
"""Name of each op, its schema and its reference."""

for _name, (_schema, _reference) in OPS.items():
    LIBRARY.define(_name + _schema)
    LIBRARY.impl(_name, _reference, "CompositeExplicitAutograd")

_extension.load()
