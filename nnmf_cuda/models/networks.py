"""The networks: the classifier and the denoiser of feature vectors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from nnmf_cuda import ops
from nnmf_cuda.reference import sinusoidal_embedding

__all__ = ["FeatureCNN", "FeatureDenoiser", "deterministic_convolutions"]


class FeatureCNN(nn.Module):
    """Light 1-D convolutional classifier of feature vectors.

    Conv1d 16, ReLU, Conv1d 32, ReLU (kernels 3, padding 1), max-pool 2, fully connected 64, ReLU,
    `n_classes` logits. It takes features as they are: nothing is normalised inside.

    Parameters
    ----------
    n_features : int
        Length of a feature vector, at least 2 (the pool halves it).
    n_classes : int
        Number of logits, at least 2.
    """

    def __init__(self, n_features: int, n_classes: int) -> None:
        super().__init__()
        if n_features < 2:
            raise ValueError(
                f"n_features must be at least 2 for the max-pool of 2, got {n_features}: "
                "select more components"
            )
        if n_classes < 2:
            raise ValueError(f"n_classes must be at least 2, got {n_classes}")
        self.n_features = n_features
        self.n_classes = n_classes
        self.convolutions = nn.Sequential(
            nn.Conv1d(1, 16, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv1d(16, 32, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool1d(2),
        )
        self.head = nn.Sequential(
            nn.Linear(32 * (n_features // 2), 64), nn.ReLU(), nn.Linear(64, n_classes)
        )

    def weights(self) -> list[Tensor]:
        """Return weight and bias of each layer, as `ops.feature_cnn` takes them; not copies."""
        return _weights((*self.convolutions, *self.head))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (n_samples, n_classes) of features (n_samples, n_features)."""
        _require_features(x, self.n_features)
        if is_observed(self):
            logits: Tensor = self.head[-1](self.hidden(x))
            return logits
        return ops.feature_cnn(x, self.weights())

    def hidden(self, x: Tensor) -> Tensor:
        """Return the units (n_samples, 64) that the last layer reads, in plain torch."""
        units: Tensor = self.head[:-1](self.convolutions(x.unsqueeze(1)).flatten(1))
        return units


class FeatureDenoiser(nn.Module):
    """Multilayer perceptron that predicts the clean features x_0 from x_t and t.

    x_t and the sinusoidal embedding of t enter together; two hidden layers with ReLU; the output
    is neither clipped nor normalised.

    Parameters
    ----------
    n_features : int
        Length of a feature vector.
    hidden : int, default=128
        Width of the hidden layers.
    embedding_dim : int, default=32
        Length of the embedding of t.
    """

    def __init__(self, n_features: int, *, hidden: int = 128, embedding_dim: int = 32) -> None:
        super().__init__()
        for name, value in (
            ("n_features", n_features),
            ("hidden", hidden),
            ("embedding_dim", embedding_dim),
        ):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.n_features = n_features
        self.hidden = hidden
        self.embedding_dim = embedding_dim
        self.layers = nn.Sequential(
            nn.Linear(n_features + embedding_dim, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, n_features),
        )

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Return the prediction of x_0 (n_samples, n_features).

        Parameters
        ----------
        x_t : Tensor of shape (n_samples, n_features)
            Noised features.
        t : Tensor of shape (n_samples,)
            int64 timesteps.
        """
        _require_features(x_t, self.n_features)
        pred_x_start: Tensor = self.layers(self.inputs(x_t, t))
        return pred_x_start

    def inputs(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Return what the first layer takes: x_t, and the embedding of t in x_t's dtype."""
        embedding = sinusoidal_embedding(t, self.embedding_dim).to(x_t.dtype)
        return torch.cat((x_t, embedding), 1)

    def weights(self) -> list[Tensor]:
        """Return [W1, b1, W2, b2, W3, b3], as `ops.purify` takes them; not copies."""
        return _weights(self.layers)


def is_observed(module: nn.Module) -> bool:
    """Whether to go through torch's modules: plain torch is asked for, or hooks want to see them.

    A module of another type than ours may have been put in a layer's place.
    """
    return ops.is_reference_path() or not _is_plain(module)


def _is_plain(module: nn.Module) -> bool:
    """Look at a module and its parts; by hand, as `modules()` takes as long as a small network."""
    if (
        type(module) not in FUSED
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    ):
        return False
    for part in module._modules.values():  # noqa: SIM110  (a generator takes twice as long)
        if part is not None and not _is_plain(part):
            return False
    return True


def _weights(layers: Iterable[nn.Module]) -> list[Tensor]:
    weights: list[Tensor | None] = []
    for layer in layers:
        if type(layer) in (nn.Linear, nn.Conv1d):
            weights += layer._parameters.values()  # not by name, which takes torch much longer
        elif isinstance(layer, (nn.Linear, nn.Conv1d)):  # parametrized
            weights += (layer.weight, layer.bias)
    return [tensor for tensor in weights if tensor is not None]


def _require_features(x: Tensor, n_features: int) -> None:
    if x.dim() != 2 or x.shape[1] != n_features:
        raise ValueError(
            f"features must have shape (n_samples, {n_features}), got {tuple(x.shape)}"
        )


FUSED = {
    FeatureCNN,
    FeatureDenoiser,
    nn.Sequential,
    nn.Conv1d,
    nn.Linear,
    nn.ReLU,
    nn.MaxPool1d,
}


@contextmanager
def deterministic_convolutions() -> Iterator[None]:
    """Have cuDNN choose deterministic algorithms inside the block; no effect on the CPU."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before
