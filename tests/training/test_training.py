from __future__ import annotations

import numpy as np
import pytest
import torch

from nnmf_cuda.evaluation import denoising_error
from nnmf_cuda.models.diffusion import NoiseSchedule
from nnmf_cuda.training import train_classifier, train_denoiser
from nnmf_cuda.training.epochs import Settings, Task
from nnmf_cuda.training.loop import fit

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.needs_cuda)]


def two_classes(n: int, seed: int, n_classes: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors around one direction per class, overlapping."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % n_classes
    features = 0.3 + 0.1 * rng.standard_normal((n, 6))
    features[np.arange(n), labels] += 0.2
    features = features.clip(0)
    return features / np.linalg.norm(features, axis=1, keepdims=True), labels


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, ...]:
    return (*two_classes(200, 0), *two_classes(80, 1))


@pytest.mark.parametrize("device", DEVICES)
def test_classifier_learns(data, device):
    result = train_classifier(*data, n_classes=2, epochs=8, lr=1e-2, device=device)
    history = result.history
    assert set(history) == {"train_loss", "valid_loss", "valid_accuracy"}
    assert all(len(values) == 8 for values in history.values())
    assert history["train_loss"][-1] < 0.7 * history["train_loss"][0]
    assert history["valid_accuracy"][result.best_epoch] > 0.8
    assert not result.model.training
    assert all(p.grad is None for p in result.model.parameters())
    assert next(result.model.parameters()).device.type == device


def test_classifier_takes_three_classes():
    features, labels = two_classes(210, 0, n_classes=3)
    valid = two_classes(90, 1, n_classes=3)
    result = train_classifier(features, labels, *valid, n_classes=3, epochs=8)
    assert max(result.history["valid_accuracy"]) > 0.7
    assert result.model(torch.rand(2, 6)).shape == (2, 3)


def test_classifier_keeps_the_best_validation_epoch(data):
    result = train_classifier(*data, n_classes=2, epochs=8, lr=0.01)
    accuracy, loss = result.history["valid_accuracy"], result.history["valid_loss"]
    ranks = [(a, -b) for a, b in zip(accuracy, loss, strict=True)]
    assert result.best_epoch == ranks.index(max(ranks))
    x, y = torch.as_tensor(data[2]).float(), torch.as_tensor(data[3])
    with torch.no_grad():
        logits = result.model(x)
    assert float((logits.argmax(1) == y).float().mean()) == accuracy[result.best_epoch]
    kept = float(torch.nn.functional.cross_entropy(logits, y))
    assert kept == pytest.approx(loss[result.best_epoch], rel=1e-6)


def test_ties_go_to_the_lower_loss_then_the_earlier_epoch():
    scores = iter([(0.5, 0.9), (0.7, 0.6), (0.7, 0.4), (0.7, 0.4), (0.6, 0.1)])
    model = torch.nn.Linear(1, 1)
    weights_after = []

    def evaluate(network: torch.nn.Module) -> dict[str, torch.Tensor]:
        weights_after.append(network.weight.detach().clone())
        accuracy, loss = next(scores)
        return {"valid_accuracy": torch.tensor(accuracy), "valid_loss": torch.tensor(loss)}

    result = fit(
        Task(model, lambda network, x: network(x).square().mean()),
        Settings("toy", 5, 1e-2, 2, 0.5, 0, False),
        draw_epoch=lambda generator: (torch.ones(4, 1),),
        evaluate=evaluate,
        rank=lambda values: (values["valid_accuracy"], -values["valid_loss"]),
    )
    assert result.best_epoch == 2
    assert torch.equal(result.model.weight, weights_after[2])


def test_loss_is_the_mean_over_samples_with_a_ragged_last_batch():
    model = torch.nn.Linear(1, 1)
    values = torch.arange(5.0).unsqueeze(1)
    result = fit(
        Task(model, lambda network, x: x.mean() + 0 * network(x).sum()),
        Settings("toy", 1, 1e-3, 2, 0.5, 0, False),
        draw_epoch=lambda generator: (values,),
    )
    assert result.history == {"train_loss": [pytest.approx(2.0)]}
    assert result.best_epoch == 0


@pytest.mark.parametrize("device", DEVICES)
def test_training_repeats_bit_for_bit(data, device):
    def run(seed: int) -> list[torch.Tensor]:
        classifier = train_classifier(*data, n_classes=2, epochs=2, seed=seed, device=device)
        denoiser = train_denoiser(
            data[0], NoiseSchedule.linear(100), epochs=2, seed=seed, device=device
        )
        return [*classifier.model.parameters(), *denoiser.model.parameters()]

    torch.manual_seed(1)
    first = run(0)
    torch.manual_seed(2)  # must not matter
    again, other = run(0), run(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("device", DEVICES)
def test_training_leaves_the_global_random_state(data, device):
    before = torch.get_rng_state()
    on_gpu = torch.cuda.get_rng_state() if device == "cuda" else None
    train_classifier(*data, n_classes=2, epochs=1, device=device)
    train_denoiser(data[0], NoiseSchedule.linear(100), epochs=1, device=device)
    assert torch.equal(torch.get_rng_state(), before)
    if on_gpu is not None:
        assert torch.equal(torch.cuda.get_rng_state(), on_gpu)


def test_training_is_in_float32_whatever_the_default(data):
    torch.set_default_dtype(torch.float64)
    try:
        classifier = train_classifier(*data, n_classes=2, epochs=1).model
        denoiser = train_denoiser(data[0], NoiseSchedule.linear(10), epochs=1).model
    finally:
        torch.set_default_dtype(torch.float32)
    parameters = [*classifier.parameters(), *denoiser.parameters()]
    assert {p.dtype for p in parameters} == {torch.float32}


def test_training_leaves_the_data(data):
    copies = [array.copy() for array in data]
    train_classifier(*data, n_classes=2, epochs=1)
    for array, copy in zip(data, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("device", DEVICES)
def test_denoiser_removes_noise(data, device):
    schedule = NoiseSchedule.linear(100)
    features, valid = data[0], data[2]
    result = train_denoiser(
        features, schedule, epochs=40, seed=0, device=device, valid_features=valid
    )
    assert set(result.history) == {"train_loss", "valid_loss"}
    assert result.best_epoch == 39
    assert result.history["valid_loss"][-1] < 0.2 * result.history["valid_loss"][0]
    found = denoising_error(
        result.model, schedule.alphas_cumprod, valid, seed=0, timesteps=[41, 99]
    )
    error = found.mse_denoised
    # Left as it is, x_t / sqrt(abar) has the error (1 - abar) / abar; the training mean, the
    # features' variance, which no useful denoiser exceeds by much even at the highest noise.
    abar = schedule.alphas_cumprod[[41, 99]].numpy()
    assert np.all(error < 0.5 * (1 - abar) / abar)
    assert np.all(error < 1.2 * valid.var(0).mean())
    assert error[0] < error[1]


def test_denoiser_has_the_moving_average_of_its_weights(data):
    """One step an epoch: the average is computed by hand from runs that stop earlier."""
    schedule = NoiseSchedule.linear(100)
    settings = {"batch_size": len(data[0]), "seed": 3, "lr": 0.01}

    def weights(epochs: int, ema_decay: float) -> torch.Tensor:
        result = train_denoiser(data[0], schedule, epochs=epochs, ema_decay=ema_decay, **settings)
        return torch.cat([p.detach().flatten() for p in result.model.parameters()])

    first, second, third = (weights(epochs, 0.0) for epochs in (1, 2, 3))
    # From the same start with 0.1, 2 / 11 and 3 / 12 kept; 0.2 caps the last.
    one, two = weights(1, 0.2), weights(2, 0.2)
    torch.testing.assert_close(two, 2 / 11 * one + 9 / 11 * second, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(weights(3, 0.2), 0.2 * two + 0.8 * third, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(one, first, atol=1e-4)
    with pytest.raises(ValueError, match=r"ema_decay must be in \[0, 1\), got 1"):
        train_denoiser(data[0], schedule, ema_decay=1.0)


def test_validation_does_not_change_the_denoiser(data):
    schedule = NoiseSchedule.linear(100)
    watched = train_denoiser(data[0], schedule, epochs=2, valid_features=data[2])
    alone = train_denoiser(data[0], schedule, epochs=2)
    assert set(alone.history) == {"train_loss"}
    for a, b in zip(watched.model.parameters(), alone.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"features": np.zeros((3, 2, 2))}, ValueError, r"features must have shape"),
        ({"features": np.zeros((0, 6))}, ValueError, r"at least one sample, got \(0, 6\)"),
        ({"features": np.full((200, 6), np.nan)}, ValueError, "features must be finite"),
        (
            {"valid_features": np.zeros((80, 5))},
            ValueError,
            r"valid_features must have shape \(n_samples, 6\)",
        ),
        ({"labels": np.zeros(199, int)}, ValueError, r"labels must have shape \(200,\)"),
        ({"labels": np.zeros(200)}, TypeError, "labels must be integers, got torch.float64"),
        ({"labels": np.zeros(200, bool)}, TypeError, "labels must be integers, got torch.bool"),
        ({"labels": np.full(200, 2)}, ValueError, r"labels must be within 0\.\.1 for n_classes=2"),
        ({"valid_labels": np.full(80, -1)}, ValueError, "valid_labels must be within"),
        ({"n_classes": 1}, ValueError, "got values from 0 to 1"),
        ({"epochs": 0}, ValueError, "epochs must be at least 1, got 0"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"lr": 0.0}, ValueError, "lr must be a finite number > 0, got 0.0"),
        ({"lr": float("nan")}, ValueError, "lr must be a finite number > 0, got nan"),
    ],
)
def test_classifier_rejects_bad_arguments(data, change, error, message):
    names = ("features", "labels", "valid_features", "valid_labels")
    arguments = {**dict(zip(names, data, strict=True)), "n_classes": 2, **change}
    with pytest.raises(error, match=message):
        train_classifier(**arguments)


def test_denoiser_rejects_bad_features():
    with pytest.raises(ValueError, match="features must be finite"):
        train_denoiser(np.full((3, 4), np.inf), NoiseSchedule.linear(10))


def test_a_diverging_loss_is_an_error():
    features = np.full((8, 6), 1e30)  # squares overflow float32
    with pytest.raises(ValueError, match=r"train_loss of the denoiser became .* in epoch 1"):
        train_denoiser(features, NoiseSchedule.linear(10), epochs=2)


def test_progress_is_silent_off_a_terminal(data, capsys):
    train_classifier(*data, n_classes=2, epochs=1, progress=True)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""
