// Checks of tensor arguments: each message names the argument, what was expected and what was
// given. And their dtypes, which become template parameters here.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

namespace nnmf_cuda {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

struct Argument {
  const char* name;
  const Tensor& tensor;
};

inline std::string shape_of(const Tensor& tensor) {
  std::string text = "(";
  for (int64_t d = 0; d < tensor.dim(); ++d)
    text += (d ? ", " : "") + std::to_string(tensor.size(d));
  return text + ")";
}

inline const char* dtype_name(ScalarType type) {
  return torch::headeronly::toString(type);
}

inline void check_dim(const Argument& a, int64_t dim) {
  STD_TORCH_CHECK(a.tensor.dim() == dim, a.name, " must have ", dim, " dimensions, got shape ",
                  shape_of(a.tensor));
}

// `what` says in words which size is meant, for example "n_components of W".
inline void check_size(const Argument& a, int64_t dim, int64_t size, const char* what) {
  STD_TORCH_CHECK(a.tensor.size(dim) == size, a.name, " must have size ", size, " (", what,
                  ") in dimension ", dim, ", got shape ", shape_of(a.tensor));
}

inline void check_floating(const Argument& a) {
  const ScalarType type = a.tensor.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double, a.name,
                  " must be float32 or float64, got ", dtype_name(type));
}

inline void check_same_dtype(const Argument& a, const Argument& as) {
  STD_TORCH_CHECK(a.tensor.scalar_type() == as.tensor.scalar_type(), a.name, " must have ", as.name,
                  "'s dtype ", dtype_name(as.tensor.scalar_type()), ", got ",
                  dtype_name(a.tensor.scalar_type()));
}

inline void check_same_device(const Argument& a, const Argument& as) {
  STD_TORCH_CHECK(a.tensor.device() == as.tensor.device(), a.name, " must be on the device of ",
                  as.name);
}

// The CUDA device of a tensor. An op's other tensors are compared with it before its device is
// taken: whichever of them lies on a GPU has brought the call here.
inline int32_t cuda_index_of(const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.is_cuda(),
                  "a CUDA kernel was given a tensor that is not on a GPU: move all tensors to one "
                  "device");
  return tensor.get_device_index();
}

template <class T>
struct Type {
  using type = T;
};

// Calls f(Type<float>) or f(Type<double>).
template <class F>
auto dispatch_floating(ScalarType type, const F& f) {
  return type == ScalarType::Double ? f(Type<double>{}) : f(Type<float>{});
}

// Calls f(Type<uint8_t>) for pixels, otherwise f(Type<T>), T being the dtype of the factors.
template <class T, class F>
auto dispatch_data(ScalarType type, const F& f) {
  return type == ScalarType::Byte ? f(Type<uint8_t>{}) : f(Type<T>{});
}

// The tensor itself, if its numbers lie side by side, else a copy whose do.
inline Tensor adjacent(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

}  // namespace nnmf_cuda
