// The CUDA kernels of nnls, nnls_backward and project.
#include <algorithm>

#include "nnls_call.h"
#include "nnmf/cuda/half_step.cuh"

namespace {

using namespace nnmf_cuda;

template <class G, class T>
void solve(cuda_on_cpu::Call& call) {
  const RowsShape s = shape_of(call, "cross");
  Memory memory{call};
  const G* gram = call.tensor<G>("gram");
  const T* cross = call.tensor<T>("cross");
  T* h = call.result<T>("h", {s.batch, s.n, s.k});
  const ActiveSets sets = sets_of(call, s);
  if (call.number("slowly") == 0) return launch_nnls(gram, cross, h, sets, s, memory, nullptr);
  // Every row by Lawson-Hanson.
  const NnlsRows<T, T> rows{cross, h, memory.get<uint8_t>(s.batch * s.n), sets, s};
  std::fill_n(rows.unsolved, s.batch * s.n, uint8_t{1});
  std::fill_n(sets.pivots, s.batch * s.n, int64_t{0});
  launch_lawson_hanson(rows, launch_prepare_grams(gram, s.batch, s.k, memory, nullptr),
                       memory.get<double>(row_blocks(s) * row_matrices(s.k)), nullptr);
}

template <class T>
void solve_backward(cuda_on_cpu::Call& call) {
  const RowsShape s = shape_of(call, "grad");
  Memory memory{call};
  launch_nnls_backward(call.tensor<double>("gram"), call.tensor<T>("h"), call.tensor<T>("grad"),
                       call.result<double>("u", {s.batch, s.n, s.k}), s, memory, nullptr);
}

template <class T, class Data>
void project(cuda_on_cpu::Call& call) {
  const bool shared = call.dims("X") == 2;
  const int64_t n = call.size("X", shared ? 0 : 1), f = call.size("X", shared ? 1 : 2);
  const int64_t batch = call.size("H", 0), k = call.size("H", 1);
  const Shape shape{batch, n, f, k, shared ? 0 : n * f, f};
  Memory memory{call};
  double *cross = memory.get<double>(batch * n * k), *gram = memory.get<double>(batch * k * k);
  const DeviceProblem<T, Data> problem{
      call.tensor<Data>("X"), nullptr, call.tensor<T>("H"), shape, nullptr, 3};
  const double scale = sizeof(Data) == 1 ? 1.0 / 255 : 1;
  launch_products(problem, scale, cross, gram, memory, nullptr);
  launch_nnls(gram, cross, call.result<T>("h", {batch, n, k}), sets_of(call, {batch, n, k}),
              {batch, n, k}, memory, nullptr);
}

}  // namespace

CUDA_ON_CPU_CALL(nnls) {
#if !defined(FEW_KERNELS)
  if (call.is<float>("gram")) return solve<float, float>(call);
  if (call.is<float>("cross")) return solve<double, float>(call);
#endif
  solve<double, double>(call);
}

CUDA_ON_CPU_CALL(nnls_backward) {
#if !defined(FEW_KERNELS)
  if (call.is<float>("grad")) return solve_backward<float>(call);
#endif
  solve_backward<double>(call);
}

#if !defined(FEW_KERNELS)
CUDA_ON_CPU_CALL(project) {
  if (call.is<uint8_t>("X"))
    project<float, uint8_t>(call);
  else if (call.is<double>("X"))
    project<double, double>(call);
  else
    project<float, float>(call);
}
#endif
