"""ResNet against ResNeXt on three forms of the images: Deem et al."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import nn

from nnmf_cuda.baselines.augmentation import Augmentation
from nnmf_cuda.baselines.torch_classifier import TorchImageClassifier, need

Architecture = Literal["resnet", "resnext"]


@dataclass(kw_only=True, eq=False, repr=False)
class DeemNetwork(TorchImageClassifier):
    """A small ResNet or ResNeXt of bottleneck blocks: MONAI's ResNet.

    Deem et al. [1]_ ask how well the two resist FGSM and PGD, and attacks that were made for the
    other, after training on full-size augmented, shrunk augmented and shrunk plain images; here
    these are `image_size` and `augmentation`. A ResNeXt differs from a ResNet in its 3 x 3
    convolutions alone, which work on `groups` groups of channels, apart from each other [2]_.

    Parameters
    ----------
    architecture : {"resnet", "resnext"}, default="resnet"
        Which of the two.
    layers : sequence of four int, default=(1, 1, 1, 1)
        Blocks of each stage; a ResNet-101 has (3, 4, 23, 3).
    widths : sequence of four int, default=(16, 32, 64, 128)
        Filters of each stage, of which its output has four times as many; a ResNet-101 has
        (64, 128, 256, 512).
    groups : int, default=8
        Groups of a ResNeXt.
    epochs, batch_size, lr, weight_decay, label_smoothing, ema_decay, image_size, augmentation, \
random_state, device, progress
        As of `TorchImageClassifier`.

    References
    ----------
    .. [1] Deem et al. (2026), arXiv:2602.11646.
    .. [2] Xie, Girshick, Dollar, Tu & He (2017), Aggregated residual transformations for deep
       neural networks, CVPR.
    """

    architecture: Architecture = "resnet"
    layers: Sequence[int] = (1, 1, 1, 1)
    widths: Sequence[int] = (16, 32, 64, 128)
    groups: int = 8
    lr: float = 3e-3
    image_size: int | None = None
    augmentation: Augmentation | None = Augmentation()

    def build(self, n_classes: int, image_shape: tuple[int, int]) -> nn.Module:
        """Return MONAI's ResNet, with blocks of its own for a ResNeXt."""
        if self.architecture not in get_args(Architecture):
            raise ValueError(
                f"architecture must be one of {', '.join(get_args(Architecture))}; got"
                f" {self.architecture!r}"
            )
        if self.architecture == "resnext" and any(width % self.groups for width in self.widths):
            raise ValueError(
                f"widths must be multiples of groups={self.groups}, got {tuple(self.widths)}"
            )
        nets = need("monai.networks.nets.resnet")
        network: nn.Module = nets.ResNet(
            "bottleneck",
            list(self.layers),
            list(self.widths),
            spatial_dims=2,
            n_input_channels=1,
            conv1_t_size=7,
            conv1_t_stride=2,
            num_classes=n_classes,
        )
        if self.architecture == "resnext":
            for block in network.modules():
                if isinstance(block, nets.ResNetBottleneck):
                    block.conv2 = _grouped(block.conv2, self.groups)
        return network


def _grouped(whole: nn.Conv2d, groups: int) -> nn.Conv2d:
    """Return a convolution of the same shape whose channels are in groups apart from each other."""
    convolution = nn.Conv2d(
        whole.in_channels,
        whole.out_channels,
        3,
        stride=whole.stride[0],
        padding=1,
        groups=groups,
        bias=False,
    )
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution
