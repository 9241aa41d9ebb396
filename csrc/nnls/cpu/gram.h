// A Gram matrix made ready for many rows: symmetric, in float64, its variables scaled by powers of
// two (which rounds nothing) so that the diagonal lies in [1/2, 2]. Thresholds are then the same
// for every problem, whatever its units.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "../rows.h"

namespace nnmf_cuda {

// Up to this size rows are solved side by side, larger ones one at a time.
constexpr int64_t kMostSideBySide = 128;

// Columns of a large factor have room for whole tiles of rows, and lie an odd number of cache lines
// apart, so that they do not meet in the same places of the caches.
constexpr int64_t kFactorRoom = 16;
constexpr int64_t factor_stride(int64_t size) {
  return (size + kFactorRoom + 15) / 16 * 16 + 8;
}

// min 1/2 h G h^T - c h^T with h = scale * x: `values` and scale * c are the problem in x.
struct Gram {
  int64_t size;
  bool finite;
  const double* values;    // [size + 1, size + 1]; row and column `size` are zeros
  const double* diagonal;  // [size + 1]; the last is one
  const double* scale;     // [size]
  // L D L^T, [size, size], up to kMostSideBySide; for more L L^T, column by column, factor_stride
  // apart.
  const double* factor;
  const double* inverse_pivot;  // [size]: of D or L; zero: the variable depends on those before it

  double value(int64_t i, int64_t j) const { return values[i * (size + 1) + j]; }
};

class PreparedGram {
 public:
  // What lies in memory [doubles_of_prepared(size)], that of the caller.
  PreparedGram(double* memory, int64_t size) : size_(size), memory_(memory) {}

  // gram [size, size], contiguous
  template <class T>
  void load(const T* gram) {
    const Gram g = view();
    double *values = own(g.values), *diagonal = own(g.diagonal), *scale = own(g.scale);
    for (int64_t j = 0; j < size_; ++j) {
      const double square = static_cast<double>(gram[j * size_ + j]);
      // NaN and zeros keep their units.
      scale[j] = square > 0 && std::isfinite(square)
                     ? std::ldexp(1.0, -static_cast<int>(std::lround(std::log2(square) / 2)))
                     : 1.0;
    }
    bool finite = true;
    for (int64_t i = 0; i < size_; ++i) {
      for (int64_t j = 0; j < size_; ++j) {
        const double sum =
            static_cast<double>(gram[i * size_ + j]) + static_cast<double>(gram[j * size_ + i]);
        finite = finite && std::isfinite(sum);
        values[i * (size_ + 1) + j] = sum / 2 * scale[i] * scale[j];
      }
      values[i * (size_ + 1) + size_] = 0;
      diagonal[i] = values[i * (size_ + 1) + i];
    }
    std::fill_n(values + size_ * (size_ + 1), size_ + 1, 0.0);
    diagonal[size_] = 1;
    *memory_ = finite;
  }

  // Computes the factor of a finite matrix, with which rows begin where nothing else is known; that
  // of a large one by `of_large`(view, factor, inverse pivots).
  template <class F>
  void factorise(const F& of_large) {
    if (size_ <= kMostSideBySide)
      factorise_small();
    else
      of_large(view(), own(view().factor), own(view().inverse_pivot));
  }

  Gram view() const { return view(memory_, size_); }

  static Gram view(const double* memory, int64_t size) {
    const double *values = memory + 1, *diagonal = values + (size + 1) * (size + 1);
    const double *scale = diagonal + size + 1, *factor = scale + size;
    return {size,
            *memory != 0,
            values,
            diagonal,
            scale,
            factor,
            factor + size * (size <= kMostSideBySide ? size : factor_stride(size))};
  }

 private:
  // The same places as in the view, for writing.
  double* own(const double* place) { return memory_ + (place - memory_); }

  void factorise_small() {
    const Gram g = view();
    double *factor = own(g.factor), *inverse = own(g.inverse_pivot);
    std::vector<double> row(static_cast<std::size_t>(size_));  // L D of the row at hand
    for (int64_t i = 0; i < size_; ++i) {
      double pivot = g.diagonal[i];
      for (int64_t j = 0; j < i; ++j) {
        double sum = g.value(i, j);
        for (int64_t p = 0; p < j; ++p)
          sum -= row[static_cast<std::size_t>(p)] * factor[j * size_ + p];
        row[static_cast<std::size_t>(j)] = sum;
        factor[i * size_ + j] = sum * inverse[j];
        pivot -= sum * factor[i * size_ + j];
      }
      inverse[i] = pivot > dependent_pivot(size_) ? 1 / pivot : 0;
    }
  }

  int64_t size_;
  double* memory_;  // whether the matrix is finite, then the parts of the view
};

}  // namespace nnmf_cuda
