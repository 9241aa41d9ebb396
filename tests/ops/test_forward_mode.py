"""Forward-mode gradients raise: an op would take a missing tangent for zero."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from nnmf_cuda import ops
from nnmf_cuda.models.defended import DefendedClassifier
from nnmf_cuda.models.diffusion import DiffusionPurifier, NoiseSchedule
from nnmf_cuda.models.networks import FeatureCNN, FeatureDenoiser


def functions() -> dict[str, Callable[[Tensor], Tensor]]:
    classifier = FeatureCNN(6, 2)
    purifier = DiffusionPurifier(FeatureDenoiser(6), NoiseSchedule.linear(), n_draws=2)
    defended = DefendedClassifier(purifier, classifier)
    positive = torch.rand(6, 6) + 0.1
    return {
        "project": lambda x: ops.project(x, positive),
        "nnls": lambda x: ops.nnls(positive @ positive.T, x),
        "purify": lambda x: purifier(x, noise=0),
        "feature_cnn": classifier,
        "defended_logits": lambda x: defended(x, noise=0),
    }


@pytest.mark.parametrize("name", functions())
def test_forward_mode_raises(name):
    function, x = functions()[name], torch.rand(3, 6)
    with forward_ad.dual_level():
        assert function(x).shape[0] == 3  # nothing to differentiate
        with pytest.raises(RuntimeError, match=f"{name} has no forward-mode gradient"):
            function(forward_ad.make_dual(x, torch.ones_like(x)))
    with pytest.raises(RuntimeError, match=f"{name} has no forward-mode gradient"):
        torch.func.jvp(function, (x,), (torch.ones_like(x),))


@pytest.mark.parametrize("name", ["purify", "feature_cnn", "defended_logits"])
def test_forward_mode_of_the_reference(name):
    torch.manual_seed(0)
    function, x = functions()[name], torch.rand(3, 6)
    direction = torch.randn(3, 6)
    with ops.reference_path():
        _, tangent = torch.func.jvp(function, (x,), (direction,))
    leaf = x.clone().requires_grad_()
    weights = torch.randn_like(tangent)
    (gradient,) = torch.autograd.grad((function(leaf) * weights).sum(), leaf)
    torch.testing.assert_close((tangent * weights).sum(), (gradient * direction).sum())
