// Run-time values become template parameters here, in one place.
#pragma once

#include <cstdint>

#include "checks.h"

namespace nnmf_cuda {

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

}  // namespace nnmf_cuda
