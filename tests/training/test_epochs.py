"""Compiled epochs, and those that a CUDA graph would hold, against the plain loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nnmf_cuda import ops
from nnmf_cuda.models.diffusion import DiffusionPurifier, NoiseSchedule
from nnmf_cuda.models.features import FeatureExtractor
from nnmf_cuda.training import (
    ImageSamples,
    TrainingResult,
    epochs,
    train_classifier,
    train_denoiser,
    train_joint_classifier,
    train_pixel_classifier,
    train_robust_classifier,
)
from nnmf_cuda.training.epochs import (
    CompiledEpochs,
    EpochOp,
    GraphedEpochs,
    PlainEpochs,
    Settings,
    Task,
)
from tests.helpers import DEVICES
from tests.op_recorder import NoHost, recorded_on_the_cpu


def train(kind: str, device: str = "cpu", n_epochs: int = 6) -> TrainingResult:
    rng = np.random.default_rng(0)
    labels = np.arange(180) % 2
    features = (0.4 + 0.2 * labels[:, None] + 0.2 * rng.standard_normal((180, 9))).clip(0, 1)
    x, y, valid_x, valid_y = features[:130], labels[:130], features[130:], labels[130:]
    if kind == "classifier":
        return train_classifier(x, y, valid_x, valid_y, n_classes=2, epochs=n_epochs, device=device)
    return train_denoiser(
        x, NoiseSchedule.linear(50), valid_features=valid_x, epochs=n_epochs, device=device
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["classifier", "denoiser"])
def test_loss_curves_are_those_of_the_plain_loop(kind, device):
    got = train(kind, device)
    with ops.reference_path():
        want = train(kind, device)
    assert got.best_epoch == want.best_epoch
    assert got.history.keys() == want.history.keys()
    for name, values in want.history.items():
        assert got.history[name] == pytest.approx(values, rel=1e-4), name
    for mine, plain in zip(got.model.parameters(), want.model.parameters(), strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-3, atol=1e-4)
        assert mine.requires_grad
        assert not mine.is_inference()


def way(kind: str, monkeypatch: pytest.MonkeyPatch) -> type:
    """Return the class that made the epochs of a training."""
    seen: list[type] = []
    choose = epochs.epochs_of

    def watched(task: Task, settings: Settings) -> object:
        chosen = choose(task, settings)
        seen.append(type(chosen))
        return chosen

    monkeypatch.setattr("nnmf_cuda.training.loop.epochs_of", watched)
    train(kind, n_epochs=1)
    return seen[0]


@pytest.mark.needs_ext
@pytest.mark.parametrize("kind", ["classifier", "denoiser"])
def test_compiled_epochs_are_used_but_on_the_reference_path(kind, monkeypatch):
    assert way(kind, monkeypatch) is CompiledEpochs
    with ops.reference_path():
        assert way(kind, monkeypatch) is PlainEpochs


def test_plain_epochs_serve_where_nothing_is_compiled(monkeypatch):
    monkeypatch.setattr(epochs, "served_by", lambda op, device: "reference")
    assert way("denoiser", monkeypatch) is PlainEpochs


def test_graphed_epochs_are_the_plain_ones():
    kept = {}
    for way in (PlainEpochs, GraphedEpochs):
        model = torch.nn.Linear(3, 1)
        with torch.no_grad():
            model.weight.fill_(0.5)
            model.bias.fill_(0.1)
        settings = Settings("toy", 3, 0.1, 4, 0.7, 0, False)
        ways = way(Task(model, lambda network, x: network(x).square().mean()), settings)
        losses = []
        with recorded_on_the_cpu():
            for e in range(4):
                losses.append(ways.run((torch.arange(18.0).reshape(6, 3) / (9 + e),)).item())
        kept[way] = (losses, [p.clone() for p in ways.average.parameters()])
    assert kept[GraphedEpochs][0] == pytest.approx(kept[PlainEpochs][0], rel=1e-6)
    for mine, plain in zip(kept[GraphedEpochs][1], kept[PlainEpochs][1], strict=True):
        torch.testing.assert_close(mine, plain)


def robust(kind: str, device: str = "cpu") -> TrainingResult:
    """Train for four epochs by one of the ways that attack while they train."""
    rng = np.random.default_rng(0)
    labels = np.arange(70) % 2
    features = (0.4 + 0.2 * labels[:, None] + 0.2 * rng.standard_normal((70, 6))).clip(0, 1)
    method, *options = kind.split()
    if method == "pixels":
        generator = torch.Generator().manual_seed(0)
        components = torch.rand(5, 63, generator=generator) ** 3
        extractor = FeatureExtractor(components, torch.tensor([0, 2, 3]), image_shape=(7, 9))
        images = (torch.rand(70, 5, generator=generator) @ components / 4).clamp(0, 1).to(device)
        samples = ImageSamples(extractor.to(device), {"train": images[:50], "valid": images[50:]})
        settings = {"method": options[0], "n_steps": 2, "epochs": 4, "batch_size": 20}
        return train_pixel_classifier(
            samples, labels[:50], labels[50:], n_classes=2, class_weight="balanced", **settings
        )
    x, y, valid_x, valid_y = features[:50], labels[:50], features[50:], labels[50:]
    if method == "joint":
        return train_joint_classifier(
            x, y, valid_x, valid_y, n_classes=2, epochs=4, batch_size=20, device=device
        )
    purifier = None
    if "purifier" in options:
        schedule = NoiseSchedule.linear(30)
        denoiser = train_denoiser(x, schedule, epochs=1, device=device).model
        purifier = DiffusionPurifier(denoiser, schedule, timesteps=(9,), n_draws=2).to(device)
    return train_robust_classifier(
        x,
        y,
        valid_x,
        valid_y,
        n_classes=2,
        method=method,
        network="mlp" if "mlp" in options else "cnn",
        norm="L2" if "L2" in options else "Linf",
        purifier=purifier,
        n_steps=3,
        class_weight="balanced" if "balanced" in options else None,
        eps_ramp=0.5 if "ramp" in options else 0.0,
        epochs=4,
        batch_size=20,
        device=device,
    )


ROBUST = [
    "pgd",
    "pgd purifier",
    "trades balanced ramp",
    "trades mlp L2 ramp",
    "mtl-ibp mlp",
    "trades-ibp L2",
    "joint",
    "pixels pgd",
    "pixels trades",
]


@pytest.mark.parametrize("kind", ROBUST)
def test_epochs_with_attacks_in_them_are_recorded(kind, monkeypatch, caplog):
    """Recorded and replayed, epochs and validation give the bits that they give step by step."""
    monkeypatch.setattr("nnmf_cuda.training.loop.epochs_of", GraphedEpochs)
    plain = robust(kind)
    with recorded_on_the_cpu() as recorder:
        found = robust(kind)
    assert "no CUDA graph" not in caplog.text
    # Epochs and validation; each made as it is once, then recorded.
    assert recorder.n_recorded == 2
    assert recorder.n_replayed == 2 * 3
    assert found.history == plain.history
    assert found.best_epoch == plain.best_epoch
    for mine, other in zip(found.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize(
    "kind", ["pgd", "trades ramp", "trades mlp L2 ramp", "mtl-ibp mlp", "trades-ibp L2", "joint"]
)
def test_a_batch_needs_nothing_of_the_host(kind, monkeypatch):
    """Seen on a device that is not there, torch's "meta": whoever reads from it would raise."""
    given = {}

    def keep(task: Task, settings: Settings, **functions) -> TrainingResult:
        given["task"] = task
        given["samples"] = functions["draw_epoch"](torch.Generator().manual_seed(0))
        return TrainingResult(task.model, {}, 0)

    for module in ("adversarial", "joint"):
        monkeypatch.setattr(f"nnmf_cuda.training.{module}.fit", keep)
    robust(kind)
    task, samples = given["task"], [sample.to("meta") for sample in given["samples"]]
    model = task.model.to("meta")
    with NoHost():
        torch.autograd.backward(task.batch_loss(model, *samples))
    assert all(parameter.grad.device.type == "meta" for parameter in model.parameters())


@pytest.mark.needs_cuda
@pytest.mark.parametrize("kind", ROBUST)
def test_a_graph_of_epochs_with_attacks_is_recorded(kind, caplog):
    robust(kind, "cuda")
    assert "no CUDA graph" not in caplog.text


@pytest.mark.needs_cuda
@pytest.mark.parametrize("kind", ["classifier", "denoiser"])
def test_a_graph_is_recorded(kind, caplog):
    train(kind, "cuda", n_epochs=3)
    assert "no CUDA graph" not in caplog.text


def rows_of(settings: Settings, model: torch.nn.Module) -> PlainEpochs:
    """Run the epochs of a task on fresh samples, three steps each."""
    generator = torch.Generator().manual_seed(0)
    made = PlainEpochs(Task(model, lambda network, x: network(x).square().mean()), settings)
    for _ in range(settings.epochs):
        made.run((torch.rand(12, 3, generator=generator),))
    return made


def settings_of(**changes: float) -> Settings:
    given = {"epochs": 2, "lr": 0.1, "batch_size": 4, "ema_decay": 0.0, "seed": 0}
    return Settings("model", progress=False, **given | changes)


def test_weight_decay_shrinks_weights_by_its_share_of_the_step():
    model = torch.nn.Linear(3, 2)
    before = [weight.detach().clone() for weight in model.parameters()]
    made = PlainEpochs(
        Task(model, lambda network, x: 0 * network(x).sum()), settings_of(weight_decay=0.25)
    )
    made.run((torch.ones(8, 3),))  # two steps without a gradient
    for weight, was in zip(made.average.parameters(), before, strict=True):
        torch.testing.assert_close(weight, was * (1 - 0.1 * 0.25) ** 2)


def test_one_cycle_rises_and_falls_to_almost_nothing():
    rates = []

    class Watched(PlainEpochs):
        def _take_step(self, batch):
            rates.append(self._optimizer.param_groups[0]["lr"])
            return super()._take_step(batch)

    made = Watched(
        Task(torch.nn.Linear(3, 2), lambda network, x: network(x).square().mean()),
        settings_of(epochs=10, one_cycle=True),
    )
    for _ in range(10):
        made.run((torch.ones(12, 3),))
    assert len(rates) == 30
    top = rates.index(max(rates))
    assert 0 < top < 5
    assert 0.09 < rates[top] <= 0.1
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[-1] < 0.001


def test_what_layers_keep_of_the_samples_is_averaged_with_the_weights():
    def network() -> torch.nn.Module:
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))

    last = rows_of(settings_of(), network())
    assert int(last._model[1].num_batches_tracked) == 6
    torch.testing.assert_close(last.average[1].running_mean, last._model[1].running_mean)
    trailing = rows_of(settings_of(ema_decay=0.9), network())
    assert not torch.equal(trailing.average[1].running_mean, trailing._model[1].running_mean)
    assert not torch.equal(trailing.average[1].running_mean, torch.zeros(2))


def test_a_cycle_and_a_decay_are_made_by_the_loop_that_knows_them(monkeypatch):
    monkeypatch.setattr(epochs, "served_by", lambda op, device: "kernel")
    op = EpochOp("train_mlp_epoch", [2], inputs=lambda x: (x, x))
    task = Task(torch.nn.Linear(3, 2), lambda network, x: network(x).sum(), op)
    assert type(epochs.epochs_of(task, settings_of())) is CompiledEpochs
    assert type(epochs.epochs_of(task, settings_of(one_cycle=True))) is PlainEpochs
    assert type(epochs.epochs_of(task, settings_of(weight_decay=0.1))) is PlainEpochs
