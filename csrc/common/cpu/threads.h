// Threads of CPU kernels, and the memory that each of them uses again and again.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

#include <torch/csrc/stable/ops.h>

namespace nnmf_cuda {

// While it lives, this thread takes denormals for zeros: arithmetic on them is a hundred times
// slower, and multiplicative updates drive factors there.
class FlushDenormals {
 public:
#if defined(__SSE__)
  FlushDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | kFlushToZero | kZeroInputs); }
  ~FlushDenormals() { _mm_setcsr(before_); }

 private:
  static constexpr unsigned kFlushToZero = 0x8000, kZeroInputs = 0x0040;
  unsigned before_;
#else
  FlushDenormals() {}
#endif
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;
};

// Calls f(begin, end) for ranges that cover 0 ... count - 1, one a thread of torch's; inside such a
// call, for one range.
template <class F>
void parallel_for_ranges(int64_t count, const F& f) {
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    const FlushDenormals guard;
    f(begin, end);
  });
}

// Calls f(0) ... f(count - 1) on torch's threads; inside such a call, one after another.
template <class F>
void parallel_for_each(int64_t count, const F& f) {
  parallel_for_ranges(count, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(i);
  });
}

constexpr std::size_t kCacheLine = 64;

// Blocks from the system that return to it: what the allocator keeps of blocks as large as a factor
// would come on top of what a fit needs. In huge pages where those fit, which take no time to find;
// otherwise with all pages at once, since one by one they take as long as an iteration.
class SystemBlocks {
 public:
#if defined(__linux__)
  static bool holds(std::size_t bytes) { return bytes >= kHugePage / 4; }

  static void* take(std::size_t bytes) {
    if (!fits_huge_pages(bytes)) return map(bytes, MAP_POPULATE);
    const std::size_t size = in_huge_pages(bytes);
    char* all = static_cast<char*>(map(size + kHugePage, 0));
    const std::size_t before = in_huge_pages(address(all)) - address(all);
    char* block = all + before;
    if (before > 0) ::munmap(all, before);
    ::munmap(block + size, kHugePage - before);
    ::madvise(block, size, MADV_HUGEPAGE);
    return block;
  }

  static void give(void* block, std::size_t bytes) {
    ::munmap(block, fits_huge_pages(bytes) ? in_huge_pages(bytes) : bytes);
  }

 private:
  static constexpr std::size_t kHugePage = std::size_t{2} << 20;

  static std::size_t address(const void* block) { return reinterpret_cast<std::size_t>(block); }
  static std::size_t in_huge_pages(std::size_t bytes) {
    return (bytes + kHugePage - 1) / kHugePage * kHugePage;
  }
  // With at most an eighth more.
  static bool fits_huge_pages(std::size_t bytes) {
    return in_huge_pages(bytes) - bytes <= bytes / 8;
  }
  static void* map(std::size_t bytes, int flags) {
    constexpr int kProtection = PROT_READ | PROT_WRITE, kPrivate = MAP_PRIVATE | MAP_ANONYMOUS;
    void* block = ::mmap(nullptr, bytes, kProtection, kPrivate | flags, -1, 0);
    if (block == MAP_FAILED) throw std::bad_alloc();
    return block;
  }
#else
  static bool holds(std::size_t) { return false; }
  static void* take(std::size_t) { throw std::bad_alloc(); }
  static void give(void*, std::size_t) {}
#endif
};

// Blocks that a thread has used and will use again: tasks are short, and the allocator takes longer
// than some of them. Small blocks have sizes that are powers of two; large ones, and more than a
// few, go back.
class BlockCache {
 public:
  BlockCache() = default;
  BlockCache(const BlockCache&) = delete;
  BlockCache& operator=(const BlockCache&) = delete;
  ~BlockCache() {
    for (Blocks& blocks : free_)
      while (blocks.count > 0) ::operator delete(blocks.block[--blocks.count], kAlignment);
  }

  static void* take(std::size_t bytes) {
    const std::size_t power = power_of(bytes);
    if (SystemBlocks::holds(bytes)) return SystemBlocks::take(bytes);
    if (power >= kPowers) return ::operator new(bytes, kAlignment);
    Blocks& blocks = mine().free_[power];
    if (blocks.count > 0) return blocks.block[--blocks.count];
    return ::operator new(std::size_t{1} << power, kAlignment);
  }

  static void give(void* block, std::size_t bytes) {
    const std::size_t power = power_of(bytes);
    if (SystemBlocks::holds(bytes)) return SystemBlocks::give(block, bytes);
    if (power < kPowers && mine().free_[power].count < kMost) {
      Blocks& blocks = mine().free_[power];
      blocks.block[blocks.count++] = block;
    } else {
      ::operator delete(block, kAlignment);
    }
  }

 private:
  static constexpr std::size_t kPowers = 19, kMost = 8;  // 8 blocks each of up to 256 KiB
  static constexpr std::align_val_t kAlignment{kCacheLine};

  struct Blocks {
    std::array<void*, kMost> block;
    std::size_t count = 0;
  };

  static std::size_t power_of(std::size_t bytes) {
    return static_cast<std::size_t>(std::bit_width(std::max(bytes, kCacheLine) - 1));
  }
  static BlockCache& mine() {
    static thread_local BlockCache cache;
    return cache;
  }

  std::array<Blocks, kPowers> free_;
};

// Memory for `size` values, aligned to a cache line, its contents undefined.
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t size) : size_(size), data_(static_cast<T*>(BlockCache::take(bytes()))) {}
  Scratch(Scratch&& other) noexcept : size_(other.size_), data_(other.data_) {
    other.data_ = nullptr;
  }
  ~Scratch() { release(); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // Gives the memory back before the end.
  void release() {
    if (data_ != nullptr) BlockCache::give(data_, bytes());
    data_ = nullptr;
  }

  T* data() const { return data_; }
  T* operator+(int64_t offset) const { return data_ + offset; }
  void fill(T value) const { std::fill_n(data_, size_, value); }

 private:
  std::size_t bytes() const { return static_cast<std::size_t>(size_) * sizeof(T); }

  int64_t size_;
  T* data_;
};

}  // namespace nnmf_cuda
