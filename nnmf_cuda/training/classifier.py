"""Training of the classifier."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnmf_cuda.models.networks import FeatureCNN
from nnmf_cuda.training.epochs import EpochOp, Settings, Task
from nnmf_cuda.training.loop import TrainingResult, fit, initialised
from nnmf_cuda.training.validation import Array, Samples


def train_classifier(
    features: Array,
    labels: Array,
    valid_features: Array,
    valid_labels: Array,
    *,
    n_classes: int,
    ema_decay: float = 0.998,
    epochs: int = 100,
    lr: float = 1e-3,
    batch_size: int = 32,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> TrainingResult[FeatureCNN]:
    """Train a `FeatureCNN` by cross-entropy and keep its best validation epoch.

    What is validated and kept is the moving average of the weights over the steps: the best of
    many single epochs on a small validation split would be a matter of luck. The best epoch has
    the highest validation accuracy; among equals the lowest validation loss; among equals the
    earliest.

    Parameters
    ----------
    features, valid_features : array of shape (n_samples, n_features)
        Finite; used in float32.
    labels, valid_labels : array of shape (n_samples,)
        Integers in 0..n_classes-1.
    n_classes : int
        Number of classes.
    ema_decay : float, default=0.998
        Share of the average that each step keeps, in [0, 1), less in the first steps; 0 keeps the
        last step's weights.
    epochs, lr, batch_size
        Passes over the data, Adam's learning rate, samples per step.
    seed : int, default=0
        Determines initial weights and batches, the same on every device. The global random
        state is neither used nor changed.
    device : torch.device or str, default="cpu"
        Where to train.
    progress : bool, default=False
        Show a bar, if the standard error is a terminal.

    Returns
    -------
    TrainingResult

    Raises
    ------
    TypeError, ValueError
        If data or settings do not fit, or the loss stops being finite.
    """
    samples = Samples.of(
        features, labels, valid_features, valid_labels, n_classes=n_classes, device=device
    )
    x, y = samples.x, samples.y
    model = new_classifier(samples, seed)

    def draw_epoch(generator: torch.Generator) -> tuple[Tensor, ...]:
        order = torch.randperm(len(x), generator=generator).to(x.device)
        return x[order], y[order]

    def batch_loss(network: nn.Module, batch_x: Tensor, batch_y: Tensor) -> Tensor:
        return functional.cross_entropy(network(batch_x), batch_y)

    def evaluate(network: nn.Module) -> dict[str, Tensor]:
        logits, valid_y = network(samples.valid_x), samples.valid_y
        return {
            "valid_loss": functional.cross_entropy(logits, valid_y),
            "valid_accuracy": (logits.argmax(1) == valid_y).float().mean(),
        }

    widths = [len(weight) for weight in model.weights()[::2]]
    op = EpochOp("train_feature_cnn_epoch", widths, inputs=lambda rows, classes: (rows, classes))
    return fit(
        Task(model, batch_loss, op),
        Settings("classifier", epochs, lr, batch_size, ema_decay, seed, progress),
        draw_epoch=draw_epoch,
        evaluate=evaluate,
        rank=lambda scores: (scores["valid_accuracy"], -scores["valid_loss"]),
    )


def new_classifier(samples: Samples, seed: int) -> FeatureCNN:
    """Return an untrained classifier of such samples, on their device."""
    network = initialised(lambda: FeatureCNN(samples.x.shape[1], samples.n_classes), seed)
    return network.to(samples.x)
