// Memory of a CPU kernel.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace nnmf_cuda {

constexpr std::size_t kCacheLine = 64;

// Memory for `size` values, aligned to a cache line, its contents undefined.
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t size)
      : size_(size),
        data_(static_cast<T*>(::operator new(static_cast<std::size_t>(size) * sizeof(T),
                                             std::align_val_t{kCacheLine}))) {}

  T* data() const { return data_.get(); }
  T* operator+(int64_t offset) const { return data_.get() + offset; }
  void fill(T value) const { std::fill_n(data_.get(), size_, value); }

 private:
  struct Free {
    void operator()(T* data) const { ::operator delete(data, std::align_val_t{kCacheLine}); }
  };
  int64_t size_;
  std::unique_ptr<T, Free> data_;
};

}  // namespace nnmf_cuda
