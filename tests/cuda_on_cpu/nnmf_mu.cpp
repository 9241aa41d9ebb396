// The CUDA kernels of nnmf_mu and nnmf_divergence.
#include "call.h"
#include "nnmf/nnmf_divergence_kernels.cuh"
#include "nnmf/nnmf_mu_kernels.cuh"

namespace {

using namespace nnmf_cuda;

Shape shape_of(const cuda_on_cpu::Call& call) {
  const bool shared = call.tensors.at("X").shape.size() == 2;
  const int64_t n = call.size("W", 1), f = call.size("H", 2);
  return {call.size("W", 0), n, f, call.size("W", 2), shared ? 0 : n * f, f};
}

MuOptions options_of(const cuda_on_cpu::Call& call) {
  return {call.number("beta_loss"), call.integer("n_iter"),  call.integer("update_H") != 0,
          call.number("l1_reg_W"),  call.number("l1_reg_H"), call.number("l2_reg_W"),
          call.number("l2_reg_H")};
}

template <class T>
DeviceScratch<T> scratch_for(cuda_on_cpu::Call& call, const ScratchSize& size) {
  return {call.scratch<T>(size.values), call.scratch<double>(size.doubles)};
}

template <class T, class Data>
void run(cuda_on_cpu::Call& call) {
  const Shape shape = shape_of(call);
  const MuOptions options = options_of(call);
  T* W = call.result<T>("W", {shape.batch, shape.n_samples, shape.n_components});
  T* H = call.result<T>("H", {shape.batch, shape.n_components, shape.n_features});
  double* divergence = call.result<double>("divergence", {shape.batch});
  DeviceProblem<T, Data> problem{
      call.tensor<Data>("X"),         call.tensor<T>("W"), call.tensor<T>("H"), shape, nullptr,
      call.integer("multiprocessors")};
  dispatch_loss(options.beta_loss, [&]<Loss loss>(LossType<loss>) {
    dispatch_tiling<loss, T, Data>(shape.n_components, [&]<class Tiling>(Tiling, int group) {
      MuLaunches<Tiling> launches(problem, group);
      launches.use(scratch_for<T>(call, launches.scratch_size()));
      launch_nnmf_mu(launches, options, sizeof(Data) == 1 ? 1.0 / 255 : 1, {W, H}, nullptr);
    });
    problem.W = W;
    problem.H = H;
    const auto sum = [&]<class Tiling>(Tiling, int group) {
      const DivergenceLaunches<Tiling> launches(problem, group);
      launches.launch(scratch_for<T>(call, launches.scratch_size()), options.beta_loss, divergence,
                      nullptr);
    };
    dispatch_divergence_tiling<loss, T, Data>(shape.n_components, sum);
  });
}

}  // namespace

CUDA_ON_CPU_CALL(nnmf_mu) {
  if (call.is<uint8_t>("X"))
    run<float, uint8_t>(call);
  else if (call.is<double>("X"))
    run<double, double>(call);
  else
    run<float, float>(call);
}
