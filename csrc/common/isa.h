// The instruction sets that the CPU kernels are compiled for, and which of them runs here.
#pragma once

#include <cstdlib>
#include <string>

#include <torch/headeronly/util/Exception.h>

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

// The best that this processor has: x86-64-v4 and v3 are what foreach_isa.h compiles for.
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
