"""Fast NNMF and diffusion kernels for torch, and an experiment built on them.

`nnmf_cuda.ops` holds the kernels as functions of tensors, `NNMF` the scikit-learn estimator over
them, `load_model` what a run of the command line saved. Importing this module touches no GPU and
loads nothing of the experiment.

Once `ops` or `NNMF` have been used, a process that is forked from this one (`multiprocessing`,
joblib's "multiprocessing", `DataLoader`) has torch on one thread: OpenMP's others do not live on in
it, and with them it would wait for ever. To compute on several, start a process anew ("spawn",
"loky").
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nnmf_cuda._version import __version__

if TYPE_CHECKING:
    from nnmf_cuda import ops
    from nnmf_cuda.consensus.estimator import ConsensusNNMF
    from nnmf_cuda.nnmf.estimator import NNMF
    from nnmf_cuda.nnmf.rank_selection import RankSelection
    from nnmf_cuda.nnmf.selection import ComponentSelector
    from nnmf_cuda.ops.show_config import show_config
    from nnmf_cuda.pipeline.artifacts import load_model

__all__ = [
    "NNMF",
    "ComponentSelector",
    "ConsensusNNMF",
    "RankSelection",
    "__version__",
    "load_model",
    "ops",
    "show_config",
]

_HOMES = {
    "NNMF": "nnmf_cuda.nnmf.estimator",
    "ComponentSelector": "nnmf_cuda.nnmf.selection",
    "ConsensusNNMF": "nnmf_cuda.consensus.estimator",
    "RankSelection": "nnmf_cuda.nnmf.rank_selection",
    "load_model": "nnmf_cuda.pipeline.artifacts",
    "show_config": "nnmf_cuda.ops.show_config",
}


def __getattr__(name: str) -> Any:
    """Load a public name at its first use, so that `import nnmf_cuda` stays light."""
    import importlib

    if name == "ops":
        return importlib.import_module("nnmf_cuda.ops")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'nnmf_cuda' has no attribute {name!r}")
