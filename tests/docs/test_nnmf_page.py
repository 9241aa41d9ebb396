"""docs/nnmf.md against what happens: which ops a fit and a transform call, and who serves them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from torch.utils._python_dispatch import TorchDispatchMode

from nnmf_cuda import NNMF
from nnmf_cuda.nnmf.projection import TRANSFORM_SOLVERS
from nnmf_cuda.nnmf.solvers import SOLVERS
from nnmf_cuda.ops._schema import OPS

ROOT = Path(__file__).parents[2]
SECTIONS = {
    title: re.findall(r"^\| (?!---)(.*) \|$", text, re.MULTILINE)[1:]
    for title, text in re.findall(
        r"^## (.*?)\n(.*?)(?=^## |\Z)", (ROOT / "docs" / "nnmf.md").read_text("utf-8"), re.M | re.S
    )
}
LOSSES = {
    "any number; up to 0 without zeros in X": (-0.5, 0, 0.5, 1, 2, 3),
    "1 to 2": (1, 1.5, 2),
    "2": (2,),
    "1": (1,),
    "any": (0.5, 1, 2),
    "any but 2": (0.5, 1),
}
KINDS = ("dense", "sparse", "weighted")


def cells(title: str) -> list[tuple[str, float, str, str]]:
    """Return first column, one of its losses, kind of X and what the table says of them."""
    found = []
    for row in SECTIONS[title]:
        name, losses, *said = row.split(" | ")
        for kind, words in zip(KINDS, said, strict=True):
            found += [(name, loss, kind, words.strip("`")) for loss in LOSSES[losses]]
    return found


class Called(TorchDispatchMode):
    """Keeps the names of our ops that were called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        namespace, _, name = func.name().partition("::")
        if namespace == "nnmf_cuda":
            self.names.add(name)
        return func(*args, **(kwargs or {}))


def data(kind: str) -> tuple[Any, dict[str, Any]]:
    X = np.random.default_rng(0).random((12, 9)) + 0.1
    if kind == "sparse":
        return scipy.sparse.csr_array(X), {}
    mask = np.ones(X.shape, dtype=bool)
    mask[3, 4] = False
    return X, {"mask": mask} if kind == "weighted" else {}


def model(first_column: str, **parameters: Any) -> NNMF:
    if "with a `graph`" in first_column:
        parameters |= {"graph": "neighbors", "alpha_H": 0.01}
    return NNMF(3, tol=0, max_iter=2, transform_max_iter=2, random_state=0, **parameters)


@pytest.mark.parametrize(("solver", "beta_loss", "kind", "said"), cells("The ops of a fit"))
@pytest.mark.parametrize("alpha_W", [0, 0.01])
def test_a_fit_calls_the_ops_that_the_page_says(solver, beta_loss, kind, said, alpha_W):
    X, options = data(kind)
    fit = model(
        solver, solver=re.findall('"(.*)"', solver)[0], beta_loss=beta_loss, alpha_W=alpha_W
    )
    if said == "refused":
        with pytest.raises(
            ValueError, match="of X alike|count alike|sparse X only|knows no missing"
        ):
            fit.fit(X, **options)
        return
    with Called() as called:
        fit.fit(X, **options)
    divergence = {"dense": "nnmf_divergence"}.get(kind, f"nnmf_{kind}_divergence")
    assert called.names == {divergence} | ({said} - {"torch"})


def test_the_page_has_every_solver():
    for title, names in (("a fit", SOLVERS), ("a transform", TRANSFORM_SOLVERS)):
        rows = (row.split(" | ")[0] for row in SECTIONS[f"The ops of {title}"])
        assert {re.findall('"(.*)"', row)[0] for row in rows} == set(names)


@pytest.mark.parametrize(("solver", "beta_loss", "kind", "said"), cells("The ops of a transform"))
def test_a_transform_calls_the_ops_that_the_page_says(solver, beta_loss, kind, said):
    X, options = data(kind)
    fit = model(solver, beta_loss=beta_loss, transform_solver=re.findall('"(.*)"', solver)[0])
    fit.fit(X)
    if "alpha_W" in solver:
        fit.set_params(alpha_W=0.01)
    with Called() as called:
        fit.transform(X, **options)
    assert called.names == {said}


def registered(device: str) -> set[str]:
    """Return the ops that have a kernel in csrc for "CPU" or "CUDA"."""
    files = [*ROOT.glob("csrc/**/*.cpp"), *ROOT.glob("csrc/**/*.cu")]
    blocks = (
        re.findall(rf"_IMPL\(nnmf_cuda, {device}, m\) \{{(.*?)^\}}", file.read_text(), re.M | re.S)
        for file in files
    )
    text = "".join(text for found in blocks for text in found)
    return set(re.findall(r'impl\("(.*?)"', text))


def test_the_page_says_which_ops_have_kernels():
    rows = [row.split(" | ") for row in SECTIONS["The kernels"]]
    for place, device in ((1, "CPU"), (2, "CUDA")):
        kernels = registered(device)
        assert len(kernels) > 5
        for row in rows:
            said = "kernel" if row[0].strip("`") in kernels else "reference"
            assert row[place] == said, f"docs/nnmf.md has {row[0]} on {device} wrong"
    named = {row[0].strip("`") for row in rows}
    assert named == {name for name in OPS if re.match("nnmf|nnls$|project$", name)}
