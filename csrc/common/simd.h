// What the CPU kernels share: instruction-set variants, vectors, aligned scratch memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

#include "inline.h"

// One source, several instruction sets, chosen at run time by CPUID. For the small functions that
// do the arithmetic: they are called a panel or a tile at a time, so a call costs nothing, and only
// what is inlined into them (NNMF_CUDA_INLINE) is compiled for the same instruction set. Never
// inlined themselves: in larger functions the compiler runs out of registers. Compiler vectors and
// plain loops only, no intrinsics. They stand in an anonymous namespace.
#if defined(__x86_64__) && defined(__GNUC__) && __GNUC__ >= 12 && !defined(__clang__)
#define NNMF_CUDA_CPU_CLONES 1
#define NNMF_CUDA_CLONED \
  __attribute__((noinline, target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define NNMF_CUDA_CLONED __attribute__((noinline))
#endif

namespace nnmf_cuda {

constexpr std::size_t kCacheLine = 64;

// Values as a compiler vector of 32 bytes: one AVX2 register. Vectors of 64 bytes serve AVX-512 no
// better here, and a compiler that builds for AVX2 keeps them in memory: three times slower.
template <class T>
struct Vector {
  static constexpr std::size_t kBytes = 32;
  static constexpr int64_t kLanes = kBytes / sizeof(T);
  typedef T Lanes __attribute__((vector_size(kBytes), may_alias));

  static NNMF_CUDA_INLINE Lanes& at(T* p) { return *reinterpret_cast<Lanes*>(p); }
  static NNMF_CUDA_INLINE const Lanes& at(const T* p) { return *reinterpret_cast<const Lanes*>(p); }

  static NNMF_CUDA_INLINE T sum(const Lanes& v) {
    T part[kLanes];
    for (int64_t l = 0; l < kLanes; ++l) part[l] = v[l];
    for (int64_t width = kLanes / 2; width > 0; width /= 2)
      for (int64_t l = 0; l < width; ++l) part[l] += part[l + width];
    return part[0];
  }
};

// Memory for `size` values, aligned to a cache line, its contents undefined.
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t size)
      : data_(static_cast<T*>(::operator new(static_cast<std::size_t>(size) * sizeof(T),
                                             std::align_val_t{kCacheLine}))) {}

  T* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(T* data) const { ::operator delete(data, std::align_val_t{kCacheLine}); }
  };
  std::unique_ptr<T, Free> data_;
};

}  // namespace nnmf_cuda
