// Stands in for a tensor core: mma.m16n8k8 for TF32, by a warp whose lanes hold the operands as the
// PTX ISA says.
//
// It rounds as badly as any core that tests have found (see bench/tf32.py): of A and B it reads the
// upper 19 bits; four products are added at once to what is there, all cut off one bit below the
// last of the largest of them, and their sum at 24 bits. The last four columns of A come first:
// nothing says which do.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "block.h"

namespace cuda_on_cpu {

// A number as a core reads it.
inline double tf32(uint32_t bits) {
  bits &= 0xffffe000;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline int exponent_of(double x) {
  uint64_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return static_cast<int>(bits >> 52 & 0x7ff) - 1023;
}

// x without what is below 2^last, for numbers of float32 and their products, below 2^(last + 60).
inline double cut_off(double x, int last) {
  const uint64_t bits[2] = {static_cast<uint64_t>(1023 + last) << 52,
                            static_cast<uint64_t>(1023 - last) << 52};
  double unit[2];
  std::memcpy(unit, bits, sizeof unit);
  return static_cast<double>(static_cast<int64_t>(x * unit[1])) * unit[0];
}

// The sum of four products and c.
inline float add_products(const double (&a)[4], const double (&b)[4], double c) {
  const double terms[5] = {a[0] * b[0], a[1] * b[1], a[2] * b[2], a[3] * b[3], c};
  int largest = -1000;
  for (const double term : terms) {
    if (!std::isfinite(term))
      return static_cast<float>(terms[0] + terms[1] + terms[2] + terms[3] + c);
    if (term != 0) largest = std::max(largest, exponent_of(term));
  }
  double sum = 0;
  if (largest > -1000)
    for (const double term : terms) sum += cut_off(term, largest - 24);
  if (sum == 0) return 0;
  return static_cast<float>(cut_off(sum, std::max(exponent_of(sum) - 23, -149)));
}

// What a lane gives and gets.
struct MmaRegisters {
  float* c;
  const uint32_t* a;
  const uint32_t* b;
};

inline void multiply_fragments(void* const* lanes) {
  double A[16][8], B[8][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& own = *static_cast<const MmaRegisters*>(lanes[lane]);
    const int group = lane >> 2, in_group = lane % 4;
    for (int i = 0; i < 4; ++i)
      A[i == 0 || i == 2 ? group : group + 8][i < 2 ? in_group : in_group + 4] = tf32(own.a[i]);
    for (int i = 0; i < 2; ++i) B[i == 0 ? in_group : in_group + 4][group] = tf32(own.b[i]);
  }
  for (int lane = 0; lane < 32; ++lane) {
    const auto& own = *static_cast<const MmaRegisters*>(lanes[lane]);
    for (int i = 0; i < 4; ++i) {
      const int row = i < 2 ? lane >> 2 : (lane >> 2) + 8, column = lane % 4 * 2 + (i & 1);
      for (int first = 4; first >= 0; first -= 4) {
        double a[4], b[4];
        for (int j = 0; j < 4; ++j) {
          a[j] = A[row][first + j];
          b[j] = B[first + j][column];
        }
        own.c[i] = add_products(a, b, own.c[i]);
      }
    }
  }
}

// c += a b; all lanes of the warp.
inline void mma_m16n8k8_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  MmaRegisters registers{c, a, b};
  compute_by_warp("mma.m16n8k8", &registers, multiply_fragments);
}

}  // namespace cuda_on_cpu
