// The instruction sets that the CPU kernels are compiled for, and which of them runs here.
//
// A .cpp that defines NNMF_CUDA_ISA_SOURCE has that file compiled once for each instruction set,
// every time in another namespace: nnmf_cuda::avx512, avx2 and baseline. One kernel source, no
// flags for single files, no machine code that the processor at hand does not know. It includes all
// it needs, then this header, once:
//
//   #define NNMF_CUDA_ISA_SOURCE "../../nnmf/cpu/iterate.h"
//   #include "../../common/cpu/isa.h"
//
// and picks at run time: NNMF_CUDA_CHOOSE(function<T>)(arguments). An ISA source has no include
// guard, and includes nothing but other ISA sources: what a region of gcc's target pragma sees
// first is compiled for that instruction set, and the linker might keep that copy of a function of
// the standard library for everyone. It opens the namespaces nnmf_cuda, NNMF_CUDA_ISA and one
// without a name, and writes vectors as Vector<T> of ../vector.h. NNMF_CUDA_VECTOR_BYTES tells the
// instruction set.
#ifndef NNMF_CUDA_COMMON_CPU_ISA_H
#define NNMF_CUDA_COMMON_CPU_ISA_H

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <type_traits>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <torch/headeronly/util/Exception.h>

#include "../inline.h"

// The variants need target pragmas and __builtin_cpu_supports of gcc. Elsewhere the baseline
// serves, also where the compiler was told to take more for granted (-march=native): then it is
// that.
#if defined(__x86_64__) && defined(__GNUC__) && __GNUC__ >= 12 && !defined(__clang__) && \
    !defined(__AVX__)
#define NNMF_CUDA_X86_VARIANTS 1
#endif

namespace nnmf_cuda {

enum class Isa { kBaseline, kAvx2, kAvx512 };

inline const char* isa_name(Isa isa) {
  return isa == Isa::kAvx512 ? "avx512" : isa == Isa::kAvx2 ? "avx2" : "baseline";
}

// The best that this processor has: x86-64-v4 and v3 are what is compiled below.
inline Isa best_isa() {
#ifdef NNMF_CUDA_X86_VARIANTS
  if (__builtin_cpu_supports("x86-64-v4")) return Isa::kAvx512;
  if (__builtin_cpu_supports("x86-64-v3")) return Isa::kAvx2;
#endif
  return Isa::kBaseline;
}

// The one that runs: the best, or a lower one named by NNMF_CUDA_CPU_ISA, read once.
inline Isa cpu_isa() {
  static const Isa chosen = [] {
    const char* name = std::getenv("NNMF_CUDA_CPU_ISA");
    if (name == nullptr || *name == '\0') return best_isa();
    for (const Isa isa : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512})
      if (isa <= best_isa() && std::string(name) == isa_name(isa)) return isa;
    STD_TORCH_CHECK(false, "NNMF_CUDA_CPU_ISA=", name, " is not an instruction set of this build ",
                    "and processor; unset it for ", isa_name(best_isa()),
                    ", or name a lower one of avx512, avx2, baseline");
  }();
  return chosen;
}

}  // namespace nnmf_cuda

#endif  // NNMF_CUDA_COMMON_CPU_ISA_H

#ifdef NNMF_CUDA_ISA_SOURCE

#ifdef NNMF_CUDA_X86_VARIANTS

#define NNMF_CUDA_ISA avx512
#define NNMF_CUDA_VECTOR_BYTES 64
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4")
#include "../vector.h"
#include NNMF_CUDA_ISA_SOURCE
#pragma GCC pop_options
#undef NNMF_CUDA_VECTOR_BYTES
#undef NNMF_CUDA_ISA

#define NNMF_CUDA_ISA avx2
#define NNMF_CUDA_VECTOR_BYTES 32
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
#include "../vector.h"
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
#include "../vector.h"
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

#endif  // NNMF_CUDA_ISA_SOURCE
