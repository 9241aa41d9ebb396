// The CUDA kernels of nnmf_mu, nnmf_hals (n_inner > 0) and nnmf_divergence.
#include "call.h"
#include "nnmf/cuda/divergence.cuh"
#include "nnmf/cuda/iterations.cuh"
#include "nnmf_call.h"

namespace {

using namespace nnmf_cuda;

template <class Tiling>
using ProblemOf = DeviceProblem<typename Tiling::T, typename Tiling::Data>;

template <class Tiling>
void update(cuda_on_cpu::Call& call, const ProblemOf<Tiling>& problem, int group,
            const Result<typename Tiling::T>& result) {
  Memory memory{call};
  const Iterations<Tiling> iterations(problem, group, memory);
  const Updates updates(call, scale_of<typename Tiling::Data>());
  iterations.run(updates.of_W, updates.of_H, call.integer("n_iter"), call.integer("update_H") != 0,
                 result.W, result.H, nullptr);
}

template <class Tiling>
void diverge(cuda_on_cpu::Call& call, const ProblemOf<Tiling>& problem, int group) {
  Memory memory{call};
  const DivergenceLaunches<Tiling> launches(problem, group, memory);
  double* divergence = call.result<double>("divergence", {problem.shape.batch});
  launches.launch(terms_of(call), divergence, nullptr);
}

template <class T, class Data>
void run(cuda_on_cpu::Call& call) {
  const Arguments<T, Data> arguments(call);
  const int64_t k = arguments.shape.n_components;
  dispatch_loss(call.number("beta_loss"), [&]<Loss loss>(LossType<loss>) {
    dispatch_tiling<loss, T, Data>(k, [&]<class Tiling>(Tiling, int group) {
      update<Tiling>(call, arguments.problem, group, arguments.result);
    });
    dispatch_divergence_tiling<loss, T, Data>(k, [&]<class Tiling>(Tiling, int group) {
      diverge<Tiling>(call, arguments.after(), group);
    });
  });
}

// What mutants are tested with: up to eight components in groups of two lanes.
template <Loss loss>
[[maybe_unused]] void run_small(cuda_on_cpu::Call& call) {
  const Arguments<float, float> arguments(call);
  update<Tiling<loss, float, float, 4, 2, true>>(call, arguments.problem, 2, arguments.result);
  diverge<Tiling<loss, float, float, 4, 2, true>>(call, arguments.after(), 2);
}

}  // namespace

CUDA_ON_CPU_CALL(nnmf) {
#if defined(FEW_KERNELS)
  if (call.number("beta_loss") == 1)
    run_small<Loss::kKullbackLeibler>(call);
  else if (call.number("beta_loss") == 0)
    run_small<Loss::kItakuraSaito>(call);
  else
    run_small<Loss::kFrobenius>(call);
#else
  with_types(call, [&]<class T, class Data>(T, Data) { run<T, Data>(call); });
#endif
}
