// The CUDA kernels of nnmf_mu and nnmf_divergence.
#include "call.h"
#include "nnmf/nnmf_divergence_kernels.cuh"
#include "nnmf/nnmf_mu_kernels.cuh"

namespace {

using namespace nnmf_cuda;

Shape shape_of(const cuda_on_cpu::Call& call) {
  const bool shared = call.dims("X") == 2;
  const int64_t n = call.size("W", 1), f = call.size("H", 2);
  return {call.size("W", 0), n, f, call.size("W", 2), shared ? 0 : n * f, f};
}

MuOptions options_of(const cuda_on_cpu::Call& call) {
  return {call.number("beta_loss"), call.integer("n_iter"),  call.integer("update_H") != 0,
          call.number("l1_reg_W"),  call.number("l1_reg_H"), call.number("l2_reg_W"),
          call.number("l2_reg_H")};
}

template <class T, class Data>
void run(cuda_on_cpu::Call& call) {
  const Shape shape = shape_of(call);
  const MuOptions options = options_of(call);
  const Sums sums{call.scratch<double>(sums_size(shape)), call.scratch<double>(sums_size(shape)),
                  call.scratch<double>(shape.batch * shape.n_components)};
  const DeviceBatch<T, Data> batch{call.tensor<Data>("X"), call.tensor<T>("W"), call.tensor<T>("H"),
                                   shape, options.beta_loss};
  double* parts = call.scratch<double>(shape.batch * divergence_parts(shape));
  double* divergence = call.result<double>("divergence", {shape.batch});
  dispatch_loss(options.beta_loss, [&]<Loss loss>(LossType<loss>) {
    launch_nnmf_mu<loss>(batch, sums, options, nullptr);
    launch_nnmf_divergence<loss>(batch, parts, divergence, nullptr);
  });
  call.give("W");
  call.give("H");
}

}  // namespace

CUDA_ON_CPU_CALL(nnmf_mu) {
#if !defined(ONLY_FLOAT32)  // which takes a third of the time to compile
  if (call.is<uint8_t>("X")) return run<float, uint8_t>(call);
  if (call.is<double>("X")) return run<double, double>(call);
#endif
  run<float, float>(call);
}
