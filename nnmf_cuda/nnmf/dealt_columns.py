"""The columns of a sparse X whose rows are dealt among processes, dealt among them too."""

from __future__ import annotations

import numpy as np
import scipy.sparse
from numpy.typing import NDArray
from torch import Tensor

from nnmf_cuda.distributed.ranks import Ranks
from nnmf_cuda.distributed.shard import share
from nnmf_cuda.nnmf.inputs import shared_tensor
from nnmf_cuda.nnmf.sparse_matrix import Sparse
from nnmf_cuda.ops.nnmf_sparse import csr_tensor


class DealtColumns:
    """Some columns of X with the rows of all ranks: X^T, of which each rank has as many rows.

    What solves for columns of H one by one needs them whole, where others do with sums over rows.
    They are sent once.
    """

    def __init__(self, own: Sparse, ranks: Ranks) -> None:
        self._ranks = ranks
        n_features = own.shape[1]
        shares = [share(n_features, rank, ranks.size) for rank in range(ranks.size)]
        self.counts = [part.stop - part.start for part in shares]
        self.columns = shares[ranks.rank]
        crow, col, values = _parts(own.transposed.tensor)
        ends = [crow[[part.start, part.stop]].tolist() for part in shares]
        lengths = ranks.exchanged([crow[part.start : part.stop + 1].diff() for part in shares])
        rows = ranks.exchanged([col[begin:end] for begin, end in ends])
        numbers = ranks.exchanged([values[begin:end] for begin, end in ends])
        n_rows = ranks.gathered(own.shape[0])
        # Side by side: the rows of X of one rank after the other.
        pieces = [
            scipy.sparse.csr_array(
                (number.cpu().numpy(), row.cpu().numpy(), _starts(length)),
                shape=(self.counts[ranks.rank], n),
            )
            for length, row, number, n in zip(lengths, rows, numbers, n_rows, strict=True)
        ]
        whole = scipy.sparse.csr_array(scipy.sparse.hstack(pieces, format="csr"))
        whole.sort_indices()
        index = own.tensor.col_indices().dtype
        starts, rows_of = (shared_tensor(part).to(index) for part in (whole.indptr, whole.indices))
        tensor = csr_tensor(starts, rows_of, shared_tensor(whole.data), whole.shape)
        self.tensor = tensor.to(own.device)

    def joined(self, own: Tensor) -> Tensor:
        """Return H (B, k, f) of its columns (B, k, n_columns) on each rank."""
        rows = own.permute(2, 0, 1).contiguous()
        return self._ranks.rows(rows, self.counts).permute(1, 2, 0).contiguous()


def _parts(tensor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return tensor.crow_indices().long(), tensor.col_indices().long(), tensor.values()


def _starts(lengths: Tensor) -> NDArray[np.int64]:
    return np.concatenate(([0], lengths.cumsum(0).cpu().numpy()))
