"""The checkpoint of a fit: a file from which the same fit goes on as if nothing had happened."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from nnmf_cuda.nnmf.dealt_file import DealtFile
from nnmf_cuda.nnmf.matrix import Matrix
from nnmf_cuda.nnmf.minimisation import Run, State
from nnmf_cuda.nnmf.problem import Iterate
from nnmf_cuda.nnmf.sharded_matrix import Sharded
from nnmf_cuda.nnmf.tensor_file import Content, Kind, read_tensors, write_tensors
from nnmf_cuda.nnmf.user_warning import warn_user

_AT, _MEMORY = "at.", "solver."


_OF_ROWS = (f"{_AT}W", f"{_MEMORY}W_before", "best.W")
"""Tensors with a row for each of X: (..., n_samples, k)."""


class _File(Protocol):
    """Where the content of a checkpoint is kept."""

    @property
    def path(self) -> Path: ...

    def read(self) -> Content | None: ...

    def write(self, content: Content) -> None: ...


class _OwnFile:
    """The file of one process that has all of X."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> Content | None:
        """Return what was written; None if nothing was."""
        return read_tensors(self.path, Kind.CHECKPOINT) if self.path.exists() else None

    def write(self, content: Content) -> None:
        """Write the content in place of the one before."""
        write_tensors(self.path, Kind.CHECKPOINT, content)


class Checkpoint:
    """The file at `path`, which follows a fit to X that `fit` describes.

    The fit tells it every state with `note`, of tensors without a copy; `write` brings the last one
    into the file, which is `due` where `every` seconds have passed since it was last written.
    Processes that have rows of X each call `read` and `write` together.
    """

    def __init__(
        self, path: str | os.PathLike[str], every: float, fit: Mapping[str, Any], X: Matrix
    ) -> None:
        place = Path(path)
        if not place.parent.is_dir():
            raise ValueError(
                f"checkpoint={str(path)!r}: there is no directory {str(place.parent)!r}; "
                "create it first"
            )
        self._file: _File = _OwnFile(place)
        if isinstance(X, Sharded):
            self._file = DealtFile(place, X, _OF_ROWS)
        self._every, self._fit, self._device = every, dict(fit), X.device
        self._leads = X.leads
        self._noted: State | None = None
        self._due = -math.inf  # the first is written at once: a bad place shows before the work

    @property
    def due(self) -> bool:
        """Whether it is time to write."""
        return time.monotonic() >= self._due

    def read(self, max_iter: int) -> State | None:
        """Return where the fit stood when the file was written; None where there is no file."""
        content, path = self._file.read(), str(self._file.path)
        if content is None:
            return None
        written = content.description["fit"]
        differ = [
            f"{name} was {written.get(name)!r} and is {self._fit.get(name)!r}"
            for name in sorted({*written, *self._fit})
            if written.get(name) != self._fit.get(name)
        ]
        if differ:
            raise ValueError(
                f"checkpoint={path!r} is of another fit: {'; '.join(differ)}. Set that "
                "back to go on with the fit (max_iter may change), or delete the file or give "
                "another name to begin anew"
            )
        state = _state(content, self._device)
        if state.iterations[-1] > max_iter:
            raise ValueError(
                f"checkpoint={path!r} is at iteration {state.iterations[-1]}, above "
                f"max_iter={max_iter}; raise max_iter to go on, or delete the file or give another "
                "name to begin anew"
            )
        self._due = time.monotonic() + self._every
        return state

    def note(self, state: State) -> None:
        """Take note of where the fit stands."""
        self._noted = state

    def write(self) -> None:
        """Write the last state unless the file holds it.

        Where a later write fails, as on a full disk, the fit goes on with a warning.
        """
        if self._noted is None:
            return
        content, self._noted = _content(self._noted, self._fit), None
        try:
            self._file.write(content)
        except OSError as error:
            if self._due == -math.inf:
                raise
            if self._leads:
                warn_user(
                    f"checkpoint={str(self._file.path)!r} could not be written ({error}) and is as "
                    "old as it was; the fit goes on",
                    RuntimeWarning,
                )
        self._due = time.monotonic() + self._every


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
