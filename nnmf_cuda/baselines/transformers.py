"""Transformers on images: the Swin transformer of Almuhaimeed et al., and Gomez et al.'s hybrid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from nnmf_cuda.baselines.torch_classifier import TorchImageClassifier, need


@dataclass(kw_only=True, eq=False, repr=False)
class AlmuhaimeedSwin(TorchImageClassifier):
    """A small Swin transformer: MONAI's, its last features averaged over the image, one layer.

    Almuhaimeed et al. [1]_ classify by a Swin transformer on images that a generative network has
    augmented, with weights of ImageNet. Here it starts from scratch, or from the weights of a
    file, and augmentation is that of the other networks.

    Parameters
    ----------
    embed_dim : int, default=24
        Channels of the first stage, which each later one doubles; Swin-Tiny has 96.
    depths : sequence of four int, default=(2, 2, 2, 2)
        Blocks of each stage; Swin-Tiny has (2, 2, 6, 2).
    n_heads : sequence of four int, default=(2, 4, 8, 8)
        Heads of each stage; Swin-Tiny has (3, 6, 12, 24).
    patch : int, default=4
        Side of a patch, in pixels.
    window : int, default=4
        Side of the window of attention, in patches; Swin-Tiny has 7.
    weights : path or None, default=None
        A state dictionary of `monai.networks.nets.swin_unetr.SwinTransformer` in these sizes, as
        safetensors or as `torch.save` writes it, from which training starts.
    epochs, batch_size, lr, weight_decay, label_smoothing, ema_decay, image_size, augmentation, \
random_state, device, progress
        As of `TorchImageClassifier`.

    References
    ----------
    .. [1] Almuhaimeed et al. (2025), Frontiers in Medicine 12, 1635796.
    .. [2] Liu, Lin, Cao, Hu, Wei, Zhang, Lin & Guo (2021), Swin transformer: hierarchical vision
       transformer using shifted windows, ICCV.
    """

    embed_dim: int = 24
    depths: Sequence[int] = (2, 2, 2, 2)
    n_heads: Sequence[int] = (2, 4, 8, 8)
    patch: int = 4
    window: int = 4
    weights: str | Path | None = None

    def build(self, n_classes: int, image_shape: tuple[int, int]) -> nn.Module:
        """Return the transformer with a linear layer."""
        need("einops")  # MONAI's transformers fail without it only when they are used
        transformer = need("monai.networks.nets.swin_unetr").SwinTransformer(
            in_chans=1,
            embed_dim=self.embed_dim,
            window_size=(self.window, self.window),
            patch_size=(self.patch, self.patch),
            depths=tuple(self.depths),
            num_heads=tuple(self.n_heads),
            spatial_dims=2,
        )
        if self.weights is not None:
            _load(transformer, Path(self.weights))
        # MONAI's merges patches after the last stage too.
        return _OfLastStage(transformer, 2 * transformer.num_features, n_classes)


class _OfLastStage(nn.Module):
    """Logits of the means of what the last stage of a Swin transformer returns."""

    def __init__(self, transformer: nn.Module, n_features: int, n_classes: int) -> None:
        super().__init__()
        self.transformer = transformer
        self.head = nn.Linear(n_features, n_classes)

    def forward(self, images: Tensor) -> Tensor:
        # In the usual order: some of MONAI's reshapes are views.
        logits: Tensor = self.head(self.transformer(images.contiguous())[-1].mean((2, 3)))
        return logits


def _load(network: nn.Module, path: Path) -> None:
    """Give a network the weights of a file; raise ValueError unless they are of its shapes."""
    if not path.is_file():
        raise ValueError(f"weights must be a file, got {path}, which is none")
    state: Mapping[str, Tensor]
    if path.suffix == ".safetensors":
        state = load_file(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
    try:
        network.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(
            f"weights={path} do not fit the network: give a state dictionary of MONAI's"
            f" {type(network).__name__} in these sizes ({error})"
        ) from error


@dataclass(kw_only=True, eq=False, repr=False)
class GomezHybrid(TorchImageClassifier):
    """A stem of convolutions, and a transformer encoder of what it leaves: MONAI's blocks.

    As the paper describes Gomez et al. [1]_, a hybrid for several classes; their own article
    compares four published networks, fine-tuned.

    Parameters
    ----------
    widths : sequence of int, default=(16, 32, 64)
        Filters of the stem's convolutions, each of which halves height and width.
    hidden_size : int, default=96
        Length of a token.
    n_layers : int, default=3
        Blocks of the encoder.
    n_heads : int, default=4
        Heads of attention; they divide `hidden_size`.
    epochs, batch_size, lr, weight_decay, label_smoothing, ema_decay, image_size, augmentation, \
random_state, device, progress
        As of `TorchImageClassifier`.

    References
    ----------
    .. [1] Gomez-Guzman et al. (2025), Technologies 13, 379.
    """

    widths: Sequence[int] = (16, 32, 64)
    hidden_size: int = 96
    n_layers: int = 3
    n_heads: int = 4

    def build(self, n_classes: int, image_shape: tuple[int, int]) -> nn.Module:
        """Return stem, encoder and a linear layer."""
        layers: list[nn.Module] = []
        n_in = 1
        for n_out in self.widths:
            layers += [
                nn.Conv2d(n_in, n_out, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(n_out),
                nn.ReLU(),
            ]
            n_in = n_out
        stem = nn.Sequential(*layers, nn.Conv2d(n_in, self.hidden_size, 1))
        need("einops")  # MONAI's transformers fail without it only when they are used
        block = need("monai.networks.blocks").TransformerBlock
        blocks = [
            block(self.hidden_size, 2 * self.hidden_size, self.n_heads, qkv_bias=True)
            for _ in range(self.n_layers)
        ]
        with torch.no_grad():
            n_tokens = stem.eval()(torch.zeros(1, 1, *image_shape)).shape[2:].numel()
        return _Hybrid(stem, nn.Sequential(*blocks), n_tokens, self.hidden_size, n_classes)


class _Hybrid(nn.Module):
    """Tokens of a stem, with learned positions, through an encoder; the mean token decides."""

    def __init__(
        self, stem: nn.Module, encoder: nn.Module, n_tokens: int, hidden_size: int, n_classes: int
    ) -> None:
        super().__init__()
        self.stem = stem
        self.encoder = encoder
        self.positions = nn.Parameter(torch.empty(1, n_tokens, hidden_size).normal_(std=0.02))
        self.norm = nn.LayerNorm(hidden_size)
        self.head = nn.Linear(hidden_size, n_classes)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.stem(images).flatten(2).mT + self.positions
        logits: Tensor = self.head(self.norm(self.encoder(tokens)).mean(1))
        return logits
