// Scratch memory of a launch sequence, from torch's allocator: launches can be captured in a graph.
#pragma once

#include <cstdint>
#include <type_traits>
#include <vector>

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "checks.h"

namespace nnmf_cuda {

class DeviceMemory {
 public:
  // On the device of `like`.
  explicit DeviceMemory(const Tensor& like) : like_(like) {}

  // `size` values, not initialised, that live as long as this object: kernels that were launched
  // before may still use them afterwards, as whoever gets the memory next launches after them.
  template <class T>
  T* get(int64_t size) {
    static_assert(std::is_floating_point_v<T> || sizeof(T) == 1);
    constexpr ScalarType kType = sizeof(T) == 8   ? ScalarType::Double
                                 : sizeof(T) == 4 ? ScalarType::Float
                                                  : ScalarType::Byte;
    blocks_.push_back(torch::stable::new_empty(like_, {size}, kType));
    return blocks_.back().mutable_data_ptr<T>();
  }

 private:
  Tensor like_;
  std::vector<Tensor> blocks_;
};

}  // namespace nnmf_cuda
