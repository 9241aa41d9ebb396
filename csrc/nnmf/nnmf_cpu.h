// Building blocks of the CPU kernels: a panel of a few rows of X and W against a tile of H.
//
// H is copied tile by tile into contiguous, zero-padded memory (its rows may lie a power of two
// apart, which a cache cannot hold together), so every inner loop has a constant length. Rows and
// columns beyond the end are zeros; they add nothing to any sum.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../common/simd.h"
#include "beta_loss.h"
#include "problem.h"

namespace nnmf_cuda {

namespace {  // cloned functions have no linkage across files

constexpr int64_t kRows = 4;  // rows of a panel: each value of H that is loaded serves all of them

template <class T>
constexpr int64_t kTile = 1024 / static_cast<int64_t>(sizeof(T));  // columns of a tile

constexpr int64_t kBlockRows = 32;  // rows that one task updates, tile by tile
static_assert(kBlockRows % kRows == 0);

// One factorisation of the batch.
template <class T, class Data>
struct Problem {
  const Data* X;  // [n_samples, n_features]
  T* W;           // [n_samples, n_components]
  T* H;           // [n_components, n_features]
  int64_t n_samples;
  int64_t n_features;
  int64_t n_components;
};

// All of them. W and H are contiguous; X may be shared.
template <class T, class Data>
struct Batch {
  const Data* X;
  T* W;
  T* H;
  Shape shape;

  Problem<T, Data> operator[](int64_t b) const {
    const Shape& s = shape;
    return {X + b * s.x_stride,
            W + b * s.n_samples * s.n_components,
            H + b * s.n_components * s.n_features,
            s.n_samples,
            s.n_features,
            s.n_components};
  }
};

// Columns [column, column + kTile) of H as [n_components, kTile], in the precision of Sum.
template <class Sum, class T, class Data>
NNMF_CUDA_CLONED void load_tile(const Problem<T, Data>& p, int64_t column, Sum* tile) {
  const int64_t columns = std::min(kTile<Sum>, p.n_features - column);
  for (int64_t r = 0; r < p.n_components; ++r) {
    const T* from = p.H + r * p.n_features + column;
    Sum* to = tile + r * kTile<Sum>;
    for (int64_t c = 0; c < columns; ++c) to[c] = static_cast<Sum>(from[c]);
    for (int64_t c = columns; c < kTile<Sum>; ++c) to[c] = Sum{0};
  }
}

// Rows [row, row + kRows) of those columns of X as [kRows, kTile]. Pixels are divided in T, the
// precision in which the reference converts them.
template <class Sum, class T, class Data>
NNMF_CUDA_CLONED void load_data(const Problem<T, Data>& p, int64_t row, int64_t column, Sum* x) {
  const int64_t columns = std::min(kTile<Sum>, p.n_features - column);
  for (int64_t i = 0; i < kRows; ++i) {
    const int64_t valid = row + i < p.n_samples ? columns : 0;
    const Data* from = p.X + (row + i) * p.n_features + column;
    Sum* to = x + i * kTile<Sum>;
    for (int64_t c = 0; c < valid; ++c) to[c] = static_cast<Sum>(value_of<T>(from[c]));
    for (int64_t c = valid; c < kTile<Sum>; ++c) to[c] = Sum{0};
  }
}

// The same rows of W as [n_components, kRows].
template <class Sum, class T, class Data>
NNMF_CUDA_INLINE void load_weights(const Problem<T, Data>& p, int64_t row, Sum* weights) {
  for (int64_t i = 0; i < kRows; ++i)
    for (int64_t r = 0; r < p.n_components; ++r)
      weights[r * kRows + i] =
          row + i < p.n_samples ? static_cast<Sum>(p.W[(row + i) * p.n_components + r]) : Sum{0};
}

// wh = weights^T tile, [kRows, kTile].
template <class T>
NNMF_CUDA_CLONED void multiply(const T* weights, const T* tile, int64_t n_components, T* wh) {
  using V = Vector<T>;
  for (int64_t c = 0; c < kTile<T>; c += V::kLanes) {
    typename V::Lanes sum[kRows] = {};
    for (int64_t r = 0; r < n_components; ++r) {
      const typename V::Lanes h = V::at(tile + r * kTile<T> + c);
#pragma GCC unroll 4
      for (int64_t i = 0; i < kRows; ++i) sum[i] += weights[r * kRows + i] * h;
    }
#pragma GCC unroll 4
    for (int64_t i = 0; i < kRows; ++i) V::at(wh + i * kTile<T> + c) = sum[i];
  }
}

// wh = 1 outside the matrix, whose zero to a very negative power would be infinite, and infinity
// times the zeros around it NaN.
template <class T, class Data>
NNMF_CUDA_INLINE void fill_padding(const Problem<T, Data>& p, int64_t row, int64_t column, T* wh) {
  const int64_t columns = std::min(kTile<T>, p.n_features - column);
  for (int64_t i = 0; i < kRows; ++i)
    for (int64_t c = row + i < p.n_samples ? columns : 0; c < kTile<T>; ++c)
      wh[i * kTile<T> + c] = T{1};
}

// sums[r, i] += terms[i, :] . tile[r, :]
template <class T>
NNMF_CUDA_CLONED void add_row_sums(const T* terms, const T* tile, int64_t n_components,
                                   double* sums) {
  using V = Vector<T>;
  for (int64_t r = 0; r < n_components; ++r) {
    typename V::Lanes sum[kRows] = {};
    for (int64_t c = 0; c < kTile<T>; c += V::kLanes) {
      const typename V::Lanes h = V::at(tile + r * kTile<T> + c);
#pragma GCC unroll 4
      for (int64_t i = 0; i < kRows; ++i) sum[i] += V::at(terms + i * kTile<T> + c) * h;
    }
#pragma GCC unroll 4
    for (int64_t i = 0; i < kRows; ++i) sums[r * kRows + i] += static_cast<double>(V::sum(sum[i]));
  }
}

// sums[r, :] += weights[r, :] . terms[:, :]
template <class T>
NNMF_CUDA_CLONED void add_column_sums(const T* weights, const T* terms, int64_t n_components,
                                      T* sums) {
  using V = Vector<T>;
  for (int64_t c = 0; c < kTile<T>; c += V::kLanes) {
    typename V::Lanes term[kRows];
#pragma GCC unroll 4
    for (int64_t i = 0; i < kRows; ++i) term[i] = V::at(terms + i * kTile<T> + c);
    for (int64_t r = 0; r < n_components; ++r) {
      typename V::Lanes sum = V::at(sums + r * kTile<T> + c);
#pragma GCC unroll 4
      for (int64_t i = 0; i < kRows; ++i) sum += weights[r * kRows + i] * term[i];
      V::at(sums + r * kTile<T> + c) = sum;
    }
  }
}

}  // namespace
}  // namespace nnmf_cuda
