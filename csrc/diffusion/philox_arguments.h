// Arguments of philox_normal, on both devices.
#pragma once

#include <cstdint>

#include "../common/checks.h"
#include "philox_normal.h"

namespace nnmf_cuda {

// The shape of the draws; its entries are words of a counter.
inline DrawsShape check_draws(const Argument& like, int64_t n_steps, int64_t n_rows,
                              int64_t n_draws, int64_t n_features) {
  check_floating(like);
  const struct {
    const char* name;
    int64_t size;
  } sizes[] = {
      {"n_steps", n_steps}, {"n_rows", n_rows}, {"n_draws", n_draws}, {"n_features", n_features}};
  for (const auto& [name, size] : sizes)
    STD_TORCH_CHECK(size >= 0 && size < int64_t{1} << 32, name, " must be in [0, 2**32), got ",
                    size);
  return {n_steps, n_rows, n_draws, n_features};
}

}  // namespace nnmf_cuda
