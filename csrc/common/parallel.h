// The one way in which CPU kernels use several threads.
#pragma once

#include <cstdint>

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

// Calls f(0) ... f(count - 1) on torch's threads; inside such a call, one after another.
template <class F>
void parallel_for_each(int64_t count, const F& f) {
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    const FlushDenormals guard;
    for (int64_t i = begin; i < end; ++i) f(i);
  });
}

}  // namespace nnmf_cuda
