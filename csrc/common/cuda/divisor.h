// Division by a number that the host knows: a product and a shift, where a device needs twenty
// instructions for a quotient.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../inline.h"

namespace nnmf_cuda {

// Divides numbers below 2^31 by one of 1 to 2^31 (Granlund & Montgomery 1994, theorem 4.2): numbers
// of blocks. What is larger counts as 2^31, which no grid has.
class Divisor {
 public:
  Divisor() = default;
  explicit Divisor(int64_t divisor)
      : divisor_(static_cast<uint32_t>(std::min(divisor, int64_t{1} << 31))) {
    int log = 0;  // of the power of two that is no less
    while (int64_t{1} << log < divisor_) ++log;
    shift_ = 31 + log;
    multiplier_ = static_cast<uint32_t>(((uint64_t{1} << shift_) + divisor_ - 1) / divisor_);
  }

  NNMF_CUDA_INLINE unsigned value() const { return divisor_; }
  NNMF_CUDA_INLINE unsigned quotient(unsigned number) const {
    return static_cast<unsigned>(uint64_t{number} * multiplier_ >> shift_);
  }

 private:
  uint32_t divisor_ = 1, multiplier_ = uint32_t{1} << 31;
  int shift_ = 31;
};

}  // namespace nnmf_cuda
