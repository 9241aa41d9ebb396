// A factorisation of sparse X as the kernels of both devices see it. Free of torch.
#pragma once

#include <cstdint>

namespace nnmf_cuda {

struct SparseShape {
  int64_t batch;
  int64_t n_samples;
  int64_t n_features;
  int64_t n_components;
  int64_t n_nonzeros;
};

// One problem, or many that share X.
template <class T, class Index>
struct SparseParams {
  const Index* crow;  // [n_samples + 1]: where each row begins in the next two
  const Index* col;   // [n_nonzeros], ascending within a row
  const T* values;    // [n_nonzeros]
  const T* W;         // [B, n_samples, n_components], contiguous
  const T* H;         // [B, n_components, n_features], contiguous
  SparseShape shape;
  const bool* active;  // [B]: problems that are not stay as they are; nullptr: all are
};

}  // namespace nnmf_cuda
