"""Compiled epochs, and those that a CUDA graph would hold, against the plain loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nnmf_cuda import ops
from nnmf_cuda.models.diffusion import NoiseSchedule
from nnmf_cuda.training import TrainingResult, epochs, train_classifier, train_denoiser
from nnmf_cuda.training.epochs import CompiledEpochs, GraphedEpochs, PlainEpochs, Settings, Task
from tests.helpers import DEVICES


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


def test_what_a_graph_records_is_the_plain_epoch(monkeypatch):
    """Without a GPU the stream and the graph do nothing, and every epoch is made when recorded."""
    kept = {}
    for name in ("plain", "graphed"):
        model = torch.nn.Linear(3, 1)
        with torch.no_grad():
            model.weight.fill_(0.5)
            model.bias.fill_(0.1)
        settings = Settings("toy", 3, 0.1, 4, 0.7, 0, False)
        task = Task(model, lambda network, x: network(x).square().mean())
        way = PlainEpochs(task, settings) if name == "plain" else _OnTheCpu(task, settings)
        losses = [way.run((torch.arange(18.0).reshape(6, 3) / (9 + e),)).item() for e in range(3)]
        kept[name] = (losses, [p.clone() for p in way.average.parameters()])
    assert kept["graphed"][0] == pytest.approx(kept["plain"][0], rel=1e-6)
    for mine, plain in zip(kept["graphed"][1], kept["plain"][1], strict=True):
        torch.testing.assert_close(mine, plain)


class _OnTheCpu(GraphedEpochs):
    """Makes on replay what a graph would have recorded."""

    def _step_by_step(self, samples: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return self._plain(samples)

    def _record(self, samples: tuple[torch.Tensor, ...]) -> None:
        self._samples = [tensor.clone() for tensor in samples]
        self._loss = torch.zeros(())
        self._graph = self

    def replay(self) -> None:
        self._loss = self._plain(tuple(self._samples))


@pytest.mark.needs_cuda
@pytest.mark.parametrize("kind", ["classifier", "denoiser"])
def test_a_graph_is_recorded(kind, caplog):
    train(kind, "cuda", n_epochs=3)
    assert "no CUDA graph" not in caplog.text
