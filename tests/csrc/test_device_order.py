"""Every op compares where its tensors lie before it takes a device.

A call with tensors on the CPU and on a GPU reaches the CUDA kernels, whichever of them lies there.
Here torch's meta device, which needs no GPU, stands for the other one, and an implementation that
counts for the kernels.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import cpp_extension

from nnmf_cuda.models.networks import FeatureCNN, FeatureDenoiser
from nnmf_cuda.ops._schema import OPS

ROOT = Path(__file__).parents[2]
WITHOUT_CUDA = {"train_feature_cnn_epoch", "train_mlp_epoch", "resize_grey"}
NETWORKS = {"purify": "denoiser", "feature_cnn": "classifier"}  # what their `weights` are called
B, N, F, K = 2, 5, 9, 3
N_PREPARED = 4001  # numbers, in device_order.cpp


def arguments() -> dict[str, tuple[list[Any], dict[str, Any]]]:
    """Return positional and other arguments of each op; all optional tensors are given."""
    X, W, H = torch.rand(N, F), torch.rand(B, N, K), torch.rand(B, K, F)
    active = torch.tensor([True, False])
    csr, csc = (
        [torch.arange(n + 1) * f, torch.arange(f).repeat(n), torch.rand(n * f)]
        for n, f in ((N, F), (F, N))
    )
    gram, free = torch.eye(K).expand(B, K, K), torch.ones(B, N, K, dtype=torch.bool)
    updates, least_squares = {"beta_loss": 1.0, "n_iter": 1}, {"n_iter": 1}
    x = torch.rand(N, F)
    denoiser, cnn = (
        [w.detach() for w in network.weights()]
        for network in (FeatureDenoiser(F), FeatureCNN(F, 2))
    )
    chain = [torch.tensor([1]), torch.tensor([0.9, 0.8], dtype=torch.float64)]
    noise, signs = torch.rand(1, N, 1, F), torch.zeros(1, 1, dtype=torch.int32)
    drawn = {"eta": 0.0, "seed": 0, "n_draws": 1}
    back = {**drawn, "noise_needs_grad": True, "weights_need_grad": False}
    wide = [w.double() for w in cnn]
    box = [torch.rand(N, F).double() for _ in range(2)]
    units = [torch.rand(N, len(cnn[5])).double() for _ in range(2)]
    return {
        "nnmf_mu": ([X, W, H, active], updates),
        "nnmf_hals": ([X, W, H], least_squares),
        "nnmf_divergence": ([X, W, H], {"beta_loss": 1.0}),
        "nnmf_weighted_mu": ([X, W, H, X, active], updates),
        "nnmf_weighted_hals": ([X, W, H, X], least_squares),
        "nnmf_weighted_divergence": ([X, W, H, X], {"beta_loss": 1.0}),
        "nnmf_sparse_mu": ([*csr, W, H, active], updates),
        "nnmf_sparse_hals": ([*csr, W, H], least_squares),
        "nnmf_sparse_divergence": ([*csr, W, H], {"beta_loss": 1.0}),
        "nnmf_sparse_cd": ([*csr, *csc, W, H], least_squares),
        "nnls": ([gram, W, free], {}),
        "nnls_backward": ([gram, W, W], {}),
        "prepare_components": ([H], {}),
        "project": ([X, H, free, torch.rand(B, 2, 8), torch.zeros(B, 176).double()], {}),
        "philox_normal": (
            [x],
            {"seed": 0, "n_steps": 1, "n_rows": 1, "n_draws": 1, "n_features": 1},
        ),
        "purify": ([x, noise, *chain, denoiser], drawn),
        "purify_backward": ([noise[0], x, noise, *chain, denoiser, signs], back),
        "feature_cnn": ([x, cnn], {}),
        "feature_cnn_backward": ([x, x, cnn, signs], {"weights_need_grad": False}),
        "defended_logits": ([x, noise, *chain, denoiser, cnn], drawn),
        "defended_logits_backward": ([x, x, noise, *chain, denoiser, cnn, signs], back),
        "crown_bounds": ([*box, wide, torch.ones(N, 2).double(), box[0], box[0][:, 0], *units], {}),
    }


CALLS = arguments()


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """Load the ops with an implementation that counts; `devices_taken()` is how often."""
    compiler = shutil.which(os.environ.get("CXX", "c++").split()[0])
    if compiler is None:
        pytest.skip("no C++ compiler")
    built = tmp_path_factory.mktemp("devices") / "device_order.so"
    includes = [*cpp_extension.include_paths(), sysconfig.get_paths()["include"], ROOT / "csrc"]
    subprocess.run(
        [
            *(compiler, "-std=c++20", "-O0", "-fPIC", "-shared", "-fvisibility=hidden"),
            "-DTORCH_TARGET_VERSION=0x020a000000000000",
            *(f"-I{path}" for path in includes),
            *(str(ROOT / "tests/csrc/device_order.cpp"), "-o", str(built)),
            *(f"-L{path}" for path in cpp_extension.library_paths()),
            *("-lc10", "-ltorch_cpu", "-ltorch"),
        ],
        check=True,
    )
    library = torch.library.Library("nnmf_cuda_devices", "FRAGMENT")
    for name in CALLS:
        library.define(name + OPS[name][0])
    library.define("take_cuda(Tensor tensor) -> Tensor")
    torch.ops.load_library(built)
    loaded = ctypes.CDLL(str(built))
    loaded.devices_taken.restype = ctypes.c_int64
    loaded.prepared_found.restype = ctypes.c_int64
    loaded.keep_alive = library
    return loaded


def call(name: str, given: list[Any]) -> Any:
    return getattr(torch.ops.nnmf_cuda_devices, name)(*given, **CALLS[name][1])


def elsewhere(name: str) -> Iterator[tuple[int, list[Any]]]:
    """Give an op's arguments with one tensor on another device, each in turn, and which it is."""
    given = CALLS[name][0]
    for i, value in enumerate(given):
        if isinstance(value, list):
            for j, tensor in enumerate(value):
                moved = [*value[:j], tensor.to("meta"), *value[j + 1 :]]
                yield i, [*given[:i], moved, *given[i + 1 :]]
        elif isinstance(value, Tensor):
            yield i, [*given[:i], value.to("meta"), *given[i + 1 :]]


def test_every_op_with_kernels_on_a_gpu_is_here() -> None:
    assert CALLS.keys() == OPS.keys() - WITHOUT_CUDA


@pytest.mark.parametrize("name", CALLS)
def test_devices_are_compared_before_one_is_taken(counted: ctypes.CDLL, name: str) -> None:
    counted.forget_devices()
    names = [argument.name for argument in torch._C.parse_schema(name + OPS[name][0]).arguments]
    for i, given in elsewhere(name):
        if sum(isinstance(v, Tensor | list) for v in given) == 1:
            continue  # nothing to compare it with
        named = NETWORKS.get(name.removesuffix("_backward"), names[i])
        with pytest.raises(RuntimeError, match="must be on the device of") as error:
            call(name, given)
        assert names[i] in str(error.value) or named in str(error.value)
        assert counted.devices_taken() == 0


@pytest.mark.parametrize("name", CALLS)
def test_a_device_is_taken_where_all_tensors_lie_on_it(counted: ctypes.CDLL, name: str) -> None:
    counted.forget_devices()
    if name.endswith("_backward") and "nnls" not in name:
        with pytest.raises(RuntimeError, match="signs must be those of the forward pass"):
            call(name, CALLS[name][0])
    else:
        call(name, CALLS[name][0])
    assert counted.devices_taken() == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 33])
@pytest.mark.parametrize("name", ["purify", "feature_cnn", "defended_logits"])
def test_what_a_forward_pass_prepares_reaches_the_backward_pass(
    counted: ctypes.CDLL, name: str, n: int, dtype: torch.dtype
) -> None:
    def cast(value: Any) -> Any:
        if isinstance(value, list):
            return [v.to(dtype) for v in value]
        return value.to(dtype) if value.dtype == torch.float32 else value

    x, *others = map(cast, CALLS[name][0])
    x = x[:1].expand(n, F)
    if name != "feature_cnn":
        others[0] = others[0][:, :1].expand(1, n, 1, F)
    options = {k: v for k, v in CALLS[name][1].items() if k not in ("keep_signs", "prepares")}
    op, back = (getattr(torch.ops.nnmf_cuda_devices, name + end) for end in ("", "_backward"))
    out, kept = op(x, *others, keep_signs=True, prepares=True, **options)

    def found(kept: Tensor) -> int:
        options = CALLS[f"{name}_backward"][1]
        back(torch.zeros_like(out), x, *others, kept, **options)
        return int(counted.prepared_found())

    n_blocks = -(-n // 32)
    assert found(kept) == N_PREPARED
    assert found(kept[:n_blocks]) == 0  # it prepares them itself
    moved = kept.new_empty(kept.numel() + 1)[1:].view(kept.shape).copy_(kept)
    assert found(moved) == 0
    with pytest.raises(RuntimeError, match="signs must be those of the forward pass"):
        found(kept[:-1])
    assert found(op(x, *others, keep_signs=True, **options)[1]) == 0  # nobody asked for it
    assert op(x, *others, prepares=True, **options)[1].numel() == 0


def test_no_cuda_device_is_taken_from_a_tensor_on_the_cpu(counted: ctypes.CDLL) -> None:
    with pytest.raises(
        RuntimeError, match="a tensor that is not on a GPU: move all tensors to one"
    ):
        torch.ops.nnmf_cuda_devices.take_cuda(torch.ones(1))
