"""The CUDA kernels of purify, feature_cnn and defended_logits against the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nnmf_cuda import reference
from nnmf_cuda.models.diffusion import NoiseSchedule
from nnmf_cuda.ops._defence import prepared_rows, signs_of_classifier, signs_of_denoiser
from tests.cuda_on_cpu.harness import (
    Builder,
    KernelError,
    Mutation,
    none_of,
    require_sanitizers,
    run_kernels,
    share_a_build,
    without_each_barrier,
)

ALPHAS_CUMPROD = NoiseSchedule.linear().alphas_cumprod
SHARED_BYTES = 228 * 1024
PURIFY, CLASSIFY, DEFEND = "purify", "feature_cnn", "defended_logits"


@pytest.fixture(scope="module")
def kernels(build: Builder) -> Path:
    return build("defence.cpp")


class Problem:
    """What one of the ops is given, and the gradient to its result."""

    def __init__(
        self,
        op: str,
        n: int,
        features: int,
        *,
        draws: int = 1,
        hidden: tuple[int, ...] = (6, 5),
        embedding: int = 8,
        cnn: tuple[int, int, int, int] = (3, 5, 7, 2),
        steps: int = 1,
        eta: float = 0.0,
        seed: int | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        self._generator = torch.Generator().manual_seed(n + features + draws)
        self._dtype = dtype
        self.op, self.eta, self.seed, self.draws = op, eta, seed, draws
        if op == CLASSIFY:
            self.draws = draws = 1
        self.x = self.draw(n, features)
        self.noise = self.draw(steps if eta > 0 else 1, n, draws, features)
        self.timesteps = torch.arange(steps, 0, -1) * 13 + 28
        self.denoiser: list[Tensor] = []
        if op != CLASSIFY:
            self.denoiser = self.layers(features + embedding, *hidden, features)
        self.classifier: list[Tensor] = []
        if op != PURIFY:
            first, second, units, classes = cnn
            self.classifier = [
                *self.layer((first, 1, 3)),
                *self.layer((second, first, 3)),
                *self.layer((units, second * (features // 2))),
                *self.layer((classes, units)),
            ]
        shape = (n, draws, features) if op == PURIFY else (n, cnn[3])
        self.grad = self.draw(*shape)

    def draw(self, *shape: int) -> Tensor:
        values = torch.randn(shape, generator=self._generator, dtype=torch.float64)
        return values.to(self._dtype)

    def layer(self, shape: tuple[int, ...]) -> list[Tensor]:
        inputs = torch.Size(shape[1:]).numel()
        return [self.draw(*shape) / inputs**0.5, self.draw(shape[0]).abs() / 2]

    def layers(self, *widths: int) -> list[Tensor]:
        pairs = zip(widths[1:], widths, strict=False)
        return [tensor for pair in pairs for tensor in self.layer(pair)]

    def run(
        self,
        kernels: Path,
        *,
        shared_bytes: int = SHARED_BYTES,
        multiprocessors: int = 2,
        without_signs: bool = False,
        prepares: bool = True,
        most_groups: int = 256,
        seeds: tuple[int, ...] = (0, 1),
    ) -> dict[str, Tensor]:
        """Run the kernels, forwards and backwards."""
        numbers = {
            "multiprocessors": multiprocessors,
            "shared_bytes": shared_bytes,
            "without_signs": without_signs,
            "prepares": prepares,
            "most_groups": most_groups,
        }
        return run_kernels(
            kernels, "defence", self.tensors(), {**self.numbers(), **numbers}, seeds=seeds
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return what the kernels are given, by name."""
        tensors = {
            "x": self.x,
            "noise": self.noise,
            "timesteps": self.timesteps,
            "alphas_cumprod": ALPHAS_CUMPROD,
            "seed": torch.tensor([self.seed or 0]),
            "grad": self.grad,
        }
        for name, weights in (("denoiser", self.denoiser), ("classifier", self.classifier)):
            for i, (weight, bias) in enumerate(zip(weights[::2], weights[1::2], strict=True)):
                tensors[f"{name}_weight{i}"] = weight.flatten(1)
                tensors[f"{name}_bias{i}"] = bias
        return tensors

    def numbers(self) -> dict[str, float]:
        """Return the problem's own numbers."""
        return {
            "n_draws": self.draws,
            "n_denoiser": len(self.denoiser) // 2,
            "n_classifier": len(self.classifier) // 2,
            "has_noise": self.seed is None,
            "eta": self.eta,
        }

    def want(self) -> dict[str, Tensor]:
        """Return what the reference gives in float64; it computes gradients without signs."""
        x, noise, grad = (t.double() for t in (self.x, self.noise, self.grad))
        denoiser, classifier = ([w.double() for w in ws] for ws in (self.denoiser, self.classifier))
        options = {"eta": self.eta, "seed": self.seed or 0, "n_draws": self.draws}
        asked = {"noise_needs_grad": True, "weights_need_grad": True}
        none, no_signs = x.new_empty(0), torch.empty(0)
        chain = (x, noise if self.seed is None else None, self.timesteps, ALPHAS_CUMPROD)
        if self.op == PURIFY:
            out, signs = reference.purify(*chain, denoiser, **options, keep_signs=True)
            of = reference.purify_backward(grad, *chain, denoiser, no_signs, **options, **asked)
            gradients = (*of, none)
        elif self.op == CLASSIFY:
            out, signs = reference.feature_cnn(x, classifier, keep_signs=True)
            of = reference.feature_cnn_backward(
                grad, x, classifier, no_signs, weights_need_grad=True
            )
            gradients = (of[0], none, none, of[1])
        else:
            networks = (denoiser, classifier)
            out, signs = reference.defended_logits(*chain, *networks, **options, keep_signs=True)
            gradients = reference.defended_logits_backward(
                grad, *chain, *networks, no_signs, **options, **asked
            )
        names = ("out", "signs", "of_x", "of_noise", "of_denoiser", "of_classifier")
        return dict(zip(names, (out, signs, *gradients), strict=True))


def check(
    kernels: Path,
    problem: Problem,
    **options: Any,
) -> None:
    """Assert that the kernels give the reference's results, and its signs bit for bit."""
    got, want = problem.run(kernels, **options), problem.want()
    assert want["of_x"].any() or not want["of_x"].numel()  # dead units would show nothing
    single = problem.x.dtype == torch.float32
    for name, value in got.items():
        if name == "signs":
            continue
        tolerance = (1e-4 if name.startswith("of") else 1e-5) if single else 1e-12
        scale = float(want[name].abs().max()) if want[name].numel() > 0 else 1.0
        torch.testing.assert_close(
            value.double(), want[name].reshape(value.shape), rtol=0, atol=tolerance * max(scale, 1)
        )
    differing = got["signs"] != want["signs"].reshape(got["signs"].shape)
    assert differing.double().mean() <= (0.02 if single else 0) if differing.numel() else True


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("op", [PURIFY, CLASSIFY, DEFEND])
@pytest.mark.parametrize(
    ("n", "features", "draws", "hidden", "cnn", "steps", "eta"),
    [
        (0, 3, 2, (6,), (2, 3, 5, 4), 2, 0.7),
        (1, 2, 1, (17, 1), (3, 1, 1, 2), 1, 0.0),
        (31, 3, 1, (), (2, 3, 5, 4), 3, 0.7),
        (7, 15, 5, (40, 33), (16, 32, 64, 2), 3, 0.0),
        (9, 16, 8, (6, 5, 17), (13, 7, 25, 3), 1, 0.7),
        (33, 5, 1, (17,), (3, 20, 4, 17), 2, 1.0),
    ],
)
def test_kernels_match_the_reference(
    kernels: Path,
    op: str,
    n: int,
    features: int,
    draws: int,
    hidden: tuple[int, ...],
    cnn: tuple[int, int, int, int],
    steps: int,
    eta: float,
    dtype: torch.dtype,
) -> None:
    options = {"draws": draws, "hidden": hidden, "cnn": cnn, "steps": steps, "eta": eta}
    check(kernels, Problem(op, n, features, **options, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("op", "n", "features", "draws", "hidden", "cnn"),
    [
        (DEFEND, 14, 15, 5, (128, 128), (16, 32, 64, 2)),  # the paper's networks
        (PURIFY, 3, 40, 8, (512,), (1, 1, 1, 1)),
        (CLASSIFY, 5, 40, 1, (), (12, 24, 512, 12)),  # float64: not in shared memory
    ],
)
def test_large_networks(
    kernels: Path,
    op: str,
    n: int,
    features: int,
    draws: int,
    hidden: tuple[int, ...],
    cnn: tuple[int, int, int, int],
    dtype: torch.dtype,
) -> None:
    problem = Problem(op, n, features, draws=draws, hidden=hidden, cnn=cnn, dtype=dtype)
    check(kernels, problem, seeds=(0,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("steps", "eta"), [(1, 0.0), (3, 0.7)])
def test_a_seed_draws_the_noise_of_the_reference(
    kernels: Path, steps: int, eta: float, dtype: torch.dtype
) -> None:
    seed = 2**62 + 12345
    check(kernels, Problem(DEFEND, 9, 5, draws=5, steps=steps, eta=eta, seed=seed, dtype=dtype))


@pytest.mark.parametrize("op", [PURIFY, CLASSIFY, DEFEND])
def test_where_activations_lie_does_not_change_a_bit(kernels: Path, op: str) -> None:
    """In shared memory, or in memory, where a block takes several blocks of rows."""
    problem = Problem(op, 70, 7, draws=2, steps=2, eta=0.7, dtype=torch.float32)
    shared = problem.run(kernels)
    for multiprocessors in (1, 2):
        elsewhere = problem.run(kernels, shared_bytes=2048, multiprocessors=multiprocessors)
        for name, value in shared.items():
            torch.testing.assert_close(elsewhere[name], value, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("op", "n", "features", "draws", "hidden", "cnn"),
    [
        (DEFEND, 14, 15, 5, (128, 128), (16, 32, 64, 2)),  # 70 rows: two whole blocks, and 6 rows
        (DEFEND, 9, 4, 2, (17,), (3, 20, 33, 17)),
        (PURIFY, 50, 7, 1, (40, 130), (1, 1, 1, 1)),
        (CLASSIFY, 16, 3, 1, (), (5, 1, 4, 3)),
    ],
)
def test_rows_get_the_same_bits_in_blocks_of_any_size(
    kernels: Path,
    op: str,
    n: int,
    features: int,
    draws: int,
    hidden: tuple[int, ...],
    cnn: tuple[int, int, int, int],
) -> None:
    """Of 16 rows, where there are multiprocessors for more blocks of 32, or of 32."""
    options = {"draws": draws, "hidden": hidden, "cnn": cnn, "steps": 2, "eta": 0.7}
    problem = Problem(op, n, features, **options, dtype=torch.float32)
    large, small = (problem.run(kernels, multiprocessors=m, seeds=(0,)) for m in (1, 132))
    for name in ("out", "signs", "of_x", "of_noise"):
        if name in large:
            assert torch.equal(small[name], large[name]), name


def test_blocks_have_16_rows_where_there_are_multiprocessors_for_them(kernels: Path) -> None:
    cases = [  # rows, multiprocessors, rows of a block
        (1, 1, 32),
        (1, 2, 16),
        (215, 132, 16),
        (215 * 8, 132, 16),
        (66 * 32, 132, 16),
        (66 * 32 + 1, 132, 32),
        (215 * 64, 132, 32),
        (215 * 8, 148, 16),
        (215 * 8, 108, 16),
        (215 * 8, 107, 32),
    ]
    n_rows, multiprocessors, want = torch.tensor(cases).T.contiguous()
    tensors = {"n_rows": n_rows, "multiprocessors": multiprocessors}
    got = run_kernels(kernels, "rows_of_blocks", tensors, {}, seeds=(0,))
    assert got["rows"].tolist() == want.tolist()


@pytest.mark.parametrize("op", [PURIFY, CLASSIFY, DEFEND])
def test_signs_are_kept_only_where_asked_for(kernels: Path, op: str) -> None:
    problem = Problem(op, 5, 6, draws=3)
    without = problem.run(kernels, without_signs=True)
    assert torch.equal(without["out"], problem.run(kernels)["out"])
    assert (without["signs"] == -1).all()  # never written


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("op", [PURIFY, CLASSIFY, DEFEND])
def test_what_a_forward_pass_has_prepared_does_not_change_a_bit(
    kernels: Path, op: str, dtype: torch.dtype
) -> None:
    problem = Problem(op, 9, 6, draws=3, steps=2, eta=0.7, dtype=dtype)
    prepared, not_so = (problem.run(kernels, prepares=prepares) for prepares in (True, False))
    for name, value in not_so.items():
        assert torch.equal(prepared[name], value), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("op", [PURIFY, CLASSIFY, DEFEND])
@pytest.mark.parametrize(
    ("n", "features", "hidden", "cnn", "steps"),
    [
        (0, 3, (6,), (2, 3, 5, 4), 2),
        (70, 15, (128, 128), (16, 32, 64, 2), 1),
        (33, 16, (), (13, 7, 25, 3), 3),
        (1, 2, (17, 1), (3, 1, 1, 2), 1),
    ],
)
def test_the_wrapper_knows_how_much_is_kept(
    kernels: Path,
    op: str,
    n: int,
    features: int,
    hidden: tuple[int, ...],
    cnn: tuple[int, int, int, int],
    steps: int,
    dtype: torch.dtype,
) -> None:
    problem = Problem(op, n, features, hidden=hidden, cnn=cnn, steps=steps, dtype=dtype)
    got = run_kernels(kernels, "kept_rows", problem.tensors(), problem.numbers(), seeds=(0,))
    x, (denoiser, classifier) = problem.x, (problem.denoiser, problem.classifier)
    n_words = signs_of_denoiser(denoiser, steps) if denoiser else 0
    n_words += signs_of_classifier(classifier, features) if classifier else 0
    more = prepared_rows(x, n_words, denoiser, classifier, steps) if n else 0
    assert got["rows"].item() == -(-n // 32) + more


def test_neighbours_do_not_change_a_bit_of_a_row(kernels: Path) -> None:
    problem = Problem(DEFEND, 21, 5, draws=3, seed=4, dtype=torch.float32)
    together = problem.run(kernels)
    problem.x, problem.grad = problem.x[:8], problem.grad[:8]
    fewer = problem.run(kernels)
    for name in ("out", "of_x"):
        assert torch.equal(fewer[name], together[name][:8])


@pytest.mark.parametrize("op", [PURIFY, CLASSIFY, DEFEND])
def test_nan_stays_in_its_row(kernels: Path, op: str) -> None:
    problem = Problem(op, 12, 6, draws=3)
    clean = problem.run(kernels)["out"]
    problem.x[4, 5] = torch.nan
    out = problem.run(kernels)["out"]
    assert out[4].isnan().all()
    rest = torch.arange(12) != 4
    assert torch.equal(out[rest], clean[rest])


@pytest.mark.parametrize("t", [-1, 1000])
def test_a_timestep_that_does_not_exist_makes_nan(kernels: Path, t: int) -> None:
    problem = Problem(PURIFY, 2, 3)
    problem.timesteps = torch.tensor([t])
    assert problem.run(kernels)["out"].isnan().all()


@pytest.mark.parametrize("op", [PURIFY, CLASSIFY, DEFEND])
def test_many_blocks_share_the_sums_of_weights(kernels: Path, op: str) -> None:
    """More blocks of rows than groups of them."""
    for most_groups in (1, 2):
        check(kernels, Problem(op, 101, 5, steps=2), most_groups=most_groups)


SOURCES = tuple(
    f"{name}.cuh"
    for name in (
        "networks/cuda/tiles",
        "networks/cuda/layers",
        "diffusion/cuda/defence",
        "diffusion/cuda/prepare",
        "diffusion/cuda/kernels",
    )
)
TILES, LAYERS = "networks/cuda/tiles.cuh", "networks/cuda/layers.cuh"
KERNELS = "diffusion/cuda/kernels.cuh"


BARRIERS = without_each_barrier(*SOURCES)
INDICES = share_a_build(
    Mutation(file, old, new)
    for file, old, new in (
        (TILES, "if (input(both, set) < inputs)", "if (input(both, set) <= inputs)"),
        (TILES, "c < channels; ++c", "c <= channels; ++c"),
        (LAYERS, "if (exists) store_four", "if (unit <= outputs) store_four"),
        (LAYERS, "unit >= outputs) return", "unit > outputs) return"),
        (LAYERS, "return n_features + 2 * width", "return n_features + width"),
        (
            "diffusion/cuda/defence.cuh",
            "unit >= d.n_features) return",
            "unit > d.n_features) return",
        ),
        ("diffusion/cuda/defence.cuh", "row.exists ? d.x", "row.flat <= d.n_rows ? d.x"),
        (LAYERS, "load_four_if(pair > 0,", "load_four_if(true,"),
        (LAYERS, "2 * pair + 2 < n_features", "2 * pair + 2 <= n_features"),
        (LAYERS, "position < n_features &&", "position <= n_features &&"),
        (LAYERS, "if (pair + 1 < n_pooled)", "if (pair < n_pooled)"),
        (LAYERS, "place.row + r < rows.count", "place.row + r <= rows.count"),
        ("diffusion/cuda/prepare.cuh", "if (entry >= p.n_entries)", "if (entry > p.n_entries)"),
        ("diffusion/cuda/prepare.cuh", "exists = o < task", "exists = o <= task"),
        (KERNELS, "if (at >= n_samples * width)", "if (at > n_samples * width)"),
        (KERNELS, "if (at >= size)", "if (at > size)"),
        (KERNELS, "group < groups", "group <= groups"),
        (KERNELS, "i < task.n_weights", "i <= task.n_weights"),
    )
)


def check_mutant(build: Builder, mutation: Mutation) -> None:
    """Run what reaches every line: odd and even numbers of features, layers and draws."""
    kernels = build("defence.cpp", "-DFEW_KERNELS", mutation=mutation)
    for shared_bytes in (SHARED_BYTES, 1024):
        options = {"draws": 3, "steps": 2, "eta": 0.7, "hidden": (18, 5, 33), "cnn": (17, 5, 18, 3)}
        check(kernels, Problem(DEFEND, 23, 5, **options), shared_bytes=shared_bytes)
        check(kernels, Problem(PURIFY, 33, 4, hidden=(7, 20), seed=3), shared_bytes=shared_bytes)
        check(kernels, Problem(CLASSIFY, 37, 6, cnn=(4, 17, 20, 17)), shared_bytes=shared_bytes)
    check(kernels, Problem(CLASSIFY, 101, 4), most_groups=2)
    # Blocks sum up the draws, and have several blocks of rows.
    check(kernels, Problem(DEFEND, 11, 4, draws=4))
    many = Problem(PURIFY, 70, 3, draws=2, hidden=(7,))
    check(kernels, many, shared_bytes=1024, multiprocessors=1)


@pytest.mark.parametrize("mutations", [BARRIERS, INDICES])
def test_the_small_kernels_without_a_mutation(build: Builder, mutations: list[Mutation]) -> None:
    check_mutant(build, none_of(mutations))


@pytest.mark.parametrize("mutation", BARRIERS, ids=str)
def test_every_barrier_is_needed(build: Builder, mutation: Mutation) -> None:
    with pytest.raises((AssertionError, KernelError)):
        check_mutant(build, mutation)


@pytest.mark.parametrize("mutation", INDICES, ids=str)
def test_an_index_that_is_one_too_large_is_seen(build: Builder, mutation: Mutation) -> None:
    require_sanitizers()
    with pytest.raises((AssertionError, KernelError)):
        check_mutant(build, mutation)
