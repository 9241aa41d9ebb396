"""A fitted estimator in one file without pickle: `NNMF.save` and `NNMF.load`."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import scipy.sparse
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from nnmf_cuda.nnmf.tensor_file import Content, Kind, read_tensors, write_tensors
from nnmf_cuda.ops.nnmf_sparse import csr_tensor

_PARTS_OF_SPARSE = ("data", "indices", "indptr")


class SavingMixin(BaseEstimator):  # type: ignore[misc]
    """Gives a scikit-learn estimator `save` and `load`, of its parameters and all that it learnt.

    In the file, values that JSON has no word for stand as ``{kind: what it is made of}``, in a
    list of its own so that no dictionary of a user's can be taken for one.
    """

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted estimator to a file, from which `load` makes an equal one.

        Parameters
        ----------
        path : path
            The file, such as ``"model.safetensors"``: replaced if it is there, and written whole
            or not at all. It holds parameters, fitted attributes and what `partial_fit` remembers,
            as JSON and tensors, and no code.

        Raises
        ------
        NotFittedError
            If nothing has been fitted.
        TypeError
            If a parameter or attribute is of a type that has no place in such a file.
        OSError
            If the file cannot be written there.
        """
        check_is_fitted(self)
        parameters = self.get_params(deep=False)
        learnt = {name: value for name, value in vars(self).items() if name not in parameters}
        tensors: dict[str, Tensor] = {}
        description = {
            "estimator": type(self).__name__,
            "parameters": _written(parameters, tensors),
            "learnt": _written(learnt, tensors),
        }
        write_tensors(Path(path), Kind.ESTIMATOR, Content(description, tensors))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Return the estimator that `save` has written.

        It transforms, and goes on with `partial_fit`, to the same bits as the one that was saved,
        on the same device. Reading the file runs no code of it.

        Parameters
        ----------
        path : path
            The file.

        Returns
        -------
        estimator
            Of the class that this was called on. Where its ``device`` is not to be had, set
            another: ``set_params(device=None)``.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If the file is damaged, holds something else, or is of another version.
        """
        content = read_tensors(Path(path), Kind.ESTIMATOR)
        description, tensors = content.description, content.tensors
        unknown = sorted(set(description["parameters"]) - set(cls._get_param_names()))
        if unknown:
            raise ValueError(
                f"{path}: holds a {description['estimator']} with the parameters "
                f"{', '.join(unknown)}, which {cls.__name__} does not have: load it with the class "
                "and the version that saved it"
            )
        model = cls(**_read(description["parameters"], tensors))
        model.__dict__.update(_read(description["learnt"], tensors))
        return model


def _written(values: Mapping[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Return the values as JSON; arrays among them go to `tensors`."""
    return {name: _encoded(name, value, tensors) for name, value in values.items()}


def _encoded(name: str, value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and math.isnan(value):
        return [{"number": "nan"}]
    if isinstance(value, torch.device):
        return [{"device": str(value)}]
    if isinstance(value, Tensor) and value.layout == torch.strided:
        tensors[name] = value
        return [{"tensor": name}]
    if isinstance(value, Tensor) and value.layout == torch.sparse_csr and value.ndim == 2:
        csr = (value.values(), value.col_indices(), value.crow_indices())
        for part, of_value in zip(_PARTS_OF_SPARSE, csr, strict=True):
            tensors[f"{name}.{part}"] = of_value.detach().cpu()
        return [{"sparse tensor": {"name": name, "shape": list(value.shape)}}]
    if isinstance(value, Tensor) and value.layout != torch.strided:
        raise TypeError(
            f"{name} is a tensor of layout {value.layout}, which has no place in the file; use "
            f"{name}.to_sparse_csr() of two dimensions"
        )
    if scipy.sparse.issparse(value):
        csr = scipy.sparse.csr_array(value)
        for part in _PARTS_OF_SPARSE:
            tensors[f"{name}.{part}"] = torch.from_numpy(getattr(csr, part))
        return [{"sparse": {"name": name, "shape": csr.shape}}]
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        tensors[name] = torch.from_numpy(np.ascontiguousarray(value))
        return [{"array": name}]
    if isinstance(value, np.ndarray):
        value, kind = value.tolist(), "words"
    elif isinstance(value, np.random.RandomState):
        value, kind = value.get_state(legacy=False), "generator"
        if value["bit_generator"] == "MT19937":  # what a seed makes; others stay arrays: an error
            value["state"]["key"] = value["state"]["key"].tolist()
    else:
        kind = "json"
    try:
        if json.loads(json.dumps(value)) != value:  # tuples, keys that are no strings
            raise TypeError("JSON changes it")
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{name}={value!r:.80} cannot be saved without pickle ({error}); use numbers, strings, "
            "arrays, sparse matrices of SciPy, or lists and dictionaries of them"
        ) from error
    plain = kind == "json" and not isinstance(value, list)
    return value if plain else [{kind: value}]


def _read(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the values that `_written` has written."""
    return {name: _decoded(value, tensors) for name, value in values.items()}


def _decoded(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, list):
        return value
    ((kind, content),) = value[0].items()
    if kind == "tensor":
        return tensors[content]
    if kind == "array":
        return tensors[content].numpy()
    if kind == "sparse":
        parts = (tensors[f"{content['name']}.{part}"].numpy() for part in _PARTS_OF_SPARSE)
        return scipy.sparse.csr_array(tuple(parts), shape=tuple(content["shape"]))
    if kind == "sparse tensor":
        data, indices, indptr = (tensors[f"{content['name']}.{part}"] for part in _PARTS_OF_SPARSE)
        return csr_tensor(indptr, indices, data, tuple(content["shape"]))
    if kind == "words":
        return np.array(content, dtype=object)
    if kind == "number":
        return float(content)
    if kind == "device":
        return torch.device(content)
    if kind == "generator":
        generator = np.random.RandomState()  # noqa: NPY002  (scikit-learn's kind of seed)
        generator.set_state(content)
        return generator
    return content
