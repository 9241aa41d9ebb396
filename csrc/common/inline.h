// What host and device code share.
#pragma once

#if defined(__CUDACC__)
#define NNMF_CUDA_INLINE __host__ __device__ __forceinline__
#else
#define NNMF_CUDA_INLINE inline __attribute__((always_inline))
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
