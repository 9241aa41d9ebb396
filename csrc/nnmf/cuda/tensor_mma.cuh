// Products of small matrices on tensor cores, as exact as float32's. Tensor cores multiply numbers
// of eleven significant bits (TF32) and add in float32; a float32 number is split into two of
// them, and of a product of two such sums all but lo lo is added up (Ootomo & Yokota 2022,
// arXiv 2203.03341). What is lost stands in bench/tf32.py, with a proof.
#pragma once

#include <cstdint>

#include "../../common/cuda/launch.h"

#if !defined(__CUDACC__)
#include "tensor_core.h"
#endif

namespace nnmf_cuda {

// A warp's operands of one mma, A [16, 8], B [8, 8] and C [16, 8]: what a lane holds of them. With
// g = lane / 4 and t = lane % 4 these are
//   A: (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4)     B: (t, g), (t + 4, g)
//   C: (g, 2 t), (g, 2 t + 1), (g + 8, 2 t), (g + 8, 2 t + 1)
// (PTX ISA, mma.m16n8k8 for .tf32). A and B are given by their bits.
using MmaA = uint32_t[4];
using MmaB = uint32_t[2];
using MmaC = float[4];

// C += A B
__device__ __forceinline__ void mma(MmaC& c, const MmaA& a, const MmaB& b) {
#if defined(__CUDA_ARCH__)
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#elif !defined(__CUDACC__)
  cuda_on_cpu::mma_m16n8k8_tf32(c, a, b);
#endif
}

__device__ __forceinline__ uint32_t bits_of(float x) {
  return __builtin_bit_cast(uint32_t, x);
}

constexpr uint32_t kTf32Bits = 0xffffe000;  // that tensor cores read

// The nearest number of eleven bits. NaN stays NaN.
__device__ __forceinline__ float nearest_tf32(float x) {
  // By whole numbers: conversions run at a quarter of their rate.
  return __builtin_bit_cast(float, (bits_of(x) + 0x1000) & kTf32Bits);
}

// Splits x into hi, the nearest of eleven bits, and lo, what is left, cut off at eleven bits: their
// sum is x but for 2^-23 of it. Below 1e-31 lo has fewer bits, and none below 1e-34: there only
// hi is left, which is x but for 2^-11. NaN gives NaN, and so does what rounds to infinity.
__device__ __forceinline__ void split(float x, uint32_t& hi, uint32_t& lo) {
  const float nearest = nearest_tf32(x);
  hi = bits_of(nearest);
  lo = bits_of(x - nearest) & kTf32Bits;
}

// An operand in its two parts.
template <class Operand>
struct Parts {
  Operand hi, lo;

  __device__ __forceinline__ void set(int at, float x) { split(x, hi[at], lo[at]); }

  // Of which both are known.
  __device__ __forceinline__ void set(int at, float nearest, float left) {
    hi[at] = bits_of(nearest);
    lo[at] = bits_of(left) & kTf32Bits;
  }
};

// Adds the small products. To be called for all operands of a sum before add_large: each mma cuts
// off the last bit of what it adds to.
__device__ __forceinline__ void add_small(MmaC& c, const Parts<MmaA>& a, const Parts<MmaB>& b) {
  mma(c, a.lo, b.hi);
  mma(c, a.hi, b.lo);
}

__device__ __forceinline__ void add_large(MmaC& c, const Parts<MmaA>& a, const Parts<MmaB>& b) {
  mma(c, a.hi, b.hi);
}

}  // namespace nnmf_cuda
