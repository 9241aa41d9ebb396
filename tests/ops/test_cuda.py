"""Streams, graphs, large indices and several devices.

What can be is run on the CPU too, where a stream is nothing and a replay is a call: so the tests
themselves are known to work before a GPU sees them.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from nnmf_cuda import ops, reference, show_config
from nnmf_cuda.models.diffusion import NoiseSchedule
from nnmf_cuda.models.networks import FeatureCNN
from tests.helpers import (
    DEVICES,
    assert_as_accurate_as_torch,
    least_squares,
    random_problem,
    wide,
)

DELAY = 300_000_000  # cycles of the device: 0.15 s and more


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


@contextlib.contextmanager
def side_stream(device: str) -> Iterator[None]:
    """Make another stream current, after all that is queued on the present one."""
    if device == "cpu":
        yield
        return
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield


def delay(device: str) -> None:
    """Keep the current stream busy for a while."""
    if device == "cuda":
        torch.cuda._sleep(DELAY)


def recorded(device: str, call: Callable[[], tuple[Tensor, ...]]) -> Callable[[], list[Tensor]]:
    """Capture a call in a CUDA graph; on the CPU, call it again at each replay."""
    if device == "cpu":
        return lambda: list(call())
    with side_stream(device):
        call()  # what is set up once must not be captured
    synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = call()

    def replay() -> list[Tensor]:
        for output in outputs:
            output.fill_(torch.nan)
        graph.replay()
        return list(outputs)

    return replay


def mu_arguments(seed: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return random_problem(517, 2053, 15, dtype=dtype, seed=seed)


def nnls_arguments(seed: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return least_squares(1000, 15, batch=3, dtype=torch.float32, seed=seed)


def backward_arguments(seed: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    gram, cross = nnls_arguments(seed, dtype)
    return gram, cross.clamp_min(0), cross


def project_arguments(seed: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    X, _, H = random_problem(300, 2053, 15, dtype=dtype, seed=seed)
    return X, H


def mu(X: Tensor, W: Tensor, H: Tensor, beta_loss: float) -> tuple[Tensor, ...]:
    return ops.nnmf_mu(X, W, H, beta_loss=beta_loss, n_iter=4, compute_divergence=True)


def small_mu(X: Tensor, W: Tensor, H: Tensor) -> tuple[Tensor, ...]:
    return ops.nnmf_mu(X, W, H, n_iter=4, compute_divergence=True)


def small_arguments(seed: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return random_problem(33, 40, 5, dtype=dtype, batch=50, own_X=True, seed=seed)


def some_mu(X: Tensor, W: Tensor, H: Tensor, active: Tensor) -> tuple[Tensor, ...]:
    return ops.nnmf_mu(X, W, H, n_iter=4, compute_divergence=True, active=active)


def some_arguments(seed: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    X, W, H = small_arguments(seed, dtype)
    return X, W, H, torch.rand(len(W), generator=torch.Generator().manual_seed(seed)) < 0.5


def hals(X: Tensor, W: Tensor, H: Tensor) -> tuple[Tensor, ...]:
    return ops.nnmf_hals(X, W, H, n_iter=4, compute_divergence=True)


def divergence(X: Tensor, W: Tensor, H: Tensor, beta_loss: float) -> tuple[Tensor, ...]:
    return (ops.nnmf_divergence(X, W, H, beta_loss=beta_loss),)


def defence_arguments(seed: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """x, noise, timesteps, alphas_cumprod, six tensors of a denoiser, eight of a classifier.

    In float64: in float32 a unit near zero may have the other sign, and its row another gradient.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def layer(*shape: int) -> list[Tensor]:
        return [draw(*shape) / torch.Size(shape[1:]).numel() ** 0.5, draw(shape[0]) / 4]

    denoiser = [*layer(128, 15 + 32), *layer(128, 128), *layer(15, 128)]
    classifier = [*layer(16, 1, 3), *layer(32, 16, 3), *layer(64, 32 * 7), *layer(2, 64)]
    timesteps = torch.tensor([40 + seed, 20])  # on the device: a graph must read them there
    alphas_cumprod = NoiseSchedule.linear().alphas_cumprod
    return draw(215, 15), draw(2, 215, 8, 15), timesteps, alphas_cumprod, *denoiser, *classifier


def defended(
    *arguments: Tensor, seeded: bool = False, gradients: bool = False
) -> tuple[Tensor, ...]:
    """Logits, or their gradients to features, noise and all weights."""
    wanted = [i for i in range(len(arguments)) if i not in (2, 3) and not (seeded and i == 1)]
    inputs = [t.detach().requires_grad_(gradients and i in wanted) for i, t in enumerate(arguments)]
    x, noise, *chain = inputs[:4]
    logits = ops.defended_logits(
        x, 11 if seeded else noise, *chain, inputs[4:10], inputs[10:], eta=0.7, n_draws=8
    )
    if not gradients:
        return (logits,)
    return torch.autograd.grad(logits.square().sum(), [inputs[i] for i in wanted])


def box_arguments(seed: int, _dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return boxes, an objective and a classifier's weights, all float64 whatever is asked for."""
    torch.manual_seed(seed)
    x = torch.rand(67, 15, dtype=torch.float64)
    weights = [weight.detach().double() for weight in FeatureCNN(15, 2).weights()]
    return x - 0.05, x + 0.05, torch.rand(67, 2, dtype=torch.float64), *weights


def bounded(low: Tensor, high: Tensor, objective: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    return ops.crown_bounds(low, high, weights, objective)


def purified(x: Tensor, noise: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
    return (ops.purify(x, noise, *rest[:2], rest[2:8], eta=0.7),)


Arguments = Callable[[int, torch.dtype], tuple[Tensor, ...]]
Op = Callable[..., tuple[Tensor, ...]]
CALLS: dict[str, tuple[str, Op, Arguments]] = {
    "kullback-leibler": ("nnmf_mu", functools.partial(mu, beta_loss=1.0), mu_arguments),
    "frobenius": ("nnmf_mu", functools.partial(mu, beta_loss=2.0), mu_arguments),
    "beta 0.5": ("nnmf_mu", functools.partial(mu, beta_loss=0.5), mu_arguments),
    "many problems": ("nnmf_mu", small_mu, small_arguments),
    "some of many problems": ("nnmf_mu", some_mu, some_arguments),
    "hals": ("nnmf_hals", hals, mu_arguments),
    "divergence": (
        "nnmf_divergence",
        functools.partial(divergence, beta_loss=1.0),
        mu_arguments,
    ),
    "nnls": ("nnls", lambda gram, cross: (ops.nnls(gram, cross),), nnls_arguments),
    "nnls_backward": (
        "nnls_backward",
        lambda *arguments: (torch.ops.nnmf_cuda.nnls_backward(*arguments),),
        backward_arguments,
    ),
    "project": ("project", lambda X, H: (ops.project(X, H),), project_arguments),
    "project with components made ready": (
        "prepare_components",
        lambda X, H: (ops.project(X, ops.prepare_components(H)),),
        project_arguments,
    ),
    "crown_bounds": ("crown_bounds", bounded, box_arguments),
    "purify": ("purify", purified, defence_arguments),
    "feature_cnn": (
        "feature_cnn",
        lambda x, *rest: (ops.feature_cnn(x, rest[9:]),),
        defence_arguments,
    ),
    "defended_logits": ("defended_logits", defended, defence_arguments),
    "defended_logits from a seed": (
        "defended_logits",
        functools.partial(defended, seeded=True),
        defence_arguments,
    ),
    "gradients of defended_logits": (
        "defended_logits_backward",
        functools.partial(defended, gradients=True),
        defence_arguments,
    ),
    "gradients of defended_logits from a seed": (
        "defended_logits_backward",
        functools.partial(defended, seeded=True, gradients=True),
        defence_arguments,
    ),
}
every_call = pytest.mark.parametrize("name", CALLS)
every_type = pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])


def call_and_inputs(
    name: str, device: str, dtype: torch.dtype, *seeds: int
) -> tuple[Op, list[list[Tensor]]]:
    """Return a call, and for each seed its inputs on the device."""
    op, call, arguments = CALLS[name]
    if device == "cuda" and show_config()["ops"][op]["cuda"] != "kernel":
        pytest.skip(f"{op} has no CUDA kernel in this build")
    return call, [[t.to(device) for t in arguments(seed, dtype)] for seed in seeds]


def assert_same(got: Iterator[Tensor] | list[Tensor], want: list[Tensor]) -> None:
    """Compare to a rounding: libraries may choose another algorithm on another stream."""
    for found, expected in zip(got, want, strict=True):
        scale = float(expected.abs().max())
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-6 * scale)


@pytest.mark.needs_cuda
def test_ops_on_cuda_have_kernels() -> None:
    served = show_config()["ops"]
    assert {op for op, by in served.items() if by["cuda"] != "kernel"} == set()


# Streams ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@every_call
@every_type
def test_work_is_queued_on_the_current_stream(device: str, name: str, dtype: torch.dtype) -> None:
    """Inputs that arrive late on a side stream are waited for; only there."""
    call, (inputs, fresh) = call_and_inputs(name, device, dtype, 1, 2)
    want = [t.clone() for t in call(*fresh)]
    stale = [t.clone() for t in call(*inputs)]
    assert not torch.equal(want[0], stale[0])
    with side_stream(device):
        delay(device)
        for old, new in zip(inputs, fresh, strict=True):
            old.copy_(new)
        got = call(*inputs)
    synchronize(device)
    assert_same(list(got), want)


@pytest.mark.parametrize("device", DEVICES)
@every_call
def test_two_streams_at_once_do_not_meet(device: str, name: str) -> None:
    call, sets = call_and_inputs(name, device, torch.float32, 1, 2)
    want = [[t.clone() for t in call(*inputs)] for inputs in sets]
    synchronize(device)
    found: list[list[tuple[Tensor, ...]]] = [[], []]
    streams = [torch.cuda.Stream() for _ in sets] if device == "cuda" else [None, None]
    for _ in range(10):
        for stream, inputs, results in zip(streams, sets, found, strict=True):
            with torch.cuda.stream(stream) if stream else contextlib.nullcontext():
                results.append(call(*inputs))
    synchronize(device)
    for results, expected in zip(found, want, strict=True):
        for result in results:
            assert_same(list(result), expected)


# CUDA graphs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@every_call
@every_type
def test_a_graph_replays_on_new_data(device: str, name: str, dtype: torch.dtype) -> None:
    call, (inputs, fresh, more) = call_and_inputs(name, device, dtype, 1, 2, 3)
    replay = recorded(device, lambda: call(*inputs))
    for data in (fresh, more, fresh):
        want = [t.clone() for t in call(*data)]
        for old, new in zip(inputs, data, strict=True):
            old.copy_(new)
        assert_same(replay(), want)


# Large indices ----------------------------------------------------------------------------------

LARGE = {"cpu": (701, 409), "cuda": (70_001, 40_009)}  # more than 2**31 entries
MANY = {"cpu": (67, 17, 19), "cuda": (67_001, 179, 181)}


def random_pixels(device: str, *shape: int) -> Tensor:
    """Draw pixels on the device, or skip where its memory does not hold them several times."""
    if device == "cuda":
        free, _ = torch.cuda.mem_get_info()
        if free < 16 * 2**30:
            pytest.skip(f"needs 16 GiB of free memory, {free / 2**30:.1f} are")
        torch.cuda.manual_seed(0)
    else:
        torch.manual_seed(0)
    return torch.randint(1, 256, shape, dtype=torch.uint8, device=device)


def sampled(n: int, inner: int) -> list[int]:
    """Return the first, the last and some rows between, and those beside 2**31 entries."""
    around = [2**31 // inner + i for i in (-1, 0, 1)]
    return sorted({0, 1, n // 3, n - 2, n - 1, *(i for i in around if i < n)})


def positive(*shape: int, device: str) -> Tensor:
    generator = torch.Generator().manual_seed(len(shape))
    return (torch.rand(shape, generator=generator) + 0.1).to(device)


def updated_rows(X: Tensor, W: Tensor, H: Tensor) -> tuple[Tensor, Tensor]:
    """Return one Kullback-Leibler update of these rows of W, in float32 and in float64."""
    options = {"beta_loss": 1.0, "n_iter": 1, "update_H": False}
    plain = reference.nnmf_mu(X.float(), W[None], H[None], **options)[0][0]
    exact = reference.nnmf_mu(X.double(), W[None].double(), H[None].double(), **options)[0][0]
    return plain, exact


@pytest.mark.parametrize("device", DEVICES)
def test_X_of_more_entries_than_32_bits_count(device: str) -> None:
    n, f = LARGE[device]
    X = random_pixels(device, n, f)
    W, H = positive(n, 2, device=device), positive(2, f, device=device) / 2
    new_W, new_H, objective = ops.nnmf_mu(X, W, H, n_iter=1, compute_divergence=True)

    rows = torch.tensor(sampled(n, f), device=device)
    plain, exact = updated_rows(wide(X[rows]), W[rows], H)
    assert_as_accurate_as_torch(new_W[rows], plain, exact, slack=5e-6)

    columns = torch.tensor(sampled(f, n), device=device)
    plain, exact = updated_rows(wide(X[:, columns]).mT, H[:, columns].mT, new_W.mT)
    assert_as_accurate_as_torch(new_H[:, columns].mT, plain, exact, slack=2e-5)

    wide_W, wide_H = new_W.double()[None], new_H.double()[None]
    truth = sum(
        float(reference.nnmf_divergence(wide(x), w, wide_H, beta_loss=1.0))
        for x, w in zip(X.split(500), wide_W.split(500, 1), strict=True)
    )
    assert objective.item() == pytest.approx(truth, rel=1e-5)
    alone = ops.nnmf_divergence(X, new_W, new_H)
    assert alone.item() == pytest.approx(truth, rel=1e-5)

    h = ops.project(X, H)[rows].double()
    gram, cross = H.double() @ H.double().mT, wide(X[rows]) @ H.double().mT
    residual = torch.minimum(h, h @ gram - cross).abs().amax(-1) / cross.abs().amax(-1)
    assert residual.max() < 2e-5


@pytest.mark.parametrize("device", DEVICES)
def test_problems_of_more_entries_than_32_bits_count(device: str) -> None:
    batch, n, f = MANY[device]
    X = random_pixels(device, batch, n, f)
    W, H = positive(batch, n, 2, device=device), positive(batch, 2, f, device=device)
    got = ops.nnmf_mu(X, W, H, n_iter=2, compute_divergence=True)
    for b in sampled(batch, n * f):
        x, w, h = wide(X[b]), W[b][None], H[b][None]
        plain = reference.nnmf_mu(x.float(), w, h, beta_loss=1.0, n_iter=2)
        exact = reference.nnmf_mu(x, w.double(), h.double(), beta_loss=1.0, n_iter=2)
        for i in (0, 1):
            assert_as_accurate_as_torch(got[i][b], plain[i][0], exact[i][0], slack=5e-6)
        ends = (t[b].double()[None] for t in got[:2])
        truth = float(reference.nnmf_divergence(x, *ends, beta_loss=1.0))
        assert got[2][b].item() == pytest.approx(truth, rel=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_more_rows_than_a_grid_has_blocks(device: str) -> None:
    """Grids have at most 65535 blocks along two of their axes."""
    n = 200_003 if device == "cuda" else 2003
    X, W, H = (positive(*shape, device=device) for shape in ((n, 3), (n, 2), (2, 3)))
    got, *_ = ops.nnmf_mu(X, W, H, n_iter=1, update_H=False)
    plain, exact = updated_rows(X.double(), W, H)
    assert_as_accurate_as_torch(got, plain, exact, slack=5e-6)
    transposed = ops.nnmf_mu(X.mT, H.mT, W.mT, n_iter=1)
    assert transposed[1].shape == (2, n)
    assert transposed[1].isfinite().all()
    gram, cross = least_squares(n, 3, dtype=torch.float32)
    h = ops.nnls(gram.to(device), cross.to(device)).cpu()
    ends = torch.tensor([0, 1, n // 2, n - 2, n - 1])
    torch.testing.assert_close(h[ends], ops.nnls(gram, cross[ends]), rtol=1e-4, atol=1e-5)


# Several devices --------------------------------------------------------------------------------


@pytest.mark.needs_cuda
def test_tensors_on_two_devices_are_refused() -> None:
    X, W, H = random_problem(5, 7, 2)
    for call in (
        lambda: ops.nnmf_mu(X.cuda(), W, H.cuda(), n_iter=1),
        lambda: ops.nnmf_divergence(X, W.cuda(), H.cuda()),
        lambda: ops.nnls(torch.eye(2).cuda(), torch.ones(1, 2)),
        lambda: ops.project(X, H.cuda()),
    ):
        with pytest.raises(ValueError, match="all tensors must be on one device, got .* on cuda:0"):
            call()


@pytest.mark.needs_cuda
@every_call
def test_tensors_choose_the_device_and_not_the_current_one(name: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    call, (inputs,) = call_and_inputs(name, "cuda", torch.float32, 1)
    want = [t.cpu() for t in call(*inputs)]
    with torch.cuda.device(0):
        got = call(*(t.to("cuda:1") for t in inputs))
    assert {t.device.index for t in got} == {1}
    for found, expected in zip(got, want, strict=True):
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.needs_cuda
@every_call
@every_type
def test_cuda_agrees_with_the_cpus_kernels(name: str, dtype: torch.dtype) -> None:
    call, (inputs,) = call_and_inputs(name, "cuda", dtype, 7)
    found = call(*inputs)
    expected = call(*(t.cpu() for t in inputs))
    share = 1e-3 if name == "hals" else 2e-5  # a small curvature multiplies roundings
    for got, want in zip(found, expected, strict=True):
        atol = share * float(want.abs().max())
        torch.testing.assert_close(got.cpu(), want, rtol=0, atol=atol)
