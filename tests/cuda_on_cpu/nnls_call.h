// The arguments of nnls and its gradient as a call from Python gives them.
#pragma once

#include "call.h"
#include "nnls/cuda/launches.cuh"

namespace nnmf_cuda {

// Which rows took the slow way is given back as well.
struct Memory {
  template <class T>
  T* get(int64_t size) {
    if constexpr (sizeof(T) == 1)
      return call.result<T>("unsolved", {size});
    else
      return call.scratch<T>(size);
  }
  cuda_on_cpu::Call& call;
};

inline RowsShape shape_of(const cuda_on_cpu::Call& call, const char* rows) {
  return {call.size(rows, 0), call.size(rows, 1), call.size(rows, 2)};
}

// Where "passive" has a row for each, it is what they start from.
inline ActiveSets sets_of(cuda_on_cpu::Call& call, const RowsShape& s) {
  const bool given = call.size("passive", 0) > 0;
  return {given ? reinterpret_cast<const bool*>(call.tensor<uint8_t>("passive")) : nullptr,
          call.number("tol"),
          reinterpret_cast<bool*>(call.result<uint8_t>("free", {s.batch, s.n, s.k})),
          call.result<int64_t>("pivots", {s.batch, s.n})};
}

}  // namespace nnmf_cuda
