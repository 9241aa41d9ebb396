"""The ops in plain torch, formula first: the fallback of `nnmf_cuda.ops` and the truth in tests.

Every function here has the signature of the op of the same name (batch dimension always present)
and runs on any device in any floating dtype; `nnls_dense`, which is no op, takes one problem.
Nothing here imports `nnmf_cuda.ops`.
"""

from __future__ import annotations

from nnmf_cuda.reference.crown import *
from nnmf_cuda.reference.defence import *
from nnmf_cuda.reference.images import *
from nnmf_cuda.reference.nnls import *
from nnmf_cuda.reference.nnls_dense import *
from nnmf_cuda.reference.nnmf import *
from nnmf_cuda.reference.nnmf_sparse import *
from nnmf_cuda.reference.nnmf_sparse_cd import *
from nnmf_cuda.reference.philox import *
from nnmf_cuda.reference.training import *
