// What one entry of X adds to the divergence, in the factors' precision and without a difference of
// larger numbers: a scalar twin of divergence_tiles.h, where the derivation is.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "beta_loss.h"

namespace nnmf_cuda {

template <class To, class From>
NNMF_CUDA_INLINE To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

// A positive ratio as 2^exponent (1 + rest), with 1 + rest in [sqrt(1/2), sqrt(2)).
template <class T>
struct Logarithm {
  T exponent, rest;

  NNMF_CUDA_INLINE explicit Logarithm(T ratio) {
    constexpr bool kSingle = sizeof(T) == 4;
    using Word = std::conditional_t<kSingle, uint32_t, uint64_t>;
    using Signed = std::conditional_t<kSingle, int32_t, int64_t>;
    constexpr int kMantissa = kSingle ? 23 : 52;
    constexpr Word kOne = kSingle ? Word(0x3f800000) : Word(0x3ff0000000000000);
    constexpr Word kRootHalf = kSingle ? Word(0x3f3504f3) : Word(0x3fe6a09e667f3bcd);
    const Word bits = bits_as<Word>(ratio) + (kOne - kRootHalf);
    exponent = static_cast<T>(static_cast<Signed>(bits >> kMantissa) -
                              static_cast<Signed>(kOne >> kMantissa));
    rest = bits_as<T>((bits & ((Word{1} << kMantissa) - 1)) + kRootHalf) - T{1};
  }
};

// log(1 + z) - z for 1 + z in [sqrt(1/2), sqrt(2)), exact relative to z^2: the polynomials of
// FreeBSD's e_logf.c and e_log.c.
template <class T>
NNMF_CUDA_INLINE T log_tail(T z) {
  const T s = quotient(z, T{2} + z), s2 = s * s, s4 = s2 * s2;
  T even, odd;
  if constexpr (sizeof(T) == 4) {
    odd = s2 * (T(0.66666662693) + s4 * T(0.28498786688));
    even = s4 * (T(0.40000972152) + s4 * T(0.24279078841));
  } else {
    odd = s2 * (0.6666666666666735 +
                s4 * (0.2857142874366239 + s4 * (0.1818357216161805 + s4 * 0.14798198605116586)));
    even = s4 * (0.3999999999940942 + s4 * (0.22222198432149784 + s4 * 0.15313837699209373));
  }
  const T half_square = T(0.5) * z * z;
  return s * (half_square + (odd + even)) - half_square;
}

template <Loss loss, class T>
NNMF_CUDA_INLINE double accurate_term(T x, T wh, double beta_loss) {
  if constexpr (loss == Loss::kFrobenius) {
    return static_cast<double>(T(0.5) * (x - wh) * (x - wh));
  } else if constexpr (loss == Loss::kGeneral) {
    return divergence_term<loss>(static_cast<double>(x), static_cast<double>(wh), beta_loss);
  } else {
    const T epsilon = static_cast<T>(kEpsilon);
    if (!(x > epsilon)) return loss == Loss::kKullbackLeibler ? static_cast<double>(wh) : -1.0;
    const T safe = floored(wh), excess = quotient(x - safe, safe), ratio = quotient(x, safe);
    const Logarithm<T> parts(ratio);
    const bool near = parts.exponent == 0;  // there x - safe is exact, and ratio - 1 is not
    const T z = near ? excess : parts.rest, tail = log_tail(z);
    const T main = parts.exponent * T(0.6931471805599453) + z;  // log(ratio) is main + tail
    if constexpr (loss == Loss::kKullbackLeibler) {
      const T relative = ratio * tail + (near ? z * z : ratio * main - excess);
      return static_cast<double>(safe * relative + (wh - safe));
    } else {
      return static_cast<double>(near ? -tail : excess - main - tail);
    }
  }
}

}  // namespace nnmf_cuda
