// A step of a denoising chain, for both devices: its coefficients by Song et al. (2021), equation
// 12, and the embedding of its timestep; see the reference.
#pragma once

#include <cmath>
#include <cstdint>

#include "../common/inline.h"

namespace nnmf_cuda {

// x_prev = of_prediction * prediction + of_x_t * x_t + of_noise * noise; of the last step only the
// prediction is wanted. The chain begins at keep * x + spread * noise of its first step.
template <class T>
struct ChainStep {
  T keep, spread, of_prediction, of_x_t, of_noise;
};

// From alphas_cumprod at the step's timestep, and at the next one: 1 behind the last.
template <class T>
NNMF_CUDA_INLINE ChainStep<T> chain_step(double now, double prev, double eta) {
  const double variance = (1 - prev) / (1 - now) * (1 - now / prev);
  const double sigma = eta * std::sqrt(variance < 0 ? 0 : variance);
  const double rest = 1 - prev - sigma * sigma;
  const double direction = std::sqrt(rest < 0 ? 0 : rest) / std::sqrt(1 - now);
  return {static_cast<T>(std::sqrt(now)), static_cast<T>(std::sqrt(1 - now)),
          static_cast<T>(std::sqrt(prev) - direction * std::sqrt(now)), static_cast<T>(direction),
          static_cast<T>(sigma)};
}

// Sines, then cosines, of t * 10000^(-i / half); an odd width ends in a zero. Entries i = first,
// first + step, ... of each half are written, so that threads can share the work.
template <class T>
NNMF_CUDA_INLINE void embed(int64_t t, int64_t dim, int64_t first, int64_t step, T* to) {
  constexpr double kLog10000 = 9.210340371976184;
  const int64_t half = dim / 2;
  for (int64_t i = first; i < half; i += step) {
    const double exponent = static_cast<double>(i) / static_cast<double>(half);
    const double angle = static_cast<double>(t) * std::exp(-kLog10000 * exponent);
    to[i] = static_cast<T>(std::sin(angle));
    to[half + i] = static_cast<T>(std::cos(angle));
  }
  if (dim % 2 == 1 && first == 0) to[dim - 1] = T{0};
}

// A bias of the first layer, with what the embedding [dim] adds by its weights.
template <class T>
NNMF_CUDA_INLINE T fold_embedding(T bias, const T* weight, const T* embedding, int64_t dim) {
  double sum = static_cast<double>(bias);
  for (int64_t i = 0; i < dim; ++i)
    sum += static_cast<double>(weight[i]) * static_cast<double>(embedding[i]);
  return static_cast<T>(sum);
}

}  // namespace nnmf_cuda
