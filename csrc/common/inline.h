// What all code of host and device shares: how functions are declared, and arithmetic.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define NNMF_CUDA_INLINE __host__ __device__ __forceinline__
#else
#define NNMF_CUDA_INLINE inline __attribute__((always_inline))
#endif

// Device code that is called rather than copied to every place that calls it: large, and seldom
// called.
#if defined(__CUDACC__)
#define NNMF_CUDA_CALLED __device__ __noinline__
#else
#define NNMF_CUDA_CALLED
#endif

// The value of a product that is rounded before anything is added to it: the compiler may not make
// one multiply-add of both. (Device code has __dmul_rn. Older compilers, for which there is nothing
// of the kind, have no instruction for it that they may use.)
#if defined(__has_builtin) && !defined(__CUDACC__)  // nvcc's front end does not know it
#if __has_builtin(__builtin_assoc_barrier)
#define NNMF_CUDA_ROUNDED(product) __builtin_assoc_barrier(product)
#endif
#endif
#if !defined(NNMF_CUDA_ROUNDED)
#define NNMF_CUDA_ROUNDED(product) (product)
#endif

namespace nnmf_cuda {

// Blocks that cover `size` things.
inline int64_t blocks_of(int64_t size, int64_t block) {
  return (size + block - 1) / block;
}

// The larger of both; NaN where `value` is.
template <class T>
NNMF_CUDA_INLINE T at_least(T bound, T value) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(T) == 4) {
    float larger;  // in one instruction, which the compiler does not find
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(value), "f"(bound));
    return larger;
  }
#endif
  return value < bound ? bound : value;
}

// x / y for y from the smallest normal number to 2^126; float32 on a device within 2 units in the
// last place.
template <class T>
NNMF_CUDA_INLINE T quotient(T x, T y) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(T) == 4) {
    float inverse;  // y is neither denormal nor huge: one instruction does
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(y));
    return x * inverse;
  }
#endif
  return x / y;
}

}  // namespace nnmf_cuda
