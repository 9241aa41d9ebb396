// nnmf_sparse_mu, nnmf_sparse_hals (n_inner > 0) and nnmf_sparse_divergence.
#include "call.h"
#include "nnmf_call.h"
#include "sparse/cuda/divergence.cuh"
#include "sparse/cuda/iterations.cuh"

namespace {

using namespace nnmf_cuda;

template <Loss loss, class T, class Index>
void run(cuda_on_cpu::Call& call) {
  const SparseShape shape{call.size("W", 0), call.size("W", 1), call.size("H", 2),
                          call.size("W", 2), call.size("values", 0)};
  const SparseParams<T, Index> problem{
      call.tensor<Index>("crow"),
      call.tensor<Index>("col"),
      call.tensor<T>("values"),
      call.tensor<T>("W"),
      call.tensor<T>("H"),
      shape,
      reinterpret_cast<const bool*>(call.tensor<uint8_t>("active"))};
  const Result<T> result{call.result<T>("W", {shape.batch, shape.n_samples, shape.n_components}),
                         call.result<T>("H", {shape.batch, shape.n_components, shape.n_features})};
  const Updates updates(call, /*scale=*/1);
  const bool updates_H = call.integer("update_H") != 0;
  Memory memory{call};
  SparseIterations<loss, T, Index>(problem, updates_H, memory, nullptr)
      .run(updates.of_W, updates.of_H, call.integer("n_iter"), updates_H, result.W, result.H);
  SparseParams<T, Index> after = problem;
  after.W = result.W;
  after.H = result.H;
  SparseDivergence<loss, T, Index>(after, memory)
      .launch(terms_of(call), call.result<double>("divergence", {shape.batch}), nullptr);
}

template <class T, class Index>
void run_loss(cuda_on_cpu::Call& call) {
#if defined(FEW_KERNELS)
  if (call.number("beta_loss") == 1)
    run<Loss::kKullbackLeibler, T, Index>(call);
  else if (call.number("beta_loss") == 2)
    run<Loss::kFrobenius, T, Index>(call);
  else
    run<Loss::kGeneral, T, Index>(call);
#else
  dispatch_loss(call.number("beta_loss"),
                [&]<Loss loss>(LossType<loss>) { run<loss, T, Index>(call); });
#endif
}

}  // namespace

CUDA_ON_CPU_CALL(sparse) {
#if defined(FEW_KERNELS)
  run_loss<float, int32_t>(call);
#else
  const bool is_short = call.is<int32_t>("crow");
  if (call.is<double>("W"))
    is_short ? run_loss<double, int32_t>(call) : run_loss<double, int64_t>(call);
  else
    is_short ? run_loss<float, int32_t>(call) : run_loss<float, int64_t>(call);
#endif
}
