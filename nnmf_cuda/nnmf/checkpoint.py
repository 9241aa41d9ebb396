"""The checkpoint of a fit: a file from which the same fit goes on as if nothing had happened."""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Mapping
from itertools import islice
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnmf_cuda import ops
from nnmf_cuda.nnmf.matrix import Dense, Matrix
from nnmf_cuda.nnmf.minimisation import Run, State
from nnmf_cuda.nnmf.problem import Iterate
from nnmf_cuda.nnmf.tensor_file import Content, Kind, read_tensors, write_tensors
from nnmf_cuda.nnmf.user_warning import warn_user

_FREE = (
    "device",
    "forget_factor",
    "fresh_restarts_max_iter",
    "max_iter",
    "missing_values",
    "transform_max_iter",
    "transform_solver",
    "verbose",
)
"""Parameters of `NNMF` that do not decide how a fit goes, but at most where it ends.

What is missing is part of X.
"""

_NO_SEED = "not an integer"  # a generator, or the global one: nothing to compare
_AT, _MEMORY = "at.", "solver."


class Checkpoint:
    """The file at `path`, which follows a fit that `fit` describes.

    The fit tells it every state with `note`; `write` brings the last one into the file, if `every`
    seconds have passed since it was last written. Of tensors it holds no copy.
    """

    def __init__(self, path: str | os.PathLike[str], every: float, fit: Mapping[str, Any]) -> None:
        self._path, self._every, self._fit = Path(path), every, dict(fit)
        if not self._path.parent.is_dir():
            raise ValueError(
                f"checkpoint={str(path)!r}: there is no directory {str(self._path.parent)!r}; "
                "create it first"
            )
        self._noted: State | None = None
        self._due = -math.inf  # the first is written at once: a bad place shows before the work

    def read(self, max_iter: int, device: torch.device) -> State | None:
        """Return where the fit stood when the file was written; None where there is no file."""
        if not self._path.exists():
            return None
        content = read_tensors(self._path, Kind.CHECKPOINT)
        written = content.description["fit"]
        differ = [
            f"{name} was {written.get(name)!r} and is {self._fit.get(name)!r}"
            for name in sorted({*written, *self._fit})
            if written.get(name) != self._fit.get(name)
        ]
        if differ:
            raise ValueError(
                f"checkpoint={str(self._path)!r} is of another fit: {'; '.join(differ)}. Set that "
                "back to go on with the fit (max_iter may change), or delete the file or give "
                "another name to begin anew"
            )
        state = _state(content, device)
        if state.iterations[-1] > max_iter:
            raise ValueError(
                f"checkpoint={str(self._path)!r} is at iteration {state.iterations[-1]}, above "
                f"max_iter={max_iter}; raise max_iter to go on, or delete the file or give another "
                "name to begin anew"
            )
        self._due = time.monotonic() + self._every
        return state

    def note(self, state: State) -> None:
        """Take note of where the fit stands."""
        self._noted = state

    def write(self, *, now: bool = False) -> None:
        """Write the last state if it is time to, or `now`, unless the file holds it.

        Where a later write fails, as on a full disk, the fit goes on with a warning.
        """
        if self._noted is None or not (now or time.monotonic() >= self._due):
            return
        content, self._noted = _content(self._noted, self._fit), None
        try:
            write_tensors(self._path, Kind.CHECKPOINT, content)
        except OSError as error:
            if self._due == -math.inf:
                raise
            warn_user(
                f"checkpoint={str(self._path)!r} could not be written ({error}) and is as old as "
                "it was; the fit goes on",
                RuntimeWarning,
            )
        self._due = time.monotonic() + self._every


def description_of_fit(
    X: Matrix, parameters: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Return in JSON what decides how a fit goes: data, parameters, and factors `given` to it."""
    fit = {name: value for name, value in parameters.items() if name not in _FREE}
    fit["beta_loss"] = ops.beta_loss_to_float(fit["beta_loss"])
    if not isinstance(fit["random_state"], Integral):
        fit["random_state"] = _NO_SEED
    return {
        "X": f"{X.kind} {X.shape} {digest(X)}",
        **{name: described(value) for name, value in {**fit, **given}.items()},
    }


def described(value: Any) -> Any:
    """Return in JSON what tells a value from others."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if not isinstance(value, Tensor):
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            return repr(value)
        value = torch.from_numpy(array.astype(np.float64))
    # As float64, since a start may be given in any type.
    return f"{tuple(value.shape)} {digest(Dense(value.detach().double().reshape(len(value), -1)))}"


def digest(X: Matrix) -> str:
    """Return what tells a matrix from others, made of its bytes: the same on every device."""
    sha256 = hashlib.sha256()
    for part in X.parts():
        sha256.update(part.cpu().contiguous().view(torch.uint8).numpy().data)
    return sha256.hexdigest()[:16]


def _content(state: State, fit: Mapping[str, Any]) -> Content:
    """Return what is written of a state."""
    records = [objective for of_start in state.objectives for objective in of_start]
    tensors = {
        "iterations": torch.tensor(state.iterations),
        "objectives": torch.tensor(records, dtype=torch.float64),
        "n_records": torch.tensor([len(of_start) for of_start in state.objectives]),
        "running": torch.tensor(state.running, dtype=torch.int64),
        **{_AT + name: tensor for name, tensor in vars(state.at).items()},
        **{_MEMORY + name: tensor for name, tensor in state.memory.items()},
    }
    description: dict[str, Any] = {"fit": dict(fit), "best": None}
    if state.best is not None:
        tensors |= {"best.W": state.best.W, "best.H": state.best.H}
        of_best = ("restart", "divergence", "converged")
        description["best"] = {name: getattr(state.best, name) for name in of_best}
    return Content(description, tensors)


def _state(content: Content, device: torch.device) -> State:
    """Return the state that `_content` has written, on the device."""
    tensors, found = content.tensors, content.description["best"]

    def below(prefix: str) -> dict[str, Tensor]:
        names = [name for name in tensors if name.startswith(prefix)]
        return {name.removeprefix(prefix): tensors[name].to(device) for name in names}

    iterations = tuple(tensors["iterations"].tolist())
    records = iter(tensors["objectives"].tolist())
    objectives = tuple(tuple(islice(records, n)) for n in tensors["n_records"].tolist())
    best = None
    if found is not None:
        history = objectives[found["restart"]]
        best = Run(
            W=tensors["best.W"].to(device),
            H=tensors["best.H"].to(device),
            iterations=iterations[: len(history)],
            objective=history,
            **found,
        )
    return State(
        at=Iterate(**below(_AT)),
        running=tuple(tensors["running"].tolist()),
        iterations=iterations,
        objectives=objectives,
        memory=below(_MEMORY),
        best=best,
    )
