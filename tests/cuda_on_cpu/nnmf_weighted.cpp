// nnmf_weighted_mu, nnmf_weighted_hals (n_inner > 0) and nnmf_weighted_divergence.
#include "call.h"
#include "nnmf/cuda/weighted_divergence.cuh"
#include "nnmf/cuda/weighted_iterations.cuh"
#include "nnmf_call.h"

namespace {

using namespace nnmf_cuda;

template <class T>
Weights<T> weights_of(cuda_on_cpu::Call& call, const Shape& s) {
  const bool bits = call.is<uint8_t>("weights");
  const int64_t width = bits ? (s.n_features + 7) / 8 : s.n_features;
  const int64_t stride = call.dims("weights") == 2 ? 0 : s.n_samples * width;
  if (bits) return {call.tensor<uint8_t>("weights"), nullptr, width, stride};
  return {nullptr, call.tensor<T>("weights"), width, stride};
}

template <Loss loss, class T, class Data>
void run(cuda_on_cpu::Call& call) {
  const Arguments<T, Data> arguments(call);
  const Updates updates(call, scale_of<Data>());
  const Weights<T> weights = weights_of<T>(call, arguments.shape);
  Memory memory{call};
  WeightedIterations<loss, T, Data>(arguments.problem, weights, memory)
      .run(updates.of_W, updates.of_H, call.integer("n_iter"), call.integer("update_H") != 0,
           arguments.result.W, arguments.result.H, nullptr);
  double* divergence = call.result<double>("divergence", {arguments.shape.batch});
  launch_weighted_divergence<loss>(arguments.after(), weights, terms_of(call), divergence, memory,
                                   nullptr);
}

}  // namespace

CUDA_ON_CPU_CALL(nnmf) {
#if defined(FEW_KERNELS)
  if (call.number("beta_loss") == 1)
    run<Loss::kKullbackLeibler, float, float>(call);
  else
    run<Loss::kFrobenius, float, float>(call);
#else
  with_types(call, [&]<class T, class Data>(T, Data) {
    dispatch_loss(call.number("beta_loss"),
                  [&]<Loss loss>(LossType<loss>) { run<loss, T, Data>(call); });
  });
#endif
}
