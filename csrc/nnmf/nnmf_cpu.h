// What the CPU kernels of this folder share beside their ISA sources.
#pragma once

#include <cstdint>

#include "beta_loss.h"
#include "factors.h"

namespace nnmf_cuda {

// How one factor is updated.
struct Update {
  UpdateRule rule;
  double beta_loss;
  double scale;     // of the numerators: 1 / 255 for pixels, which are summed as bytes
  double zero_sum;  // what stands for a sum of zero in the denominator of Kullback-Leibler
  int64_t n_inner;  // sweeps of coordinate descent; 0 for multiplicative updates
};

inline double scale_of(const Tensor& X) {
  return X.scalar_type() == ScalarType::Byte ? 1.0 / 255 : 1.0;
}

// X as the kernels read it: rows may lie anywhere, the entries of a row side by side. Only where
// they do not is X copied.
inline Tensor rows_contiguous(const Tensor& X, Shape& shape) {
  const bool adjacent = X.size(X.dim() - 1) <= 1 || X.strides()[X.dim() - 1] == 1;
  const Tensor x = adjacent ? X : torch::stable::contiguous(X);
  shape.x_row_stride = x.strides()[x.dim() - 2];
  shape.x_stride = x.dim() == 2 ? 0 : x.strides()[0];
  return x;
}

}  // namespace nnmf_cuda
