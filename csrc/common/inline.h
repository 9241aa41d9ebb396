// Functions that host and device share.
#pragma once

#if defined(__CUDACC__)
#define NNMF_CUDA_INLINE __host__ __device__ __forceinline__
#else
#define NNMF_CUDA_INLINE inline __attribute__((always_inline))
#endif
