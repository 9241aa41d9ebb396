"""The kernels as functions of tensors; see `nnmf_cuda.show_config` for what serves each of them.

Every op runs on the device of its arguments: by a compiled kernel where there is one, otherwise
by the plain-torch reference. All are functional: no argument is modified.
"""

from __future__ import annotations

from nnmf_cuda.ops import _nnls_gradients as _nnls_gradients
from nnmf_cuda.ops._schema import OPS as OPS
from nnmf_cuda.ops._schema import is_reference_path as is_reference_path
from nnmf_cuda.ops._schema import reference_path as reference_path
from nnmf_cuda.ops.crown import *
from nnmf_cuda.ops.defence import *
from nnmf_cuda.ops.images import *
from nnmf_cuda.ops.nnls import *
from nnmf_cuda.ops.nnls_dense import *
from nnmf_cuda.ops.nnmf import *
from nnmf_cuda.ops.nnmf_cd import *
from nnmf_cuda.ops.nnmf_weights import *
from nnmf_cuda.ops.philox import *
from nnmf_cuda.ops.training import *
