// Weights of the entries of X as the kernels of both devices see them. Free of torch.
#pragma once

#include <cstdint>

namespace nnmf_cuda {

// A number for each entry, or a bit: feature j is bit j % 8 of byte j / 8 of its row. One of both
// pointers is null.
template <class T>
struct Weights {
  const uint8_t* bits;
  const T* values;
  int64_t row_stride;  // bytes or numbers from one row to the next
  int64_t stride;      // from one problem's to the next: 0 where they share them

  Weights of_problem(int64_t b) const {
    return {bits == nullptr ? nullptr : bits + b * stride,
            values == nullptr ? nullptr : values + b * stride, row_stride, stride};
  }
};

}  // namespace nnmf_cuda
