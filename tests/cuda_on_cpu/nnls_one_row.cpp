// nnls and nnls_backward by a block a row, for any number of variables.
#include "nnls_call.h"

namespace {

using namespace nnmf_cuda;

template <class T>
void solve(cuda_on_cpu::Call& call) {
  const RowsShape s = shape_of(call, "cross");
  Memory memory{call};
  launch_one_rows(call.tensor<T>("gram"), call.tensor<T>("cross"),
                  call.result<T>("h", {s.batch, s.n, s.k}), sets_of(call, s), s, memory, nullptr);
}

template <class T>
void solve_backward(cuda_on_cpu::Call& call) {
  const RowsShape s = shape_of(call, "grad");
  Memory memory{call};
  launch_one_rows_backward(call.tensor<double>("gram"), call.tensor<T>("h"), call.tensor<T>("grad"),
                           call.result<double>("u", {s.batch, s.n, s.k}), s, memory, nullptr);
}

}  // namespace

CUDA_ON_CPU_CALL(nnls) {
#if !defined(FEW_KERNELS)
  if (call.is<float>("gram")) return solve<float>(call);
#endif
  solve<double>(call);
}

CUDA_ON_CPU_CALL(nnls_backward) {
#if !defined(FEW_KERNELS)
  if (call.is<float>("grad")) return solve_backward<float>(call);
#endif
  solve_backward<double>(call);
}
