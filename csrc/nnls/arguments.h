// Checks of the tensors of nnls, nnls_backward and project; both devices.
#pragma once

#include <cstdint>

#include <torch/csrc/stable/tensor.h>

#include "../common/checks.h"
#include "../nnmf/problem.h"

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

// X [n, n_features] or [B, n, n_features], H [B, k, n_features]
inline Shape check_project(const Tensor& X, const Tensor& H) {
  const Argument x{"X", X}, h{"H", H};
  check_floating(h);
  if (X.scalar_type() != ScalarType::Byte) check_same_dtype(x, h);
  check_same_device(x, h);
  check_dim(h, 3);
  const int64_t rows = X.dim() == 2 ? 0 : 1;
  if (X.dim() != 2) {
    check_dim(x, 3);
    check_size(x, 0, H.size(0), "batch of H");
  }
  check_size(x, rows + 1, H.size(2), "n_features of H");
  return {H.size(0), X.size(rows), H.size(2), H.size(1), 0, 0};
}

}  // namespace nnmf_cuda
