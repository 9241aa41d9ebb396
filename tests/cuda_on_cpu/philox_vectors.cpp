// The vector functions that draw normals on a CPU, on words of a test's choice: no counter within
// reach gives those at which a formula is put to the test. A result for each instruction set.
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "call.h"
#include "common/inline.h"
#include "diffusion/philox.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

// What may stand in the upper half of a lane.
constexpr uint64_t kNoise = 0xdeadbeef00000000;

#define NNMF_CUDA_VECTOR_BYTES 16
#define NNMF_CUDA_ISA baseline
#include "philox_words.h"
#undef NNMF_CUDA_ISA
#undef NNMF_CUDA_VECTOR_BYTES

#if defined(__x86_64__) && !defined(__clang__)
#define X86_VARIANTS

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
#define NNMF_CUDA_VECTOR_BYTES 32
#define NNMF_CUDA_ISA avx2
#include "philox_words.h"
#undef NNMF_CUDA_ISA
#undef NNMF_CUDA_VECTOR_BYTES
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4")
#define NNMF_CUDA_VECTOR_BYTES 64
#define NNMF_CUDA_ISA avx512
#include "philox_words.h"
#undef NNMF_CUDA_ISA
#undef NNMF_CUDA_VECTOR_BYTES
#pragma GCC pop_options

#endif

CUDA_ON_CPU_CALL(normals_from_words) {
  const int64_t n = call.size("words", 0);
  const int64_t* words = call.tensor<int64_t>("words");
  nnmf_cuda::baseline::normals_from_rows(words, n, call.result<float>("baseline", {n}));
#if defined(X86_VARIANTS)
  if (__builtin_cpu_supports("x86-64-v3"))
    nnmf_cuda::avx2::normals_from_rows(words, n, call.result<float>("avx2", {n}));
  if (__builtin_cpu_supports("x86-64-v4"))
    nnmf_cuda::avx512::normals_from_rows(words, n, call.result<float>("avx512", {n}));
#endif
}
