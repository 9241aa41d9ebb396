// The CUDA kernels of nnmf_mu and nnmf_divergence as a library of host functions; see
// cuda_on_cpu.h.
#include <cmath>
#include <cstdint>
#include <vector>

#include "nnmf/nnmf_divergence_kernels.cuh"
#include "nnmf/nnmf_mu_kernels.cuh"

namespace {

using namespace nnmf_cuda;

// Scratch memory starts as NaN, as an uninitialised value would show.
std::vector<double> undefined(int64_t size) {
  return std::vector<double>(size, NAN);
}

template <class T, class Data>
void run(const Data* X, T* W, T* H, double* divergence, const Shape& shape,
         const MuOptions& options, unsigned seed) {
  cuda_on_cpu::random_order.seed(seed);
  auto numerator = undefined(sums_size(shape)), denominator = undefined(sums_size(shape)),
       components = undefined(shape.batch * shape.n_components),
       parts = undefined(shape.batch * divergence_parts(shape));
  const Sums sums{numerator.data(), denominator.data(), components.data()};
  const DeviceBatch<T, Data> batch{X, W, H, shape, options.beta_loss};
  dispatch_loss(options.beta_loss, [&]<Loss loss>(LossType<loss>) {
    launch_nnmf_mu<loss>(batch, sums, options, nullptr);
    launch_nnmf_divergence<loss>(batch, parts.data(), divergence, nullptr);
  });
}

}  // namespace

extern "C" {

void run_float32(const float* X, float* W, float* H, double* divergence, const Shape* shape,
                 const MuOptions* options, unsigned seed) {
  run(X, W, H, divergence, *shape, *options, seed);
}

void run_float64(const double* X, double* W, double* H, double* divergence, const Shape* shape,
                 const MuOptions* options, unsigned seed) {
  run(X, W, H, divergence, *shape, *options, seed);
}

void run_uint8(const uint8_t* X, float* W, float* H, double* divergence, const Shape* shape,
               const MuOptions* options, unsigned seed) {
  run(X, W, H, divergence, *shape, *options, seed);
}
}
