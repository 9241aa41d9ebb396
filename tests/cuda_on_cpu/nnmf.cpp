// The CUDA kernels of nnmf_mu, nnmf_hals (n_inner > 0) and nnmf_divergence.
#include "call.h"
#include "nnmf/cuda/divergence.cuh"
#include "nnmf/cuda/iterations.cuh"

namespace {

using namespace nnmf_cuda;

Shape shape_of(const cuda_on_cpu::Call& call) {
  const bool shared = call.dims("X") == 2;
  const int64_t n = call.size("W", 1), f = call.size("H", 2);
  return {call.size("W", 0), n, f, call.size("W", 2), shared ? 0 : n * f, f};
}

TermRule<double> terms_of(const cuda_on_cpu::Call& call) {
  return {call.number("beta_loss"), call.number("floor")};
}

struct Memory {
  template <class T>
  T* get(int64_t size) {
    return call.scratch<T>(size);
  }
  cuda_on_cpu::Call& call;
};

template <class Tiling>
using ProblemOf = DeviceProblem<typename Tiling::T, typename Tiling::Data>;

template <class T>
struct Result {
  T* W;
  T* H;
};

template <class Tiling>
void update(cuda_on_cpu::Call& call, const ProblemOf<Tiling>& problem, int group,
            const Result<typename Tiling::T>& result) {
  Memory memory{call};
  const Iterations<Tiling> iterations(problem, group, memory);
  const double scale = sizeof(typename Tiling::Data) == 1 ? 1.0 / 255 : 1;
  const int64_t n_inner = call.integer("n_inner");
  const int64_t n_fixed = call.integer("n_fixed");
  const double l1_W = call.number("l1_reg_W"), l1_H = call.number("l1_reg_H"),
               l2_W = call.number("l2_reg_W"), l2_H = call.number("l2_reg_H");
  const TermRule<double> terms = terms_of(call);
  const Update rule_W = n_inner > 0 ? descent_of(l1_W, l2_W, scale, n_inner, 0)
                                    : update_of_W(terms, l1_W, l2_W, scale);
  const Update rule_H = n_inner > 0 ? descent_of(l1_H, l2_H, scale, n_inner, n_fixed)
                                    : update_of_H(terms, l1_H, l2_H, scale, n_fixed);
  iterations.run(rule_W, rule_H, call.integer("n_iter"), call.integer("update_H") != 0, result.W,
                 result.H, nullptr);
}

template <class Tiling>
void diverge(cuda_on_cpu::Call& call, const ProblemOf<Tiling>& problem, int group) {
  Memory memory{call};
  const DivergenceLaunches<Tiling> launches(problem, group, memory);
  double* divergence = call.result<double>("divergence", {problem.shape.batch});
  launches.launch(terms_of(call), divergence, nullptr);
}

template <class T, class Data>
struct Arguments {
  explicit Arguments(cuda_on_cpu::Call& call)
      : shape(shape_of(call)),
        // Bytes that are 0 or 1.
        problem{call.tensor<Data>("X"),
                call.tensor<T>("W"),
                call.tensor<T>("H"),
                shape,
                reinterpret_cast<const bool*>(call.tensor<uint8_t>("active")),
                {call.integer("multiprocessors"), 228 * 1024}},
        result{call.result<T>("W", {shape.batch, shape.n_samples, shape.n_components}),
               call.result<T>("H", {shape.batch, shape.n_components, shape.n_features})} {}

  DeviceProblem<T, Data> after() const {
    DeviceProblem<T, Data> updated = problem;
    updated.W = result.W;
    updated.H = result.H;
    return updated;
  }

  Shape shape;
  DeviceProblem<T, Data> problem;
  Result<T> result;
};

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
void run_small(cuda_on_cpu::Call& call) {
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
  if (call.is<uint8_t>("X") && call.is<double>("W"))
    run<double, uint8_t>(call);
  else if (call.is<uint8_t>("X"))
    run<float, uint8_t>(call);
  else if (call.is<double>("X"))
    run<double, double>(call);
  else
    run<float, float>(call);
#endif
}
