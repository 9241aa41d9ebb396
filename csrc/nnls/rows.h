// Rows of least squares as the kernels of both devices see them: how many there are, and what is
// taken for rounding in them. Free of torch.
#pragma once

#include <cstdint>
#include <limits>

#include "../common/inline.h"

namespace nnmf_cuda {

// Of the rows of all problems, [batch, n, k].
struct RowsShape {
  int64_t batch, n, k;
};

// What rows are given besides their numbers, and what they give back besides their minimisers.
struct ActiveSets {
  const bool* start;  // [rows, k]: the free variables to begin with; null for all
  double tol;         // a row may end at this KKT residual, relative to its largest |c_j|
  bool* free;         // [rows, k]: the free variables at the end
  int64_t* pivots;    // [rows]: variables that have changed sides

  NNMF_CUDA_INLINE ActiveSets from(int64_t row, int64_t k) const {
    return {start == nullptr ? nullptr : start + row * k, tol, free + row * k, pivots + row};
  }
};

// Room for a Gram matrix of size k made ready, in doubles: as much on either device, which fills it
// in its own way.
NNMF_CUDA_INLINE int64_t doubles_of_prepared(int64_t k) {
  return 2 * k * k + 50 * k + 8;
}

// What of components was made ready before, or nothing but null.
template <class T>
struct PreparedComponents {
  const T* packed;  // [B, n_features, padded]: features side by side, where products read them so
  const double* grams;  // [B, doubles_of_prepared(k)]: the matrices H H^T and their factors
};

constexpr double kRounding = std::numeric_limits<double>::epsilon();

// A pivot up to this is rounding: its variable is a combination of those before it.
NNMF_CUDA_INLINE double dependent_pivot(int64_t size) {
  return 4 * static_cast<double>(size) * kRounding;
}

// A gradient component is rounding up to this times the largest of |c_j| and the sum of |x|.
NNMF_CUDA_INLINE double gradient_tolerance(int64_t size) {
  return 10 * static_cast<double>(size) * kRounding;
}

// Exchanges by block principal pivoting after which a row is solved one variable at a time. Rows of
// problems that are not ill-conditioned need less than ten.
constexpr int64_t kMostExchanges = 40;

// What of the largest pivot is taken for zero where a least-norm solution is asked for.
constexpr double kRankTolerance = 1e-12;

}  // namespace nnmf_cuda
