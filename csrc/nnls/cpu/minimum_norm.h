// The gradient of rows whose free variables depend on each other, one at a time.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "gram.h"

namespace nnmf_cuda {

// A factor M [size, rank] of a positive semi-definite matrix A = M M^T, by Cholesky's method with
// the largest pivot first. A is overwritten.
class RankFactor {
 public:
  RankFactor(std::vector<double> a, std::size_t size) : size_(size) {
    double largest = 0;
    for (std::size_t step = 0; step < size; ++step) {
      std::size_t best = 0;
      for (std::size_t i = 1; i < size; ++i)
        if (a[i * size + i] > a[best * size + best]) best = i;
      const double pivot = a[best * size + best];
      if (step == 0) largest = pivot;
      if (!(pivot > kRankTolerance * largest)) return;
      const std::size_t at = columns_.size();
      for (std::size_t i = 0; i < size; ++i)
        columns_.push_back(a[i * size + best] / std::sqrt(pivot));
      for (std::size_t i = 0; i < size; ++i)
        for (std::size_t j = 0; j < size; ++j)
          a[i * size + j] -= columns_[at + i] * columns_[at + j];
      a[best * size + best] = 0;
    }
  }

  std::size_t rank() const { return columns_.size() / size_; }

  // pinv(A) b = M (M^T M)^-2 M^T b
  std::vector<double> solve(const std::vector<double>& b) const {
    const std::size_t r = rank();
    std::vector<double> reduced(r), gram(r * r), solved(size_);
    for (std::size_t p = 0; p < r; ++p) {
      reduced[p] = dot(column(p), b.data());
      for (std::size_t q = 0; q <= p; ++q) gram[p * r + q] = dot(column(p), column(q));
    }
    cholesky(gram, r);
    for (int twice = 0; twice < 2; ++twice) cholesky_solve(gram, r, reduced);
    for (std::size_t p = 0; p < r; ++p)
      for (std::size_t i = 0; i < size_; ++i) solved[i] += column(p)[i] * reduced[p];
    return solved;
  }

 private:
  const double* column(std::size_t p) const { return columns_.data() + p * size_; }

  double dot(const double* x, const double* y) const {
    double sum = 0;
    for (std::size_t i = 0; i < size_; ++i) sum += x[i] * y[i];
    return sum;
  }

  static void cholesky(std::vector<double>& a, std::size_t r) {
    for (std::size_t i = 0; i < r; ++i) {
      for (std::size_t j = 0; j <= i; ++j) {
        double sum = a[i * r + j];
        for (std::size_t p = 0; p < j; ++p) sum -= a[i * r + p] * a[j * r + p];
        a[i * r + j] = i == j ? std::sqrt(sum) : sum / a[j * r + j];
      }
    }
  }

  static void cholesky_solve(const std::vector<double>& l, std::size_t r, std::vector<double>& b) {
    for (std::size_t i = 0; i < r; ++i) {
      for (std::size_t j = 0; j < i; ++j) b[i] -= l[i * r + j] * b[j];
      b[i] /= l[i * r + i];
    }
    for (std::size_t i = r; i-- > 0;) {
      b[i] /= l[i * r + i];
      for (std::size_t j = 0; j < i; ++j) b[j] -= l[i * r + j] * b[i];
    }
  }

  std::size_t size_;
  std::vector<double> columns_;
};

// u = the solution of least norm of G_FF u = grad_F for the variables F that are free (free[j] !=
// 0), and zero elsewhere; all in the units of the unscaled problem. Never inlined: callers are
// compiled for other instruction sets.
__attribute__((noinline)) inline void solve_minimum_norm(const Gram& gram, const double* free,
                                                         const double* grad, double* u) {
  std::vector<int64_t> order;
  for (int64_t j = 0; j < gram.size; ++j) {
    u[j] = 0;
    if (free[j] != 0) order.push_back(j);
  }
  const std::size_t count = order.size();
  std::vector<double> block, rhs;
  for (const int64_t i : order) {
    rhs.push_back(grad[i]);
    for (const int64_t j : order)
      block.push_back(gram.value(i, j) / (gram.scale[i] * gram.scale[j]));
  }
  const std::vector<double> solved = RankFactor(std::move(block), count).solve(rhs);
  for (std::size_t a = 0; a < count; ++a) u[order[a]] = solved[a];
}

}  // namespace nnmf_cuda
