// Checks of the tensors of nnls and nnls_backward; both devices.
#pragma once

#include <cstdint>

#include <torch/csrc/stable/tensor.h>

#include "../common/checks.h"

namespace nnmf_cuda {

// gram [B, k, k], rows [B, n, k]
inline void check_rows(const Argument& gram, const Argument& rows) {
  check_floating(gram);
  check_floating(rows);
  check_same_device(gram, rows);
  check_dim(gram, 3);
  check_dim(rows, 3);
  check_size(gram, 0, rows.tensor.size(0), "batch");
  check_size(gram, 1, rows.tensor.size(2), "n_components");
  check_size(gram, 2, rows.tensor.size(2), "n_components");
}

// h and grad [B, n, k], of one dtype
inline void check_backward(const Argument& gram, const Argument& h, const Argument& grad) {
  check_rows(gram, grad);
  check_same_dtype(h, grad);
  check_same_device(h, grad);
  check_dim(h, 3);
  for (int64_t d = 0; d < 3; ++d) check_size(h, d, grad.tensor.size(d), "as grad");
}

}  // namespace nnmf_cuda
