// nnls and nnls_backward by a block a row, for any number of variables.
#include "nnls_call.h"

namespace {

using namespace nnmf_cuda;

template <class T>
void solve(cuda_on_cpu::Call& call) {
  const RowsShape s = shape_of(call, "cross");
  Memory memory{call};
  const ActiveSets sets = sets_of(call, s);
  const DeviceGrams grams =
      launch_wide_grams(call.tensor<T>("gram"), s.batch, s.k, sets.start == nullptr,
                        memory.get<double>(s.batch * doubles_of_prepared(s.k)), nullptr);
  launch_one_rows(grams, call.tensor<T>("cross"), call.result<T>("h", {s.batch, s.n, s.k}), sets, s,
                  memory, nullptr);
}

template <class T>
void solve_backward(cuda_on_cpu::Call& call) {
  const RowsShape s = shape_of(call, "grad");
  Memory memory{call};
  const DeviceGrams grams =
      launch_wide_grams(call.tensor<double>("gram"), s.batch, s.k, /*with_factors=*/false,
                        memory.get<double>(s.batch * doubles_of_prepared(s.k)), nullptr);
  launch_one_rows_backward(grams, call.tensor<T>("h"), call.tensor<T>("grad"),
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
