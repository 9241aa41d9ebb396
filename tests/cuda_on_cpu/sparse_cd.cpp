// nnmf_sparse_cd.
#include "call.h"
#include "nnmf_call.h"
#include "sparse/cuda/descent.cuh"

namespace {

using namespace nnmf_cuda;

template <class T, class Index>
void run(cuda_on_cpu::Call& call) {
  const SparseShape shape{call.size("W", 0), call.size("W", 1), call.size("H", 2),
                          call.size("W", 2), call.size("values", 0)};
  const SparseParams<T, Index> problem{call.tensor<Index>("crow"), call.tensor<Index>("col"),
                                       call.tensor<T>("values"),   call.tensor<T>("W"),
                                       call.tensor<T>("H"),        shape,
                                       /*active=*/nullptr};
  const SparseShape by_columns{shape.batch, shape.n_features, shape.n_samples, shape.n_components,
                               call.size("column_values", 0)};
  const SparseParams<T, Index> transposed{call.tensor<Index>("ccol"),
                                          call.tensor<Index>("row"),
                                          call.tensor<T>("column_values"),
                                          /*W=*/nullptr,
                                          /*H=*/nullptr,
                                          by_columns,
                                          /*active=*/nullptr};
  const auto descent_of = [&](const char* l1, const char* l2, int64_t n_fixed) {
    return Descent{call.number(l1), call.number(l2), call.number("floor"), call.integer("n_inner"),
                   n_fixed};
  };
  const Descent of_W = descent_of("l1_reg_W", "l2_reg_W", 0),
                of_H = descent_of("l1_reg_H", "l2_reg_H", call.integer("n_fixed"));
  const Result<T> result{call.result<T>("W", {shape.batch, shape.n_samples, shape.n_components}),
                         call.result<T>("H", {shape.batch, shape.n_components, shape.n_features})};
  Memory memory{call};
  SparseDescents<T, Index>(problem, call.integer("update_H") != 0 ? &transposed : nullptr, memory,
                           nullptr)
      .run(of_W, of_H, call.integer("n_iter"), result.W, result.H);
}

}  // namespace

CUDA_ON_CPU_CALL(sparse_cd) {
#if defined(FEW_KERNELS)
  run<double, int32_t>(call);
#else
  const bool is_short = call.is<int32_t>("crow");
  if (call.is<double>("W"))
    is_short ? run<double, int32_t>(call) : run<double, int64_t>(call);
  else
    is_short ? run<float, int32_t>(call) : run<float, int64_t>(call);
#endif
}
