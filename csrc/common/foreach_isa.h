// Compiles the file NNMF_CUDA_ISA_SOURCE once for each instruction set, every time in another
// namespace: nnmf_cuda::avx512, avx2 and baseline. One kernel source, no flags for single files, no
// machine code that the processor at hand does not know.
//
// A .cpp includes all it needs, then this header, once:
//
//   #define NNMF_CUDA_ISA_SOURCE "../nnmf/half_steps.h"
//   #include "../common/foreach_isa.h"
//
// and picks at run time: NNMF_CUDA_CHOOSE(function<T>)(arguments). An ISA source has no include
// guard, and includes nothing but other ISA sources: what a region of gcc's target pragma sees
// first is compiled for that instruction set, and the linker might keep that copy of a function of
// the standard library for everyone. It opens `namespace nnmf_cuda { namespace NNMF_CUDA_ISA {
// namespace
// {` and writes vectors as Vector<T> of vector.h. NNMF_CUDA_VECTOR_BYTES tells the instruction set.
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "inline.h"
#include "isa.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#ifdef NNMF_CUDA_X86_VARIANTS

#define NNMF_CUDA_ISA avx512
#define NNMF_CUDA_VECTOR_BYTES 64
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4")
#include "vector.h"
#include NNMF_CUDA_ISA_SOURCE
#pragma GCC pop_options
#undef NNMF_CUDA_VECTOR_BYTES
#undef NNMF_CUDA_ISA

#define NNMF_CUDA_ISA avx2
#define NNMF_CUDA_VECTOR_BYTES 32
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
#include "vector.h"
#include NNMF_CUDA_ISA_SOURCE
#pragma GCC pop_options
#undef NNMF_CUDA_VECTOR_BYTES
#undef NNMF_CUDA_ISA

#endif

#define NNMF_CUDA_ISA baseline
#if defined(__AVX512F__) && defined(__AVX512VL__)
#define NNMF_CUDA_VECTOR_BYTES 64
#elif defined(__AVX2__) && defined(__FMA__)
#define NNMF_CUDA_VECTOR_BYTES 32
#else
#define NNMF_CUDA_VECTOR_BYTES 16
#endif
#include "vector.h"
#include NNMF_CUDA_ISA_SOURCE
#undef NNMF_CUDA_VECTOR_BYTES
#undef NNMF_CUDA_ISA

// The address of a function of NNMF_CUDA_ISA_SOURCE, in the variant that runs here.
#ifdef NNMF_CUDA_X86_VARIANTS
#define NNMF_CUDA_CHOOSE(...)                                                              \
  (::nnmf_cuda::cpu_isa() == ::nnmf_cuda::Isa::kAvx512 ? &::nnmf_cuda::avx512::__VA_ARGS__ \
   : ::nnmf_cuda::cpu_isa() == ::nnmf_cuda::Isa::kAvx2 ? &::nnmf_cuda::avx2::__VA_ARGS__   \
                                                       : &::nnmf_cuda::baseline::__VA_ARGS__)
#else
#define NNMF_CUDA_CHOOSE(...) (&::nnmf_cuda::baseline::__VA_ARGS__)
#endif
