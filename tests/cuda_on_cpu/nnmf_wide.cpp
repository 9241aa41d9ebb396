// nnmf_mu, nnmf_hals (n_inner > 0) and nnmf_divergence with more than 256 components: the kernels
// that take any number.
#include "call.h"
#include "nnmf/cuda/wide_divergence.cuh"
#include "nnmf/cuda/wide_iterations.cuh"
#include "nnmf_call.h"

namespace {

using namespace nnmf_cuda;

template <Loss loss, class T, class Data>
void run(cuda_on_cpu::Call& call) {
  const Arguments<T, Data> arguments(call);
  const Updates updates(call, scale_of<Data>());
  Memory memory{call};
  WideIterations<loss, T, Data>(arguments.problem, memory)
      .run(updates.of_W, updates.of_H, call.integer("n_iter"), call.integer("update_H") != 0,
           arguments.result.W, arguments.result.H, nullptr);
  double* divergence = call.result<double>("divergence", {arguments.shape.batch});
  WideDivergence<loss, T, Data>(arguments.after(), memory)
      .launch(terms_of(call), divergence, nullptr);
}

}  // namespace

CUDA_ON_CPU_CALL(nnmf) {
#if defined(FEW_KERNELS)
  if (call.number("beta_loss") == 0)
    run<Loss::kItakuraSaito, float, float>(call);
  else if (call.number("beta_loss") == 1)
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
