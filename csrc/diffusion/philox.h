// Counter-based normals: Philox4x32-10 (Salmon, Moraes, Dror & Shaw, "Parallel random numbers: as
// easy as 1, 2, 3", SC 2011) and Box-Muller in float64. One value at a time; philox_normals.h draws
// the same ones a vector at a time.
#pragma once

#include <cmath>
#include <cstdint>

#include "../common/inline.h"

namespace nnmf_cuda {

struct Philox {
  static constexpr int kRounds = 10;
  static constexpr uint32_t kMultiplier0 = 0xD2511F53, kMultiplier1 = 0xCD9E8D57;
  static constexpr uint32_t kWeyl0 = 0x9E3779B9, kWeyl1 = 0xBB67AE85;
};

// A cosine over a whole turn that is a sine over half of one: cos(x) is sin(pi/2 - x) for x < pi,
// and from there on -sin(3 pi/2 - x). sin(r) = r + r^3 (k0 + k1 r^2 + ...), |r| <= pi/2: minimax,
// relative error 1.6e-16.
struct BoxMuller {
  static constexpr double kTwoPi = 6.283185307179586;
  static constexpr double kQuarter = 1.5707963267948966, kQuarterLow = 6.123233995736766e-17;
  static constexpr double kThreeQuarters = 4.71238898038469,
                          kThreeQuartersLow = 1.8369701987210297e-16;
  static constexpr double k0 = -0.16666666666666186, k1 = 0.008333333333285543,
                          k2 = -0.0001984126982505651, k3 = 2.755731660057099e-06,
                          k4 = -2.5051880274591763e-08, k5 = 1.6048095419466054e-10,
                          k6 = -7.373344636949436e-13;
};

struct PhiloxWords {
  uint32_t word[4];
};

// The upper half of a product.
NNMF_CUDA_INLINE uint32_t multiply_high(uint32_t a, uint32_t b) {
#if defined(__CUDA_ARCH__)
  return __umulhi(a, b);
#else
  return static_cast<uint32_t>((uint64_t{a} * b) >> 32);
#endif
}

NNMF_CUDA_INLINE PhiloxWords philox_4x32(const PhiloxWords& counter, uint32_t key0, uint32_t key1) {
  uint32_t c0 = counter.word[0], c1 = counter.word[1], c2 = counter.word[2], c3 = counter.word[3];
#if defined(__CUDACC__)
#pragma unroll
#endif
  for (int round = 0; round < Philox::kRounds; ++round) {
    const uint32_t high0 = multiply_high(Philox::kMultiplier0, c0),
                   high1 = multiply_high(Philox::kMultiplier1, c2);
    const uint32_t low0 = Philox::kMultiplier0 * c0, low1 = Philox::kMultiplier1 * c2;
    c0 = high1 ^ c1 ^ key0;
    c1 = low1;
    c2 = high0 ^ c3 ^ key1;
    c3 = low0;
    key0 += Philox::kWeyl0;
    key1 += Philox::kWeyl1;
  }
  return {{c0, c1, c2, c3}};
}

// cos(2 pi u) for u in [0, 1): of 2 pi u as rounded to float64, so that zeros of the cosine lie
// where they do for cos() of that.
NNMF_CUDA_INLINE double cosine_of_turn(double u) {
  using B = BoxMuller;
#if defined(__CUDA_ARCH__)
  const double x = __dmul_rn(B::kTwoPi, u);
#else
  const double x = NNMF_CUDA_ROUNDED(B::kTwoPi * u);
#endif
  const bool late = u >= 0.5;
  const double high = late ? B::kThreeQuarters : B::kQuarter;
  const double low = late ? B::kThreeQuartersLow : B::kQuarterLow;
  const double r = (high - x) + low, z = r * r;
  double tail = B::k6;
  tail = B::k5 + z * tail;
  tail = B::k4 + z * tail;
  tail = B::k3 + z * tail;
  tail = B::k2 + z * tail;
  tail = B::k1 + z * tail;
  tail = B::k0 + z * tail;
  const double sine = r + r * z * tail;
  return late ? -sine : sine;
}

// Two uniforms of 53 bits, the first in (0, 1], the second in [0, 1), make a normal.
NNMF_CUDA_INLINE float normal_from_words(const PhiloxWords& words) {
  constexpr double kUnit = 0x1p-53;
  const uint64_t first = (uint64_t{words.word[0] >> 5} << 26) + (words.word[1] >> 6) + 1;
  const uint64_t second = (uint64_t{words.word[2] >> 5} << 26) + (words.word[3] >> 6);
  const double radius = sqrt(-2 * log(static_cast<double>(first) * kUnit));
  return static_cast<float>(radius * cosine_of_turn(static_cast<double>(second) * kUnit));
}

// Depends on its arguments alone.
NNMF_CUDA_INLINE float philox_normal(uint64_t seed, uint32_t step, uint32_t row, uint32_t draw,
                                     uint32_t feature) {
  const PhiloxWords counter{{feature, draw, row, step}};
  return normal_from_words(
      philox_4x32(counter, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)));
}

struct DrawsShape {
  int64_t n_steps, n_rows, n_draws, n_features;

  NNMF_CUDA_INLINE int64_t size() const { return n_steps * n_rows * n_draws * n_features; }
};

}  // namespace nnmf_cuda
