"""The networks: classifiers and denoiser of feature vectors, what computes them, how they rest."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from nnmf_cuda import ops
from nnmf_cuda.reference import sinusoidal_embedding

logger = logging.getLogger(__name__)


class Fusible(nn.Module):
    """A network that one op computes, unless it was changed or somebody watches its parts.

    A subclass is served by the same op as long as it overrides none of the methods that
    `computed_by` names. One that does, and still computes the same, says so by `fused_by` in its
    own body; any other goes through its modules, and `served_by` tells why.

    Attributes
    ----------
    fused_by : str
        Op of `nnmf_cuda.ops` that computes what the methods of the class do whose body says so.
    computed_by : tuple of str
        These methods.
    """

    fused_by: ClassVar[str] = ""
    computed_by: ClassVar[tuple[str, ...]] = ("forward",)
    _overridden: ClassVar[str] = ""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        declared = next(base for base in cls.__mro__ if "fused_by" in vars(base))
        names = [n for n in cls.computed_by if getattr(cls, n) is not getattr(declared, n)]
        cls._overridden = f"{cls.__name__} overrides {', '.join(names)}" if names else ""

    def served_by(self) -> str:
        """Return what computes the network as it is now: "ops.NAME", or "modules: " and why."""
        why = "inside ops.reference_path" if ops.is_reference_path() else self.why_modules()
        return f"modules: {why}" if why else f"ops.{self.fused_by}"

    def why_modules(self) -> str:
        """Say what keeps the op from computing the network as it is now; empty if nothing does.

        Hooks of the network itself do not: torch calls them around `forward`, whatever that does.
        """
        if self._overridden:
            return self._overridden
        for name in self.computed_by:
            if name in self.__dict__:
                return f"{name} of this {type(self).__name__} was replaced"
        return ""

    def is_fused(self) -> bool:
        """Whether the op may compute the network; if not, the log says why, once."""
        why = self.why_modules()
        if why and not torch.compiler.is_compiling():
            _log_once(type(self).__name__, why)
        return not why


class FusibleLayers(Fusible):
    """A fusible network of layers, whose weights the op takes.

    Call `keep_layers` at the end of `__init__`: the op stands for the layers that there are then.
    """

    _containers: list[tuple[str, nn.Module, list[nn.Module]]]
    _parts: list[nn.Module]

    def keep_layers(self) -> None:
        """Remember the layers, all of them in containers, in the order in which the op has them."""
        self._containers = [(n, part, list(part.children())) for n, part in self.named_children()]
        self._parts = [part for part in self.modules() if part is not self]

    def weights(self) -> list[Tensor]:
        """Return weight and bias of each layer, as the op takes them; not copies."""
        weights: list[Tensor | None] = []
        for name, container, _ in self._containers:
            for layer in (self._modules[name] or container)._modules.values():
                if isinstance(layer, (nn.Linear, nn.Conv1d)):
                    # In the dict, as attributes take torch much longer; not there: parametrized.
                    held = layer._parameters
                    weights.append(held["weight"] if "weight" in held else layer.weight)
                    weights.append(held["bias"] if "bias" in held else layer.bias)
        return [tensor for tensor in weights if tensor is not None]

    def why_modules(self) -> str:
        """Say what keeps the op from computing the network as it is now; empty if nothing does."""
        # Asked at every step of an attack: by hand, as `modules()` takes as long as the network.
        modules = self._modules
        for name, container, layers in self._containers:
            if modules.get(name) is not container or list(container._modules.values()) != layers:
                return f"layers of {name} were replaced"
        part = _watched(self._parts)
        if part is not None:
            return f"{next(n for n, module in self.named_modules() if module is part)} has a hook"
        return Fusible.why_modules(self)


def why_not_part(network: nn.Module, name: str, fused_by: str) -> str:
    """Say what keeps an op from computing a part of a network; empty if nothing does.

    Parameters
    ----------
    network : nn.Module
    name : str
        Of the part.
    fused_by : str
        The op that must be able to compute the part alone.
    """
    part = network._modules[name]  # as an attribute it takes torch much longer
    if not isinstance(part, Fusible) or part.fused_by != fused_by:
        return f"{name} is a {type(part).__name__}, which ops.{fused_by} does not compute"
    if _watched((part,)) is not None:
        return f"{name} has a hook"
    why = part.why_modules()
    return f"{name}: {why}" if why else ""


def _watched(parts: Iterable[nn.Module]) -> nn.Module | None:
    """Return the first part whose calls somebody wants to see: by a hook or another `forward`.

    torch has no other way to ask for hooks; its own fused layers look here too.
    """
    for part in parts:
        if (
            part._forward_hooks
            or part._forward_pre_hooks
            or part._backward_hooks
            or part._backward_pre_hooks
            or "forward" in part.__dict__
        ):
            return part
    return None


@functools.cache
def _log_once(name: str, why: str) -> None:
    logger.info("%s is computed by its modules, which is slower: %s", name, why)


class FeatureCNN(FusibleLayers):
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

    fused_by = "feature_cnn"
    computed_by = ("forward", "plain", "hidden", "weights")

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
        self.keep_layers()

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (n_samples, n_classes) of features (n_samples, n_features)."""
        _require_features(x, self.n_features)
        if ops.is_reference_path() or not self.is_fused():
            return self.plain(x)
        return ops.feature_cnn(x, self.weights())

    def plain(self, x: Tensor) -> Tensor:
        """Return the logits by torch's own layers, which have second derivatives."""
        logits: Tensor
        if type(self).hidden is FeatureCNN.hidden:
            logits = self.head(self.convolutions(x.unsqueeze(1)).flatten(1))
        else:  # a subclass has units of its own
            logits = self.head[-1](self.hidden(x))
        return logits

    def hidden(self, x: Tensor) -> Tensor:
        """Return the units (n_samples, 64) that the last layer reads, by torch's own layers."""
        units: Tensor = self.head[:-1](self.convolutions(x.unsqueeze(1)).flatten(1))
        return units


class FeatureMLP(nn.Module):
    """Multilayer perceptron that classifies feature vectors, with ReLU between its layers.

    It takes features as they are: nothing is normalised inside. No op computes it; where bounds of
    its answers are wanted it is cheaper than a `FeatureCNN`, as nothing but the ReLUs is not
    linear.

    Parameters
    ----------
    n_features : int
        Length of a feature vector.
    n_classes : int
        Number of logits, at least 2.
    hidden : sequence of int, default=(128, 64)
        Widths of the hidden layers, at least one.
    """

    def __init__(self, n_features: int, n_classes: int, hidden: Sequence[int] = (128, 64)) -> None:
        super().__init__()
        if n_features < 1:
            raise ValueError(f"n_features must be at least 1, got {n_features}")
        if n_classes < 2:
            raise ValueError(f"n_classes must be at least 2, got {n_classes}")
        if not hidden or min(hidden) < 1:
            raise ValueError(f"hidden must be one or more widths of at least 1, got {hidden}")
        self.n_features = n_features
        self.n_classes = n_classes
        widths = (n_features, *hidden)
        layers: list[nn.Module] = []
        for n_in, n_out in zip(widths[:-1], widths[1:], strict=True):
            layers += (nn.Linear(n_in, n_out), nn.ReLU())
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], n_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (n_samples, n_classes) of features (n_samples, n_features)."""
        _require_features(x, self.n_features)
        logits: Tensor = self.layers(x)
        return logits

    def hidden(self, x: Tensor) -> Tensor:
        """Return the units (n_samples, n_units) that the last layer reads."""
        units: Tensor = self.layers[:-1](x)
        return units

    def weights(self) -> list[Tensor]:
        """Return weight and bias of each layer; not copies."""
        linear = [layer for layer in self.layers if isinstance(layer, nn.Linear)]
        return [tensor for layer in linear for tensor in (layer.weight, layer.bias)]


FeatureClassifier = FeatureCNN | FeatureMLP
"""What a defence can train: features (n, n_features) to logits (n, n_classes)."""

Network = Literal["cnn", "mlp"]


def build_classifier(
    network: Network, n_features: int, n_classes: int, hidden: Sequence[int] = (128, 64)
) -> FeatureClassifier:
    """Return an untrained classifier: the light CNN, or an MLP with these hidden widths."""
    if network not in get_args(Network):
        raise ValueError(f"network must be one of {', '.join(get_args(Network))}; got {network!r}")
    if network == "mlp":
        return FeatureMLP(n_features, n_classes, hidden)
    return FeatureCNN(n_features, n_classes)


class FeatureDenoiser(FusibleLayers):
    """Multilayer perceptron that predicts the clean features x_0 from x_t and t.

    x_t and the sinusoidal embedding of t enter together; two hidden layers with ReLU; the output
    is neither clipped nor normalised. `DiffusionPurifier` has `ops.purify` compute it.

    Parameters
    ----------
    n_features : int
        Length of a feature vector.
    hidden : int, default=128
        Width of the hidden layers.
    embedding_dim : int, default=32
        Length of the embedding of t.
    """

    fused_by = "purify"
    computed_by = ("forward", "inputs", "weights")

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
        self.keep_layers()

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


def _require_features(x: Tensor, n_features: int) -> None:
    if x.dim() != 2 or x.shape[1] != n_features:
        raise ValueError(
            f"features must have shape (n_samples, {n_features}), got {tuple(x.shape)}"
        )


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode without parameter gradients; restore both after."""
    training = [(module, module.training) for module in model.modules()]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        model.eval()
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, mode in training:
            module.training = mode
        for parameter in trainable:
            parameter.requires_grad_(True)


@contextmanager
def isolated(seed: int) -> Iterator[None]:
    """Seed torch's global generators, which AutoAttack uses; restore them and the trace hook.

    AutoAttack's check for dynamic defences ends in sys.settrace(None), which would switch off a
    debugger or a coverage measurement.
    """
    trace = sys.gettrace()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices, device_type="cuda"):
            torch.manual_seed(seed)
            yield
    finally:
        sys.settrace(trace)


@contextmanager
def deterministic_convolutions() -> Iterator[None]:
    """Have cuDNN choose deterministic algorithms inside the block; no effect on the CPU."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before
