"""The CUDA kernels, compiled as host code and run thread by thread: no GPU is needed."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from nnmf_cuda import reference
from nnmf_cuda.reference.nnmf import as_float

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
COMPILER = os.environ.get("CXX", "c++")


class Shape(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int64)
        for name in ("batch", "n_samples", "n_features", "n_components", "x_stride")
    ]


class MuOptions(ctypes.Structure):
    _fields_ = [
        ("beta_loss", ctypes.c_double),
        ("n_iter", ctypes.c_int64),
        ("update_H", ctypes.c_bool),
        ("l1_reg_W", ctypes.c_double),
        ("l1_reg_H", ctypes.c_double),
        ("l2_reg_W", ctypes.c_double),
        ("l2_reg_H", ctypes.c_double),
    ]


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if shutil.which(COMPILER) is None or not CSRC.is_dir():
        pytest.skip("needs a C++ compiler and the source tree")
    library = tmp_path_factory.mktemp("kernels") / "nnmf_on_cpu.so"
    command = [COMPILER, "-O1", "-std=c++20", "-shared", "-fPIC", f"-I{HERE}", f"-I{CSRC}"]
    subprocess.run([*command, "-o", library, HERE / "nnmf_on_cpu.cpp"], check=True)
    return ctypes.CDLL(str(library))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8])
@pytest.mark.parametrize("beta_loss", [2.0, 1.0, 0.0, -0.5, 0.5, 1.5, 3.0])
@pytest.mark.parametrize(
    ("batch", "n_samples", "n_features", "n_components", "shared", "update_H", "penalty"),
    [
        (1, 1, 1, 1, True, True, 0.0),
        (3, 33, 31, 5, True, True, 0.0),
        (2, 31, 70, 9, False, True, 0.2),
        (1, 5, 1100, 3, True, False, 0.1),
    ],
)
def test_kernels_match_reference(
    kernels, dtype, beta_loss, batch, n_samples, n_features, n_components, shared, update_H, penalty
):
    torch.manual_seed(n_features)
    floating = torch.float64 if dtype == torch.float64 else torch.float32
    shape = (n_samples, n_features) if shared else (batch, n_samples, n_features)
    X = torch.rand(shape).add(0.1).to(floating)
    if dtype == torch.uint8:
        X = torch.randint(1, 256, shape, dtype=torch.uint8)
    W = torch.rand(batch, n_samples, n_components, dtype=floating) + 0.1
    H = torch.rand(batch, n_components, n_features, dtype=floating) + 0.1
    options = {
        "beta_loss": beta_loss,
        "n_iter": 3,
        "update_H": update_H,
        "l1_reg_W": penalty,
        "l1_reg_H": 2 * penalty,
        "l2_reg_W": 3 * penalty,
        "l2_reg_H": 4 * penalty,
    }
    exact_X = as_float(X, floating).double()
    wanted = reference.nnmf_mu(exact_X, W.double(), H.double(), **options)
    divergence = torch.full((batch,), torch.nan, dtype=torch.float64)
    x_stride = 0 if shared else n_samples * n_features
    function = getattr(kernels, f"run_{str(dtype).removeprefix('torch.')}")
    function(
        *(ctypes.c_void_p(tensor.data_ptr()) for tensor in (X, W, H, divergence)),
        ctypes.byref(Shape(batch, n_samples, n_features, n_components, x_stride)),
        ctypes.byref(MuOptions(**options)),
        ctypes.c_uint(0),
    )
    # Sums of at most 32 terms in float32 and three iterations: some tens of roundings.
    rtol = 1e-11 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(W.double(), wanted[0], rtol=rtol, atol=0)
    torch.testing.assert_close(H.double(), wanted[1], rtol=rtol, atol=0)
    exact = reference.nnmf_divergence(exact_X, W.double(), H.double(), beta_loss=beta_loss)
    torch.testing.assert_close(divergence, exact, rtol=1e-9, atol=1e-13 * n_features)


def test_kernels_add_up_several_splits_of_the_rows(kernels):
    test_kernels_match_reference(kernels, torch.float64, 1.0, 1, 300, 40, 3, True, True, 0.0)
