"""Epochs in one call against autograd and `torch.optim.Adam`, which share no formula with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from nnmf_cuda import _extension, ops
from tests.helpers import DEVICES, INSTRUCTION_SETS, run_with_instruction_set

SETTINGS: dict[str, Any] = {"lr": 0.01, "ema_decay": 0.9}


class Cnn(nn.Module):
    """What `feature_cnn` computes, with any number of channels."""

    def __init__(self, n_features: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        first, second, hidden, n_classes = widths
        self.first = nn.Conv1d(1, first, 3, padding=1)
        self.second = nn.Conv1d(first, second, 3, padding=1)
        self.hidden = nn.Linear(second * (n_features // 2), hidden)
        self.last = nn.Linear(hidden, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x.unsqueeze(1)).relu()).relu()
        return self.last(self.hidden(functional.max_pool1d(x, 2).flatten(1)).relu())


def mlp(n_inputs: int, widths: tuple[int, ...]) -> nn.Module:
    layers: list[nn.Module] = []
    for n_outputs in widths:
        layers += [nn.Linear(n_inputs, n_outputs), nn.ReLU()]
        n_inputs = n_outputs
    return nn.Sequential(*layers[:-1])


def flat(model: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def start(model: nn.Module) -> Tensor:
    weights = flat(model)
    return torch.stack((weights, 0 * weights, 0 * weights, weights))


def by_hand(
    model: nn.Module, loss: Callable[..., Tensor], x: Tensor, wanted: Tensor, *, batch_size: int
) -> tuple[Tensor, list[float]]:
    """Two epochs; the state after them and both mean losses."""
    optimizer = torch.optim.Adam(model.parameters(), lr=SETTINGS["lr"])
    average, losses, step = flat(model), [], 0
    for _ in range(2):
        total = 0.0
        for rows, answers in zip(x.split(batch_size), wanted.split(batch_size), strict=True):
            value = loss(model(rows), answers)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            decay = min(SETTINGS["ema_decay"], (1 + step) / (10 + step))
            average = decay * average + (1 - decay) * flat(model)
            total += value.item() * len(rows)
            step += 1
        losses.append(total / len(x))
    moments = [
        torch.cat([optimizer.state[p][name].flatten() for p in model.parameters()])
        for name in ("exp_avg", "exp_avg_sq")
    ]
    return torch.stack((flat(model), *moments, average)), losses


def sample(
    op: str, n: int, inputs: int, widths: tuple[int, ...], dtype: torch.dtype
) -> tuple[nn.Module, Tensor, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = torch.rand(n, inputs, dtype=dtype)
        if op == "train_mlp_epoch":
            return mlp(inputs, widths).to(dtype), x, torch.randn(n, widths[-1], dtype=dtype)
        return Cnn(inputs, widths).to(dtype), x, torch.randint(widths[-1], (n,))


def two_epochs(
    op: str, x: Tensor, wanted: Tensor, state: Tensor, *, widths: tuple[int, ...], batch_size: int
) -> tuple[Tensor, list[float]]:
    losses = []
    for _ in range(2):
        step = len(losses) * -(-len(x) // batch_size)
        state, loss = getattr(ops, op)(
            x, wanted, state, widths=widths, batch_size=batch_size, step=step, **SETTINGS
        )
        assert loss.dtype == torch.float64
        losses.append(loss.item())
    return state, losses


SIZES = [
    # op, samples, inputs, widths, batch size
    ("train_feature_cnn_epoch", 100, 15, (16, 32, 64, 2), 32),
    ("train_feature_cnn_epoch", 71, 8, (5, 7, 9, 3), 70),  # two blocks and a bit, then one row
    ("train_feature_cnn_epoch", 5, 2, (1, 1, 1, 2), 1),
    ("train_feature_cnn_epoch", 33, 3, (33, 3, 130, 4), 1000),
    ("train_mlp_epoch", 100, 47, (128, 128, 15), 64),
    ("train_mlp_epoch", 71, 3, (70, 1, 33, 5), 33),
    ("train_mlp_epoch", 4, 1, (1,), 1),
    ("train_mlp_epoch", 40, 5, (300, 2), 100),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("path", ["op", "reference"])
@pytest.mark.parametrize(("op", "n", "inputs", "widths", "batch_size"), SIZES)
def test_epochs_are_those_of_autograd_and_adam(op, n, inputs, widths, batch_size, path, device):
    model, x, wanted = sample(op, n, inputs, widths, torch.float64)
    state, before = start(model), start(model)
    arguments = [tensor.to(device) for tensor in (x, wanted, state)]
    if path == "op":
        got, losses = two_epochs(op, *arguments, widths=widths, batch_size=batch_size)
    else:
        with ops.reference_path():
            got, losses = two_epochs(op, *arguments, widths=widths, batch_size=batch_size)
    loss = functional.mse_loss if op == "train_mlp_epoch" else functional.cross_entropy
    want, want_losses = by_hand(model, loss, x, wanted, batch_size=batch_size)
    torch.testing.assert_close(got.cpu(), want, rtol=1e-8, atol=1e-10)
    assert losses == pytest.approx(want_losses, rel=1e-9)
    assert torch.equal(state, before)  # no argument is modified


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("op", ["train_feature_cnn_epoch", "train_mlp_epoch"])
def test_float32_follows_float64(op, device):
    inputs, widths = (15, (16, 32, 64, 2)) if op == "train_feature_cnn_epoch" else (20, (64, 15))
    model, x, wanted = sample(op, 150, inputs, widths, torch.float64)
    settings = {"widths": widths, "batch_size": 32}
    want, want_losses = two_epochs(op, x, wanted, start(model), **settings)
    lower = [t.float() if t.is_floating_point() else t for t in (x, wanted, start(model))]
    got, losses = two_epochs(op, *(t.to(device) for t in lower), **settings)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.cpu().double(), want, rtol=2e-3, atol=2e-4)
    assert losses == pytest.approx(want_losses, rel=1e-4)


@pytest.mark.needs_ext
@pytest.mark.parametrize("op", ["train_feature_cnn_epoch", "train_mlp_epoch"])
def test_bits_depend_on_neither_strides_nor_threads(op):
    widths = (4, 6, 8, 3)
    model, x, wanted = sample(op, 50, 6, widths, torch.float32)
    settings = {"widths": widths, "batch_size": 16}
    want = two_epochs(op, x, wanted, start(model), **settings)[0]
    strided = [t.repeat_interleave(2, -1)[..., ::2] for t in (x, wanted, start(model))]
    assert not any(t.is_contiguous() for t in strided)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        got = two_epochs(op, *strided, **settings)[0]
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(got, want)


@pytest.mark.needs_ext
@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_every_instruction_set(isa):
    if isa == _extension.cpu_isa():
        pytest.skip(f"{isa} is what the other tests run")
    this = "tests/ops/test_training_epochs.py"
    options = ("-m", "pytest", "-q", "-p", "no:cacheprovider", this, "-k", "autograd or float64")
    done = run_with_instruction_set(isa, *options)
    assert done.returncode == 0, done.stdout[-3000:]


def test_epochs_have_no_gradient():
    model, x, wanted = sample("train_mlp_epoch", 10, 3, (2,), torch.float64)
    state = start(model).requires_grad_()
    settings = {"widths": (2,), "batch_size": 4, "step": 0, "lr": 0.1}
    trained, _ = ops.train_mlp_epoch(x, wanted, state, **settings)
    with pytest.raises(RuntimeError, match="train_mlp_epoch is not differentiable"):
        trained.sum().backward()
    with ops.reference_path(), pytest.raises(RuntimeError, match="no gradient on the reference"):
        ops.train_mlp_epoch(x, wanted, state, **settings)


@pytest.mark.parametrize("op", ["train_feature_cnn_epoch", "train_mlp_epoch"])
def test_epochs_pass_torch_checks_of_an_op(op):
    widths = (2, 3, 4, 2)
    model, x, wanted = sample(op, 10, 4, widths, torch.float32)
    keywords = {"widths": list(widths), "batch_size": 4, "step": 0, "lr": 0.1, "ema_decay": 0.5}
    torch.library.opcheck(
        getattr(torch.ops.nnmf_cuda, op).default, (x, wanted, start(model)), keywords
    )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.rand(3)}, ValueError, "x must have 2 dimensions"),
        ({"x": torch.rand(0, 4)}, ValueError, r"x must have at least one sample"),
        ({"x": torch.ones(9, 4, dtype=torch.int64)}, TypeError, "x must be float32 or float64"),
        ({"x": torch.rand(9, 4).double()}, TypeError, "state must be float64"),
        ({"x": torch.rand(9, 1)}, ValueError, "at least 2 features for the max-pool"),
        ({"labels": torch.zeros(8, dtype=torch.int64)}, ValueError, "labels must have shape"),
        ({"labels": torch.zeros(9)}, TypeError, "labels must be int64"),
        ({"labels": torch.full((9,), 2)}, ValueError, r"labels must be within 0\.\.1.*from 2 to 2"),
        ({"state": torch.zeros(4, 9)}, ValueError, r"state must have shape \(4, n_weights\)"),
        ({"widths": (2, 3, 4)}, ValueError, "widths must be .*got 3 numbers"),
        ({"widths": (2, 3, 0, 2)}, ValueError, r"widths\[2\] must be >= 1, got 0"),
        ({"widths": ()}, ValueError, "widths must have at least one number"),
        ({"batch_size": 0}, ValueError, "batch_size must be >= 1, got 0"),
        ({"step": -1}, ValueError, "step must be >= 0, got -1"),
        ({"lr": float("inf")}, ValueError, "lr must be a finite number > 0, got inf"),
        ({"ema_decay": 1.0}, ValueError, r"ema_decay must be in \[0, 1\), got 1.0"),
    ],
)
def test_epochs_reject_bad_arguments(change, error, message):
    model, x, labels = sample("train_feature_cnn_epoch", 9, 4, (2, 3, 4, 2), torch.float32)
    arguments = {
        **{"x": x, "labels": labels, "state": start(model), "widths": (2, 3, 4, 2)},
        **{"batch_size": 4, "step": 0, "lr": 0.1, "ema_decay": 0.5},
        **change,
    }
    with pytest.raises(error, match=message):
        ops.train_feature_cnn_epoch(**arguments)


def test_an_mlp_rejects_targets_of_another_shape():
    model, x, targets = sample("train_mlp_epoch", 9, 4, (3, 2), torch.float32)
    settings = {"widths": (3, 2), "batch_size": 4, "step": 0, "lr": 0.1}
    with pytest.raises(ValueError, match=r"targets must have shape .* = \(9, 2\), got \(9, 1\)"):
        ops.train_mlp_epoch(x, targets[:, :1], start(model), **settings)
    with pytest.raises(TypeError, match="targets must be float32"):
        ops.train_mlp_epoch(x, targets.double(), start(model), **settings)
