// What both devices know of philox_normal.
#pragma once

#include <cstdint>

#include "../common/inline.h"

namespace nnmf_cuda {

struct DrawsShape {
  int64_t n_steps, n_rows, n_draws, n_features;

  NNMF_CUDA_INLINE int64_t size() const { return n_steps * n_rows * n_draws * n_features; }
};

}  // namespace nnmf_cuda
