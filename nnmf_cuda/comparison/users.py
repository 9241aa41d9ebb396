"""A user's own model among the systems: a callable by its Python path, or an ONNX file."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import softmax
from torch import nn

from nnmf_cuda.baselines import ImageClassifier, LabelledImages, PixelNetwork, System
from nnmf_cuda.baselines.torch_classifier import DifferentiableNetwork
from nnmf_cuda.comparison.features import FeatureClassifier
from nnmf_cuda.comparison.fingerprints import fingerprint_of
from nnmf_cuda.models.networks import isolated

_AUTHORS = "your own"
_AT_ONCE = 64
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
    A torch module is attacked through its gradients, where they lead somewhere; it stays on the
    device where it is. Of an
    ONNX input of four dimensions the second is the channel, which must be one. ONNX files run in
    onnxruntime, where that is installed, else in the slow reference of `onnx`.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def fit(self, X: ArrayLike, y: ArrayLike, *, validation: LabelledImages | None = None) -> Self:
        """Look the model up, and note the classes of y (n_images,); nothing is learned.

        Whether it is random is seen by asking twice of a few images X.
        """
        self.classes_ = np.unique(np.asarray(y))
        found = self._model
        if isinstance(found, nn.Module):
            self.n_parameters_ = sum(p.numel() for p in found.parameters())
        few = _pixels(np.asarray(X)[:_AT_ONCE])
        with isolated(0):
            self.is_random = not np.array_equal(self._logits(few), self._logits(few))
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the softmax (n_images, n_classes) of the model's logits."""
        with isolated(0):
            return self.fresh_proba(X)

    def fresh_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the same of logits that a random model draws anew."""
        images: NDArray[Any] = np.asarray(X)
        starts = range(0, max(len(images), 1), _AT_ONCE)
        parts = [self._logits(_pixels(images[at : at + _AT_ONCE])) for at in starts]
        answers: NDArray[np.float64] = softmax(np.concatenate(parts), axis=1)
        return answers

    def pixel_network(self) -> PixelNetwork | None:
        """Return the module, where it is one of torch's."""
        if not isinstance(self._model, nn.Module):
            return None
        network = DifferentiableNetwork(self._model)
        network.is_random = self.is_random
        return network

    def _logits(self, pixels: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the model's answers to images (n, height, width), checked."""
        network = self.pixel_network()
        if network is None:
            logits = np.asarray(self._model(pixels), dtype=np.float64)
        else:
            with torch.no_grad():
                logits = network(torch.from_numpy(pixels).to(network.device)).double().cpu().numpy()
        expected = (len(pixels), len(self.classes_))
        if logits.shape != expected:
            raise ValueError(
                f"--model {self.path} answered {logits.shape} to {len(pixels)} images; give logits"
                f" of shape {expected}"
            )
        if not np.isfinite(logits).all():
            raise ValueError(f"--model {self.path} answered NaN or infinite logits")
        return logits

    @cached_property
    def _model(self) -> Callable[..., Any]:
        return (
            _onnx_model(self.path) if self.path.endswith(".onnx") else _named(self.path, "--model")
        )

    def __getstate__(self) -> dict[str, Any]:
        """Leave the model out, which is looked up again by its path."""
        state = dict(super().__getstate__())
        state.pop("_model", None)
        return state


def _pixels(images: ArrayLike) -> NDArray[np.float32]:
    given: NDArray[Any] = np.asarray(images)
    return given.astype(np.float32) / np.float32(255 if given.dtype == np.uint8 else 1)


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
        model = GivenModel(path)._model  # what is wrong is said before hours of training
        made = _system(
            path, "a given model, not trained here", lambda setting, p=path: GivenModel(p)
        )
        found.append(replace(made, is_trained=False, fingerprint=fingerprint_of(path, model)))
    for path in classifiers:
        named = _named(path, "--classifier")
        classifier = _called(path, named)
        made = _system(
            path,
            "a given classifier of NNMF features",
            lambda setting, c=classifier: FeatureClassifier(
                c, max_iter=5 if setting.smoke else 100, random_state=setting.seed
            ),
        )
        found.append(replace(made, fingerprint=fingerprint_of(path, named)))
    return tuple(found)


def _system(path: str, title: str, make: Callable[..., ImageClassifier]) -> System:
    return System(path, title, _AUTHORS, "", "as it is given", "", "", make)


def _called(path: str, named: Any) -> Any:
    """Return the classifier that a class, a function or an instance stands for."""
    try:
        made = named() if callable(named) and not hasattr(named, "fit") else named
        return made() if isinstance(made, type) else made
    except Exception as error:
        raise ValueError(
            f"--classifier {path}() failed ({type(error).__name__}: {error}): name what can be"
            " called without arguments, or an instance"
        ) from error


def _named(path: str, option: str) -> Callable[..., Any]:
    """Return what "package.module:name" names; modules of the working directory count too."""
    module, _, name = path.partition(":")
    if not module or not name:
        raise ValueError(
            f"{option} {path}: give package.module:name (a function or torch module), or a file"
            " that ends in .onnx"
        )
    try:
        with _importable_here():
            found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{option} {path}: there is no module {error.name}: install it, or run from its folder"
        ) from error
    except Exception as error:  # of whatever kind: it is the user's module that raises it
        raise ValueError(
            f"{option} {path}: looking it up failed ({type(error).__name__}: {error})"
        ) from error
    if not callable(found) and not hasattr(found, "fit"):
        raise ValueError(
            f"{option} {path} is a {type(found).__name__}: name a function or a torch module"
        )
    if option == "--model" and isinstance(found, type):
        raise ValueError(f"{option} {path} is a class: name an instance of it, or a function")
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
