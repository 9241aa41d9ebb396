// The CUDA kernels of nnls, nnls_backward and project.
#include <algorithm>

#include "nnls/cuda/project.cuh"
#include "nnls_call.h"

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
  double* const room = memory.get<double>(s.batch * doubles_of_prepared(s.k));
  launch_lawson_hanson(rows, launch_grams(gram, s.batch, s.k, /*cold=*/true, room, nullptr),
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
  const DeviceProblem<T, Data> problem{
      call.tensor<Data>("X"), nullptr, call.tensor<T>("H"), shape, nullptr, 3};
  const double scale = sizeof(Data) == 1 ? 1.0 / 255 : 1;
  PreparedComponents<T> prepared{nullptr, nullptr};
  if (call.number("prepared") != 0) {  // 2: packed is left to the call
    double* const grams = memory.get<double>(batch * doubles_of_prepared(k));
    const T* packed =
        launch_prepared(problem, static_cast<T*>(nullptr), /*cold=*/true, grams, memory, nullptr);
    prepared = {call.number("prepared") == 1 ? packed : nullptr, grams};
  }
  launch_project(problem, scale, call.result<T>("h", {batch, n, k}), sets_of(call, {batch, n, k}),
                 prepared, memory, nullptr);
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
