"""Training of the denoiser."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnmf_cuda.models.diffusion import NoiseSchedule
from nnmf_cuda.models.networks import FeatureDenoiser
from nnmf_cuda.training.epochs import EpochOp, Settings, Task
from nnmf_cuda.training.loop import TrainingResult, fit, initialised
from nnmf_cuda.training.validation import Array, as_features


def train_denoiser(
    features: Array,
    schedule: NoiseSchedule,
    *,
    hidden: int = 128,
    embedding_dim: int = 32,
    ema_decay: float = 0.998,
    epochs: int = 300,
    lr: float = 1e-3,
    batch_size: int = 64,
    seed: int = 0,
    device: torch.device | str = "cpu",
    valid_features: Array | None = None,
    progress: bool = False,
) -> TrainingResult[FeatureDenoiser]:
    """Train a `FeatureDenoiser` to predict x_0 from x_t.

    The loss is the mean squared error on x_0, with t uniform on 0..T-1 and fresh noise for every
    sample of every epoch. The model returned has the moving average of the weights over the steps,
    as is usual for diffusion [1]_: the last step's weights carry the noise of its (t, noise).
    Validation features are only watched: one draw of (t, noise) for each, the same in every epoch.

    Parameters
    ----------
    features : array of shape (n_samples, n_features)
        Finite; used in float32.
    schedule : NoiseSchedule
        Noise schedule.
    hidden, embedding_dim : int
        Widths of the `FeatureDenoiser`.
    ema_decay, epochs, lr, batch_size, seed, device, progress
        As in `train_classifier`; the seed determines timesteps and noise too.
    valid_features : array of shape (n_valid, n_features), optional
        Adds "valid_loss" to the history.

    Returns
    -------
    TrainingResult

    Raises
    ------
    TypeError, ValueError
        If data or settings do not fit, or the loss stops being finite.

    References
    ----------
    .. [1] Ho, Jain & Abbeel (2020), Denoising diffusion probabilistic models, NeurIPS 33,
       appendix B.
    """
    x = as_features("features", features, device)
    model = initialised(
        lambda: FeatureDenoiser(x.shape[1], hidden=hidden, embedding_dim=embedding_dim), seed
    ).to(x)
    schedule = schedule.to(device)

    def draw(x_start: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        t = torch.randint(schedule.num_timesteps, (len(x_start),), generator=generator)
        noise = torch.randn(x_start.shape, generator=generator, dtype=x.dtype)
        return x_start, t.to(x.device), noise.to(x.device)

    def draw_epoch(generator: torch.Generator) -> tuple[Tensor, ...]:
        order = torch.randperm(len(x), generator=generator).to(x.device)
        return draw(x[order], generator)

    def loss_of(network: nn.Module, x_start: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        return functional.mse_loss(network(schedule.q_sample(x_start, t, noise), t), x_start)

    def rows_of_mlp(x_start: Tensor, t: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        return model.inputs(schedule.q_sample(x_start, t, noise), t), x_start

    evaluate = None
    if valid_features is not None:
        valid_x = as_features("valid_features", valid_features, device, n_features=x.shape[1])
        valid_batch = draw(valid_x, torch.Generator().manual_seed(seed + 1))

        def evaluate(network: nn.Module) -> dict[str, Tensor]:
            return {"valid_loss": loss_of(network, *valid_batch)}

    widths = [len(weight) for weight in model.weights()[::2]]
    return fit(
        Task(model, loss_of, EpochOp("train_mlp_epoch", widths, inputs=rows_of_mlp)),
        Settings("denoiser", epochs, lr, batch_size, ema_decay, seed, progress),
        draw_epoch=draw_epoch,
        evaluate=evaluate,
    )
