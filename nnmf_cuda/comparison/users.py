"""A user's own model among the systems: a callable by its Python path, or an ONNX file."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from nnmf_cuda.baselines import ImageClassifier, LabelledImages, PixelNetwork, System
from nnmf_cuda.comparison.features import FeatureClassifier

_AUTHORS = "your own"
_ONNX_FLOAT = "tensor(float)"


class GivenModel(ImageClassifier):
    """A model that is asked as it is: nothing is trained.

    Parameters
    ----------
    path : str
        "package.module:name", where the name is a function of float32 images (n, height, width) in
        [0, 1] that returns logits (n, n_classes), or a `torch.nn.Module` that does; or an ``.onnx``
        file with one input and logits as its first output.

    Notes
    -----
    A torch module is attacked through its gradients; it stays on the device where it is. Of an
    ONNX input of four dimensions the second is the channel, which must be one. ONNX files run in
    onnxruntime, where that is installed, else in the slow reference of `onnx`.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def fit(self, X: ArrayLike, y: ArrayLike, *, validation: LabelledImages | None = None) -> Self:
        """Look the model up, and note the classes of y (n_images,); nothing is learned."""
        self.classes_ = np.unique(np.asarray(y))
        found = self._model
        if isinstance(found, nn.Module):
            self.n_parameters_ = sum(p.numel() for p in found.parameters())
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the softmax (n_images, n_classes) of the model's logits."""
        images: NDArray[Any] = np.asarray(X)
        pixels = images.astype(np.float32) / (255 if images.dtype == np.uint8 else 1)
        network = self.pixel_network()
        if network is None:
            logits = np.asarray(self._model(pixels), dtype=np.float64)
        else:
            with torch.no_grad():
                logits = network(torch.from_numpy(pixels).to(network.device)).double().cpu().numpy()
        n_classes = len(self.classes_)
        if logits.shape != (len(images), n_classes):
            raise ValueError(
                f"--model {self.path} answered {logits.shape} to {len(images)} images; give logits"
                f" of shape ({len(images)}, {n_classes})"
            )
        if not np.isfinite(logits).all():
            raise ValueError(f"--model {self.path} answered NaN or infinite logits")
        shifted = np.exp(logits - logits.max(1, keepdims=True))
        answers: NDArray[np.float64] = shifted / shifted.sum(1, keepdims=True)
        return answers

    def pixel_network(self) -> PixelNetwork | None:
        """Return the module, where it is one of torch's."""
        return _Given(self._model).eval() if isinstance(self._model, nn.Module) else None

    @cached_property
    def _model(self) -> Callable[..., Any]:
        return _onnx_model(self.path) if self.path.endswith(".onnx") else _named(self.path)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the model out, which is looked up again by its path."""
        state = dict(super().__getstate__())
        state.pop("_model", None)
        return state


class _Given(PixelNetwork):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (n_images, n_classes)."""
        logits: Tensor = self.model(images)
        return logits

    @property
    def device(self) -> torch.device:
        """Where it computes; of a module without numbers the CPU."""
        held = [*self.parameters(), *self.buffers()]
        return held[0].device if held else torch.device("cpu")


def user_systems(models: tuple[str, ...], classifiers: tuple[str, ...]) -> tuple[System, ...]:
    """Return systems of what --model and --classifier name; checked, and named as they are given.

    Raises
    ------
    ValueError
        If there is no such module, name or file.
    ImportError
        If an ONNX file is given and nothing is installed that runs it.
    """
    found = []
    for path in models:
        GivenModel(path)._model  # noqa: B018 - so that what is wrong is said before hours of training
        found.append(
            _system(path, "a given model, not trained here", lambda setting, p=path: GivenModel(p))
        )
    for path in classifiers:
        make = _named(path)
        classifier = make() if callable(make) and not hasattr(make, "fit") else make
        classifier = classifier() if isinstance(classifier, type) else classifier
        found.append(
            _system(
                path,
                "a given classifier of NNMF features",
                lambda setting, c=classifier: FeatureClassifier(
                    c, max_iter=5 if setting.smoke else 100, random_state=setting.seed
                ),
            )
        )
    return tuple(found)


def _system(path: str, title: str, make: Callable[..., ImageClassifier]) -> System:
    return System(path, title, _AUTHORS, "", "as it is given", "", "", make)


def _named(path: str) -> Callable[..., Any]:
    """Return what "package.module:name" names; modules of the working directory count too."""
    module, _, name = path.partition(":")
    if not module or not name:
        raise ValueError(
            f"{path!r} is no model: give package.module:name (a function or torch module), or a"
            " file that ends in .onnx"
        )
    try:
        with _importable_here():
            found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{path}: there is no module {error.name}: install it, or run from its folder"
        ) from error
    except AttributeError as error:
        raise ValueError(f"{path}: {error}") from error
    if not callable(found) and not hasattr(found, "fit"):
        raise ValueError(f"{path} is a {type(found).__name__}: name a function or a torch module")
    return found  # type: ignore[no-any-return]


@contextmanager
def _importable_here() -> Iterator[None]:
    """Let modules of the working directory be found, as `python -m` does."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _onnx_model(path: str) -> Callable[[NDArray[Any]], Any]:
    """Return a function of images (n, height, width) that runs an ONNX file."""
    if not Path(path).is_file():
        raise ValueError(f"--model {path}: there is no such file")
    try:
        import onnxruntime
    except ImportError:
        return _by_reference(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0]
    if entry.type != _ONNX_FLOAT:
        raise ValueError(f"--model {path} takes {entry.type}: give one that takes float32 images")
    has_channel = len(entry.shape) == 4

    def run(images: NDArray[Any]) -> Any:
        return session.run(None, {entry.name: images[:, None] if has_channel else images})[0]

    return run


def _by_reference(path: str) -> Callable[[NDArray[Any]], Any]:
    try:
        import onnx
        from onnx.reference import ReferenceEvaluator
    except ImportError as error:
        raise ImportError(
            f"--model {path} needs onnxruntime or onnx: run `pip install onnxruntime`"
        ) from error
    model = onnx.load(path)
    entry = model.graph.input[0]
    has_channel = len(entry.type.tensor_type.shape.dim) == 4
    evaluator = ReferenceEvaluator(model)

    def run(images: NDArray[Any]) -> Any:
        given = {entry.name: images[:, None] if has_channel else images}
        answers: Any = evaluator.run(None, given)
        return answers[0]

    return run
